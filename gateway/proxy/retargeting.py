"""
A call that went to another operation: what is done where the upstream has none, and for how long that is
remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.proxy.matched_call import MatchedCall
from gateway.proxy.modes import enforce
from gateway.proxy.phases import HELD, Phases
from gateway.rules import Rule
from gateway.state.lookup_results import LookupRefused
from gateway.upstream.reply import Reply

NOT_ALLOWED: Final = 405  # RFC 9110 section 15.5.6: known, but not for this method
REFUSED: Final = frozenset({404, NOT_ALLOWED})


class AbsentOperations:
    """By the rule's name, since when a rule's target is known to be missing: one entry a rule."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, tuple[str, float]] = {}

    def known(self, rule: Rule) -> bool:
        found = self._until.get(rule.name)
        if found is None or rule.retarget is None:
            return False
        to, until = found
        if to == rule.retarget.text and self._clock() < until:
            return True
        del self._until[rule.name]
        return False

    def remember(self, rule: Rule) -> None:
        if rule.retarget is not None:
            self._until[rule.name] = (rule.retarget.text, self._clock() + rule.retarget.absent_for)


async def otherwise(
    phases: Phases, matched: MatchedCall, refusal: Reply, absent: AbsentOperations
) -> tuple[MatchedCall, Reply]:
    """
    The refusal proves that nothing was applied (C2): the fill, on the path that the call came to. A 404 may
    be about the conversation too: only where the filled call is accepted it was about the operation.
    """
    if matched.otherwise is None or not await refusal.hold(HELD):
        return matched, refusal
    rule = matched.route.rule
    if refusal.status == NOT_ALLOWED:
        absent.remember(rule)
    filled = matched.otherwise()
    if filled.found.nothing_to_repair:
        return matched, refusal
    matched.client.cancel_on_disconnect()
    try:
        reply = await enforce(phases, filled, rejected=refusal)
    except LookupRefused:  # the look-up's 404 would say the same of the conversation
        return matched, refusal
    if reply.status < 300:
        absent.remember(rule)
    return (matched, refusal) if reply is refusal else (filled, reply)
