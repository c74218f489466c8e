"""
Every order in which the messages of two gateways, of Redis and of the upstream may arrive, in the smallest
cases: the promises hold in each, but for what docs/promises.md names of a fault. That no order is left out is
tried on programs so small that all of them can be run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.interleavings import Interleavings
from tests.simulation.plays import explicit, legacy
from tests.simulation.redis_mutants import MUTANTS
from tests.simulation.walk import Case, Fault, Walk

pytestmark = pytest.mark.no_cover


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- the walk itself, on what is small enough to be sure


class Op(NamedTuple):
    cell: str
    writes: bool


Program = list[list[Op]]  # of each channel, what its steps do


def outcome(program: Program, order: list[int]) -> tuple[object, ...]:
    """What the steps read, and what is left."""
    cells: dict[str, object] = {}
    done, read = [0] * len(program), []
    for channel in order:
        op = program[channel][done[channel]]
        if op.writes:
            cells[op.cell] = (channel, done[channel])
        else:
            read.append(((channel, done[channel]), cells.get(op.cell)))
        done[channel] += 1
    return tuple(sorted(read)), tuple(sorted(cells.items()))


def all_orders(left: tuple[int, ...]) -> Iterator[list[int]]:
    if not any(left):
        yield []
    for channel, steps in enumerate(left):
        if steps:
            rest = tuple(each - (at == channel) for at, each in enumerate(left))
            yield from ([channel, *order] for order in all_orders(rest))


def walked(program: Program) -> list[tuple[object, ...]]:
    def run(choices: Interleavings) -> tuple[object, ...]:
        done, order = [0] * len(program), []
        while due := [at for at, steps in enumerate(program) if done[at] < len(steps)]:
            channel = int(choices.choose([(str(at), None) for at in due]))
            op = program[channel][done[channel]]
            step = choices.step
            assert step is not None
            step.footprint.touch(op.cell, write=op.writes)
            done[channel] += 1
            order.append(channel)
        return outcome(program, order)

    return list(Interleavings().of(run))


OPS = st.builds(Op, st.sampled_from("ab"), st.booleans())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(OPS, min_size=1, max_size=3), min_size=2, max_size=3))
def test_whatever_can_come_of_any_order_comes_of_one_that_is_walked(program: Program) -> None:
    found = walked(program)

    assert set(found) == {outcome(program, order) for order in all_orders(tuple(map(len, program)))}


def test_orders_that_nobody_can_tell_apart_are_walked_once() -> None:
    apart = [[Op("a", True), Op("a", False)], [Op("b", True), Op("b", False)]]
    readers = [[Op("a", False)], [Op("a", False)], [Op("a", False)]]

    assert len(walked(apart)) == len(walked(readers)) == 1
    assert len(walked([[Op("a", True)], [Op("a", True)], [Op("a", True)]])) == 6


# --- two gateways

FILL, OTHER, WRITE = legacy("f1", 0.0), legacy("f2", 0.0), explicit("w", 0.0, "s5")
APART = Case(calls=((FILL, 0), (WRITE, 1)), warm=True)
# Where a lock is lost a fill that has it may leave beside the write, with what it had read before.
LOST = frozenset({"S3", "S4"})
FAULTS: list[tuple[Fault, int, frozenset[str]]] = [
    ("kill", 0, frozenset()),
    ("kill", 1, frozenset()),
    ("pause", 0, frozenset()),
    ("pause", 1, frozenset()),
    ("lose a reply", 0, frozenset()),
    ("flush", 0, LOST),
]


def breaks(walk: Walk) -> set[str]:
    return {name for _, found in walk.violations() for one in found for name in one.promise.split("+")}


def test_no_order_of_a_fill_and_a_write_breaks_a_promise() -> None:
    walk = Walk(APART)

    assert not breaks(walk)
    assert walk.found.runs > 40


def test_a_walk_finds_that_locks_are_missing() -> None:
    walk = Walk(APART, makes=MUTANTS["no locks"].makes)

    assert any("S4" in one.promise for _, found in islice(walk.violations(), 60) for one in found)


@pytest.mark.soak
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("home", [0, 1])
def test_no_order_of_a_fill_and_a_write_breaks_a_promise_whatever_was_read(home: int, warm: bool) -> None:
    assert not breaks(Walk(Case(calls=((FILL, 0), (WRITE, home)), warm=warm)))


@pytest.mark.soak
def test_no_order_of_two_fills_and_a_write_breaks_a_promise() -> None:
    assert not breaks(Walk(Case(calls=((FILL, 0), (WRITE, 0), (OTHER, 1)), warm=True)))


@pytest.mark.soak
@pytest.mark.parametrize(("fault", "node", "named"), FAULTS)
def test_at_a_fault_no_order_breaks_more_than_is_named(
    fault: Fault, node: int, named: frozenset[str]
) -> None:
    assert breaks(Walk(replace(APART, fault=fault, node=node))) == named
