"""
A store that fails: before a call leaves, that refuses it; after, it is made up for before it matters.
The same over real sockets is in tests/end_to_end/test_store_failures.py, and at random in the simulation.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from gateway.errors import StoreUnavailable
from gateway.proxy.buffered import BufferBudget
from gateway.repairs import Unfilled
from gateway.state.lookup import MISSED_KEPT, Lookups
from gateway.state.lookup_results import LookupRefused, LookupResult, LookupResults
from gateway.state.store import Key, Reading, Store
from gateway.state.sweeps import SweepRate
from tests.state.test_lookup import JSON, TARGET, Bench, document
from tests.support.stores import FailingStore, Failure, LateStore

EVERYTHING = ("view", "stamp", "put", "invalidate", "accept", "pause")


class Failing(Bench):
    """`failing` says what fails, and whether it is done all the same."""

    def __init__(self, late: float = 0.0) -> None:
        super().__init__()
        self.failing: dict[str, Failure] = {}
        failing: Store = FailingStore(self.store, self.failing.get)
        self.lookups = Lookups(
            LateStore(failing, Random(1), late) if late else failing,
            self.transport,
            wall=lambda: self.now,
            counts=self.counts,
            max_body=1024,
            max_pause=60.0,
            sweeps=SweepRate(2, 5.0, lambda: self.now),
            budget=BufferBudget(2**20, 1024),
            ignored=frozenset(),
            isolates=True,
        )

    def fail(self, *names: str, how: Failure = "not done") -> None:
        self.failing.update(dict.fromkeys(names, how))

    def shows(self, *states: str) -> None:
        for state in states:
            self.transport.will(200, document(state), JSON)

    @property
    def missed(self) -> int:
        return len(self.lookups._missed)


async def test_without_a_view_there_is_no_look_up() -> None:
    bench = Failing()
    bench.fail("view")

    with pytest.raises(StoreUnavailable):
        await bench.result()
    assert bench.transport.asked == []
    assert bench.counts["gateway_store_failures_total",] == 1


async def test_what_was_looked_up_may_be_filled_only_if_its_generation_can_be_told() -> None:
    bench = Failing()
    bench.shows("connected")
    results = LookupResults({"state": await bench.result()})
    bench.fail("stamp")

    with pytest.raises(StoreUnavailable):
        await bench.lookups.usable(results)
    assert bench.counts["gateway_store_failures_total",] == 1
    bench.failing.clear()
    assert await bench.lookups.usable(results)


@pytest.mark.parametrize("how", ["done", "not done"])
async def test_what_cannot_be_kept_is_found_all_the_same_and_costs_a_look_up(how: Failure) -> None:
    bench = Failing()
    bench.shows("connected", "connected")
    bench.fail("put", how=how)

    assert (await bench.result()).value == "connected"
    assert bench.counts["gateway_store_failures_total",] == 1
    bench.failing.clear()
    assert (await bench.result()).source == ("cache" if how == "done" else "lookup")


async def test_a_pause_that_cannot_be_kept_holds_nothing_back() -> None:
    bench = Failing()
    bench.transport.will(429, b"", (b"retry-after", b"9"))
    bench.shows("connected")
    bench.fail("pause")

    with pytest.raises(LookupRefused):
        await bench.result()
    assert (await bench.result()).value == "connected"


async def test_a_client_s_own_get_goes_on_and_is_not_kept() -> None:
    bench = Failing()
    stamp = await bench.lookups.stamp("c1")
    assert stamp is not None
    bench.fail(*EVERYTHING)

    assert await bench.lookups.stamp("c1") is None
    read = Reading(document(), stamp.time, stamp.generation, learned=True)
    await bench.lookups.prime(Key("c1", TARGET, "A"), read, None)
    assert bench.store.sizes().readings == 0
    assert bench.counts["gateway_lookups_total", "learned"] == 0


async def test_a_write_that_cannot_suspend_leaves_and_nothing_read_before_is_used_from_then_on() -> None:
    """S3: also while it is under way, and though the store never hears of it."""
    bench = Failing()
    bench.shows("connected", "active")
    old = await bench.result()
    bench.fail("suspend")
    write = await bench.lookups.begin_write("c1", "A", exclusive=True)
    assert (write.suspension, bench.missed) == (None, 1)
    assert bench.lookups.try_cached([bench.request()]) is None
    bench.failing.clear()
    assert not await bench.lookups.usable(LookupResults({"state": old}))
    await bench.lookups.changed_nothing(write)
    assert (await bench.result()).value == "active"


async def test_what_was_missed_is_told_as_soon_as_it_can_be() -> None:
    """So that others forget it too; and no more writes go on untold than can be remembered."""
    bench = Failing()
    before = (await bench.store.stamp("c3")).generation
    bench.fail("suspend", "invalidate")
    for number in range(MISSED_KEPT):
        await bench.lookups.begin_write(f"c{number}", "A", exclusive=True)
    with pytest.raises(StoreUnavailable):
        await bench.lookups.begin_write("another", "A", exclusive=True)
    await bench.lookups.make_up()
    assert bench.missed == MISSED_KEPT
    bench.failing.clear()
    await bench.lookups.make_up()
    assert bench.missed == 0
    assert (await bench.store.stamp("c3")).generation > before


class ServersOfTheirOwn(FailingStore):
    """What is about c1 is with a server that can't be asked, and all else with another."""

    async def invalidate(self, conversation: str | None) -> None:
        if conversation == "c1":
            raise StoreUnavailable("c1's")
        await super().invalidate(conversation)


