"""What an upstream sends that is no reply is told to no client, and once to the log (O2)."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from gateway.errors import InvalidReply
from gateway.http.problem import problem
from gateway.proxy.evidence import EvidenceLog
from gateway.upstream.http2 import translated
from tests.support.calls import GET, PATCH
from tests.support.clock import Clock
from tests.support.gateways import proxied
from tests.support.raw_upstream import answering

SECRET = b"secret-of-A"
STATUS = b"HTTP/1.1 200 OK\r\n"
CHUNKED = STATUS + b"Transfer-Encoding: chunked\r\n"
NO_REPLIES = {
    "no HTTP": SECRET,
    "a line": SECRET + b": account 4711\r\n\r\n",
    "a status line": b"HTTP/1.1 2x0 " + SECRET + b"\r\n\r\n",
    "a version": b"HTTP/1.7 200 " + SECRET + b"\r\n\r\n",
    "a field's name": STATUS + SECRET + b" x: y\r\n\r\n",
    "a field's value": STATUS + b"X: " + SECRET + b"\0\r\n\r\n",
    "a length": STATUS + b"Content-Length: " + SECRET + b"\r\n\r\n",
    "a coding": STATUS + b"Transfer-Encoding: " + SECRET + b"\r\n\r\n",
    "a chunk's size": CHUNKED + b"\r\n" + SECRET + b"\r\n",
    "a chunk's extension": CHUNKED + b"\r\n2 " + SECRET + b"\r\n",
    "a trailer": CHUNKED + b"\r\n0\r\n" + SECRET + b"\r\n\r\n",
    "an interim reply": b"HTTP/1.1 103 Hints\r\nContent-Length: 11\r\nX: " + SECRET + b"\r\n\r\n",
    "a switch": b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: " + SECRET + b"\r\n\r\n",
}


@pytest.mark.parametrize("call", [GET, PATCH], ids=["passed through", "matched"])
@pytest.mark.parametrize("name", NO_REPLIES)
async def test_no_byte_of_what_is_no_reply_is_quoted_to_a_client(
    name: str, call: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "gateway")
    async with proxied(answering(NO_REPLIES[name])) as chain:
        await chain.client.send(call.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        said = await chain.client.rest()
        lines = chain.running.lines() if chain.running.audit.exists() else []

    assert said.startswith(b"HTTP/1.1 ")
    assert SECRET not in said
    assert b"4711" not in said
    assert SECRET.decode() not in json.dumps(lines)
    if SECRET.decode() in caplog.text:
        assert "request " in caplog.text


async def test_the_log_has_the_bytes_escaped_and_cut_under_the_request_s_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "gateway")
    async with proxied(answering(b"no\x1b[2J'\r\n\r\n" + b"x" * 5000)) as chain:
        await chain.client.send(GET)
        _, _, body = await chain.client.reply()

    lines = [record.getMessage() for record in caplog.records]
    [line] = [line for line in lines if line.startswith("request ")]
    assert f"request {json.loads(body)['contextId']}: " in line
    assert "no\\x1b[2J'\\r\\n" in line
    assert line.isprintable()
    assert len(line) < 500


def test_one_line_an_error_and_one_a_second(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    evidence = EvidenceLog(clock)
    shared = InvalidReply("words", evidence=b"bytes")
    for error in (
        shared,
        shared,
        InvalidReply("words"),
        *(InvalidReply("w", evidence=b"b") for _ in range(9)),
    ):
        evidence.tell(error, "id")
    assert len(caplog.records) == 1
    clock.now += 1.5
    evidence.tell(InvalidReply("words", evidence=b"bytes"), "id")
    assert "9 more" in caplog.records[1].getMessage()


@pytest.mark.parametrize(
    "kind", [httpx.RemoteProtocolError, httpx.LocalProtocolError, httpx.ReadError, httpx.ReadTimeout]
)
def test_what_httpx_quotes_of_the_upstream_is_not_told_either(kind: Any) -> None:
    error = translated(kind(f"<ConnectionTerminated additional_data:b'{SECRET.decode()}'>"))
    assert SECRET not in problem(error, "id")[2]
    assert SECRET in error.evidence
