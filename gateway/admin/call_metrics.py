"""
What is counted of each matched call when it is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.admin.metrics import Counts, Histogram, Histograms
from gateway.audit.finished_call import CallCounter, SentChange


def counted(counts: Counts, histograms: Histograms) -> CallCounter:
    histogram_of: dict[str, Histogram] = {}

    def count(
        rule: str,
        mode: str,
        status: int | None,
        sent: Sequence[SentChange],
        not_sent: Sequence[str],
        skipped: str | None,
        added: float,
    ) -> None:
        if sent:
            result = _result(status)
            for change in sent:
                counts["gateway_rewrites_total", rule, change.repair, mode, result] += 1
        else:
            for repair in not_sent:
                counts["gateway_rewrites_total", rule, repair, mode, "not_sent"] += 1
        if skipped is not None:
            counts["gateway_skips_total", rule, skipped] += 1
        histogram = histogram_of.get(rule)
        if histogram is None:
            histogram = histogram_of[rule] = histograms["gateway_added_latency_seconds", rule]
        histogram.observe(added)

    return count


def _result(status: int | None) -> str:
    if status is None or status >= 500:
        return "failed"
    return "accepted" if status < 400 else "refused"
