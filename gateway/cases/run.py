"""
The rules' own tests, run without any network: what `explain` says of each call beside what is expected. Pure.

A case is judged by what its rule would make of the call, in whatever mode the rule is now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from gateway.cases.settings import CaseLookup, CaseSettings, text
from gateway.explain import Explanation, explain
from gateway.http.headers import text as header_text
from gateway.repairs import Unfilled
from gateway.repairs.call import Call
from gateway.rules import FillTarget, Rules, RuleSettings
from gateway.state.lookup_results import REFUSALS

SHOWN = 90  # characters of a long body, around where it differs


def failures(rules: Sequence[RuleSettings], limit: int, query: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each case that comes out differently: its place, and the difference, of several lines."""
    if not any(rule.cases for rule in rules):
        return
    compiled = {
        name: Rules([rule for rule in rules if rule.upstream == name], limit)
        for name in {rule.upstream for rule in rules}
    }
    for i, rule in enumerate(rules):
        for j, case in enumerate(rule.cases):
            lines = list(_differences(compiled[rule.upstream], rule, case, limit, query))
            if lines:
                named = f" {case.name!r}" if case.name else ""
                yield f"rules[{i}].cases[{j}]", "\n    ".join([f"the case{named} fails:", *lines])


def _differences(
    rules: Rules, rule: RuleSettings, case: CaseSettings, limit: int, query: Sequence[str]
) -> Iterator[str]:
    call = case.call
    headers = [(name.lower().encode(), value.encode()) for name, value in (call.headers or {}).items()]
    found = explain(
        rules,
        call.method or rule.match.method,
        call.path,
        headers,
        text(call.body).encode(),
        lambda target: _looked_up(case.lookup, target),
        limit,
        query,
    )
    if found.rule != rule.name:
        yield f"the call is matched by {f'the rule {found.rule!r}' if found.rule else 'no rule'}"
        return
    if found.looks_up and case.lookup is None:
        yield f"it looks up GET {found.looks_up[0]}, but the case has no lookup"
        return
    reason = found.refused.slug() if found.refused is not None else found.reason
    if case.reason is not None and case.reason != reason:
        yield f"reason, expected: {case.reason}"
        yield f"reason, got:      {reason or 'none, it is repaired'}"
    if case.expect is None:
        return
    sent = _sent(found, rule)
    if sent is None:
        yield f"expected a call that goes on, got a refusal: {reason}"
        return
    if case.expect.body is not None:
        yield from _of_bodies(case.expect.body, sent.body.decode("utf-8", "backslashreplace"), reason)
    for name, wanted, raw in (
        ("method", case.expect.method, sent.method),
        ("path", case.expect.path, sent.target),
    ):
        if wanted is not None and raw.decode() != wanted:
            yield f"{name}, expected: {wanted}"
            yield f"{name}, got:      {raw.decode()}"
    for name, value in (case.expect.headers or {}).items():
        got = ", ".join(header_text(one) for key, one in sent.headers if key == name.lower().encode())
        if got != value:
            yield f"{name}, expected: {value or '(none)'}"
            yield f"{name}, got:      {got or '(none)'}"


def _sent(found: Explanation, rule: RuleSettings) -> Call | None:
    """What the upstream would get, None where the client would get a refusal."""
    failed = found.reason in {"lookup-refused", "lookup-failed"} and rule.on_lookup_failure == "reject"
    return None if found.refused is not None or failed else found.after or found.before


def _looked_up(reply: CaseLookup | None, target: FillTarget) -> str | Unfilled | None:
    if reply is None:
        return None
    if reply.status != 200:
        return Unfilled("lookup-refused" if reply.status in REFUSALS else "lookup-failed")
    document = _parsed(text(reply.body))
    return (
        target.fill.chosen(document, target.data) if isinstance(document, dict) else Unfilled("lookup-failed")
    )


def _parsed(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _of_bodies(expected: Any, got: str, reason: str | None) -> Iterator[str]:
    same = got == expected if isinstance(expected, str) else _parsed(got) == expected
    if same:
        return
    wanted = text(expected)
    differs = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(wanted, got, strict=False))))
    begin = max(0, differs - SHOWN // 2)
    for title, body in (("body, expected: ", wanted), ("body, got:      ", got)):
        shown = body[begin : begin + SHOWN].replace("\n", " ").replace("\r", " ")
        yield f"{title}{'…' if begin else ''}{shown}{'…' if len(body) > begin + SHOWN else ''}"
    yield " " * (len("body, got:      ") + bool(begin) + differs - begin) + "^"
    if reason is not None:
        yield f"because:        {reason}"
