"""The store on a real Redis server: it keeps the contract."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
from msgspec import structs

from gateway.errors import StoreUnavailable
from gateway.state.address import Address
from gateway.state.redis import RedisStore
from gateway.state.redis_server import RedisServer, Source, packaged
from gateway.state.sealed import Sealed
from gateway.state.store import Key
from gateway.state.store_clock import StoreClock
from tests.state.conformance import KEY, REFUSAL, WHOSE, StoreContract, reading, shown
from tests.support.redis_servers import RedisProcess, needs_redis

pytestmark = needs_redis
ROOTS = count()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    process = RedisProcess()
    yield process
    process.close()


class TestRedisStore(StoreContract):
    source: Source = staticmethod(packaged)

    @pytest.fixture(autouse=True)
    async def _redis(self, redis: RedisProcess) -> AsyncIterator[None]:
        self.redis = redis
        self.stores: list[RedisStore] = []
        yield
        for store in self.stores:
            await store.close()

    def make(self, *, max_entries: int = 100) -> RedisStore:
        server = RedisServer(
            self.redis.url, f"t{next(ROOTS)}", timeout=8.0, clock=StoreClock(), source=self.source
        )
        store = RedisStore(server, Sealed(b"k" * 32), max_entries=max_entries)
        self.stores.append(store)
        return store

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture
async def own() -> AsyncIterator[RedisProcess]:
    """A server of one test's own, which it may do anything to."""
    process = RedisProcess()
    yield process
    process.close()


@contextlib.asynccontextmanager
async def store_on(
    process: RedisProcess, *, timeout: float = 8.0, settle: float = 0.0, clock: StoreClock | None = None
) -> AsyncIterator[RedisStore]:
    server = RedisServer(process.url, "t", timeout=timeout, clock=clock or StoreClock(), settle=settle)
    store = RedisStore(server, Sealed(b"k" * 32), max_entries=100)
    try:
        yield store
    finally:
        await store.close()


