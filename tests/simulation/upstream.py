"""
The upstream, simulated: eventually consistent, with a ledger of all that it was sent.

It is a `gateway.upstream.transport.Transport`. The truth is a history of values; a GET shows it as a replica
that lags has it, a write is applied at a moment of its own, before or after its answer, or though the
answer is lost. The gateway giving up changes nothing of what has left already.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from random import Random
from typing import Any

from gateway.errors import ConnectionRefused, ConnectionTerminated, InvalidReply, ReadTimeout
from gateway.http import headers as h
from gateway.http.headers import Fields, Header, Headers
from gateway.http.slots import Values
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, nobody
from tests.simulation.loop import Loop
from tests.simulation.schedule import (
    FAULTS,
    READ_TIMEOUT,
    About,
    Climate,
    Fate,
    Fault,
    Loss,
    Schedule,
    about,
    caller_of,
    members,
)

LUCKY = Fate()
WATCHED = ("state", "held")
LARGE = 16 * 1024  # bytes: more than the simulated gateway takes
LATENCIES = (0.0, 0.001, 0.01, 0.01, 0.02, 0.05)
SLOW = (0.15, 0.4, 0.9, 1.05, 2.0, 3.5)
READ_REFUSALS = (401, 403, 404, 429, 429, 429, 500, 503)
WRITE_REFUSALS = (400, 409, 409, 409, 412, 412, 422, 429, 500, 503)
LOSSES: tuple[Loss, ...] = ("refused", "request", "reply", "silence")

# Of a conversation's participants, by field, the one value that a GET showed.
Shown = Mapping[tuple[str, str], str]


@dataclass(slots=True)
class Sent:
    """
    One message on the ledger. `begun` is when the gateway handed it to the wire, `left` when a connection
    was had, `ended` when the gateway had the head of the reply or gave up, `complete` when it had all of
    it; None: never.
    """

    number: int
    id: str
    begun: float
    method: str
    target: str
    headers: list[Header]
    credential: str
    about: About
    learned: bool
    body: bytes = b""
    fate: Fate = LUCKY
    left: float | None = None
    ended: float | None = None
    complete: float | None = None
    status: int | None = None
    applied: list[float] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    shown: Shown = field(default_factory=dict)
    error: str = ""

    @property
    def members(self) -> dict[str, Any]:
        return dict(members(self.body) or ())

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """It changed nothing; of what was not read in time (408) nobody knows."""
        return self.status is not None and 400 <= self.status < 500 and self.status != 408


@dataclass(slots=True)
class SimulatedBody:
    """Where a reply's body comes from (gateway.upstream.reply.Source)."""

    pieces: list[bytes]
    sent: Sent
    loop: Loop
    rest: float = 0.0
    breaks: bool = False

    async def more(self, reply: Reply) -> None:
        if not self.pieces:
            reply.finish(InvalidReply("the reply broke off"))
            return
        if self.rest:
            await asyncio.sleep(self.rest / 2)
        reply.arrived(self.pieces.pop(0))
        self.end(reply)

    def end(self, reply: Reply) -> None:
        """If nothing is left to come."""
        if not self.pieces and not self.breaks:
            self.sent.complete = self.loop.clock()
            reply.finish()

    def taken(self) -> None:
        """Nothing more comes until it is asked for."""

    def abandon(self, reply: Reply) -> None:
        reply.finish()


