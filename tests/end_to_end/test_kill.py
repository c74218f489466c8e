"""The process under signals: SIGKILL loses no line of a rewrite that left; SIGTERM, SIGHUP."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest

from gateway.mock.server import Fault
from tests.support.audit_lines import KEY, audit_lines, body_digest
from tests.support.gateways import BODY, PARTICIPANT
from tests.support.mocking import mock
from tests.support.processes import gateway_process, refused
from tests.support.serving import connect
from tests.support.waiting import PATIENCE, until

TURNS = 8


async def patch_after_patch(port: int, name: str, seed: int) -> int:
    """On one connection, until the server is gone. Returns how many were accepted."""
    choose = random.Random(seed)
    accepted = 0
    try:
        async with connect(port) as client:
            for number in range(100_000):
                body = b'{"attributes": {"n": "%b"}}' % (b"x" * choose.randrange(2000))
                await client.send(
                    b"PATCH /api/v2/conversations/web/instances/%b/participants/p%d HTTP/1.1\r\nHost: a\r\n"
                    b"X-Request-Id: %b-%d\r\nContent-Length: %d\r\n\r\n%b"
                    % (name.encode(), choose.choice((1, 2)), name.encode(), number, len(body), body)
                )
                status, _, _ = await client.reply()
                assert status == 202
                accepted += 1
    except (OSError, asyncio.IncompleteReadError):
        pass
    return accepted


@pytest.mark.parametrize("sync", ["never", "always"])
async def test_killed_at_any_moment_every_rewrite_that_the_upstream_saw_is_on_the_log(
    sync: str, tmp_path: Path
) -> None:
    seed = time.time_ns()
    choose = random.Random(seed)
    log = tmp_path / "rewrites.jsonl"
    seen: dict[str, bytes] = {}
    accepted = 0
    async with mock() as upstream:
        for turn in range(TURNS):
            async with gateway_process(
                tmp_path,
                upstream.url,
                credentials={"key": KEY},
                audit={"path": "rewrites.jsonl", "sync": sync, "timeout": "5s"},
            ) as gateway:
                clients = [
                    asyncio.ensure_future(patch_after_patch(gateway.port, f"{turn}-{n}", seed + n))
                    for n in range(20)
                ]
                await until(lambda: upstream.ledger.of("PATCH"))
                await asyncio.sleep(choose.uniform(0, 0.5))
                gateway.process.signal(signal.SIGKILL)
                accepted += sum(await asyncio.gather(*clients))
                assert await gateway.process.exit() == -signal.SIGKILL
            # A PATCH that was cut off in its body has left, too.
            for entry in upstream.ledger.of("PATCH"):
                seen[dict(entry.headers)[b"x-request-id"].decode()] = entry.body
            assert len(upstream.ledger.entries) < 9_000, "the ledger forgets: judge more often"
            upstream.ledger.clear()

    recorded_lines = audit_lines(log, killed=True)
    rewrites = {line["request_id"]: line for line in recorded_lines if line["event"] == "rewrite"}
    told = f"seed {seed}: {len(seen)} seen, {accepted} accepted, {len(rewrites)} recorded"
    assert len(seen) >= accepted > 25 * TURNS, told
    assert not seen.keys() - rewrites.keys(), told
    for request_id, body in seen.items():
        recorded = rewrites[request_id]["body"]["after"]
        assert recorded["bytes"] >= len(body)
        if recorded["bytes"] == len(body):
            assert recorded["sha256"] == body_digest(body)
    # A client has one call in flight: at most that one is recorded without having reached the upstream.
    assert len(rewrites) - len(seen) <= TURNS * 20, told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_it_finishes_what_is_in_flight_and_exits_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url) as gateway,
        gateway.client() as client,
        gateway.admin() as side,
    ):
        running = gateway.process
        assert (await side.get("/readyz")).json()["ready"] is True
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY))
        await upstream.ledger.arrived(2)
        running.signal(number)
        await until(lambda: "stopping" in running.said)

        # The process is no longer ready, and finishes the connections that it has, before it ends.
        ready = await side.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["checks"]["draining"] != "ok"
        assert (await side.get("/healthz")).status_code == 200
        await refused(gateway.port)
        # The server looks ten times a second if all calls have ended. This one has not.
        await asyncio.sleep(0.3)
        assert running.ended is None
        held.set()
        answer = await call
        assert answer.status_code == 202
        assert answer.headers["connection"] == "close"
        assert await running.exit() == 0
    events = [line["event"] for line in audit_lines(gateway.audit)]
    assert events == ["config", "rewrite", "outcome"]
    assert "Traceback" not in running.said


async def test_told_twice_it_ends_at_once(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url) as gateway,
        gateway.client() as client,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY))
        await upstream.ledger.arrived(2)
        gateway.process.signal(signal.SIGTERM)
        await until(lambda: "stopping" in gateway.process.said)
        gateway.process.signal(signal.SIGTERM)
        assert await gateway.process.exit() == -signal.SIGTERM
        held.set()
        outcome = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(outcome[0], Exception)  # never a made-up reply


async def test_on_sighup_the_log_is_opened_anew_and_no_call_notices(tmp_path: Path) -> None:
    log, old = tmp_path / "rewrites.jsonl", tmp_path / "rewrites.jsonl.1"
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url) as gateway,
        gateway.client() as client,
        gateway.admin() as side,
    ):
        running = gateway.process
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY))
        await upstream.ledger.arrived(2)
        log.rename(old)
        running.signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while not log.exists():
                assert (await side.get("/readyz")).status_code == 200
        held.set()
        assert (await call).status_code == 202
        assert (await client.patch(PARTICIPANT, content=BODY)).status_code == 202
        running.signal(signal.SIGTERM)
        assert await running.exit() == 0
    events = [[line["event"] for line in audit_lines(file)] for file in (old, log)]
    assert events == [["config", "rewrite"], ["outcome", "rewrite", "outcome"]]
