"""
Who still needs the gateway, added up from the audit log's calls where nobody kept a table of callers.

As the table has it, but for what the log does not hold: whether what `shadow` would have filled was right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from msgspec import Struct, field

from gateway.audit.callers import AGENT_KEPT, PLAIN, named
from gateway.audit.callers_file import OTHERS, Caller, Day
from gateway.audit.reader import LoggedCall

MOST = 10_000  # callers that are told apart


class _Sum(Struct):
    first: str
    last: str = ""
    last_need: str = ""
    needed: int = 0
    calls: int = 0
    accepted: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)
    needed_days: Counter[str] = field(default_factory=Counter)

    def add(self, call: LoggedCall) -> None:
        decision, outcome = call.decision, call.outcome
        time = decision.time
        self.first, self.last = min(self.first, time), max(self.last, time)
        self.calls += 1
        self.days[time[:10]] += 1
        needs = set(decision.needs or [named(change) for change in decision.changes])
        if needs:
            self.needed += 1
            self.needed_days[time[:10]] += 1
            self.last_need = max(self.last_need, time)
        self.repairs.update(needs)
        self.modes[decision.mode] += 1
        self.rules[decision.rule] += 1
        if call.reason not in PLAIN:
            self.left[str(call.reason)] += 1
        if outcome is not None and outcome.status is not None and outcome.status < 300:
            self.accepted += 1


def added_up(calls: Iterable[LoggedCall], days: int, now: float) -> list[Caller]:
    """Who needed it last comes first. `now` in Unix seconds."""
    sums: dict[tuple[str, str], _Sum] = {}
    for call in calls:
        client = call.decision.client
        key = client.credential, (client.user_agent or "")[:AGENT_KEPT]
        if key not in sums and len(sums) >= MOST:
            key = OTHERS, ""
        if key not in sums:
            sums[key] = _Sum(call.decision.time)
        sums[key].add(call)
    today = datetime.fromtimestamp(now, UTC).date()
    wanted = [(today - timedelta(days=before)).isoformat() for before in range(days - 1, -1, -1)]
    ordered = sorted(sums.items(), key=lambda one: (one[1].last_need, one[1].last), reverse=True)
    return [_caller(credential, agent, one, wanted) for (credential, agent), one in ordered]


def _caller(credential: str, agent: str, one: _Sum, days: list[str]) -> Caller:
    return Caller(
        credential,
        "".join([letter if letter.isprintable() else "�" for letter in agent]),
        _seconds(one.first),
        _seconds(one.last),
        _seconds(one.last_need) if one.last_need else None,
        one.calls,
        one.needed,
        one.accepted,
        repairs=dict(one.repairs.most_common()),
        modes=dict(one.modes.most_common()),
        rules=dict(one.rules.most_common()),
        left=dict(one.left.most_common()),
        shadow={},
        days=[Day(day, one.days[day], one.needed_days[day]) for day in days],
    )


def _seconds(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:  # of another program that writes lines like ours
        return 0.0
