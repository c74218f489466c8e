"""The store and the locks on a real Redis Cluster of three primaries: they keep the contracts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.state.redis import RedisStore
from gateway.state.redis_cluster import PARTS, ClusterLocks, ClusterStore, Part, roots
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_server import RedisServer
from gateway.state.sealed import Sealed
from gateway.state.shared import SharedState, shared_state
from gateway.state.store_clock import StoreClock
from tests.state import test_redis_locks
from tests.state.conformance import KEY, StoreContract, key, reading
from tests.support.redis_kinds import RedisCluster
from tests.support.redis_servers import needs_redis

pytestmark = [needs_redis, pytest.mark.soak]
NAMES = itertools.count()
TIMEOUT = 8.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    three = RedisCluster()
    three.ready()
    yield three
    three.close()


def state_on(url: str, name: str, *, timeout: float = TIMEOUT, max_entries: int = 1000) -> SharedState:
    return shared_state(
        url,
        key=b"k" * 32,
        deployment=name,
        tls=None,
        timeout=timeout,
        settle=0.0,
        max_entries=max_entries,
        max_remembered=2**24,
        lock_timeout=5.0,
        in_flight=5.0,
    )


class TestClusterStore(StoreContract):
    APART = TIMEOUT

    @pytest.fixture(autouse=True)
    async def _cluster(self, cluster: RedisCluster) -> AsyncIterator[None]:
        self.cluster = cluster
        self.made: list[SharedState] = []
        yield
        for state in self.made:
            await state.locks.close()
            await state.store.close()

    def make(self, *, max_entries: int = 100) -> ClusterStore:
        state = state_on(self.cluster.url, f"n{next(NAMES)}", max_entries=PARTS * max_entries)
        self.made.append(state)
        assert isinstance(state.store, ClusterStore)
        return state.store

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def test_where_an_accepted_value_was_dropped_its_span_is_still_told(self) -> None:
        """Of one conversation alone: a view is about no other, so it is asked of no other part."""
        store = self.make(max_entries=5)
        for number in range(20):
            await store.accept(("state", "c1", f"p{number}"), "connected", 60.0)
        seen = [(await store.view(KEY, ("state", "c1", f"p{number}"))).accepted for number in range(20)]
        assert all(seen)
        assert sum(one is not None and one.value is not None for one in seen) == 5
        assert all(one is not None and one.until > store.now() + 50 for one in seen)

    async def test_it_holds_no_more_than_it_may(self) -> None:
        store = self.make(max_entries=1)
        keys = [key(f"c{number}", f"caller{number}") for number in range(3 * PARTS)]
        for one in keys:
            assert await store.put(one, await reading(store, one))
        views = [await store.view(one, ("state", one.conversation)) for one in reversed(keys)]
        assert PARTS / 2 < sum(view.reading is not None for view in views) <= PARTS


class Bench:
    """One process's locks on all parts."""

    def __init__(self, url: str, timeout: float, max_waiting: int) -> None:
        sealed = Sealed(b"k" * 32)

        def part(root: str) -> Part:
            server = RedisServer(url, root, timeout=TIMEOUT, clock=StoreClock())
            store = RedisStore(server, sealed, max_entries=100, local=True)
            given = {"timeout": timeout, "in_flight": 5.0, "max_waiting": max_waiting}
            return Part(server, store, RedisLocks(server, store, sealed, **given))  # type: ignore[arg-type]

        self._parts = [part(root) for root in roots(f"gateway:n{next(NAMES)}")]
        self._store = ClusterStore(self._parts, sealed)
        self.locks = ClusterLocks(self._parts, self._store)

    async def settled(self) -> None:
        for _ in range(5):
            for _ in range(5):
                await asyncio.sleep(0)
            connections = [await part.server.connected() for part in self._parts]
            await asyncio.gather(*(one.ask("PING") for one in connections))

    async def close(self) -> None:
        await self.locks.close()
        await self._store.close()


class TestClusterLocks(test_redis_locks.TestRedisLocks):
    @pytest.fixture(autouse=True)
    def _redis(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        self.benches: list[Bench] = []  # type: ignore[assignment]

    def make(self) -> ClusterLocks:  # type: ignore[override]
        bench = Bench(self.cluster.url, self.TIMEOUT, self.MAX_WAITING)
        self.benches.append(bench)
        return bench.locks
