"""
Heads over a socket: what the application is told of them, and what is refused before it is called.

In tests/server a name that begins with a letter and a number names its line in the intermediary checklist.
"""

from __future__ import annotations

import json
import logging

import pytest

from gateway.errors import GatewayError
from gateway.server.connection import CLIENT_HELLO
from gateway.server.limits import ServerStats
from tests.support.applications import Echo, Held, cycle_of
from tests.support.raw_requests import GET, LAST, chunked
from tests.support.refused_heads import ANSWERS, HOPELESS_HEADS, REFUSED_HEADS, SECRET, each_of, with_secret
from tests.support.serving import (
    connect,
    directly,
    exchange,
    on_both_loops,
    serve,
)


@pytest.mark.parametrize(
    ("line", "method", "target"),
    [
        (b"patch /a? HTTP/1.1", "patch", b"/a?"),
        (b"GET http://A/x?y HTTP/1.1", "GET", b"/x?y"),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", b"*"),
        (b"M-SEARCH //x HTTP/1.2", "M-SEARCH", b"//x"),
    ],
)
@on_both_loops
async def test_a23_l14_l15_l17_l18_method_and_target(line: bytes, method: str, target: bytes) -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (echo.scopes[0]["method"], cycle_of(echo.scopes[0]).target) == (method, target)
    assert echo.scopes[0]["http_version"] == "1.1"


@on_both_loops
async def test_empty_lines_before_a_request_are_ignored_up_to_a_bound() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, b"\r\n" + GET + b"\r\n\r\n" + GET + b"\r\n" + LAST)
        assert got.count(b"HTTP/1.1 200") == 3
        got = await exchange(port, b"\r\n" * 9 + GET)
        assert got.startswith(b"HTTP/1.1 400")
    assert echo.targets == [b"/", b"/", b"/last"]


@on_both_loops
async def test_a_request_is_the_same_wherever_it_is_cut() -> None:
    data = (
        b"\r\npatch /1?x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        + chunked(b"chunk", b"ed\r\n", trailers=b"X: y\r\n")
        + b"\r\n"
        + LAST
    )
    want: list[bytes] = []
    for cuts in ([], *([cut] for cut in range(1, len(data))), range(1, len(data))):
        echo = Echo()
        async with directly(echo) as (protocol, client):
            start = 0
            for cut in (*cuts, len(data)):
                protocol.data_received(data[start:cut])
                start = cut
            got = await client.rest()
        want = want or [got]
        assert got == want[0], cuts
        assert echo.bodies == [b"hello", b"chunked\r\n", b""]
    assert want[0].count(b"HTTP/1.1 200 OK") == 3


@each_of(*REFUSED_HEADS, *HOPELESS_HEADS)
@on_both_loops
async def test_d3_d4_d8_a_refusal_is_problem_json_and_counted_and_logged_and_closes(
    data: bytes, error: type[GatewayError], caplog: pytest.LogCaptureFixture
) -> None:
    echo, stats = Echo(), ServerStats()
    status, slug = ANSWERS[error]
    if data.startswith(CLIENT_HELLO):
        slug = "tls-on-plain-port"
    async with serve(echo, stats=stats) as port:
        follows = b"0\r\n\r\n" + GET if data.endswith(b"\r\n\r\n") else b""
        got = await exchange(port, with_secret(data) + follows)
    head, _, body = got.partition(b"\r\n\r\n")
    fields = head.lower().split(b"\r\n")
    assert fields[0].startswith(b"http/1.1 %d " % status)
    assert b"connection: close" in fields
    assert b"content-type: application/problem+json" in fields
    assert b"proxy-status: gateway; error=http_request_error" in fields
    assert sum(field.startswith(b"date:") for field in fields) == 1
    assert (b"allow: get, head, post, put, patch, delete, options" in fields) is (status == 405)
    document = json.loads(body)
    assert (document["status"], document["code"]) == (status, f"gateway.{slug}")
    assert b"x-request-id: " + document["contextId"].encode() in fields
    assert echo.scopes == []
    assert stats.refused == {slug: 1}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert slug in record.getMessage()
    assert SECRET not in got
    assert SECRET.decode() not in record.getMessage()
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 250


@on_both_loops
async def test_an_invalid_second_request_does_not_disturb_the_first() -> None:
    held = Held()
    async with serve(held) as port, connect(port) as client:
        await client.send(GET + b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n" + GET)
        await held.begun.wait()
        held.go.set()
        assert (await client.reply())[::2] == (200, b"held")
        status, headers, _ = await client.reply()
        assert (status, headers[b"connection"]) == (400, b"close")
        assert await client.rest() == b""
