"""A dead connection is replaced only where that can do no harm (C2)."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import (
    ConnectionTerminated,
    ReadTimeout,
    UpstreamError,
)
from tests.support.pools import CHUNKED, HOST, fetch, pieces_of, pool_to
from tests.support.raw_upstream import OK, Peer, RawUpstream, Script, answering


def dying() -> Script:
    """Answers once; reads the second request and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    return script


async def closing(peer: Peer) -> None:
    await peer.request()


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"TRACE"])
async def test_a_safe_request_goes_out_again_when_a_kept_connection_dies(method: bytes) -> None:
    async with RawUpstream(dying(), answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        reply, _ = await fetch(pool, method)
        assert reply.status == 200
        assert [request.method for request in upstream.requests] == [b"GET", method, method]


@pytest.mark.parametrize("method", [b"PATCH", b"POST", b"PUT", b"DELETE", b"get", b"PROPFIND"])
async def test_no_other_request_goes_out_again(method: bytes) -> None:
    async with RawUpstream(dying(), answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool, method, body=b"{}")
        assert [request.method for request in upstream.requests] == [b"GET", method]


async def test_a_safe_request_goes_out_again_only_once() -> None:
    async with RawUpstream(dying(), closing) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)
        assert len(upstream.requests) == 3


async def test_a_request_whose_reply_had_begun_does_not_go_out_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)
        assert len(upstream.requests) == 2


async def test_a_safe_request_with_a_stream_does_not_go_out_again() -> None:
    async with RawUpstream(dying(), answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(UpstreamError):
            await pool.send(b"GET", b"/", [HOST, CHUNKED], pieces_of(b"a"))
        assert len(upstream.requests) == 2


async def test_a_first_use_of_a_connection_that_dies_is_not_repeated() -> None:
    async with RawUpstream(closing) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)
        assert len(upstream.requests) == 1


async def test_a_timeout_is_not_followed_by_a_second_try() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.gone()

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream, read=0.1) as pool:
        await fetch(pool)
        with pytest.raises(ReadTimeout):
            await fetch(pool)
        assert len(upstream.requests) == 2


async def test_a_second_try_makes_room_in_a_full_pool() -> None:
    scripts = dying(), dying(), answering(OK)
    async with RawUpstream(*scripts) as upstream, pool_to(upstream, max_connections=2) as pool:
        await asyncio.gather(fetch(pool), fetch(pool))
        assert pool.idle == 2
        await fetch(pool)
        assert len(upstream.peers) == 3


async def test_a_safe_method_that_claims_to_be_another_is_not_sent_again() -> None:
    """Some upstreams take the claim for the method: what it did may not be done twice."""
    requests = 0

    async def closing(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        requests += 1
        await peer.send(OK)
        await peer.request()
        requests += 1
        peer.close()

    async with RawUpstream(closing) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool, headers=[(b"X-HTTP-Method-Override", b"PATCH")])
        assert requests == 2
