"""A worker that is told to stop by itself: the next one serves while it finishes what is in flight."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.mock.server import Fault
from tests.support.mocking import RunningMock, mock
from tests.support.serving import Reply
from tests.support.waiting import until
from tests.support.workers import MANY, Workers, gone, lives, patch, workers, workers_of


@dataclass(frozen=True, slots=True)
class Leaving:
    """`pid` has a call in flight, which ends when `held` is set, and has been told to stop."""

    running: Workers
    upstream: RunningMock
    pid: int
    held: asyncio.Event
    calls: list[asyncio.Task[Reply]]


@asynccontextmanager
async def leaving(folder: Path, **changes: Any) -> AsyncIterator[Leaving]:
    held = asyncio.Event()
    async with mock() as upstream, workers(folder, upstream.url, **changes) as running:
        upstream.faults += [Fault(method="PATCH", hold=held)] * MANY
        async with running.connections() as clients:
            calls = [asyncio.create_task(patch(client)) for client in clients]
            await until(lambda: len(upstream.ledger.of("PATCH")) == MANY)
            assert len(workers_of(upstream)) == 2
            pid = running.kill(2, signal.SIGTERM)
            await until(lambda: "worker 2 leaves, and finishes what is in flight" in running.running.said)
            try:
                yield Leaving(running, upstream, pid, held, calls)
            finally:
                held.set()
                await asyncio.gather(*calls, return_exceptions=True)


async def test_the_next_one_serves_while_it_finishes_what_is_in_flight(tmp_path: Path) -> None:
    async with leaving(tmp_path) as left:
        running = left.running
        await running.replaced(2, left.pid)
        before = workers_of(left.upstream)
        left.upstream.ledger.clear()
        assert {"filled=state" in told for told in await running.rewrites()} == {True}
        assert len(workers_of(left.upstream) - before) == 1
        assert lives(left.pid)
        assert not any(call.done() for call in left.calls)
        assert await running.metric("gateway_workers") == 2
        assert await running.metric("gateway_requests_in_flight") == MANY

        left.held.set()
        assert {(await call).status for call in left.calls} == {202}
        ended = f"process {left.pid} of worker 2 ended with exit code 0"
        await until(lambda: ended in running.running.said)
        # What it had counted stays, and it is counted once.
        assert await running.metric("gateway_matched_calls_total") == 2 * MANY
        assert await running.metric("gateway_worker_exits_total") == 1
        async with running.admin() as side:
            assert len((await side.get("/readyz")).json()["workers"]) == 2


async def test_it_goes_by_what_is_changed_meanwhile(tmp_path: Path) -> None:
    async with leaving(tmp_path) as left, left.running.admin() as side:
        told = await side.post("/api/mode", json={"rule": "web-participant-state", "mode": "observe"})
        assert told.json()["ok"]
        assert lives(left.pid)
        # Each process says in which mode it has the rule.
        said = (await side.get("/metrics")).text
        modes = re.findall(r'^gateway_rule_info.*mode="(\w+)"', said, re.M)
        assert modes == ["observe"]


async def test_told_to_stop_all_the_supervisor_waits_for_it_too(tmp_path: Path) -> None:
    async with leaving(tmp_path) as left:
        running = left.running
        await running.replaced(2, left.pid)
        running.running.signal(signal.SIGTERM)
        await until(lambda: "stopping" in running.running.said)
        await gone([running.pids[2]])
        assert running.running.ended is None
        assert lives(left.pid)
        left.held.set()
        assert {(await call).status for call in left.calls} == {202}
        assert await running.running.exit() == 0
        await gone([left.pid, *running.pids.values()])


async def test_told_twice_it_ends_at_once_with_all(tmp_path: Path) -> None:
    async with leaving(tmp_path) as left:
        running = left.running
        await running.replaced(2, left.pid)
        running.running.signal(signal.SIGTERM)
        await until(lambda: "stopping" in running.running.said)
        running.running.signal(signal.SIGTERM)
        assert await running.running.exit() == -signal.SIGTERM
        await gone([left.pid, *running.pids.values()])
        for call in left.calls:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await call


async def test_one_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    async with leaving(tmp_path, limits={"drain_timeout": "100ms"}) as left:
        os.kill(left.pid, signal.SIGSTOP)
        await until(lambda: f"process {left.pid} of worker 2 ended by SIGKILL" in left.running.running.said)
        assert f"process {left.pid} of worker 2 did not end in time" in left.running.running.said
        assert await left.running.metric("gateway_worker_exits_total") == 1
