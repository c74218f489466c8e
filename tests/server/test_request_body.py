"""A request's body: what is read of it as it arrives, and when nobody reads it any more."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import BadRequest, BodyTimeout, HeadTooLarge
from gateway.http.grammar import CHUNKED
from gateway.server.request_body import HIGH_WATER, RequestBody
from gateway.server.write_flow import ClientDisconnected


class Source:
    """A connection that writes down what the body asks of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def await_body(self, body: RequestBody) -> None:
        self.asked.append("await")

    def stop_awaiting_body(self, body: RequestBody) -> None:
        self.asked.append("stop")

    def resume_reading(self) -> None:
        self.asked.append("resume")


def arriving(length: int = CHUNKED, expects: bool = False) -> tuple[RequestBody, Source]:
    source = Source()
    return RequestBody(source, length, None, expects), source


@pytest.mark.parametrize("whole", [b"", b"hello"])
async def test_a_body_that_came_with_its_head_is_had_at_once_or_read(whole: bytes) -> None:
    source = Source()
    body = RequestBody(source, len(whole), whole, True)
    assert body.whole() == whole
    assert body.ended
    assert await body.read() == b""
    body = RequestBody(source, len(whole), whole, True)
    assert await body.read() == whole
    assert body.ended
    assert await body.read() == b""
    assert not body.expects_continue
    assert source.asked == []


async def test_a_body_that_is_not_all_here_is_not_whole_until_it_is() -> None:
    body, _ = arriving(5)
    assert body.whole() is None
    assert body.feed(b"he") == 2
    assert body.whole() is None
    assert body.feed(b"llo, and what follows") == 3
    assert not body.ended
    assert body.whole() == b"hello"
    assert body.ended
    assert body.remaining == 0


async def test_chunks_are_taken_off_and_what_follows_them_is_left() -> None:
    body, _ = arriving()
    assert body.feed(b"3\r\nabc\r\n2\r") == 10
    assert await body.read() == b"abc"
    assert body.feed(b"\nde\r\n0\r\n\r\nGET /") == 10
    assert body.here
    assert (await body.read(), body.ended) == (b"de", True)


@pytest.mark.parametrize(
    ("data", "error"), [(b"zz\r\n", BadRequest), (b"0\r\n" + b"a: b\r\n" * 2000, HeadTooLarge)]
)
def test_bad_chunks_are_a_refusal(data: bytes, error: type[Exception]) -> None:
    body, _ = arriving()
    with pytest.raises(error):
        body.feed(data)


async def test_who_reads_waits_for_the_next_piece_and_no_longer() -> None:
    body, source = arriving(4)
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    assert body.awaited
    assert source.asked == ["await"]
    body.feed(b"ab")
    assert not body.awaited
    body.feed(b"c")
    assert await reading == b"abc"
    assert source.asked == ["await", "stop", "resume"]
    body.feed(b"d")
    assert (await body.read(), await body.read()) == (b"d", b"")
    assert source.asked == ["await", "stop", "resume"], "at the end there is nothing to resume for"


async def test_two_cannot_wait_at_once_and_one_that_was_cancelled_can_wait_again() -> None:
    body, source = arriving(1)
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await body.read()
    reading.cancel()
    await asyncio.wait([reading])
    assert source.asked == ["await", "stop"]
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    body.feed(b"x")
    assert await reading == b"x"


async def test_the_client_should_wait_when_much_waits_for_the_application() -> None:
    body, _ = arriving(10 * HIGH_WATER)
    body.feed(b"x" * HIGH_WATER)
    assert not body.full
    body.feed(b"x")
    assert body.full
    await body.read()
    assert not body.full


async def test_the_first_byte_ends_the_wait_for_a_100() -> None:
    body, _ = arriving(2, expects=True)
    assert body.expects_continue
    body.feed(b"x")
    assert not body.expects_continue


async def test_a_body_that_fails_raises_even_what_arrived_before_unread() -> None:
    body, _ = arriving(5)
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    body.fail(BodyTimeout("too slow"))
    with pytest.raises(BodyTimeout):
        await reading
    body.feed(b"he")
    with pytest.raises(BodyTimeout):
        await body.read()


async def test_nothing_more_is_read_once_it_is_closed_and_the_rest_is_only_counted() -> None:
    body, _ = arriving(5)
    reading = asyncio.create_task(body.read())
    await asyncio.sleep(0)
    body.close()
    with pytest.raises(ClientDisconnected):
        await reading
    assert body.feed(b"hello") == 5
    assert (body.here, body.drained, body.whole()) == (True, 5, None)
    with pytest.raises(ClientDisconnected):
        await body.read()
