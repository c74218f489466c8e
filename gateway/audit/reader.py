"""
What the audit log says, call by call. Nothing here opens a file or prints.

A log may be written by several gateways, broken off, or mixed with what others print: what can't be read is
skipped and counted. The writer's lines all begin alike, so most that nobody asked for are told by their first
bytes and not decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

# Calls whose outcome is still to come. A log that lost many outcomes does not fill the memory.
KEPT = 100_000
HEAD = re.compile(rb'\{"event":"([a-z]+)","time":"([^"\\]*)","id":"([^"\\]*)"')
DECISIONS = {"rewrite", "skip", "reject"}


class LoggedClient(Struct, frozen=True):
    address: str = ""
    user_agent: str | None = None
    credential: str = ""


class LogEntry(Struct, frozen=True):
    """A line of any event; docs/operations.md says what the fields are."""

    event: Literal["rewrite", "skip", "reject", "unsent", "outcome", "mode", "config", "gap"]
    time: str
    id: str = ""
    request_id: str | None = None
    rule: str = ""
    mode: str = ""
    method: str = ""
    path: str = ""
    client: LoggedClient = LoggedClient()
    reason: str | None = None
    skipped: str | None = None
    unfilled: str | None = None
    changes: tuple[dict[str, Any], ...] = ()
    needs: tuple[str, ...] = ()
    attempt: int = 1
    status: int | None = None
    error: str | None = None
    lookup_ms: float = 0.0
    upstream_ms: float = 0.0
    total_ms: float = 0.0
    conflict: bool = False
    lost: int = 0


class LoggedCall(Struct):
    """`decision` is the latest one that left; `lines` are all of the call's, as they stand in the log."""

    decision: LogEntry
    lines: list[bytes]
    before: LogEntry | None = None
    outcome: LogEntry | None = None

    @property
    def reason(self) -> str | None:
        """Why `shadow` would not have filled it, before its being in that mode."""
        return self.decision.unfilled or self.decision.reason or self.decision.skipped

    @property
    def repaired(self) -> bool:
        return self.decision.event == "rewrite"

    def add(self, entry: LogEntry, line: bytes) -> None:
        self.lines.append(line)
        if entry.event == "outcome":
            self.outcome = entry
        elif entry.event != "unsent":
            self.before, self.decision = self.decision, entry
        elif entry.attempt == self.decision.attempt and self.repaired:
            # It was recorded and did not leave: what was said before it holds, or nothing was done.
            unsent = msgspec.structs.replace(self.decision, event="reject", reason="unsent", changes=())
            self.decision = self.before or unsent


class Wanted(Struct, frozen=True, kw_only=True):
    """
    Which calls are asked for; None for all. `since` as the log writes times. `caller` is a part of the
    credential's hash, the address or the User-Agent, `path` of the path. `result` is a status, a class of
    them (`4xx`), an event, a reason or an error.
    """

    since: str | None = None
    rule: str | None = None
    caller: str | None = None
    result: str | None = None
    path: str | None = None
    call: str | None = None  # its id or request_id

    def needles(self) -> tuple[bytes, ...]:
        """What stands in each decision that is wanted, however its JSON is spaced."""
        texts = [text for text in (self.rule, self.caller, self.path, self.call) if text]
        return tuple(text.encode() for text in texts if json.dumps(text)[1:-1] == text and "/" not in text)

    def decision(self, entry: LogEntry) -> bool:
        client = entry.client
        return (
            (self.since is None or entry.time >= self.since)
            and (self.rule is None or entry.rule == self.rule)
            and (self.path is None or self.path in entry.path)
            and (self.call is None or self.call in {entry.id, entry.request_id})
            and (
                self.caller is None
                or any(self.caller in (text or "") for text in msgspec.structs.astuple(client))
            )
        )

    def whole(self, call: LoggedCall) -> bool:
        if self.result is None:
            return True
        status = str(call.outcome.status or "") if call.outcome else ""
        error = call.outcome.error if call.outcome else None
        decision = call.decision
        reasons = {decision.reason, decision.skipped, decision.unfilled}
        return self.result in {status, f"{status[:1]}xx", decision.event, error} | reasons


class Reader:
    """`damaged` lines are no JSON or broken off, `foreign` ones not of an event that is known here."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._needles = wanted.needles()
        self._open: dict[str, LoggedCall] = {}
        self._decode = msgspec.json.Decoder(LogEntry).decode
        self.damaged = self.foreign = self.lost = 0

    def read(self, line: bytes) -> Iterator[LoggedCall]:
        """The calls that are over with this line: one, but for calls whose outcome is missing."""
        whole = line.rfind(b'{"event":')
        if whole > 0:
            # Another worker was killed in the middle of its line, and this one came behind it: within a
            # line's own texts each quote is escaped.
            self.damaged += 1
            line = line[whole:]
        head = HEAD.match(line)
        if head is not None and self._unwanted(line, *head.groups()):
            # A line that is skipped may be broken off too.
            self.damaged += not line.rstrip().endswith(b"}")
            return
        entry = self._entry(line)
        if entry is None:
            return
        if entry.event in {"gap", "mode", "config"}:  # of no call
            self.lost += entry.lost
            return
        call = self._open.get(entry.id)
        if call is not None:
            call.add(entry, line)
            if entry.event == "outcome":
                del self._open[entry.id]
                if self._wanted.whole(call):
                    yield call
        elif entry.event in DECISIONS and self._wanted.decision(entry):
            self._open[entry.id] = LoggedCall(entry, [line])
            if len(self._open) > KEPT:
                oldest = self._open.pop(next(iter(self._open)))
                if self._wanted.whole(oldest):
                    yield oldest

    def rest(self) -> Iterator[LoggedCall]:
        """The calls that have no outcome: under way still, or it was lost."""
        for call in self._open.values():
            if self._wanted.whole(call):
                yield call
        self._open.clear()

    def _unwanted(self, line: bytes, event: bytes, time: bytes, id: bytes) -> bool:
        if id.decode("ascii", "replace") in self._open:
            return False
        if event in {b"outcome", b"unsent"}:
            return True
        if event not in {b"rewrite", b"skip", b"reject"}:
            return False
        since = self._wanted.since
        if since is not None and time < since.encode():
            return True
        return any(needle not in line for needle in self._needles)

    def _entry(self, line: bytes) -> LogEntry | None:
        try:
            return self._decode(line)
        except msgspec.ValidationError:
            self.foreign += 1
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if line.strip():
                self.damaged += 1
        return None


class CallTally(Struct):
    """Of the calls with one key, by what became of them."""

    calls: int = 0
    repaired: int = 0
    left: int = 0
    rejected: int = 0
    refused: int = 0  # by the upstream, 4xx
    failed: int = 0  # 5xx, or nothing came back
    conflicts: int = 0
    last: str = ""

    def as_dict(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)

    def add(self, call: LoggedCall) -> None:
        decision, outcome = call.decision, call.outcome
        self.calls += 1
        self.repaired += decision.event == "rewrite"
        self.left += decision.event == "skip"
        self.rejected += decision.event == "reject"
        self.last = max(self.last, decision.time)
        if outcome is not None:
            status = outcome.status
            self.refused += status is not None and 400 <= status < 500
            self.failed += status is None or status >= 500
            self.conflicts += outcome.conflict


def _caller(call: LoggedCall) -> str:
    client = call.decision.client
    return f"{client.credential} {client.user_agent or '-'}"


# What calls are counted by.
KEYS: dict[str, Callable[[LoggedCall], str]] = {
    "rule": lambda call: call.decision.rule,
    "caller": _caller,
    "reason": lambda call: call.reason or "repaired",
}
