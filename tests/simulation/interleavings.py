"""
Every order of what may happen next, but for orders that nobody can tell apart.

A run is a list of steps. Before each, some channels have one that is due; which comes next is a choice. Two
steps are dependent if either touches what the other writes (`Footprint`); others may change places without a
difference, in the run or in what follows. So of all the orders that differ only by such changes one is run.

That is dynamic partial-order reduction with source sets and sleep sets (Abdulla, Aronis, Jonsson and Sagonas,
POPL 2014): after a run each pair of dependent steps of which the later was not caused by the earlier is
noted where the earlier was chosen, and the later, or what led to it, is chosen there in a further run. A
channel that was chosen before sleeps in the runs after it, until a step comes that depends on it. A run is
repeated from its beginning each time, so it must be a function of the choices.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

Run = TypeVar("Run")
WHOLE = "*"
HASTE = (1.0, 0.2, 0.05)


class Redundant(Exception):
    """Whatever is due now was run before, in an order that can't be told from this one."""


@dataclass(slots=True)
class Footprint:
    """
    What a step touches: parts of things, or a thing as a WHOLE. `everything`: it depends on every other step.
    """

    reads: set[tuple[str, str]] = field(default_factory=set)
    writes: set[tuple[str, str]] = field(default_factory=set)
    everything: bool = False
    things: set[str] = field(default_factory=set)

    def touch(self, thing: str, part: str = WHOLE, *, write: bool = True) -> None:
        (self.writes if write else self.reads).add((thing, part))
        self.things.add(thing)

    def conflicts(self, other: Footprint) -> bool:
        if self.everything or other.everything:
            return True
        if self.things.isdisjoint(other.things):
            return False
        return (
            _met(self.writes, other.writes)
            or _met(self.writes, other.reads)
            or _met(other.writes, self.reads)
        )


def _met(some: set[tuple[str, str]], others: set[tuple[str, str]]) -> bool:
    if not some.isdisjoint(others):
        return True
    whole = {thing for thing, part in some if part == WHOLE}
    others_whole = {thing for thing, part in others if part == WHOLE}
    return any(thing in whole for thing, _ in others) or any(thing in others_whole for thing, _ in some)


@dataclass(slots=True)
class Step:
    """
    `cause`: the step in which what is due here was sent; None: before the first. `last`: it comes only when
    nothing else is due.
    """

    channel: str
    cause: int | None
    last: bool = False
    footprint: Footprint = field(default_factory=Footprint)


@dataclass(slots=True)
class Choice:
    """
    `wanted`: channels that are to be chosen here. `done`: those that were, and `sleeping`: earlier, each with
    what its step touched.
    """

    enabled: Sequence[str]
    sleeping: dict[str, Footprint]
    chosen: str
    wanted: set[str]
    done: dict[str, Footprint] = field(default_factory=dict)


@dataclass(slots=True)
class Course:
    """
    The choices of one run: those that are `given`, of which the last was never taken before, then its own.
    `asleep`: what slept, or was done, where the last of the given is. `chance` draws its own, by
    `haste` fewer or more of those that can wait; without it each is the first of those that it may be.
    """

    given: Sequence[str] = ()
    asleep: dict[str, Footprint] = field(default_factory=dict)
    chance: Random | None = None
    haste: float = 1.0
    steps: list[Step] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)  # its own
    decided: int | None = None  # how many steps there were when nothing was left that is judged

    @property
    def step(self) -> Step | None:
        """The one under way."""
        return self.steps[-1] if self.steps else None

    @property
    def number(self) -> int | None:
        return len(self.steps) - 1 if self.steps else None

    @property
    def is_new(self) -> bool:
        """Whether the step under way was never taken before, in this order."""
        return len(self.steps) >= len(self.given)

    def decide(self) -> None:
        """Nothing that may still come is judged: from here one order is enough."""
        if self.decided is None:
            self.decided = len(self.steps)

    def choose(
        self,
        due: Sequence[tuple[str, int | None]],
        rests: Container[str] = (),
        waiting: Container[str] = (),
    ) -> str:
        """
        Of the channels that have a step due, each with its cause, in the order in which they are tried.
        `waiting`: those that can wait, behind the others. Once nothing else is left to try, each of them is,
        for a rest that comes later may come before it. `rests`: those of them whose step comes only when
        nothing but what can wait is due. Raises Redundant.
        """
        at = len(self.steps)
        if at < len(self.given):
            chosen = self.given[at]
        else:
            enabled = [channel for channel, _ in due]
            choice = self._new(enabled, waiting)
            self.choices.append(choice)
            chosen = choice.chosen
        self.steps.append(Step(chosen, dict(due)[chosen], chosen in rests))
        return chosen

    def _new(self, enabled: Sequence[str], waiting: Container[str]) -> Choice:
        slept = self.choices[-1].sleeping if self.choices else self.asleep
        sleeping = {
            channel: footprint
            for channel, footprint in slept.items()
            if not footprint.conflicts(self.steps[-1].footprint)
        }
        awake = [channel for channel in enabled if channel not in sleeping]
        if not awake:
            raise Redundant
        whole = self.decided is None and awake[0] in waiting
        chosen = awake[0]
        if self.chance is not None:
            likely = [self.haste if channel in waiting else 1.0 for channel in awake]
            (chosen,) = self.chance.choices(awake, likely)
        return Choice(enabled, sleeping, chosen, set(awake if whole else [chosen]))


