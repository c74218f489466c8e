"""
The promises of DESIGN.md, decided over a history: one function each, the promise's text its docstring.

They judge by what was seen from outside: the ledger, what clients were told, the audit log. A fill is
justified when one GET on the ledger justifies it in every respect. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise, zip_longest
from typing import NamedTuple

from gateway.http import headers as h
from tests.simulation.loop import AT_ONCE
from tests.simulation.schedule import ALLOWED, Request, Schedule, fits, members
from tests.simulation.upstream import Sent
from tests.simulation.world import PATIENCE, History, Told, digest

MOMENT = 1e-6  # seconds between the gateway's last look at its clock and the wire's first
MOMENTS = 0.005  # of two runs, since timers that are close go off at one time
PROMPT = 0.05  # seconds that the gateway itself may take between two steps
CURABLE = frozenset({400, 415, 422})
ABSENT = frozenset({404, 405})
REFILLED = frozenset({409, 412})


class Violation(NamedTuple):
    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


Subject = tuple[str | None, str | None, str]


@dataclass(frozen=True, slots=True)
class Filled:
    """
    A member that the gateway added to a PATCH, and what was known when it left: when the latest write to
    the conversation began, when what had been read was last invalidated, and the latest accepted value.
    """

    sent: Sent
    told: Told
    name: str
    value: str
    overtaken: float
    invalidated: float
    accepted: tuple[float, str] | None

    def __str__(self) -> str:
        return f"{self.sent.id} (#{self.sent.number}) at {_left(self.sent):.6f} was filled with {self.value}"


@dataclass(frozen=True)
class Evidence:
    """A history, and what the promises need to know of it."""

    history: History

    def request(self, sent: Sent) -> Request:
        return self.history.told[sent.id].request

    def changing(self, sent: Sent) -> bool:
        """Whether it may change what is filled: what goes to another operation may, whatever it says."""
        return sent.about.kind == "write" or self.request(sent).changing

    def had(self, read: Sent, patch: Sent) -> bool:
        """Whether the GET was answered to the end before the PATCH left."""
        return read.complete is not None and read.complete < _left(patch)

    @cached_property
    def moved(self) -> list[Sent]:
        """What went to another operation than the one that the client called."""
        return [sent for sent in self.writing if sent.target != self.request(sent).target]

    @cached_property
    def writing(self) -> list[Sent]:
        return [sent for sent in self.ledger if sent.about.kind not in {"read", "other"}]

    @cached_property
    def first(self) -> dict[str, Sent]:
        """By the client's call, what was sent for it first."""
        return {sent.id: sent for sent in reversed(self.writing)}

    @cached_property
    def ledger(self) -> list[Sent]:
        """What left the gateway."""
        return [sent for sent in self.history.ledger if sent.left is not None]

    @cached_property
    def patches(self) -> dict[str, list[Sent]]:
        """By the client's call, each PATCH that left for it."""
        found: dict[str, list[Sent]] = {}
        for sent in self.ledger:
            if sent.about.kind == "patch":
                found.setdefault(sent.id, []).append(sent)
        return found

    @cached_property
    def reads(self) -> list[Sent]:
        return [sent for sent in self.ledger if sent.about.kind == "read"]

    @cached_property
    def added(self) -> dict[int, list[tuple[str, str]]]:
        """By the PATCH's number, the members that the client had not named."""
        found: dict[int, list[tuple[str, str]]] = {}
        for attempts in self.patches.values():
            for sent in attempts:
                named = {name for name, _ in self.request(sent).named}
                for name, value in sent.members.items():
                    if name in sent.about.wanted and name not in named:
                        found.setdefault(sent.number, []).append((name, value))
        return found

    @cached_property
    def fills(self) -> list[Filled]:
        ledger, told = self.history.ledger, self.history.told
        return [
            Filled(
                ledger[number],
                told[ledger[number].id],
                name,
                value,
                self._overtaken(ledger[number]),
                self._invalidated(ledger[number]),
                self._accepted(ledger[number], name),
            )
            for number, members in self.added.items()
            for name, value in members
        ]

    @cached_property
    def writes(self) -> dict[str | None, list[Sent]]:
        """By conversation, what may change its state; by None, what may change any."""
        found: dict[str | None, list[Sent]] = {}
        for sent in self.writing:
            if self.changing(sent):
                found.setdefault(sent.about.conversation, []).append(sent)
        return found

    @cached_property
    def accepted(self) -> dict[Subject, list[tuple[float, str]]]:
        """By whose value it is, the explicit values that were accepted, and when that was known."""
        found: dict[Subject, list[tuple[float, str]]] = {}
        for attempts in self.patches.values():
            for sent in attempts:
                named = self.request(sent).named
                for name, value in named:
                    once = sum(name == other for other, _ in named) == 1
                    if sent.accepted and once and isinstance(value, str) and sent.ended is not None:
                        subject = (sent.about.conversation, sent.about.participant, name)
                        found.setdefault(subject, []).append((sent.ended, value))
        return found

    def _overtaken(self, patch: Sent) -> float:
        """A write that names no conversation counts from its answer; and none that was refused does."""
        moments = [
            write.begun
            for write in self.writes.get(patch.about.conversation, ())
            if write is not patch and not self.left_all(write)
        ]
        moments += [
            self.over(write, patch) for write in self.writes.get(None, ()) if not self.left_all(write)
        ]
        return max((moment for moment in moments if moment < _left(patch)), default=-math.inf)

    def over(self, write: Sent, patch: Sent) -> float:
        """When the gateway that sends the patch has to know how the write ended."""
        return _end(write)

    def left_all(self, sent: Sent) -> bool:
        """S5: what was read before is as good as it was: it was refused, or filled and accepted."""
        if sent.number in self.added:
            return sent.accepted and not self.changing(sent)
        return sent.refused

    def _invalidated(self, patch: Sent) -> float:
        """
        What leaves the state as it is shares its lock with others: of that, only what was known
        when the call was handed to the wire counts, and with a store elsewhere, when nobody can say.
        """
        latest = -math.inf
        for sent in self.writing:
            if sent.about.conversation not in {patch.about.conversation, None}:
                continue
            changing = self.changing(sent)
            keeps = self.left_all(sent)
            until = _left(patch) if changing else patch.begun
            over = self.over(sent, patch)
            if not keeps and over < until and (changing or not self.history.schedule.climate.store):
                latest = max(latest, over)
        return latest

    def _accepted(self, patch: Sent, name: str) -> tuple[float, str] | None:
        known = self.accepted.get((patch.about.conversation, patch.about.participant, name), ())
        return max((one for one in known if one[0] < _left(patch)), default=None)


