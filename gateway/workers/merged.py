"""
What the workers say, as if one had said it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct

from gateway.admin.live import strip
from gateway.admin.metrics import METRICS, Counts, Histogram, Histograms, MetricKey, Metrics

KINDS: Final = {metric.name: metric.kind for metric in METRICS}
# Gauges that say how something is, and not how much of it there is; the others are summed.
WORST: Final = frozenset(
    {
        "gateway_audit_failing",
        "gateway_audit_rotated_files",
        "gateway_audit_shared",
        "gateway_build_info",
        "gateway_rule_info",
        "gateway_store_failing",
    }
)
FIRST: Final = frozenset({"process_start_time_seconds"})
# A call's number and its worker's ordinal make one number, which no other call has.
ORDINALS: Final = 4096

Reading: TypeAlias = tuple[MetricKey, float]


class Figures(Struct):
    """What one process counts and measures: samples by their key, and each histogram's counts and total."""

    samples: list[Reading]
    histograms: list[tuple[MetricKey, list[int], float]]

    @classmethod
    def of(cls, metrics: Metrics) -> Figures:
        return cls(
            [((one.metric.name, *one.labels), one.value) for one in metrics.samples()],
            [(key, list(one.counts), one.total) for key, one in metrics.histograms.items()],
        )

    def counted(self) -> Figures:
        """What stays counted when its process is gone."""
        return Figures([one for one in self.samples if KINDS[one[0][0]] == "counter"], self.histograms)


def summed(figures: Iterable[Figures]) -> Figures:
    """Counters and histograms are added up, gauges by what they mean."""
    values: dict[MetricKey, float] = {}
    histograms: dict[MetricKey, tuple[list[int], float]] = {}
    for one in figures:
        for key, value in one.samples:
            if key[0] == "gateway_config_info":
                continue  # a worker's limits are its part of what is configured: the supervisor says it
            if key not in values:
                values[key] = value
            elif key[0] in WORST:
                values[key] = max(values[key], value)
            elif key[0] in FIRST:
                values[key] = min(values[key], value)
            else:
                values[key] += value
        for key, counts, total in one.histograms:
            before, total_before = histograms.get(key, ([0] * len(counts), 0.0))
            added = [a + b for a, b in zip(before, counts, strict=True)]
            histograms[key] = added, total_before + total
    return Figures(list(values.items()), [(key, *found) for key, found in histograms.items()])


def metrics(figures: Figures) -> Metrics:
    """As one process exposes its own."""
    histograms = Histograms()
    for key, counts, total in figures.histograms:
        one = histograms[key] = Histogram(histograms[key].bounds)
        one.counts, one.total = list(counts), total
    found = Metrics(Counts(), {}, histograms)
    found.take_over(dict(figures.samples))
    return found


def numbered(calls: Iterable[dict[str, Any]], ordinal: int) -> list[dict[str, Any]]:
    """The calls of the worker with this ordinal, each with a number that none of another has."""
    return [{**call, "number": call["number"] * ORDINALS + ordinal % ORDINALS} for call in calls]


def latest(told: Iterable[Sequence[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    """Newest first."""
    found = [call for some in told for call in some]
    return sorted(found, key=lambda call: call["ended"], reverse=True)[:most]


def came(told: Sequence[dict[str, Any]], most: int) -> dict[str, Any]:
    """What came in one moment, of what is said of it in parts."""
    calls = latest([said["calls"] for said in told], most)
    sums = strip([])
    for said in told:
        for name in sums:
            sums[name] += said["strip"][name]
    number = sum(said["came"] for said in told)
    return {"came": number, "left_out": number - len(calls), "strip": sums, "calls": calls}


def callers(told: Iterable[Sequence[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    """Those with most calls first."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for some in told:
        for one in some:
            key = one["credential"], one["user_agent"]
            known = found.setdefault(key, {**one, "calls": 0, "needed": 0, "refused": 0})
            for name in ("calls", "needed", "refused"):
                known[name] += one[name]
            known["last"] = max(known["last"], one["last"])
    return sorted(found.values(), key=lambda one: -one["calls"])[:most]


# A worker without one of these is degraded, but may have traffic.
PARTS: Final = frozenset({"store"})


def readiness(
    told: Mapping[int, dict[str, str] | None], draining: bool, digest: str
) -> tuple[bool, dict[str, Any]]:
    """
    Ready while one worker is: that another is being started anew is to cost its part of the traffic, and not
    all of it. `told`: each worker's checks by its number, None of one that does not answer.
    """
    ready = {
        number: checks is not None and all(said == "ok" for name, said in checks.items() if name not in PARTS)
        for number, checks in told.items()
    }
    workers = {
        str(number): {
            "ready": ready[number],
            "checks": {"worker": "it does not answer"} if checks is None else checks,
        }
        for number, checks in told.items()
    }
    one_is = any(ready.values())
    lacking = {name for checks in told.values() for name, said in (checks or {}).items() if said != "ok"}
    checks = {
        "workers": "ok" if one_is else "none is ready",
        "draining": "the process is about to stop" if draining else "ok",
    }
    return one_is and not draining, {
        "ready": one_is and not draining,
        **({"degraded": True} if lacking & PARTS else {}),
        "config": digest,
        "checks": checks,
        "workers": workers,
    }
