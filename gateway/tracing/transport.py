"""
A transport whose every request has a span, and carries that span's `traceparent` in place of the client's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from gateway.errors import GatewayError
from gateway.http.headers import Fields, Headers
from gateway.http.slots import Values
from gateway.http.trace_context import without_trace, without_traceparent
from gateway.tracing import spans
from gateway.tracing.spans import current
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, Transport, nobody

PORTS: Final = {"http": 80, "https": 443}


class TracedTransport:
    """A span ends with its reply's head; what had to wait for a connection, has waited in it."""

    def __init__(self, carrier: Transport, tracer: Tracer, url: str, phase: str) -> None:
        """`url` is that of the upstream; `phase` says what the requests are for: forward or lookup."""
        self._carrier = carrier
        self._tracer = tracer
        self._url = url.rstrip("/")
        to = urlsplit(url)
        self._said: dict[str, AttributeValue] = {
            "server.address": to.hostname or "",
            "server.port": to.port or PORTS[to.scheme],
            "gateway.phase": phase,
        }

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        values: Values = (),
        before_send: BeforeSend | None = None,
        caller: Callable[[], str] = nobody,
    ) -> Reply:
        more: dict[str, Any] = {
            "upgrade": upgrade, "values": values, "before_send": before_send, "caller": caller,
        }  # fmt: skip
        call = current.get()
        if call is None:
            return await self._carrier.send(
                method, target, headers, body, extra_headers=extra_headers, **more
            )
        name = method.decode()
        span = self._tracer.start_span(name, call.context, SpanKind.CLIENT, spans.method(name) | self._said)
        if span.is_recording():
            span.set_attribute("url.full", self._url + spans.path(target))
        drop = without_traceparent if call.continued else without_trace
        itself = spans.traceparent(span.get_span_context())
        traced = headers.derived(drop) if isinstance(headers, Fields) else drop(headers)
        extra = [*extra_headers, (b"traceparent", itself.line())]
        status, ended = 0, "cancelled"
        try:
            reply = await self._carrier.send(method, target, traced, body, extra_headers=extra, **more)
            status = reply.status
            return reply
        except GatewayError as error:
            ended = error.slug()
            raise
        finally:
            if status:
                span.set_attribute("http.response.status_code", status)
            if not 0 < status < 400:
                spans.failed(span, str(status or ended))
            span.end()

    def close(self) -> None:
        self._carrier.close()

    async def wait_closed(self) -> None:
        await self._carrier.wait_closed()