Rule = Callable[[Evidence], Iterator[Violation]]


def s1(evidence: Evidence) -> Iterator[Violation]:
    """An explicit `state` from the client is never altered."""
    for id, attempts in evidence.patches.items():
        request = evidence.history.told[id].request
        for sent in attempts:
            names = {name for name, _ in request.named}
            kept = [pair for pair in members(sent.body) or () if pair[0] in names] == request.named
            whole = sent.body == request.body or sent.number in evidence.added
            if not kept or (request.changing and not whole):
                yield Violation("S1", f"{id} sent {request.body!r}, the upstream got {sent.body!r}")


# --- what a GET must be, for a value that it showed to be filled


def s2(schedule: Schedule, fill: Filled, read: Sent) -> bool:
    """
    A filled value was read from the upstream at most `max_age` before the call was forwarded (look-up
    start to forward), or by a look-up that began after the call had arrived; with 0 by such a GET, and the
    call is forwarded as soon as it is answered.
    """
    max_age = schedule.terms.max_age
    if max_age == 0:
        # Unless it had to settle, or nobody knew; and where two fields are filled, one waits for the other.
        settling = schedule.terms.max_entries < 10 or (
            fill.accepted is not None and fill.told.arrived < fill.accepted[0] + schedule.terms.settle
        )
        waits = (
            settling
            or schedule.climate.store > 0
            or schedule.climate.store_faults > 0
            or len(fill.sent.about.wanted) > 1
        )
        try_acquire = read.complete is not None and fill.sent.begun - read.complete < PROMPT
        return read.begun > fill.told.arrived and not read.learned and (try_acquire or waits)
    if _left(fill.sent) - read.begun <= max_age + MOMENT:
        return True
    # Nothing was fresher when it was there; after a wait of more than max_age, something would be.
    waited = _left(fill.sent) - (math.inf if read.complete is None else read.complete)
    return read.begun >= fill.told.arrived and not read.learned and waited <= max_age + MOMENT


def s3(schedule: Schedule, fill: Filled, read: Sent) -> bool:
    """
    It was never read before the latest write to that conversation that passed through the gateway, by
    whichever caller, began. What was refused is no write; what names no conversation counts from its answer.
    """
    return read.begun > fill.overtaken


def s5(schedule: Schedule, fill: Filled, read: Sent) -> bool:
    """
    After a write with an explicit value was accepted, its value is the last one for `settle`: a fill in that
    time needs a fresh look-up that agrees with it, and what was read in that time and did not agree is of
    no use later. After any other unsafe call that was accepted, failed or has an unknown outcome, and after a
    filled one that was refused, the entry is invalidated.
    """
    if read.begun < fill.invalidated:
        return False
    if fill.accepted is None:
        return True
    accepted, value = fill.accepted
    return read.begun > accepted + schedule.terms.settle or (read.begun > accepted and fill.value == value)


