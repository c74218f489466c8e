"""
What the gateway would do to a call, told without any network: rule, repairs, before and after. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.errors import BodyTooLarge, GatewayError, InvalidBody
from gateway.http.forwarding import carried_query
from gateway.http.headers import Fields, Header, method_overrides
from gateway.repairs import Unfilled, Violation, checked, diagnose, left_as_it_is, rewrite
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft
from gateway.rules import FillTarget, Rules


@dataclass(frozen=True, slots=True)
class Explanation:
    """`after` is None where the call goes on as it came, or is refused (`refused`)."""

    rule: str | None
    mode: str | None
    before: Call
    after: Call | None = None
    changes: tuple[Change, ...] = ()
    reason: str | None = None
    looks_up: tuple[str, ...] = ()
    refused: GatewayError | None = None
    violations: tuple[Violation, ...] = ()


def explain(
    rules: Rules,
    method: str,
    target: str,
    headers: Sequence[Header],
    body: bytes,
    state: str | Callable[[FillTarget], str | Unfilled | None] | None,
    max_body: int,
    query: Sequence[str] = (),
) -> Explanation:
    """
    `target` as it is on the wire; `state`: what each look-up is taken to find, None if unknown; `query`: the
    parameters that go on to it.
    """
    raw = target.encode("ascii")
    call = Call(method.encode(), raw, Fields(headers), body)
    route = rules.match(method, raw.partition(b"?")[0], method_overrides(headers))
    if route is None:
        return Explanation(None, None, call, reason="no rule matches: passed through untouched")
    rule = route.rule
    try:
        if len(body) > max_body:
            raise BodyTooLarge(f"the body has {len(body)} bytes, limits.max_body is {max_body}")
        found = diagnose(call, rule.repairs, route.parameters)
        carried = carried_query(raw, query)
        if carried is None and found.missing:
            found = left_as_it_is(found, call, "credential-in-query")
    except GatewayError as error:
        return Explanation(rule.name, rule.mode, call, refused=error)
    violations = found.violations
    if found.rejected:
        return Explanation(rule.name, rule.mode, call, refused=InvalidBody(), violations=violations)
    if found.nothing_to_repair:
        return Explanation(rule.name, rule.mode, call, reason=found.reason, violations=violations)
    asked = f"?{carried.decode()}" if carried else ""
    looks_up = tuple(route.targets[missing.field].target.decode() + asked for missing in found.missing)
    values: dict[str, tuple[str, Change]] = {}
    reason = found.unfilled
    for missing in found.missing:
        name = missing.field
        filled = state(route.targets[name]) if callable(state) else state
        if isinstance(filled, Unfilled):
            reason = filled.reason
        elif filled is None:
            reason = f"{name} would be looked up: say --state to see it filled"
        elif not route.targets[name].fill.allowed(filled):
            reason = f"{name}-not-allowed"
        else:
            values[name] = (filled, Change.of("fill", field=name, after=filled))
    after, changes = rewrite(found, values)
    more, rejected = checked(found.checks, Draft.of(after))
    violations += more
    if rejected:
        return Explanation(rule.name, rule.mode, call, refused=InvalidBody(), violations=violations)
    sent = after if changes else None
    return Explanation(rule.name, rule.mode, call, sent, changes, reason, looks_up, violations=violations)
