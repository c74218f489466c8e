"""
Several gateways on one Redis, in virtual time: the promises hold among them too, whatever befalls them, but
for what docs/promises.md names. And those with a guard less are found out.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from gateway.backend import PARTS, Parts
from gateway.rules import FillTarget
from gateway.state.lookup import Lookups
from gateway.state.redis_cluster import ClusterStore
from gateway.state.redis_locks import RedisLocks
from gateway.state.shared import SharedState, shared_state
from gateway.state.store_clock import StoreClock
from tests.simulation.cluster import Blow, Cluster, Makes, Plan, broken, drawn, on_a_cluster, staged
from tests.simulation.plays import bulk, explicit, legacy, other
from tests.simulation.promises import Evidence, sources
from tests.simulation.redis_mutants import scripted
from tests.simulation.schedule import Fate
from tests.simulation.story import story

pytestmark = pytest.mark.no_cover

BLOCK, BLOCKS = 75, 2
SOAK = int(os.environ.get("CLUSTER_SCHEDULES", "100000"))
FOUND_WITHIN = 60  # from the seed at which the search for a mutant begins


def examined(first: int, number: int, kind: Callable[[Plan], Plan] = lambda plan: plan) -> Counter[str]:
    figures: Counter[str] = Counter()
    for seed in range(first, first + number):
        plan = kind(drawn(seed))
        history = Cluster(plan).run()
        found = broken(plan, history)
        assert not found, f"seed {seed}, {plan.blows}: {'; '.join(map(str, found))}"
        figures.update(blow.event for blow in plan.blows)
        figures["fills"] += len(Evidence(history).fills)
    return figures


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_schedule_of_several_gateways_breaks_a_promise(block: int) -> None:
    figures = examined(block * BLOCK, BLOCK)

    assert figures["fills"] > BLOCK
    assert len(figures) == 9, "each of the eight blows falls"


def test_nor_does_one_of_some_that_share_a_redis_cluster() -> None:
    assert examined(0, 12, on_a_cluster)["fills"] > 12


@pytest.mark.soak
@pytest.mark.parametrize("kind", [lambda plan: plan, on_a_cluster], ids=["one server", "a cluster"])
def test_no_schedule_of_many_breaks_a_promise(kind: Callable[[Plan], Plan]) -> None:
    examined(0, SOAK, kind)


@pytest.mark.parametrize(
    "seed", [1_013_091, 1_023_572, 1_060_828, 1_095_756, 1_099_748, 2_004_631, 2_025_955]
)
def test_nor_do_those_that_seemed_to(seed: int) -> None:
    """
    A clock that was set back, a write of all whose process was killed, one of which a message had yet to
    tell, a write whose lock was lost, and a GET whose answer came while its process was stopped.
    """
    examined(seed, 1)


@pytest.mark.parametrize("seed", [7, 25, 29])
def test_a_plan_is_a_function_of_its_seed(seed: int) -> None:
    one, other = (list(story(Cluster(drawn(seed)).run())) for _ in range(2))

    assert one == other


# --- with a guard less


class LocalClock(StoreClock):
    """Ages count by this process's own clock, whatever Redis says."""

    def now(self) -> float:
        return self.local()

    def saw(self, sent: float, said: float, told: float) -> tuple[float, bool]:
        return self.local(), False


class Later(Lookups):
    """What is only done once the client has its answer."""

    def _later(self, what: Callable[[], Awaitable[None]]) -> None:
        async def done() -> None:
            await asyncio.sleep(0.3)
            await what()

        task = asyncio.get_running_loop().create_task(done())
        self.__dict__.setdefault("_to_do", set()).add(task)
        task.add_done_callback(self.__dict__["_to_do"].discard)


class InvalidatesLater(Later):
    async def invalidate_after(self, conversation: str | None) -> None:
        self._later(partial(super().invalidate_after, conversation))


class AcceptsLater(Later):
    async def accept(self, conversation: str | None, target: FillTarget, value: str) -> None:
        self._later(partial(super().accept, conversation, target, value))


def unchecked(*given: Any, **rest: Any) -> SharedState:
    made = shared_state(*given, **rest)
    far = made.locks._far
    assert isinstance(far, RedisLocks)
    far.lasts = lambda lease: True  # type: ignore[method-assign]
    return made


def by_the_local_clock(*given: Any, clock: StoreClock, **rest: Any) -> SharedState:
    return shared_state(*given, clock=LocalClock(clock.local), **rest)


def telling_one_part(*given: Any, **rest: Any) -> SharedState:
    made = shared_state(*given, **rest)
    store = made.store
    assert isinstance(store, ClusterStore)
    told = store.invalidate

    async def invalidate(conversation: str | None) -> None:
        await (told(conversation) if conversation is not None else store._parts[0].store.invalidate(None))

    store.invalidate = invalidate  # type: ignore[method-assign]
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMutant:
    """`promises`: one of them is seen to break."""

    promises: frozenset[str]
    parts: Parts = PARTS
    makes: Makes = shared_state
    kind: Callable[[Plan], Plan] = lambda plan: plan
    first: int


