"""Tracing, seen from outside: what a collector gets over OTLP/HTTP, and what the upstream is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, Running, gateway
from tests.support.mocking import mock
from tests.support.ports import closed_port
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.waiting import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1,b=2"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
CALL = TOKEN | {"Content-Type": "text/plain", "User-Agent": "legacy/1.0", "Host": "gateway.example:8080"}
TEMPLATE = "/api/v2/conversations/web/instances/{conversationId}/participants/{participantId}"
STATE = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
LOOKED_UP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(STATE),
    STATE,
)


@dataclass
class Collected:
    """What came, when the gateway has ended."""

    running: Running
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)  # of the audit log

    def of(self, kind: Span.SpanKind.ValueType, method: str = "") -> Span:
        (found,) = (
            one
            for one in self.spans
            if one.kind == kind and (not method or said(one)["http.request.method"] == method)
        )
        return found


def said(span: Span) -> dict[str, Any]:
    return values(span.attributes)


def values(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: value(pair.value) for pair in pairs}


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    found = getattr(any_value, kind)
    return [value(one) for one in found.values] if kind == "array_value" else found


@contextlib.asynccontextmanager
async def traced(upstream: str, /, sample: float | None = None, **changes: Any) -> AsyncIterator[Collected]:
    async with RawUpstream(answering(OK)) as collector:
        section = {"endpoint": collector.url, "sample": sample}
        async with gateway(upstream, tracing=section, **changes) as running:
            collected = Collected(running)
            yield collected
            collected.lines = running.lines() if running.audit.exists() else []
        for request in collector.requests:
            assert (request.method, request.target) == (b"POST", b"/v1/traces")
            for one in ExportTraceServiceRequest.FromString(request.body).resource_spans:
                collected.resource = values(one.resource.attributes)
                collected.spans += [span for scope in one.scope_spans for span in scope.spans]


def sent_with(span: Span) -> bytes:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01".encode()


async def test_a_matched_call_keeps_its_trace_from_the_client_to_the_upstream() -> None:
    async with RawUpstream(answering(LOOKED_UP)) as upstream:
        async with traced(upstream.url) as collected, collected.running.client() as client:
            await client.patch(PARTICIPANT, params={"note": "s3"}, content=BODY, headers=CALL | SAMPLED)
            await until(lambda: len(collected.running.lines()) == 2)
        lookup, forward = upstream.requests

    call = collected.of(Span.SPAN_KIND_SERVER)
    read = collected.of(Span.SPAN_KIND_CLIENT, "GET")
    sent = collected.of(Span.SPAN_KIND_CLIENT, "PATCH")
    assert {span.trace_id.hex() for span in (call, read, sent)} == {TRACE}
    assert call.parent_span_id.hex() == PARENT
    assert read.parent_span_id == sent.parent_span_id == call.span_id
    for request, span in ((lookup, read), (forward, sent)):
        assert [value for name, value in request.headers if name == b"traceparent"] == [sent_with(span)]
        assert request.header(b"tracestate") == b"a=1,b=2"
    assert {line["trace_id"] for line in collected.lines} == {TRACE}
    assert b"s3" not in b"".join(span.SerializeToString() for span in collected.spans)
    assert collected.resource["service.name"] == "gateway"


@pytest.mark.parametrize("cors", [None, {"origins": ["*"]}])
async def test_the_access_log_names_the_trace_that_began_here(tmp_path: Path, cors: Any) -> None:
    path = tmp_path / "access.log"
    async with (
        RawUpstream(answering(OK)) as upstream,
        traced(upstream.url, log={"access": str(path)}, cors=cors) as collected,
        collected.running.client() as client,
    ):
        await client.get("/elsewhere")
        await until(lambda: path.exists() and path.read_bytes().endswith(b"\n"))

    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["trace_id"] == collected.of(Span.SPAN_KIND_SERVER).trace_id.hex()


async def test_spans_say_what_the_conventions_have_names_for() -> None:
    async with RawUpstream(answering(LOOKED_UP)) as upstream:
        async with traced(upstream.url) as collected, collected.running.client() as client:
            await client.patch(PARTICIPANT, content=BODY, headers=CALL)
        port = upstream.port

    call = collected.of(Span.SPAN_KIND_SERVER)
    assert call.name == f"PATCH {TEMPLATE}"
    of_the_gateway = said(call)
    assert of_the_gateway.pop("gateway.call.id") == collected.lines[0]["id"]
    assert of_the_gateway == {
        "http.request.method": "PATCH",
        "http.response.status_code": 200,
        "http.route": TEMPLATE,
        "url.path": PARTICIPANT,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "gateway.example",
        "server.port": 8080,
        "client.address": "127.0.0.1",
        "user_agent.original": "legacy/1.0",
        "gateway.rule": "web-participant-state",
        "gateway.mode": "enforce",
        "gateway.repairs": ["content_type", "fill"],
        "gateway.lookup.source": "lookup",
    }
    assert said(collected.of(Span.SPAN_KIND_CLIENT, "GET")) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.full": f"http://127.0.0.1:{port}{CONVERSATION}",
        "gateway.phase": "lookup",
    }
    assert said(collected.of(Span.SPAN_KIND_CLIENT, "PATCH"))["gateway.phase"] == "forward"


async def test_a_call_that_is_passed_through_keeps_its_trace_too() -> None:
    async with RawUpstream(answering(OK)) as upstream:
        async with traced(upstream.url) as collected, collected.running.client() as client:
            await client.get("/elsewhere", headers=SAMPLED)
        (request,) = upstream.requests

    call, sent = collected.of(Span.SPAN_KIND_SERVER), collected.of(Span.SPAN_KIND_CLIENT)
    assert (call.name, call.trace_id.hex(), call.parent_span_id.hex()) == ("GET", TRACE, PARENT)
    assert "http.route" not in said(call)
    assert sent.parent_span_id == call.span_id
    assert request.header(b"traceparent") == sent_with(sent)
    assert call.status.code == Status.STATUS_CODE_UNSET


async def test_what_the_client_did_not_sample_is_not_sampled_here() -> None:
    async with RawUpstream(answering(OK)) as upstream:
        async with traced(upstream.url) as collected, collected.running.client() as client:
            await client.get("/elsewhere", headers=UNSAMPLED)
        (request,) = upstream.requests

    assert collected.spans == []
    told = request.header(b"traceparent")
    assert told is not None
    assert told.startswith(f"00-{TRACE}-".encode())
    assert told.endswith(b"-00")
    assert PARENT.encode() not in told


async def test_the_share_that_is_sampled_is_of_traces_that_begin_here() -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        traced(upstream.url, sample=0) as collected,
        collected.running.client() as client,
    ):
        await client.get("/elsewhere")
        await client.get("/elsewhere", headers=SAMPLED)

    assert {span.trace_id.hex() for span in collected.spans} == {TRACE}


@pytest.mark.parametrize("given", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", ""])
async def test_where_what_the_client_says_is_not_valid_a_trace_begins(given: str) -> None:
    headers = {"tracestate": "a=1"} | ({"traceparent": given} if given else {})
    async with RawUpstream(answering(LOOKED_UP)) as upstream:
        async with traced(upstream.url) as collected, collected.running.client() as client:
            await client.patch(PARTICIPANT, content=BODY, headers=CALL | headers)
        requests = upstream.requests

    call = collected.of(Span.SPAN_KIND_SERVER)
    assert call.parent_span_id == b""
    assert collected.lines[0]["trace_id"] == call.trace_id.hex() != TRACE
    for request in requests:
        assert [name for name, _ in request.headers if name in {b"traceparent", b"tracestate"}] == [
            b"traceparent"
        ]


async def test_a_skip_and_its_reason_are_on_the_span() -> None:
    async with RawUpstream(answering(OK)) as upstream:
        rule = {"mode": "observe"}
        async with traced(upstream.url, rule=rule) as collected, collected.running.client() as client:
            await client.patch(PARTICIPANT, content=BODY, headers=CALL)

    call = said(collected.of(Span.SPAN_KIND_SERVER))
    assert call["gateway.skip.reason"] == call["gateway.mode"] == "observe"
    assert call["gateway.repairs"] == ["content_type", "fill state"]


async def test_what_the_upstream_refuses_is_an_error_of_the_client_span_alone() -> None:
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    async with (
        RawUpstream(answering(refusal)) as upstream,
        traced(upstream.url) as collected,
        collected.running.client() as client,
    ):
        assert (await client.get("/elsewhere")).status_code == 404

    call, sent = collected.of(Span.SPAN_KIND_SERVER), collected.of(Span.SPAN_KIND_CLIENT)
    assert (said(sent)["error.type"], sent.status.code) == ("404", Status.STATUS_CODE_ERROR)
    assert (said(call).get("error.type"), call.status.code) == (None, Status.STATUS_CODE_UNSET)
    assert said(call)["http.response.status_code"] == 404


@pytest.mark.parametrize("path", [PARTICIPANT, "/elsewhere"])
async def test_an_upstream_that_is_not_there_is_an_error_of_both_spans(path: str) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        async with traced(url) as collected, collected.running.client() as client:
            reply = await client.patch(path, content=BODY, headers=CALL)
            assert reply.status_code == 502

    for kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT):
        span = collected.of(kind)
        assert said(span)["error.type"] == "connection-refused"
        assert span.status.code == Status.STATUS_CODE_ERROR


async def test_off_the_upstream_gets_what_the_client_said_and_the_log_has_it() -> None:
    async with (
        RawUpstream(answering(LOOKED_UP)) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers=CALL | SAMPLED)
        await client.patch(PARTICIPANT, content=BODY, headers=CALL | {"traceparent": "nonsense"})
        await client.patch(PARTICIPANT, content=BODY, headers=CALL)
        await until(lambda: len(running.lines()) == 6)
        told = [request.header(b"traceparent") for request in upstream.requests]
        recorded = [line.get("trace_id") for line in running.lines()]

    by_client = SAMPLED["traceparent"].encode()
    assert told == [by_client, by_client, b"nonsense", None]
    assert recorded == [TRACE, TRACE, None, None, None, None]


async def test_a_collector_that_hangs_keeps_no_call_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    asked, let_go = asyncio.Event(), asyncio.Event()

    async def hangs(peer: Peer) -> None:
        while True:
            await peer.request()
            asked.set()
            await let_go.wait()
            await peer.send(OK)

    async with mock() as upstream, RawUpstream(hangs) as collector:
        section = {"endpoint": collector.url}
        async with gateway(upstream.url, tracing=section) as running, running.client() as client:
            await client.get(CONVERSATION, headers=TOKEN)
            await asked.wait()
            for _ in range(20):
                reply = await client.patch(PARTICIPANT, content=BODY, headers=CALL)
                assert reply.status_code == 202
            tracing = running.gateway.tracing
            assert tracing is not None
            await tracing.end(patience=0.01)
            let_go.set()
            await until(lambda: "last export" not in {thread.name for thread in threading.enumerate()})
