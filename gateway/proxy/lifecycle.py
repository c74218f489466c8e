"""
The life of a call. Read this first.

    match → read → diagnose → look up → rewrite → record → forward → settle

The server calls `serve` for each request (server/connection.py, `_begin`). It matches; `_serve_matched`
reads and diagnoses; then the rule's mode puts the other phases in order: `enforce` in modes.py is the rest
of the list, and phases.py says what each phase does. `record` happens when a connection to the upstream is
had, right before the first byte goes out; `settle` when the upstream has answered, before its reply is
relayed.

What no rule matches is passed through (passthrough.py). All that touches the world is an argument.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import structs

from gateway.audit.finished_call import CallCounter, Observer, Sampler, uncounted
from gateway.audit.writer import AuditLog
from gateway.errors import BadRequest, DeadlineExceeded, GatewayError, LoopDetected
from gateway.http import forwarding
from gateway.http import headers as h
from gateway.http.forwarding import Hop
from gateway.http.grammar import SAFE_METHODS
from gateway.http.headers import Fields, text
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.call_head import CallHead
from gateway.proxy.call_record import CallRecord
from gateway.proxy.client import Client, ClientGone, ClientRequest
from gateway.proxy.deadline import Deadline
from gateway.proxy.evidence import EvidenceLog
from gateway.proxy.matched_call import MatchedCall
from gateway.proxy.modes import MODES
from gateway.proxy.passthrough import Passthrough
from gateway.proxy.phases import HELD, Phases
from gateway.proxy.retargeting import REFUSED, AbsentOperations, otherwise
from gateway.proxy.shadow_checks import ShadowChecks
from gateway.repairs import Diagnosis, Repair, diagnose, left_as_it_is
from gateway.repairs.call import Call
from gateway.repairs.findings import AnswerAs
from gateway.rules import RouteMatch, Rules
from gateway.state.applications import Applications
from gateway.state.credentials import CredentialFingerprints
from gateway.state.lookup import Lookups
from gateway.state.lookup_results import LookupRefused
from gateway.upstream.reply import Reply

HOLD_PATIENCE = 2.0  # seconds in which a small reply is waited for, so that it is whole or an error


# As requests are counted: methods beside these are `other`.
METHODS = {
    name: name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
}
# The upstream is in no state to be asked, or will not tell this caller.
UNTOLD = frozenset({401, 403, 404, 429, *range(500, 600)})
STATUSES = {1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}


def counted_method(method: str) -> str:
    return METHODS.get(method.upper(), "other")


class Lifecycle:
    _client = Client

    def __init__(
        self,
        *,
        rules: Rules,
        phases: Phases,
        passthrough: Passthrough,
        lookups: Lookups,
        audit: AuditLog,
        credentials: CredentialFingerprints,
        applications: Applications,
        hop: Hop,
        clock: Callable[[], float],
        counts: Counter[tuple[str, ...]],
        log_refusal: Callable[[GatewayError, str], None],
        budget: BufferBudget,
        max_body: int,
        deadline: float,
        direct: bool,
        shadow_checks: ShadowChecks,
        counted: CallCounter = uncounted,
        observers: Sequence[Observer] = (),
        hold_patience: float = HOLD_PATIENCE,
        unmatched: str = "none",
    ) -> None:
        """
        `log_refusal` is told the client's address too; `counted` and `observers` of each matched call when it
        is over. `unmatched` is the rule that calls are counted by that none matches.
        `max_body` in bytes; `deadline` in seconds from a call's arrival to the head of its reply. `direct` as
        in server/connection.py.
        """
        self.direct = direct
        self._rules = rules
        self._phases = phases
        self._passthrough = passthrough
        self._lookups = lookups
        self._audit = audit
        self._credentials = credentials
        self._applications = applications
        self._clock = clock
        self._counts = counts
        self._log_refusal = log_refusal
        self._budget = budget
        self._max_body = max_body
        self._deadline = Deadline(deadline)
        self._counted = counted
        self._observers = [(one.wants if isinstance(one, Sampler) else None, one) for one in observers]
        self._hold_patience = hold_patience
        self._evidence = EvidenceLog(clock)
        self._shadow_checks = shadow_checks
        self._absent = AbsentOperations(clock)
        self._unmatched = unmatched

        def head(headers: Fields, trusted: bool, version: str) -> CallHead:
            return CallHead.of(headers, hop, credentials, trusted, version)

        self._head = head
        self._trusts = hop.trusts if hop.trusted else None

    def follow(self, rules: Rules) -> None:
        """From now on: calls in flight end under the rules that they began with."""
        self._rules = rules

    async def close(self) -> None:
        """When no call is in flight any more."""
        await self._shadow_checks.close()

    async def serve(self, request: ClientRequest) -> None:
        rules = self._rules
        trusted = self._trusts is not None and self._trusts(request.address)
        head = request.headers.derived(self._head, trusted, request.version)
        client = self._client(request, head, self._budget, self._credentials.caller_of)
        rule = self._unmatched
        try:
            if head.dropped:
                self._counts["gateway_fields_dropped_total",] += head.dropped
            if head.looped:
                raise LoopDetected("its Via field names this gateway")
            route = rules.match(client.method, client.path, client.head.claimed)  # match
            if route is None:
                await self._passthrough.carry(client, rules)
            else:
                rule = route.rule.name
                await self._serve_matched(client, route, rules)
        except GatewayError as error:
            self._count(error, client)
            self._evidence.tell(error, client.told_id)
            if client.started:
                raise
            await client.refuse(error)
        except ClientGone:
            self._counts["gateway_clients_gone_total",] += 1
        finally:
            if client.held:
                client.release()
            if rules is not self._rules and client.method.upper().encode() not in SAFE_METHODS:
                # It took the lock, if any, that the rules before a reload asked for: by those of now it may
                # be a write that nothing else knows of (S3).
                await self._lookups.invalidate_after(None)
            method, status = METHODS.get(client.method) or counted_method(client.method), client.status
            said = "none" if status is None else STATUSES.get(status // 100, "none")
            self._counts["gateway_requests_total", rule, method, said] += 1

    async def _serve_matched(self, client: Client, route: RouteMatch, rules: Rules) -> None:
        query = self._credentials.carried_query(client.target) if client.path != client.target else b""
        record = CallRecord(client, route.rule, client.caller(), self._clock())
        self._deadline.begin(client.task)
        late = False
        matched: MatchedCall | None = None
        try:
            try:
                nominated = client.head.nominated
                if nominated is not None:
                    raise BadRequest(f"Connection names {text(nominated, 64)}, which may say who calls")
                body = client.read_now(self._max_body)  # read
                if body is None:
                    body = await client.read(self._max_body)
                matched = self._diagnosed(client, route, rules, record, body, query)  # diagnose
                if matched.found.violations:
                    matched.violated(matched.found.violations, matched.found.rejected)
                if matched.found.nothing_to_repair:
                    reply = await self._phases.untouched(matched, matched.found.reason)
                else:
                    reply = await MODES[route.rule.mode](self._phases, matched)  # look up … settle
                if matched.otherwise is not None and record.changes and reply.status in REFUSED:
                    matched, reply = await otherwise(self._phases, matched, reply, self._absent)
            finally:
                late = self._deadline.end(client.task)
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
            now = self._clock()
            record.record_outcome(self._audit, now)
            record.count(self._counted, now)
            if not record.would_change:
                self._tell(record, now)
            elif matched is None or not self._checked_later(matched, now):
                self._tell_compared(record, now, record.shadow)

    def _tell(self, record: CallRecord, now: float) -> None:
        finished = None
        for wants, observe in self._observers:
            if wants is None or wants(bool(record.changes)):
                if finished is None:
                    client = record.client
                    application = self._applications.of(record.credential, client.headers, client.values)
                    finished = record.finished(now, application)
                observe(finished)

    def _tell_compared(self, record: CallRecord, now: float, shadow: str | None) -> None:
        record.shadow = shadow
        self._counts["gateway_shadowed_total", shadow or "unreported"] += 1
        self._tell(record, now)

    def _checked_later(self, matched: MatchedCall, now: float) -> bool:
        """Whether a GET is to tell what the reply to a call of `shadow` did not."""
        record = matched.record
        told = record.shadow is not None or record.error is not None or record.status is None
        if told or not record.comparable or record.status in UNTOLD:
            return False
        requests, expected = matched.shadow_requests(self._lookups.now())
        if not requests:
            return False
        return self._shadow_checks.begin(
            requests, expected, lambda shadow: self._tell_compared(record, now, shadow)
        )

    def _diagnosed(
        self,
        client: Client,
        route: RouteMatch,
        rules: Rules,
        record: CallRecord,
        body: bytes,
        query: bytes | None,
    ) -> MatchedCall:
        headers = client.head.upstream
        call = Call(client.method.encode(), client.target, headers, body)
        rule = route.rule
        if rule.retarget is None:
            return self._matched(client, route, rules, record, call, query, rule.repairs)
        if self._absent.known(rule):
            return self._matched(client, route, rules, record, call, query, rule.otherwise)
        matched = self._matched(client, route, rules, record, call, query, rule.repairs)
        if matched.found.answer is None:
            return matched

        def otherwise() -> MatchedCall:
            return self._matched(client, route, rules, record, call, query, rule.otherwise)

        return structs.replace(matched, otherwise=otherwise)

    def _matched(
        self,
        client: Client,
        route: RouteMatch,
        rules: Rules,
        record: CallRecord,
        call: Call,
        query: bytes | None,
        repairs: tuple[Repair, ...],
    ) -> MatchedCall:
        headers = call.headers
        found = diagnose(call, repairs, route.parameters)
        if query is None and found.missing:
            found = left_as_it_is(found, call, "credential-in-query")
        conversation, changing = self._concerns(client, route, rules, found)
        query, fingerprint = query or b"", ""
        if found.missing:
            caller = record.credential if client.head.caller_tells_all else ""
            fingerprint = self._credentials.of_call(headers, query, client.certificate, client.values, caller)
        return MatchedCall(client, route, call, found, conversation, changing, record, fingerprint, query)

    def _concerns(
        self, client: Client, route: RouteMatch, rules: Rules, found: Diagnosis
    ) -> tuple[str | None, bool]:
        """Which conversation a call is about, and whether it may change the state there (S4)."""
        if found.answer is not None:
            write = rules.writes(found.call.target.partition(b"?")[0], client.method, *client.head.overrides)
            if write is not None:
                conversation = write.value.conversation(write.parameters)
                return conversation if route.conversation in {None, conversation} else None, True
        if route.rule.fills:
            changing = found.may_change_state or found.names(route.rule.watched)
            if client.head.overrides and route.rule.mode != "enforce":
                changing = True  # sent as it came, under another method, it may be anything
            return route.conversation, changing
        write = rules.writes(client.path, client.method, *client.head.overrides)
        if write is None:
            return None, False
        return write.value.conversation(write.parameters), True

    # --- the reply

    async def _relay(self, matched: MatchedCall, reply: Reply) -> None:
        record, client = matched.record, matched.client
        if not reply.over and not client.gone and not reply.headers.derived(h.is_event_stream):
            # A real client sends a PATCH again whose reply was cut off in its middle (C3).
            client.cancel_on_disconnect()
            await reply.hold(HELD, self._hold_patience)
        elif reply.error is not None:
            raise reply.error
        if matched.found.answer is not None and record.changes and 200 <= reply.status < 300:
            await self._relay_as(matched.found.answer, record, reply)
            return
        record.status = reply.status
        response = reply.headers.derived(forwarding.client_response_headers)
        extra_headers = response.extra_headers(record.headers(), client.extra_headers[0])
        keep = HELD if (record.changes or record.would_change) and response.is_json else 0
        body = await client.relay(reply.status, response.headers, extra_headers, reply, keep)
        if record.would_change:
            if body and reply.status < 300 and record.comparable:
                record.shadow = matched.shadow_compared(body)
        elif body and matched.contradicted_by(body):
            record.conflict = True
            self._counts["gateway_conflicts_total",] += 1
            await self._lookups.invalidate_after(matched.conversation)

    async def _relay_as(self, answer: AnswerAs, record: CallRecord, reply: Reply) -> None:
        """As the client expects it of the operation that it called."""
        client = record.client
        record.status = status = answer.status or reply.status
        response = reply.headers.derived(forwarding.client_response_headers)
        extra_headers = response.extra_headers(record.headers(), client.extra_headers[0])
        if answer.empty:
            headers = response.headers.derived(h.without_content)
            await client.answer(status, headers, b"", extra_headers)
        else:
            await client.relay(status, response.headers, extra_headers, reply)

    async def _relay_refusal(self, record: CallRecord, refused: LookupRefused) -> None:
        """The upstream's refusal of a look-up, as the upstream said it (C5)."""
        refusal = refused.refusal
        record.status = refusal.status
        record.record_reject(self._audit, "lookup-refused")
        response = forwarding.client_response_headers(refusal.headers)
        extra_headers = response.extra_headers(record.headers(), record.client.extra_headers[0])
        await record.client.answer(refusal.status, response.headers, refusal.body, extra_headers)

    async def _refuse(self, record: CallRecord, error: GatewayError) -> None:
        record.record_reject(self._audit, error.slug())
        self._evidence.tell(error, record.client.told_id)
        if record.client.started:
            raise error
        record.status = error.status
        self._count(error, record.client)
        await record.client.refuse(error, record.headers())

    def _count(self, error: GatewayError, client: Client) -> None:
        """But those of the server, which has counted and logged them itself."""
        if not error.counted:
            self._counts["gateway_refusals_total", error.slug()] += 1
            self._log_refusal(error, client.address)