@dataclass(slots=True)
class Interleavings:
    """
    `runs`: those that came to an end; `cut`: those that were given up as Redundant. `caused`: of each step of
    the last one, as bits, all that had to come before it, in whatever order that can't be told from this one.
    """

    runs: int = 0
    cut: int = 0
    longest: int = 0
    caused: list[int] = field(default_factory=list)
    _choices: list[Choice] = field(default_factory=list)
    _steps: list[Step] = field(default_factory=list)

    @property
    def order(self) -> list[str]:
        """The channels of the last one's steps."""
        return [step.channel for step in self._steps]

    def of(self, run: Callable[[Course], Run]) -> Iterator[Run]:
        """What came of each, but for those before. `run` asks its course before each step."""
        while not self._choices or self._turn_back():
            known = len(self._choices)
            asleep = {**self._choices[-1].sleeping, **self._choices[-1].done} if known else {}
            course = Course([choice.chosen for choice in self._choices], asleep)
            parted = max(0, known - 1)
            try:
                result = run(course)
            except Redundant:
                self.cut += 1
                self._follow(course, parted)
            else:
                yield self._ended(course, parted, result)
            if not self._choices:
                return

    def drawn(self, run: Callable[[Course], Run], chance: Random) -> Iterator[Run]:
        """What came of each, without end: of what has more orders than can be walked."""
        while True:
            self._choices.clear()
            course = Course(chance=chance, haste=chance.choice(HASTE))
            yield self._ended(course, 0, run(course))

    def _ended(self, course: Course, parted: int, result: Run) -> Run:
        self.runs += 1
        self._follow(course, parted)
        self.longest = max(self.longest, len(self._steps))
        return result

    def _follow(self, course: Course, parted: int) -> None:
        self._choices += course.choices
        self._steps[parted:] = course.steps[parted:]
        self._note_races(parted, len(self._steps) if course.decided is None else course.decided)

    def _note_races(self, parted: int, decided: int) -> None:
        steps = self._steps
        caused = self.caused = []
        last: dict[str, int] = {}
        for at, step in enumerate(steps):
            before = (1 << at) - 1 if step.last else 0
            for one in {step.cause, last.get(step.channel)} - {None}:
                assert one is not None
                before |= caused[one] | 1 << one
            last[step.channel] = at
            # The order of two that came after all was decided is no matter.
            for earlier in range(min(at, decided) - 1, -1, -1):
                if not before >> earlier & 1 and step.footprint.conflicts(steps[earlier].footprint):
                    if at >= parted:
                        self._reverse(earlier, at, caused, before)
                    before |= caused[earlier] | 1 << earlier
            caused.append(before)

    def _reverse(self, earlier: int, later: int, caused: list[int], before: int) -> None:
        """What has to come instead of the earlier one, so that the later one comes first."""
        choice = self._choices[earlier]
        between = [at for at in range(earlier + 1, later) if not caused[at] >> earlier & 1]
        first: list[str] = []
        seen = 0
        for at in [*between, later]:
            needs = before if at == later else caused[at]
            if not needs & seen:
                first.append(self._steps[at].channel)
            seen |= 1 << at
        if not choice.wanted & set(first):
            choice.wanted.add(first[0])

    def _turn_back(self) -> bool:
        """To the last choice where something else is wanted."""
        while self._choices:
            at = len(self._choices) - 1
            choice = self._choices[at]
            choice.done[choice.chosen] = self._steps[at].footprint
            left = choice.wanted - choice.done.keys() - choice.sleeping.keys()
            if left:
                choice.chosen = next(one for one in choice.enabled if one in left)
                return True
            self._choices.pop()
        return False