def s6(schedule: Schedule, fill: Filled, read: Sent) -> bool:
    """A value read with one caller's credentials never fills another caller's call."""
    return read.credential == fill.sent.credential


SOURCE: dict[str, Callable[[Schedule, Filled, Sent], bool]] = {"S2": s2, "S3": s3, "S5": s5, "S6": s6}


def sources(evidence: Evidence) -> Iterator[Violation]:
    """
    Each fill has a GET that keeps S2, S3, S5 and S6 together. S7: only a complete 200 JSON reply for that
    very conversation counts. S5: the gateway never fills from a request body alone.
    """
    for fill in evidence.fills:
        about = fill.sent.about
        showed = [
            read
            for read in evidence.reads
            if read.target == about.source
            and evidence.had(read, fill.sent)
            and read.shown.get((about.participant or "", fill.name)) == fill.value
        ]
        if showed:
            yield from _unjustified(evidence.history.schedule, fill, showed)
            continue
        told = any((fill.name, fill.value) in one.request.named for one in evidence.history.told.values())
        yield Violation("S5" if told else "S7", f"{fill}, which no GET had shown")


def _unjustified(schedule: Schedule, fill: Filled, showed: list[Sent]) -> Iterator[Violation]:
    """The fewest promises that no GET which showed the value keeps together."""
    for size in range(1, len(SOURCE) + 1):
        for names in combinations(SOURCE, size):
            if not any(all(SOURCE[name](schedule, fill, read) for name in names) for read in showed):
                seen = ", ".join(f"#{read.number} begun at {read.begun:.6f}" for read in showed)
                yield Violation("+".join(names), f"{fill}, shown only by {seen}")
                return


# --- the rest


def s4(evidence: Evidence) -> Iterator[Violation]:
    """
    A filled PATCH and a write that changes state are never in flight upstream at the same time for the
    same conversation: filled ones share, changing ones exclude.
    """
    fills = {number: evidence.history.ledger[number] for number in evidence.added}
    for conversation, writes in evidence.writes.items():
        if conversation is None:
            continue
        others = [sent for sent in fills.values() if sent.about.conversation == conversation]
        for write in writes:
            for other in {sent.number: sent for sent in [*writes, *others]}.values():
                if other.number != write.number and write.begun < other.begun < _end(write):
                    yield Violation("S4", f"#{other.number} left while #{write.number} was in flight")
                elif other.number in fills and other.begun < write.begun < _end(other):
                    yield Violation("S4", f"#{write.number} left while #{other.number} was in flight")


def fifo(evidence: Evidence) -> Iterator[Violation]:
    """S4: first in, first out within one caller: of two writes, the one that came first leaves first."""
    came_first: dict[tuple[str, str], list[tuple[float, Sent]]] = {}
    for conversation, writes in evidence.writes.items():
        if conversation is None:
            continue
        seen: set[str] = set()
        for write in writes:
            told = evidence.history.told[write.id]
            came = told.joined  # a call waits for its lock once its body is there
            looks_up = set(write.about.wanted) - {name for name, _ in told.request.named}
            first = evidence.first[write.id] is write
            if write.id not in seen and first and came is not None and not looks_up:
                seen.add(write.id)
                came_first.setdefault((conversation, told.request.caller), []).append((came, write))
    for ones in came_first.values():
        for (_, earlier), (_, later) in pairwise(sorted(ones, key=lambda one: one[0])):
            if later.begun < earlier.begun:
                yield Violation("S4", f"#{later.number} left before #{earlier.number}, which came first")


def s7(evidence: Evidence) -> Iterator[Violation]:
    """Only values in the fill's `allow` list are filled."""
    for fill in evidence.fills:
        if fill.value not in ALLOWED[fill.name]:
            yield Violation("S7", f"{fill}, which is not allowed")


