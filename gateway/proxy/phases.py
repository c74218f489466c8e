"""
The phases of a matched call after its diagnosis: look up, rewrite, record and forward, settle.

modes.py puts them in order. Three bring the lock and what is to be filled: `ready_at_once` from what is at
hand, `ready` with waiting, and `look_up_under_lock` again where that was too old. Whether it still holds,
Lookups says: `usable` asks the store, `usable_without_store` asks nothing. What touches the world is an
argument: look-ups, locks, transport, audit log, clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

from gateway.audit.watched_bodies import WatchedBodies
from gateway.audit.writer import AuditLog
from gateway.errors import (
    UNSENT,
    LookupFailed,
    NotSent,
    Overloaded,
    ReadTimeout,
    StoreUnavailable,
    UpstreamError,
)
from gateway.proxy.call_record import changes_recorded
from gateway.proxy.departure import Departure
from gateway.proxy.matched_call import MatchedCall
from gateway.repairs import checked, rewrite
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft
from gateway.state.freshness import may_have_changed
from gateway.state.lookup import Lookups
from gateway.state.lookup_results import LookupRefused, LookupResults
from gateway.state.store import ConversationLock, Entrance, Locks
from gateway.upstream.reply import Reply
from gateway.upstream.transport import Commit, Transport

HELD = 2**16  # bytes: of a refusal that is kept to be relayed, of a reply that is compared
TRIES = 3  # look-ups under one lock, where only age or a write that names no conversation spoils one
NOTHING = LookupResults({})

Rewritten: TypeAlias = tuple[Call, tuple[Change, ...]]
Ready: TypeAlias = tuple[ConversationLock, LookupResults]


class Overtaken(Exception):
    """
    The call did not leave: while it waited for the log or for a connection, what it was to be filled with got
    too old.
    """


class Phases:
    def __init__(
        self,
        *,
        lookups: Lookups,
        locks: Locks,
        upstream: Transport,
        audit: AuditLog,
        clock: Callable[[], float],
        counts: Counter[tuple[str, ...]],
        lookup_deadline: float,
        bodies: WatchedBodies,
        entrance: Entrance | None = None,
        isolates: bool = False,
    ) -> None:
        """
        `lookup_deadline`: seconds that a call's look-ups may take together. `entrance`: of a store elsewhere;
        `isolates`: while that fails, each fill has a GET of its own, and order within this process alone.
        """
        self._lookups = lookups
        self._locks = locks
        self._upstream = upstream
        self._audit = audit
        self._clock = clock
        self._counts = counts
        self._lookup_deadline = lookup_deadline
        self._bodies = bodies
        self._entrance = entrance
        self._isolates = isolates

    # --- look up

    def ready_at_once(self, matched: MatchedCall) -> Ready | None:
        """The lock and the results, where neither has to be waited for: nothing comes between them."""
        lock = self._locks.try_acquire(matched.conversation, exclusive=matched.changing)
        if lock is None:
            return None
        if not matched.found.missing:
            return lock, LookupResults({}, matched.found.unfilled)
        began = self._clock()
        results = None
        try:
            results = self._lookups.try_cached(matched.lookup_requests(self._lookups.now()))
        finally:
            if results is None:
                lock.release()
        if results is None:
            return None
        matched.record.lookup = self._clock() - began
        return lock, results

    async def ready(self, matched: MatchedCall) -> Ready:
        """
        As ready_at_once, but waits. Looks up first, so that a slow GET does not hold the lock and with it a
        hang-up; where a write is under way, which may change what is read now, it locks first. Of a store
        elsewhere all is asked at once, for the fill that needs no look-up.
        """
        entered = await self._entered(matched) if self._entrance is not None else None
        if entered is not None:
            return entered
        results = None
        if not self._locks.exclusive_pending(matched.conversation):
            try:
                results = await self._look_up_or_go_unfilled(matched)
            except StoreUnavailable:
                if not self._isolates:
                    raise
        lock = await self._lock(matched)
        confirmed = None
        try:
            confirmed = await self.look_up_under_lock(matched, None if lock.waited else results, lock)
        finally:
            if confirmed is None:
                lock.release()
        return lock, confirmed

    async def _entered(self, matched: MatchedCall) -> Ready | None:
        if matched.changing or len(matched.found.missing) != 1:
            return None
        requests = matched.lookup_requests(self._lookups.now())
        began = self._clock()
        assert self._entrance is not None
        try:
            entered = await self._entrance.enter(requests[0].key, requests[0].target.subject)
        except StoreUnavailable:
            self._counts["gateway_store_failures_total",] += 1
            return None  # what comes next finds it too, and says what becomes of the call
        if entered is None:
            return None
        lock, view = entered
        results = None
        try:
            results = self._lookups.try_cached(requests, view)
        finally:
            if results is None:
                lock.release()
        matched.record.lookup = self._clock() - began
        return None if results is None else (lock, results)

    async def look_up_under_lock(
        self, matched: MatchedCall, results: LookupResults | None, lock: ConversationLock
    ) -> LookupResults:
        """
        Under the lock, where no write can come between: what was overtaken, or aged, is looked up again.
        """
        if not matched.found.missing:
            return LookupResults({}, matched.found.unfilled)
        try:
            if lock.alone:
                raise StoreUnavailable("it could not be asked for the conversation's lock")
            return await self._confirmed(matched, results)
        except StoreUnavailable:
            if not self._isolates:
                raise
        return await self._look_up_or_go_unfilled(matched, isolated=True)

    async def _confirmed(self, matched: MatchedCall, results: LookupResults | None) -> LookupResults:
        for _ in range(TRIES):
            if results is not None and await self._usable(results):
                return results
            results = await self._look_up_or_go_unfilled(matched)
        return results if results and await self._usable(results) else LookupResults({}, "outdated")

    async def _usable(self, results: LookupResults) -> bool:
        return self._lookups.usable_without_store(results) and await self._lookups.usable(results)

    async def _look_up_or_go_unfilled(self, matched: MatchedCall, isolated: bool = False) -> LookupResults:
        if not matched.found.missing:
            return LookupResults({}, matched.found.unfilled)
        try:
            return await self.look_up(matched, isolated)
        except LookupRefused:
            if not matched.route.rule.forwards_unfilled:
                raise
            return LookupResults({}, "lookup-refused")
        except (UpstreamError, LookupFailed, Overloaded):
            if not matched.route.rule.forwards_unfilled:
                raise
            return LookupResults({}, "lookup-failed")

    async def look_up(self, matched: MatchedCall, isolated: bool = False) -> LookupResults:
        """From what is at hand or by GETs. Raises LookupRefused, or a GatewayError."""
        began = self._clock()
        try:
            requests = matched.lookup_requests(self._lookups.now())
            if isolated:
                async with asyncio.timeout(self._lookup_deadline):
                    return await self._lookups.look_up_isolated(requests)
            cached = self._lookups.try_cached(requests)
            if cached is not None:
                return cached
            async with asyncio.timeout(self._lookup_deadline):
                return await self._lookups.look_up_all(requests)
        except TimeoutError as error:
            limit = f"{self._lookup_deadline * 2:g} s"
            raise ReadTimeout(f"the look-up took more than half of limits.deadline ({limit})") from error
        finally:
            matched.record.lookup += self._clock() - began

    # --- rewrite

    def rewrite(self, matched: MatchedCall, results: LookupResults) -> Rewritten:
        rewritten = rewrite(matched.found, results.changes(self._lookups.now()), results.guard)
        found = matched.found
        if found.checks:
            violations, rejected = checked(found.checks, Draft.of(rewritten[0]))
            matched.violated(found.violations + violations, found.rejected or rejected)
        if self._bodies.watching:
            call, changes = rewritten
            self._bodies.saw(matched.client.id, matched.call.body, call.body if changes else None)
        return rewritten

    def as_recorded(self, matched: MatchedCall, rewritten: Rewritten) -> dict[str, Any]:
        """What the log says of a rewrite."""
        return changes_recorded(self._audit, matched.call, *rewritten)

    # --- record and forward

    async def untouched(
        self, matched: MatchedCall, reason: str | None, worked_out: LookupResults = NOTHING, **details: Any
    ) -> Reply:
        """
        Takes the lock, forwards the call as it came, and records why it did so. `reason` is None where only
        the reply tells: then who asked for it calls `skip`. `worked_out` is what was not filled.
        """

        def record() -> None:
            if reason is not None:
                self.skip(matched, reason, **details)

        if self._bodies.watching:
            self._bodies.saw(matched.client.id, matched.call.body)
        reply, departure = None, None
        try:
            with await self._lock(matched) as lock:
                departure = Departure(lambda: self._allow(matched, lock), record)
                if worked_out.values:
                    matched.record.comparable = await self._still_usable(worked_out)
                reply = await self._send(matched, matched.call, NOTHING, departure)
        finally:
            if reply is None and reason is None and departure is not None and departure.left:
                self.skip(matched, "unanswered")
        return reply

    async def _still_usable(self, results: LookupResults) -> bool:
        try:
            return await self._lookups.usable(results)
        except StoreUnavailable:
            return False

    def skip(self, matched: MatchedCall, reason: str, **details: Any) -> None:
        """Records why a call was left as it came."""
        matched.record.record_skip(self._audit, reason, **details)

    def _allow(self, matched: MatchedCall, lock: ConversationLock) -> None:
        if not lock.holds():
            raise StoreUnavailable("the lease of this process's locks was about to end")
        matched.client.shield_from_disconnect()

    async def forward(
        self, matched: MatchedCall, rewritten: Rewritten, results: LookupResults, lock: ConversationLock
    ) -> Reply:
        """
        Under the lock. Raises Overtaken. A log that waits is waited for before there is a connection, which
        would stand idle meanwhile; whether the reading still holds is asked after that, as always.
        """
        call, changes = rewritten

        def allow() -> None:
            if not self._lookups.usable_without_store(results):
                raise Overtaken
            self._allow(matched, lock)

        def record() -> Commit | None:
            return matched.record.record_rewrite(self._audit, matched.call, call, changes, results.unfilled)

        departure = Departure(allow, record)
        try:
            if changes and self._audit.waits:
                departure.record()
                await self._audit.recorded()
            return await self._send(matched, call, results, departure)
        finally:
            if departure.left:
                matched.record.batch = None
            else:
                matched.record.drop_unsent(self._audit)

    async def refill(
        self, matched: MatchedCall, sent: LookupResults, refusal: Reply, lock: ConversationLock
    ) -> Reply:
        """The refusal proves that nothing was applied: once more, if the state is another by now (C2)."""
        if not await refusal.hold(HELD):
            return refusal
        try:
            fresh = await self.look_up(matched)
            if not (sent.differ(fresh) and await self._lookups.usable(fresh)):
                return refusal
        except (LookupRefused, UpstreamError, LookupFailed, NotSent):
            return refusal
        try:
            reply = await self.forward(matched, self.rewrite(matched, fresh), fresh, lock)
        except (Overtaken, StoreUnavailable):
            return refusal
        self._counts["gateway_refills_total",] += 1
        return reply

    async def _lock(self, matched: MatchedCall) -> ConversationLock:
        caller = matched.record.credential
        return await self._locks.acquire(matched.conversation, exclusive=matched.changing, caller=caller)

    # --- forward and settle

    async def _send(
        self, matched: MatchedCall, call: Call, results: LookupResults, departure: Departure
    ) -> Reply:
        """
        Sends once. When the call is over, what was read before is forgotten if it may have changed anything
        (S5); until then, what changes the state suspends it.
        """
        client, record = matched.client, matched.record
        filled, changing = bool(results.values), matched.changing
        write = None
        if (changing or not filled) and matched.writes:
            caller = record.credential
            write = await self._lookups.begin_write(matched.conversation, caller, exclusive=changing)
        status, reply = None, None
        began = self._clock()
        try:
            try:
                reply = await self._upstream.send(
                    call.method,
                    call.target,
                    call.headers,
                    call.body or (b"" if client.has_body else None),
                    extra_headers=client.extra_headers,
                    values=client.values,
                    before_send=departure,
                    caller=client.caller,
                )
                status = reply.status
                if 200 <= status < 300 and matched.found.explicit:
                    await self._accept(matched)
            except UNSENT:
                departure.left = False
                raise
            finally:
                record.upstream += self._clock() - began
                if departure.left and may_have_changed(status, filled=filled, changing=changing):
                    if matched.writes:
                        await self._lookups.invalidate_after(matched.conversation)
                elif write is not None:
                    await self._lookups.changed_nothing(write)
        except asyncio.CancelledError:
            # It may come while the store is told, when nothing else closes the reply.
            if reply is not None:
                reply.close()
            raise
        self._counts["gateway_forwards_total", "yes" if filled else "no"] += 1
        return reply

    async def _accept(self, matched: MatchedCall) -> None:
        """
        Told to the store before the invalidation: what is looked up after that has to agree with it (S5).
        """
        for explicit in matched.found.explicit:
            if isinstance(explicit.value, str):
                target = matched.route.targets[explicit.field]
                await self._lookups.accept(matched.conversation, target, explicit.value)
