"""The store in memory: it keeps the contract, within its bounds."""

from __future__ import annotations

import weakref

import pytest

from gateway.state.memory import OVERHEAD, MemoryStore
from gateway.state.store import Key
from tests.state.conformance import REFUSAL, Clock, StoreContract, key, reading, shown

WHOSE = ("state", "c1", "p1")


class TestMemoryStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _clock(self) -> None:
        self.clock = Clock()

    def make(self, *, max_entries: int = 100) -> MemoryStore:
        return MemoryStore(max_entries, 2**20, self.clock)

    async def advance(self, seconds: float) -> None:
        self.clock.time += seconds

    def test_it_can_always_tell_at_once(self) -> None:
        view = self.make().try_view(key("c1"), WHOSE)
        assert (view.reading, view.accepted, view.pause) == (None, None, None)


def small(max_entries: int = 1_000, max_bytes: int = 2**30) -> MemoryStore:
    return MemoryStore(max_entries, max_bytes, Clock())


async def test_each_table_holds_no_more_entries_than_it_may() -> None:
    store = small()
    for number in range(20_000):
        one = key(f"c{number}", f"caller{number}")
        assert await store.put(one, await reading(store, one))
        await store.accept(("state", f"c{number}", "p1"), "connected", 2.0)
        await store.pause(one.credential, REFUSAL, 60.0)
        await store.invalidate(f"other{number}")

    assert store.sizes() == (1_000, 1_000, 1_000, 1_000)


async def test_readings_take_no_more_bytes_than_they_may() -> None:
    store = small(max_bytes=10 * (OVERHEAD + 1000))
    keys = [Key("c", b"/%d" % number, "A") for number in range(100)]
    for one in keys:
        assert await store.put(one, await reading(store, one, b" " * 1000))
    assert store.sizes().readings == 10

    # One that is replaced gives back what it took.
    for number in range(100):
        assert await store.put(keys[-1], await reading(store, keys[-1], b" " * (number % 7)))
    assert store.sizes().readings == 10
    assert await store.put(keys[0], await reading(store, keys[0], b" " * (OVERHEAD + 2000)))
    assert store.sizes().readings in {9, 10}


async def test_what_is_larger_than_the_store_is_not_kept_and_costs_no_other() -> None:
    store = small(max_bytes=4096)
    little, large = Key("c", b"/small", "A"), Key("c", b"/large", "A")

    assert await store.put(little, await reading(store, little))
    assert not await store.put(large, await reading(store, large, b" " * 4096))
    assert shown(await store.view(little, WHOSE)) is not None


async def test_the_reading_that_was_used_longest_ago_is_dropped_first() -> None:
    store = small(max_entries=3)
    for name in ("c1", "c2", "c3"):
        await store.put(key(name), await reading(store, key(name)))
    await store.view(key("c1"), WHOSE)
    await store.put(key("c2"), await reading(store, key("c2")))
    await store.put(Key("c2", b"/another", "A"), await reading(store, key("c2")))

    assert [shown(store.try_view(key(name), WHOSE)) is not None for name in ("c1", "c2", "c3")] == [
        True,
        True,
        False,
    ]


async def test_nothing_is_remembered_of_a_pause_that_has_ended() -> None:
    store = small()
    await store.pause("A", REFUSAL, 0.05)
    while (await store.view(key("c1"), WHOSE)).pause is not None:
        """Each look at the clock takes its time."""

    assert store.sizes().pauses == 0


async def test_a_reading_that_was_dropped_is_held_by_nobody() -> None:
    store = small(max_entries=1)
    put = []
    for number in range(10):
        one = await reading(store, key(f"c{number}"))
        await store.put(key(f"c{number}"), one)
        put.append(weakref.ref(one))
        del one

    assert [one() is not None for one in put] == [False] * 9 + [True]
