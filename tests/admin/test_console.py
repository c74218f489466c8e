"""The console's lines: what a rewrite looks like, and that nobody can break or forge one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.admin.console import MOST, Console, line, short
from gateway.admin.line_writer import LineWriter
from gateway.admin.log_lines import JsonLines, TextLines
from gateway.audit.finished_call import FinishedCall
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN
from tests.support.mocking import mock
from tests.support.processes import gateway_process
from tests.support.waiting import until

CALL = FinishedCall(
    id="i1",
    request_id=None,
    rule="web-participant-state",
    mode="enforce",
    method="PATCH",
    path=PARTICIPANT,
    address="127.0.0.1",
    user_agent="legacy/1",
    credential="c" * 32,
    changes=(
        {"repair": "content_type", "before": "text/plain", "after": "application/json"},
        {"repair": "fill", "field": "state", "after": "connected", "source": "lookup", "age_ms": 3},
    ),
    would_change=(),
    needs=(),
    skipped=None,
    error=None,
    status=202,
    lookup=0.007,
    upstream=0.01,
    total=0.021,
    attempts=1,
    conflict=False,
)
HOSTILE = [
    "a\r\nb",
    "\x1b[2J\x1b]0;owned\x07",
    '"><img src=x onerror=alert(1)>',
    "\xff\xfe\x80",
    "\u2028\u202e\x85\x00\x9b31m",
    "\ud800",
    "x" * 8192,
]


def changed(**members: Any) -> FinishedCall:
    return msgspec.structs.replace(CALL, **members)


def tell(console: Console, call: FinishedCall) -> None:
    if console.wants(bool(call.changes)):
        console(call)


def said(call: FinishedCall, **options: Any) -> list[bytes]:
    lines: list[bytes] = []
    tell(Console(lines.append, lambda: 0.25, **options), call)
    return lines


def test_a_rewrite_is_one_readable_line() -> None:
    (told,) = said(CALL)

    assert told.decode() == (
        "1970-01-01T00:00:00.250Z INFO gateway: PATCH …/participants/p1 text/plain→JSON, "
        "state=connected (lookup 7 ms, 0.0 s old) → 202 in 21 ms"
        '  client=127.0.0.1 "legacy/1" rule=web-participant-state id=i1\n'
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_in_a_burst_so_many_calls_have_a_line_and_the_others_are_counted(as_json: bool) -> None:
    lines: list[bytes] = []
    now = [1.0]
    console = Console(lines.append, lambda: now[0], as_json=as_json)
    for _ in range(MOST + 7):
        tell(console, CALL)
    assert len(lines) == MOST
    now[0] = 2.0
    tell(console, CALL)
    assert b"7 more calls had no line" in lines[MOST]
    assert len(lines) == MOST + 2
    now[0] = 0.0  # the clock was set back
    tell(console, CALL)
    assert len(lines) == MOST + 3


@pytest.mark.parametrize("as_json", [False, True])
def test_what_others_call_it_is_on_the_line_where_they_do(as_json: bool) -> None:
    (own,) = said(CALL, as_json=as_json)
    (named,) = said(changed(request_id="it-1", trace_id="ab" * 16), as_json=as_json)

    assert b"request_id" not in own
    assert b"trace_id" not in own
    if as_json:
        assert json.loads(named)["request_id"] == "it-1"
        assert json.loads(named)["trace_id"] == "ab" * 16
    else:
        assert named.endswith(b" id=i1 request_id=it-1\n")


def test_a_json_line_is_utf_8_where_nothing_in_it_acts_on_a_terminal() -> None:
    (told,) = said(changed(user_agent="東京/1"), as_json=True)

    assert "東京/1" in told.decode()
    assert "…/participants/p1 text/plain→JSON" in told.decode()


def test_how_it_ended_is_on_the_line() -> None:
    assert "→ 409 at attempt 2 in" in line(changed(status=409, attempts=2))
    assert "→ no reply client-gone in" in line(changed(status=None, error="client-gone"))
    assert "CONFLICT" in line(changed(conflict=True))
    assert "not repaired: unsettled → 400" in line(changed(changes=(), skipped="unsettled", status=400))
    assert short("/a") == "/a"
    assert len(short("/" + "a" * 9000)) < 200


def test_calls_that_were_not_rewritten_have_a_line_only_where_they_are_wanted() -> None:
    left = changed(changes=(), skipped="observe", needs=("content_type", "fill"))

    assert said(left) == []
    (told,) = said(left, others=True)
    assert b" DEBUG gateway: PATCH " in told
    assert b"needs content_type, fill" in told


def test_the_json_form_has_the_same_as_members() -> None:
    (told,) = said(CALL, as_json=True)

    document = json.loads(told)
    assert document["event"] == "rewrite"
    assert document["total_ms"] == 21
    assert document["client"]["user_agent"] == "legacy/1"
    assert document["message"] == line(CALL)


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("value", HOSTILE)
def test_no_hostile_value_breaks_a_line(value: str, colours: bool) -> None:
    content_type = {"repair": "content_type", "before": value, "after": "application/json"}
    call = changed(user_agent=value, id=value, path="/a/b/" + value, changes=(content_type,))

    (text,) = said(call, colours=colours)
    (as_json,) = said(call, as_json=True)

    shown = text.decode()
    if colours:
        assert shown.count("\x1b[") == 2
        shown = re.sub(r"\x1b\[\d*m", "", shown)
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()
    assert len(shown) < 800 or len(value) > 1000
    assert json.loads(as_json)["client"]["user_agent"] == value
    assert as_json.endswith(b"\n")
    assert as_json[:-1].decode().isprintable()


@pytest.mark.parametrize("value", HOSTILE)
def test_no_hostile_value_breaks_a_line_of_the_log(value: str) -> None:
    record = logging.LogRecord("gateway", logging.WARNING, "", 0, "said: %s", (value,), None)

    assert TextLines().format(record).isprintable()
    as_json = JsonLines().format(record)
    assert json.loads(as_json)["message"] == f"said: {value}"
    assert as_json.isprintable()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """That holds one page."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield read, write
    os.close(read)
    os.close(write)


