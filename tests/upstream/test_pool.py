"""Who gets which connection, how many there are, and when they are closed."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import (
    PoolExhausted,
)
from gateway.upstream.pool import Pool
from tests.support.pools import CHUNKED, HOST, fetch, pieces_of, pool_to, rest, ticks, until
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, silent


async def test_the_connection_that_came_back_last_is_taken_first() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(3)))
        assert (pool.size, pool.idle) == (3, 3)
        for _ in range(5):
            await fetch(pool)
        assert sorted(peer.received.count(b"GET") for peer in upstream.peers) == [1, 1, 6]


async def test_connections_are_bounded() -> None:
    busy = most = 0

    async def script(peer: Peer) -> None:
        nonlocal busy, most
        while True:
            await peer.request()
            busy += 1
            most = max(most, busy)
            await ticks(3)
            busy -= 1
            await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, max_connections=3) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(40)))
        assert most <= 3
        assert len(upstream.peers) == 3


async def test_who_waits_is_served_in_the_order_of_arrival() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        await asyncio.gather(*(fetch(pool, target=b"/%d" % number) for number in range(40)))
        assert [request.target for request in upstream.requests] == [b"/%d" % number for number in range(40)]


async def test_who_waits_gets_the_place_of_a_connection_that_closed() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with RawUpstream(answering(closing)) as upstream, pool_to(upstream, max_connections=1) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(10)))
        assert len(upstream.peers) == 10


async def test_who_waits_too_long_for_a_connection_is_told_so() -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream, max_connections=1, pool=0.05) as pool:
        first = asyncio.create_task(pool.send(b"GET", b"/", [HOST]))
        await until(lambda: upstream.peers)
        with pytest.raises(PoolExhausted):
            await fetch(pool)
        assert (pool.waiting, pool.size) == (0, 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool.size == 0


async def test_a_connection_idle_for_long_is_closed() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.gone()
        left.set()

    async with RawUpstream(script) as upstream, pool_to(upstream, idle_timeout=0.05) as pool:
        await fetch(pool)
        assert pool.idle == 1
        async with asyncio.timeout(2):
            await left.wait()
        assert pool.size == 0


async def test_only_those_idle_for_long_are_closed() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, idle_timeout=0.3) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(3)))
        for _ in range(5):
            await asyncio.sleep(0.1)
            await fetch(pool)
        assert (pool.size, len(upstream.peers)) == (1, 3)


async def test_an_old_connection_is_replaced() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_lifetime=0.05) as pool:
        await fetch(pool)
        await asyncio.sleep(0.06)
        await fetch(pool)
        assert len(upstream.peers) == 2


async def test_a_connection_that_the_upstream_closed_while_idle_is_not_used() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        for number in range(1, 4):
            await fetch(pool, b"PATCH", body=b"{}")
            await until(lambda: pool.idle == 0)
            assert len(upstream.requests) == number


async def test_close_ends_idle_connections_at_once_and_busy_ones_with_their_reply() -> None:
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await finish.wait()
        await peer.send(b"lo")
        await peer.gone()

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        await fetch(pool)
        assert (pool.size, pool.idle) == (2, 1)
        pool.close()
        assert (pool.size, pool.idle) == (1, 0)
        with pytest.raises(RuntimeError, match="closed"):
            await fetch(pool)
        finish.set()
        assert await rest(reply) == b"hello"
        await pool.wait_closed()


async def test_who_waits_when_the_pool_is_closed_is_still_served() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        waiting = [asyncio.create_task(fetch(pool)) for _ in range(5)]
        await until(lambda: upstream.requests)
        pool.close()
        assert [body for _, body in await asyncio.gather(*waiting)] == [b"ok"] * 5


CANCELLED_IN = {
    "the head": silent,
    "the body": answering([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"a", b"b", b"c", b"d", b"e"]),
    "a quick reply": answering(OK),
}


@pytest.mark.parametrize("where", CANCELLED_IN)
@pytest.mark.parametrize("streamed", [True, False])
async def test_cancelling_at_any_point_loses_no_connection(where: str, streamed: bool) -> None:
    async def call(pool: Pool) -> None:
        body = pieces_of(b"a", b"b", b"c") if streamed else b"3\r\nabc\r\n0\r\n\r\n"
        reply = await pool.send(b"PUT", b"/", [HOST, CHUNKED], body)
        try:
            while await reply.read():
                pass
        finally:
            reply.close()

    async with RawUpstream(CANCELLED_IN[where]) as upstream, pool_to(upstream, max_connections=2) as pool:
        for steps in range(30):
            calls = [asyncio.create_task(call(pool)) for _ in range(5)]
            await ticks(steps)
            for task in calls:
                task.cancel()
            await asyncio.wait(calls)
            assert pool.size == pool.idle
            assert pool.waiting == 0
        assert pool.size <= 2


async def test_a_place_in_the_queue_that_is_cancelled_as_it_is_served_is_passed_on() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        for steps in range(25):
            first, second, third = (asyncio.create_task(fetch(pool)) for _ in range(3))
            await ticks(steps)
            second.cancel()
            await asyncio.wait([first, second, third])
            assert (await first)[1] == (await third)[1] == b"ok"
            assert (pool.size, pool.idle) == (1, 1)


async def test_callers_who_wait_are_served_by_turns() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        flood = [fetch(pool, target=b"/a", caller="a") for _ in range(40)]
        await asyncio.gather(*flood, fetch(pool, target=b"/b", caller="b"))
        assert [request.target for request in upstream.requests].index(b"/b") <= 2


async def test_who_has_to_wait_is_told_of_and_gets_what_is_given_up_at_once() -> None:
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000

    async def script(peer: Peer) -> None:
        while True:
            await peer.send(large if (await peer.request()).target == b"/large" else OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, max_connections=3, pool=10) as pool:
        held = [await pool.send(b"GET", b"/large", [HOST]) for _ in range(3)]
        waiting = []

        def give_one_up(_: asyncio.AbstractEventLoop) -> None:
            waiting.append(pool.waiting)
            held.pop().close()

        pool.on_wait = give_one_up
        try:
            async with asyncio.timeout(5):
                assert (await fetch(pool))[1] == b"ok"
            assert waiting == [1]
        finally:
            for reply in held:
                reply.close()


async def test_each_waits_for_its_own_time_and_no_longer() -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream, max_connections=1, pool=0.6) as pool:
        holder = asyncio.create_task(pool.send(b"GET", b"/", [HOST]))
        await until(lambda: upstream.peers)
        loop = asyncio.get_running_loop()

        async def wait() -> None:
            began = loop.time()
            fetched = asyncio.create_task(fetch(pool))
            ended: list[float] = []
            fetched.add_done_callback(lambda _: ended.append(loop.time()))
            await ticks(3)  # till it waits
            # The same loop's timer, not its clock: a machine that stands still is late with both.
            await asyncio.sleep(0.65)
            await ticks(5)
            assert fetched.done()
            with pytest.raises(PoolExhausted):
                await fetched
            assert ended[0] - began > 0.59

        cancelled = asyncio.create_task(fetch(pool))
        await asyncio.sleep(0.03)
        waiting = []
        for _ in range(3):
            waiting.append(asyncio.create_task(wait()))
            await asyncio.sleep(0.03)
        cancelled.cancel()
        await ticks(3)
        assert pool.waiting == 3
        try:
            async with asyncio.timeout(5):
                await asyncio.gather(*waiting)
        finally:
            holder.cancel()
        assert pool.waiting == 0
