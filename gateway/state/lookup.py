"""
The state to fill, and how fresh it is: look-up, coalescing, generations, witnesses, pauses.

A reading may be used while (1) it is no older than `max_age`, counted from the start of its GET (S2);
(2) its lease is the conversation's current generation: no write began since (S3); (3) it agrees with the
explicit value that was accepted last, or began when `settle` had passed since (S5). Whoever asks again
gets a new GET, shared with all who ask for the same with the same credentials meanwhile (S8).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import msgspec
from cachetools import LRUCache
from msgspec import Struct

from gateway.errors import GatewayError, LookupFailed, ReadTimeout
from gateway.http import headers as h
from gateway.http.content_coding import Damaged, inflate
from gateway.http.forwarding import lookup_request_headers
from gateway.http.headers import Fields, Header, Headers
from gateway.repairs.call import Change
from gateway.repairs.findings import Unfilled
from gateway.rules import FillTarget
from gateway.state.store import Key, Reading, Store
from gateway.upstream.reply import Reply
from gateway.upstream.transport import Transport

# Answers about the caller or the conversation: the client gets them as the upstream gave them (C5).
REFUSALS = frozenset({401, 403, 404, 429})
FIRST_DELAY = 0.05  # seconds until a look-up that disagreed with a witness is repeated; doubles
CHOSEN_KEPT = 256  # participants of one reading whose value is remembered


@dataclass(frozen=True, slots=True)
class Refusal:
    """A whole reply that is relayed later, or again."""

    status: int
    headers: Fields
    body: bytes


class LookupRefused(Exception):
    """The upstream refused the look-up: `refusal` is what it said."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.status)
        self.refusal = refusal


class LookupRequest(Struct, frozen=True):
    """
    What is to be looked up for one fill of one call: `headers` and `own` go upstream with the call, which
    asked at `since`.
    """

    target: FillTarget
    key: Key
    headers: Headers
    extra_headers: Headers
    since: float


class LookupResult(Struct, frozen=True):
    """A value that may be filled, and the reading that it stands in."""

    ask: LookupRequest
    value: str
    reading: Reading
    source: str

    def change(self, now: float) -> Change:
        """As it is recorded."""
        return Change(
            "fill",
            {
                "repair": "fill",
                "field": self.ask.target.fill.field,
                "after": self.value,
                "source": self.source,
                "age_ms": max(0, round((now - self.reading.started) * 1000)),
            },
        )

    @property
    def guard(self) -> bytes | None:
        """What If-Match can say: a strong validator (RFC 9110 section 13.1.1)."""
        if not self.ask.target.fill.guarded:
            return None
        etag = self.reading.etag
        return etag if etag is not None and etag.startswith(b'"') else None


class LookupResults(Struct, frozen=True):
    """What was found for each of a call's fills, by field; `unfilled` says why one may not be made."""

    values: dict[str, LookupResult]
    unfilled: str | None = None

    @property
    def guard(self) -> bytes | None:
        for found in self.values.values():
            guard = found.guard
            if guard is not None:
                return guard
        return None

    @property
    def refill_on(self) -> frozenset[int]:
        return frozenset().union(*(found.ask.target.fill.refill_on for found in self.values.values()))

    def changes(self, now: float) -> dict[str, tuple[str, Change]]:
        return {field: (found.value, found.change(now)) for field, found in self.values.items()}

    def differ(self, fresh: LookupResults) -> bool:
        """Whether the fresh answers, complete as these, would make another PATCH."""
        if fresh.values.keys() != self.values.keys():
            return False
        return fresh.guard != self.guard or any(
            found.value != fresh.values[field].value for field, found in self.values.items()
        )


@dataclass(frozen=True, slots=True)
class _Witness:
    """An accepted value. None: it is not known any more, and nothing agrees with it."""

    value: str | None
    since: float
    until: float


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[Reading]
    generation: int
    started: float


