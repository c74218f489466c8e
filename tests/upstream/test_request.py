"""What goes out: framing, streams, and what an early reply does to an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.errors import UnwritableRequest
from gateway.http.headers import Fields, Header
from tests.support.pools import CHUNKED, HOST, fetch, pieces_of, pool_to, rest
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, deaf, silent


async def test_head_and_small_body_leave_as_one_segment() -> None:
    async def script(peer: Peer) -> None:
        assert (
            await peer.read() == b"PATCH /a?b HTTP/1.1\r\nhost: upstream.test\r\ncontent-length: 2\r\n\r\n{}"
        )
        await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        await fetch(pool, b"PATCH", b"/a?b", body=b"{}")


async def test_a_body_of_bytes_is_sent_in_either_framing() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        for body in (b"", b"small", b"x" * 1_000_000):
            await fetch(pool, b"PUT", body=body)
            await rest(await pool.send(b"PUT", b"/", [HOST, CHUNKED], body))
            await rest(await pool.send(b"PUT", b"/", [HOST], body))
            assert [request.body for request in upstream.requests[-3:]] == [body, body, body]
            assert (b"content-length", b"%d" % len(body)) in upstream.requests[-1].headers
        assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        (b"GET", b"/a b", [HOST], None),
        (b"GET", b"/a\r\nX: y", [HOST], None),
        (b"GET", b"", [HOST], None),
        (b"GET", b"/caf\xe9", [HOST], None),
        (b"GE T", b"/", [HOST], None),
        (b"", b"/", [HOST], None),
        (b"CONNECT", b"a:1", [HOST], None),
        (b"GET", b"/", [HOST, (b"x", b"a\nb")], None),
        (b"GET", b"/", [HOST, (b"x", b"a\r\ny: b")], None),
        (b"GET", b"/", [HOST, (b"x: y\r\nz", b"")], None),
        (b"GET", b"/", [HOST, (b"x: y", b"z")], None),
        (b"GET", b"/", [HOST, (b"", b"z")], None),
        (b"PUT", b"/", [HOST, (b"content-length", b"3")], b"four"),
        (b"PUT", b"/", [HOST, (b"content-length", b"3")], None),
        (b"PUT", b"/", [HOST, (b"content-length", b"+4")], b"four"),
        (b"PUT", b"/", [HOST, (b"Content-Length", b"4"), (b"content-length", b"4")], b"four"),
        (b"PUT", b"/", [HOST, (b"content-length", b"4"), (b"Transfer-encoding", b"chunked")], b"four"),
        (b"PUT", b"/", [HOST, CHUNKED, (b"content-length", b"4")], b"four"),
        (b"PUT", b"/", [HOST, (b"transfer-encoding", b"gzip, chunked")], b"four"),
    ],
)
async def test_a_request_that_breaks_the_rules_is_not_sent(
    method: bytes, target: bytes, headers: list[Header], body: bytes | None
) -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        with pytest.raises(UnwritableRequest):
            await pool.send(method, target, headers, body)
        assert upstream.peers == []


async def test_a_calls_own_fields_follow_those_that_it_shares() -> None:
    shared = Fields([HOST, (b"x-shared", b"1")])
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        for own in ([(b"x-own", b"2")], [(b"x-own", b"3"), (b"content-length", b"4")], []):
            await rest(await pool.send(b"PUT", b"/", shared, b"four", extra_headers=own))
            length = b"" if own[1:] else b"content-length: 4\r\n"
            lines = b"".join(b"%b: %b\r\n" % pair for pair in (*shared, *own))
            assert upstream.requests[-1].raw == b"PUT / HTTP/1.1\r\n" + lines + length + b"\r\nfour"


@pytest.mark.parametrize(
    "own",
    [
        [(b"x", b"a\r\nb: c")],
        [(b"x: y", b"z")],
        [(b"content-length", b"4")],
        [(b"transfer-encoding", b"chunked")],
    ],
)
async def test_own_fields_that_break_the_rules_are_not_sent(own: list[Header]) -> None:
    shared = Fields([HOST, (b"content-length", b"4")])
    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        for _ in range(2):
            with pytest.raises(UnwritableRequest):
                await pool.send(b"PUT", b"/", shared, b"four", extra_headers=own)
        assert upstream.peers == []


async def test_a_request_that_says_close_leaves_no_connection() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool, headers=[(b"connection", b"x, Close")])
        assert pool.size == 0


async def test_a_stream_is_sent_as_it_comes() -> None:
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(peer: Peer) -> None:
        await peer.head()
        while (piece := await peer.read()) != b"5\r\nthree\r\n0\r\n\r\n":
            seen.put_nowait(piece)
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        assert await seen.get() == b"3\r\none\r\n"
        yield b""
        yield b"two"
        assert await seen.get() == b"3\r\ntwo\r\n"
        yield b"three"

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        assert await rest(await pool.send(b"PUT", b"/", [HOST, CHUNKED], body())) == b"ok"
        assert pool.idle == 1


@pytest.mark.parametrize("body", [(), (b"abc",), (b"abc", b"def", b"g"), (b"abcdefg",)])
async def test_a_stream_that_belies_its_length_is_broken_off(body: tuple[bytes, ...]) -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        with pytest.raises(UnwritableRequest):
            await pool.send(b"PUT", b"/", [HOST, (b"content-length", b"6")], pieces_of(*body))
        assert pool.size == 0
        assert b"g" not in bytes(upstream.peers[0].received).partition(b"\r\n\r\n")[2]


async def test_what_a_stream_raises_is_raised_and_the_request_broken_off() -> None:
    class ClientGoneError(OSError):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise ClientGoneError

    broken_off = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.gone()
        broken_off.set()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ClientGoneError):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], body())
        await broken_off.wait()
        assert not upstream.peers[0].received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("complete", [True, False])
async def test_an_early_refusal_is_delivered_at_once_and_stops_the_upload(complete: bool) -> None:
    stopped = asyncio.Event()
    finish = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(
            b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\n" + b"nono"[: 4 if complete else 2]
        )
        await finish.wait()
        if not complete:
            await peer.send(b"no")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"PUT", b"/", [HOST, (b"content-length", b"1000")], body())
        assert reply.status == 413
        await stopped.wait()
        finish.set()
        assert await rest(reply) == b"nono"
        assert pool.size == 0


async def test_an_early_success_goes_on_with_the_upload_until_it_is_complete() -> None:
    """An upstream may answer while it reads: an echo does."""
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        yield b"two"

    async def echo(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (piece := await peer.read()) and not piece.endswith(b"0\r\n\r\n"):
            await peer.send(piece)
        await peer.send(piece)
        await peer.gone()

    async with RawUpstream(echo) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"POST", b"/", [HOST, CHUNKED], body())
        assert await reply.read() == b"one"
        go_on.set()
        assert await rest(reply) == b"two"
        assert pool.idle == 1


async def test_a_complete_early_success_ends_the_upload_and_the_connection() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        assert await rest(await pool.send(b"POST", b"/", [HOST, CHUNKED], body())) == b"ok"
        assert pool.size == 0


async def test_a_reply_before_a_large_body_was_taken_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        assert (await fetch(pool, b"PUT", body=b"x" * 50_000_000))[1] == b"ok"
        assert pool.size == 0
