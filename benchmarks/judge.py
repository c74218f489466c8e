"""
Whether a run over real sockets kept the promises: decided from what clients asked, what the upstream saw
and what the audit log says. Pure; all times are Unix seconds of one machine.

It reports only what is certain. A message reaches the upstream after it left the gateway, and its answer
leaves the upstream before it reaches the gateway: seen from here flights look shorter and GETs younger
than they were. So it can't see an overlap or an age that is shorter than the way between the two; nor the
order of arrival within S4; nor how long a call waited after a look-up of its own (S2); nor whether an
unanswered message (`ended` None) was still in flight, which is one that the gateway gave up (its deadline)
a moment before the answer left the upstream, too; nor S8 where calls change something; nor S6 but by the
Authorization field. tests/simulation sees all of these.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

REFILLED = frozenset({409, 412})


@dataclass(slots=True)
class Asked:
    """A call as its client made it, at `at`. `kind`: fill (no state), explicit, write or read."""

    id: str
    kind: str
    conversation: str
    participant: str
    body: bytes
    at: float
    status: int | None = None  # None: it left, or got no whole reply
    refused: bool = False  # by the gateway itself


@dataclass(slots=True)
class Seen:
    """
    A message as the upstream had it: `begun` when its head was there, `ended` right before its reply's head
    went out. `shown` are the states in the reply to a GET, `before` the true ones when it took effect.
    """

    id: str
    method: str
    conversation: str
    credential: str
    begun: float
    body: bytes = b""
    ended: float | None = None
    status: int | None = None
    shown: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """It changed nothing; of what was not read in time (408) nobody knows."""
        return self.status is not None and 400 <= self.status < 500 and self.status != 408

    @property
    def over(self) -> float:
        return self.begun if self.ended is None else self.ended


class Terms(NamedTuple):
    max_age: float
    settle: float
    allow: frozenset[str]


class Fill(NamedTuple):
    seen: Seen
    asked: Asked
    value: str
    left: float | None  # by the audit log, cut to a millisecond; None: it isn't there

    @property
    def left_at(self) -> float:
        return self.seen.begun if self.left is None else self.left

    def __str__(self) -> str:
        return f"{self.asked.id} at {self.seen.begun:.3f} filled {self.value} into {self.asked.conversation}"


class Accepted(NamedTuple):
    """An explicit value that the upstream accepted; `until` the upstream may show an older one."""

    value: str
    until: float


class Violation(NamedTuple):
    promise: str
    what: str


class Run:
    """
    `log`: the audit log's lines, parsed, with their `time` as Unix seconds. `digest`: what they call a body.
    """

    def __init__(
        self,
        terms: Terms,
        asked: Sequence[Asked],
        seen: Sequence[Seen],
        log: Sequence[tuple[float, Mapping[str, Any]]],
        digest: Callable[[bytes], str],
    ) -> None:
        self.terms = terms
        self.digest = digest
        self.asked = {one.id: one for one in asked}
        self.outcomes = {
            line.get("request_id"): line["status"] for _, line in log if line["event"] == "outcome"
        }
        self.patches: defaultdict[str, list[Seen]] = defaultdict(list)
        self.reads: defaultdict[str, list[Seen]] = defaultdict(list)
        self.writes: defaultdict[str, list[Seen]] = defaultdict(list)
        self.look_ups: list[Seen] = []
        last = {one.id: one for one in sorted(seen, key=lambda one: one.begun) if one.method != "GET"}
        for one in sorted(seen, key=lambda one: one.begun):
            kind = self.asked[one.id].kind
            if last.get(one.id) is one and self._told(one.id) not in {None, one.status}:
                one = replace(one, status=None, ended=None)
            if one.method == "GET":
                self.reads[one.conversation].append(one)
                if kind != "read":
                    self.look_ups.append(one)
            else:
                self.patches[one.id].append(one)
                if kind in {"explicit", "write"}:
                    self.writes[one.conversation].append(one)
        self.recorded = {
            (line.get("request_id"), line["body"]["after"]["sha256"]): time
            for time, line in log
            if line["event"] == "rewrite"
        }
        self.fills = list(self._fills())

    def _told(self, id: str) -> int | None:
        """What the gateway told its client of a call; None where nobody knows."""
        return self.outcomes.get(id, self.asked[id].status)

    def heard(self, one: Seen) -> bool:
        """Whether it is known that the gateway got the answer: it may have been killed before."""
        return self._told(one.id) is not None

    def _fills(self) -> Iterator[Fill]:
        for id, sent in self.patches.items():
            asked = self.asked[id]
            for one in sent:
                if asked.kind == "fill" and one.body != asked.body:
                    left = self.recorded.get((id, self.digest(one.body)))
                    yield Fill(one, asked, str(json.loads(one.body).get("state")), left)

    def undisturbed(self) -> set[str]:
        """The conversations on which all went well and all PATCHes were filled."""
        filled = {fill.seen.id for fill in self.fills}
        disturbed = {one.conversation for one in self.look_ups if not one.accepted}
        for id, sent in self.patches.items():
            disturbed |= {one.conversation for one in sent if id not in filled or not one.accepted}
        return {one.conversation for one in self.look_ups} - disturbed

    def violations(self) -> list[Violation]:
        rules = (bodies, allowed, recorded, sources, overlaps, coalesced, once)
        return [violation for rule in rules for violation in rule(self)]


def bodies(run: Run) -> Iterator[Violation]:
    """S1, C1: a fill puts one member in front of the client's own bytes; else not a byte is changed."""
    for id, sent in run.patches.items():
        asked = run.asked[id]
        for one in sent:
            if one.body == asked.body:
                continue
            state = json.loads(one.body).get("state")
            if asked.kind != "fill" or one.body != b'{"state":"%s",' % str(state).encode() + asked.body[1:]:
                yield Violation("S1", f"{id} asked {asked.body!r}, the upstream got {one.body!r}")