MUTANTS = {
    "the local clock for age": ClusterMutant(
        promises=frozenset({"S2", "S5"}), makes=by_the_local_clock, first=140
    ),
    "release before the witness is stored": ClusterMutant(
        promises=frozenset({"S5"}), parts=Parts(lookups=AcceptsLater), first=200
    ),
    "invalidation after the client's reply": ClusterMutant(
        promises=frozenset({"S3", "S5"}), parts=Parts(lookups=InvalidatesLater), first=0
    ),
    "what is about all conversations is told to one part of a cluster": ClusterMutant(
        promises=frozenset({"S3"}), makes=telling_one_part, kind=on_a_cluster, first=110
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_several_gateways_with_a_guard_less_are_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]

    for seed in range(mutant.first, mutant.first + FOUND_WITHIN):
        plan = mutant.kind(drawn(seed))
        found = broken(plan, Cluster(plan, mutant.parts, mutant.makes).run())
        if any(mutant.promises & set(one.promise.split("+")) for one in found):
            return
    raise AssertionError(f"{name}: nothing was found in {FOUND_WITHIN} schedules")


def stopped_before_it_sends() -> Plan:
    """
    One gateway is stopped while its write has the lock and waits for a connection, for longer than its lease;
    when it goes on, a fill through the other is in flight.
    """
    return staged(
        (other("w", 0.0), legacy("f", 39.9)),
        {"w": 0, "f": 1},
        {"w": (Fate(wait=0.3),), "f": (Fate(), Fate(out=0.5, back=0.5))},
        Blow(at=0.1, event="pause", node=0, seconds=40.0),
    )


def flushed_after_a_write() -> Plan:
    """A GET is under way while the other gateway writes; then Redis loses all, before that GET is back."""
    return staged(
        (legacy("r", 0.0), other("w", 0.5), legacy("l", 1.5)),
        {"r": 0, "w": 1, "l": 1},
        {"r": (Fate(back=2.0),), "w": (), "l": (Fate(back=1.0),)},
        Blow(at=1.0, event="flush"),
    )


def flushed_before_it_leaves() -> Plan:
    """A fill has lock and value, and waits for a connection, when Redis loses all; then others write."""
    return staged(
        (legacy("r", 0.0), legacy("f", 1.0), other("w", 1.15)),
        {"r": 0, "f": 0, "w": 1},
        {"r": (), "f": (Fate(wait=0.3),), "w": ()},
        Blow(at=1.1, event="flush"),
    )


def accepted_before_redis_is_lost() -> Plan:
    """The same gateway then isolates its fills, and the upstream lags."""
    plan = staged(
        (explicit("w", 1.0, "s5"), legacy("f", 1.8)),
        {"w": 0, "f": 0},
        {"w": (), "f": (Fate(lag=1.5),) * 9},
        Blow(at=1.5, event="redis stops", seconds=9.0),
    )
    terms = replace(plan.schedule.terms, settle=3.0)
    return replace(plan, schedule=replace(plan.schedule, terms=terms), isolates=True)


def killed_amid_a_write_of_all() -> Plan:
    """It takes effect after its gateway is gone; what the other reads meanwhile is from before it."""
    return staged(
        (bulk("w", 0.0), legacy("r", 0.2), legacy("f", 1.0)),
        {"w": 0, "r": 1, "f": 1},
        {"w": (Fate(out=0.8),), "r": (), "f": ()},
        Blow(at=0.1, event="kill", node=0),
    )


@pytest.mark.parametrize("seed", [1_027_522, 1_030_409])
def test_when_redis_s_clock_is_set_forward_what_others_read_since_counts_as_younger(seed: int) -> None:
    """docs/promises.md names it."""
    plan = drawn(seed)
    history = Cluster(plan).run()

    assert not broken(plan, history)
    assert {one.promise for one in broken(plan, history, frozenset())} == {"S2"}


def test_a_fill_whose_lock_was_lost_leaves_with_what_it_had() -> None:
    """docs/promises.md names it."""
    plan = flushed_before_it_leaves()
    history = Cluster(plan).run()

    assert not broken(plan, history)
    assert "S3" in {one.promise for one in broken(plan, history, frozenset())}


class Forgetful(Lookups):
    def _remember(self, subject: tuple[str, ...], value: str, settle: float) -> None:
        """What was accepted is in the store alone."""


def test_what_a_process_that_isolates_has_told_its_callers_it_fills() -> None:
    """S5, which is excused between processes only."""
    plan = accepted_before_redis_is_lost()

    assert not broken(plan, Cluster(plan).run())
    found = broken(plan, Cluster(plan, replace(PARTS, lookups=Forgetful)).run())
    assert {one.promise for one in found} == {"S5"}


def test_of_a_write_of_all_whose_process_was_killed_nobody_hears() -> None:
    """What is at most `max_age` old is filled all the same: docs/promises.md names it."""
    plan = killed_amid_a_write_of_all()
    history = Cluster(plan).run()

    assert not broken(plan, history, frozenset())
    assert {one.promise for one in sources(Evidence(history))} == {"S3"}


def test_who_was_stopped_longer_than_the_lease_of_its_locks_sends_nothing() -> None:
    plan = stopped_before_it_sends()

    assert not broken(plan, Cluster(plan).run(), frozenset())
    found = broken(plan, Cluster(plan, makes=unchecked).run(), frozenset())
    assert "S4" in {one.promise for one in found}, "and one that does not look at its lease does"


def test_generations_are_not_used_again_when_redis_has_lost_its_data() -> None:
    plan = flushed_after_a_write()

    assert not broken(plan, Cluster(plan).run())
    # Counted from 1, and so from 1 again.
    counted = scripted(common=("local number = now\n", "local number = 1\n"))
    found = broken(plan, Cluster(plan, makes=counted).run())
    assert {"S3", "S5"} & {name for one in found for name in one.promise.split("+")}
