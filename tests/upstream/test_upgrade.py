"""Upgrades: a 101 that was asked for is a tunnel."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import ConnectionTerminated, InvalidReply
from tests.support.pools import BLOCK, UPGRADE, pool_to, rest, ticks
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, deaf
from tests.support.replies import SWITCH


async def echo_tunnel(peer: Peer) -> None:
    await peer.request()
    await peer.send(SWITCH + b"hello ")
    while piece := await peer.read():
        await peer.send(piece)
    await peer.send(b"bye")


async def test_an_upgrade_that_was_asked_for_is_a_tunnel() -> None:
    async with RawUpstream(echo_tunnel) as upstream, pool_to(upstream) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        assert tunnel.status == 101
        assert (b"upgrade", b"echo") in tunnel.headers
        assert await tunnel.read() == b"hello "
        await tunnel.write(b"HTTP/1.1 200 OK\r\n\r\n")
        assert await tunnel.read() == b"HTTP/1.1 200 OK\r\n\r\n"
        tunnel.write_eof()
        assert await tunnel.read() == b"bye"
        assert await tunnel.read() == b""
        assert pool.size == 1
        tunnel.close()
        tunnel.close()
        assert pool.size == 0
        with pytest.raises(ConnectionTerminated):
            await tunnel.write(b"too late")


async def test_what_was_written_before_a_tunnel_is_closed_still_arrives() -> None:
    got = bytearray()
    over = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        while piece := await peer.read():
            got.extend(piece)
        over.set()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        await tunnel.write(b"the last words" * 1000)
        tunnel.close()
        await over.wait()
        assert got == b"the last words" * 1000


async def test_a_tunnel_outlives_the_deadlines_of_a_request() -> None:
    speak = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await speak.wait()
        await peer.send(b"late")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.05) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        reading = asyncio.create_task(tunnel.read())
        await asyncio.sleep(0.15)
        speak.set()
        assert await reading == b"late"
        tunnel.close()


async def test_a_tunnel_that_is_reset_raises() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await peer.read()
        peer.reset()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        await tunnel.write(b"a")
        with pytest.raises(ConnectionTerminated, match="tunnel"):
            await tunnel.read()
        with pytest.raises(ConnectionTerminated):
            await tunnel.write(b"b")
        assert pool.size == 0


async def test_a_writer_into_a_tunnel_waits_for_a_slow_upstream_and_no_longer_than_allowed() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream, write=0.1) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        with pytest.raises(ConnectionTerminated):
            await tunnel.write(BLOCK * 300)


async def test_a_tunnel_closed_before_the_upstream_took_everything_does_not_linger_for_ever() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream, write=0.1) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        writing = asyncio.create_task(tunnel.write(BLOCK * 300))
        await ticks(5)
        tunnel.close()
        with pytest.raises(ConnectionTerminated):
            await writing
        tunnel.write_eof()
        assert await tunnel.read() == b""


async def test_an_upgrade_may_be_declined() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        assert reply.status == 200
        assert await rest(reply) == b"ok"
        assert pool.idle == 1


async def test_a_tunnel_whose_reader_is_cancelled_is_cut_at_once_though_the_upstream_takes_nothing() -> None:
    """What was written is not waited for: a stop would take as long as that."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream, write=60.0) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        writing = asyncio.create_task(tunnel.write(BLOCK * 300))
        reading = asyncio.create_task(tunnel.read())
        await ticks(5)
        reading.cancel()
        with pytest.raises(ConnectionTerminated):
            await writing
        await asyncio.wait([reading])
        assert pool.size == 0


@pytest.mark.parametrize("field", [b"Connection: Upgrade\r\n", b"Upgrade: echo\r\n", b""])
async def test_a_101_that_does_not_say_what_is_spoken_next_is_no_tunnel(field: bytes) -> None:
    """RFC 9110 section 7.8."""
    half = b"HTTP/1.1 101 Switching Protocols\r\n" + field + b"\r\n"
    async with RawUpstream(answering(half)) as upstream, pool_to(upstream) as pool:
        with pytest.raises(InvalidReply):
            await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        assert pool.size == 0