def allowed(run: Run) -> Iterator[Violation]:
    for fill in run.fills:
        if fill.value not in run.terms.allow:
            yield Violation("S7", f"{fill}, which is not allowed")


def recorded(run: Run) -> Iterator[Violation]:
    for fill in run.fills:
        if fill.left is None:
            yield Violation("L1", f"{fill}, which is not on the audit log")


def sources(run: Run) -> Iterator[Violation]:
    """S2, S3, S5, S6, S7: there is one GET that justifies the fill in every respect."""
    for fill in run.fills:
        # One that was given up may arrive after a write that it left before.
        writes = [one for one in run.writes[fill.seen.conversation] if one.begun < fill.left_at]
        accepted = _last_accepted(run, fill, writes)
        if accepted is not None and fill.value != accepted.value and fill.left_at + 0.001 < accepted.until:
            yield Violation("S5", f"{fill}, after {accepted.value} was accepted")
        broken = _unjustified(run, fill, writes)
        if broken is not None:
            yield Violation(broken, f"{fill}, which no GET justifies")


def _unjustified(run: Run, fill: Fill, writes: Sequence[Seen]) -> str | None:
    """The first promise that none of the GETs which keep those before it keeps."""
    # What was read before the latest write was over is invalidated when it is over.
    overtaken = max((one.over for one in writes if not one.refused), default=0.0)
    tests: dict[str, Callable[[Seen], bool]] = {
        "S7": lambda get: get.shown.get(fill.asked.participant) == fill.value,
        "S6": lambda get: get.credential == fill.seen.credential,
        "S3": lambda get: get.begun > overtaken,
        "S2": lambda get: get.begun > min(fill.asked.at, fill.left_at - run.terms.max_age),
    }
    gets = [one for one in run.reads[fill.seen.conversation] if one.begun < fill.seen.begun]
    if any(all(test(get) for test in tests.values()) for get in reversed(gets)):
        return None
    for promise, test in tests.items():
        gets = [get for get in gets if test(get)]
        if not gets:
            return promise
    return None


def _last_accepted(run: Run, fill: Fill, writes: Sequence[Seen]) -> Accepted | None:
    """The latest explicit value that was accepted for the participant."""
    for one in reversed(writes):
        asked = run.asked[one.id]
        same = asked.kind == "explicit" and asked.participant == fill.asked.participant
        if same and one.accepted and one.ended is not None and run.heard(one):
            return Accepted(str(json.loads(asked.body)["state"]), one.ended + run.terms.settle)
    return None


def overlaps(run: Run) -> Iterator[Violation]:
    """S4: filled PATCHes share, changing calls exclude."""
    flights: defaultdict[str, list[tuple[Seen, bool]]] = defaultdict(list)
    for fill in run.fills:
        flights[fill.seen.conversation].append((fill.seen, False))
    for conversation, writes in run.writes.items():
        flights[conversation] += [(one, True) for one in writes]
    for line in flights.values():
        last: dict[bool, Seen] = {}
        for one, changing in sorted(line, key=lambda flight: flight[0].begun):
            for other_changes, other in last.items():
                if (changing or other_changes) and one.begun < other.over:
                    yield Violation("S4", f"{one.id} came while {other.id} was in flight")
            if changing not in last or one.over > last[changing].over:
                last[changing] = one


def coalesced(run: Run) -> Iterator[Violation]:
    """S8, where nothing is ever invalidated: no look-up begins while its like is in flight."""
    undisturbed = run.undisturbed()
    lines: defaultdict[tuple[str, str], list[Seen]] = defaultdict(list)
    for one in run.look_ups:
        if one.conversation in undisturbed:
            lines[one.conversation, one.credential].append(one)
    for line in lines.values():
        for one, other in pairwise(line):
            # One that hangs until nobody can use its answer (max_age) is not waited for.
            if other.begun < min(one.over, one.begun + run.terms.max_age / 2):
                yield Violation("S8", f"{other.id} looked up what {one.id} was looking up")


def once(run: Run) -> Iterator[Violation]:
    """C2: sent once; again only after a refusal that proves that nothing was applied, with another value."""
    filled = {(fill.seen.id, fill.seen.begun) for fill in run.fills}
    for id, sent in run.patches.items():
        if len(sent) > 2:
            yield Violation("C2", f"{id} was sent {len(sent)} times")
        for one, other in pairwise(sent):
            if one.status not in REFILLED or (id, one.begun) not in filled or one.body == other.body:
                yield Violation("C2", f"{id} was sent again after {one.status}")
    for asked in run.asked.values():
        sent = run.patches.get(asked.id, [])
        if asked.kind == "read" or asked.status is None:
            continue
        if asked.status < 300 and not any(one.accepted for one in sent):
            yield Violation("C2", f"{asked.id} was told {asked.status}, and the upstream never said so")
        if asked.refused and asked.status == 503 and sent:
            yield Violation("C8", f"{asked.id} was told 503 by the gateway, though it was sent")
