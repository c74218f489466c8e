"""A reply over one of httpx's transports keeps the laws of any reply."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.errors import ConnectionTerminated
from gateway.upstream.connection import Timeouts
from gateway.upstream.http2 import HttpxTransport


class Pieces(httpx.AsyncByteStream):
    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def aclose(self) -> None:
        self.closed = True


class Answering(httpx.AsyncBaseTransport):
    """Whatever is asked."""

    def __init__(self, stream: Pieces) -> None:
        self.stream = stream

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=[(b"X-A", b"1")], stream=self.stream)


async def test_a_reply_that_is_closed_before_its_end_is_never_complete() -> None:
    """C3."""
    stream = Pieces()
    transport = HttpxTransport(Answering(stream), "http://upstream.test", Timeouts())
    reply = await transport.send(b"GET", b"/", [(b"host", b"upstream.test")])
    assert (reply.status, reply.headers) == (200, [(b"x-a", b"1")])
    assert await reply.read() == b"one"

    reply.close()

    assert not reply.ended
    assert reply.whole() is None
    with pytest.raises(ConnectionTerminated):
        await reply.read()
    await transport.wait_closed()
    assert stream.closed


async def test_a_reply_that_is_held_is_whole() -> None:
    stream = Pieces()
    transport = HttpxTransport(Answering(stream), "http://upstream.test", Timeouts())
    with await transport.send(b"GET", b"/", [(b"host", b"upstream.test")]) as reply:
        assert not await reply.hold(2)
        assert await reply.hold(100)
        assert reply.whole() == b"onetwo"
        assert reply.ended
    await transport.wait_closed()
    assert stream.closed
