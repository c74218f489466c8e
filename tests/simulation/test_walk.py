"""
Every order in which the messages of two gateways, of Redis and of the upstream may arrive, in the smallest
cases: the promises hold in each, but for what docs/promises.md names of a fault. That no order is left out is
tried on programs so small that all of them can be run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, permutations
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.simulation.interleavings import Course, Footprint, Interleavings
from tests.simulation.redis_mutants import MUTANTS, SOUND
from tests.simulation.walk import (
    CASES,
    FAULT,
    LATER,
    RESUMED,
    TIMER,
    Case,
    Fault,
    Moments,
    Walk,
    WalkedEvidence,
)

pytestmark = pytest.mark.no_cover


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- the walk itself, on what is small enough to be sure


class Op(NamedTuple):
    """`judged`: what it reads is what the outcome is about."""

    cell: str
    writes: bool
    judged: bool = True


Program = list[list[Op]]  # of each channel, what its steps do


def outcome(program: Program, order: list[int]) -> tuple[object, ...]:
    """What the judged steps read."""
    cells: dict[str, object] = {}
    done, read = [0] * len(program), []
    for channel in order:
        op = program[channel][done[channel]]
        if op.judged:
            read.append(((channel, done[channel]), cells.get(op.cell)))
        if op.writes:
            cells[op.cell] = (channel, done[channel])
        done[channel] += 1
    return tuple(sorted(read))


def all_orders(left: tuple[int, ...]) -> Iterator[list[int]]:
    if not any(left):
        yield []
    for channel, steps in enumerate(left):
        if steps:
            rest = tuple(each - (at == channel) for at, each in enumerate(left))
            yield from ([channel, *order] for order in all_orders(rest))


def walked(program: Program) -> list[tuple[object, ...]]:
    left = sum(op.judged for steps in program for op in steps)

    def run(course: Course) -> tuple[object, ...]:
        done, order, judged = [0] * len(program), [], 0
        while due := [at for at, steps in enumerate(program) if done[at] < len(steps)]:
            if judged == left:
                course.decide()
            channel = int(course.choose([(str(at), None) for at in due]))
            op = program[channel][done[channel]]
            step = course.step
            assert step is not None
            step.footprint.touch(op.cell, write=op.writes)
            done[channel] += 1
            judged += op.judged
            order.append(channel)
        return outcome(program, order)

    return list(Interleavings().of(run))


def ops(judged: st.SearchStrategy[bool]) -> st.SearchStrategy[Program]:
    one = st.builds(Op, st.sampled_from("ab"), st.booleans(), judged)
    return st.lists(st.lists(one, min_size=1, max_size=3), min_size=2, max_size=3)


@settings(deadline=None, max_examples=60)
@given(ops(st.just(True)) | ops(st.booleans()))
def test_whatever_can_come_of_any_order_comes_of_one_that_is_walked(program: Program) -> None:
    assert set(walked(program)) == {outcome(program, order) for order in all_orders(tuple(map(len, program)))}


def test_orders_that_nobody_can_tell_apart_are_walked_once() -> None:
    apart = [[Op("a", True), Op("a", False)], [Op("b", True), Op("b", False)]]
    readers = [[Op("a", False)], [Op("a", False)], [Op("a", False)]]

    assert len(walked(apart)) == len(walked(readers)) == 1
    assert len(walked([[Op("a", True)], [Op("a", True)], [Op("a", True)]])) == 6


def test_what_comes_after_all_is_decided_is_walked_in_one_order() -> None:
    after = [[Op("b", False)], [Op("a", True, judged=False)], [Op("a", True, judged=False)]]

    assert len(walked(after)) == 1


class Calls:
    """Each touches a cell, and may send a message; a rest comes once, while no message is on its way."""

    def __init__(self, calls: list[tuple[Op, Op | None]]) -> None:
        self._left = {str(at): call for at, call in enumerate(calls)}
        self._messages: list[tuple[int, str, Op]] = []
        self._rested = False
        self._cells: dict[str, str] = {}
        self._steps = 0
        self.seen: set[tuple[str, str | None, bool]] = set()

    def due(self) -> tuple[list[tuple[str, int | None]], list[str]]:
        messages: list[tuple[str, int | None]] = [("message", cause) for cause, _, _ in self._messages[:1]]
        rests = [] if messages or self._rested else ["rest"]
        return [*messages, *((name, None) for name in [*self._left, *rests])], rests

    def take(self, channel: str, footprint: Footprint) -> None:
        if channel == "rest":
            self._rested = footprint.everything = True
        elif channel == "message":
            _, name, op = self._messages.pop(0)
            self._touch(name, op, footprint)
        else:
            op, sent = self._left.pop(channel)
            self._touch(channel, op, footprint)
            if sent is not None:
                self._messages.append((self._steps, f"of {channel}", sent))
                footprint.touch("messages")
        self._steps += 1

    def _touch(self, name: str, op: Op, footprint: Footprint) -> None:
        footprint.touch(op.cell, write=op.writes)
        self.seen.add((name, self._cells.get(op.cell), self._rested))
        if op.writes:
            self._cells[op.cell] = name


def all_that_calls_see(calls: list[tuple[Op, Op | None]], taken: tuple[str, ...] = ()) -> set[Any]:
    world = Calls(calls)
    for channel in taken:
        world.take(channel, Footprint())
    due, _ = world.due()
    if not due:
        return {frozenset(world.seen)}
    return {seen for channel, _ in due for seen in all_that_calls_see(calls, (*taken, channel))}


CELLS = st.builds(Op, st.sampled_from("abc"), st.booleans())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(CELLS, st.none() | CELLS), min_size=2, max_size=4))
@example(
    [(Op("a", False), Op("x", True)), (Op("b", False), None), (Op("c", False), None), (Op("x", True), None)]
)
def test_a_rest_comes_before_and_after_whatever_can_wait(calls: list[tuple[Op, Op | None]]) -> None:
    def run(course: Course) -> frozenset[Any]:
        world = Calls(calls)
        while (found := world.due())[0]:
            due, rests = found
            chosen = course.choose(due, rests, [one for one, _ in due if one != "message"])
            assert course.step is not None
            world.take(chosen, course.step.footprint)
        return frozenset(world.seen)

    assert set(Interleavings().of(run)) == all_that_calls_see(calls)


def test_orders_are_drawn_each_from_what_may_come() -> None:
    names = ["a", "b", "waits"]

    def run(course: Course) -> tuple[str, ...]:
        order: list[str] = []
        while due := [(one, None) for one in names if one not in order]:
            order.append(course.choose(due, waiting=["waits"]))
        return tuple(order)

    some = Counter(islice(Interleavings().drawn(run, Random(1)), 300))

    assert set(some) == set(permutations(names))
    assert sum(some[order] for order in some if order[-1] == "waits") > 150


def test_what_had_to_come_before_a_step_is_told_with_the_run() -> None:
    found = Interleavings()

    def run(course: Course) -> list[str]:
        order: list[str] = []
        for _ in range(3):
            due = [(one, None) for one in ("reads a", "writes a", "writes b") if one not in order]
            order.append(course.choose(due))
            assert course.step is not None
            verb, cell = order[-1].split()
            course.step.footprint.touch(cell, write=verb == "writes")
        return order

    for order in found.of(run):
        first, second = (one for one in order if one.endswith("a"))
        caused = dict(zip(order, found.caused, strict=True))
        assert caused == {"writes b": 0, first: 0, second: 1 << order.index(first)}


@pytest.mark.parametrize(
    ("caused", "had"),
    [(0b01, True), (0b10, False)],  # of the step in which the fill left
)
def test_a_fill_had_only_what_had_to_be_answered_before_it_left(caused: int, had: bool) -> None:
    """In this order it was, either way."""
    moments = Moments(left={1: 2}, answered={0: 0})
    read, fill = (
        cast(Any, SimpleNamespace(number=0, complete=1.0)),
        cast(Any, SimpleNamespace(number=1, left=2.0)),
    )
    evidence = WalkedEvidence(cast(Any, None), ONE.plan(), moments, [0, 0, caused])

    assert evidence.had(read, fill) is had


# --- two gateways

ONE, APART, BESIDE = CASES["one"], CASES["apart"], CASES["beside"]
# docs/promises.md: where a lock is lost, a fill that has it may leave beside the write, with what it had read
# before. While a gateway has no connection to Redis it writes without one, and tells the others later.
LOST = frozenset({"S3", "S4"})
UNTOLD = LOST | {"S5"}
FAULTS: list[tuple[Fault, int, frozenset[str]]] = [
    ("kill", 0, frozenset()),
    ("kill", 1, frozenset()),
    ("pause", 0, frozenset()),
    ("pause", 1, frozenset()),
    ("lose a reply", 0, UNTOLD),
    ("lose a reply", 1, UNTOLD),
    ("restart", 0, UNTOLD),
    ("flush", 0, LOST),
]


def breaks(walk: Walk) -> set[str]:
    return {name for run in walk.runs() for one in run.broken for name in one.promise.split("+")}


def test_no_order_of_a_fill_and_a_write_breaks_a_promise() -> None:
    walk = Walk(ONE)

    assert not breaks(walk)
    assert walk.found.runs > 20


def test_a_call_may_come_once_the_lease_of_a_killed_process_has_ended() -> None:
    walk = Walk(Case(calls=ONE.calls[:1], fault="kill", node=1))

    def is_late() -> bool:
        order = walk.found.order
        return LATER in order[: next(at for at, one in enumerate(order) if one.endswith("to node 0"))]

    assert any(is_late() for _ in walk.runs())


def test_a_stopped_process_goes_on_once_time_went_by() -> None:
    walk = Walk(Case(calls=ONE.calls[:1], fault="pause"))

    for _ in walk.runs():
        order = walk.found.order
        assert {TIMER, LATER} & {*order[order.index(FAULT) : order.index(RESUMED)]}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("no locks", ONE),
        ("no generations", ONE),
        ("check and store in two steps", replace(ONE, warm=False)),
        ("filling from the request's own body", BESIDE),
    ],
)
def test_a_walk_finds_a_guard_that_is_missing(name: str, case: Case) -> None:
    mutant = MUTANTS[name]
    walk = Walk(case, mutant.parts, mutant.makes)

    assert any(mutant.promise in one.promise for run in islice(walk.runs(), 120) for one in run.broken)


@pytest.mark.soak
def test_the_store_in_which_that_guard_is_missing_is_sound_with_it() -> None:
    assert not breaks(Walk(replace(ONE, warm=False), makes=SOUND))


@pytest.mark.soak
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("home", [0, 1])
def test_no_order_of_a_fill_and_a_write_breaks_a_promise_whatever_was_read(home: int, warm: bool) -> None:
    (fill, _), (write, _) = ONE.calls
    assert not breaks(Walk(Case(calls=((fill, 0), (write, home)), warm=warm)))


@pytest.mark.soak
@pytest.mark.parametrize("case", [APART, BESIDE])
def test_no_order_of_two_fills_and_a_write_breaks_a_promise(case: Case) -> None:
    assert not breaks(Walk(case))


@pytest.mark.soak
@pytest.mark.parametrize("case", [ONE, APART, BESIDE])
@pytest.mark.parametrize(("fault", "node", "named"), FAULTS)
def test_at_a_fault_no_order_breaks_more_than_is_named(
    case: Case, fault: Fault, node: int, named: frozenset[str]
) -> None:
    assert breaks(Walk(replace(case, fault=fault, node=node))) <= named


@pytest.mark.soak
@pytest.mark.parametrize("case", [BESIDE, replace(ONE, fault="lose a reply"), replace(ONE, fault="kill")])
def test_nothing_comes_of_two_calls_in_one_process_but_what_they_share(case: Case) -> None:
    finely, coarsely = Walk(case), Walk(case, finely=False)

    assert {run.judged for run in finely.runs()} == {run.judged for run in coarsely.runs()}
    assert finely.found.runs <= coarsely.found.runs