async def back(store: RedisStore) -> None:
    """Until the server is connected to again."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await store.stamp("back")
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("reloaded", [True, False])
async def test_what_was_there_before_everything_was_flushed_is_never_current_again(
    own: RedisProcess, reloaded: bool
) -> None:
    async with store_on(own, settle=0.0 if reloaded else 2.0) as store:
        if reloaded:
            await back(store)
            store._server.settles(2.0)
        before = await reading(store, KEY)
        await store.put(KEY, before)
        await store.accept(WHOSE, "connected", 2.0)
        own.command("FLUSHALL")
        assert not await store.put(KEY, before)
        view = await store.view(KEY, WHOSE)
        assert view.generation > before.generation
        assert view.reading is None
        assert view.accepted is not None, "S5: nobody knows what was accepted"
        assert (view.accepted.value, view.accepted.until > view.time) == (None, True)


async def test_what_another_server_wrote_is_forgotten_since_its_last_writes_may_be_lost() -> None:
    """A restart that loads what was saved, or a fail-over: here a server that kept all but who it is."""
    process = RedisProcess("--appendonly", "yes", "--appendfsync", "always")
    try:
        async with store_on(process, settle=2.0) as store:
            forgotten: list[None] = []
            store._server.on_forgotten.append(lambda: forgotten.append(None))
            before = await reading(store, KEY)
            await store.put(KEY, before)
            assert shown(await store.view(KEY, WHOSE)) is not None
            process.stop()
            with pytest.raises(StoreUnavailable):
                await store.view(KEY, WHOSE)
            process.start()
            await back(store)
            view = await store.view(KEY, WHOSE)
            assert view.reading is not None, "it can be revalidated"
            assert view.generation > before.generation
            assert view.accepted is not None
            assert forgotten == [None]
    finally:
        process.close()


async def test_what_was_asked_for_at_a_server_that_lost_its_writes_is_not_put_at_another() -> None:
    """Its generation may have been drawn by a clock that was ahead, and seem to be newer than any there."""
    process = RedisProcess()
    try:
        async with store_on(process) as store:
            before = await reading(store, KEY)
            process.stop()
            process.start()
            await back(store)
            assert not await store.put(KEY, structs.replace(before, generation=before.generation + 10**9))
            assert await store.put(KEY, await reading(store, KEY))
    finally:
        process.close()


async def test_a_server_that_hangs_is_an_error_in_time_and_does_nothing_of_it_later(
    own: RedisProcess,
) -> None:
    async with store_on(own, timeout=0.5) as store:
        await back(store)
        await store.accept(WHOSE, "connected", 2.0)
        own.signal(signal.SIGSTOP)
        began = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailable):
            await store.accept(WHOSE, "alerting", 2.0)
        assert asyncio.get_running_loop().time() - began < 3.0
        with pytest.raises(StoreUnavailable):
            await store.view(KEY, WHOSE)
        own.signal(signal.SIGCONT)
        await back(store)
        accepted = (await store.view(KEY, WHOSE)).accepted
        assert accepted is not None
        assert accepted.value == "connected"


class SlowClock(StoreClock):
    late = 0  # so many times it says a time that is long past

    def now(self) -> float:
        now = super().now()
        if not self.late:
            return now
        self.late -= 1
        return now - 60.0


async def test_what_came_too_late_is_asked_once_more_and_no_more_often(own: RedisProcess) -> None:
    clock = SlowClock()
    async with store_on(own, clock=clock) as store:
        await back(store)
        before = (await store.stamp("c1")).generation
        clock.late = 1
        await store.invalidate("c1")
        after = (await store.stamp("c1")).generation
        assert after > before
        clock.late = 2
        with pytest.raises(StoreUnavailable, match="too late"):
            await store.invalidate("c1")
        assert (await store.stamp("c1")).generation == after


async def test_scripts_that_the_server_has_dropped_are_sent_again(own: RedisProcess) -> None:
    async with store_on(own) as store:
        await store.stamp("c1")
        own.command("SCRIPT", "FLUSH")
        assert await store.put(KEY, await reading(store, KEY))


async def test_every_key_ends_by_itself_and_none_names_anybody(own: RedisProcess) -> None:
    async with store_on(own) as store:
        body = b'{"secret": "what only A may see"}'
        await store.put(KEY, await reading(store, KEY, body))
        await store.accept(WHOSE, "connected", 2.0)
        await store.pause("A", REFUSAL, 60.0)
        await store.suspend("c1")
        keys = [line for line in own.command("KEYS", "*").split(b"\r\n") if line.startswith(b"t")]
        assert len(keys) >= 6
        for one in keys:
            assert int(own.command("PTTL", one.decode())[1:]) > 0, one
            assert re.fullmatch(rb"t(:index)?(:\{?[0-9a-f]{32}\}?|:[a-z]+)*", one)
        place = store.keys(KEY, WHOSE)[1]
        assert b"only A" not in own.command("HGETALL", place)


async def test_a_reading_opens_for_nobody_else_nor_in_another_place(own: RedisProcess) -> None:
    """S6, also where whoever has the server puts one in another's place."""
    other = Key(KEY.conversation, KEY.target, "B")
    async with store_on(own) as store, store_on(own) as fresh:
        await store.put(KEY, await reading(store, KEY))
        own.command("COPY", store.keys(KEY, WHOSE)[1], store.keys(other, WHOSE)[1])
        assert (await fresh.view(other, WHOSE)).reading is None
        assert shown(await fresh.view(KEY, WHOSE)) == b"{}"
        own.command("HSET", store.keys(KEY, WHOSE)[1], "t", str(store.now() + 5))
    async with store_on(own) as store:
        assert (await store.view(KEY, WHOSE)).reading is None, "it was never read at that time"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy allkeys-lru"),
        (("--replicaof", "127.0.0.1 1"), "replica"),
        (("--requirepass", "secret"), "NOAUTH"),
    ],
)
async def test_a_server_on_which_no_promise_can_be_kept_is_refused(
    options: tuple[str, ...], said: str
) -> None:
    process = RedisProcess(*options)
    try:
        async with store_on(process) as store:
            with pytest.raises(StoreUnavailable, match=said):
                await store.stamp("c1")
    finally:
        process.close()


async def test_a_server_without_memory_left_is_an_error(own: RedisProcess) -> None:
    async with store_on(own) as store:
        await store.stamp("c1")
        own.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.stamp("c2")


async def test_two_processes_see_each_others_writes(own: RedisProcess) -> None:
    async with store_on(own) as one, store_on(own) as other:
        await one.put(KEY, await reading(one, KEY, b"{1}"))
        assert shown(await other.view(KEY, WHOSE)) == b"{1}"
        kept = (await other.view(KEY, WHOSE)).reading
        assert (await other.view(KEY, WHOSE)).reading is kept, "what was opened once is not sent again"
        await one.invalidate(None)
        assert shown(await other.view(KEY, WHOSE)) is None


@pytest.mark.parametrize(
    ("url", "host", "service", "database"),
    [
        ("redis://r", ("r", 6379), None, 0),
        ("rediss://u:p%40@r:7000/3", ("r", 7000), None, 3),
        ("redis+sentinel://:p@s1,s2:7/main/2", ("s1", 26379), "main", 2),
        ("rediss+cluster://:p@[::1],n2:7", ("::1", 6379), None, 0),
    ],
)
def test_urls(url: str, host: tuple[str, int], service: str | None, database: int) -> None:
    address = Address.parse(url)
    assert (address.hosts[0], address.service, address.database) == (host, service, database)
    assert "p" not in str(address).replace("redis", "")
    assert (address.cluster, address.tls) == ("cluster" in url, url.startswith("rediss"))


@pytest.mark.parametrize(
    "url",
    [
        "http://r",
        "redis://",
        "redis://a,b",
        "redis://r/x",
        "redis://r?x=1",
        "unix://",
        "unix+cluster:///x",
        "redis+cluster://a/1",
        "redis+cluster://a,",
        "redis+sentinel://a",
        "redis+other://a",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Address.parse(url)
