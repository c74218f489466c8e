"""The conversation locks on a real Redis server: they keep the contract, also among processes that die."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import StoreUnavailable
from gateway.state.redis import RedisStore
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_server import RedisServer, Source, packaged
from gateway.state.sealed import Sealed
from gateway.state.store_clock import StoreClock
from tests.state.conformance import KEY, WHOSE, Holders, LocksContract, reading, shown
from tests.support.redis_servers import RedisProcess, needs_redis
from tests.support.waiting import until

pytestmark = needs_redis
ROOTS = itertools.count()


class Bench:
    """One process's store and locks."""

    def __init__(
        self,
        process: RedisProcess,
        root: str,
        timeout: float = 0.6,
        max_waiting: int = 32,
        in_flight: float = 5.0,
        source: Source = packaged,
    ) -> None:
        self.skipped = 0.0  # seconds that the local clock is ahead of what it was
        clock = StoreClock()
        local = clock.local
        clock.local = lambda: local() + self.skipped
        self.server = RedisServer(process.url, root, timeout=8.0, clock=clock, source=source)
        sealed = Sealed(b"k" * 32)
        self.store = RedisStore(self.server, sealed, max_entries=100)
        self.locks = RedisLocks(
            self.server, self.store, sealed, timeout=timeout, in_flight=in_flight, max_waiting=max_waiting
        )

    async def settled(self) -> None:
        """Until all that was sent is done, and what that set off."""
        for _ in range(5):
            for _ in range(5):
                await asyncio.sleep(0)
            connection = await self.server.connected()
            await connection.ask("PING")

    async def close(self) -> None:
        await self.locks.close()
        await self.store.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    process = RedisProcess()
    yield process
    process.close()


class TestRedisLocks(LocksContract):
    TIMEOUT = 0.6
    MAX_WAITING = 8
    MOMENT = 0.04
    FLOOD = 2_000
    source: Source = staticmethod(packaged)

    @pytest.fixture(autouse=True)
    def _redis(self, redis: RedisProcess) -> None:
        self.redis = redis
        self.benches: list[Bench] = []

    def make(self) -> RedisLocks:
        bench = Bench(self.redis, f"t{next(ROOTS)}", self.TIMEOUT, self.MAX_WAITING, source=self.source)
        self.benches.append(bench)
        return bench.locks

    def run(self, story: Callable[[], Awaitable[None]], seed: int | None = None) -> None:
        async def told() -> None:
            try:
                await story()
            finally:
                for bench in self.benches:
                    await bench.close()
                self.benches.clear()

        asyncio.run(told())

    async def moment(self) -> None:
        for bench in self.benches:
            await bench.settled()

    @pytest.mark.parametrize("seed", range(2))
    def test_a_lock_granted_in_the_moment_that_the_waiting_timed_out_is_handed_on(self, seed: int) -> None:
        LocksContract.test_a_lock_granted_in_the_moment_that_the_waiting_timed_out_is_handed_on(self, seed)

    # In real time nobody can say which of two comes first that are due at once: none waits for its timeout.
    COME = LocksContract.COME
    ENDING = st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 30), st.booleans())
    STEPS = st.builds(list.__add__, st.lists(COME, max_size=12), st.lists(COME | ENDING, max_size=20))

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS, st.none(), st.booleans())
    def test_however_calls_come_end_leave_and_wait_the_locks_are_granted_as_the_model_does(
        self, steps: list[tuple[str, object, bool]], seed: int | None, several: bool
    ) -> None:
        self.TIMEOUT, self.MAX_WAITING = 30.0, 32
        contract = (
            LocksContract.test_however_calls_come_end_leave_and_wait_the_locks_are_granted_as_the_model_does
        )
        contract.hypothesis.inner_test(self, steps, seed, several)  # type: ignore[attr-defined]

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS, st.none())
    def test_whatever_happens_in_one_moment_locks_exclude_and_nobody_is_overtaken_unfairly(
        self, steps: list[tuple[str, object, bool]], seed: int | None
    ) -> None:
        self.TIMEOUT, self.MAX_WAITING = 30.0, 32
        contract = (
            LocksContract.test_whatever_happens_in_one_moment_locks_exclude_and_nobody_is_overtaken_unfairly
        )
        contract.hypothesis.inner_test(self, steps, seed)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def two(process: RedisProcess, **changes: float) -> AsyncIterator[tuple[Bench, Bench]]:
    root = f"t{next(ROOTS)}"
    one, other = Bench(process, root, **changes), Bench(process, root, **changes)  # type: ignore[arg-type]
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


async def test_what_one_process_holds_another_waits_for_and_hears_of_at_once(redis: RedisProcess) -> None:
    async with two(redis, timeout=20.0) as (one, other):
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        calls = Holders(other.locks)
        waiting = calls.call("r", exclusive=False, caller="B")
        await other.settled()
        assert calls.held == []
        lock.release()
        await one.settled()
        await other.settled()
        assert calls.held == ["r"]
        await waiting.end()


