"""
Drawn schedules under one part of the configuration that is not in all of them: calls go to the operation for
attributes, bodies are checked, the first try is untouched, or there is a second upstream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from tests.simulation.drawing import draw
from tests.simulation.mutants import UNCHANGED, Mutant
from tests.simulation.promises import Violation, apart, broken
from tests.simulation.schedule import Action, Jump, Request, Schedule
from tests.simulation.world import History, World

TWO = "two upstreams"
SECONDS_FIRST = 300  # of the numbers of values at the second upstream


def on_reject(schedule: Schedule) -> Schedule:
    terms, climate = schedule.terms, schedule.climate
    return replace(
        schedule, terms=replace(terms, mode="on_reject"), climate=replace(climate, strict=True, faults=0.1)
    )


def retarget(schedule: Schedule) -> Schedule:
    rng = Random(f"{schedule.seed} retarget")
    terms = replace(
        schedule.terms,
        retarget=rng.choice(("none", "fill", "fill")),
        mode=rng.choice(("enforce", "enforce", "enforce", "on_reject")),
    )
    climate = replace(schedule.climate, absent=rng.choice((0.0, 0.3, 0.7, 1.0)))
    actions = tuple(_with_more(one, rng) for one in schedule.actions)
    return replace(schedule, terms=terms, climate=climate, actions=actions)


def _with_more(action: Action, rng: Random) -> Action:
    """Some calls have more than attributes, so that they are filled beside the others."""
    if isinstance(action, Request) and action.body.startswith(b'{"attributes"') and rng.random() < 0.4:
        return replace(action, body=action.body.replace(b"{", b'{"wrapup": {}, ', 1))
    return action


def validate(schedule: Schedule) -> Schedule:
    rng = Random(f"{schedule.seed} validate")
    terms = replace(
        schedule.terms,
        checks=rng.choice(("before", "after")),
        retarget=rng.choice((None, None, "fill")),
        mode=rng.choice(("enforce", "enforce", "enforce", "on_reject")),
    )
    return replace(schedule, terms=terms)


VARIANTS: Mapping[str, Callable[[Schedule], Schedule]] = {
    "on_reject": on_reject,
    "retarget": retarget,
    "validate": validate,
}


def two(seed: int) -> tuple[Schedule, Schedule]:
    """
    Of two upstreams whose conversations have the same ids, and whose callers have the same tokens; in some
    of them one has on_reject, retarget or checks. First come, first served, so that the one may be compared
    with what it is alone.
    """
    rng = Random(f"{seed} two")
    first, second = draw(seed), draw(seed + 1_000_000, SECONDS_FIRST)
    if rng.random() < 0.5:
        first = VARIANTS[rng.choice(sorted(VARIANTS))](first)
    if rng.random() < 0.5:
        second = VARIANTS[rng.choice(sorted(VARIANTS))](second)
    own = first.terms
    # The limits are the gateway's. The wall clock is one, and is set by the first's schedule.
    shared = replace(
        second.terms,
        lock_timeout=own.lock_timeout,
        deadline=own.deadline,
        max_entries=own.max_entries,
    )
    return (
        replace(
            first,
            climate=replace(first.climate, shuffled=False),
            actions=tuple(_a_little_later(one, n * 0.000731) for n, one in enumerate(first.actions)),
        ),
        replace(
            second,
            terms=shared,
            climate=replace(second.climate, shuffled=False, store=0.0, store_faults=0.0),
            actions=tuple(
                _a_little_later(_renamed(one), 0.0004 + n * 0.000917)
                for n, one in enumerate(second.actions)
                if not isinstance(one, Jump)
            ),
        ),
    )


def _a_little_later(action: Action, seconds: float) -> Action:
    """No two at once: which of them is the first would be another with more of them."""
    return replace(action, at=action.at + seconds)


def _renamed(action: Action) -> Action:
    if not isinstance(action, Request):
        return action
    return replace(action, id=f"second-{action.id}", body=action.body.replace(b'"r', b'"second-r'))


def examined(variant: str, seed: int, mutant: Mutant = UNCHANGED) -> tuple[list[History], list[Violation]]:
    """What came of it at each upstream, and which promises were broken."""
    if variant != TWO:
        histories = [mutant.world(VARIANTS[variant](draw(seed))).run()]
        return histories, broken(histories[0])
    first, second = two(seed)
    histories = mutant.world(first, second).histories()
    found = [violation for history in histories for violation in broken(history)]
    return histories, [*found, *apart(World(first).run(), histories[0])]