class Lookups:
    def __init__(
        self,
        store: Store,
        upstream: Transport,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        counts: Counter[str],
        max_entries: int,
        max_body: int,
        max_pause: float,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._clock = clock
        self._wall = wall
        self._counts = counts
        self._max_body = max_body
        self._max_pause = max_pause
        self._flights: dict[Key, _Flight] = {}
        self._witnesses: LRUCache[tuple[str, ...], _Witness] = LRUCache(max_entries)
        self._pauses: LRUCache[str, tuple[float, Refusal]] = LRUCache(max_entries)
        # A witness that had to be evicted while it mattered: what was read until then can't be judged.
        self._blind = _Witness(None, -math.inf, -math.inf)
        # When a write that names no conversation last began or ended.
        self._swept = -math.inf

    # --- look up

    def try_cached(self, requests: Sequence[LookupRequest]) -> LookupResults | None:
        """All answers from readings that need no second thought: the way of nearly every call in a burst."""
        values: dict[str, LookupResult] = {}
        for ask in requests:
            fill = ask.target.fill
            reading = self._store.try_get(ask.key)
            if reading is None or not self._fresh(ask, reading):
                return None
            value = self._chosen(ask, reading)
            if isinstance(value, Unfilled) or not fill.allowed(value):
                return None
            if self._witnesses and not self._settled(ask, reading, value):
                return None
            values[fill.field] = LookupResult(ask, value, reading, "cache")
        self._counts["lookups_from_cache"] += len(values)
        return LookupResults(values)

    async def answers(self, requests: Sequence[LookupRequest]) -> LookupResults:
        """Raises LookupRefused, or a GatewayError when there was no usable answer."""
        values: dict[str, LookupResult] = {}
        unfilled: str | None = None
        for ask in requests:
            found = await self.look_up(ask)
            if isinstance(found, Unfilled):
                unfilled = found.reason
            else:
                values[ask.target.fill.field] = found
        return LookupResults(values, unfilled)

    async def look_up(self, ask: LookupRequest) -> LookupResult | Unfilled:
        """Raises LookupRefused, or a GatewayError when there was no usable answer."""
        not_before = -math.inf
        delay = FIRST_DELAY
        give_up = self._clock() + ask.target.fill.settle
        while True:
            reading, source = await self._reading(ask, not_before)
            value = self._chosen(ask, reading)
            if self._settled(ask, reading, value):
                break
            self._counts["lookups_disagreeing"] += 1
            at_first = source == "cache" and not_before == -math.inf
            # Whatever is asked from now on will do, also by another call: a herd costs one GET a round (S8).
            not_before = self._clock()
            if not at_first:
                if not_before + delay >= give_up:
                    return Unfilled("unsettled")
                await asyncio.sleep(delay)
                delay *= 2
        if isinstance(value, Unfilled):
            return value
        if not ask.target.fill.allowed(value):
            return Unfilled(f"{ask.target.fill.field}-not-allowed")
        return LookupResult(ask, value, reading, source)

    async def usable(self, answers: LookupResults) -> bool:
        """Whether they may still be filled, asked right before the call leaves (S2, S3)."""
        for found in answers.values.values():
            if found.reading.generation != await self._store.generation(found.ask.key.conversation):
                return False
            if not self._fresh(found.ask, found.reading):
                return False
        return True

    def still_usable(self, answers: LookupResults) -> bool:
        """
        What can be told at once, when the call leaves: of writes that wait for no turn the last began
        before all was read, and nothing got too old while the call waited for a connection (S2, S3).
        """
        for found in answers.values.values():
            if found.reading.started <= self._swept or not self._fresh(found.ask, found.reading):
                return False
        return True

    def _fresh(self, ask: LookupRequest, reading: Reading) -> bool:
        max_age = ask.target.fill.max_age
        if max_age == 0:
            return reading.started >= ask.since and not reading.learned
        return self._clock() - reading.started <= max_age

    def _settled(self, ask: LookupRequest, reading: Reading, value: str | Unfilled) -> bool:
        """
        Whether it agrees with the value that was accepted last, or was read when that had settled. What
        was read before and did not agree is of no use later either: it was behind already (S5). Of what
        was begun before the value was accepted nothing can be said here: the generation tells (S3).
        """
        witness = self._witnesses.get(ask.target.subject, self._blind)
        return value == witness.value or not witness.since <= reading.started < witness.until

    def _chosen(self, ask: LookupRequest, reading: Reading) -> str | Unfilled:
        target = ask.target
        value = reading.chosen.get(target.which)
        if value is None:
            value = target.fill.chosen(_document(reading.body), target.data)
            # Only what was found: names that are not in the body could be as many and as long as one likes.
            if not isinstance(value, Unfilled) and len(reading.chosen) < CHOSEN_KEPT:
                reading.chosen[target.which] = value
        return value

    async def _reading(self, ask: LookupRequest, not_before: float) -> tuple[Reading, str]:
        key = ask.key
        generation = await self._store.generation(key.conversation)
        kept = await self._store.get(key)
        if (
            kept is not None
            and kept.generation == generation
            and kept.started >= not_before
            and self._fresh(ask, kept)
        ):
            self._counts["lookups_from_cache"] += 1
            return kept, "cache"
        self._check_pause(key.credential)
        flight = self._flights.get(key)
        if flight is None or flight.generation != generation or not self._joinable(ask, flight, not_before):
            flight = self._take_off(
                key, lookup_request_headers([*ask.headers, *ask.extra_headers]), generation, kept
            )
        else:
            self._counts["lookups_coalesced"] += 1
        return await self._landed(ask, flight), "lookup"

    def _joinable(self, ask: LookupRequest, flight: _Flight, not_before: float) -> bool:
        if ask.target.fill.max_age == 0:
            return flight.started >= max(ask.since, not_before)
        # One that hangs is not waited for by those who can't use its answer any more.
        return flight.started >= not_before and self._clock() - flight.started < ask.target.fill.max_age

    def _take_off(self, key: Key, headers: list[Header], generation: int, kept: Reading | None) -> _Flight:
        started = self._clock()
        task = asyncio.create_task(self._get(key, headers, generation, started, kept))
        flight = self._flights[key] = _Flight(task, generation, started)

        def landed(done: asyncio.Task[Reading]) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not done.cancelled():
                done.exception()  # each waiter raises it; with none left it is nobody's error

        task.add_done_callback(landed)
        return flight

    async def _landed(self, ask: LookupRequest, flight: _Flight) -> Reading:
        # The GET is nobody's own: a waiter that leaves, or the first, must not end it for the rest (S8).
        if ask.target.fill.max_age == 0:
            return await asyncio.shield(flight.task)
        left = flight.started + ask.target.fill.max_age - self._clock()
        try:
            async with asyncio.timeout(left):
                return await asyncio.shield(flight.task)
        except TimeoutError as error:
            # Its answer would be older than max_age already: of no use to this call.
            raise ReadTimeout(
                f"the look-up took longer than max_age ({ask.target.fill.max_age:g} s)"
            ) from error

    async def _get(
        self, key: Key, headers: list[Header], generation: int, started: float, kept: Reading | None
    ) -> Reading:
        self._counts["lookups"] += 1
        if kept is not None and kept.etag is not None:
            headers = [*headers, (b"if-none-match", kept.etag)]
        with await self._upstream.send(b"GET", key.target, headers) as reply:
            if reply.status == 304 and kept is not None and kept.etag is not None:
                self._counts["lookups_revalidated"] += 1
                reading = replace(kept, started=started, generation=generation, learned=False)
            else:
                reading = await self._read(reply, generation, started, key.credential)
        await self._store.keep(key, reading)
        return reading

    async def _read(self, reply: Reply, generation: int, started: float, credential: str) -> Reading:
        if reply.status != 200 and reply.status not in REFUSALS:
            raise LookupFailed(f"the upstream answered the look-up with {reply.status}")
        body = await read_whole(reply, self._max_body)
        if body is None:
            raise LookupFailed(f"the look-up's reply is larger than limits.max_body ({self._max_body} bytes)")
        if reply.status != 200:
            self._refuse(Refusal(reply.status, h.end_to_end(reply.headers), body), credential)
        if h.first(reply.headers, b"content-encoding") not in {None, b"identity"}:
            raise LookupFailed("the upstream compressed the look-up's reply though it was asked not to")
        if not reply.headers.derived(h.is_json):
            raise LookupFailed("the look-up's reply is not JSON")
        _document(body)
        return Reading(body, started, generation, h.first(reply.headers, b"etag"))

    # --- pauses

    def _refuse(self, refusal: Refusal, credential: str) -> NoReturn:
        if refusal.status == 429:
            seconds = retry_after(h.first(refusal.headers, b"retry-after"), self._wall())
            if seconds:
                self._counts["lookups_paused"] += 1
                self._pauses[credential] = (self._clock() + min(seconds, self._max_pause), refusal)
        raise LookupRefused(refusal)

    def _check_pause(self, credential: str) -> None:
        pause = self._pauses.get(credential)
        if pause is None:
            return
        until, refusal = pause
        left = until - self._clock()
        if left <= 0:
            del self._pauses[credential]
            return
        self._counts["lookups_held_back"] += 1
        headers = h.replaced(refusal.headers, b"retry-after", b"%d" % math.ceil(left))
        raise LookupRefused(Refusal(refusal.status, headers, refusal.body))

    async def close(self) -> None:
        """Ends the look-ups that are under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- learn

    async def generation(self, conversation: str) -> int:
        return await self._store.generation(conversation)

    async def learn(self, key: Key, reading: Reading, coding: bytes | None) -> None:
        """From a client's own GET: kept as if it had been looked up, when it is a whole JSON document."""
        body = reading.body
        try:
            if coding is not None:
                body = inflate(body, coding, self._max_body)
            _document(body)
        except (Damaged, GatewayError, KeyError):
            return
        kept = await self._store.get(key)
        if kept is not None and kept.started >= reading.started and kept.generation == reading.generation:
            return
        if await self._store.keep(key, replace(reading, body=body)):
            self._counts["lookups_learned"] += 1

    # --- settle

    async def invalidate(self, conversation: str | None) -> None:
        """
        Before a call that may change the state leaves, and when it is over, whatever came of it: a GET
        that began meanwhile may have seen the state from before. None: it may change any conversation's.
        """
        if conversation is None:
            self._swept = self._clock()
        await self._store.invalidate(conversation)

    def witness(self, ask: LookupRequest, value: str) -> None:
        """The upstream accepted this explicit value."""
        now = self._clock()
        while len(self._witnesses) >= self._witnesses.maxsize and ask.target.subject not in self._witnesses:
            _, evicted = self._witnesses.popitem()
            self._blind = _Witness(None, -math.inf, max(self._blind.until, evicted.until))
        self._witnesses[ask.target.subject] = _Witness(value, now, now + ask.target.fill.settle)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = parsed(body)
    except (ValueError, RecursionError) as error:
        raise LookupFailed("the look-up's reply is not valid JSON") from error
    if not isinstance(document, dict):
        raise LookupFailed("the look-up's reply is not a JSON object")
    return document


def parsed(body: bytes) -> Any:
    """
    Raises ValueError or RecursionError. What msgspec refuses though it is JSON (half a surrogate pair,
    a number that no float holds) any client can put into a conversation: the standard library reads it.
    """
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return json.loads(body.decode("utf-8"), parse_int=float, parse_constant=_refused)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


async def read_whole(reply: Reply, limit: int) -> bytes | None:
    """None as soon as it is more than `limit` bytes."""
    pieces: list[bytes] = []
    size = 0
    while not reply.ended:
        piece = await reply.read()
        size += len(piece)
        if size > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def retry_after(value: bytes | None, now: float) -> float | None:
    """Seconds from `now`, a Unix time (RFC 9110 section 10.2.3); None where there is no usable value."""
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # asctime's format names no zone (RFC 9110 section 5.6.7)
    return max(0.0, moment.timestamp() - now)
