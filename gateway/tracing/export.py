"""
Who takes the spans: OpenTelemetry's SDK and its exporter over OTLP/HTTP, in a thread of their own.

A collector that is slow, hangs or is not there keeps no call waiting: the queue is bounded, and what has no
place in it is dropped. What the configuration does not say, the OTEL_* variables of the SDK do.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from gateway import __version__

LAST_EXPORT: Final = 3.0  # seconds that the end waits for


@dataclass(frozen=True, slots=True)
class Tracing:
    tracer: Tracer
    _provider: TracerProvider

    @classmethod
    def to(cls, endpoint: str | None, sample: float | None) -> Tracing:
        """`endpoint` as in OTEL_EXPORTER_OTLP_ENDPOINT; `sample`: the share of the traces that begin here."""
        provider = TracerProvider(
            sampler=None if sample is None else ParentBased(TraceIdRatioBased(sample)),
            resource=_resource(),
            shutdown_on_exit=False,  # which would wait for a collector that hangs
        )
        url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        return cls(provider.get_tracer("gateway", __version__), provider)

    async def end(self, patience: float = LAST_EXPORT) -> None:
        """Exports what is left, if the collector takes it within `patience` seconds."""
        over, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=end, name="last export", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await over.wait()


def _resource() -> Resource:
    """The environment's, and who this is where that does not say it."""
    found = Resource.create({SERVICE_VERSION: __version__})
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: "gateway"}))
    return found
