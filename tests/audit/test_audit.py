"""The audit log: no rewrite leaves without its line, no input breaks a line, no secret is in one."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import app
from gateway.app import Parts
from gateway.audit.writer import Audit, Batch, Line, pieces
from gateway.config import UpstreamSettings
from gateway.errors import Unrecordable
from gateway.mock.demo import free_ports
from gateway.mock.server import Fault
from tests.support.clients import bare_client
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, Running, gateway
from tests.support.gateways import settings as configured
from tests.support.judging import listening, process, refused_by_the_gateway, until
from tests.support.mocking import mock
from tests.support.raw_upstream import RawUpstream, answering
from tests.support.serving import connect

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")


def whole(path: Path) -> list[dict[str, Any]]:
    """Every line one JSON object, in ASCII without control characters, the last one ended."""
    raw = path.read_bytes()
    assert raw == b"" or raw.endswith(b"\n")
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in raw)
    lines = [json.loads(line) for line in raw.split(b"\n")[:-1]]
    assert all(isinstance(line, dict) and {"event", "time"} <= line.keys() for line in lines)
    return lines


# --- the lines


async def test_a_rewrite_and_its_outcome_are_recorded_as_the_contract_has_them() -> None:
    wall = datetime(2026, 11, 22, 12, 0, 0, 250_000, UTC).timestamp()
    async with (
        mock() as upstream,
        gateway(upstream.url, wall=lambda: wall) as running,
        running.client() as client,
    ):
        headers = TOKEN | {"Content-Type": "text/plain", "User-Agent": "legacy/1", "X-Request-Id": "it-1"}
        await client.patch(f"{PARTICIPANT}?key=secret", content=BODY, headers=headers)

        rewrite, outcome = whole(running.audit)
        credential = rewrite["client"].pop("credential")
        assert rewrite == {
            "event": "rewrite",
            "time": "2026-11-22T12:00:00.250Z",
            "id": "it-1",
            "rule": "web-participant-state",
            "mode": "enforce",
            "method": "PATCH",
            "path": PARTICIPANT,
            "changes": [
                {"repair": "content_type", "before": "text/plain", "after": "application/json"},
                {"repair": "fill", "field": "state", "after": "connected", "source": "lookup",
                 "age_ms": rewrite["changes"][1]["age_ms"]},
            ],
            "body": {
                "before": {"bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()},
                "after": {"bytes": len(FILLED), "sha256": hashlib.sha256(FILLED).hexdigest()},
            },
            "client": {"address": "127.0.0.1", "user_agent": "legacy/1"},
        }  # fmt: skip
        assert 0 <= rewrite["changes"][1]["age_ms"] <= 1000
        assert len(credential) == 32
        times = {name: outcome.pop(name) for name in ("lookup_ms", "upstream_ms", "total_ms")}
        assert outcome == {
            "event": "outcome",
            "time": "2026-11-22T12:00:00.250Z",
            "id": "it-1",
            "status": 202,
        }
        assert 0 < times["lookup_ms"] < times["total_ms"]
        assert 0 < times["upstream_ms"] < times["total_ms"]


async def test_a_rewrite_is_on_the_log_before_the_upstream_sees_it() -> None:
    """L1, seen from the upstream: while it holds the PATCH, the line is there and the outcome is not."""
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", delay=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(2)
        assert [line["event"] for line in whole(running.audit)] == ["rewrite"]
        held.set()
        await call
        assert [line["event"] for line in whole(running.audit)] == ["rewrite", "outcome"]


async def test_a_refill_is_a_second_line_with_its_attempt() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held, status=409))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(2)
        upstream.change("c1", "p1", state="active")
        held.set()
        assert (await call).status_code == 202

        first, second, outcome = whole(running.audit)
        assert [first["event"], second["event"], outcome["event"]] == ["rewrite", "rewrite", "outcome"]
        assert first["id"] == second["id"] == outcome["id"]
        assert "attempt" not in first
        assert second["attempt"] == 2
        assert [line["changes"][1]["after"] for line in (first, second)] == ["connected", "active"]


async def test_an_outcome_that_is_not_known_is_recorded_as_such() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        upstream.faults.append(Fault(method="PATCH", reset=True))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert refused_by_the_gateway(answer.headers, answer.json(), 502) == "connection_terminated"
        assert (
            "may have been" in answer.json()["advice"] or "read the conversation" in answer.json()["advice"]
        )
        _, outcome = whole(running.audit)
        assert (outcome["status"], outcome["error"]) == (502, "connection-terminated")


async def test_a_client_that_leaves_while_its_patch_is_in_flight_leaves_a_known_outcome() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
            % (PARTICIPANT.encode(), len(BODY), BODY)
        )
        await upstream.ledger.arrived(2)
        client.reset()
        await asyncio.sleep(0.02)
        held.set()
        await until(lambda: len(whole(running.audit)) == 2)

        rewrite, outcome = whole(running.audit)
        assert rewrite["event"] == "rewrite"
        assert (outcome["event"], outcome["status"]) == ("outcome", 202)


# --- L1: a log that can't be written


async def refuses_rewrites_and_lets_the_rest_pass(running: Running, upstream: Any) -> None:
    before = upstream.ledger.received
    async with running.client() as client, running.admin() as admin:
        refused = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        error = refused_by_the_gateway(refused.headers, refused.json(), 503)
        assert error == "proxy_internal_error"
        assert str(running.audit) in refused.json()["detail"]
        assert "/readyz" in refused.json()["advice"]
        assert "PATCH" not in [entry.method for entry in list(upstream.ledger.entries)[before:]]

        conforming = b'{"state":"connected"}'
        json_type = TOKEN | {"Content-Type": "application/json"}
        assert (await client.patch(PARTICIPANT, content=conforming, headers=json_type)).status_code == 202
        assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        attributes = await client.patch(f"{PARTICIPANT}/attributes", content=BODY, headers=json_type)
        assert attributes.status_code == 202

        ready = await admin.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["ready"] is False
        assert str(running.audit) in ready.json()["checks"]["audit_log"]
        assert (await admin.get("/healthz")).status_code == 200


@FULL
async def test_on_a_full_disk_rewrites_are_503_and_the_rest_passes() -> None:
    async with mock() as upstream, gateway(upstream.url, audit="/dev/full") as running:
        await refuses_rewrites_and_lets_the_rest_pass(running, upstream)


@FULL
async def test_a_call_that_cannot_be_recorded_keeps_no_connection_and_no_turn() -> None:
    async with mock() as upstream:
        wire = app.connect(UpstreamSettings(url=upstream.url, max_connections=1))
        async with gateway(upstream.url, audit="/dev/full", wire=wire) as running, running.client() as client:
            for _ in range(5):
                refused = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
                assert refused.status_code == 503
            assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
            assert (await client.delete(CONVERSATION, headers=TOKEN)).status_code == 405
            assert len(running.gateway.locks) == 0


@FULL
async def test_of_calls_that_leave_together_none_leaves_that_cannot_be_recorded() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, audit="/dev/full") as running,
        running.client() as client,
    ):
        await asyncio.gather(*(client.get(CONVERSATION, headers=TOKEN) for _ in range(10)))
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", hold=held))
        busy = asyncio.ensure_future(client.get("/api/v2/users/me", headers=TOKEN))
        await upstream.ledger.arrived(11)

        calls = [client.patch(PARTICIPANT, content=BODY, headers=TOKEN) for _ in range(10)]
        for answer in await asyncio.gather(*calls):
            refused_by_the_gateway(answer.headers, answer.json(), 503)
            assert answer.headers["gateway-rewrite"] == "web-participant-state; skipped=unrecordable"

        assert "PATCH" not in {entry.method for entry in upstream.ledger.entries}
        assert len(running.gateway.locks) == 0
        held.set()
        await busy


class Said(Line):
    it: dict[str, Any]


class Stuck(Audit):
    """A disk that hangs, and fails in the end."""

    stuck = False

    def commit(self) -> None:
        if self.stuck:
            time.sleep(0.3)
            self._due = Batch([])
            raise Unrecordable("input/output error")
        super().commit()


async def test_a_rewrite_that_was_not_recorded_is_not_said_to_be_made_though_its_time_is_over_too() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, limits={"deadline": "200ms"}, parts=Parts(audit=Stuck)) as running,
        running.client() as client,
    ):
        calls = [client.patch(PARTICIPANT, content=BODY, headers=TOKEN) for _ in range(4)]
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {202}
        count = len(upstream.ledger.of("PATCH"))
        audit = running.gateway.audit
        assert isinstance(audit, Stuck)
        audit.stuck = True

        calls = [client.patch(PARTICIPANT, content=BODY, headers=TOKEN) for _ in range(4)]
        for answer in await asyncio.gather(*calls):
            assert answer.status_code in {503, 504}
            assert "filled" not in answer.headers["gateway-rewrite"]

        assert len(upstream.ledger.of("PATCH")) == count
        events = [line["event"] for line in whole(running.audit)]
        assert events[-8:].count("reject") == 4


def test_lines_that_go_into_a_pipe_together_are_never_torn(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16 * 1024)
    os.write(writer, b"x" * 9_000 + b"\n")
    audit = Audit(str(path), lambda: 0.0)
    audit.check()
    assert audit._file is not None
    os.set_blocking(audit._file, False)
    for number in range(20):
        audit.append(Said("rewrite", "", str(number), {"path": "/p" * 250}))

    with pytest.raises(Unrecordable):
        audit.commit()

    found = os.read(reader, 2**20).splitlines()[1:]
    assert 0 < len(found) < 20
    audit.append(Said("rewrite", "", "later", {}))
    audit.commit()
    found += os.read(reader, 2**20).splitlines()
    lines = [json.loads(line) for line in found]
    assert [line["event"] for line in lines[-2:]] == ["gap", "rewrite"]
    audit.close()
    os.close(reader)
    os.close(writer)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 100))
def test_pieces_are_whole_lines_and_no_larger_than_they_must_be(sizes: list[int], limit: int) -> None:
    lines = [b"x" * size + b"\n" for size in sizes]
    found = pieces(b"".join(lines), limit)

    assert b"".join(found) == b"".join(lines)
    for piece in found:
        assert len(piece) <= limit or piece.count(b"\n") == 1
        assert not piece or piece.endswith(b"\n")


async def test_where_the_log_cannot_be_opened_rewrites_are_503_and_it_recovers_by_itself(
    tmp_path: Path,
) -> None:
    path = tmp_path / "missing" / "rewrites.jsonl"
    async with mock() as upstream, gateway(upstream.url, audit=str(path)) as running:
        await refuses_rewrites_and_lets_the_rest_pass(running, upstream)
        path.parent.mkdir()
        async with running.admin() as admin, running.client() as client:
            assert (await admin.get("/readyz")).status_code == 200
            assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202

        gap, rewrite, outcome = whole(path)
        assert (gap["event"], rewrite["event"], outcome["event"]) == ("gap", "rewrite", "outcome")
        # A reject and its outcome, a skip and its outcome.
        assert gap["lost"] == 4


async def test_an_upstream_that_accepted_is_told_to_the_client_even_if_the_outcome_cannot_be_recorded(
    tmp_path: Path,
) -> None:
    folder, now = tmp_path / "log", [1000.0]
    folder.mkdir()
    async with (
        mock() as upstream,
        gateway(upstream.url, audit=str(folder / "rewrites.jsonl"), wall=lambda: now[0]) as running,
        running.client() as client,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(2)
        folder.rename(tmp_path / "away")
        now[0] += 1
        held.set()

        assert (await call).status_code == 202
        assert [line["event"] for line in whole(tmp_path / "away" / "rewrites.jsonl")] == ["rewrite"]
        assert running.gateway.audit.lost == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB that are really full when they are full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


async def test_when_the_disk_fills_up_no_half_line_stays_and_when_there_is_room_again_it_goes_on(
    small_disk: Path,
) -> None:
    path = small_disk / "rewrites.jsonl"
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 40_000)
    async with (
        mock() as upstream,
        gateway(upstream.url, audit=str(path)) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        statuses: list[int] = []
        while not statuses or statuses[-1] == 202:
            answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            statuses.append(answer.status_code)
        assert 5 < len(statuses) < 500
        assert statuses[-1] == 503
        # What is left of the file's last page takes a short line or two more.
        while (await admin.get("/readyz")).status_code == 200:
            assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 503
        written = whole(path)
        assert sum(line["event"] == "rewrite" for line in written) == len(upstream.ledger.of("PATCH"))
        await refuses_rewrites_and_lets_the_rest_pass(running, upstream)
        assert whole(path) == written

        filler.unlink()
        assert (await admin.get("/readyz")).status_code == 200
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        assert [line["event"] for line in whole(path)[len(written) :]] == ["gap", "rewrite", "outcome"]
        rewrites = sum(line["event"] == "rewrite" for line in whole(path))
        assert rewrites == sum(entry.body == FILLED for entry in upstream.ledger.of("PATCH"))


# --- rotation


async def test_a_log_that_was_renamed_or_deleted_is_made_anew_and_no_line_is_lost(tmp_path: Path) -> None:
    path, old, now = tmp_path / "rewrites.jsonl", tmp_path / "rewrites.jsonl.1", [1000.0]
    async with (
        mock() as upstream,
        gateway(upstream.url, audit=str(path), wall=lambda: now[0]) as running,
        running.client() as client,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        path.rename(old)
        now[0] += 0.2
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in whole(old)] == ["rewrite", "outcome"]
        assert [line["event"] for line in whole(path)] == ["rewrite", "outcome"]
        path.unlink()
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in whole(path)] == ["rewrite", "outcome"]
        # copytruncate: the file stays the same, and is written from its new end.
        os.truncate(path, 0)
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in whole(path)] == ["rewrite", "outcome"]
        # logrotate's `create`: another file stands at the path.
        path.rename(old)
        path.touch()
        now[0] += 0.2
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in whole(path)] == ["rewrite", "outcome"]
        # A clock that was set back does not keep it from looking.
        path.rename(old)
        now[0] -= 500
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in whole(path)] == ["rewrite", "outcome"]


async def test_a_rotation_while_calls_are_under_way_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    async with (
        mock() as upstream,
        gateway(upstream.url, audit=str(path)) as running,
        running.client() as client,
    ):

        async def rotate() -> None:
            for number in range(10):
                await asyncio.sleep(0.01)
                if path.exists():
                    path.rename(tmp_path / f"old-{number}")
                running.gateway.audit.reopen()

        calls = [client.patch(PARTICIPANT, content=BODY, headers=TOKEN) for _ in range(100)]
        await asyncio.gather(rotate(), *calls)

        lines = [line for name in os.listdir(tmp_path) for line in whole(tmp_path / name)]
        assert len(upstream.ledger.of("PATCH")) == 100
        assert sum(line["event"] == "rewrite" for line in lines) == 100
        assert sum(line["event"] == "outcome" for line in lines) == 100


def test_reopen_ends_the_old_file_and_opens_the_path_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    audit = Audit(str(path), lambda: 0.0)
    audit.append(Line("a", "", "1"))
    audit.commit()
    kept = os.open(path, os.O_RDONLY)
    audit.reopen()
    audit.append(Line("b", "", "2"))
    audit.commit()
    audit.close()
    audit.close()
    assert os.fstat(kept).st_nlink == 1
    os.close(kept)
    assert [line["event"] for line in whole(path)] == ["a", "b"]
    assert whole(path)[0]["time"] == "1970-01-01T00:00:00.000Z"
    assert path.stat().st_mode & 0o007 == 0  # not for everybody on the machine


async def test_the_log_may_be_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    async with mock() as upstream, gateway(upstream.url, audit="-") as running, running.client() as client:
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        running.gateway.audit.reopen()
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["rewrite", "outcome"] * 2


def test_lost_lines_are_counted_until_the_gap_is_on_the_log(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "log"
    audit = Audit(str(path), lambda: 0.0)
    for _ in range(3):
        audit.append_best_effort(Line("outcome", "", "1"))
    audit.append(Line("rewrite", "", "1"))
    with pytest.raises(Unrecordable):
        audit.commit()
    problem = audit.check()
    assert problem is not None
    assert str(path) in problem
    path.parent.mkdir()
    assert audit.check() is None
    assert audit.check() is None
    audit.close()
    assert [(line["event"], line["lost"]) for line in whole(path)] == [("gap", 3)]


# --- L2: no input can forge or break a line

anything = st.text(st.characters(), max_size=40) | st.sampled_from(
    [
        "\r\n",
        "\x00",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\ud800",
        "\udcff",
        '"}\n{"event":"rewrite"}',
        "\ufeff",
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(anything, anything, st.dictionaries(anything, anything | st.lists(anything), max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_text_is_recorded_each_line_is_one_object_that_says_it(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str, dict[str, Any]]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    audit = Audit(str(path), lambda: 1.5)
    for event, request_id, record in records:
        audit.append(Said(event, "", request_id, record))
        audit.commit()
    audit.close()
    found = [(line["event"], line["id"], line["it"]) for line in whole(path)]
    assert found == [(event, request_id, dict(record)) for event, request_id, record in records]


TEXT = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
PATH = bytes(set(range(0x21, 0x7F)) - set(b"#?/"))
values = st.lists(st.sampled_from(TEXT), max_size=60).map(bytes) | st.sampled_from(
    [
        "\x85\u2028\u2029".encode(),
        b"\xc2\x85",
        b"\xff\xfe",
        b'"}{"event":"rewrite"',
        b"\\n\\u000a",
        b"%0d%0a",
        b"\xed\xa0\x80",
        b"x" * 20_000,
    ]
)
segments = st.lists(st.sampled_from(PATH), min_size=1, max_size=30).map(bytes)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(segments, values, values, values), min_size=3, max_size=6))
async def test_no_path_header_or_user_agent_that_can_arrive_breaks_a_line(
    calls: list[tuple[bytes, bytes, bytes, bytes]],
) -> None:
    accepted = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    async with (
        RawUpstream(answering(accepted)) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}", rule={"on_lookup_failure": "forward"}) as running,
        connect(running.port) as client,
    ):
        matched = 0
        for participant, agent, kind, request_id in calls:
            await client.send(
                b"PATCH %b/participants/%b HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\nX-Request-Id: %b\r\n"
                b"Content-Type: text/plain;%b\r\nContent-Length: 2\r\n\r\n{}"
                % (CONVERSATION.encode(), participant, agent, request_id, kind)
            )
            status, headers, _ = await client.reply()
            assert status in {202, 400, 431}, status
            if status != 202:
                break
            matched += b"gateway-rewrite" in headers
        lines = whole(running.audit) if matched else []
        assert len(lines) == 2 * matched
        assert {line["event"] for line in lines} <= {"rewrite", "skip", "outcome"}


async def test_a_header_of_a_megabyte_is_refused_and_recorded_nowhere() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\n\r\n" % (PARTICIPANT.encode(), b"x" * 2**20)
        )
        status, _, _ = await client.reply()

        assert status == 431
        assert not running.audit.exists()
        assert upstream.ledger.received == 0


# --- L3: no credential, no value of the body, in the log, in an error or in what the process says

SECRETS = {
    "bearer": "s3cr3t-bearer-QWxhZGRpbg",
    "cookie": "s3cr3t-cookie-0123456789",
    "api_key": "s3cr3t-apikey-abcdef",
    "basic": "czNjcjN0LWJhc2lj",
    "attribute": "s3cr3t-attribute-value",
    "name": "s3cr3t-attribute-name",
    "query": "s3cr3t-query",
    "upstream": "s3cr3t-of-the-upstream",
}


async def test_no_secret_is_in_the_log_in_an_error_or_in_what_the_process_says(tmp_path: Path) -> None:
    port, admin_port = free_ports(2)
    attributes = json.dumps({"attributes": {SECRETS["name"]: SECRETS["attribute"]}})
    bodies = [
        attributes, attributes[:-1], f"[{attributes}]", '{"state":"disconnected",' + attributes[1:],
        f'{{"state":"{SECRETS["attribute"]}"}}', f'{{"state":"a","state":"{SECRETS["attribute"]}"}}',
        SECRETS["attribute"], f'"{SECRETS["attribute"]}"', attributes + " " * 2000,
    ]  # fmt: skip
    faults = [
        None,
        Fault(method="GET", status=200, body=f"<{SECRETS['upstream']}>".encode()),
        Fault(method="GET", status=200, body=f'{{"a":"{SECRETS["upstream"]}'.encode()),
        Fault(method="GET", status=500, body=SECRETS["upstream"].encode()),
        Fault(method="GET", reset=True),
        Fault(method="PATCH", reset=True),
        Fault(method="PATCH", status=200, body=SECRETS["upstream"].encode(), reset=True),
        Fault(method="PATCH", status=202, body=f'{{"state":"{SECRETS["upstream"]}"}}'.encode(),
              headers=(("content-type", "application/json"), ("set-cookie", f"s={SECRETS['cookie']}"))),
    ]  # fmt: skip
    headers = {
        "Authorization": f"Bearer {SECRETS['bearer']}",
        "Cookie": f"session={SECRETS['cookie']}",
        "X-Api-Key": SECRETS["api_key"],
        "Proxy-Authorization": f"Basic {SECRETS['basic']}",
    }
    errors: list[str] = []
    async with mock() as upstream:
        chosen = configured(
            upstream.url,
            "rewrites.jsonl",
            credentials={"headers": ["X-Api-Key"]},
            limits={"max_body": 1500},
            listen={"port": port},
            admin={"port": admin_port},
        )
        document = chosen.model_dump(
            mode="json", by_alias=True, exclude={"limits", "upstream", "state_cache"}
        )
        document["rules"][0]["repairs"][2] |= {"max_age": 0, "settle": 0}
        document |= {"limits": {"max_body": 1500}, "upstream": {"url": upstream.url}}
        document.pop("cors")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
        async with process("run", folder=tmp_path) as running:
            await listening(running, port)
            async with bare_client(f"http://127.0.0.1:{port}") as client:
                for fault in faults:
                    for body in bodies:
                        upstream.faults[:] = [fault] if fault else []
                        try:
                            answer = await client.patch(
                                f"{PARTICIPANT}?token={SECRETS['query']}", content=body, headers=headers
                            )
                        except httpx.RemoteProtocolError as error:
                            errors.append(str(error))
                            continue
                        if answer.headers.get("proxy-status"):
                            errors.append(f"{answer.headers}{answer.text}")
                        errors.append(answer.headers["gateway-rewrite"])
                for field in ("Authorization", "Cookie"):
                    async with connect(port) as raw:
                        await raw.send(
                            f"GET /?{SECRETS['query']} HTTP/1.1\r\nHost: a\r\n"
                            f"{field}: {SECRETS['bearer']}\x01\r\nConnection: {field}\r\n\r\n".encode()
                        )
                        errors.append((await raw.rest()).decode())
            async with bare_client(f"http://127.0.0.1:{admin_port}") as side:
                pages = [await side.get(page) for page in ("/readyz", "/counts", "/healthz")]
                errors += [page.text for page in pages]
            running.signal(signal.SIGTERM)
            assert await running.exit() == 0
            said = running.said
    log = (tmp_path / "rewrites.jsonl").read_text()
    assert len(whole(tmp_path / "rewrites.jsonl")) > 100
    assert len(errors) > 70
    for name, secret in SECRETS.items():
        assert secret not in log, name
        assert secret not in said, name
        assert not [error for error in errors if secret in error], name


async def test_the_same_caller_has_the_same_hash_and_another_another_and_another_process_another_key() -> (
    None
):
    async with mock() as upstream:
        seen = []
        for _ in range(2):
            async with gateway(upstream.url) as running, running.client() as client:
                for token in ("one", "two", "one"):
                    await client.patch(
                        PARTICIPANT, content=BODY, headers={"Authorization": f"Bearer {token}"}
                    )
                seen.append([line["client"]["credential"] for line in running.lines("rewrite")])

        (one, two, again), (elsewhere, _, _) = seen
        assert one == again
        assert len({one, two, elsewhere}) == 3