def s8(evidence: Evidence) -> Iterator[Violation]:
    """N calls that miss at once with the same key cost one GET."""
    terms, climate = evidence.history.schedule.terms, evidence.history.schedule.climate
    if terms.max_age == 0 or terms.max_entries < 10 or climate.store or climate.store_faults:
        return
    invalidated = [
        moment
        for sent in evidence.history.ledger
        if sent.about.kind in {"patch", "write", "bulk"}
        for moment in (sent.begun, sent.ended, sent.complete)
        if moment is not None
    ]
    settling = [
        (moment, moment + terms.settle + terms.max_age)
        for known in evidence.accepted.values()
        for moment, _ in known
    ]
    look_ups = [read for read in evidence.reads if not read.learned]
    for one, other in combinations(look_ups, 2):
        if (one.target, one.credential) != (other.target, other.credential):
            continue
        over = one.complete if one.complete is not None else _end(one)
        if (
            other.begun < over - MOMENT
            and other.begun - one.begun < terms.max_age - MOMENT
            and not any(one.begun - AT_ONCE < moment < other.begun for moment in invalidated)
            and not any(since < other.begun < until for since, until in settling)
        ):
            yield Violation("S8", f"#{other.number} asked what #{one.number} was asking")


def c2(evidence: Evidence) -> Iterator[Violation]:
    """
    A client's request leads to at most one applied PATCH. A PATCH is sent again only after a refusal in
    `refill_on`, for one refill after a fresh look-up gave another value; in `on_reject`, after a refusal
    that a repair may cure; and to the operation that was called, where there is no other.
    """
    terms = evidence.history.schedule.terms
    untouched_first = terms.mode == "on_reject"
    moved = {sent.number for sent in evidence.moved}
    sends: dict[str, list[Sent]] = {}
    for sent in evidence.ledger:
        if sent.about.kind != "read":
            sends.setdefault(sent.id, []).append(sent)
    for id, attempts in sends.items():
        request = evidence.history.told[id].request
        if sum(len(sent.applied) for sent in attempts) > 1:
            yield Violation("C2", f"{id} was applied more than once")
        refills = 0
        for before, after in pairwise(attempts):
            cured = untouched_first and before is attempts[0] and before.status in CURABLE
            refilled = before.status in REFILLED and before.number in evidence.added
            refills += refilled
            absent = before.number in moved and before.status in ABSENT and terms.retarget == "fill"
            if (
                not (cured or refilled or absent)
                or refills > 1
                or (before.about.kind != "patch" and not absent)
            ):
                yield Violation("C2", f"{id} was sent again after {before.status or before.error}")
            elif _content(before) == _content(after) and before.body != request.body:
                yield Violation("C2", f"{id} was sent again with nothing new in it")


def l1(evidence: Evidence) -> Iterator[Violation]:
    """No rewrite leaves that is not on the audit log."""
    for sent in [*evidence.moved, *[fill.sent for fill in evidence.fills]]:
        if not any(
            line.id == sent.id
            and line.event == "rewrite"
            and line.time < _left(sent)
            and line.record["body"]["after"]["sha256"] == digest(sent.body)
            for line in evidence.history.log
        ):
            yield Violation("L1", f"#{sent.number} of {sent.id} left, of which the log knew nothing")


def retargeted(evidence: Evidence) -> Iterator[Violation]:
    """
    A body with nothing but attributes, and no other, goes to the operation for these, as it came. It needs no
    state: nothing is looked up for it, unless it comes back.
    """
    terms = evidence.history.schedule.terms
    asked = {read.id for read in evidence.reads if not read.learned}
    last = {sent.id: sent for sent in evidence.writing}
    for sent in evidence.moved:
        request = evidence.request(sent)
        names = [name for name, _ in members(sent.body) or ()]
        if terms.retarget is None or terms.mode not in {"enforce", "on_reject"}:
            yield Violation("retarget", f"#{sent.number} went elsewhere, and nobody asked for it")
        elif sent.target != request.target + "/attributes" or names != ["attributes"]:
            yield Violation("retarget", f"#{sent.number} went to {sent.target} with {sent.body!r}")
        elif sent.body != request.body:
            yield Violation("C1", f"#{sent.number} went elsewhere with another body")
        if last[sent.id] is sent and sent.status not in ABSENT and sent.id in asked:
            yield Violation("retarget", f"{sent.id} was looked up, and went where no state is needed")


def checked(evidence: Evidence) -> Iterator[Violation]:
    """
    What does not fit its schema is refused and not sent: as the client means it, or as it would be sent. What
    fits is not refused, and what is refused was not applied.
    """
    terms = evidence.history.schedule.terms
    sends: dict[str, list[Sent]] = {}
    for sent in evidence.writing:
        sends.setdefault(sent.id, []).append(sent)
    for id, told in evidence.history.told.items():
        request, attempts = told.request, sends.get(id, [])
        may = terms.checks is not None and terms.mode == "enforce"
        if told.refusal == "invalid-body":
            fine = terms.checks == "before" and fits(request.body)
            if not may or fine or any(sent.applied for sent in attempts):
                yield Violation("checks", f"{id} was refused: {request.body!r}")
        if not may or request.exempt or request.method != "PATCH" or request.about.kind != "patch":
            continue
        for sent in attempts:
            as_checked = request.body if terms.checks == "before" else sent.body
            if not fits(as_checked):
                yield Violation("checks", f"#{sent.number} was sent: {sent.body!r}")