class SimulatedUpstream:
    def __init__(self, schedule: Schedule, loop: Loop, wall: Callable[[], float]) -> None:
        self._loop = loop
        self._wall = wall
        self._seed = schedule.seed
        self._climate = schedule.climate
        self._fates = schedule.fates
        self._told: dict[str, int] = {}
        self._writes = 0
        self._first = 199 + schedule.first
        self.ledger: list[Sent] = []
        self.replies: list[tuple[Sent, Reply]] = []
        self.truth: dict[str, dict[str, dict[str, list[tuple[float, str]]]]] = {
            conversation: {
                participant: {name: [(0.0, value)] for name, value in fields.items()}
                for participant, fields in people.items()
            }
            for conversation, people in schedule.conversations.items()
        }

    def set(self, conversation: str, participant: str, name: str, value: str) -> bool:
        """Whether that changed anything."""
        history = self.truth.get(conversation, {}).get(participant, {}).get(name)
        if history is None or history[-1][1] == value:
            return False
        history.append((self._loop.clock(), value))
        return True

    # --- the transport

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        values: Values = (),
        before_send: BeforeSend | None = None,
        caller: Callable[[], str] = nobody,
    ) -> Reply:
        sent = self._received(method.decode().upper(), target.decode(), [*headers, *extra_headers])
        try:
            if isinstance(body, AsyncIterator):
                sent.body = b"".join([piece async for piece in body])
            else:
                sent.body = body or b""
            if sent.fate.wait:
                await asyncio.sleep(sent.fate.wait)
            if before_send is not None:
                commit = before_send()
                if commit is not None:
                    commit()
            sent.left = self._loop.clock()
            reply = await self._answered(sent)
            sent.status = reply.status
            return reply
        except BaseException as error:
            sent.error = type(error).__name__
            raise
        finally:
            sent.ended = self._loop.clock()

    def close(self) -> None:
        """There is nothing to close."""

    async def wait_closed(self) -> None:
        """Nor to wait for."""

    def _received(self, method: str, target: str, headers: list[Header]) -> Sent:
        id = (h.first(headers, b"x-request-id") or b"").decode()
        sent = Sent(
            number=len(self.ledger),
            id=id,
            begun=self._loop.clock(),
            method=method,
            target=target,
            headers=headers,
            credential=caller_of(dict(headers)),
            about=about(method, target),
            learned=h.first(headers, b"x-client-read") is not None,
        )
        told = self._told[id] = self._told.get(id, -1) + 1
        fates = self._fates.get(id, ())
        sent.fate = fates[told] if told < len(fates) else drawn(self._seed, sent, told, self._climate)
        self.ledger.append(sent)
        return sent

    async def _answered(self, sent: Sent) -> Reply:
        fate, loop = sent.fate, self._loop
        if fate.loss == "refused":
            await asyncio.sleep(fate.out)
            sent.left = None  # the connection it was to take had been closed, and no other was to be had
            raise ConnectionRefused("nobody listens")
        answer: asyncio.Future[Reply] = loop.create_future()
        if fate.loss != "request":
            loop.call_later(fate.out, self._serve, sent, answer)
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                reply = await answer
        except TimeoutError as error:
            raise ReadTimeout("no answer") from error
        self.replies.append((sent, reply))
        return reply

    def _serve(self, sent: Sent, answer: asyncio.Future[Reply]) -> None:
        """The upstream has the whole request. What happens now happens, whoever still waits."""
        fate = sent.fate
        status, headers, body = self._done(sent)
        if fate.loss == "silence":
            return
        pieces = [piece for piece in (body[: len(body) // 2], body[len(body) // 2 :]) if piece]
        breaks = fate.fault == "cut" and status == 200
        source = SimulatedBody(pieces, sent, self._loop, fate.rest, breaks)
        reply = Reply()
        reply.begin(source, status, Fields(headers))

        def arrives() -> None:
            if answer.done():
                return
            if fate.loss == "reply":
                answer.set_exception(ConnectionTerminated("reset"))
                return
            source.end(reply)
            answer.set_result(reply)

        self._loop.call_later(fate.back, arrives)

    # --- what the upstream does

    def _done(self, sent: Sent) -> tuple[int, list[Header], bytes]:
        fate, kind = sent.fate, sent.about.kind
        if fate.status is not None and not (fate.status >= 500 and kind != "read"):
            return self._refusal(fate.status, fate.retry_after)
        if kind == "read":
            return self._document(sent)
        refused = self._refused(sent)
        if refused is not None:
            return self._refusal(refused, None)
        if fate.applied_after:
            self._loop.call_later(fate.applied_after, self._apply, sent)
        else:
            self._apply(sent)
        if fate.status is not None:
            return self._refusal(fate.status, fate.retry_after)
        if kind != "patch" or not fate.answer:
            return 202, [(b"content-length", b"0")], b""
        told = json.dumps({"id": sent.about.participant, "state": fate.answer}).encode()
        return 200, [(b"content-type", b"application/json")], told

    def _refused(self, sent: Sent) -> int | None:
        if self._climate.absent and sent.about.kind == "write" and sent.target.endswith("/attributes"):
            rng = Random(f"{self._seed} {sent.number} absent")
            return rng.choice((404, 405)) if rng.random() < self._climate.absent else None
        if sent.about.kind != "patch":
            return None
        if self._climate.strict and "state" not in sent.members:
            return 400
        expected = h.first(sent.headers, b"if-match")
        if expected is not None and expected != self._etag(self._shown_at(sent, 0.0)[0]):
            return 412
        return None

    def _refusal(self, status: int, retry_after: str | None) -> tuple[int, list[Header], bytes]:
        headers: list[Header] = [(b"content-type", b"application/json")]
        if retry_after == "date":
            headers.append((b"retry-after", formatdate(self._wall() + 2, usegmt=True).encode()))
        elif retry_after is not None:
            headers.append((b"retry-after", retry_after.encode()))
        return status, headers, b'{"status": %d}' % status

    def _apply(self, sent: Sent) -> None:
        sent.applied.append(self._loop.clock())
        kind, conversation, participant = sent.about.kind, sent.about.conversation, sent.about.participant
        if kind == "patch":
            assert conversation is not None
            assert participant is not None
            for name, value in sent.members.items():
                if (
                    name in WATCHED
                    and isinstance(value, str)
                    and self.set(conversation, participant, name, value)
                ):
                    sent.changed.append(name)
            return
        for one in self.truth if kind == "bulk" else [conversation or ""]:
            for person, fields in self.truth.get(one, {}).items():
                for name in fields:
                    self._writes += 1
                    letter = "x" if self._writes % 3 == 0 else name[0]
                    self.set(one, person, name, f"{letter}{self._first + self._writes}")

    # --- what a GET shows

    def _shown_at(self, sent: Sent, lag: float) -> tuple[dict[str, Any], Shown]:
        when = self._loop.time() - lag
        people = self.truth.get(sent.about.conversation or "", {})
        shown = {
            (participant, name): next(
                (value for time, value in reversed(history) if time <= when), history[0][1]
            )
            for participant, fields in people.items()
            for name, history in fields.items()
        }
        document = {
            "id": sent.about.conversation,
            "participants": [
                {"id": participant, **{name: shown[participant, name] for name in fields}}
                for participant, fields in people.items()
            ],
        }
        return document, shown

    def _document(self, sent: Sent) -> tuple[int, list[Header], bytes]:
        document, shown = self._shown_at(sent, sent.fate.lag)
        fault = sent.fate.fault
        if fault in SPOILT:
            SPOILT[fault](document)
            shown = {}
        body = json.dumps(document).encode()
        headers: list[Header] = [(b"content-type", b"application/json")]
        if self._climate.etags:
            etag = self._etag(document)
            headers.append((b"etag", etag))
            if h.first(sent.headers, b"if-none-match") == etag:
                sent.shown = shown
                return 304, headers[1:], b""
        match fault:
            case "html":
                return 200, [(b"content-type", b"text/html")], body
            case "list":
                return 200, headers, b"[" + body + b"]"
            case "garbage":
                return 200, headers, body[:-3]
            case "gzip" if not sent.learned:
                return 200, [*headers, (b"content-encoding", b"gzip")], gzip.compress(body, mtime=0)
            case "large":
                return 200, headers, body + b" " * LARGE
        if fault != "cut":
            sent.shown = shown
        if fault == "gzip":
            return 200, [*headers, (b"content-encoding", b"gzip")], gzip.compress(body, mtime=0)
        return 200, headers, body

    @staticmethod
    def _etag(document: Mapping[str, Any]) -> bytes:
        return b'"%s"' % hashlib.sha1(json.dumps(document).encode()).hexdigest()[:16].encode()


def _then(history: list[tuple[float, str]], when: float) -> str:
    return next((value for time, value in reversed(history) if time <= when), history[0][1])


def _another(document: dict[str, Any]) -> None:
    document["id"] = "another"


def _missing(document: dict[str, Any]) -> None:
    document["participants"] = []


def _ambiguous(document: dict[str, Any]) -> None:
    people = document["participants"]
    people += [{"id": person["id"], "state": "s299", "held": "h299"} for person in people]


def _number(document: dict[str, Any]) -> None:
    for person in document["participants"]:
        person["state"] = person["held"] = 17


# Whole JSON replies that name no value to fill all the same.
SPOILT: dict[Fault | None, Callable[[dict[str, Any]], None]] = {
    "other": _another,
    "missing": _missing,
    "ambiguous": _ambiguous,
    "number": _number,
}


def drawn(seed: int, sent: Sent, told: int, climate: Climate) -> Fate:
    """A message's luck is its own: it stays the same when other calls are taken out of the schedule."""
    rng = Random(f"{seed} {sent.id} {told}")
    out, back = rng.choice(LATENCIES), rng.choice(LATENCIES)
    if rng.random() < climate.slow:
        if rng.random() < 0.5:
            out = rng.choice(SLOW)
        else:
            back = rng.choice(SLOW)
    lag = rng.uniform(0.0, climate.lag) if rng.random() < 0.7 else 0.0
    wait = rng.choice((0.01, 0.3)) if rng.random() < climate.slow / 2 else 0.0
    fate = Fate(wait=wait, out=out, back=back, rest=rng.choice(LATENCIES), lag=lag)
    if sent.about.kind != "read":
        if rng.random() < 0.2:
            fate = replace(fate, answer=str(sent.members.get("state", "")) if rng.random() < 0.5 else "x299")
        if climate.lag and rng.random() < 0.2:
            fate = replace(fate, applied_after=rng.choice(SLOW))
    if rng.random() >= climate.faults:
        return fate
    wrong = rng.random()
    if wrong < 0.3:
        return replace(fate, loss=rng.choice(LOSSES))
    if sent.about.kind == "read" and wrong < 0.6:
        return replace(fate, fault=rng.choice(FAULTS))
    status = rng.choice(READ_REFUSALS if sent.about.kind == "read" else WRITE_REFUSALS)
    return replace(fate, status=status, retry_after=rng.choice((None, "0", "1", "date", "soon")))
