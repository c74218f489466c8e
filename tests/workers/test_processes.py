"""Workers as processes: one that is killed is replaced, all drain at a stop, none outlives its supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gateway.mock.server import Fault
from tests.support.audit_lines import audit_lines
from tests.support.gateways import BODY, PARTICIPANT
from tests.support.mocking import mock
from tests.support.processes import refused, write_configuration
from tests.support.serving import Client, connect
from tests.support.waiting import until
from tests.support.workers import MANY, STARTED, gone, patch, supervised, workers, workers_of


async def test_every_worker_serves_on_the_one_port_and_the_log_has_each_line_whole(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:

        async def calls(client: Client, name: str) -> None:
            for _ in range(10):
                assert (await patch(client, name)).status == 202

        async with running.connections() as clients:
            await asyncio.gather(*[calls(client, f"c{n}") for n, client in enumerate(clients)])
        assert len(workers_of(upstream)) == 2
    lines = audit_lines(tmp_path / "rewrites.jsonl")
    rewrites = [line["id"] for line in lines if line["event"] == "rewrite"]
    outcomes = [line["id"] for line in lines if line["event"] == "outcome"]
    assert len(rewrites) == len(set(rewrites)) == 10 * MANY
    assert sorted(outcomes) == sorted(rewrites)
    # A caller has one name, whichever worker served it.
    assert len({line["client"]["credential"] for line in lines if line["event"] == "rewrite"}) == 1


async def test_while_one_is_killed_the_others_go_on_and_its_successor_takes_up_its_connections(
    tmp_path: Path,
) -> None:
    """Each that was open loses one call at most; a new one waits for the successor and is served."""
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        ended, accepted, lost = asyncio.Event(), 0, 0

        async def again_and_again() -> None:
            nonlocal accepted, lost
            while not ended.is_set():
                async with connect(running.gateway.port) as client:
                    try:
                        while not ended.is_set():
                            assert (await patch(client)).status == 202
                            accepted += 1
                    except (OSError, asyncio.IncompleteReadError):
                        lost += 1

        clients = [asyncio.create_task(again_and_again()) for _ in range(MANY)]
        await until(lambda: accepted > MANY)
        # The ledger forgets them where the successor takes long to come.
        seen = workers_of(upstream)
        pid = running.kill(1)
        await running.replaced(1, pid)
        came = accepted
        await until(lambda: accepted > came + MANY)
        ended.set()
        await asyncio.gather(*clients)
        assert 0 < lost <= MANY
        assert "worker 1 ended by SIGKILL" in running.running.said
        assert len(seen | workers_of(upstream)) == 3
        assert await running.metric("gateway_worker_exits_total") == 1
        assert await running.metric("gateway_workers") == 2


async def test_one_that_is_told_to_stop_by_itself_is_replaced(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        pid = running.kill(2, signal.SIGTERM)
        await running.replaced(2, pid)
        assert "worker 2 ended with exit code 0" in running.running.said


async def test_told_to_stop_all_finish_what_is_in_flight(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running, running.admin() as side:
        held = asyncio.Event()
        upstream.faults += [Fault(method="PATCH", hold=held)] * MANY
        async with running.connections() as clients:
            calls = [asyncio.create_task(patch(client)) for client in clients]
            await until(lambda: len(upstream.ledger.of("PATCH")) == MANY)
            assert len(workers_of(upstream)) == 2
            running.running.signal(signal.SIGTERM)
            await until(lambda: "stopping" in running.running.said)
            assert (await side.get("/readyz")).status_code == 503
            await refused(running.gateway.port)
            assert running.running.ended is None
            held.set()
            assert {(await call).status for call in calls} == {202}
        assert await running.running.exit() == 0
        await gone(list(running.pids.values()))
    events = [line["event"] for line in audit_lines(tmp_path / "rewrites.jsonl")]
    assert events.count("outcome") == MANY


async def test_one_that_does_not_end_in_time_is_killed_and_the_exit_says_so(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        workers(tmp_path, upstream.url, limits={"drain_timeout": "100ms"}) as running,
    ):
        running.kill(2, signal.SIGSTOP)
        running.running.signal(signal.SIGTERM)
        assert await running.running.exit(15.0) == 1
        assert running.running.said.endswith("worker 2 did not end in time and was killed\n")
        await gone(list(running.pids.values()))


async def test_told_twice_all_end_at_once(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        async with connect(running.gateway.port) as client:
            call = asyncio.create_task(patch(client))
            await upstream.ledger.arrived(2)
            running.running.signal(signal.SIGTERM)
            await until(lambda: "stopping" in running.running.said)
            running.running.signal(signal.SIGTERM)
            assert await running.running.exit() == -signal.SIGTERM
            await gone(list(running.pids.values()))
            held.set()
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await call


async def test_when_the_supervisor_is_killed_the_workers_finish_and_end(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        async with running.gateway.client() as client:
            call = asyncio.create_task(client.patch(PARTICIPANT, content=BODY))
            await upstream.ledger.arrived(2)
            pids = list(running.pids.values())
            os.kill(running.running.pid, signal.SIGKILL)
            held.set()
            assert (await call).status_code == 202
            await gone(pids)


async def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    """By another gateway of several workers too: it is not joined."""
    other = tmp_path / "other"
    other.mkdir()
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        write_configuration(other, upstream.url, running.gateway.port, 0)
        async with supervised(other, 2) as second:
            assert await second.exit(STARTED) == 1
            taken = f"listen: cannot listen on 127.0.0.1:{running.gateway.port}: Address already in use"
            assert second.said.startswith(f"gateway: {taken}")
            assert len(second.said.splitlines()) == 1


async def test_workers_that_cannot_begin_end_it_after_some_attempts(tmp_path: Path) -> None:
    write_configuration(tmp_path, "https://localhost:1", 0, 0)
    changes = {"url": "https://localhost:1", "tls": {"ca": str(tmp_path / "none.pem")}}
    write_configuration(tmp_path, "https://localhost:1", 0, 0, upstream=changes)
    async with supervised(tmp_path, 2) as running:
        assert await running.exit(STARTED) == 1
        assert "a worker cannot run: [Errno 2] No such file or directory" in running.said
        assert "failed 3 times in a row: it ended with exit code 1\n" in running.said.splitlines(True)[-1]
        assert "Traceback" not in running.said


@pytest.mark.soak
async def test_one_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        pid = running.kill(1, signal.SIGSTOP)
        await running.replaced(1, pid)
        assert "worker 1 has not answered for 10 s: it is killed" in running.running.said