async def test_what_one_server_missed_holds_up_nothing_that_is_with_another() -> None:
    bench = Failing()
    bench.lookups._store = ServersOfTheirOwn(bench.store, bench.failing.get)
    bench.fail("suspend", "invalidate")
    for conversation in ("c1", "c2", "c3"):
        await bench.lookups.begin_write(conversation, "A", exclusive=True)
    bench.failing.clear()
    await bench.lookups._catch_up("c4")
    assert [*bench.lookups._missed] == ["c1", "c3"], "the one that has waited longest was told"
    await bench.lookups._catch_up("c4")
    assert [*bench.lookups._missed] == ["c3", "c1"], "one that can't be told waits behind all others"
    await bench.lookups.make_up()
    assert [*bench.lookups._missed] == ["c1"]
    with pytest.raises(StoreUnavailable):
        await bench.lookups._catch_up("c1")


@pytest.mark.parametrize("conversation", ["c1", None])
@pytest.mark.parametrize("how", ["done", "not done"])
async def test_an_invalidation_that_was_missed_is_made_up_for_before_anything_is_read(
    conversation: str | None, how: Failure
) -> None:
    """S3, S5."""
    bench = Failing()
    bench.shows("connected", "active", "active")
    old = await bench.result()
    bench.now += 0.1
    bench.fail("invalidate", how=how)
    await bench.lookups.invalidate_after(conversation)
    assert bench.missed == 1

    # While the store can't be told, nothing is read; and what is at hand is of no use.
    assert bench.lookups.try_cached([bench.request()]) is None
    with pytest.raises(StoreUnavailable):
        await bench.result()
    with pytest.raises(StoreUnavailable):
        await bench.lookups.usable(LookupResults({"state": old}))

    bench.failing.clear()
    assert not await bench.lookups.usable(LookupResults({"state": old}))
    assert (await bench.result()).value == "active"
    assert bench.missed == 0
    assert bench.lookups.try_cached([bench.request()]) is not None


async def test_a_call_in_flight_is_not_filled_with_what_was_read_before_a_missed_invalidation() -> None:
    bench = Failing()
    bench.shows("connected")
    results = LookupResults({"state": await bench.result()})
    bench.fail("invalidate")
    await bench.lookups.invalidate_after("c1")
    bench.failing.clear()

    assert not await bench.lookups.usable(results)


async def test_a_write_to_any_conversation_counts_at_once_also_when_it_is_missed() -> None:
    bench = Failing()
    bench.shows("connected")
    results = LookupResults({"state": await bench.result()})
    assert bench.lookups.usable_without_store(results)
    bench.fail("invalidate")
    await bench.lookups.invalidate_after(None)

    assert not bench.lookups.usable_without_store(results)


