"""The conversation locks on a real Redis server: they keep the contract, also among processes that die."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import LockTimeout, StoreUnavailable
from gateway.state.layered_locks import LayeredLocks
from gateway.state.locks import MemoryLocks
from gateway.state.redis import RedisStore
from gateway.state.redis_locks import LOT, RedisLocks
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


@pytest.fixture
def own() -> Iterator[RedisProcess]:
    """A server of one test's own, which it may do anything to."""
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


# --- what the server could not be told


async def test_what_the_server_was_never_asked_for_is_not_owed_to_it(own: RedisProcess) -> None:
    """O1: an outage costs no memory for each call in it, and afterwards no time."""
    async with two(own) as (one, _):
        (await one.locks.acquire("c1", exclusive=True, caller="A")).release()
        await one.settled()
        own.stop()
        await until(lambda: one.server.problem is not None)
        for number in range(20):
            with pytest.raises(StoreUnavailable):
                await one.locks.acquire(f"c{number}", exclusive=True, caller="A")
            with pytest.raises(StoreUnavailable):
                await one.locks.enter(KEY, WHOSE)
        assert not one.locks._owed
        held = one.locks._lease
        one.skipped += 60.0
        await until(lambda: one.locks._lease is not held)


async def test_a_lock_whose_release_was_refused_is_released_once_the_server_takes_writes(
    own: RedisProcess,
) -> None:
    async with two(own, timeout=20.0) as (one, other):
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        own.command("CONFIG", "SET", "min-replicas-to-write", "1")
        lock.release()
        await until(lambda: one.server.problem is not None)
        own.command("CONFIG", "SET", "min-replicas-to-write", "0")
        (await other.locks.acquire("c1", exclusive=True, caller="B")).release()


async def test_a_lock_that_was_released_while_the_server_was_not_trusted_is_free(
    own: RedisProcess,
) -> None:
    """The old lease is still there: else it would last as long as that does."""
    async with two(own, timeout=5.0) as (one, other):
        await other.server.connected()
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        one.server.distrust("its clock was set back")
        lock.release()
        assert one.locks._owed
        (await other.locks.acquire("c1", exclusive=True, caller="B")).release()


@pytest.mark.parametrize("lost", [True, False])
async def test_who_waits_for_a_lock_gets_it_once_the_store_knows_of_the_write_under_it(
    own: RedisProcess, lost: bool
) -> None:
    """S3: also where the connection was lost in between, and all that was missed is told at once."""
    async with two(own, timeout=20.0) as (one, other):
        untold, go = {"c1"}, asyncio.Event()

        async def make_up() -> None:
            await go.wait()
            untold.clear()

        one.locks.is_untold, one.locks.make_up = untold.__contains__, make_up
        lock = await one.locks.acquire("c1", exclusive=True, caller="A")
        waiting = asyncio.ensure_future(other.locks.acquire("c1", exclusive=False, caller="B"))
        await other.settled()
        if lost:
            (await one.server.connected()).end("the connection to it was lost")
        lock.release()
        await until(lambda: one.server.problem is None)
        await one.settled()
        await other.settled()
        assert not waiting.done()
        go.set()
        (await waiting).release()


async def test_while_it_cannot_be_told_nothing_is_made_up_for_with_each_call_that_ends(
    own: RedisProcess,
) -> None:
    async with two(own) as (one, _):
        asked: list[None] = []

        async def make_up() -> None:
            asked.append(None)

        one.locks.is_untold, one.locks.make_up = lambda conversation: True, make_up
        locks = [await one.locks.acquire(f"c{n}", exclusive=True, caller="A") for n in range(9)]
        own.stop()
        await until(lambda: one.server.problem is not None)
        before = len(asked)
        for lock in locks:
            lock.release()
        await asyncio.sleep(0)
        assert (len(asked), len(one.locks._owed)) == (before, 9)


async def test_all_that_is_owed_is_told_in_lots(own: RedisProcess) -> None:
    async with two(own) as (one, other):
        locks = [await one.locks.acquire(f"c{n}", exclusive=True, caller="A") for n in range(2 * LOT + 1)]
        (await one.server.connected()).end("the connection to it was lost")
        for lock in locks:
            lock.release()
        assert len(one.locks._owed) == len(locks)
        await until(lambda: not one.locks._owed)
        await one.settled()
        for number in (0, LOT, 2 * LOT):
            (await other.locks.acquire(f"c{number}", exclusive=True, caller="B")).release()


async def test_a_call_waits_no_longer_for_both_locks_than_it_may_for_one(redis: RedisProcess) -> None:
    async with two(redis, timeout=20.0) as (one, other):
        given = list[float]()

        class Told(RedisLocks):
            async def acquire(self, *args: Any, waited: float = 0.0, **rest: Any) -> Any:
                given.append(waited)
                return await super().acquire(*args, waited=waited, **rest)

        one.locks.__class__ = Told
        layered = LayeredLocks(MemoryLocks(20.0), one.locks)
        held = await layered.acquire("c1", exclusive=True, caller="A")
        waiting = asyncio.ensure_future(layered.acquire("c1", exclusive=True, caller="A"))
        await asyncio.sleep(0.05)
        held.release()
        (await waiting).release()
        assert given[0] < 0.05 <= given[1]
        with await other.locks.acquire("c2", exclusive=True, caller="B"), pytest.raises(LockTimeout):
            await one.locks.acquire("c2", exclusive=True, caller="A", waited=20.0)
