"""
What is counted of each matched call when it is over.
"""

from __future__ import annotations

from gateway.admin.metrics import Counts, Histogram, Histograms
from gateway.audit.finished_call import FinishedCall, Observer


def counted(counts: Counts, histograms: Histograms) -> Observer:
    added: dict[str, Histogram] = {}

    def observe(call: FinishedCall) -> None:
        rule, mode = call.rule, call.mode
        if call.changes:
            result = _result(call.status)
            for change in call.changes:
                counts["gateway_rewrites_total", rule, change["repair"], mode, result] += 1
        else:
            for change in call.would_change:
                counts["gateway_rewrites_total", rule, change["repair"], mode, "not_sent"] += 1
            for need in call.needs:  # `fill` with its member
                counts["gateway_rewrites_total", rule, need.partition(" ")[0], mode, "not_sent"] += 1
        # What the gateway refused is no skip, though it names its error as one.
        if call.skipped is not None and call.skipped != call.error:
            counts["gateway_skips_total", rule, call.skipped] += 1
        histogram = added.get(rule)
        if histogram is None:
            histogram = added[rule] = histograms["gateway_added_latency_seconds", rule]
        histogram.observe(max(0.0, call.total - call.upstream))

    return observe


def _result(status: int | None) -> str:
    if status is None or status >= 500:
        return "failed"
    return "accepted" if status < 400 else "refused"
