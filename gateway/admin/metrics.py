"""
Everything that is counted or measured, in one table. To add a metric: its row in METRICS, and its count
where it happens (`counts["gateway_…_total", "label value"] += 1`), or its reading in app.py if it is a
gauge. exposition.py writes them as Prometheus reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import product
from typing import Literal, NamedTuple, TypeAlias, get_args

from gateway import errors

# A metric's name, then the values of its labels: `counts["gateway_refills_total",]` has none.
MetricKey: TypeAlias = tuple[str, ...]
Gauge: TypeAlias = Callable[[], float]


class Metric(NamedTuple):
    """
    Named as Prometheus wants it. `labels` has the values that each may have; none listed: the rules', or
    what the code has words for. They are few: never an id, a path or a caller. `buckets` are upper bounds.
    `by_upstream`: for one of `upstreams` the key ends with its name, a label more.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, tuple[str, ...]] = {}
    buckets: tuple[float, ...] = ()
    by_upstream: bool = False

    def labelled(self, values: tuple[str, ...]) -> dict[str, str]:
        names = [*self.labels, "upstream"] if len(values) > len(self.labels) else self.labels
        return dict(zip(names, values, strict=True))


class WatchedRule(NamedTuple):
    """What a rule's series are labelled with, so that they are there before its first call."""

    name: str
    method: str
    mode: str
    repairs: tuple[str, ...]


# Of values that calls wanted: cached, waited for with another call (coalesced), or held back by a pause. Of
# GETs: sent, answered 304 (revalidated), refused, without a usable reply (failed), in disagreement with the
# last accepted value. And clients' own GETs kept, and values filled while the store could not be asked.
RESULTS = (
    "cached", "coalesced", "held_back", "sent", "revalidated", "refused", "failed", "disagreed", "learned",
    "isolated",
)  # fmt: skip
ENDED = ("read", "revalidated", "refused", "failed")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "other")
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")
MODES = ("observe", "shadow", "enforce", "on_reject")
# What became of a rewrite: the reply's status was below 400, 4xx, or another or none. Or it was only worked
# out.
REWRITTEN = ("accepted", "refused", "failed", "not_sent")
UNMATCHED = "none"
# From 100 µs, which is what a call costs here, to the time for which a call may wait.
SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
ABORTS: tuple[str, ...] = get_args(errors.AbortCause)
TABLES = ("readings", "generations", "accepted", "pauses")


def _leaves(error: type[errors.GatewayError]) -> Iterator[str]:
    below = error.__subclasses__()
    if not below:
        yield error.slug()
    for one in below:
        yield from _leaves(one)


# The root is the answer to what nobody foresaw.
REFUSALS = tuple(sorted({errors.GatewayError.slug(), *_leaves(errors.GatewayError)}))

