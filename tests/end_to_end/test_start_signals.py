"""Signals that come before anybody follows them, and those that a container's first process gets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.mock.server import Fault
from tests.support.mocking import mock
from tests.support.processes import (
    GatewayProcess,
    configured,
    listening,
    process,
    where_it_listens,
    write_configuration,
)
from tests.support.serving import connect
from tests.support.starting import FIRST, HeldImport, needs_namespaces, signal_first
from tests.support.waiting import until
from tests.support.workers import STARTED, patch, supervised

UPSTREAM = "http://127.0.0.1:9"  # nobody is asked


async def test_sighup_during_the_start_is_a_reload_once_it_serves(tmp_path: Path) -> None:
    write_configuration(tmp_path, UPSTREAM, 0, 0)
    held = HeldImport(tmp_path, "typer")
    async with process("run", folder=tmp_path) as running:
        await held.begun(running)
        running.signal(signal.SIGHUP)
        held.go_on()
        await where_it_listens(running, tmp_path)
        await until(lambda: "reload (SIGHUP): nothing differs" in running.said)


@pytest.mark.parametrize(("command", "number"), [("check", signal.SIGHUP), ("run", signal.SIGTERM)])
async def test_what_is_told_to_end_during_the_start_ends(
    command: str, number: signal.Signals, tmp_path: Path
) -> None:
    held = HeldImport(tmp_path, "typer")
    async with process(command, folder=tmp_path) as running:
        await held.begun(running)
        running.signal(number)
        assert await running.exit() == -number


async def test_sighup_does_not_end_a_worker_that_begins(tmp_path: Path) -> None:
    held = HeldImport(tmp_path, "msgspec")
    async with process(folder=tmp_path, module="gateway.workers") as running:
        await held.begun(running)
        running.signal(signal.SIGHUP)
        held.go_on()
        assert await running.exit() == 1  # nobody gave it a channel


async def test_sighup_before_all_workers_are_ready_is_a_reload_once_they_are(tmp_path: Path) -> None:
    async with mock() as upstream:
        port, admin = configured(tmp_path, upstream.url)
        async with supervised(tmp_path, 2) as running:
            await listening(running, admin)
            write_configuration(tmp_path, upstream.url, port, admin, rule={"mode": "observe"})
            running.signal(signal.SIGHUP)
            await until(lambda: "reload (SIGHUP)" in running.said, STARTED)
            assert "mode enforce is now observe" in running.said


@needs_namespaces
async def test_sigterm_during_the_start_ends_a_container_s_first_process(tmp_path: Path) -> None:
    held = HeldImport(tmp_path, "typer")
    async with process("run", folder=tmp_path, within=FIRST) as running:
        await held.begun(running)
        signal_first(running, signal.SIGTERM)
        assert await running.exit() == 128 + signal.SIGTERM


@contextlib.asynccontextmanager
async def first(folder: Path, workers: int) -> AsyncIterator[GatewayProcess]:
    one = process("run", folder=folder, within=FIRST)
    async with one if workers == 1 else supervised(folder, workers, within=FIRST) as running:
        yield await where_it_listens(running, folder)


@needs_namespaces
@pytest.mark.parametrize("workers", [1, 2])
async def test_told_twice_a_container_s_first_process_ends_at_once(tmp_path: Path, workers: int) -> None:
    async with mock() as upstream:
        write_configuration(tmp_path, upstream.url, 0, 0)
        upstream.faults.append(Fault(method="PATCH", hold=asyncio.Event()))
        async with first(tmp_path, workers) as gateway, connect(gateway.port) as client:
            call = asyncio.create_task(patch(client))
            await upstream.ledger.arrived(2)
            signal_first(gateway.process, signal.SIGTERM)
            await until(lambda: "stopping" in gateway.process.said)
            signal_first(gateway.process, signal.SIGTERM)
            assert await gateway.process.exit() == 128 + signal.SIGTERM
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await call
