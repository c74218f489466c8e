"""
The metrics as Prometheus reads them: its text format 0.0.4, or OpenMetrics 1.0.0 for who asks for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, groupby

from gateway.admin.metrics import METRICS, Histograms, Metric, Metrics, Sample

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept field prefers it to the text format (RFC 9110 section 12.5.1)."""
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for one in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in one.split(";"))
        given = dict(part.partition("=")[::2] for part in parameters)
        if media_type in quality and given.get("version", "1.0.0") in {"1.0.0", "0.0.4"}:
            try:
                quality[media_type] = max(quality[media_type], float(given.get("q", "1")))
            except ValueError:
                continue
    return quality["application/openmetrics-text"] > quality["text/plain"]


def exposition(metrics: Metrics, *, openmetrics: bool) -> str:
    return "".join(lines(metrics, openmetrics=openmetrics))


def lines(metrics: Metrics, *, openmetrics: bool) -> Iterator[str]:
    """One by one: with thousands of rules there are so many that others have to be served between them."""
    groups = groupby(metrics.samples(), lambda one: one.metric.name)
    name, samples = next(groups, ("", iter(())))
    for metric in METRICS:
        if metric.kind == "histogram":
            found = _histograms(metric, metrics.histograms)
        elif metric.name == name:
            found = _plain(metric, samples)
        else:
            continue
        first = next(found, None)
        if first is not None:
            # OpenMetrics names a counter without the `_total` of its sample.
            family = metric.name.removesuffix("_total") if openmetrics else metric.name
            yield f"# HELP {family} {_help(metric.help, openmetrics)}\n"
            yield f"# TYPE {family} {metric.kind}\n"
            yield first
            yield from found
        if metric.name == name:
            name, samples = next(groups, ("", iter(())))
    if openmetrics:
        yield "# EOF\n"


def _plain(metric: Metric, samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        yield _line(metric.name, metric.labelled(sample.labels), sample.value)


def _histograms(metric: Metric, histograms: Histograms) -> Iterator[str]:
    for key in sorted(key for key in histograms if key[0] == metric.name):
        histogram = histograms[key]
        labels = metric.labelled(key[1:])
        bounds = [*map(repr, histogram.bounds), "+Inf"]
        counts = list(accumulate(histogram.counts))
        for bound, count in zip(bounds, counts, strict=True):
            yield _line(f"{metric.name}_bucket", labels | {"le": bound}, count)
        yield _line(f"{metric.name}_sum", labels, histogram.total)
        yield _line(f"{metric.name}_count", labels, counts[-1])


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    said = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{said}}} {value!r}\n" if said else f"{name} {value!r}\n"


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _help(text: str, openmetrics: bool) -> str:
    said = text.replace("\\", "\\\\").replace("\n", "\\n")
    return said.replace('"', '\\"') if openmetrics else said
