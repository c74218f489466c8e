"""
What is done with a matched call that has something to repair, by its rule's mode.

proxy/lifecycle.py calls these. To add a mode: a function of the phases here, its row in MODES, its name in
rules.Mode.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from gateway.errors import LookupFailed, NotSent, UpstreamError
from gateway.proxy.matched_call import MatchedCall
from gateway.proxy.phases import HELD, Overtaken, Phases
from gateway.state.lookup_results import LookupRefused, LookupResults
from gateway.upstream.reply import Reply

ModeFunction: TypeAlias = Callable[[Phases, MatchedCall], Awaitable[Reply]]

# A PATCH refused with one of these changed nothing at the upstream, and a repair may cure it.
CURABLE = frozenset({400, 415, 422})
METHOD_UNKNOWN = frozenset({405, 501})  # RFC 9110 sections 15.5.6 and 15.6.2


async def enforce(phases: Phases, matched: MatchedCall, rejected: Reply | None = None) -> Reply:
    """`rejected`: the upstream's refusal of the call as it came, relayed when nothing can be done."""
    lock, results = phases.ready_at_once(matched) or await phases.ready(matched)  # look up
    try:
        while True:
            rewritten = phases.rewrite(matched, results)  # rewrite
            if rejected is not None and not rewritten[1]:
                matched.record.skipped = results.unfilled
                return rejected
            try:
                reply = await phases.forward(matched, rewritten, results, lock)  # record, forward, settle
            except Overtaken:
                results = await phases.look_up_under_lock(matched, None, lock)
                continue
            if reply.status >= 300 and reply.status in results.refill_on:
                reply = await phases.refill(matched, results, reply, lock)
            return reply
    finally:
        lock.release()


async def on_reject(phases: Phases, matched: MatchedCall) -> Reply:
    """Untouched first, and repaired only when the upstream refuses it so."""
    refusal = await phases.untouched(matched, None)
    if refusal.status not in CURABLE and not _under_another_method(matched, refusal.status):
        phases.skip(matched, "not-rejected")
        return refusal
    try:
        return await _cured(phases, matched, refusal)
    finally:
        record = matched.record
        if not record.changes:
            phases.skip(matched, record.skipped or "rejected")


def _under_another_method(matched: MatchedCall, status: int) -> bool:
    """Whether the upstream does not know the method as it was sent, and a repair changes that."""
    return status in METHOD_UNKNOWN and matched.found.call.method != matched.call.method


async def _cured(phases: Phases, matched: MatchedCall, refusal: Reply) -> Reply:
    """The reply to the repaired call, or the refusal where there is none."""
    if not await refusal.hold(HELD):
        return refusal
    matched.client.cancel_on_disconnect()
    try:
        return await enforce(phases, matched, rejected=refusal)
    except LookupRefused:
        matched.record.skipped = "lookup-refused"
    except (NotSent, UpstreamError, LookupFailed) as error:
        if matched.record.changes:
            raise
        matched.record.skipped = error.slug()
    return refusal


async def shadow(phases: Phases, matched: MatchedCall) -> Reply:
    """Untouched; what would have been sent is looked up and recorded."""
    try:
        results = await phases.look_up(matched)
    except LookupRefused:
        results = LookupResults({}, "lookup-refused")
    except (NotSent, UpstreamError, LookupFailed) as error:
        results = LookupResults({}, error.slug())
    would = phases.as_recorded(matched, phases.rewrite(matched, results))
    return await phases.untouched(matched, "shadow", results, unfilled=results.unfilled, **would)


async def observe(phases: Phases, matched: MatchedCall) -> Reply:
    """Untouched; what would be needed is recorded."""
    return await phases.untouched(matched, "observe", needs=matched.found.needs)


MODES: Mapping[str, ModeFunction] = {
    "observe": observe,
    "shadow": shadow,
    "enforce": enforce,
    "on_reject": on_reject,
}
