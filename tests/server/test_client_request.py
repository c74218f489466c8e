"""
What the lifecycle needs of a client (gateway.proxy.client.ClientRequest), as the server's own request cycle
offers it and as ASGI's scope, receive and send do: the same either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.http.headers import Header
from gateway.proxy.client import ClientRequest
from gateway.server import asgi
from gateway.server.connection import App
from gateway.server.limits import ServerStats
from gateway.server.request_cycle import RequestCycle
from tests.support.raw_requests import GET, LAST, UPGRADE, chunked, post
from tests.support.serving import connect, exchange, on_both_loops, port_of, quiet, running, serve

Serve = Callable[[ClientRequest], Coroutine[Any, Any, None]]
OK: list[Header] = [(b"content-length", b"2")]


class Direct:
    """An application that the server hands its request cycles."""

    direct = True

    def __init__(self, serve: Serve) -> None:
        self._serve = serve

    def serve(self, cycle: RequestCycle) -> Coroutine[Any, Any, None]:
        return self._serve(cycle)


def through_asgi(serve: Serve) -> App:
    """With something in between that looks at every message."""
    inner = asgi.application(serve)

    async def between(scope: asgi.Message, receive: asgi.Receive, send: asgi.Send) -> None:
        async def received() -> asgi.Message:
            message = await receive()
            assert message["type"] in {"http.request", "http.disconnect"}
            return message

        async def sent(message: asgi.Message) -> None:
            assert message["type"] in {"http.response.start", "http.response.body"}
            await send(message)

        await inner(scope, received, sent)

    return between


BOTH_WAYS = pytest.mark.parametrize("app", [Direct, through_asgi], ids=["direct", "through ASGI"])
Way = Callable[[Serve], App]


async def reply(request: ClientRequest, body: bytes, *headers: Header) -> None:
    fields = [*headers, (b"content-length", b"%d" % len(body))]
    if not request.respond(200, fields, body, [(b"x-extra", b"1")]):
        await request.start(200, fields, [(b"x-extra", b"1")])
        await request.write(body, False)


@BOTH_WAYS
@on_both_loops
async def test_a_request_is_what_was_sent(app: Way) -> None:
    seen: list[tuple[Any, ...]] = []

    async def call(request: ClientRequest) -> None:
        seen.append(
            (
                request.method,
                request.target,
                request.version,
                [*request.headers],
                request.address,
                request.upgrade,
            )
        )
        assert not request.gone
        await reply(request, b"ok")

    async with serve(app(call)) as port:
        await exchange(port, b"patch /a%2F?b=%20 HTTP/1.0\r\nHost: a\r\nX: 1\r\nx: 2\r\n\r\n")
        async with connect(port) as client:
            await client.send(UPGRADE)
            status, headers, body = await client.reply()
    assert (status, headers[b"x-extra"], body) == (200, b"1", b"ok")
    assert seen[0] == (
        "patch", b"/a%2F?b=%20", "1.0", [(b"host", b"a"), (b"x", b"1"), (b"x", b"2")], "127.0.0.1", None
    )  # fmt: skip
    assert seen[1][-1] == b"websocket"


@BOTH_WAYS
@on_both_loops
async def test_a_body_is_read_piece_by_piece_to_its_end(app: Way) -> None:
    first = asyncio.Event()

    async def call(request: ClientRequest) -> None:
        assert request.body.whole() is None
        pieces = [await request.body.read()]
        assert pieces == [b"one"]
        assert not request.body.ended
        first.set()
        while not request.body.ended:
            pieces.append(await request.body.read())
        assert await request.body.read() == b""
        await reply(request, b"".join(pieces))

    data = chunked(b"one", b"two", b"three")
    async with serve(app(call)) as port, connect(port) as client:
        at = data.index(b"3\r\ntwo")
        await client.send(data[:at])
        await asyncio.wait_for(first.wait(), 5)
        await client.send(data[at:])
        assert (await client.reply())[2] == b"onetwothree"


@pytest.mark.parametrize("body", [b"", b"hello"])
@BOTH_WAYS
@on_both_loops
async def test_a_body_that_is_here_is_had_whole_or_read(app: Way, body: bytes) -> None:
    async def call(request: ClientRequest) -> None:
        whole = request.body.whole()
        if whole is None:
            whole = await request.body.read()
        assert request.body.ended
        await reply(request, whole)

    async with serve(app(call)) as port, connect(port) as client:
        await client.send(post(body))
        assert (await client.reply())[2] == body


@BOTH_WAYS
@on_both_loops
async def test_a_reply_goes_out_piece_by_piece(app: Way) -> None:
    go = asyncio.Event()

    async def call(request: ClientRequest) -> None:
        await request.start(200, [], [(b"x-extra", b"1")])
        await request.write(b"one", True)
        await go.wait()
        await request.write(b"two", False)

    async with serve(app(call)) as port, connect(port) as client:
        await client.send(GET)
        assert b"\r\nx-extra: 1\r\n" in await client.head()
        assert await client.until(b"one\r\n") == b"3\r\none\r\n"
        go.set()
        assert await client.until(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"


@BOTH_WAYS
@on_both_loops
async def test_a_head_that_cannot_be_written_is_an_error_and_another_can_be_written(app: Way) -> None:
    async def call(request: ClientRequest) -> None:
        for bad in ([(b"x", b"a\r\nb: c")], [(b"content-length", b"x")]):
            with pytest.raises(ValueError, match=r"control|Length"):
                await request.start(200, bad)
        with pytest.raises(ValueError, match="control"):
            await request.start(200, OK, [(b"x", b"\n")])
        await reply(request, b"ok")

    async with serve(app(call)) as port:
        got = await exchange(port, LAST)
    assert got.count(b"HTTP/1.1") == 1
    assert got.endswith(b"ok")


@pytest.mark.parametrize("wanted", [True, False])
@BOTH_WAYS
@on_both_loops
async def test_a_call_is_cancelled_when_its_client_leaves_if_it_wants_that(app: Way, wanted: bool) -> None:
    begun, stats = asyncio.Event(), ServerStats()
    ended: list[str] = []

    async def call(request: ClientRequest) -> None:
        request.cancel_on_disconnect = not wanted
        request.cancel_on_disconnect = wanted
        assert request.cancel_on_disconnect is wanted
        begun.set()
        try:
            while not request.gone:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            with pytest.raises(OSError, match="gone"):
                await reply(request, b"ok")
            ended.append("gone")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with running(app(call), stats=stats) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET)
            await begun.wait()
        await quiet(server)
    assert ended == ["cancelled" if wanted else "gone"]
    assert stats.aborted == {}


@BOTH_WAYS
@on_both_loops
async def test_a_body_whose_client_leaves_raises(app: Way) -> None:
    begun, raised = asyncio.Event(), asyncio.Event()

    async def call(request: ClientRequest) -> None:
        assert await request.body.read() == b"he"
        begun.set()
        with pytest.raises(OSError, match="gone"):
            await request.body.read()
        raised.set()

    async with running(app(call)) as server:
        async with connect(port_of(server)) as client:
            await client.send(post(b"hello")[:-3])
            await begun.wait()
        await quiet(server)
    assert raised.is_set()


@BOTH_WAYS
@on_both_loops
async def test_an_upgrade_is_accepted_and_the_connection_is_a_tunnel(app: Way) -> None:
    async def call(request: ClientRequest) -> None:
        stream = request.switch([(b"x", b"y")])
        while data := await stream.read():
            await stream.write(b"<" + data + b">")
        stream.close()

    async with serve(app(call)) as port, connect(port) as client:
        await client.send(UPGRADE)
        assert (await client.head()).startswith(b"HTTP/1.1 101 Switching Protocols\r\nx: y\r\n")
        await client.send(b"raw")
        assert await client.until(b">") == b"<raw>"
        client.end()
        assert await client.rest() == b""
