"""A log that can't be written (L1): no rewrite leaves, the rest passes, and it recovers by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import backend
from gateway.audit.writer import AuditLog, Batch
from gateway.backend import Parts
from gateway.config import UpstreamSettings
from gateway.errors import Unrecordable
from gateway.mock.server import Fault
from tests.support.audit_lines import audit_lines
from tests.support.clock import Clock
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, Running, gateway
from tests.support.judging import refused_by_the_gateway
from tests.support.mocking import mock, mocked

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")


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


async def test_where_only_short_lines_have_room_the_gateway_is_not_ready(tmp_path: Path) -> None:
    class NearlyFull(AuditLog):
        def _write(self, line: bytes, now: float, patience: float) -> None:
            if len(line) > 500:
                raise Unrecordable(f"the audit log {tmp_path / 'log'} cannot be written: no space left")
            super()._write(line, now, patience)

    async with mock() as upstream:
        parts = Parts(audit=NearlyFull)
        async with gateway(upstream.url, audit=str(tmp_path / "log"), parts=parts) as running:
            await refuses_rewrites_and_lets_the_rest_pass(running, upstream)


@FULL
async def test_a_call_that_cannot_be_recorded_keeps_no_connection_and_no_conversation_lock() -> None:
    async with mock() as upstream:
        one = backend.connect(UpstreamSettings(url=upstream.url, max_connections=1))
        async with (
            gateway(upstream.url, audit="/dev/full", transport=one) as running,
            running.client() as client,
        ):
            for _ in range(5):
                refused = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
                assert refused.status_code == 503
            assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
            assert (await client.delete(CONVERSATION, headers=TOKEN)).status_code == 405
            assert len(running.gateway.main.locks) == 0


@FULL
async def test_of_calls_that_leave_together_none_leaves_that_cannot_be_recorded() -> None:
    async with mocked(audit="/dev/full") as (upstream, running, client):
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
        assert len(running.gateway.main.locks) == 0
        held.set()
        await busy


class Stuck(AuditLog):
    """A disk that hangs, and fails in the end."""

    stuck = False

    def commit(self) -> None:
        if self.stuck:
            time.sleep(0.3)
            self._batch.problem, self._batch = "input/output error", Batch([])
            raise Unrecordable("input/output error")
        super().commit()


async def test_a_rewrite_that_was_not_recorded_is_not_said_to_be_made_though_its_time_is_over_too() -> None:
    async with mocked(limits={"deadline": "200ms"}, parts=Parts(audit=Stuck)) as (upstream, running, client):
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
        events = [line["event"] for line in audit_lines(running.audit)]
        assert events[-8:].count("reject") == 4


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

        gap, rewrite, outcome = audit_lines(path)
        assert (gap["event"], rewrite["event"], outcome["event"]) == ("gap", "rewrite", "outcome")
        # A reject and its outcome, a skip and its outcome.
        assert gap["lost"] == 4


async def test_an_upstream_that_accepted_is_told_to_the_client_even_if_the_outcome_cannot_be_recorded(
    tmp_path: Path,
) -> None:
    folder, clock = tmp_path / "log", Clock()
    folder.mkdir()
    async with mocked(audit=str(folder / "rewrites.jsonl"), wall=clock) as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(2)
        folder.rename(tmp_path / "away")
        clock.now += 1
        held.set()

        assert (await call).status_code == 202
        assert [line["event"] for line in audit_lines(tmp_path / "away" / "rewrites.jsonl")] == ["rewrite"]
        assert running.gateway.audit.lost == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
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
        # The last page of the file still has room for a short line or two.
        while (await admin.get("/readyz")).status_code == 200:
            assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 503
        written = audit_lines(path, full=True)
        assert sum(line["event"] == "rewrite" for line in written) == len(upstream.ledger.of("PATCH"))
        await refuses_rewrites_and_lets_the_rest_pass(running, upstream)
        assert audit_lines(path, full=True) == written

        filler.unlink()
        assert (await admin.get("/readyz")).status_code == 200
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        assert [line["event"] for line in audit_lines(path, full=True)[len(written) :]] == [
            "gap",
            "rewrite",
            "outcome",
        ]
        rewrites = sum(line["event"] == "rewrite" for line in audit_lines(path, full=True))
        assert rewrites == sum(entry.body == FILLED for entry in upstream.ledger.of("PATCH"))
