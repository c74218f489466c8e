"""
A matched call as it was diagnosed: the value that the phases after that hand on.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, to_builtins

from gateway.errors import InvalidBody
from gateway.proxy.call_record import CallRecord
from gateway.proxy.client import Client
from gateway.repairs import Diagnosis, Violation
from gateway.repairs.call import Call
from gateway.rules import RouteMatch
from gateway.state.documents import parsed
from gateway.state.lookup_results import LookupRequest
from gateway.state.store import Key


class MatchedCall(Struct, frozen=True):
    """
    `call` is before any repair, its header fields those for the upstream. `changing`: it may change the
    state of its `conversation`, or where that is None, of any. `query` is what a look-up carries of its own,
    `fingerprint` whom it may share readings with (state/credentials.py). `otherwise` makes what is to be done
    where the upstream has no operation to which the call went instead.
    """

    client: Client
    route: RouteMatch
    call: Call
    found: Diagnosis
    conversation: str | None
    changing: bool
    record: CallRecord
    fingerprint: str
    query: bytes
    otherwise: Callable[[], MatchedCall] | None = None

    @property
    def writes(self) -> bool:
        """Whether sending it may make what was read useless, for its own conversation or for any."""
        return self.conversation is not None or self.changing

    def violated(self, violations: tuple[Violation, ...], rejected: bool) -> None:
        """
        Records what its body does not fit. Raises InvalidBody where that is a reason to refuse it, in a mode
        that may.
        """
        self.record.violations = violations
        if rejected and self.route.rule.mode == "enforce":
            error = InvalidBody(f"it differs from its schema in {len(violations)} places, or more")
            error.members = {"violations": to_builtins(violations)}
            raise error

    def shadow_requests(self, now: float) -> tuple[list[LookupRequest], list[str]]:
        """For what `shadow` would have filled, and the values."""
        filled = {
            change["field"]: change["after"]
            for change in self.record.would_change
            if change["repair"] == "fill"
        }
        requests = [one for one in self.lookup_requests(now) if one.target.fill.field in filled]
        return requests, [filled[one.target.fill.field] for one in requests]

    def lookup_requests(self, now: float) -> list[LookupRequest]:
        """For the members that are missing. `now` is of the store's clock: the call had arrived by then."""
        requests = []
        for one in self.found.missing:
            target = self.route.targets[one.field]
            path = target.target
            asked = path + b"?" + self.query if self.query else path
            key = Key(self.conversation or "", asked, self.fingerprint)
            call, client = self.call, self.client
            requests.append(
                LookupRequest(
                    target,
                    key,
                    self.record.credential,
                    call.headers,
                    client.extra_headers,
                    now,
                    client.values,
                )
            )
        return requests

    def shadow_compared(self, reply_body: bytes) -> str | None:
        """What `shadow` would have filled, beside what the reply to the call as it came reports."""
        found = None
        for change in self.record.would_change:
            if change["repair"] != "fill":
                continue
            target = self.route.targets[change["field"]]
            try:
                named = target.fill.reported(parsed(reply_body), target.data)
            except (ValueError, RecursionError):
                return None
            if named is not None:
                found = "right" if named == change["after"] and found != "wrong" else "wrong"
        return found

    def contradicted_by(self, reply_body: bytes) -> bool:
        """Whether the reply to the filled call names another value than one that was filled (S5)."""
        document = None
        for change in self.record.changes:
            if change.repair != "fill":
                continue
            target, value = self.route.targets[change.record["field"]], change.record["after"]
            if target.fill.agrees(reply_body, value):
                continue
            if document is None:
                try:
                    document = parsed(reply_body)
                except (ValueError, RecursionError):
                    return False
            if target.fill.contradicted(document, value, target.data):
                return True
        return False
