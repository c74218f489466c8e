"""
The life of a call. Read this first.

    match → read → diagnose → look up → rewrite → record → forward → settle

`enforce` is that list; what another mode does differently stands beside it, and MODES names them.
What no rule matches is carried through by `passage.py`. All that touches the world is an argument.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from gateway import forwarding
from gateway import headers as h
from gateway.audit import Audit
from gateway.calls import Call, Change
from gateway.credentials import Credentials
from gateway.deadline import Deadline
from gateway.downstream import ClientGone, Downstream, Exchange
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    LookupFailed,
    LoopDetected,
    NotSent,
    ReadTimeout,
    UpstreamError,
)
from gateway.forwarding import Hop
from gateway.order import Order, Turn
from gateway.passage import Passage
from gateway.repairs import Diagnosis, Fill, diagnose, rewrite
from gateway.rules import Place, Rules
from gateway.states import Answers, Ask, LookupRefused, States, parsed
from gateway.stores import Key
from gateway.trail import Trail, what_changed
from gateway.upstream import Leaving, Reply, Upstream

# A PATCH refused with one of these changed nothing at the upstream, and a repair may cure it.
CURABLE = frozenset({400, 415, 422})
TRIES = 3  # look-ups in one turn: each is overtaken only by a write that names no conversation
NOTHING = Answers({})
HELD = 2**16  # bytes: of a refusal that is kept to be relayed, of a reply that is compared


class Case(Struct, frozen=True):
    """
    A matched call as it was diagnosed. `changing`: it may change the state of its `conversation`, or where
    that is None, of any.
    """

    client: Downstream
    place: Place
    call: Call
    found: Diagnosis
    conversation: str | None
    changing: bool
    trail: Trail

    def ask(self, fill: Fill, since: float) -> Ask:
        spot = self.place.spots[fill.field]
        key = Key(self.conversation or "", spot.target, self.trail.credential)
        return Ask(spot, key, self.call.headers, self.client.own, since)


class Stale(Exception):
    """The call did not leave: what was to be filled got too old while it waited for a connection."""


class Lifecycle:
    def __init__(
        self,
        *,
        rules: Rules,
        states: States,
        order: Order,
        upstream: Upstream,
        passage: Passage,
        audit: Audit,
        credentials: Credentials,
        hop: Hop,
        clock: Callable[[], float],
        counts: Counter[str],
        max_body: int,
        deadline: float,
    ) -> None:
        """`max_body` in bytes; `deadline` in seconds from a call's arrival to the head of its reply."""
        self._rules = rules
        self._states = states
        self._order = order
        self._upstream = upstream
        self._passage = passage
        self._audit = audit
        self._credentials = credentials
        self._hop = hop
        self._clock = clock
        self._counts = counts
        self._max_body = max_body
        self._deadline = Deadline(deadline)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._call(Downstream(scope["extensions"]["gateway"], receive, send))

    def serve(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """The same without ASGI, whose messages most calls can do without."""
        return self._call(Downstream(exchange))

    async def _call(self, client: Downstream) -> None:
        try:
            if b"via" in client.fields and forwarding.looped(client.headers, self._hop):
                raise LoopDetected("its Via field names this gateway")
            place = self._rules.match(client.method, client.path)  # match
            if place is None:
                await self._passage.carry(client)
            else:
                await self._live(client, place)
        except GatewayError as error:
            self._counts[f"refused_{error.slug()}"] += 1
            if client.started:
                raise
            await client.refuse(error)
        except ClientGone:
            self._counts["clients_gone"] += 1

    async def _live(self, client: Downstream, place: Place) -> None:
        credential = client.headers.once(self._credentials.of)
        trail = Trail(client, place.rule, credential, self._clock())
        task, late = client.exchange.task, False
        self._deadline.begin(task)
        try:
            try:
                client.may_leave()
                case = await self._read(client, place, trail)
                if case.found.sound:
                    reply = await self._untouched(case, case.found.reason)
                else:
                    reply = await MODES[place.rule.mode](self, case)
            finally:
                late = self._deadline.end(task)
            try:
                await self._relay(case, reply)
            finally:
                reply.close()
        except LookupRefused as refused:
            await self._relay_refusal(trail, refused)
        except GatewayError as error:
            await self._refuse(trail, error)
        except (ClientGone, asyncio.CancelledError):
            if late and not client.gone:
                said = f"it took longer than {self._deadline.seconds:g} s"
                await self._refuse(trail, DeadlineExceeded(said))
                return
            trail.error = "client-gone" if client.gone else "cancelled"
            raise
        finally:
            self._counts["calls_matched"] += 1
            trail.ended(self._audit, self._clock())

    async def _read(self, client: Downstream, place: Place, trail: Trail) -> Case:
        rule = place.rule
        body = await client.read(self._max_body)  # read
        call = Call(client.method.encode(), client.target, client.onward(self._hop), body)
        found = diagnose(call, rule.repairs)  # diagnose
        conversation = place.conversation
        if rule.fills:
            changing = found.may_change_state or found.names(rule.watched)
        else:
            write = self._rules.writes(client.path, client.method, *h.disguises(client.headers))
            changing = write is not None
            conversation = write.value.conversation(write.parameters) if write is not None else None
        return Case(client, place, call, found, conversation, changing, trail)

    # --- the modes

    async def enforce(self, case: Case, rejected: Reply | None = None) -> Reply:
        """`rejected`: the upstream's refusal of the call as it came, relayed when nothing can be done."""
        turn, answers = self._at_once(case)
        usable = answers is not None
        if turn is None:
            answers = await self._look_up_in_nobodys_way(case)  # look up
            turn = await self._turn(case)
            if turn.waited:
                answers = None
        try:
            while True:
                if answers is None or not usable:
                    answers = await self._still_usable(case, answers)
                call, changes = self._rewritten(case, answers)  # rewrite
                if rejected is not None and not changes:
                    case.trail.skipped = answers.unfilled
                    return rejected
                try:
                    reply = await self._forward(case, call, answers, changes)  # record, forward, settle
                except Stale:
                    answers = None
                else:
                    break
            if reply.status >= 300 and reply.status in answers.refill_on:
                reply = await self._refilled(case, answers, reply)
            return reply
        finally:
            turn.release()

    async def on_reject(self, case: Case) -> Reply:
        reply = await self._untouched(case, "not-rejected")
        if reply.status not in CURABLE or not await reply.hold(HELD):
            return reply
        case.client.may_leave()
        try:
            return await self.enforce(case, rejected=reply)
        except LookupRefused:
            case.trail.skipped = "lookup-refused"
        except (NotSent, UpstreamError, LookupFailed) as error:
            if case.trail.changes:
                raise
            case.trail.skipped = error.slug()
        return reply

    async def shadow(self, case: Case) -> Reply:
        try:
            answers = await self._answers(self._asks(case))
        except LookupRefused:
            answers = Answers({}, "lookup-refused")
        except (UpstreamError, LookupFailed) as error:
            answers = Answers({}, error.slug())
        call, changes = self._rewritten(case, answers)
        would = what_changed(case.call, call, changes)
        return await self._untouched(case, "shadow", unfilled=answers.unfilled, **would)

    async def observe(self, case: Case) -> Reply:
        return await self._untouched(case, "observe", needs=case.found.needs)

    # --- look up

    def _asks(self, case: Case) -> list[Ask]:
        now = self._clock()
        return [case.ask(want.fill, now) for want in case.found.wants]

    async def _look_up(self, case: Case) -> Answers:
        if not case.found.wants:
            return Answers({}, case.found.unfilled)
        began = self._clock()
        try:
            return await self._answers(self._asks(case))
        except (LookupRefused, UpstreamError, LookupFailed) as error:
            if not case.place.rule.forwards_unfilled:
                raise
            return Answers({}, "lookup-refused" if isinstance(error, LookupRefused) else "lookup-failed")
        finally:
            case.trail.lookup += self._clock() - began

    def _at_once(self, case: Case) -> tuple[Turn | None, Answers | None]:
        """Turn and answers in one step where neither has to be waited for: nothing comes between them."""
        turn = self._order.at_once(case.conversation, changing=case.changing)
        if turn is None:
            return None, None
        began = self._clock()
        wants = case.found.wants
        if not wants:
            return turn, Answers({}, case.found.unfilled)
        answers = None
        try:
            answers = self._states.at_hand([case.ask(want.fill, began) for want in wants])
        finally:
            if answers is None:
                turn.release()
        if answers is None:
            return None, None
        case.trail.lookup = self._clock() - began
        return turn, answers

    async def _answers(self, asks: Sequence[Ask]) -> Answers:
        """In half the call's time at most: the call itself is to have the rest."""
        at_hand = self._states.at_hand(asks)
        if at_hand is not None:
            return at_hand
        limit = self._deadline.seconds
        try:
            async with asyncio.timeout(limit / 2):
                return await self._states.answers(asks)
        except TimeoutError as error:
            said = f"the look-up took more than half of limits.deadline ({limit:g} s)"
            raise ReadTimeout(said) from error

    async def _look_up_in_nobodys_way(self, case: Case) -> Answers | None:
        """
        Before the call takes its turn, since a slow GET must not hold up a hang-up. None where a write is
        under way: it may change what is read now.
        """
        return None if self._order.changing(case.conversation) else await self._look_up(case)

    async def _still_usable(self, case: Case, answers: Answers | None) -> Answers:
        """In its turn, where no write can come between: what was overtaken, or aged, is looked up again."""
        for _ in range(TRIES):
            if answers is not None and await self._states.usable(answers):
                return answers
            answers = await self._look_up(case)
        return answers if answers and await self._states.usable(answers) else Answers({}, "unsettled")

    # --- forward and settle

    async def _turn(self, case: Case) -> Turn:
        return await self._order.take(case.conversation, changing=case.changing)

    async def _untouched(self, case: Case, reason: str, **details: Any) -> Reply:
        def leaving() -> None:
            case.client.must_stay()
            case.trail.leaves(self._audit, reason, **details)

        with await self._turn(case):
            return await self._sent(case, case.call, NOTHING, leaving)

    def _rewritten(self, case: Case, answers: Answers) -> tuple[Call, tuple[Change, ...]]:
        return rewrite(case.found, answers.changes(self._clock()), answers.guard)

    async def _forward(self, case: Case, call: Call, answers: Answers, changes: tuple[Change, ...]) -> Reply:
        """Raises Stale when it waited for a connection until the answers were too old, or overtaken."""

        def leaving() -> Callable[[], None] | None:
            if not self._states.still_usable(answers):
                raise Stale
            case.client.must_stay()
            return case.trail.sends(self._audit, case.call, call, changes, answers.unfilled)

        try:
            return await self._sent(case, call, answers, leaving)
        finally:
            case.trail.sent()

    async def _sent(self, case: Case, call: Call, answers: Answers, leaving: Leaving) -> Reply:
        """
        Sent once. What was read before is forgotten as the call leaves and again when it is over: all but
        a filled call that is accepted may have changed the state, whatever came of it (S5).
        """
        keeps = bool(answers.values) and not case.changing
        if not keeps:
            await self._forget(case)
        accepted = False
        began = self._clock()
        try:
            body = call.body or (b"" if case.client.has_body else None)
            reply = await self._upstream.send(
                call.method, call.target, call.headers, body, own=case.client.own, leaving=leaving
            )
            accepted = 200 <= reply.status < 300
            if accepted and case.found.given:
                self._witness(case, began)
        finally:
            case.trail.upstream += self._clock() - began
            if not (keeps and accepted):
                await self._forget(case)
        self._counts["patches_filled" if answers.values else "patches_unfilled"] += 1
        return reply

    def _witness(self, case: Case, began: float) -> None:
        """Before what was read is forgotten: whoever reads from then on is to know of it."""
        for given in case.found.given:
            if isinstance(given.value, str):
                self._states.witness(case.ask(given.fill, began), given.value)

    async def _refilled(self, case: Case, sent: Answers, refusal: Reply) -> Reply:
        """The refusal proves that nothing was applied: once more, if the state is another by now (C2)."""
        if not await refusal.hold(HELD):
            return refusal
        try:
            fresh = await self._answers(self._asks(case))
        except (LookupRefused, UpstreamError, LookupFailed):
            return refusal
        if not (sent.differ(fresh) and await self._states.usable(fresh)):
            return refusal
        call, changes = self._rewritten(case, fresh)
        try:
            reply = await self._forward(case, call, fresh, changes)
        except Stale:
            return refusal
        self._counts["refills"] += 1
        return reply

    async def _forget(self, case: Case) -> None:
        if case.conversation is not None or case.changing:
            await self._states.forget(case.conversation)

    # --- the reply

    async def _relay(self, case: Case, reply: Reply) -> None:
        trail, client = case.trail, case.client
        trail.status = reply.status
        back = reply.headers.once(forwarding.back)
        own = back.with_ours(trail.headers(), client.own[0])
        keep = HELD if trail.changes and back.json else 0
        body = await client.relay(reply.status, back.headers, own, reply, keep)
        if body and contradicted(case, body):
            trail.conflict = True
            self._counts["conflicts"] += 1
            await self._forget(case)

    async def _relay_refusal(self, trail: Trail, refused: LookupRefused) -> None:
        refusal = refused.refusal
        trail.status = refusal.status
        trail.rejects(self._audit, "lookup-refused")
        back = forwarding.back(refusal.headers)
        own = back.with_ours(trail.headers(), trail.client.own[0])
        await trail.client.answer(refusal.status, back.headers, refusal.body, own)

    async def _refuse(self, trail: Trail, error: GatewayError) -> None:
        trail.rejects(self._audit, error.slug())
        if trail.client.started:
            raise error
        trail.status = error.status
        self._counts[f"refused_{error.slug()}"] += 1
        await trail.client.refuse(error, trail.headers())


def contradicted(case: Case, body: bytes) -> bool:
    """Whether the reply to a filled call names another state than the one that was filled."""
    reply = None
    for change in case.trail.changes:
        if change.repair != "fill":
            continue
        spot, value = case.place.spots[change.record["field"]], change.record["after"]
        if spot.fill.agrees(body, value):
            continue
        if reply is None:
            try:
                reply = parsed(body)
            except (ValueError, RecursionError):
                return False
        if spot.fill.contradicted(reply, value, spot.data):
            return True
    return False


MODES: dict[str, Callable[[Lifecycle, Case], Awaitable[Reply]]] = {
    "observe": Lifecycle.observe,
    "shadow": Lifecycle.shadow,
    "enforce": Lifecycle.enforce,
    "on_reject": Lifecycle.on_reject,
}