METRICS: tuple[Metric, ...] = (
    Metric(
        "gateway_requests_total",
        "counter",
        "Requests that are over, by the class of the status that their client got.",
        {"rule": (), "method": METHODS, "status": STATUSES},
    ),
    Metric(
        "gateway_rewrites_total",
        "counter",
        "Repairs of matched calls, made or only found to be needed.",
        {"rule": (), "repair": (), "mode": MODES, "result": REWRITTEN},
    ),
    Metric(
        "gateway_skips_total",
        "counter",
        "Matched calls that went on without a repair, or without one of theirs.",
        {"rule": (), "reason": ()},
    ),
    Metric(
        "gateway_added_latency_seconds",
        "histogram",
        "Time that a matched call took beside its wait for the upstream's answer to it.",
        {"rule": ()},
        SECONDS,
    ),
    Metric("gateway_matched_calls_total", "counter", "Calls that a rule matched, when they are over."),
    Metric(
        "gateway_forwards_total",
        "counter",
        "Matched calls the upstream answered.",
        {"filled": ("yes", "no")},
        by_upstream=True,
    ),
    Metric(
        "gateway_refills_total",
        "counter",
        "Refused fills that were sent once more with another value.",
        by_upstream=True,
    ),
    Metric(
        "gateway_conflicts_total",
        "counter",
        "Replies that named another value than the one filled.",
        by_upstream=True,
    ),
    Metric(
        "gateway_shadowed_total",
        "counter",
        "Calls that shadow would have changed: whether the fill agrees with what is reported afterwards.",
        {"result": ("right", "wrong", "unreported")},
        by_upstream=True,
    ),
    Metric(
        "gateway_shadow_lookups_total",
        "counter",
        "GETs after a call of shadow whose reply did not tell the state, and calls that had no room for one.",
        {"result": ("compared", "unclear", "failed", "no_room")},
        by_upstream=True,
    ),
    Metric(
        "gateway_lookups_total", "counter", "What became of look-ups.", {"result": RESULTS}, by_upstream=True
    ),
    Metric(
        "gateway_lookup_duration_seconds",
        "histogram",
        "Time that a GET for a value took, by how it ended.",
        {"result": ENDED},
        SECONDS,
        by_upstream=True,
    ),
    Metric(
        "gateway_lock_wait_seconds",
        "histogram",
        "Time that calls waited for their conversation's lock, of those that had to.",
        {},
        SECONDS,
        by_upstream=True,
    ),
    Metric(
        "gateway_invalidations_total",
        "counter",
        "Times that what was read of a conversation was dropped.",
        by_upstream=True,
    ),
    Metric(
        "gateway_sweeps_total",
        "counter",
        "Writes that made what was read of all conversations useless.",
        by_upstream=True,
    ),
    Metric(
        "gateway_lookup_pauses_total",
        "counter",
        "Times that a 429 paused a caller's look-ups.",
        by_upstream=True,
    ),
    Metric(
        "gateway_refusals_total", "counter", "Requests that the gateway answered itself.", {"cause": REFUSALS}
    ),
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
        "gateway_upstream_connections",
        "gauge",
        "Connections to the upstream.",
        {"state": ("idle", "open")},
        by_upstream=True,
    ),
    Metric(
        "gateway_upstream_waiting",
        "gauge",
        "Requests that wait for a connection to the upstream.",
        by_upstream=True,
    ),
    Metric(
        "gateway_store_entries",
        "gauge",
        "Entries of the store in memory.",
        {"table": TABLES},
        by_upstream=True,
    ),
    Metric(
        "gateway_store_failures_total",
        "counter",
        "Times that the store could not be asked or told.",
        by_upstream=True,
    ),
    Metric("gateway_store_failing", "gauge", "1 while a store elsewhere can't be asked."),
    Metric(
        "gateway_locked_conversations",
        "gauge",
        "Conversations that a call has locked or waits for.",
        by_upstream=True,
    ),
    Metric("gateway_access_lines_lost", "gauge", "Lines of the access log that were dropped."),
    Metric(
        "gateway_store_bytes",
        "gauge",
        "Bytes that the readings in memory are taken to need.",
        by_upstream=True,
    ),
    Metric("gateway_audit_lines_total", "counter", "Lines that are on the audit log."),
    Metric(
        "gateway_audit_lines_lost_total", "counter", "Lines that are not, of those a call went on without."
    ),
    Metric("gateway_audit_failures_total", "counter", "Writes of the audit log that failed."),
    Metric("gateway_audit_failing", "gauge", "1 while the audit log cannot be written, else 0."),
    Metric(
        "gateway_audit_rotations_total", "counter", "Times that the audit log was rotated by the gateway."
    ),
    Metric("gateway_audit_rotation_failures_total", "counter", "Times that it could not be rotated."),
    Metric(
        "gateway_audit_compression_failures_total",
        "counter",
        "Times that a rotated audit log could not be compressed.",
    ),
    Metric("gateway_audit_rotated_files", "gauge", "Rotated audit logs that are kept."),
    Metric("gateway_audit_shared", "gauge", "1 while another gateway writes to the same audit log, else 0."),
    Metric(
        "gateway_audit_write_seconds",
        "histogram",
        "Time that a write of the audit log took, without its sync.",
        {},
        SECONDS,
    ),
    Metric("gateway_rule_info", "gauge", "1 for the mode that a rule has.", {"rule": (), "mode": MODES}),
    Metric(
        "gateway_config_info", "gauge", "1, for the digest of the configuration in force.", {"digest": ()}
    ),
    Metric("gateway_build_info", "gauge", "1, for what is running.", {"version": (), "python": ()}),
    Metric("gateway_workers", "gauge", "Processes that serve: 1, but for --workers."),
    Metric("gateway_worker_exits_total", "counter", "Workers that ended without being told to."),
    Metric("process_cpu_seconds_total", "counter", "Seconds of CPU time that the process has used."),
    Metric("process_resident_memory_bytes", "gauge", "Bytes of memory that the process has (Linux)."),
    Metric("process_open_fds", "gauge", "File descriptors that the process has open (Linux)."),
    Metric("process_max_fds", "gauge", "File descriptors that the process may have open."),
    Metric("process_start_time_seconds", "gauge", "When the process began, in Unix seconds (Linux)."),
)
_DECLARED = {metric.name: metric for metric in METRICS}
_ORDER = {name: number for number, name in enumerate(_DECLARED)}


class Counts(Counter[MetricKey]):
    """What the rooms count with. A key that METRICS does not declare is refused the first time it is used."""

    def __missing__(self, key: MetricKey) -> int:
        _declared(key, "counter")
        return 0


class UpstreamCounts(Counter[MetricKey]):
    """What is counted of one of `upstreams`, among the others' counts."""

    def __init__(self, counts: Counts, upstream: str) -> None:
        super().__init__()
        self._counts = counts
        self._upstream = upstream

    def __getitem__(self, key: MetricKey) -> int:
        return self._counts[of_upstream(key, self._upstream)]

    def __setitem__(self, key: MetricKey, value: int) -> None:
        self._counts[of_upstream(key, self._upstream)] = value


def of_upstream(key: MetricKey, upstream: str) -> MetricKey:
    """The same of one of `upstreams`, where that is told apart."""
    metric = _DECLARED.get(key[0])
    return (*key, upstream) if metric is not None and metric.by_upstream else key