async def test_of_an_accepted_value_that_was_missed_it_is_known_that_it_is_not_known() -> None:
    """S5: until it has settled no look-up can agree with it, whatever it shows."""
    bench = Failing()
    bench.shows("connected", "active", "active", "active")
    bench.fail("accept", "invalidate")
    await bench.lookups.accept("c1", bench.request(settle=0.04).target, "active")
    await bench.lookups.invalidate_after("c1")
    bench.failing.clear()

    assert await bench.lookups.look_up(bench.request(settle=0.04)) == Unfilled("unsettled")
    bench.now += 0.05
    assert (await bench.result(settle=0.04)).value == "active"


async def test_what_was_accepted_before_the_store_was_lost_is_known_here_afterwards() -> None:
    """S5, where fills are isolated."""
    bench = Failing()
    bench.shows(*["connected"] * 9, "active")
    await bench.lookups.accept("c1", bench.request(settle=0.04).target, "active")
    bench.fail(*EVERYTHING)

    found = await bench.lookups.look_up_isolated([bench.request(settle=0.0)])
    assert (found.values, found.unfilled) == ({}, "unsettled")
    bench.now += 0.05
    found = await bench.lookups.look_up_isolated([bench.request(settle=0.0)])
    assert found.values["state"].value == "connected", "it has settled"
    await bench.lookups.accept("c1", bench.request(participant="p2").target, "active")
    assert len(bench.lookups._accepted_here) == 1, "nor is it kept longer"


async def test_of_values_that_were_accepted_untold_each_subject_is_kept_once() -> None:
    bench = Failing()
    target = bench.request().target
    bench.fail("accept", "invalidate", "suspend")
    for _ in range(MISSED_KEPT + 1):
        await bench.lookups.accept("c1", target, "active")
    assert (bench.missed, bench.lookups._missed_subjects) == (1, 1)
    await bench.lookups.begin_write("c1", "A", exclusive=True)
    for number in range(MISSED_KEPT):
        await bench.lookups.accept("c1", replace(target, subject=("state", "c1", f"q{number}")), "active")
    with pytest.raises(StoreUnavailable, match="more writes than can be remembered"):
        await bench.lookups.begin_write("c1", "A", exclusive=True)
    bench.failing.clear()
    await bench.lookups.make_up()
    assert (bench.missed, bench.lookups._missed_subjects) == (0, 0)


async def test_a_newer_accepted_value_is_not_replaced_by_one_that_was_missed() -> None:
    bench = Failing()
    target = bench.request().target
    bench.fail("accept")
    await bench.lookups.accept("c1", target, "alerting")
    bench.failing.clear()
    await bench.lookups.begin_write("c1", "A", exclusive=True)
    await bench.lookups.accept("c1", target, "active")
    bench.shows("active")

    assert (await bench.result()).value == "active"


async def test_what_is_missed_again_while_it_is_made_up_for_is_not_lost() -> None:
    bench = Failing(late=0.01)
    bench.fail("invalidate")
    await bench.lookups.invalidate_after("c1")
    bench.failing.clear()
    catching_up = asyncio.ensure_future(bench.lookups._catch_up("c2"))
    await asyncio.sleep(0)
    bench.lookups._miss("c1", ("state", "c1", "p1"), 2.0)
    await catching_up

    assert [missed.subjects for missed in bench.lookups._missed.values()] == [{("state", "c1", "p1"): 2.0}]


@pytest.mark.parametrize("name", ["invalidate", "accept"])
async def test_what_fails_when_its_caller_has_gone_is_made_up_for_too(name: str) -> None:
    bench = Failing(late=0.01)
    bench.fail(name)
    call = (
        bench.lookups.invalidate_after("c1")
        if name == "invalidate"
        else bench.lookups.accept("c1", bench.request().target, "active")
    )
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.03)

    assert bench.missed == 1


async def test_what_is_at_hand_needs_no_store_that_can_be_told() -> None:
    """As long as nothing was missed."""
    bench = Failing()
    bench.shows("connected")
    await bench.result()
    bench.fail(*EVERYTHING)

    results = bench.lookups.try_cached([bench.request()])
    assert results is not None
    assert isinstance(results.values["state"], LookupResult)
