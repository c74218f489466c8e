"""
The state to fill: looked up when it is needed, shared by all who need it at once, remembered in the store.

`freshness.py` says when what the store has may be filled. Here is what only this process knows: the look-ups
in flight (S8), what was chosen from a reading, and what the store could not be told.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Container, Hashable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, Protocol
from weakref import WeakKeyDictionary

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.errors import GatewayError, LookupFailed, ReadTimeout, StoreUnavailable
from gateway.http import headers as h
from gateway.http.content_coding import Damaged, inflate
from gateway.http.forwarding import lookup_request_headers, varies_beyond
from gateway.http.times import age_of, retry_after
from gateway.repairs import select
from gateway.repairs.findings import Unfilled
from gateway.repairs.json_text import collector_at_rest, too_many_values
from gateway.rules import FillTarget
from gateway.state.documents import judged, parsed
from gateway.state.freshness import is_fresh, is_settled, may_join
from gateway.state.lookup_results import REFUSALS, LookupRefused, LookupRequest, LookupResult, LookupResults
from gateway.state.store import Accepted, Key, Reading, Refusal, Stamp, Store, Suspension, View
from gateway.state.sweeps import SweepRate
from gateway.upstream.reply import Reply
from gateway.upstream.transport import Transport

COOKIES = frozenset({b"set-cookie", b"set-cookie2"})
FIRST_DELAY = 0.05  # seconds until a look-up that disagreed with the accepted value is repeated; doubles
CHOSEN_KEPT = 256  # participants of one reading whose value is remembered
PARSED_KEPT = 16  # readings
UNCOUNTED = 64 * 1024  # bytes of a reply, past which it counts in the budget while it is read
MAX_SEARCHED = 700  # values of a reading that a query of an unusual shape goes through, at 12 µs each
MISSED_KEPT = 10_000  # conversations and subjects of which the store could not be told
MAX_SEARCHED_SIZE = 256 * 1024  # bytes of it, since parsing more takes the rest of the time


class _Found(Struct, frozen=True):
    """
    A reading, and until when nothing was fresher: the moment at which its GET was answered, for a call that
    waited for it; for any other, the moment as of which it was read.
    """

    reading: Reading
    source: str
    had: float


class _InFlight(Struct, eq=False):
    """A look-up that is under way, and the stamp that its reading will carry."""

    task: asyncio.Task[_Found]
    generation: int
    started: float


class Budget(Protocol):
    """How many bytes may wait in memory, in all and of one caller."""

    def take(self, caller: Hashable, size: int) -> None:
        """Raises Overloaded."""

    def give_back(self, caller: Hashable, size: int) -> None: ...


class _NotShared(Exception):
    """What another call's look-up read is for that call alone."""


class OpenWrite(Struct, frozen=True):
    """
    A call that may change the state, from right before it leaves until it is over. `conversation` None: of
    any. `suspension`: of what was read before, where the call has its conversation for itself.
    """

    conversation: str | None
    credential: str
    suspension: Suspension | None


class _Chosen(Struct, eq=False):
    """
    What was chosen from one reading: `values` by query and parameters; `indexes` by query, from the second
    choice on, where its shape is a usual one.
    """

    values: dict[tuple[str, ...], str] = {}
    indexes: dict[str, select.Index] | None = None


class _Missed(Struct, eq=False):
    """
    What the store could not be told of calls about one conversation: that it is to be invalidated, and for
    which subjects a value was accepted, with the seconds that each takes to settle. `times`: how often.
    """

    subjects: dict[tuple[str, ...], float] = field(default_factory=dict)
    times: int = 0


