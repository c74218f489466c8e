"""
The life of a call. Read this first.

    match → read → diagnose → look up → rewrite → record → forward → settle

`enforce` is that list; what another mode does differently stands beside it, and MODES names them.
What no rule matches is carried through by passthrough.py. All that touches the world is an argument.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from gateway.audit.writer import Audit
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    LookupFailed,
    LoopDetected,
    NotSent,
    ReadTimeout,
    StoreUnavailable,
    UpstreamError,
)
from gateway.http import forwarding
from gateway.http import headers as h
from gateway.http.forwarding import Hop
from gateway.proxy.call_record import CallRecord, changes_recorded
from gateway.proxy.client import Client, ClientGone, ClientRequest
from gateway.proxy.deadline import Deadline
from gateway.proxy.passthrough import Passthrough
from gateway.repairs import Diagnosis, diagnose, rewrite
from gateway.repairs.call import Call, Change
from gateway.rules import RouteMatch, Rules
from gateway.state.credentials import CredentialFingerprints
from gateway.state.lookup import LookupRefused, LookupRequest, LookupResults, Lookups, parsed
from gateway.state.store import ConversationLock, Key, Locks
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, Transport

# A PATCH refused with one of these changed nothing at the upstream, and a repair may cure it.
CURABLE = frozenset({400, 415, 422})
TRIES = 3  # look-ups in one turn: each is overtaken only by a write that names no conversation
NOTHING = LookupResults({})
HELD = 2**16  # bytes: of a refusal that is kept to be relayed, of a reply that is compared


class MatchedCall(Struct, frozen=True):
    """
    A matched call as it was diagnosed. `changing`: it may change the state of its `conversation`, or where
    that is None, of any.
    """

    client: Client
    route: RouteMatch
    call: Call
    found: Diagnosis
    conversation: str | None
    changing: bool
    record: CallRecord

    @property
    def writes(self) -> bool:
        """Whether it may change anything that a fill looks up, in its own conversation or in any."""
        return self.conversation is not None or self.changing

    def lookup_request(self, field: str, since: float) -> LookupRequest:
        target = self.route.targets[field]
        key = Key(self.conversation or "", target.target, self.record.credential)
        return LookupRequest(target, key, self.call.headers, self.client.extra_headers, since)


class Stale(Exception):
    """The call did not leave: what was to be filled got too old while it waited for a connection."""


class Lifecycle:
    def __init__(
        self,
        *,
        rules: Rules,
        lookups: Lookups,
        locks: Locks,
        upstream: Transport,
        passthrough: Passthrough,
        audit: Audit,
        credentials: CredentialFingerprints,
        hop: Hop,
        clock: Callable[[], float],
        counts: Counter[tuple[str, ...]],
        max_body: int,
        deadline: float,
    ) -> None:
        """`max_body` in bytes; `deadline` in seconds from a call's arrival to the head of its reply."""
        self._rules = rules
        self._lookups = lookups
        self._locks = locks
        self._upstream = upstream
        self._passthrough = passthrough
        self._audit = audit
        self._credentials = credentials
        self._hop = hop
        self._clock = clock
        self._counts = counts
        self._max_body = max_body
        self._deadline = Deadline(deadline)

    async def serve(self, request: ClientRequest) -> None:
        client = Client(request)
        try:
            if b"via" in client.fields and forwarding.looped(client.headers, self._hop):
                raise LoopDetected("its Via field names this gateway")
            route = self._rules.match(client.method, client.path)  # match
            if route is None:
                await self._passthrough.carry(client)
            else:
                await self._live(client, route)
        except GatewayError as error:
            self._counts["gateway_refusals_total", error.slug()] += 1
            if client.started:
                raise
            await client.refuse(error)
        except ClientGone:
            self._counts["gateway_clients_gone_total",] += 1

    async def _live(self, client: Client, route: RouteMatch) -> None:
        credential = client.headers.derived(self._credentials.of)
        record = CallRecord(client, route.rule, credential, self._clock())
        task, late = self._deadline.begin(), False
        try:
            try:
                client.cancel_on_disconnect()
                matched = await self._read(client, route, record)
                if matched.found.nothing_to_repair:
                    reply = await self._untouched(matched, matched.found.reason)
                else:
                    reply = await MODES[route.rule.mode](self, matched)
            finally:
                late = self._deadline.end(task)
            try:
                await self._relay(matched, reply)
            finally:
                reply.close()
        except LookupRefused as refused:
            await self._relay_refusal(record, refused)
        except GatewayError as error:
            await self._refuse(record, error)
        except (ClientGone, asyncio.CancelledError):
            if late and not client.gone:
                said = f"it took longer than {self._deadline.seconds:g} s"
                await self._refuse(record, DeadlineExceeded(said))
                return
            record.error = "client-gone" if client.gone else "cancelled"
            raise
        finally:
            self._counts["gateway_matched_calls_total",] += 1
            record.ended(self._audit, self._clock())

    async def _read(self, client: Client, route: RouteMatch, record: CallRecord) -> MatchedCall:
        rule = route.rule
        body = await client.read(self._max_body)  # read
        call = Call(client.method.encode(), client.target, client.upstream_request_headers(self._hop), body)
        found = diagnose(call, rule.repairs)  # diagnose
        conversation = route.conversation
        if rule.fills:
            changing = found.may_change_state or found.names(rule.watched)
        else:
            write = self._rules.writes(client.path, client.method, *h.method_overrides(client.headers))
            changing = write is not None
            conversation = write.value.conversation(write.parameters) if write is not None else None
        return MatchedCall(client, route, call, found, conversation, changing, record)

    # --- the modes

    async def enforce(self, matched: MatchedCall, rejected: Reply | None = None) -> Reply:
        """`rejected`: the upstream's refusal of the call as it came, relayed when nothing can be done."""
        turn, answers = self._try_at_once(matched)
        usable = answers is not None
        if turn is None:
            answers = await self._look_up_in_nobodys_way(matched)  # look up
            turn = await self._turn(matched)
            if turn.waited:
                answers = None
        try:
            while True:
                if answers is None or not usable:
                    answers = await self._still_usable(matched, answers)
                call, changes = self._rewritten(matched, answers)  # rewrite
                if rejected is not None and not changes:
                    matched.record.skipped = answers.unfilled
                    return rejected
                try:
                    reply = await self._forward(matched, call, answers, changes)  # record, forward, settle
                except Stale:
                    answers = None
                else:
                    break
            if reply.status >= 300 and reply.status in answers.refill_on:
                reply = await self._refilled(matched, answers, reply)
            return reply
        finally:
            turn.release()

    async def on_reject(self, matched: MatchedCall) -> Reply:
        reply = await self._untouched(matched, "not-rejected")
        if reply.status not in CURABLE or not await reply.hold(HELD):
            return reply
        matched.client.cancel_on_disconnect()
        try:
            return await self.enforce(matched, rejected=reply)
        except LookupRefused:
            matched.record.skipped = "lookup-refused"
        except (NotSent, UpstreamError, LookupFailed) as error:
            if matched.record.changes:
                raise
            matched.record.skipped = error.slug()
        return reply

    async def shadow(self, matched: MatchedCall) -> Reply:
        try:
            answers = await self._answers(self._asks(matched))
        except LookupRefused:
            answers = LookupResults({}, "lookup-refused")
        except (UpstreamError, LookupFailed, StoreUnavailable) as error:
            answers = LookupResults({}, error.slug())
        call, changes = self._rewritten(matched, answers)
        would = changes_recorded(matched.call, call, changes)
        return await self._untouched(matched, "shadow", unfilled=answers.unfilled, **would)

    async def observe(self, matched: MatchedCall) -> Reply:
        return await self._untouched(matched, "observe", needs=matched.found.needs)

    # --- look up

    def _asks(self, matched: MatchedCall) -> list[LookupRequest]:
        now = self._lookups.now()
        return [matched.lookup_request(one.field, now) for one in matched.found.missing]

    async def _look_up(self, matched: MatchedCall) -> LookupResults:
        if not matched.found.missing:
            return LookupResults({}, matched.found.unfilled)
        began = self._clock()
        try:
            return await self._answers(self._asks(matched))
        except (LookupRefused, UpstreamError, LookupFailed) as error:
            if not matched.route.rule.forwards_unfilled:
                raise
            return LookupResults(
                {}, "lookup-refused" if isinstance(error, LookupRefused) else "lookup-failed"
            )
        finally:
            matched.record.lookup += self._clock() - began

    def _try_at_once(self, matched: MatchedCall) -> tuple[ConversationLock | None, LookupResults | None]:
        """Turn and answers in one step where neither has to be waited for: nothing comes between them."""
        turn = self._locks.try_acquire(matched.conversation, exclusive=matched.changing)
        if turn is None:
            return None, None
        began = self._clock()
        if not matched.found.missing:
            return turn, LookupResults({}, matched.found.unfilled)
        answers = None
        try:
            answers = self._lookups.try_cached(self._asks(matched))
        finally:
            if answers is None:
                turn.release()
        if answers is None:
            return None, None
        matched.record.lookup = self._clock() - began
        return turn, answers

    async def _answers(self, requests: Sequence[LookupRequest]) -> LookupResults:
        """In half the call's time at most: the call itself is to have the rest."""
        try_cached = self._lookups.try_cached(requests)
        if try_cached is not None:
            return try_cached
        limit = self._deadline.seconds
        try:
            async with asyncio.timeout(limit / 2):
                return await self._lookups.look_up_all(requests)
        except TimeoutError as error:
            said = f"the look-up took more than half of limits.deadline ({limit:g} s)"
            raise ReadTimeout(said) from error

    async def _look_up_in_nobodys_way(self, matched: MatchedCall) -> LookupResults | None:
        """
        Before the call takes its turn, since a slow GET must not hold up a hang-up. None where a write is
        under way: it may change what is read now.
        """
        pending = self._locks.exclusive_pending(matched.conversation)
        return None if pending else await self._look_up(matched)

    async def _still_usable(self, matched: MatchedCall, answers: LookupResults | None) -> LookupResults:
        """In its turn, where no write can come between: what was overtaken, or aged, is looked up again."""
        for _ in range(TRIES):
            if answers is not None and await self._lookups.usable(answers):
                return answers
            answers = await self._look_up(matched)
        return answers if answers and await self._lookups.usable(answers) else LookupResults({}, "unsettled")

    # --- forward and settle

    async def _turn(self, matched: MatchedCall) -> ConversationLock:
        return await self._locks.acquire(matched.conversation, exclusive=matched.changing)

    async def _untouched(self, matched: MatchedCall, reason: str, **details: Any) -> Reply:
        def before_send() -> None:
            matched.client.shield_from_disconnect()
            matched.record.leaves(self._audit, reason, **details)

        with await self._turn(matched):
            return await self._sent(matched, matched.call, NOTHING, before_send)

    def _rewritten(self, matched: MatchedCall, answers: LookupResults) -> tuple[Call, tuple[Change, ...]]:
        return rewrite(matched.found, answers.changes(self._lookups.now()), answers.guard)

    async def _forward(
        self, matched: MatchedCall, call: Call, answers: LookupResults, changes: tuple[Change, ...]
    ) -> Reply:
        """Raises Stale when it waited for a connection until the answers were too old, or overtaken."""

        def before_send() -> Callable[[], None] | None:
            if not self._lookups.still_usable(answers):
                raise Stale
            matched.client.shield_from_disconnect()
            return matched.record.sends(self._audit, matched.call, call, changes, answers.unfilled)

        try:
            return await self._sent(matched, call, answers, before_send)
        finally:
            matched.record.sent()

    async def _sent(
        self, matched: MatchedCall, call: Call, answers: LookupResults, before_send: BeforeSend
    ) -> Reply:
        """
        Sent once. What was read before is invalidated before the call leaves and again when it is over: all
        but a filled call that is accepted may have changed the state, whatever came of it (S5).
        """
        keeps = bool(answers.values) and not matched.changing
        if not keeps and matched.writes:
            await self._lookups.invalidate(matched.conversation)
        accepted = False
        reply = None
        began = self._clock()
        try:
            try:
                body = call.body or (b"" if matched.client.has_body else None)
                reply = await self._upstream.send(
                    call.method,
                    call.target,
                    call.headers,
                    body,
                    extra_headers=matched.client.extra_headers,
                    before_send=before_send,
                )
                accepted = 200 <= reply.status < 300
                if accepted and matched.found.explicit:
                    await self._accept(matched)
            finally:
                matched.record.upstream += self._clock() - began
                if not (keeps and accepted) and matched.writes:
                    await self._lookups.invalidate_after(matched.conversation)
        except asyncio.CancelledError:
            # While the store was told: then nobody else closes the reply.
            if reply is not None:
                reply.close()
            raise
        self._counts["gateway_forwards_total", "yes" if answers.values else "no"] += 1
        return reply

    async def _accept(self, matched: MatchedCall) -> None:
        """Before what was read is invalidated: whoever reads from then on is to know of it (S5)."""
        for explicit in matched.found.explicit:
            if isinstance(explicit.value, str):
                target = matched.route.targets[explicit.field]
                await self._lookups.accept(matched.conversation, target, explicit.value)

    async def _refilled(self, matched: MatchedCall, sent: LookupResults, refusal: Reply) -> Reply:
        """The refusal proves that nothing was applied: once more, if the state is another by now (C2)."""
        if not await refusal.hold(HELD):
            return refusal
        try:
            fresh = await self._answers(self._asks(matched))
            if not (sent.differ(fresh) and await self._lookups.usable(fresh)):
                return refusal
        except (LookupRefused, UpstreamError, LookupFailed, StoreUnavailable):
            return refusal
        call, changes = self._rewritten(matched, fresh)
        try:
            reply = await self._forward(matched, call, fresh, changes)
        except (Stale, StoreUnavailable):
            return refusal
        self._counts["gateway_refills_total",] += 1
        return reply

    # --- the reply

    async def _relay(self, matched: MatchedCall, reply: Reply) -> None:
        record, client = matched.record, matched.client
        record.status = reply.status
        back = reply.headers.derived(forwarding.client_response_headers)
        extra_headers = back.extra_headers(record.headers(), client.extra_headers[0])
        keep = HELD if record.changes and back.is_json else 0
        body = await client.relay(reply.status, back.headers, extra_headers, reply, keep)
        if body and contradicted(matched, body):
            record.conflict = True
            self._counts["gateway_conflicts_total",] += 1
            await self._lookups.invalidate_after(matched.conversation)

    async def _relay_refusal(self, record: CallRecord, refused: LookupRefused) -> None:
        refusal = refused.refusal
        record.status = refusal.status
        record.rejects(self._audit, "lookup-refused")
        back = forwarding.client_response_headers(refusal.headers)
        extra_headers = back.extra_headers(record.headers(), record.client.extra_headers[0])
        await record.client.answer(refusal.status, back.headers, refusal.body, extra_headers)

    async def _refuse(self, record: CallRecord, error: GatewayError) -> None:
        record.rejects(self._audit, error.slug())
        if record.client.started:
            raise error
        record.status = error.status
        self._counts["gateway_refusals_total", error.slug()] += 1
        await record.client.refuse(error, record.headers())


def contradicted(matched: MatchedCall, body: bytes) -> bool:
    """Whether the reply to a filled call names another state than the one that was filled."""
    reply = None
    for change in matched.record.changes:
        if change.repair != "fill":
            continue
        target, value = matched.route.targets[change.record["field"]], change.record["after"]
        if target.fill.agrees(body, value):
            continue
        if reply is None:
            try:
                reply = parsed(body)
            except (ValueError, RecursionError):
                return False
        if target.fill.contradicted(reply, value, target.data):
            return True
    return False


MODES: dict[str, Callable[[Lifecycle, MatchedCall], Awaitable[Reply]]] = {
    "observe": Lifecycle.observe,
    "shadow": Lifecycle.shadow,
    "enforce": Lifecycle.enforce,
    "on_reject": Lifecycle.on_reject,
}