async def test_a_reader_that_stalls_keeps_nobody_waiting_and_is_told_what_it_missed(
    pipe: tuple[int, int],
) -> None:
    read, write = pipe
    told: list[tuple[str | None, int]] = []
    writer = LineWriter(file=write, most=8192, told=lambda problem, dropped: told.append((problem, dropped)))

    for _ in range(400):
        writer.write(b"x" * 99 + b"\n")

    assert writer.dropped > 200
    os.set_blocking(read, False)
    got = b""

    def taken() -> bool:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += os.read(read, 65_536)
        return bool(told)

    await until(taken)
    writer.write(b"last\n")
    await until(lambda: taken() and b"last\n" in got)
    writer.close()
    ((problem, dropped),) = told
    assert problem is None
    assert got.count(b"\n") - 1 + dropped == 400
    assert set(got.splitlines()) == {b"x" * 99, b"last"}


@pytest.mark.parametrize("form", ["text", "json"])
async def test_the_process_tells_how_it_began_and_of_each_rewrite(tmp_path: Path, form: str) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url, log={"format": form}) as running,
        running.client() as client,
    ):
        headers = {**TOKEN, "Content-Type": "text/plain", "User-Agent": "<img src=x onerror=alert(1)>"}
        await client.get(CONVERSATION, headers=headers)
        reply = await client.patch(PARTICIPANT, content=BODY, headers=headers)
        assert reply.status_code == 202
        await until(lambda: "state=connected" in running.process.said)
        lines = running.process.said.splitlines()

    (rewrite,) = [one for one in lines if "PATCH …" in one or "PATCH \\u2026" in one]
    assert "text/plain" in rewrite
    assert "rule web-participant-state: enforce: PATCH" in running.process.said
    assert str(tmp_path / "rewrites.jsonl") in running.process.said
    assert "limits: max_body 1048576 bytes" in running.process.said
    if form == "json":
        assert all(json.loads(one)["level"] in {"info", "warning"} for one in lines)
        assert json.loads(rewrite)["rule"] == "web-participant-state"


async def test_rewrites_can_be_turned_off(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url, log={"rewrites": False}) as running,
        running.client() as client,
    ):
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        running.process.signal(signal.SIGTERM)
        assert await running.process.exit() == 0
    assert "stopping" in running.process.said
    assert "state=connected" not in running.process.said