async def test_the_locks_of_a_process_that_was_killed_end_with_its_lease(redis: RedisProcess) -> None:
    async with two(redis, timeout=20.0) as (one, other):
        await one.locks.acquire("c1", exclusive=True, caller="A")
        await one.locks.acquire("c2", exclusive=False, caller="A")
        await one.locks.acquire("c3", exclusive=True, caller="A")
        lease = one.locks._lease
        assert lease is not None
        await one.close()
        calls = Holders(other.locks)
        waiting = [calls.call(name, exclusive=True, conversation=name) for name in ("c1", "c2", "c3")]
        await other.settled()
        assert calls.held == []
        assert int(redis.command("PTTL", lease.key)[1:]) <= 11_000, "it lasts as long as a call, and a margin"
        redis.command("DEL", lease.key)  # its time is over
        await until(lambda: len(calls.held) == 3)
        for call in waiting:
            await call.end()


async def test_a_process_that_was_stopped_longer_than_its_lease_does_not_hold_its_locks(
    redis: RedisProcess,
) -> None:
    async with two(redis) as (one, _):
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        assert lock.holds()
        one.skipped += 60.0
        assert not lock.holds()


async def test_a_lock_holds_only_while_the_lease_lasts_as_long_as_a_call_may_be_in_flight(
    redis: RedisProcess,
) -> None:
    async with two(redis, in_flight=5.0) as (one, _):
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        one.skipped += 5.5
        assert lock.holds()
        one.skipped += 1.0
        assert not lock.holds(), "its lease lasts, but not for a whole call"


async def test_where_the_server_has_lost_the_lease_what_was_held_does_not_hold_and_locks_are_had_again(
    redis: RedisProcess,
) -> None:
    own = RedisProcess()
    try:
        async with two(own) as (one, _):
            before = await one.locks.acquire("c1", exclusive=True, caller="A")
            own.command("FLUSHALL")
            after = await one.locks.acquire("c1", exclusive=True, caller="A")
            assert not before.holds()
            assert after.holds()
            before.release()
            await one.settled()
            assert await one.locks.enter(KEY, WHOSE) is None, (
                "the release of the one is not that of the other"
            )
            own.stop()
            own.start()
            await until(lambda: one.server.problem is None and not after.holds())
    finally:
        own.close()


async def test_a_lock_whose_granting_was_never_heard_of_is_given_up(redis: RedisProcess) -> None:
    """The connection ends between the request and its reply."""
    async with two(redis) as (one, other):
        (await one.locks.acquire("c2", exclusive=True, caller="A")).release()  # it has a lease
        asking = asyncio.ensure_future(one.locks.acquire("c1", exclusive=True, caller="A"))
        await asyncio.sleep(0)
        connection = await one.server.connected()
        assert connection._transport is not None
        connection._transport.close()  # what was written goes out, and no reply is read
        with pytest.raises(StoreUnavailable):
            await asking
        lock = await other.locks.acquire("c1", exclusive=True, caller="B")
        lock.release()


async def test_who_waits_at_a_server_that_was_flushed_asks_again(redis: RedisProcess) -> None:
    """A write goes on where it can't be asked for the lock: it is to wait for it, as long as it can be."""
    own = RedisProcess()
    try:
        async with two(own, timeout=20.0) as (one, other):
            held = await one.locks.acquire("c1", exclusive=True, caller="A")
            waiting = asyncio.ensure_future(one.locks.acquire("c1", exclusive=True, caller="A"))
            await one.settled()
            own.command("FLUSHALL")
            lock = await waiting
            assert lock.holds()
            assert not held.holds()
            assert await other.locks.enter(KEY, WHOSE) is None, "the server knows of it"
            lock.release()
            await one.settled()
            assert await other.locks.enter(KEY, WHOSE) is not None
    finally:
        own.close()


async def test_a_lock_is_released_though_the_server_has_dropped_its_scripts(redis: RedisProcess) -> None:
    async with two(redis, timeout=20.0) as (one, other):
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        redis.command("SCRIPT", "FLUSH")
        lock.release()
        (await other.locks.acquire("c1", exclusive=True, caller="B")).release()


async def test_entering_is_a_shared_lock_and_the_view_in_one_step(redis: RedisProcess) -> None:
    async with two(redis) as (one, other):
        await one.store.put(KEY, await reading(one.store, KEY))
        await one.store.accept(WHOSE, "connected", 2.0)
        entered = await other.locks.enter(KEY, WHOSE)
        assert entered is not None
        lock, view = entered
        assert shown(view) == b"{}"
        assert view.accepted is not None
        assert (lock.holds(), lock.waited, len(other.locks)) == (True, False, 1)
        writer = asyncio.ensure_future(one.locks.acquire("c1", exclusive=True, caller="A"))
        await one.settled()
        assert await other.locks.enter(KEY, WHOSE) is None, "somebody waits"
        lock.release()
        (await writer).release()
        assert len(other.locks) == 0
