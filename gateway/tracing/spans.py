"""
The span of the call that is being served, and what its spans say: names of OpenTelemetry's semantic
conventions for HTTP, and `gateway.*` for what only a gateway has.

No query, no body value and no field that authorises is in a span (L3).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from msgspec import Struct
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from gateway.audit.finished_call import FinishedCall
from gateway.http.headers import text
from gateway.http.trace_context import TraceParent
from gateway.proxy.client import Client

KNOWN_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}
)
MOST: Final = 1024  # characters of one value


class TracedCall(Struct, eq=False):
    """`continued`: the client brought a trace. `error` is how the call ended, where it went wrong."""

    span: Span
    context: Context
    trace_id: str
    continued: bool
    client: Client | None = None
    error: str | None = None


# Of the task that serves a call, and of the look-up's that begins in it.
current: ContextVar[TracedCall | None] = ContextVar("traced_call", default=None)


def remote(parent: TraceParent | None) -> Context:
    """Where a call's span begins: with what the client said, or a trace of its own."""
    if parent is None:
        return Context()
    said = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
    )
    return set_span_in_context(NonRecordingSpan(said), Context())


def traceparent(said: SpanContext) -> TraceParent:
    return TraceParent(f"{said.trace_id:032x}", f"{said.span_id:016x}", said.trace_flags)


def method(name: str) -> dict[str, AttributeValue]:
    if name in KNOWN_METHODS:
        return {"http.request.method": name}
    return {"http.request.method": "_OTHER", "http.request.method_original": name[:MOST]}


def path(target: bytes) -> str:
    return text(target.partition(b"?")[0], MOST)


def of_request(client: Client) -> dict[str, AttributeValue]:
    """What the client's fields say."""
    said: dict[str, AttributeValue] = {"client.address": client.address, "gateway.call.id": client.id}
    agent, host = client.field(b"user-agent"), client.field(b"host")
    if agent is not None:
        said["user_agent.original"] = text(agent, MOST)
    if host:
        name, _, port = text(host, MOST).rpartition(":")
        if name and port.isdigit():
            said["server.address"] = name.strip("[]")
            said["server.port"] = int(port[:5])
        else:
            said["server.address"] = text(host, MOST).strip("[]")
    return said


def of_finished(call: FinishedCall) -> dict[str, AttributeValue]:
    """What became of a matched call."""
    changes = call.changes or call.would_change
    said: dict[str, AttributeValue] = {
        "gateway.repairs": [str(change["repair"]) for change in changes] or list(call.needs)
    }
    for change in changes:
        if "source" in change:
            said["gateway.lookup.source"] = change["source"]
    if call.skipped is not None:
        said["gateway.skip.reason"] = call.skipped
    if call.attempts > 1:
        said["gateway.attempts"] = call.attempts
    if call.conflict:
        said["gateway.conflict"] = True
    return said


def failed(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
