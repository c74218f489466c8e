"""
The shared state while another server takes over, under Sentinels and in a cluster: real ones, of which the
old primary dies with writes that its replica never had, or hangs and comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.errors import StoreUnavailable
from gateway.state.redis_cluster import PARTS, ClusterStore
from gateway.state.redis_primary import slot_of
from gateway.state.shared import SharedState
from gateway.state.store import View
from tests.state.conformance import KEY, WHOSE, key, reading, shown
from tests.state.test_redis_kinds import NAMES, state_on
from tests.support.redis_kinds import RedisCluster, Watched, is_a, wait_for
from tests.support.redis_servers import RedisProcess, needs_redis
from tests.support.waiting import until

pytestmark = [needs_redis, pytest.mark.soak]
TIMEOUT = 0.5  # as store.timeout is, so that a server which hangs is left before another takes its place
SETTLE = 30.0


@pytest.fixture
def watched() -> Iterator[Watched]:
    three = Watched(3, down_after=3000)
    yield three
    three.close()


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    six = RedisCluster(1, node_timeout=3000)
    six.ready()
    yield six
    six.close()


@contextlib.asynccontextmanager
async def two_on(url: str) -> AsyncIterator[tuple[SharedState, SharedState]]:
    name = f"n{next(NAMES)}"
    async with (
        state_on(url, name=name, timeout=TIMEOUT, settle=SETTLE) as one,
        state_on(url, name=name, timeout=TIMEOUT, settle=SETTLE) as other,
    ):
        yield one, other


def cut_off(primary: RedisProcess) -> None:
    """Its replica has all until now, gets nothing any more, and does not get in again; all others stay."""
    alike = re.compile(rb"offset=(\d+),.*\bmaster_repl_offset:\1\r", re.S)
    wait_for(lambda: alike.search(primary.command("INFO", "replication")))
    assert primary.command("ACL", "SETUSER", "default", "-psync", "-sync") == b"+OK\r\n"
    assert primary.command("CLIENT", "KILL", "TYPE", "replica") == b":1\r\n"


async def viewed(state: SharedState) -> View:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await state.store.view(KEY, WHOSE)
            await asyncio.sleep(0.05)


async def loses_its_last_writes(one: SharedState, other: SharedState, primary: RedisProcess) -> None:
    """What was read before them is not filled, though the one that took over has heard of none."""
    lock = await one.locks.acquire("c1", exclusive=True, caller="A")
    before = await reading(one.store, KEY)
    await one.store.put(KEY, before)
    assert shown(await other.store.view(KEY, WHOSE)) == b"{}"
    await asyncio.to_thread(cut_off, primary)
    await one.store.accept(WHOSE, "alerting", SETTLE)
    await one.store.invalidate("c1")
    overtaken = await reading(one.store, KEY)
    primary.stop()
    await until(lambda: one.server.problem is not None and other.server.problem is not None)
    with pytest.raises(StoreUnavailable):
        await one.store.view(KEY, WHOSE)
    for state in (other, one):
        view = await viewed(state)
        assert view.reading is not None, "it has what was read"
        assert view.reading.generation == before.generation
        assert shown(view) is None
        assert view.accepted is not None
        assert (view.accepted.value, view.accepted.until > view.time + SETTLE / 2) == (None, True)
    await until(lambda: one.server.problem is None)
    assert not lock.holds()
    lock.release()
    assert not await one.store.put(KEY, overtaken)
    await other.store.put(KEY, await reading(other.store, KEY, b"since"))
    await asyncio.to_thread(primary.start)
    assert shown(await viewed(one)) == b"since"


async def test_sentinels_appoint_a_replica_that_lacks_the_last_writes(watched: Watched) -> None:
    async with two_on(watched.url) as both:
        await loses_its_last_writes(*both, watched.servers[0])
        # The old primary comes back empty, and as a replica.
        await until(lambda: is_a("slave", watched.servers[0]), seconds=60)
        assert shown(await viewed(both[0])) == b"since"


async def test_a_primary_that_hung_and_goes_on_is_asked_nothing_once_another_has_its_place(
    watched: Watched,
) -> None:
    old, new = watched.servers
    async with two_on(watched.url) as (one, other):
        await one.store.put(KEY, await reading(one.store, KEY))
        await other.store.stamp("c1")
        old.signal(signal.SIGSTOP)
        try:
            await until(lambda: is_a("master", new), seconds=60)
            assert shown(await viewed(one)) is None
            assert await one.store.put(KEY, await reading(one.store, KEY, b"since"))
        finally:
            old.signal(signal.SIGCONT)
        for _ in range(50):
            assert shown(await viewed(other)) == b"since"


async def test_a_clusters_replica_lacks_the_last_writes_and_the_other_parts_go_on(
    cluster: RedisCluster,
) -> None:
    async with two_on(cluster.url) as both:
        one, other = both
        assert isinstance(one.store, ClusterStore)
        parts = one.store._parts
        primary = cluster.owner(slot_of(parts[one.store.number("c1")].server.root))
        untouched = [
            name
            for name in map(str, range(PARTS * 4))
            if cluster.owner(slot_of(parts[one.store.number(name)].server.root)) is not primary
        ][:5]
        for name in untouched:
            await one.store.put(key(name), await reading(one.store, key(name)))
        lock = await one.locks.acquire(untouched[0], exclusive=True, caller="A")
        meanwhile = asyncio.ensure_future(loses_its_last_writes(one, other, primary))
        while not meanwhile.done():
            for name in untouched:
                assert shown(await other.store.view(key(name), (WHOSE[0], name))) == b"{}"
            await asyncio.sleep(0.1)
        await meanwhile
        assert lock.holds()
        lock.release()
        await other.store.invalidate(None)
        for name in (*untouched, "c1"):
            assert shown(await one.store.view(key(name), (WHOSE[0], name))) is None


async def test_a_cluster_hands_over_in_order_and_the_part_forgets(cluster: RedisCluster) -> None:
    """CLUSTER FAILOVER, as for an upgrade: nothing is lost, which nobody can know."""
    async with two_on(cluster.url) as (one, other):
        assert isinstance(one.store, ClusterStore)
        slot = slot_of(one.store._parts[one.store.number("c1")].server.root)
        primary = cluster.owner(slot)
        replica = cluster.nodes[cluster.nodes.index(primary) + 3]
        await one.store.put(KEY, await reading(one.store, KEY))
        assert replica.command("CLUSTER", "FAILOVER") == b"+OK\r\n"
        await until(lambda: is_a("master", replica), seconds=30)
        await until(lambda: is_a("slave", primary), seconds=30)
        for state in (one, other):
            view = await viewed(state)
            assert view.reading is not None
            assert shown(view) is None