class Histogram:
    """Counts values by the bucket that they fall in."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histograms(dict[MetricKey, Histogram]):
    """As Counts: `histograms["gateway_…_seconds", "label value"].observe(seconds)`."""

    def __missing__(self, key: MetricKey) -> Histogram:
        histogram = self[key] = Histogram(_declared(key, "histogram").buckets)
        return histogram


class Sample(NamedTuple):
    metric: Metric
    labels: tuple[str, ...]
    value: float

    @property
    def counted(self) -> bool:
        """Whether there is more to say than that it has not happened."""
        return bool(self.value) or self.metric.kind == "gauge" or not self.labels

    @property
    def name(self) -> str:
        """As Prometheus writes it: `name{label="value"}`."""
        pairs = self.metric.labelled(self.labels).items()
        labels = ",".join(f'{label}="{value}"' for label, value in pairs)
        return f"{self.metric.name}{{{labels}}}" if labels else self.metric.name


class Metrics:
    """
    What is exposed. `tallies` are counters that a room keeps by itself, by the value of the one label;
    where a metric stands there and in `counts`, it is the sum.
    """

    def __init__(
        self, counts: Counts, tallies: Mapping[str, Counter[str]], histograms: Histograms | None = None
    ) -> None:
        """Raises ValueError for a tally that METRICS does not declare."""
        for name in tallies:
            metric = _DECLARED.get(name)
            if metric is None or metric.kind != "counter" or len(metric.labels) != 1:
                raise ValueError(f"METRICS declares no counter {name} with one label")
        self._counts = counts
        self._tallies = tallies
        self.histograms = Histograms() if histograms is None else histograms
        self._readings: dict[MetricKey, Gauge] = {}
        self._taken_over: Mapping[MetricKey, float] = {}
        self.digest = ""  # of the configuration in force
        self.follow(())

    def measure(self, readings: Mapping[MetricKey, Gauge]) -> None:
        """
        Adds these to what is exposed: gauges, and counters that a part keeps. Raises ValueError for one that
        METRICS does not declare.
        """
        for key in readings:
            _declared(key, "gauge", "counter")
        self._readings |= readings

    def take_over(self, samples: Mapping[MetricKey, float]) -> None:
        """What other processes expose, who have checked it: one that they should not have costs no other."""
        self._taken_over = samples

    def follow(self, rules: Sequence[WatchedRule]) -> None:
        """The series of these rules are there from now on, whether or not there is a call."""
        first = {key for metric in METRICS for key in _first(metric, rules)}
        self._first: dict[MetricKey, float] = {
            key: 0 for key in sorted(first, key=_place) if _kind(key) == "counter"
        }
        for key in first:
            if _kind(key) == "histogram":
                self.histograms[key]
        self._modes: dict[MetricKey, float] = {
            ("gateway_rule_info", rule.name, rule.mode): 1.0 for rule in rules
        }

    def samples(self) -> Iterator[Sample]:
        """Counters and gauges, in the order of METRICS."""
        values: dict[MetricKey, float] = {**self._first, **self._counts, **self._taken_over}
        for name, tally in self._tallies.items():
            for label, count in tally.items():
                values[name, label] = values.get((name, label), 0) + count
        values |= {key: reading() for key, reading in self._readings.items()}
        values |= self._modes
        if self.digest:
            values["gateway_config_info", self.digest] = 1.0
        # What is there from the start is many with many rules, and sorted.
        others = sorted((key for key in values if key not in self._first), key=_place)
        for key in merge(self._first, others, key=_place):
            yield Sample(_DECLARED[key[0]], key[1:], values[key])


def _place(key: MetricKey) -> tuple[int, MetricKey]:
    return _ORDER[key[0]], key


def _kind(key: MetricKey) -> str:
    return _DECLARED[key[0]].kind


def _first(metric: Metric, rules: Sequence[WatchedRule]) -> Iterator[MetricKey]:
    """The keys of a counter or histogram that are known beforehand."""
    if metric.kind == "gauge":
        return
    if "rule" not in metric.labels:
        yield from product((metric.name,), *metric.labels.values())
        return
    for rule in rules:
        own = {"rule": (rule.name,), "method": (rule.method,), "mode": (rule.mode,), "repair": rule.repairs}
        values = [own.get(label, declared) for label, declared in metric.labels.items()]
        yield from product((metric.name,), *values)
    if "method" in metric.labels:
        yield from product(
            (metric.name,), (UNMATCHED,), *[v for k, v in metric.labels.items() if k != "rule"]
        )


def _declared(key: MetricKey, *kinds: str) -> Metric:
    metric = _DECLARED.get(key[0])
    said = " or ".join(kinds)
    if (
        metric is None
        or metric.kind not in kinds
        or len(key) - 1 - len(metric.labels) not in {0, int(metric.by_upstream)}
    ):
        raise ValueError(f"METRICS declares no {said} {key}")
    for (label, values), value in zip(metric.labels.items(), key[1:], strict=False):
        if values and value not in values:
            raise ValueError(f"METRICS declares no {said} {key}: {label} is one of {', '.join(values)}")
    return metric
