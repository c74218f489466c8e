"""The access log: one line for each request, however it ends, and none that a client can break."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.server.access_log import Access, combined_line, json_line
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, proxied
from tests.support.mocking import mock, mocked
from tests.support.processes import gateway_process
from tests.support.raw_upstream import Peer
from tests.support.serving import connect
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("way")

GET = b"GET /elsewhere?q=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\n\r\n"
TRACED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOSTILE = [
    b"\x1b[2J\x9b31m",
    b'"><img src=x onerror=alert(1)>\\',
    b"\xff\xfe\x80\xe2\x80\xa8",
    b"\r\n1.2.3.4 - - forged",
    b"\x7f\x00",
    b"x" * 8192,
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.mark.parametrize("value", HOSTILE)
def test_no_hostile_value_breaks_a_line(value: bytes) -> None:
    access = Access("127.0.0.1", "GET", b"/" + value, user_agent=value, referer=value, request_id=value)

    as_json, combined = json_line(access, 0.25), combined_line(access, 0.25)

    for line in (as_json, combined):
        assert line.endswith(b"\n")
        assert line[:-1].decode("ascii").isprintable()
    assert json.loads(as_json)["user_agent"].encode("utf-8", "surrogateescape").startswith(value[:2]) or (
        not value.isascii()
    )
    assert len(json.loads(as_json)["user_agent"]) <= 4 * 512
    assert combined.count(b'"') == 6


def test_the_combined_format_is_that_of_other_tools() -> None:
    access = Access("127.0.0.1", "GET", b"/a", status=200, sent=5, user_agent=b"curl/8")

    assert combined_line(access, 0.25) == (
        b'127.0.0.1 - - [01/Jan/1970:00:00:00 +0000] "GET /a HTTP/1.1" 200 5 "-" "curl/8"\n'
    )
    assert b'"-" 499 0 ' in combined_line(Access("127.0.0.1"), 0.0)


async def test_matched_and_unmatched_calls_and_what_is_no_request_have_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with mocked(log={"access": str(path)}) as (_, running, client):
        asked = TOKEN | {"User-Agent": "legacy/1", "X-Request-Id": "it-1", "traceparent": TRACED}
        patched = await client.patch(PARTICIPANT, content=BODY, headers=asked)
        got = await client.get(CONVERSATION, headers=TOKEN | {"User-Agent": "other/2"})
        async with connect(running.port) as broken:
            await broken.send(b"nonsense\r\n\r\n")
            assert (await broken.reply()).status == 400
        await until(lambda: len(lines(path)) == 3)

    matched, passed, refused = lines(path)
    assert (matched["method"], matched["target"], matched["status"]) == ("PATCH", PARTICIPANT, 202)
    assert (matched["client"], matched["user_agent"]) == ("127.0.0.1", "legacy/1")
    assert matched["request_id"] == patched.headers["x-request-id"] == "it-1"
    assert (matched["trace_id"], "trace_id" in passed) == (TRACED[3:35], False)
    assert matched["bytes"] == len(patched.content)
    assert matched["duration_ms"] > 0
    assert (passed["status"], passed["user_agent"]) == (200, "other/2")
    assert passed["bytes"] == len(got.content)
    assert passed["request_id"] == got.headers["x-request-id"]
    assert (refused["method"], refused["status"]) == (None, 400)


async def test_who_leaves_without_a_reply_has_a_line_too(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async def silent(peer: Peer) -> None:
        await peer.request()
        await asyncio.Event().wait()

    async with proxied(silent, log={"access": str(path)}) as chain:
        async with connect(chain.running.port) as client:
            await client.send(GET % b"impatient")
            await until(lambda: chain.requests)
        await until(lambda: lines(path))

    (left,) = lines(path)
    assert left["status"] is None
    assert left["whole"] is False
    assert left["user_agent"] == "impatient"


async def test_what_is_refused_for_overload_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    free = asyncio.Event()

    async def held(peer: Peer) -> None:
        await peer.request()
        await free.wait()

    limits = {"max_in_flight": 1}
    async with proxied(held, log={"access": str(path), "access_format": "combined"}, limits=limits) as chain:
        await chain.client.send(GET % b"first")
        await until(lambda: chain.requests)
        async with connect(chain.running.port) as client:
            await client.send(GET % b"\xff\x9b31m<img>")
            assert (await client.reply()).status == 503
        await until(lambda: path.exists() and path.read_bytes())
        free.set()
    first_line = path.read_bytes().splitlines()[0].decode("ascii")
    assert re.search(r'"GET /elsewhere\?q=1 HTTP/1\.1" 503 \d+ "-" "\\xFF\\x9B31m<img>"$', first_line)


async def test_without_it_nothing_is_made_for_it() -> None:
    async with mocked() as (_, running, client):
        assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        assert running.gateway.access is None
        assert running.gateway.stats.access is None


async def test_it_is_opened_anew_on_sighup(tmp_path: Path) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url, log={"access": str(path)}) as running,
        running.client() as client,
    ):
        await client.get(CONVERSATION, headers=TOKEN)
        await until(lambda: lines(path))
        os.rename(path, rotated)
        running.process.signal(signal.SIGHUP)
        await until(path.exists)
        await client.get(CONVERSATION, headers=TOKEN)
        await until(lambda: lines(path))
        assert len(lines(rotated)) == 1


async def test_one_that_cannot_be_written_delays_no_call_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "access.log"
    async with mocked(log={"access": str(path)}) as (_, running, client):
        assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        await until(lambda: [text for text in caplog.messages if "cannot be written" in text])
        path.parent.mkdir()
        assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        await until(lambda: [text for text in caplog.messages if "written again: 1 lines were lost" in text])
        samples = {sample.name: sample.value for sample in running.gateway.metrics.samples()}
        assert samples["gateway_access_lines_lost"] == 1
    assert len(lines(path)) == 1
