"""
Bodies over a socket: chunks and trailers, expectations, replies that come before the body does.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import BodyTooLarge, GatewayError
from gateway.server.asgi import Message
from gateway.server.limits import ServerStats
from tests.support.applications import Echo, body_of, cycle_of, reply
from tests.support.raw_requests import GET, LAST, chunked, get, post
from tests.support.serving import (
    connect,
    on_both_loops,
    serve,
)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a13_trailers_are_never_fields(pieces: int) -> None:
    echo = Echo()
    trailers = b"Authorization: Bearer evil\r\nHost: evil\r\nContent-Type: x\r\n"
    data = chunked(b"hello", trailers=trailers) + LAST
    async with serve(echo) as port, connect(port) as client:
        await client.send(data[: len(data) // pieces])
        await client.send(data[len(data) // pieces :])
        assert (await client.rest()).count(b"HTTP/1.1 200") == 2
    assert echo.bodies == [b"hello", b""]
    assert [name for name, _ in echo.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize(
    "body", [b"5\r\nhelloX", b"5;\x01\r\nhello", b"zz\r\n", b"1\r\nx\r\n0\r\nbad\r\n\r\n"]
)
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_bad_chunk_ends_the_body_with_an_error_and_the_connection(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[Exception] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        try:
            await body_of(receive)
        except GatewayError as error:
            raised.append(error)
            raise

    stats = ServerStats()
    async with serve(app, stats=stats) as port:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        for first in (head + body, head + b"3\r\nabc\r\n"):
            async with connect(port) as client:
                await client.send(first)
                await client.send(body + GET)
                status, headers, _ = await client.reply()
                assert (status, headers[b"connection"]) == (400, b"close")
                assert await client.rest() == b""
    assert [type(error).__name__ for error in raised] == ["BadRequest", "BadRequest"]
    assert stats.refused == {"bad-request": 2}
    assert len(caplog.records) == 1, "the second is only counted"


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_bad_chunk_after_the_reply_began_lets_the_reply_end_and_then_closes() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        with pytest.raises(GatewayError):
            await body_of(receive)
        failed.set()
        await go.wait()
        await send({"type": "http.response.body", "body": b"ended"})

    failed, go, stats = asyncio.Event(), asyncio.Event(), ServerStats()
    async with serve(app, stats=stats) as port, connect(port) as client:
        await client.send(chunked(b"hello")[:-5] + b"zz\r\n" + GET)
        await failed.wait()
        await client.send(b"zz\r\n" + GET)
        await asyncio.sleep(0.02)
        go.set()
        got = await client.rest()
    assert got.endswith(b"5\r\nbegun\r\n5\r\nended\r\n0\r\n\r\n")
    assert got.count(b"HTTP/1.1") == 1
    assert stats.refused == {"bad-request": 1}


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a10_100_is_sent_once_and_only_when_the_application_asks_for_the_body() -> None:
    ask = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await ask.wait()
        await reply(send, await body_of(receive))

    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.reader.read(1)
        ask.set()
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert (await client.reply())[::2] == (200, b"hello")
        await client.send(post(b"again", b"Expect: 100-continue"))
        assert (await client.reply())[::2] == (200, b"again")


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a10_no_second_100_is_sent_when_the_application_asks_again() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await receive()
        asked.set()
        await reply(send, await body_of(receive))

    asked = asyncio.Event()
    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"hello", b"Expect: 100-continue")[:-5])
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await asked.wait()
        await client.send(b"hello")
        assert (await client.reply())[::2] == (200, b"hello")


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a10_no_100_is_sent_once_the_body_or_the_reply_has_begun() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await send({"type": "http.response.body", "body": await body_of(receive)})
        else:
            await reply(send, await body_of(receive))

    async with serve(app) as port, connect(port) as client:
        data = post(b"hello", b"Expect: 100-continue")
        await client.send(data[:-2])
        await asyncio.sleep(0.02)
        await client.send(data[-2:])
        assert (await client.reply())[::2] == (200, b"hello")
        await client.send(data[:-5].replace(b" / ", b" /early "))
        assert b"connection: close" in await client.head()
        await client.until(b"begun\r\n")
        await client.send(b"hello")
        assert await client.rest() == b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_an_expectation_whose_body_is_here_already_does_not_close_the_connection() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    async with serve(app) as port, connect(port) as client:
        for _ in range(2):
            await client.send(post(b"hello", b"Expect: 100-continue"))
            status, headers, _ = await client.reply()
            assert status == 401
            assert b"connection" not in headers


@pytest.mark.parametrize("answers", ["send", "respond", "error"])
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a10_l22_a_final_status_from_the_head_alone_closes_the_connection(answers: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        if answers == "error":
            raise BodyTooLarge("no")
        if answers == "respond":
            cycle_of(scope).respond(413, [(b"content-length", b"0")], b"")
        else:
            await reply(send, b"", 413)

    async with serve(app) as port, connect(port) as client:
        await client.send(post(GET, b"Expect: 100-continue")[: -len(GET)])
        status, headers, _ = await client.reply()
        assert (status, headers[b"connection"]) == (413, b"close")
        await client.send(GET)
        assert await client.rest() == b""


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a11_expect_in_http_1_0_is_ignored() -> None:
    echo = Echo()
    async with serve(echo) as port, connect(port) as client:
        await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await client.send(b"ok")
        assert (await client.rest()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [0, 10, 200_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_after_an_early_reply_the_body_is_read_to_its_end_and_never_as_a_request(
    size: int, framing: str
) -> None:
    seen: list[str] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await reply(send, b"early", 401)

    body = get(b"/hidden") * 3 + b"x" * size
    data = post(body) if framing == "length" else chunked(body)
    async with serve(app) as port, connect(port) as client:
        await client.send(data[:100])
        assert (await client.reply())[0] == 401
        await client.send(data[100:] + LAST)
        assert (await client.reply())[0] == 401
        assert await client.rest() == b""
    assert seen == ["/", "/last"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_after_an_early_reply_a_large_body_ends_the_connection_but_not_the_reply(
    framing: str,
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early" * 1000, 413)

    body = (GET + b"x" * 1000) * 2000
    data = post(body) if framing == "length" else chunked(body)
    async with serve(app) as port, connect(port) as client:
        await client.send(data)
        status, headers, got = await client.reply()
        assert (status, got) == (413, b"early" * 1000)
        if framing == "length":
            assert headers[b"connection"] == b"close"
        assert await client.rest() == b""


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_bad_chunk_after_an_early_reply_ends_the_connection() -> None:
    stats = ServerStats()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    async with serve(app, stats=stats) as port, connect(port) as client:
        await client.send(chunked(b"hello")[:-5])
        assert (await client.reply())[0] == 401
        await client.send(b"zz\r\n" + GET)
        assert await client.rest() == b""
    assert stats.refused == {"bad-request": 1}


@on_both_loops
async def test_a_body_waits_for_the_application_and_is_not_piled_up() -> None:
    taken: list[int] = []
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await go.wait()
        while True:
            message = await receive()
            taken.append(len(message["body"]))
            if not message["more_body"]:
                break
        await reply(send, b"%d" % sum(taken))

    body = b"x" * (24 << 20)
    async with serve(app) as port, connect(port) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.send(post(body))
        go.set()
        assert (await client.reply())[2] == b"%d" % len(body)
    assert max(taken) < 600_000
