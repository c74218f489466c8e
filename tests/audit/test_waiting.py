"""A log that keeps a writer waiting: a pipe that nobody reads, a disk that takes its time to sync (L1)."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from gateway.audit.writer import AuditLog
from gateway.backend import Parts
from gateway.mock.server import Fault
from tests.support.audit_lines import audit_lines
from tests.support.clients import bare_client
from tests.support.clock import Clock
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN
from tests.support.mocking import mock, mocked
from tests.support.processes import START, write_configuration
from tests.support.waiting import PATIENCE, until


async def test_where_nobody_reads_standard_output_rewrites_are_503_and_the_process_goes_on(
    tmp_path: Path,
) -> None:
    said = tmp_path / "said"
    reader, writer = os.pipe()
    async with mock() as upstream:
        write_configuration(tmp_path, upstream.url, 0, 0)
        config = tmp_path / "config.yaml"
        config.write_text(config.read_text().replace('"rewrites.jsonl"', '"-"'))
        with said.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", "run", cwd=tmp_path, stdout=writer, stderr=errors
            )
        os.close(writer)
        try:
            await until(lambda: "listening on" in said.read_text() or process.returncode is not None, START)
            ports = re.findall(r"127\.0\.0\.1:(\d+)", said.read_text())
            async with (
                bare_client(f"http://127.0.0.1:{ports[0]}") as client,
                bare_client(f"http://127.0.0.1:{ports[1]}") as side,
                asyncio.timeout(PATIENCE),
            ):
                statuses = []
                for _ in range(200):
                    answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
                    statuses.append(answer.status_code)
                assert set(statuses) == {202, 503}
                assert statuses == sorted(statuses)
                assert len(upstream.ledger.of("PATCH")) == statuses.count(202)
                assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
                ready = await side.get("/readyz")
                assert ready.status_code == 503
                assert "nobody reads it" in ready.json()["checks"]["audit_log"]
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(reader)


async def ready(side: httpx.AsyncClient) -> bool:
    return (await side.get("/readyz")).status_code == 200


async def until_ready(side: httpx.AsyncClient) -> None:
    """Each question makes the log try again, in its thread."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await ready(side):
                return
            await asyncio.sleep(0.01)


async def test_a_fifo_without_a_reader_is_unwritable_and_is_written_when_it_has_one(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    async with mocked(audit=str(path)) as (upstream, running, client), running.admin() as side:
        assert "nobody reads it" in (await running.gateway.audit.begin() or "")
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 503
        assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        assert not await ready(side)
        assert not upstream.ledger.of("PATCH")

        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        await until_ready(side)
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        await running.gateway.audit.end()
        copy = tmp_path / "copy"
        copy.write_bytes(os.read(reader, 2**20))
        os.close(reader)
        # What is said of the call that was refused may be lost, or wait until there is a reader.
        events = [line["event"] for line in audit_lines(copy)]
        assert events[0] == "gap"
        assert "rewrite" in events


class Disk:
    """A sync that takes until it is let go on, counted."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.syncs = 0
        self.broken = False

    def sync(self, file: int) -> None:
        self.syncs += 1
        self.free.wait(PATIENCE)
        if self.broken:
            raise OSError(5, "Input/output error")
        os.fdatasync(file)

    def parts(self, timeout: float) -> Parts:
        def log(*given: Any, **named: Any) -> AuditLog:
            return AuditLog(*given, **{**named, "synced": True, "sync": self.sync, "timeout": timeout})

        return Parts(audit=log)


async def test_with_sync_always_a_rewrite_leaves_after_its_sync_and_those_who_wait_share_one() -> None:
    disk = Disk()
    async with mocked(parts=disk.parts(PATIENCE)) as (upstream, running, client):
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        disk.free.clear()
        before = disk.syncs
        # Nobody has an outcome to record until all have left.
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held, times=10))
        calls = [client.patch(PARTICIPANT, content=BODY, headers=TOKEN) for _ in range(10)]
        answers = asyncio.gather(*calls)
        stats = running.gateway.stats
        await until(lambda: (disk.syncs, stats.in_flight) == (before + 1, len(calls)))
        assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        assert len(upstream.ledger.of("PATCH")) == 1
        disk.free.set()
        await until(lambda: len(upstream.ledger.of("PATCH")) == 11)
        assert disk.syncs == before + 2, "of the first, and of the others"
        held.set()
        assert {answer.status_code for answer in await answers} == {202}
        assert len(running.lines("rewrite")) == 11


async def test_what_is_not_synced_in_time_or_cannot_be_synced_does_not_leave() -> None:
    disk = Disk()
    async with mocked(parts=disk.parts(0.2)) as (upstream, running, client), running.admin() as side:
        disk.free.clear()
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 503
        assert not await ready(side)
        assert not upstream.ledger.of("PATCH")
        disk.broken = True
        disk.free.set()
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 503
        assert not upstream.ledger.of("PATCH")
        disk.broken = False
        await until_ready(side)


async def test_what_is_refused_while_the_disk_hangs_is_not_said_to_have_been_recorded() -> None:
    disk = Disk()
    async with mocked(parts=disk.parts(0.2)) as (_, running, client), running.admin() as side:
        disk.free.clear()
        for count in (1, 2, 3):
            answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            assert answer.status_code == 503
            assert "attempt" not in answer.headers["gateway-rewrite"]
            assert running.gateway.audit.lost == 2 * count, "a reject and an outcome each"
        disk.free.set()
        await until_ready(side)
        assert not running.lines("unsent")


async def test_a_reading_that_got_too_old_while_the_log_was_waited_for_is_not_sent() -> None:
    disk, clock = Disk(), Clock()
    async with mocked(parts=disk.parts(PATIENCE), clock=clock) as (upstream, running, client):
        disk.free.clear()
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await until(lambda: disk.syncs == 1)
        clock.now += 6
        disk.free.set()
        assert (await call).status_code == 202
        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "GET", "PATCH"]
        await running.gateway.audit.end()
        events = [(line["event"], line.get("attempt", 1)) for line in running.lines()]
        assert events[:3] == [("rewrite", 1), ("unsent", 1), ("rewrite", 2)]
