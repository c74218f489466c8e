"""
What happened to one call, gathered on its way: for the audit log and for the reply's own headers.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from gateway.audit.finished_call import CallCounter, FinishedCall
from gateway.audit.writer import AuditLog, Batch, Line
from gateway.http import headers as h
from gateway.http.headers import Header
from gateway.proxy.client import Client
from gateway.repairs import Violation
from gateway.repairs.call import Call, Change
from gateway.rules import Rule

_record = attrgetter("record")
# With these an upstream refuses a method that it does not know in small letters.
METHOD_REFUSED = frozenset({400, 405, 501})


class Decision(Line):
    """The line that says what became of a call: a rewrite, a skip or a reject."""

    request_id: str | UnsetType
    trace_id: str | UnsetType
    rule: str
    mode: str
    method: str
    path: str
    client: dict[str, Any]
    reason: str | None = None
    needs: list[str] | UnsetType = UNSET
    unfilled: str | UnsetType | None = UNSET
    changes: list[dict[str, Any]] | UnsetType = UNSET
    body: dict[str, Any] | UnsetType = UNSET
    skipped: str | None = None
    attempt: int = 1
    violations: tuple[Violation, ...] | UnsetType = UNSET


class Unsent(Line):
    """The rewrite with this `attempt` was recorded, and then did not leave."""

    attempt: int = 1


class Outcome(Line):
    """Times in milliseconds."""

    request_id: str | UnsetType
    trace_id: str | UnsetType
    status: int | None
    error: str | None = None
    lookup_ms: float | UnsetType = UNSET
    upstream_ms: float | UnsetType = UNSET
    total_ms: float | UnsetType = UNSET
    conflict: bool = False
    helps: str | UnsetType = UNSET


class CallRecord(Struct, eq=False):
    """
    `credential` names the caller. Times in seconds. `skipped` is why nothing was filled or repaired, `error`
    how the call ended.
    """

    client: Client
    rule: Rule
    credential: str
    begun: float
    lookup: float = 0.0
    upstream: float = 0.0
    status: int | None = None
    changes: tuple[Change, ...] = ()
    body: dict[str, Any] | None = None
    # Changes, body and skipped of the attempt before, should the line of the next not be written.
    before: tuple[tuple[Change, ...], dict[str, Any] | None, str | None] = ((), None, None)
    batch: Batch | None = None  # in which the last rewrite was recorded
    path: str = ""
    who: dict[str, Any] = {}  # as it is recorded; there when the first line is, or it is over
    skipped: str | None = None
    error: str | None = None
    attempt: int = 0
    conflict: bool = False
    needs: tuple[str, ...] = ()
    would_change: tuple[dict[str, Any], ...] = ()
    # Whether `enforce` would have sent `would_change`, and not looked up once more.
    comparable: bool = True
    shadow: str | None = None
    violations: tuple[Violation, ...] = ()

    def _decision(self, event: str, **more: Any) -> Decision:
        client, rule = self.client, self.rule
        who = self.who or self._identified()
        return Decision(
            event,
            "",
            client.id,
            client.request_id or UNSET,
            client.trace_id or UNSET,
            rule.name,
            rule.mode,
            client.method,
            self.path,
            who,
            violations=self.violations or UNSET,
            **more,
        )

    def _identified(self) -> dict[str, Any]:
        client = self.client
        agent = client.field(b"user-agent")
        self.path = client.path.decode("ascii", "backslashreplace")
        self.who = {
            "address": client.address,
            "user_agent": None if agent is None else agent[: h.SHOWN].decode("ascii", "backslashreplace"),
            "credential": self.credential,
        }
        return self.who

    def record_rewrite(
        self, audit: AuditLog, before: Call, after: Call, changes: tuple[Change, ...], unfilled: str | None
    ) -> Callable[[], None] | None:
        """Before the call leaves; it may leave only after the commit that is returned (L1)."""
        if not changes:
            self.record_skip(audit, unfilled or "conforming")
            return None
        self.before = self.changes, self.body, self.skipped
        self.skipped = unfilled
        self.attempt += 1
        body = bodies_recorded(audit, before, after)
        client, rule = self.client, self.rule
        who = self.who or self._identified()
        line = Decision(
            "rewrite",
            "",
            client.id,
            client.request_id or UNSET,
            client.trace_id or UNSET,
            rule.name,
            rule.mode,
            client.method,
            self.path,
            who,
            changes=[change.record for change in changes],
            body=body,
            skipped=unfilled,
            attempt=self.attempt,
            violations=self.violations or UNSET,
        )
        self.batch = audit.append(line)
        self.changes, self.body = changes, body
        return audit.commit

    def drop_unsent(self, audit: AuditLog) -> None:
        """
        A rewrite that has not left, for its line was not written or for what came after it: Gateway-Rewrite
        must not name it.
        """
        batch, self.batch = self.batch, None
        if batch is None:
            return
        self.changes, self.body, self.skipped = self.before
        if batch.problem is None:
            audit.append_best_effort(Unsent("unsent", "", self.client.id, self.attempt))
        else:
            self.attempt -= 1

    def record_skip(self, audit: AuditLog, reason: str, **details: Any) -> None:
        """The call goes out as it came."""
        self.skipped = reason
        self.needs = tuple(details.get("needs", ()))
        self.would_change = tuple(details.get("changes", ()))
        audit.append_best_effort(self._decision("skip", reason=reason, **details))

    def record_reject(self, audit: AuditLog, reason: str) -> None:
        """The gateway answers the call itself; if something was sent before, it has its line already."""
        self.error = reason
        if not self.changes and self.skipped is None:
            self.skipped = reason
            audit.append_best_effort(self._decision("reject", reason=reason))

    def record_outcome(self, audit: AuditLog, now: float) -> None:
        audit.append_best_effort(
            Outcome(
                "outcome",
                "",
                self.client.id,
                self.client.request_id or UNSET,
                self.client.trace_id or UNSET,
                self.status,
                self.error,
                round(self.lookup * 1000, 2) if self.lookup else UNSET,
                round(self.upstream * 1000, 2) if self.upstream else UNSET,
                round((now - self.begun) * 1000, 2),
                self.conflict,
                UNSET if self.changes and self.status not in METHOD_REFUSED else self.helps or UNSET,
            )
        )

    @property
    def helps(self) -> str | None:
        """The repair that the rule lacks, which would have helped a call that was left as it came."""
        client = self.client
        if self.skipped == "method-override":
            method = client.method.upper()
            return "method" if all(one == method for one in client.head.claimed) else None
        if self.status in METHOD_REFUSED and not client.method.isupper():
            return None if any(one.repair == "method" for one in self.changes) else "method"
        return None

    def count(self, counted: CallCounter, now: float) -> None:
        rule, skipped = self.rule, self.skipped
        not_sent: tuple[str, ...] = ()
        if not self.changes and (self.would_change or self.needs):
            would = [change["repair"] for change in self.would_change]
            not_sent = (*would, *[need.partition(" ")[0] for need in self.needs])  # `fill` with its member
        if skipped is not None and skipped == self.error:
            skipped = None  # what the gateway refused is no skip, though it names its error as one
        added = max(0.0, now - self.begun - self.upstream)
        counted(rule.name, rule.mode, self.status, self.changes, not_sent, skipped, added)

    def finished(self, now: float, application: str | None) -> FinishedCall:
        client, rule = self.client, self.rule
        who = self.who or self._identified()
        return FinishedCall(
            client.id,
            client.request_id,
            rule.name,
            rule.mode,
            client.method,
            self.path,
            client.address,
            who["user_agent"],
            self.credential,
            tuple(map(_record, self.changes)),
            self.would_change,
            self.needs,
            self.skipped,
            self.error,
            self.status,
            self.lookup,
            self.upstream,
            now - self.begun,
            self.attempt,
            self.conflict,
            self.shadow,
            self.body,
            client.trace_id,
            application,
        )

    def headers(self) -> list[Header]:
        """Gateway-Rewrite (a structured field, RFC 9651) and Server-Timing; of a repaired call its sunset."""
        said = self.rule.name
        for change in self.changes:
            said += change.said
        if self.attempt > 1:
            said += f"; attempt={self.attempt}"
        if self.skipped is not None:
            said += f"; skipped={h.bare_item(self.skipped)}"
        if self.violations:
            said += f"; violations={len(self.violations)}"
        if (self.skipped is not None or self.status in METHOD_REFUSED) and self.helps is not None:
            said += f"; helps={self.helps}"
        rewrite = (b"gateway-rewrite", said.encode("ascii", "replace"))
        lookup, upstream = self.lookup * 1000, self.upstream * 1000
        own = [rewrite]
        if lookup and upstream:
            own.append((b"server-timing", b"lookup;dur=%.2f, upstream;dur=%.2f" % (lookup, upstream)))
        elif lookup or upstream:
            which = b"lookup;dur=%.2f" if lookup else b"upstream;dur=%.2f"
            own.append((b"server-timing", which % (lookup or upstream)))
        if self.changes and self.rule.sunset:
            own += self.rule.sunset
        return own


def changes_recorded(
    audit: AuditLog, before: Call, after: Call, changes: tuple[Change, ...]
) -> dict[str, Any]:
    """Names of fields, filled values, sizes and digests; no other value of the body (L3)."""
    return {"changes": list(map(_record, changes)), "body": bodies_recorded(audit, before, after)}


def bodies_recorded(audit: AuditLog, before: Call, after: Call) -> dict[str, Any]:
    return {
        "before": {"bytes": len(before.body), "sha256": audit.digest(before.body)},
        "after": {"bytes": len(after.body), "sha256": audit.digest(after.body)},
    }
