"""Replies as they come: ended, closed, dropped, and slow on either side."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from gateway.errors import (
    ConnectionTerminated,
)
from tests.support.pools import BLOCK, CHUNKED, HOST, pool_to, rest, ticks
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, deaf


async def test_ended_is_known_with_the_head_when_the_body_came_with_it() -> None:
    async with RawUpstream(answering(OK, b"HTTP/1.1 204 No\r\n\r\n")) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        assert not reply.ended
        assert await reply.read() == b"ok"
        assert reply.ended
        assert await reply.read() == b""

        assert (await pool.send(b"GET", b"/", [HOST])).ended


async def test_the_connection_is_free_once_the_body_has_arrived() -> None:
    """Not only when it was read: a slow client holds no connection for a small reply."""
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        first = await pool.send(b"GET", b"/1", [HOST])
        second = await pool.send(b"GET", b"/2", [HOST])
        first.close()

        assert await rest(second) == b"ok"
        assert await first.read() == b"ok"
        assert len(upstream.peers) == 1


async def test_a_reply_closed_before_its_end_closes_the_connection() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await peer.gone()
        left.set()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        reply.close()
        reply.close()
        assert pool.size == 0
        assert not reply.ended
        assert await reply.read() == b"hel"
        with pytest.raises(ConnectionTerminated):
            await reply.read()
        await left.wait()


async def test_a_forgotten_reply_is_closed_with_a_warning() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        forgotten = [await pool.send(b"GET", b"/", [HOST])]
        with pytest.warns(ResourceWarning, match="neither read nor closed"):
            forgotten.clear()
        await ticks(2)
        gc.collect()
        assert pool.size == 0


async def test_only_one_may_wait_for_the_next_piece() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        first = asyncio.create_task(reply.read())
        await ticks(2)
        with pytest.raises(RuntimeError, match="another"):
            await reply.read()
        reply.close()
        with pytest.raises(ConnectionTerminated):
            await first


BIG = 96 * 1024 * 1024


@pytest.mark.parametrize(
    "framing", [b"Content-Length: %d" % BIG, b"Transfer-Encoding: chunked", b"X: until close"]
)
async def test_a_slow_reader_stops_the_upstream(framing: bytes) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        while sent < BIG:
            chunked = framing.endswith(b"chunked")
            await peer.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK)
            sent += len(BLOCK)
        if framing.endswith(b"chunked"):
            await peer.send(b"0\r\n\r\n")

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < BIG / 2
        first = await reply.read()
        assert len(first) < 1_000_000
        got = len(first)
        while piece := await reply.read():
            got += len(piece)
        assert got == BIG


async def test_a_slow_upstream_stops_the_stream_it_is_sent() -> None:
    given = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += len(BLOCK)
            yield BLOCK

    async with RawUpstream(deaf) as upstream, pool_to(upstream) as pool:
        sending = asyncio.create_task(pool.send(b"PUT", b"/", [HOST, CHUNKED], body()))
        before = -1
        while given != before or not given:
            before = given
            await asyncio.sleep(0.05)
        assert given < BIG / 2
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


async def test_what_is_held_is_counted_as_it_comes_and_handed_out_whole() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 409 Conflict\r\nContent-Length: 12\r\n\r\n", *[b"xyz"] * 4)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        assert not await reply.hold(5)
        assert not reply.over
        assert await reply.hold(100)
        assert reply.whole() == b"xyz" * 4
        assert pool.idle == 1
