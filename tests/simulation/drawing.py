"""
A schedule drawn from a seed: bursts of calls on few conversations, where the races are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from tests.simulation.schedule import (
    BULK,
    PREFIX,
    Action,
    Change,
    Climate,
    Jump,
    Request,
    Schedule,
    Terms,
)

MEDIA = ("web/instances", "calls")
PAUSES = (0.0, 0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
LEAVES = (0.0, 0.005, 0.02, 0.06, 0.3, 1.0)


def draw(seed: int, first: int = 1) -> Schedule:
    rng = Random(seed)
    drawing = Drawing(rng, numbers=count(first))
    conversations = {
        f"c{c}": {
            f"p{p}": {"state": drawing.value("s"), "held": drawing.value("h")}
            for p in range(1, rng.choice((1, 2)) + 1)
        }
        for c in range(1, rng.choice((1, 1, 2, 3)) + 1)
    }
    terms = Terms(
        max_age=rng.choice((0.0, 0.2, 1.0, 1.0, 1.0, 3.0)),
        settle=rng.choice((0.0, 0.5, 1.0, 2.0)),
        mode=rng.choice(("enforce",) * 9 + ("on_reject", "on_reject", "shadow", "observe")),
        forwards=rng.random() < 0.2,
        guarded=rng.random() < 0.2,
        learn=rng.random() < 0.8,
        lock_timeout=rng.choice((5.0, 5.0, 5.0, 0.5)),
        deadline=rng.choice((15.0, 15.0, 15.0, 1.5)),
        max_entries=rng.choice((10_000,) * 5 + (1, 2, 3)),
    )
    climate = Climate(
        lag=rng.choice((0.0, 0.0, 0.3, 1.5, 4.0)),
        faults=rng.choice((0.0, 0.0, 0.1, 0.3)),
        slow=rng.choice((0.0, 0.1, 0.3)),
        strict=terms.mode == "on_reject" or rng.random() < 0.3,
        etags=terms.guarded or rng.random() < 0.3,
        store=rng.choice((0.0, 0.0, 0.0, 0.02)),
        store_faults=Random(f"{seed} store").choice((0.0,) * 6 + (0.1, 0.2)),
        shuffled=rng.random() < 0.9,
    )
    drawing.people = [(c, p) for c, people in conversations.items() for p in people]
    drawing.callers = rng.choice(("A", "AB", "AB", "ABC"))
    drawing.explicit = rng.choice((0.1, 0.3, 0.5))
    return Schedule(
        seed=seed,
        actions=tuple(drawing.actions(rng.randrange(4, 18))),
        terms=terms,
        climate=climate,
        conversations=conversations,
        first=first,
    )


@dataclass(slots=True)
class Drawing:
    rng: Random
    people: list[tuple[str, str]] = field(default_factory=list)
    callers: str = "A"
    explicit: float = 0.0
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def value(self, kind: str) -> str:
        return f"{kind}{next(self.numbers)}"

    def actions(self, number: int) -> Iterator[Action]:
        at = 0.0
        weights = [weight for weight, _ in ACTIONS]
        for index in range(number):
            at += self.rng.choice(PAUSES)
            _, draw_one = self.rng.choices(ACTIONS, weights)[0]
            conversation, participant = self.rng.choice(self.people)
            yield draw_one(self, at, f"r{index}", conversation, participant)

    def request(
        self, at: float, id: str, method: str, target: str, members: Any = None, **more: Any
    ) -> Request:
        rng = self.rng
        body = members if isinstance(members, bytes) else json.dumps(members).encode()
        return Request(
            at=at,
            id=id,
            caller=rng.choice(self.callers),
            method=method,
            target=PREFIX + target,
            body=body if members is not None else b"",
            leaves=rng.choice(LEAVES) if rng.random() < 0.15 else None,
            gap=0.02 if rng.random() < 0.05 else 0.0,
            **more,
        )

    def change(self, at: float, id: str, conversation: str, participant: str) -> Action:
        value = self.value(self.rng.choice("sssx"))
        return Change(at=at, conversation=conversation, participant=participant, field="state", value=value)

    def jump(self, at: float, id: str, conversation: str, participant: str) -> Action:
        return Jump(at=at, seconds=self.rng.choice((-86_400.0, -1.0, 1.0, 86_400.0)))

    def read(self, at: float, id: str, conversation: str, participant: str) -> Action:
        return self.request(at, id, "GET", f"/{self.rng.choice(MEDIA)}/{conversation}")

    def write(self, at: float, id: str, conversation: str, participant: str) -> Action:
        method, target = self.rng.choice(
            (
                ("POST", f"/{conversation}/disconnect"),
                ("POST", f"/calls/{conversation}/participants/{participant}/replace"),
                ("PUT", f"/web/instances/{conversation}/recordingstate"),
                ("DELETE", f"/web/instances/{conversation}"),
                ("PATCH", f"/calls/{conversation}/participants/{participant}/attributes"),
                ("POST", f"/{conversation.upper()}/assign"),
            )
        )
        return self.request(at, id, method, target, {"attributes": {}})

    def bulk(self, at: float, id: str, conversation: str, participant: str) -> Action:
        return self.request(at, id, "POST", BULK.removeprefix(PREFIX), {"ids": [conversation]})

    def legacy(self, at: float, id: str, conversation: str, participant: str) -> Action:
        target = f"/{self.rng.choice(MEDIA)}/{conversation}/participants/{participant}"
        method = "patch" if self.rng.random() < 0.1 else "PATCH"
        return self.request(at, id, method, target, {"attributes": {"note": id}})

    def patch(self, at: float, id: str, conversation: str, participant: str) -> Action:
        if self.rng.random() >= self.explicit:
            return self.legacy(at, id, conversation, participant)
        media = self.rng.choice(MEDIA)
        state = self.value(self.rng.choice("sssx"))
        both = media == "calls"
        body = self.rng.choices(
            (
                {"state": state},
                {"state": state, "held": self.value("h")},
                {"held": self.value("h")},
                {"state": None},
                b'{"state":"%s","state":"%s"}' % (state.encode(), self.value("s").encode()),
                b"state=" + state.encode(),
            ),
            (12, 3 * both, 2 * both, 1, 1, 1),
        )[0]
        target = f"/{media}/{conversation}/participants/{participant}"
        exempt = ((b"cache-control", b"no-transform"),) if self.rng.random() < 0.1 else ()
        return self.request(at, id, "PATCH", target, body, headers=exempt)


ACTIONS: tuple[tuple[int, Callable[[Drawing, float, str, str, str], Action]], ...] = (
    (12, Drawing.change),
    (2, Drawing.jump),
    (12, Drawing.read),
    (9, Drawing.write),
    (2, Drawing.bulk),
    (63, Drawing.patch),
)
