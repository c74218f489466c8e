"""What is told before the first byte goes out, for one request and for several that are sent together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.errors import (
    ConnectionTerminated,
)
from gateway.upstream.pool import Pool
from tests.support.pools import CHUNKED, HOST, fetch, pool_to, rest, ticks
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, silent


async def test_leaving_is_told_right_before_the_first_byte_and_may_forbid_it() -> None:
    class TooLateError(Exception):
        pass

    def forbid() -> None:
        raise TooLateError

    left: list[int] = []
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        for _ in range(2):
            with pytest.raises(TooLateError):
                await pool.send(b"PATCH", b"/", [HOST], before_send=forbid)
            await rest(await pool.send(b"GET", b"/", [HOST], before_send=lambda: left.append(pool.idle)))
        assert left == [0, 0]
        assert [request.method for request in upstream.requests] == [b"GET", b"GET"]
        assert len(upstream.peers) == 1


class Party:
    """Requests that are to leave in one turn of the loop: what was called, and what has been sent by then."""

    def __init__(self, pool: Pool, upstream: RawUpstream) -> None:
        self.pool = pool
        self.upstream = upstream
        self.called: list[str] = []
        self.fails: Exception | None = None
        self.sent_before: list[bytes] = []

    def commit(self) -> None:
        self.called.append("commit")
        self.sent_before = self.sent
        if self.fails is not None:
            raise self.fails

    async def send(self, name: str, error: Exception | None = None, *, commits: bool = True) -> bytes:
        def before_send() -> Callable[[], None] | None:
            self.called.append(name)
            if error is not None:
                raise error
            return self.commit if commits else None

        return await rest(
            await self.pool.send(b"PATCH", b"/" + name.encode(), [HOST], before_send=before_send)
        )

    @property
    def sent(self) -> list[bytes]:
        return sorted(one.target for one in self.upstream.requests if one.method == b"PATCH")


@contextlib.asynccontextmanager
async def party(connections: int, **options: Any) -> AsyncIterator[Party]:
    """A pool of which one connection is busy, the others idle."""
    held = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if (await peer.request()).target == b"/held":
                await held.wait()
            await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, **options) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(fetch(pool))
        busy = asyncio.ensure_future(fetch(pool, target=b"/held"))
        await ticks(3)
        assert pool.idle == connections - 1
        yield Party(pool, upstream)
        held.set()
        await busy
        assert pool.idle == pool.size


async def test_requests_that_leave_together_are_committed_once_before_a_byte_of_any_goes_out() -> None:
    async with party(5) as them:
        await asyncio.gather(*(them.send(name) for name in "abcd"))

        assert them.called == ["a", "b", "c", "d", "commit"]
        assert them.sent_before == []
        assert them.sent == [b"/a", b"/b", b"/c", b"/d"]


async def test_who_is_alone_leaves_at_once() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        them = Party(pool, upstream)
        call = asyncio.ensure_future(them.send("a"))
        await asyncio.sleep(0)
        assert them.called == ["a", "commit"]
        await call


async def test_a_commit_that_fails_keeps_all_back_that_asked_for_it_and_nobody_else() -> None:
    async with party(5) as them:
        them.fails = OSError("the disk is full")
        calls = [them.send("a"), them.send("b"), them.send("c", commits=False)]
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [*results] == [them.fails, them.fails, b"ok"]
        assert them.sent == [b"/c"]
        them.fails = None
        assert [*await asyncio.gather(*map(them.send, "de"))] == [b"ok", b"ok"]


async def test_who_may_not_leave_keeps_nobody_else_back() -> None:
    error = ValueError("too old")
    async with party(5) as them:
        gone = asyncio.ensure_future(them.send("gone"))
        results = asyncio.gather(
            them.send("a"), them.send("b", error), them.send("c"), return_exceptions=True
        )
        await asyncio.sleep(0)
        gone.cancel()

        assert [*await results] == [b"ok", error, b"ok"]
        assert gone.cancelled()
        assert them.called == ["a", "b", "c", "commit"]
        assert them.sent == [b"/a", b"/c"]


async def test_who_finds_no_connection_idle_waits_and_is_recorded_then() -> None:
    async with party(3, max_connections=3) as them:
        assert await asyncio.gather(*(them.send(name) for name in "abcd")) == [b"ok"] * 4

        assert them.called[:3] == ["a", "b", "commit"]
        assert sorted(set(them.called[3:])) == ["c", "commit", "d"]
        assert (them.called.count("c"), them.called.count("d"), them.called[-1]) == (1, 1, "commit")
        assert them.sent == [b"/a", b"/b", b"/c", b"/d"]


async def test_a_connection_that_dies_while_they_are_about_to_leave_is_not_used() -> None:
    async with party(3) as them:
        call = asyncio.ensure_future(them.send("a"))
        await asyncio.sleep(0)
        for connection in list(them.pool._idle):
            connection.close()

        assert await call == b"ok"
        assert them.sent == [b"/a"]


async def test_a_stream_that_is_cancelled_from_within_is_a_write_error() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise asyncio.CancelledError

    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], body())
        assert pool.size == 0
