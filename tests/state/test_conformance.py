"""The contract of a store holds for one that is elsewhere, and finds out those that do not keep it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.state.memory import MemoryStore
from gateway.state.store import Key, Reading, Store, View
from tests.simulation.mutants import NoGenerations, ReusedGenerations, Trusting, TwoSteps
from tests.state.conformance import Clock, StoreContract
from tests.support.stores import FailingStore, LateStore


class TestStoreElsewhere(StoreContract):
    """One that can tell nothing at once, and takes its time going and coming."""

    LONGEST = 0.0005  # seconds that a way takes

    @pytest.fixture(autouse=True)
    def _clock(self) -> None:
        self.clock = Clock()

    def make(self, *, max_entries: int = 100) -> Store:
        store = FailingStore(MemoryStore(max_entries, 2**20, self.clock), lambda name: None)
        return LateStore(store, Random(1), self.LONGEST)

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(4 * self.LONGEST)
        self.clock.time += seconds


class Contract(StoreContract):
    def __init__(self, kind: Callable[[int, int, Clock], Store]) -> None:
        self.kind = kind
        self.clock = Clock()

    def make(self, *, max_entries: int = 100) -> Store:
        return self.kind(max_entries, 2**20, self.clock)

    async def advance(self, seconds: float) -> None:
        self.clock.time += seconds


class Torn(MemoryStore):
    """A view in two steps: something may happen between them."""

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        before = await super().view(key, subject)
        await asyncio.sleep(0)
        return replace(await super().view(key, subject), accepted=before.accepted)


class Overwriting(MemoryStore):
    """Whatever is put last is what is kept."""

    async def put(self, key: Key, reading: Reading) -> bool:
        self._readings.pop(key, None)
        return await super().put(key, reading)


class Forgetful(MemoryStore):
    """Nothing is said for an accepted value that was dropped."""

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        await super().accept(subject, value, settle)
        self._dropped = None


class Endless(MemoryStore):
    """A pause never ends."""

    def _current_pause(self, credential: str, time: float) -> Any:
        return self._pauses.get(credential)


class Interruptible(MemoryStore):
    """An invalidation is called off with its caller."""

    async def invalidate(self, conversation: str | None) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await super().invalidate(conversation)


class Behind(MemoryStore):
    """Its clock lags behind what it says of times."""

    def __init__(self, max_entries: int, max_bytes: int, clock: Clock) -> None:
        super().__init__(max_entries, max_bytes, clock)
        self._true, self.now = clock, lambda: clock() - 0.1

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View:
        return replace(super().try_view(key, subject), time=self._true())


BROKEN: list[tuple[type[MemoryStore], str]] = [
    (Torn, "test_a_view_is_one_step"),
    (TwoSteps, "test_putting_is_one_step"),
    (NoGenerations, "test_what_an_invalidation_overtook_is_not_kept"),
    (ReusedGenerations, "test_a_generation_never_comes_back_however_many_conversations_there_are"),
    (ReusedGenerations, "test_what_was_read_before_its_generation_was_dropped_is_never_current_again"),
    (Overwriting, "test_a_later_reading_replaces_an_earlier_one_but_never_the_other_way_round"),
    (Forgetful, "test_where_an_accepted_value_was_dropped_its_span_is_still_told"),
    (Endless, "test_a_pause_is_one_credentials_alone_and_ends"),
    (Interruptible, "test_invalidating_and_accepting_are_done_once_called"),
    (Behind, "test_its_clock_never_goes_back_and_is_never_behind_what_it_says"),
]
GIVEN: dict[str, list[Any]] = {
    "test_a_view_is_one_step": list(range(10)),
    "test_putting_is_one_step": list(range(10)),
    "test_what_an_invalidation_overtook_is_not_kept": ["c1", None],
    "test_invalidating_and_accepting_are_done_once_called": [0, 1, 2],
}


async def refuted(kind: type[MemoryStore], name: str) -> bool:
    for given in GIVEN.get(name, [None]):
        test = getattr(Contract(kind), name)
        try:
            await (test(given) if name in GIVEN else test())
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(("kind", "name"), BROKEN)
async def test_a_store_that_does_not_keep_it_is_found_out(kind: type[MemoryStore], name: str) -> None:
    assert await refuted(kind, name)
    assert not await refuted(MemoryStore, name)


@pytest.mark.parametrize("name", ["test_a_view_is_one_step", "test_putting_is_one_step"])
async def test_a_store_that_keeps_it_another_way_is_not(name: str) -> None:
    assert not await refuted(Trusting, name)
