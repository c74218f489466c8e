"""
What other rules would have done with the calls on an audit log, as far as the log tells.

A log holds no bodies. Of a call it tells which repairs it needed and got, the value filled, or why nothing
was done; that a repair was not needed follows only where the rule of then had it, which is taken from its
other calls. Calls that are alike are judged once, so that a log is read about as fast as `audit stats` does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from gateway import paths
from gateway.audit.reader import LoggedCall
from gateway.audit.selection import plain
from gateway.repairs.content_type import ContentTypeSettings
from gateway.repairs.fill import FillSettings
from gateway.rules import RuleSettings

SAME, NOW, NO_LONGER = "same", "now repaired", "no longer repaired"
OTHERWISE, OTHER_RULE, OTHER_SKIP, UNKNOWN = (
    "repaired otherwise",
    "other rule",
    "other skip",
    "cannot tell",
)
VERDICTS = (SAME, NOW, NO_LONGER, OTHERWISE, OTHER_RULE, OTHER_SKIP, UNKNOWN)
# With these the whole call was diagnosed: what it is not said to need, it did not.
DIAGNOSED = frozenset({"conforming", "observe", "shadow"})
# Header fields alone decide: no rule repairs such a call.
EXEMPT = frozenset({"signed-body", "no-transform", "method-override", "credential-in-query"})
REFUSED = frozenset({400, 415, 422})  # on which `on_reject` repairs


class Seen(Struct, frozen=True):
    """
    What the log tells of calls that are alike. `made` were sent, `needs` were found to be needed: names as
    `fill state`. `values`: field and value of each fill, `content_type` as it was set. `status`: of the
    reply, where it may have been a refusal that `on_reject` repairs.
    """

    rule: str
    mode: str
    event: str
    reason: str | None
    needs: frozenset[str]
    values: tuple[tuple[str, str], ...]
    content_type: str | None
    refused: bool | None
    route: int | None  # which of the new rules matches


class Verdict(Struct, frozen=True):
    name: str
    why: str = ""


def names(rule: RuleSettings) -> frozenset[str]:
    return frozenset(
        f"fill {one.field}" if isinstance(one, FillSettings) else one.type for one in rule.repairs
    )


class Replay:
    """`calls`: of how many what was seen, with the id of one of them."""

    def __init__(self, rules: Sequence[RuleSettings], were: Sequence[RuleSettings] = ()) -> None:
        """`were`: the rules that the calls came under, where they are known."""
        self._rules = rules
        # By the upstream that they are for; that of a call is known by its rule alone.
        self._routes: dict[str | None, paths.Routes[int]] = defaultdict(paths.Routes)
        self._upstreams = {rule.name: rule.upstream for rule in (*rules, *were)}
        for number, rule in enumerate(rules):
            self._routes[rule.upstream].add(rule.match.method, paths.parse(rule.match.path), number)
        self._calls: Counter[Seen] = Counter()
        self._ids: dict[Seen, str] = {}
        # The repairs that a rule of then is known to have had.
        self._had: dict[str, set[str]] = {rule.name: set(names(rule)) for rule in were}

    def add(self, call: LoggedCall) -> None:
        decision, outcome = call.decision, call.outcome
        changes = decision.changes
        needs = decision.needs or tuple(
            f"fill {one.get('field')}" if one.get("repair") == "fill" else str(one.get("repair"))
            for one in changes
            if one.get("repair") != "guard"
        )
        routes = self._routes[self._upstreams.get(decision.rule)]
        found = routes.match(decision.method, decision.path.encode("ascii", "replace"))
        status = None if outcome is None else outcome.status
        seen = Seen(
            decision.rule,
            decision.mode,
            decision.event,
            call.reason,
            frozenset(needs),
            tuple((str(one.get("field")), str(one.get("after"))) for one in changes if "field" in one),
            next((str(one.get("after")) for one in changes if one.get("repair") == "content_type"), None),
            None if status is None else status in REFUSED,
            None if found is None else found.value,
        )
        self._calls[seen] += 1
        if seen not in self._ids:
            self._ids[seen] = decision.id
            self._had.setdefault(decision.rule, set()).update(needs)

    def judged(self) -> Iterator[tuple[Seen, Verdict, int, str]]:
        """What was seen, what would come of it, how many calls, and the id of one. The most first."""
        for seen, count in self._calls.most_common():
            yield seen, self._verdict(seen), count, self._ids[seen]

    def _verdict(self, seen: Seen) -> Verdict:
        repaired = seen.event == "rewrite"
        if seen.event == "reject":
            return Verdict(UNKNOWN, f"it ended before it was repaired: {seen.reason}")
        if seen.route is None:
            return Verdict(NO_LONGER if repaired else OTHER_SKIP, "no rule matches")
        rule = self._rules[seen.route]
        if rule.mode in {"observe", "shadow"}:
            return _left(seen, rule.mode)
        if rule.mode == "on_reject" and seen.mode == "on_reject" and not repaired:
            return _left(seen, seen.reason or "")
        if rule.mode == "on_reject" and not (seen.mode == "on_reject" and repaired):
            if repaired or seen.refused is None:
                return Verdict(UNKNOWN, "on_reject: whether the API would have refused it as it came")
            if not seen.refused:
                return _left(seen, "not-rejected")
        return self._enforced(seen, rule)

    def _enforced(self, seen: Seen, rule: RuleSettings) -> Verdict:
        repaired = seen.event == "rewrite"
        has = names(rule)
        if seen.reason == "method-override" and "method" in has:
            return Verdict(UNKNOWN, "whether its fields claim the rule's own method")
        if seen.reason in EXEMPT:
            return Verdict(SAME)
        if "retarget" in seen.needs - has:
            return Verdict(UNKNOWN, "it went to another operation then: whether it needs a fill")
        had = frozenset(self._had.get(seen.rule, ()))
        if any(name.startswith("fill ") for name in had):
            had |= {"encoding"}  # a fill has read the body, and so could any other
        if not repaired and seen.reason not in DIAGNOSED:
            return Verdict(UNKNOWN, f"skipped then ({seen.reason}): what its body needs")
        if unknown := sorted(has - had - seen.needs):
            return Verdict(UNKNOWN, f"whether it needs {', '.join(unknown)}: bodies are not on the log")
        would = seen.needs & has
        allowed = {one.field: one.allow for one in rule.repairs if isinstance(one, FillSettings)}
        refused = {
            f"fill {field}"
            for field, value in seen.values
            if field in allowed and value not in allowed[field]
        }
        if repaired and seen.reason is not None and any(name.startswith("fill ") for name in has):
            return Verdict(UNKNOWN, f"not filled then ({seen.reason}): what a look-up would show")
        would -= refused
        if not would:
            why = "the value is not allowed" if refused else ""
            return Verdict(NO_LONGER, why) if repaired else _left(seen, "conforming", why)
        if not repaired:
            looks_up = any(name.startswith("fill ") for name in would) and not seen.values
            return Verdict(NOW, "if its look-up shows an allowed value: none was made" if looks_up else "")
        value = next((one.value for one in rule.repairs if isinstance(one, ContentTypeSettings)), None)
        if would != seen.needs or (seen.content_type is not None and seen.content_type != value):
            return Verdict(
                OTHERWISE, f"{', '.join(sorted(would))} instead of {', '.join(sorted(seen.needs))}"
            )
        return Verdict(SAME) if rule.name == seen.rule else Verdict(OTHER_RULE, rule.name)


def _left(seen: Seen, reason: str, why: str = "") -> Verdict:
    """It would be left as it is, for this reason."""
    if seen.event == "rewrite":
        return Verdict(NO_LONGER, why or reason)
    same = seen.reason == reason or (seen.reason in DIAGNOSED and reason == "conforming" and not seen.needs)
    return Verdict(SAME) if same else Verdict(OTHER_SKIP, why or reason)


def replayed(
    rules: Sequence[RuleSettings], were: Sequence[RuleSettings], calls: Iterable[LoggedCall]
) -> Replay:
    replay = Replay(rules, were)
    for call in calls:
        replay.add(call)
    return replay


def summed(replay: Replay) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """By the rule of then how many calls come to which verdict, and those that differ, the most first."""
    sums: dict[str, dict[str, int]] = {}
    rows: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for seen, verdict, count, example in replay.judged():
        counts = sums.setdefault(seen.rule, dict.fromkeys(VERDICTS, 0))
        counts[verdict.name] += count
        was = "repaired" if seen.event == "rewrite" else f"{seen.event}: {seen.reason}"
        row = rows.setdefault(
            (seen.rule, was, verdict.name, verdict.why),
            {
                "rule": seen.rule,
                "was": was,
                "now": verdict.name,
                "why": verdict.why,
                "calls": 0,
                "id": example,
            },
        )
        row["calls"] += count
    told = [row for row in rows.values() if row["now"] != SAME]
    return sums, sorted(told, key=lambda row: -int(row["calls"]))


def table(sums: dict[str, dict[str, int]], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Both of `summed`, for people."""
    used = [one for one in VERDICTS if any(counts[one] for counts in sums.values())] or [SAME]
    lines = [("rule of then", "calls", *used)]
    lines += [
        (plain(rule), str(sum(counts.values())), *[str(counts[one]) for one in used])
        for rule, counts in sums.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for rule, *cells in lines:
        right = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([f"{rule:<{widths[0]}}", *right])
    if rows:
        yield ""
    for row in rows:
        why = f" ({row['why']})" if row["why"] else ""
        yield plain(f"{row['calls']} of {row['rule']}: {row['was']} -> {row['now']}{why}, as {row['id']}")
