"""
How long a client is waited for, in virtual time: each deadline to the second, with the limits that are the
default.

That they are kept over sockets and by real timers is in test_slow_clients.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.errors import BodyTimeout, GatewayError
from gateway.server.asgi import Message
from gateway.server.connection import LINGER
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.write_flow import ClientDisconnected
from tests.support.applications import Echo, Held, body_of, reply
from tests.support.raw_requests import GET, LAST, chunked, get, post
from tests.support.virtual import VirtualClient, in_virtual_time, now

ANY_RATE = ServerLimits(min_rate=0)
UPLOAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"


def problem(got: bytes) -> Any:
    """The document of the one reply that the client got."""
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1") == 1
    assert b"\r\nconnection: close" in head
    return json.loads(body)


# A head.


@in_virtual_time
async def test_f7_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    client = VirtualClient(Echo())
    assert await client.rest() == b""
    assert client.ended_at == pytest.approx(10)


@in_virtual_time
async def test_f7_a_head_has_to_be_there_in_time_however_busily_it_drips() -> None:
    echo, stats = Echo(), ServerStats()
    client = VirtualClient(echo, stats=stats)
    await asyncio.sleep(3)
    for byte in get(b"/", *[b"X: y"] * 90):
        client.send(bytes([byte]))
        await asyncio.sleep(0.1)
        if client.over:
            break
    got = await client.rest()
    assert got.startswith(b"HTTP/1.1 408 ")
    assert problem(got)["code"] == "gateway.head-timeout"
    assert client.eof_at == pytest.approx(13), "of the head's first byte"
    await asyncio.sleep(LINGER + 1)
    assert client.ended_at == pytest.approx(13 + LINGER), "the client had time to read it"
    assert stats.refused == {"head-timeout": 1}
    assert echo.scopes == []


@in_virtual_time
async def test_f7_an_idle_connection_is_closed_without_a_word_and_a_busy_one_is_not() -> None:
    client = VirtualClient(Echo())
    for _ in range(20):
        client.send(GET)
        await asyncio.sleep(59)
    got = await client.rest()
    assert got.count(b"HTTP/1.1 200") == 20
    assert got.endswith(b"\r\n\r\n/ ")
    assert client.ended_at == pytest.approx(19 * 59 + 60)


@in_virtual_time
async def test_f7_an_application_that_waits_for_the_disconnect_does_not_keep_an_idle_connection() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await reply(send, b"x")
        heard.append((now(), await waiting))

    heard: list[tuple[float, Message]] = []
    client = VirtualClient(app)
    client.send(GET)
    await client.until(b"\r\n\r\nx")
    await asyncio.sleep(0.001)
    assert heard == [(0.0, {"type": "http.disconnect"})], "the whole reply is out: that is the end"
    await client.rest()
    assert client.ended_at == pytest.approx(60)


# A body.


async def reads_after_the_reply_began(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        continue


@in_virtual_time
async def test_f7_a_slow_application_is_not_the_clients_fault() -> None:
    held = Held()
    client = VirtualClient(held)
    client.send(post(b"x"))
    await asyncio.sleep(3600)
    held.go.set()
    await client.until(b"held")


@in_virtual_time
async def test_f7_a_slow_application_that_had_to_wait_for_the_body_is_not_the_clients_fault() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        await asyncio.sleep(3600)
        await reply(send, body)

    client = VirtualClient(app)
    client.send(post(b"hello")[:-3])
    await asyncio.sleep(5)
    client.send(b"llo")
    await client.until(b"hello")


@in_virtual_time
async def test_f7_a_reply_in_the_turn_in_which_the_body_ends_leaves_an_idle_connection() -> None:
    held = Held()
    client = VirtualClient(held)
    client.send(post(b"hello")[:-5])
    await held.begun.wait()
    reading = asyncio.create_task(held.cycle.body.read())
    await asyncio.sleep(5)
    client.send(b"hello")
    held.cycle.respond(200, [(b"content-length", b"1")], b"x")
    await client.rest()
    assert client.ended_at == pytest.approx(5 + 60)
    assert await reading == b"hello"
    held.go.set()


@in_virtual_time
async def test_f7_after_a_body_that_failed_the_application_has_all_its_time() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        with pytest.raises(GatewayError):
            await body_of(receive)
        await asyncio.sleep(3600)
        await reply(send, b"late", 400)

    client = VirtualClient(app)
    client.send(chunked(b"hello")[:-5])
    await asyncio.sleep(5)
    client.send(b"zz\r\n")
    assert (await client.rest()).endswith(b"late")


@pytest.mark.parametrize("last", [True, False])
@in_virtual_time
async def test_f7_a_piece_that_comes_as_its_time_ends_has_come_in_time(last: bool) -> None:
    client = VirtualClient(Echo(), ANY_RATE)
    client.send(post(b"hello")[:-3])
    # In one turn of the loop with the timer, and before it.
    asyncio.get_running_loop().call_at(10 - 1e-5, client.send, b"llo" if last else b"l")
    if not last:
        await asyncio.sleep(15)
        client.send(b"lo")
    await client.until(b"/ hello")


@in_virtual_time
async def test_f7_a_body_that_stops_coming_is_408() -> None:
    raised: list[float] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        try:
            await body_of(receive)
        except BodyTimeout:
            raised.append(now())
            raise

    stats = ServerStats()
    client = VirtualClient(app, stats=stats)
    client.send(post(b"hello")[:-3])
    got = await client.rest()
    assert got.startswith(b"HTTP/1.1 408 ")
    assert problem(got)["code"] == "gateway.body-timeout"
    client.send(b"llo" + GET)
    await asyncio.sleep(LINGER + 1)
    assert client.got == got, "what comes too late is no request"
    assert raised == [pytest.approx(10)]
    assert stats.refused == {"body-timeout": 1}


@in_virtual_time
async def test_f7_a_body_that_keeps_coming_is_waited_for() -> None:
    client = VirtualClient(Echo(), ANY_RATE)
    data = post(b"0123456789")
    client.send(data[:-10])
    for at in range(len(data) - 10, len(data)):
        await asyncio.sleep(9.9)
        client.send(data[at : at + 1])
    await client.until(b"/ 0123456789")


@in_virtual_time
async def test_f7_a_body_that_stops_coming_after_the_reply_began_cuts_it() -> None:
    stats = ServerStats()
    client = VirtualClient(reads_after_the_reply_began, stats=stats)
    client.send(post(b"hello")[:-3])
    assert (await client.rest()).endswith(b"5\r\nbegun\r\n")
    assert client.aborted
    assert client.ended_at == pytest.approx(10)
    assert stats.aborted == {"body-timeout": 1}


@in_virtual_time
async def test_f7_an_early_reply_does_not_wait_long_for_the_rest_of_the_body() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    client = VirtualClient(app)
    client.send(post(b"hello")[:-3])
    assert (await client.rest()).endswith(b"early")
    assert client.eof_at == pytest.approx(10)


@in_virtual_time
async def test_a_body_below_the_least_rate_is_408_however_steadily_it_drips() -> None:
    stats = ServerStats()
    client = VirtualClient(Echo(), stats=stats)
    client.send(UPLOAD)
    while not client.over:
        client.send(b"x" * 49)
        await asyncio.sleep(0.1)
    document = problem(client.got)
    assert document["code"] == "gateway.body-timeout"
    assert "limits.min_rate" in document["detail"]
    assert client.eof_at == pytest.approx(10, abs=0.1)
    assert stats.refused == {"body-timeout": 1}
    assert stats.awaiting == 0


@in_virtual_time
async def test_a_body_below_the_least_rate_is_cut_off_after_the_reply_began() -> None:
    stats = ServerStats()
    client = VirtualClient(reads_after_the_reply_began, stats=stats)
    client.send(UPLOAD)
    while not client.over:
        client.send(b"x" * 49)
        await asyncio.sleep(0.1)
    assert client.aborted
    assert client.ended_at == pytest.approx(10, abs=0.1)
    assert stats.aborted == {"body-rate": 1}


@pytest.mark.parametrize(("rate", "piece"), [(500, b"x" * 51), (0, b"x")], ids=["fast enough", "any will do"])
@in_virtual_time
async def test_a_body_that_is_fast_enough_is_waited_for(rate: int, piece: bytes) -> None:
    client = VirtualClient(Echo(), ServerLimits(min_rate=rate))
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (1000 * len(piece)))
    for _ in range(1000):
        client.send(piece)
        await asyncio.sleep(0.1)
    await client.until(b"/ " + 1000 * piece)


@in_virtual_time
async def test_only_the_time_in_which_a_body_is_waited_for_counts() -> None:
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["more_body"]
        await go.wait()
        await reply(send, await body_of(receive))

    client = VirtualClient(app)
    data = post(b"x" * 10)
    client.send(data[:-9])
    await asyncio.sleep(3600)
    client.send(data[-9:])
    go.set()
    await client.until(b"x" * 9)


# A reply.


@pytest.mark.parametrize(
    ("request_head", "whole"),
    [(GET, True), (GET, False), (LAST, True)],
    ids=["whole", "in pieces", "the last"],
)
@pytest.mark.parametrize("rate", [0, 500])
@in_virtual_time
async def test_a_client_that_reads_nothing_is_cut_off(request_head: bytes, whole: bool, rate: int) -> None:
    ended: list[float] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            if whole:
                await send({"type": "http.response.body", "body": b"x" * (1 << 20)})
            while not whole:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except ClientDisconnected:
            ended.append(now())
            raise

    stats = ServerStats()
    client = VirtualClient(app, ServerLimits(min_rate=rate), stats)
    client.reading = False
    client.send(request_head)
    await client.rest()
    await asyncio.sleep(0.001)
    rated = rate > 0
    assert client.ended_at == pytest.approx(10 if rated else 60)
    assert stats.aborted == {"write-rate" if rated else "write-timeout": 1}
    assert ended == ([] if whole else [client.ended_at])


@in_virtual_time
async def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"x" * 100_000, 200, (b"connection", b"close"))

    client = VirtualClient(app, ANY_RATE)
    client.reading = False
    client.send(GET)
    for _ in range(100):
        await asyncio.sleep(59)
        client.take(1)
        assert not client.over
    client.take(100_000)
    client.take(100_000)
    assert (await client.rest()).endswith(b"x")


@in_virtual_time
async def test_a_last_reply_that_is_not_read_is_cut_off_though_nothing_waits_to_be_written() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"x" * 1000)

    stats = ServerStats()
    client = VirtualClient(app, stats=stats)
    client.reading = False
    client.send(LAST)
    await asyncio.sleep(61)
    assert client.ended_at == pytest.approx(60)
    assert stats.aborted == {"write-timeout": 1}


@in_virtual_time
async def test_a_client_that_has_taken_everything_is_not_waited_for_while_the_application_makes_more() -> (
    None
):
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await asyncio.sleep(300)
        await send({"type": "http.response.body", "body": b"end"})

    client = VirtualClient(app)
    client.reading = False
    client.send(GET)
    await asyncio.sleep(5)
    client.reading = True
    client.take(1_000_000)
    await client.until(b"end\r\n0\r\n\r\n")


@in_virtual_time
async def test_what_a_client_takes_at_the_end_of_its_waiting_counts_in_the_window() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})

    stats = ServerStats()
    client = VirtualClient(app, stats=stats)
    client.reading = False
    client.send(GET)
    for _ in range(20):
        await asyncio.sleep(9)
        client.take(200_000)
    assert not client.over
    client.abort()
    await asyncio.sleep(0.001)
    assert not stats.aborted


@pytest.mark.parametrize(("size", "cut"), [(49, True), (51, False)])
@in_virtual_time
async def test_a_reader_below_the_least_rate_is_cut_off_though_it_takes_something(
    size: int, cut: bool
) -> None:
    ended: list[BaseException] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            ended.append(error)
            raise

    stats = ServerStats()
    client = VirtualClient(app, stats=stats)
    client.reading = False
    client.send(GET)
    for _ in range(500):
        await asyncio.sleep(0.1)
        client.take(size)
        if client.over:
            break
    assert client.aborted is cut
    assert stats.aborted == ({"write-rate": 1} if cut else {})
    if cut:
        assert client.ended_at == pytest.approx(10, abs=0.1)
    client.abort()
    await asyncio.sleep(0.001)
    assert [type(error) for error in ended] == [ClientDisconnected]


@in_virtual_time
async def test_a_reply_that_the_application_makes_slowly_is_not_the_clients_fault() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for left in reversed(range(10)):
            await asyncio.sleep(300)
            await send({"type": "http.response.body", "body": b"x", "more_body": left > 0})

    stats = ServerStats()
    client = VirtualClient(app, ServerLimits(min_rate=1_000_000), stats)
    client.send(GET)
    await client.until(b"0\r\n\r\n")
    assert now() == pytest.approx(3000)
    assert not stats.aborted
