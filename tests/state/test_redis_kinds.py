"""The shared state on servers that ask for TLS and a user, under Sentinels, and in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.errors import StoreUnavailable
from gateway.state.address import Address
from gateway.state.redis_cluster import PARTS, ClusterStore, Part, roots
from gateway.state.redis_connection import RedisConnection
from gateway.state.redis_primary import SLOTS, Named, Sentinels, Where, slot_of
from gateway.state.redis_server import WATCHED, RedisServer
from gateway.state.shared import SharedState, shared_state
from gateway.upstream.connect import tls_context
from tests.state.conformance import KEY, REFUSAL, WHOSE, key, reading, shown
from tests.support.certified import Pair
from tests.support.ports import unused_ports
from tests.support.redis_kinds import NAME, RedisCluster, Sentinel, Watched, is_a, over_tls
from tests.support.redis_servers import RedisProcess, needs_redis
from tests.support.waiting import until

pytestmark = needs_redis
NAMES = count()
OPERATIONS = Path(__file__).parent.parent.parent / "docs/operations.md"


@asynccontextmanager
async def state_on(
    url: str,
    tls: Any = None,
    *,
    name: str | None = None,
    timeout: float = 4.0,
    settle: float = 0.0,
    watch_interval: float = WATCHED,
) -> AsyncIterator[SharedState]:
    state = shared_state(
        url,
        key=b"k" * 32,
        deployment=name or f"n{next(NAMES)}",
        tls=tls,
        timeout=timeout,
        settle=settle,
        max_entries=1,
        max_remembered=2**24,
        lock_timeout=4.0,
        in_flight=5.0,
        watch_interval=watch_interval,
    )
    try:
        yield state
    finally:
        await state.locks.close()
        await state.store.close()


async def used(state: SharedState, other: SharedState) -> None:
    """Each of the scripts, and what is published, between two that share a state."""
    store = state.store
    (await other.locks.acquire("c1", exclusive=True, caller="B")).release()  # it has a lease
    for one in (key("c1", "B"), KEY):
        await store.put(one, await reading(store, one))
    entered = await state.locks.enter(KEY, WHOSE)
    assert entered is not None
    lock, view = entered
    assert shown(view) == b"{}"
    waiting = asyncio.ensure_future(other.locks.acquire("c1", exclusive=True, caller="B"))
    await asyncio.sleep(0)
    await other.store.stamp("c1")  # behind it, on the same connection
    assert not waiting.done()
    lock.release()
    with await waiting as held:
        assert held.holds()
        await store.reinstate(await store.suspend("c1"))
        await store.accept(WHOSE, "connected", 2.0)
        await store.pause("A", REFUSAL, 60.0)
    await store.invalidate("c1")
    await store.invalidate(None)
    view = await store.view(KEY, WHOSE)
    assert view.accepted is not None
    assert view.pause is not None


@asynccontextmanager
async def two_on(url: str, tls: Any = None) -> AsyncIterator[tuple[SharedState, SharedState]]:
    name = f"n{next(NAMES)}"
    async with state_on(url, tls, name=name) as one, state_on(url, tls, name=name) as other:
        yield one, other


@pytest.fixture(scope="module", autouse=True)
def begun() -> Iterator[RedisCluster]:
    """Two seconds pass until the nodes take anything: meanwhile come all tests but those of the cluster."""
    nodes = RedisCluster()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def cluster(begun: RedisCluster) -> RedisCluster:
    begun.ready()
    return begun


# --- TLS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(trustme.CA(), tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def encrypted(pair: Pair) -> Iterator[str]:
    server, port = over_tls(pair)
    yield f"rediss://localhost:{port}"
    server.close()


async def test_over_tls_with_an_authority_and_a_certificate_of_ones_own(encrypted: str, pair: Pair) -> None:
    tls = tls_context(str(pair.ca), str(pair.certificate), str(pair.key))
    async with two_on(encrypted, tls) as both:
        await used(*both)


@pytest.mark.parametrize(
    ("host", "trusts", "shows", "said"),
    [
        ("localhost", True, False, "lost|alert|certificate"),
        ("localhost", False, True, "CERTIFICATE_VERIFY_FAILED|certificate"),
        ("127.0.0.1", True, True, "not valid for '127.0.0.1'"),
    ],
)
async def test_without_trust_on_either_side_there_is_no_connection(
    host: str, trusts: bool, shows: bool, said: str, encrypted: str, pair: Pair
) -> None:
    files = (str(pair.certificate), str(pair.key)) if shows else ()
    tls = tls_context(str(pair.ca) if trusts else None, *files)
    async with state_on(encrypted.replace("localhost", host), tls) as state:
        with pytest.raises(StoreUnavailable, match=said):
            await state.store.stamp("c1")


# --- users


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisProcess]:
    server = RedisProcess()
    yield server
    server.close()


def rule(kind: str) -> list[str]:
    """What docs/operations.md says that the user needs."""
    text = OPERATIONS.read_text("utf-8")
    found = re.search(rf"ACL SETUSER {kind} ((?:.*\\\n)*.+)", text)
    assert found is not None
    return found[1].replace("\\\n", " ").replace("PASSWORD", "secret").split()


async def used_by(user: str, server: RedisProcess) -> None:
    server.command("SCRIPT", "FLUSH")
    async with two_on(f"unix://{user}:secret@{server.path}") as both:
        await used(*both)
        server.command("SCRIPT", "FLUSH")
        await used(*both)


async def test_the_user_of_the_documentation_may_do_what_is_needed_and_nothing_more(
    guarded: RedisProcess,
) -> None:
    words = rule("gateway")
    assert {"~gateway:*", "&gateway:*"} < set(words)
    assert guarded.command("ACL", "SETUSER", "gateway", "reset", *words) == b"+OK\r\n"
    await used_by("gateway", guarded)
    for word in words:
        if word.startswith("+") and word not in {"+select", "+cluster|slots"}:
            guarded.command("ACL", "SETUSER", "less", "reset", *[one for one in words if one != word])
            with pytest.raises(StoreUnavailable, match=rf"(?i)NOPERM .*\b{re.escape(word[1:])}\b"):
                await used_by("less", guarded)


async def test_a_password_that_is_changed_is_said_and_tried_again(guarded: RedisProcess) -> None:
    guarded.command("ACL", "SETUSER", "changing", "reset", *rule("gateway"))
    async with two_on(f"unix://changing:secret@{guarded.path}") as (one, other):
        guarded.command("ACL", "SETUSER", "changing", "resetpass", ">other")
        with pytest.raises(StoreUnavailable, match="WRONGPASS"):
            await one.store.stamp("c1")
        guarded.command("ACL", "SETUSER", "changing", "resetpass", ">secret")
        await until(lambda: one.server.problem is None)
        await used(one, other)
        guarded.command("ACL", "DELUSER", "changing")  # which ends its connections
        await until(lambda: one.server.problem is not None)
        with pytest.raises(StoreUnavailable):
            await one.store.stamp("c1")


# --- Sentinels


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    some = Watched(1)
    yield some
    some.close()


async def test_the_sentinels_name_the_server(watched: Watched) -> None:
    async with two_on(watched.url) as both:
        await used(*both)
        assert isinstance(both[0].server, RedisServer)
        assert await both[0].server._primary.find() == ("127.0.0.1", watched.ports[0])


async def test_a_name_that_they_do_not_know_is_said(watched: Watched) -> None:
    async with state_on(watched.url.replace(NAME, "other")) as state:
        with pytest.raises(StoreUnavailable, match="no Sentinel knows"):
            await state.store.stamp("c1")


async def found_by(*ports: int, user: str | None = None, password: str | None = None) -> Where:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    address = Address.parse(f"redis+sentinel://{hosts}/{NAME}")._replace(user=user, password=password)
    sentinels = Sentinels(address, NAME, None, 4.0, RedisConnection.open)
    try:
        return await sentinels.find()
    finally:
        sentinels.close()


async def test_sentinels_that_ask_for_a_password_get_it() -> None:
    port, primary = unused_ports(2)
    sentinel = Sentinel(port, primary, 1, "requirepass secret")
    try:
        assert await found_by(port, password="secret") == ("127.0.0.1", primary)
        with pytest.raises(StoreUnavailable, match="NOAUTH"):
            await found_by(port)
        with pytest.raises(StoreUnavailable, match="WRONGPASS"):
            await found_by(port, password="other")
    finally:
        sentinel.close()


async def test_a_user_of_sentinels_needs_what_the_documentation_says() -> None:
    rights = re.findall(r"`(\+sentinel\S+) (\+sentinel\S+)`", OPERATIONS.read_text("utf-8"))[0]
    port, primary = unused_ports(2)
    users = [f"user has on >secret -@all {' '.join(rights)}"]
    users += [f"user less{i} on >secret -@all {right}" for i, right in enumerate(rights)]
    sentinel = Sentinel(port, primary, 1, "user default on >other +@all", *users)
    try:
        assert await found_by(port, user="has", password="secret") == ("127.0.0.1", primary)
        for i in range(len(rights)):
            with pytest.raises(StoreUnavailable, match="NOPERM"):
                await found_by(port, user=f"less{i}", password="secret")
    finally:
        sentinel.close()


async def test_of_what_sentinels_say_the_newest_counts_once_most_have_said_it(watched: Watched) -> None:
    """One that was cut off may have missed a fail-over."""
    before = watched.sentinels[0].port
    port, primary, nobody = unused_ports(3)
    after = Sentinel(port, primary, 1, f"sentinel config-epoch {NAME} 5")
    try:
        assert await found_by(before, port) == ("127.0.0.1", primary)
        assert await found_by(port, nobody, before) == ("127.0.0.1", primary)
        for ports in ((port, nobody), (nobody, before), (nobody, port, nobody)):
            with pytest.raises(StoreUnavailable, match="Sentinels can't be asked"):
                await found_by(*ports)
    finally:
        after.close()


async def test_a_server_that_hangs_is_left_before_anything_is_asked(watched: Watched) -> None:
    """Else one that was idle would ask an old primary that goes on, and does not know yet that it is old."""
    async with state_on(watched.url, timeout=0.2, watch_interval=0.05) as state:
        await state.store.stamp("c1")
        watched.servers[0].signal(signal.SIGSTOP)
        try:
            await until(lambda: state.server.problem is not None)
        finally:
            watched.servers[0].signal(signal.SIGCONT)
        await until(lambda: state.server.problem is None)


async def test_a_server_whose_place_another_took_is_left_and_all_is_forgotten() -> None:
    """Though it still takes itself for the primary."""
    own = Watched(1)
    try:
        async with state_on(own.url, watch_interval=0.05) as state:
            assert isinstance(state.server, RedisServer)
            await state.store.put(KEY, await reading(state.store, KEY))
            first, second = own.servers
            await until(lambda: first.command("DBSIZE") == second.command("DBSIZE"))
            assert b"+OK" in second.command("REPLICAOF", "NO", "ONE")
            sentinel, other = own.sentinels[0], str(own.ports[1])
            sentinel.command("SENTINEL", "REMOVE", NAME)
            assert b"+OK" in sentinel.command("SENTINEL", "MONITOR", NAME, "127.0.0.1", other, "1")
            connections: list[None] = []
            state.server.on_connected.append(lambda: connections.append(None))
            await until(lambda: connections)
            view = await state.store.view(KEY, WHOSE)
            assert view.reading is not None, "the replica had it"
            assert shown(view) is None
            assert is_a("master", first)
    finally:
        own.close()


class Replaced(Named):
    """Its place is another's, as whoever asks a second time is told."""

    replaceable = True

    def __init__(self, *places: str) -> None:
        self._places = list(places)

    async def find(self) -> str:
        return self._places.pop(0) if len(self._places) > 1 else self._places[0]


