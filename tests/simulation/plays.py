"""
Short plays: a schedule written by hand, with every message's luck, and questions about what came of it.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.mutants import Mutant
from tests.simulation.promises import broken
from tests.simulation.schedule import (
    BULK,
    PREFIX,
    Action,
    Change,
    Climate,
    Fate,
    Request,
    Schedule,
    Terms,
    patch,
)
from tests.simulation.story import story
from tests.simulation.upstream import Sent
from tests.simulation.world import History, World

PEOPLE = {
    "c1": {"p1": {"state": "s1", "held": "h1"}},
    "c2": {"p1": {"state": "s2", "held": "h2"}},
}
STATE = "web/instances"  # where only the state is filled
BOTH = "calls"  # where the state and `held` are


def legacy(id: str, at: float, conversation: str = "c1", media: str = STATE, **rest: Any) -> Request:
    return patch(media, conversation, "p1", id=id, at=at, **rest)


def explicit(id: str, at: float, state: str, conversation: str = "c1", **rest: Any) -> Request:
    media = rest.pop("media", STATE)
    return patch(media, conversation, "p1", {"state": state}, id=id, at=at, **rest)


def other(id: str, at: float, target: str = "/c1/disconnect", method: str = "POST", **rest: Any) -> Request:
    return Request(id=id, at=at, caller="A", method=method, target=PREFIX + target, body=b"{}", **rest)


def read(id: str, at: float, media: str = STATE, **rest: Any) -> Request:
    return Request(**{"caller": "A", **rest}, id=id, at=at, method="GET", target=f"{PREFIX}/{media}/c1")


def bulk(id: str, at: float) -> Request:
    return other(id, at, BULK.removeprefix(PREFIX))


def changed(at: float, value: str) -> Change:
    return Change(at=at, conversation="c1", participant="p1", field="state", value=value)


def played(
    *actions: Action,
    fates: dict[str, tuple[Fate, ...]] | None = None,
    mutant: Mutant | None = None,
    lag: float = 0.0,
    **terms: Any,
) -> History:
    schedule = Schedule(
        seed=0,
        actions=actions,
        terms=Terms(**terms),
        climate=Climate(shuffled=False, lag=lag, faults=1.0, etags=bool(terms.get("guarded"))),
        conversations=PEOPLE,
        # Everything else takes 10 ms there and 10 ms back, and goes well.
        fates={
            action.id: (*(fates or {}).get(action.id, ()), *[Fate()] * 20)
            for action in actions
            if isinstance(action, Request)
        },
    )
    return (mutant.world(schedule) if mutant else World(schedule)).run()


def kept(*actions: Action, **rest: Any) -> History:
    """The history, in which no promise was broken."""
    history = played(*actions, **rest)
    assert not broken(history), "\n".join([*map(str, broken(history)), *story(history)])
    return history


def look_ups(history: History) -> list[Sent]:
    return [sent for sent in history.ledger if sent.about.kind == "read" and not sent.learned]


def sends(history: History, id: str) -> list[Sent]:
    return [sent for sent in history.ledger if sent.id == id and sent.about.kind != "read" and sent.left]


def states(history: History, id: str) -> list[Any]:
    """What the upstream got as `state`, each time that the call was sent."""
    return [sent.members.get("state") for sent in sends(history, id)]


def skipped(history: History, id: str) -> str:
    fields = dict(history.told[id].headers)[b"gateway-rewrite"].decode().split("; ")
    return next(field.removeprefix("skipped=") for field in fields if field.startswith("skipped="))
