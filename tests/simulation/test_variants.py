"""
The promises about state where calls are tried untouched first, go to the operation for attributes, have their
bodies checked, or go to two upstreams whose conversations have the same ids.

A failure prints its seed; `python -m benchmarks.simulate --variant V --seed S --schedules 1 --trace` tells
it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.simulation.mutants import UNCHANGED, VARIANT_MUTANTS, Mutant
from tests.simulation.plays import kept, legacy, look_ups, other, sends, states
from tests.simulation.promises import ABSENT, Evidence
from tests.simulation.schedule import Climate, Fate, Request, Schedule, Terms
from tests.simulation.variants import TWO, examined
from tests.simulation.world import History

pytestmark = pytest.mark.no_cover

SAMPLE = {"on_reject": 20, "retarget": 40, "validate": 30, TWO: 12}
# What the sample must bring about, or it proves nothing.
HAPPENS = {
    "on_reject": ("filled", "cured"),
    "retarget": ("filled", "moved", "moved and accepted", "came back", "came back and filled"),
    "validate": ("filled", "refused for its body"),
    TWO: ("filled", "filled at the second"),
}
SOAK = 5_000
FOUND_WITHIN = 300  # seeds, for each mutant


def figures(histories: list[History]) -> Counter[str]:
    found: Counter[str] = Counter()
    for number, history in enumerate(histories):
        evidence = Evidence(history)
        last = {sent.id: sent for sent in evidence.writing}
        back = [last[sent.id] for sent in evidence.moved if sent.status in ABSENT]
        found["filled at the second" if number else "filled"] += len(evidence.fills)
        found["cured"] += sum(sent.status == 400 and last[sent.id].accepted for sent in evidence.writing)
        found["moved"] += len(evidence.moved)
        found["moved and accepted"] += sum(sent.accepted for sent in evidence.moved)
        found["came back"] += len(back)
        found["came back and filled"] += sum(sent.number in evidence.added and sent.accepted for sent in back)
        found["refused for its body"] += sum(told.refusal == "invalid-body" for told in history.told.values())
    return found


def unbroken(variant: str, number: int) -> Counter[str]:
    happened: Counter[str] = Counter()
    for seed in range(number):
        histories, found = examined(variant, seed)
        assert not found, f"{variant}, seed {seed}: {'; '.join(map(str, found))}"
        happened.update(figures(histories))
    return happened


@pytest.mark.parametrize("variant", SAMPLE)
def test_no_schedule_breaks_a_promise(variant: str) -> None:
    happened = unbroken(variant, SAMPLE[variant])

    assert not [name for name in HAPPENS[variant] if happened[name] < 2], happened


@pytest.mark.soak
@pytest.mark.parametrize("variant", SAMPLE)
def test_no_schedule_of_thousands_breaks_a_promise(variant: str) -> None:
    unbroken(variant, SOAK)


@pytest.mark.parametrize(
    ("variant", "name"), [(variant, name) for variant, ones in VARIANT_MUTANTS.items() for name in ones]
)
def test_a_gateway_with_a_guard_less_is_found_out(variant: str, name: str) -> None:
    mutant = VARIANT_MUTANTS[variant][name]

    for seed in range(FOUND_WITHIN):
        _, found = examined(variant, seed, mutant)
        if any(mutant.promise in violation.promise.split("+") for violation in found):
            assert not examined(variant, seed)[1], "and nothing is found in the gateway itself"
            return
    raise AssertionError(f"{name}: no violation of {mutant.promise} in {FOUND_WITHIN} schedules")


# --- named schedules


def test_a_call_with_nothing_but_attributes_is_a_write_that_needs_no_look_up() -> None:
    more = [replace(legacy(id, at), body=b'{"wrapup": 1}') for id, at in (("filled", 0.0), ("again", 0.2))]
    history = kept(legacy("r", 0.1), *more, retarget="none")

    (moved,) = sends(history, "r")
    assert moved.target.endswith("/participants/p1/attributes")
    assert [read.id for read in look_ups(history)] == ["filled", "again"]
    assert history.told["r"].status == 202


@pytest.mark.parametrize("status", [404, 405])
def test_where_there_is_no_such_operation_the_call_comes_back_and_is_filled(status: int) -> None:
    history = kept(legacy("r", 0.0), fates={"r": (Fate(status=status),)}, retarget="fill")

    assert states(history, "r") == [None, "s1"]
    assert history.told["r"].status == 202


@pytest.mark.parametrize(
    ("fate", "status"),
    [
        (Fate(status=500), 500),
        (Fate(status=408), 408),
        (Fate(loss="reply"), 502),
        (Fate(loss="silence"), 504),
        (Fate(loss="request"), 504),
    ],
)
def test_after_an_unknown_outcome_it_does_not_come_back(fate: Fate, status: int) -> None:
    history = kept(legacy("r", 0.0), fates={"r": (fate,)}, retarget="fill")

    assert len(sends(history, "r")) == 1
    assert history.told["r"].status == status


def at_both(mutant: Mutant, *actions: Request, second: tuple[Request, ...]) -> list[History]:
    """A conversation `c1` at either of two upstreams."""
    schedules = [
        Schedule(
            seed=0,
            actions=ones,
            terms=Terms(max_age=3.0),
            climate=Climate(shuffled=False, faults=1.0),
            conversations={"c1": {"p1": {"state": state, "held": "h1"}}},
            fates={one.id: (Fate(back=1.0) if one.method == "POST" else Fate(),) * 9 for one in ones},
        )
        for ones, state in ((actions, "s1"), (second, "s301"))
    ]
    return mutant.world(schedules[0], schedules[1]).histories()


@pytest.mark.parametrize("mutant", [UNCHANGED, VARIANT_MUTANTS[TWO]["one cache"]])
def test_what_one_upstream_told_fills_no_call_to_another(mutant: Mutant) -> None:
    first, second = at_both(mutant, legacy("r", 0.0), second=(legacy("filled", 0.5),))

    assert states(first, "r") == ["s1"]
    assert states(second, "filled") == ["s301" if mutant is UNCHANGED else "s1"]


@pytest.mark.parametrize("mutant", [UNCHANGED, VARIANT_MUTANTS[TWO]["one table of locks"]])
def test_a_write_at_one_upstream_holds_up_no_call_to_another(mutant: Mutant) -> None:
    _, second = at_both(mutant, other("w", 0.0), second=(legacy("filled", 0.1),))

    (sent,) = sends(second, "filled")
    assert (sent.begun < 0.2) == (mutant is UNCHANGED)
