"""
The life of a call with a span around it: what the wiring takes in place of Lifecycle where tracing is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.trace import SpanKind, Tracer, set_span_in_context

from gateway.audit.finished_call import FinishedCall, Observer
from gateway.errors import GatewayError
from gateway.http import trace_context
from gateway.http.headers import Fields, Headers
from gateway.http.slots import Slot, Values
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.call_head import CallHead
from gateway.proxy.client import Client, ClientRequest
from gateway.proxy.lifecycle import Lifecycle
from gateway.rules import RouteMatch, Rules
from gateway.tracing import spans
from gateway.tracing.spans import TracedCall, current


class TracedClient(Client):
    """It is known by the trace that its call is a part of, whoever began that."""

    def __init__(
        self,
        request: ClientRequest,
        head: CallHead,
        budget: BufferBudget,
        caller_of: Callable[[Fields, Values, str, bytes, bytes], str],
    ) -> None:
        super().__init__(request, head, budget, caller_of)
        call = current.get()
        assert call is not None
        call.client = self
        self.trace_id = call.trace_id
        if call.span.is_recording():
            call.span.set_attributes(spans.of_request(self))

    async def refuse(self, error: GatewayError, headers: Headers = ()) -> None:
        call = current.get()
        if call is not None:
            call.error = error.slug()
        await super().refuse(error, headers)


class TracedLifecycle(Lifecycle):
    _client = TracedClient

    def __init__(
        self, tracer: Tracer, scheme: str, *, observers: Sequence[Observer] = (), **parts: Any
    ) -> None:
        """`scheme`: as which the listener is reached. The others are those of Lifecycle."""
        super().__init__(observers=(*observers, _told), **parts)
        self._tracer = tracer
        self._scheme = scheme

    async def serve(self, request: ClientRequest) -> None:
        parent = _parent(request)
        said = spans.method(request.method) | {
            "url.scheme": self._scheme,
            "url.path": spans.path(request.target),
            "network.protocol.version": request.version,
        }
        name = str(said["http.request.method"]).replace("_OTHER", "HTTP")
        span = self._tracer.start_span(name, spans.remote(parent), SpanKind.SERVER, said)
        itself = spans.traceparent(span.get_span_context())
        call = TracedCall(span, set_span_in_context(span), itself.trace_id, parent is not None)
        request.trace_id = itself.trace_id
        before = current.set(call)
        try:
            await super().serve(request)
        except GatewayError as error:
            call.error = error.slug()
            raise
        finally:
            current.reset(before)
            _end(call)

    async def _serve_matched(self, client: Client, route: RouteMatch, rules: Rules) -> None:
        call = current.get()
        if call is not None and call.span.is_recording():
            rule = route.rule
            call.span.update_name(f"{client.method.upper()} {rule.path}")
            call.span.set_attributes(
                {"http.route": rule.path, "gateway.rule": rule.name, "gateway.mode": rule.mode}
            )
        await super()._serve_matched(client, route, rules)


def _parent(request: ClientRequest) -> trace_context.TraceParent | None:
    value = request.headers.derived(trace_context.only_traceparent)
    if value is None:
        return None
    return trace_context.parsed(request.values[value.number] if isinstance(value, Slot) else value)


def _told(finished: FinishedCall) -> None:
    """An Observer."""
    call = current.get()
    if call is not None and call.span.is_recording():
        call.span.set_attributes(spans.of_finished(finished))


def _end(call: TracedCall) -> None:
    """Of a server's span only what is the server's own fault is an error (the conventions for HTTP)."""
    span, client = call.span, call.client
    status = None if client is None else client.status
    if span.is_recording():
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if call.error is not None:
            span.set_attribute("gateway.error", call.error)
        cut = client is None or not client.started or client.gone
        if status is not None and status >= 500:
            spans.failed(span, call.error or str(status))
        elif cut or (call.error is not None and (status or 0) < 400):
            gone = client is not None and client.gone
            spans.failed(span, "client-gone" if gone else call.error or "cancelled")
    span.end()
