"""
Everything that is counted or measured, in one table. To add a metric: its row in METRICS, and its count
where it happens (`counts["gateway_…_total", "label value"] += 1`), or its reading in app.py if it is a
gauge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

# A metric's name, then the values of its labels: `counts["gateway_refills_total",]` has none.
MetricKey: TypeAlias = tuple[str, ...]
Gauge: TypeAlias = Callable[[], float]


class Metric(NamedTuple):
    """
    Named as Prometheus wants it. `labels` has the values that each may have; none listed: the names of
    errors. They are few: never an id, a path or a caller.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Mapping[str, tuple[str, ...]] = {}


# Of values that calls wanted: cached, waited for with another call (coalesced), or held back by a pause. Of
# GETs: sent, answered 304 (revalidated), in disagreement with the last accepted value. And clients' own
# GETs kept.
RESULTS = ("cached", "coalesced", "held_back", "sent", "revalidated", "disagreed", "learned")
ABORTS = (
    "application-error", "body-rate", "body-timeout", "cancelled", "stalled", "tunnel", "write-rate",
    "write-timeout",
)  # fmt: skip
TABLES = ("readings", "generations", "accepted", "pauses")

METRICS: tuple[Metric, ...] = (
    Metric("gateway_matched_calls_total", "counter", "Calls that a rule matched, when they are over."),
    Metric(
        "gateway_forwards_total", "counter", "Matched calls the upstream answered.", {"filled": ("yes", "no")}
    ),
    Metric("gateway_refills_total", "counter", "Refused fills that were sent once more with another value."),
    Metric("gateway_conflicts_total", "counter", "Replies that named another value than the one filled."),
    Metric(
        "gateway_shadowed_total",
        "counter",
        "Calls that shadow would have changed: whether the fill agrees with what the reply reports.",
        {"result": ("right", "wrong", "unreported")},
    ),
    Metric("gateway_lookups_total", "counter", "What became of look-ups.", {"result": RESULTS}),
    Metric("gateway_sweeps_total", "counter", "Writes that made what was read of all conversations useless."),
    Metric("gateway_lookup_pauses_total", "counter", "Times that a 429 paused a caller's look-ups."),
    Metric("gateway_refusals_total", "counter", "Requests that the gateway answered itself.", {"cause": ()}),
    Metric("gateway_aborts_total", "counter", "Client connections cut off.", {"cause": ABORTS}),
    Metric(
        "gateway_reloads_total",
        "counter",
        "Times that the configuration was read again.",
        {"result": ("ok", "failed")},
    ),
    Metric(
        "gateway_callers_failures_total",
        "counter",
        "Times that the callers for the report could not be written.",
    ),
    Metric("gateway_clients_gone_total", "counter", "Clients that left before their call was forwarded."),
    Metric(
        "gateway_fields_dropped_total",
        "counter",
        "Request fields dropped since `_` made them look like others.",
    ),
    Metric("gateway_client_connections", "gauge", "Client connections that are open."),
    Metric("gateway_requests_in_flight", "gauge", "Requests that are being served."),
    Metric("gateway_bodies_awaited", "gauge", "Requests whose body is still to come."),
    Metric(
        "gateway_clients_held_back", "gauge", "Clients refused for overload that are not read for a moment."
    ),
    Metric("gateway_buffered_bytes", "gauge", "Bytes of bodies and large replies that wait in memory."),
    Metric("gateway_replies_stalled", "gauge", "Replies that wait for their clients to take them."),
    Metric(
        "gateway_upstream_connections", "gauge", "Connections to the upstream.", {"state": ("idle", "open")}
    ),
    Metric("gateway_upstream_waiting", "gauge", "Requests that wait for a connection to the upstream."),
    Metric("gateway_store_entries", "gauge", "Entries of the store in memory.", {"table": TABLES}),
    Metric("gateway_store_failures_total", "counter", "Times that the store could not be asked or told."),
    Metric("gateway_locked_conversations", "gauge", "Conversations that a call has locked or waits for."),
    Metric("gateway_access_lines_lost", "gauge", "Lines of the access log that were dropped."),
    Metric("gateway_audit_lines_lost", "gauge", "Lines lost since the audit log last could be written."),
)
_DECLARED = {metric.name: metric for metric in METRICS}


class Counts(Counter[MetricKey]):
    """What the rooms count with. A key that METRICS does not declare is refused the first time it is used."""

    def __missing__(self, key: MetricKey) -> int:
        _declared(key, "counter")
        return 0


class Sample(NamedTuple):
    metric: Metric
    labels: tuple[str, ...]
    value: float

    @property
    def name(self) -> str:
        """As Prometheus writes it: `name{label="value"}`."""
        pairs = zip(self.metric.labels, self.labels, strict=True)
        labels = ",".join(f'{label}="{value}"' for label, value in pairs)
        return f"{self.metric.name}{{{labels}}}" if labels else self.metric.name


class Metrics:
    """
    What is exposed. `tallies` are counters that a room keeps by itself, by the value of the one label;
    where a metric stands there and in `counts`, it is the sum.
    """

    def __init__(self, counts: Counts, tallies: Mapping[str, Counter[str]]) -> None:
        """Raises ValueError for a tally that METRICS does not declare."""
        for name in tallies:
            metric = _DECLARED.get(name)
            if metric is None or metric.kind != "counter" or len(metric.labels) != 1:
                raise ValueError(f"METRICS declares no counter {name} with one label")
        self._counts = counts
        self._tallies = tallies
        self._gauges: dict[MetricKey, Gauge] = {}

    def measure(self, gauges: Mapping[MetricKey, Gauge]) -> None:
        """Adds these to what is exposed. Raises ValueError for one that METRICS does not declare."""
        for key in gauges:
            _declared(key, "gauge")
        self._gauges |= gauges

    def samples(self) -> Iterator[Sample]:
        """In the order of METRICS; a counter without labels is there from the start."""
        values: dict[MetricKey, float] = {
            (metric.name,): 0 for metric in METRICS if metric.kind == "counter" and not metric.labels
        }
        values |= self._counts
        for name, tally in self._tallies.items():
            for label, count in tally.items():
                values[name, label] = values.get((name, label), 0) + count
        values |= {key: gauge() for key, gauge in self._gauges.items()}
        for metric in METRICS:
            for key in sorted(key for key in values if key[0] == metric.name):
                yield Sample(metric, key[1:], values[key])


def _declared(key: MetricKey, kind: str) -> None:
    metric = _DECLARED.get(key[0])
    if metric is None or metric.kind != kind or len(metric.labels) != len(key) - 1:
        raise ValueError(f"METRICS declares no {kind} {key}")
    for (label, values), value in zip(metric.labels.items(), key[1:], strict=True):
        if values and value not in values:
            raise ValueError(f"METRICS declares no {kind} {key}: {label} is one of {', '.join(values)}")