class Lookups:
    """
    The store may fail. A fill then raises StoreUnavailable, and the call is not sent. A write goes on: what
    the store missed of it is remembered, from before it leaves, and made up for before it matters
    (`_catch_up`). Readings and pauses may be lost: they only save look-ups.
    """

    def __init__(
        self,
        store: Store,
        upstream: Transport,
        *,
        wall: Callable[[], float],
        counts: Counter[tuple[str, ...]],
        max_body: int,
        max_pause: float,
        sweeps: SweepRate,
        budget: Budget,
        ignored: Container[bytes],
        isolates: bool = False,
        timed: Callable[[str, float], None] = lambda ended, seconds: None,
    ) -> None:
        """
        `wall` gives Unix seconds; `max_body` in bytes, `max_pause` in seconds. `ignored`: fields in which
        the calls of one key may differ. `isolates`: look_up_isolated may be asked. `timed` is told of each
        GET how it ended, and its seconds.
        """
        self._store = store
        self._sweeps = sweeps
        self._upstream = upstream
        self.now: Callable[[], float] = store.now
        self._wall = wall
        self._counts = counts
        self._max_body = max_body
        self._max_pause = max_pause
        # Told of each pause that a 429 makes, with its seconds.
        self.on_pause: Callable[[float], None] | None = None
        self._budget = budget
        self._ignored = ignored
        self._isolates = isolates
        self._timed = timed
        self._in_flight: dict[Key, _InFlight] = {}  # of each key the one that may be joined
        self._tasks: set[asyncio.Task[_Found]] = set()  # all look-ups that are under way
        # A reading serves all its participants.
        self._chosen_from: WeakKeyDictionary[Reading, _Chosen] = WeakKeyDictionary()
        # The last readings that were parsed, until something is chosen from them.
        self._parsed: dict[Reading, dict[str, Any]] = {}
        # When all conversations were last invalidated, by a write that names none.
        self._all_invalidated_at = -math.inf
        # By conversation; None for all of them.
        self._missed: dict[str | None, _Missed] = {}
        self._missed_subjects = 0  # in all of them
        # What was accepted here and may not have settled, for when the store can't be asked: oldest first.
        self._accepted_here: dict[tuple[str, ...], Accepted] = {}

    # --- look up

    def try_cached(self, requests: Sequence[LookupRequest], seen: View | None = None) -> LookupResults | None:
        """
        All results, if readings that are at hand give them: the way of nearly every call in a burst. `seen`:
        the view of the only request, where the store has told it.
        """
        if self._missed:
            return None
        values: dict[str, LookupResult] = {}
        for request in requests:
            target = request.target
            view = seen or self._store.try_view(request.key, target.subject)
            if view is None:
                return None
            reading, fill = view.reading, target.fill
            if reading is None or not is_fresh(
                reading, view.generation, fill.max_age, request.since, view.time
            ):
                return None
            value = self._chosen(reading, target)
            if not isinstance(value, str) or value not in fill.allow:
                return None
            if view.accepted is not None and not is_settled(reading, value, view.accepted):
                return None
            values[fill.field] = LookupResult(request, value, reading, "cache", reading.started - reading.age)
        self._counts["gateway_lookups_total", "cached"] += len(values)
        return LookupResults(values)

    async def look_up_all(self, requests: Sequence[LookupRequest]) -> LookupResults:
        """Raises LookupRefused, or a GatewayError when there was no usable reply."""
        values: dict[str, LookupResult] = {}
        unfilled: str | None = None
        own: dict[Key, _Found] = {}
        for request in requests:
            result = await self.look_up(request, own)
            if isinstance(result, Unfilled):
                unfilled = result.reason
            else:
                values[request.target.fill.field] = result
        return LookupResults(values, unfilled)

    async def look_up(
        self, request: LookupRequest, own: dict[Key, _Found] | None = None
    ) -> LookupResult | Unfilled:
        """
        Raises LookupRefused, or a GatewayError when there was no usable reply. `own`: what the same call has
        waited for before; what this one waits for is added.
        """
        own = {} if own is None else own
        fill = request.target.fill
        # What another process has read by its own clock may seem to be from before this one's last sweep.
        not_before = swept = math.nextafter(self._all_invalidated_at, math.inf)
        delay = FIRST_DELAY
        give_up = self.now() + fill.settle
        alone = False
        while True:
            view = await self._view(request)
            try:
                found = await self._reading(request, view, not_before, alone, own.get(request.key))
            except _NotShared:
                alone = True
                continue
            if found is None:
                continue
            if found.source == "lookup":
                own[request.key] = found
            value = self._chosen(found.reading, request.target)
            if is_settled(found.reading, value, view.accepted):
                break
            self._counts["gateway_lookups_total", "disagreed"] += 1
            if found.source == "cache" and not_before == swept:
                # Any GET that began later counts, so that all calls which find it so share one (S8).
                not_before = math.nextafter(found.reading.started, math.inf)
                continue
            # Only a GET that begins from now on counts; all calls that wait for one share it (S8).
            not_before = self.now()
            if not_before + delay >= give_up:
                return Unfilled("unsettled")
            await asyncio.sleep(delay)
            delay *= 2
        if isinstance(value, Unfilled):
            return value
        if not fill.allowed(value):
            return Unfilled(f"{fill.field}-not-allowed")
        return LookupResult(request, value, found.reading, found.source, found.had)

    async def read_after(self, request: LookupRequest) -> str | None:
        """
        What one GET shows that begins when the request was made or later. None where it shows no value, or
        a write was over meanwhile. Raises as `look_up`.
        """
        view = await self._view(request)
        try:
            found = await self._reading(request, view, request.since, False, None)
        except _NotShared:
            return None
        if found is None or (await self._view(request)).generation > view.generation:
            return None
        value = self._chosen(found.reading, request.target)
        return value if isinstance(value, str) else None

    async def look_up_isolated(self, requests: Sequence[LookupRequest]) -> LookupResults:
        """
        Without the store: by a GET for each, that nobody else uses. What was accepted meanwhile is known of
        this process's calls alone (S5). Raises as look_up_all.
        """
        values: dict[str, LookupResult] = {}
        unfilled: str | None = None
        for request in requests:
            target, delay = request.target, FIRST_DELAY
            give_up = self.now() + target.fill.settle
            while True:
                view = View(self.now(), 0, None, None, None)
                reading = await self._read_in_time(request, view)
                value = self._chosen(reading, target)
                if is_settled(reading, value, self._accepted_here.get(target.subject)):
                    break
                if self.now() + delay >= give_up:
                    value = Unfilled("unsettled")
                    break
                await asyncio.sleep(delay)
                delay *= 2
            if isinstance(value, Unfilled):
                unfilled = value.reason
            elif not target.fill.allowed(value):
                unfilled = f"{target.fill.field}-not-allowed"
            else:
                self._counts["gateway_lookups_total", "isolated"] += 1
                values[target.fill.field] = LookupResult(request, value, reading, "lookup", self.now(), True)
        return LookupResults(values, unfilled)

    async def usable(self, results: LookupResults) -> bool:
        """Whether they may still be filled, asked right before the call leaves (S2, S3)."""
        stamp = None
        for result in results.values.values():
            request, reading = result.request, result.reading
            if stamp is None:  # one call is about one conversation
                stamp = await self._stamped(request.key.conversation)
            max_age = request.target.fill.max_age
            if not is_fresh(reading, stamp.generation, max_age, request.since, stamp.time):
                return False
        return True

    async def _stamped(self, conversation: str) -> Stamp:
        try:
            if self._missed:
                await self._catch_up(conversation)
            return await self._store.stamp(conversation)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            raise

    def usable_without_store(self, results: LookupResults) -> bool:
        """
        What can be told as the call leaves, without asking the store: no write that names no conversation
        was answered since the oldest reading, and none got too old while the call waited for a connection
        (S2, S3). What a look-up of its own showed counts from when it was there, since nothing was fresher
        then; but after a wait something is.
        """
        now = self.now()
        for result in results.values.values():
            request, reading = result.request, result.reading
            if reading.started <= self._all_invalidated_at:
                return False
            max_age = request.target.fill.max_age
            if not is_fresh(reading, reading.generation, max_age, request.since, now):
                return False
            if max_age and now - result.had > max_age:
                return False
        return True

    def _chosen(self, reading: Reading, target: FillTarget) -> str | Unfilled:
        if reading.ambiguous:
            return Unfilled(f"{target.fill.field}-ambiguous")
        chosen = self._chosen_from.get(reading)
        if chosen is not None:
            known = chosen.values.get(target.which)
            if known is not None:
                return known
            value = self._choose_by_index(reading, chosen, target)
        else:
            chosen = self._chosen_from[reading] = _Chosen()
            value = self._choose(reading, target)
        # Only what was found: names that are not in the body could be as many and as long as one likes.
        if len(chosen.values) < CHOSEN_KEPT and not isinstance(value, Unfilled):
            chosen.values[target.which] = value
        return value

    def _choose(self, reading: Reading, target: FillTarget) -> str | Unfilled:
        document = self._parsed.pop(reading, None)
        usual = select.listed(target.fill.select) is not None
        body = reading.body
        if not usual and (
            len(body) > MAX_SEARCHED_SIZE or too_many_values(body.decode("latin-1"), MAX_SEARCHED)
        ):
            return Unfilled("too-many-values")
        if document is None:
            document = parsed(reading.body)
        return target.fill.chosen(document, target.data)

    def _choose_by_index(self, reading: Reading, chosen: _Chosen, target: FillTarget) -> str | Unfilled:
        """For the second choice from a reading and those after it: most readings never see one."""
        query = target.fill.select
        usual = select.listed(query)
        if usual is None:
            return self._choose(reading, target)
        if chosen.indexes is None:
            chosen.indexes = {}
        index = chosen.indexes.get(query)
        if index is None:
            document = parsed(reading.body)
            with collector_at_rest():
                index = chosen.indexes[query] = usual.index(document)
        return target.fill.judged(index.values(target.data))

    async def _view(self, request: LookupRequest) -> View:
        try:
            if self._missed:
                await self._catch_up(request.key.conversation)
            return await self._store.view(request.key, request.target.subject)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            raise

    async def _reading(
        self, request: LookupRequest, view: View, not_before: float, alone: bool, own: _Found | None
    ) -> _Found | None:
        """
        `own` or the one that is kept, if it may be filled and began no earlier than `not_before`, or a new
        one; that of a look-up in flight only if not `alone`. None when it waited for a look-up that began
        before the call had arrived, and takes too long for it. Raises _NotShared.
        """
        key, kept, max_age = request.key, view.reading, request.target.fill.max_age
        # That nothing was fresher holds for what this call waits for, and not for what others left here.
        since = math.inf if max_age else request.since
        if (
            kept is not None
            and kept.started >= not_before
            and is_fresh(kept, view.generation, max_age, since, view.time)
        ):
            self._counts["gateway_lookups_total", "cached"] += 1
            return _Found(kept, "cache", kept.started - kept.age)
        if (
            own is not None
            and own.reading.started >= not_before
            and is_fresh(own.reading, view.generation, max_age, request.since, view.time)
        ):
            self._counts["gateway_lookups_total", "cached"] += 1
            return _Found(own.reading, "cache", own.had)
        if view.pause is not None:
            self._hold_back(view.pause.refusal, view.pause.until - view.time)
        in_flight = self._in_flight.get(key)
        if (
            alone
            or in_flight is None
            or in_flight.generation < view.generation
            or not may_join(in_flight.started, max_age, request.since, not_before, self.now())
        ):
            in_flight = self._start(request, view)
            return await asyncio.shield(in_flight.task)
        self._counts["gateway_lookups_total", "coalesced"] += 1
        if in_flight.started >= request.since:
            found = await asyncio.shield(in_flight.task)
        else:
            try:
                async with asyncio.timeout(in_flight.started + max_age - self.now()):
                    found = await asyncio.shield(in_flight.task)
            except TimeoutError:
                # What it reads would be older than max_age: for this call another can show something fresher.
                return None
        if not found.reading.shared:
            raise _NotShared
        return found

    def _start(self, request: LookupRequest, view: View) -> _InFlight:
        """The GET runs in a task of its own: a caller that leaves, or the first, must not end it (S8)."""
        key = request.key
        task = asyncio.create_task(self._get(request, view))
        self._tasks.add(task)
        in_flight = self._in_flight[key] = _InFlight(task, view.generation, view.time)

        def ended(done: asyncio.Task[_Found]) -> None:
            self._tasks.discard(done)
            if self._in_flight.get(key) is in_flight:
                del self._in_flight[key]
            if not done.cancelled():
                done.exception()  # each waiter raises it; with none left it is nobody's error

        task.add_done_callback(ended)
        return in_flight

    async def _get(self, request: LookupRequest, view: View) -> _Found:
        self._counts["gateway_lookups_total", "sent"] += 1
        began = self.now()
        ended = "failed"
        try:
            reading = await self._read_in_time(request, view)
            # A 304 leaves the very body that was kept.
            ended = "revalidated" if view.reading and reading.body is view.reading.body else "read"
        except LookupRefused:
            ended = "refused"
            raise
        finally:
            if ended in {"refused", "failed"}:
                self._counts["gateway_lookups_total", ended] += 1
            self._timed(ended, self.now() - began)
        found = _Found(reading, "lookup", self.now())
        if reading.shared:
            await self._put(request.key, reading)
        return found

    async def _read_in_time(self, request: LookupRequest, view: View) -> Reading:
        fill = request.target.fill
        try:
            async with asyncio.timeout(fill.lookup_timeout):
                return await self._read(request, view)
        except TimeoutError as error:
            limit = f"{fill.lookup_timeout:g} s"
            raise ReadTimeout(f"the look-up took longer than lookup_timeout ({limit})") from error

    async def _read(self, request: LookupRequest, view: View) -> Reading:
        key, kept = request.key, view.reading
        headers = request.headers.derived(lookup_request_headers)
        extra_headers = request.extra_headers
        if kept is not None and kept.etag is not None:
            extra_headers = [*extra_headers, (b"if-none-match", kept.etag)]
        with await self._upstream.send(
            b"GET",
            key.target,
            headers,
            extra_headers=extra_headers,
            values=request.values,
            caller=lambda: request.caller,
        ) as reply:
            age = age_of(reply.headers)
            shared = not varies_beyond(reply.headers, headers, self._ignored)
            if reply.status == 304 and kept is not None and kept.etag is not None:
                self._counts["gateway_lookups_total", "revalidated"] += 1
                reading = replace(
                    kept,
                    started=view.time,
                    generation=view.generation,
                    learned=False,
                    age=age,
                    shared=shared,
                )
                chosen = self._chosen_from.get(kept)
                if chosen is not None:
                    self._chosen_from[reading] = chosen
                self._check_age(reading, request, reply)
                return reading
            body = await self._body_of(reply, request)
        etag = h.first(reply.headers, b"etag")
        document, ambiguous = judged(body)
        reading = Reading(body, view.time, view.generation, etag, age=age, ambiguous=ambiguous, shared=shared)
        self._check_age(reading, request, reply)
        if not ambiguous:
            while len(self._parsed) >= PARSED_KEPT:
                del self._parsed[next(iter(self._parsed))]
            self._parsed[reading] = document
        return reading

    def _check_age(self, reading: Reading, request: LookupRequest, reply: Reply) -> None:
        max_age = request.target.fill.max_age
        if not reading.age or is_fresh(reading, reading.generation, max_age, request.since, self.now()):
            return
        via = b", ".join(h.every(reply.headers, b"via"))
        named = f"; Via: {h.text(via, 100)}" if via else ""
        raise LookupFailed(
            "a cache between the gateway and the upstream answered the look-up "
            f"(Age: {reading.age:g}{named}), and that is older than max_age ({max_age:g} s)"
        )

    async def _body_of(self, reply: Reply, request: LookupRequest) -> bytes:
        # Who is told when to come back does, and succeeds: a 502 in its place would have it give up (C5).
        waits = reply.status == 503 and h.first(reply.headers, b"retry-after") is not None
        if reply.status != 200 and reply.status not in REFUSALS and not waits:
            raise LookupFailed(f"the upstream answered the look-up with {reply.status}")
        body = await self._whole(reply, request.caller)
        if body is None:
            raise LookupFailed(f"the look-up's reply is larger than limits.max_body ({self._max_body} bytes)")
        if reply.status != 200:
            # It may be told to more callers than the one whose look-up it was: cookies are for nobody (S6).
            headers = h.without(h.end_to_end(reply.headers), COOKIES)
            refusal = Refusal(reply.status, headers, body)
            if reply.status == 429:
                await self._pause(request.key.credential, refusal)
            raise LookupRefused(refusal)
        if h.first(reply.headers, b"content-encoding") not in {None, b"identity"}:
            raise LookupFailed("the upstream compressed the look-up's reply though it was asked not to")
        if not reply.headers.derived(h.is_json):
            raise LookupFailed("the look-up's reply is not JSON")
        return body

    async def _whole(self, reply: Reply, caller: str) -> bytes | None:
        """None as soon as it is more than max_body. Raises Overloaded."""
        pieces: list[bytes] = []
        size = held = 0
        try:
            while not reply.ended:
                piece = await reply.read()
                size += len(piece)
                if size > self._max_body:
                    return None
                if size > UNCOUNTED:
                    self._budget.take(caller, size - held)
                    held = size
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            if held:
                self._budget.give_back(caller, held)

    async def close(self) -> None:
        """Ends the look-ups that are in flight."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what saves a look-up: that the store fails costs one, and no more

    async def _put(self, key: Key, reading: Reading) -> bool:
        try:
            return await self._store.put(key, reading)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            return False

    async def _pause(self, credential: str, refusal: Refusal) -> None:
        seconds = retry_after(h.first(refusal.headers, b"retry-after"), self._wall())
        if not seconds:
            return
        seconds = min(seconds, self._max_pause)
        self._counts["gateway_lookup_pauses_total",] += 1
        if self.on_pause is not None:
            self.on_pause(seconds)
        try:
            await self._store.pause(credential, refusal, seconds)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1

    def _hold_back(self, refusal: Refusal, left: float) -> NoReturn:
        self._counts["gateway_lookups_total", "held_back"] += 1
        headers = h.replaced(refusal.headers, b"retry-after", b"%d" % math.ceil(left))
        raise LookupRefused(replace(refusal, headers=headers))

    async def stamp(self, conversation: str) -> Stamp | None:
        """Before a client's own GET that may be primed from begins; None where nothing can be kept."""
        try:
            return await self._store.stamp(conversation)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            return None

    async def prime(self, key: Key, reading: Reading, coding: bytes | None) -> None:
        """From a client's own GET: kept as if it had been looked up, when it is a whole JSON document."""
        body = reading.body
        try:
            if coding is not None:
                body = inflate(body, coding, self._max_body)
            _, ambiguous = judged(body)
        except (Damaged, GatewayError, KeyError):
            return
        if ambiguous:
            return
        if await self._put(key, replace(reading, body=body)):
            self._counts["gateway_lookups_total", "learned"] += 1

    # --- settle

    async def begin_write(self, conversation: str | None, credential: str, *, exclusive: bool) -> OpenWrite:
        """
        Before a call that may change the state of the conversation (None: of any) leaves. What was read
        before it can't be filled while it is in flight: where it is `exclusive` it holds the lock. Whether
        that is forgotten is known when it is over: then `invalidate_after`, or `changed_nothing`. Raises
        UnnamedWritesLimited; and StoreUnavailable only where more was missed than can be remembered.
        """
        if self._missed:
            told = False
            with suppress(StoreUnavailable):
                told = await self._catch_up(conversation)
            if not told and len(self._missed) + self._missed_subjects >= MISSED_KEPT:
                raise StoreUnavailable("it has missed more writes than can be remembered")
        if conversation is None:
            await self._sweeps.take(credential)
        elif exclusive:
            try:
                return OpenWrite(conversation, credential, await self._store.suspend(conversation))
            except StoreUnavailable:
                # It leaves all the same: from now on nothing is used here that was read before.
                self._counts["gateway_store_failures_total",] += 1
                self._miss(conversation)
        return OpenWrite(conversation, credential, None)

    async def changed_nothing(self, write: OpenWrite) -> None:
        """It was refused, or did not leave. That the store can't be told costs a look-up, and no more."""
        if write.conversation is None:
            self._sweeps.give_back(write.credential)
        elif write.suspension is not None:
            try:
                await self._store.reinstate(write.suspension)
            except StoreUnavailable:
                self._counts["gateway_store_failures_total",] += 1

    async def invalidate_after(self, conversation: str | None) -> None:
        """
        When a call is over that may have changed the state: also a GET that began meanwhile may have seen the
        one from before. Raises no StoreUnavailable: the call has left.
        """
        if conversation is None:
            self.swept()
            self._counts["gateway_sweeps_total",] += 1
        else:
            self._counts["gateway_invalidations_total",] += 1
        try:
            await self._store.invalidate(conversation)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            self._miss(conversation)
        except asyncio.CancelledError:
            # It will be done; but should it fail, nobody is left who would hear of it.
            self._miss(conversation)
            raise

    def swept(self) -> None:
        """All conversations were invalidated: no call leaves any more with what was read until now."""
        self._all_invalidated_at = self.now()

    async def accept(self, conversation: str | None, target: FillTarget, value: str) -> None:
        """The upstream accepted this explicit value. Raises no StoreUnavailable: the call has left."""
        subject, settle = target.subject, target.fill.settle
        if self._isolates:
            self._remember(subject, value, settle)
        try:
            await self._store.accept(subject, value, settle)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            self._miss(conversation, subject, settle)
        except asyncio.CancelledError:
            self._miss(conversation, subject, settle)
            raise

    def _remember(self, subject: tuple[str, ...], value: str, settle: float) -> None:
        since, known = self.now(), self._accepted_here
        while known and known[oldest := next(iter(known))].until <= since:
            del known[oldest]
        known.pop(subject, None)
        known[subject] = Accepted(value, since, since + settle)

    def _miss(
        self, conversation: str | None, subject: tuple[str, ...] | None = None, settle: float = 0.0
    ) -> None:
        missed = self._missed.get(conversation)
        if missed is None:
            missed = self._missed[conversation] = _Missed()
        missed.times += 1
        if subject is not None:
            self._missed_subjects += subject not in missed.subjects
            missed.subjects[subject] = max(settle, missed.subjects.get(subject, 0.0))

    def is_untold(self, conversation: str) -> bool:
        """Whether the store is still to be told of a write to it."""
        return conversation in self._missed

    async def make_up(self) -> None:
        """
        Tells the store all that it missed, as soon as it can be told: others are to forget it too. What is
        about one conversation may be with a server of its own that is not there yet.
        """
        failed = False
        for conversation in list(self._missed):
            try:
                await self._catch_up(conversation)
            except StoreUnavailable:
                failed = True
                await asyncio.sleep(0)  # there may be thousands
        if failed:
            self._counts["gateway_store_failures_total",] += 1

    async def _catch_up(self, conversation: str | None) -> bool:
        """
        Tells the store what it missed, before anything is read or written that it matters to. Which value
        was accepted is not said so late: a newer one may be known by now, here or elsewhere.

        Beside what is about this conversation it tells of one other, the one that has waited longest. So no
        call adds more to what is missed than it has taken from it, and there is never more than calls were
        in flight at once, or had to leave untold. That the other can't be told yet is none of this one's
        concern, and its turn comes again: gives whether it was told.
        """
        for missing in (None, conversation):
            await self._tell(missing)
        oldest = next(iter(self._missed), None)
        told = True
        try:
            await self._tell(oldest)
        except StoreUnavailable:
            told = False
            if oldest in self._missed:
                self._missed[oldest] = self._missed.pop(oldest)
        return told

    async def _tell(self, conversation: str | None) -> None:
        missed = self._missed.get(conversation)
        if missed is None:
            return
        times = missed.times
        for subject, settle in list(missed.subjects.items()):
            await self._store.accept(subject, None, settle)
            # Unless more was missed meanwhile.
            if missed.times == times and missed.subjects.pop(subject, None) is not None:
                self._missed_subjects -= 1
        await self._store.invalidate(conversation)
        if missed.times == times and self._missed.get(conversation) is missed:
            del self._missed[conversation]