def clients_that_leave(evidence: Evidence) -> Iterator[Violation]:
    """
    S4: a client that goes away while waiting leaves no trace; one that goes away while its call is in flight
    does not release its lock before the upstream has answered.
    """
    for sent in evidence.ledger:
        left = evidence.history.told[sent.id].left
        if left is None or sent.about.kind in {"read", "other"}:
            continue
        if _left(sent) > left:
            yield Violation("S4", f"#{sent.number} was sent for a client that had left")
        elif sent.error == "CancelledError" and left <= _end(sent) < left + MOMENT:
            yield Violation("S4", f"#{sent.number} was given up in flight, for its client had left")


def traces(evidence: Evidence) -> Iterator[Violation]:
    """
    S4: waiting is bounded, and what was refused for it was not sent. Nothing is left behind, and no call
    waits for ever.
    """
    history = evidence.history
    if history.locks:
        yield Violation("traces", f"{history.locks} conversations are still locked")
    for unread in history.open_replies:
        yield Violation("traces", f"the reply to #{unread.number} was never closed")
    for failure in history.failures:
        yield Violation("traces", f"nobody caught {failure!r}")
    for id, told in history.told.items():
        sent = evidence.first.get(id)
        came_back = sent in evidence.moved and sent is not None and sent.status in ABSENT
        if told.left is None and not told.complete and not _broke(evidence, id):
            yield Violation("traces", f"{id} was never answered: {told.failure!r}")
        if told.ended is None or told.ended - told.arrived >= PATIENCE:
            yield Violation("traces", f"{id} had no end")
        enforces = history.schedule.terms.mode == "enforce" and not came_back
        if told.refusal == "lock-timeout" and sent is not None and enforces:
            yield Violation("traces", f"{id} was refused its lock, and sent as #{sent.number}")


def fair_weather(evidence: Evidence) -> Iterator[Violation]:
    """
    S8: where the upstream does nothing wrong, and at once, it answers every call: nobody fails another.
    (But a fill that holds its lock while a replica lags makes those behind it wait.)
    """
    schedule = evidence.history.schedule
    climate, terms = schedule.climate, schedule.terms
    if climate.faults or climate.slow or climate.store or climate.store_faults:
        return
    if terms.max_age == 0.2 or terms.lock_timeout < 5 or terms.deadline < 5:
        return
    for id, told in evidence.history.told.items():
        lagged = told.refusal == "lock-timeout" and climate.lag > 0
        if told.left is None and told.refusal not in {None, "invalid-body"} and not lagged:
            yield Violation("S8", f"{id} was refused: {told.refusal}")


def _broke(evidence: Evidence, id: str) -> bool:
    """Whether the upstream broke off its reply to this call (C3)."""
    return any(sent.id == id and sent.complete is None for sent in evidence.ledger)


def _content(sent: Sent) -> tuple[str, bytes, bytes | None]:
    return sent.target, sent.body, h.first(sent.headers, b"if-match")


def _left(sent: Sent) -> float:
    return math.inf if sent.left is None else sent.left


def _end(sent: Sent) -> float:
    return math.inf if sent.ended is None else sent.ended


PROMISES: tuple[Rule, ...] = (
    s1, sources, s4, fifo, s7, s8, c2, l1, retargeted, checked, clients_that_leave, traces, fair_weather,
)  # fmt: skip


def broken(history: History) -> list[Violation]:
    evidence = Evidence(history)
    return [violation for promise in PROMISES for violation in promise(evidence)]


def apart(alone: History, beside: History) -> Iterator[Violation]:
    """
    What goes to an upstream is what would go there if there were no other: nothing that is known, waited for
    or counted is of both.
    """
    for one, other in zip_longest(alone.ledger, beside.ledger):
        if one is None or other is None or _seen(one) != _seen(other):
            yield Violation("apart", f"{_described(one)} alone, {_described(other)} beside another upstream")
            return
        if abs(one.begun - other.begun) > MOMENTS:
            yield Violation("apart", f"#{one.number} left at {one.begun:.6f}, or {other.begun:.6f}")
            return


def _seen(sent: Sent) -> tuple[object, ...]:
    return sent.id, sent.method, sent.target, sent.body, sent.status


def _described(sent: Sent | None) -> str:
    return "nothing" if sent is None else f"#{sent.number} {_seen(sent)}"