async def test_a_server_whose_place_another_took_while_it_was_greeted_is_asked_nothing(
    guarded: RedisProcess,
) -> None:
    old = RedisProcess()
    try:
        async with state_on(old.url) as state:
            assert isinstance(state.server, RedisServer)
            state.server._primary = Replaced(str(old.path), str(guarded.path))
            with pytest.raises(StoreUnavailable, match="another server has taken its place"):
                await state.store.stamp("c1")
            await until(lambda: state.server.problem is None)
            await state.store.stamp("c1")
            assert b":1\r" in old.command("DBSIZE"), "what it is, and no conversation"
    finally:
        old.close()


# --- a cluster


def test_the_parts_of_a_state_lie_evenly_over_a_clusters_slots() -> None:
    slots = [slot_of(root + ":index:reading") for root in roots("gateway:0123456789ab")]
    assert [slot * PARTS // SLOTS for slot in slots] == list(range(PARTS))
    assert slots != [slot_of(root) for root in roots("gateway:another")]


async def test_a_cluster_is_named_as_one_and_no_other_is(cluster: RedisCluster, watched: Watched) -> None:
    async with state_on(f"redis://127.0.0.1:{cluster.ports[0]}") as state:
        with pytest.raises(StoreUnavailable, match=r"named by redis\+cluster://"):
            await state.store.stamp("c1")
    async with state_on(f"redis+cluster://127.0.0.1:{watched.ports[0]}") as state:
        with pytest.raises(StoreUnavailable, match="cluster support disabled"):
            await state.store.stamp("c1")


@asynccontextmanager
async def parts_on(cluster: RedisCluster) -> AsyncIterator[tuple[SharedState, Part]]:
    """A state, and the part of it that has KEY."""
    async with state_on(cluster.url) as state:
        assert isinstance(state.store, ClusterStore)
        yield state, state.store._parts[state.store.number(KEY.conversation)]


async def test_a_cluster_has_it_all_in_parts(cluster: RedisCluster) -> None:
    async with two_on(cluster.url) as both:
        await used(*both)
        await used(*reversed(both))
    sizes = [int(node.command("DBSIZE")[1:]) for node in cluster.nodes]
    assert min(sizes) > 0, "each node has some"


async def test_what_is_about_all_conversations_reaches_all_nodes(cluster: RedisCluster) -> None:
    async with two_on(cluster.url) as (one, other):
        keys = [key(f"c{number}") for number in range(3 * PARTS)]
        for each in keys:
            await one.store.put(each, await reading(one.store, each))
        shows = [shown(await other.store.view(each, (*WHOSE[:1], each.conversation))) for each in keys]
        assert shows.count(b"{}") >= PARTS / 2
        await other.store.invalidate(None)
        await other.store.pause("A", REFUSAL, 60.0)
        views = [await one.store.view(each, (*WHOSE[:1], each.conversation)) for each in keys]
        assert not any(map(shown, views))
        assert all(view.pause is not None for view in views)
        for each in keys:
            await one.store.put(each, await reading(one.store, each))
        await other.store.invalidate(None)
        views = [await one.store.view(each, (*WHOSE[:1], each.conversation)) for each in keys]
        assert not any(map(shown, views))


async def test_a_node_that_was_not_told_to_forget_is_told_before_it_is_asked(cluster: RedisCluster) -> None:
    """And the others go on."""
    async with parts_on(cluster) as (state, part):
        store, server = state.store, part.server
        elsewhere = next(
            one
            for one in map(key, map(str, range(100)))
            if store.number(one.conversation) != store.number("c1")  # type: ignore[union-attr]
        )
        for one in (KEY, elsewhere):
            await store.put(one, await reading(store, one))
        primary, server._primary = server._primary, Named("/nowhere")
        assert server._connection is not None
        server._connection.end("the network")
        await store.invalidate(None)
        with pytest.raises(StoreUnavailable):
            await store.view(KEY, WHOSE)
        assert state.server.problem is not None
        assert state.server.problem.startswith("1 of 16 parts: no connection")
        assert shown(await store.view(elsewhere, (*WHOSE[:1], elsewhere.conversation))) is None
        await store.put(elsewhere, await reading(store, elsewhere))
        server._primary = primary
        await until(lambda: state.server.problem is None)
        view = await store.view(KEY, WHOSE)
        assert view.reading is not None
        assert shown(view) is None
        assert shown(await store.view(elsewhere, (*WHOSE[:1], elsewhere.conversation))) == b"{}"


async def test_while_a_slot_moves_its_part_fails_and_afterwards_it_forgets(cluster: RedisCluster) -> None:
    """Never does it seem that something is not there because it has moved."""
    async with parts_on(cluster) as (state, part):
        store = state.store
        lock = await state.locks.acquire("c1", exclusive=True, caller="A")
        before = await reading(store, KEY)
        await store.put(KEY, before)
        assert shown(await store.view(KEY, WHOSE)) == b"{}"
        slot = slot_of(part.server.root)
        source = cluster.owner(slot)
        target = next(node for node in cluster.nodes if node is not source)
        moved = 0
        for _ in cluster.move(slot, target):
            moved += 1
            try:
                stamp = await store.stamp("c1")
            except StoreUnavailable:
                continue
            assert stamp.generation == before.generation
        assert moved > 4
        await until(lambda: lock.holds() is False)
        lock.release()
        async with asyncio.timeout(9):
            while True:
                with contextlib.suppress(StoreUnavailable):
                    view = await store.view(KEY, WHOSE)
                    break
        assert view.reading is not None
        assert view.generation > before.generation
        assert not await store.put(KEY, before)
        with await state.locks.acquire("c1", exclusive=True, caller="A") as again:
            assert again.holds()
