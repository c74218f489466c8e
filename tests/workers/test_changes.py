"""What is changed reaches every worker: beside one that hangs, and one that is about to begin."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, cast

import trustme

from gateway.admin.metrics import Counts, Metrics
from gateway.workers import admin
from gateway.workers.channel import NoAnswerFromThere
from gateway.workers.live import LiveOfAll
from gateway.workers.place import Place
from tests.support.audit_lines import audit_lines
from tests.support.certified import Pair
from tests.support.mocking import mock
from tests.support.virtual import in_virtual_time, now
from tests.support.waiting import PATIENCE, until
from tests.support.workers import STARTED, Workers, patch, workers

OBSERVE = {"rule": "web-participant-state", "mode": "observe"}
OBSERVED = "skipped=observe"
PROBED = 1.0  # seconds for which every shipped probe waits


async def test_one_that_hangs_keeps_no_other_from_a_mode_which_is_recorded_once(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        workers(tmp_path, upstream.url) as running,
        running.admin() as side,
        running.connections() as clients,
    ):
        assert {(await patch(client)).status for client in clients} == {202}
        stopped = running.kill(1, signal.SIGSTOP)
        calls = [asyncio.create_task(patch(client)) for client in clients]
        answered, hung = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        client = clients[calls.index(answered.pop())]
        post = asyncio.create_task(side.post("/api/mode", json=OBSERVE))
        # In less than it takes to give the other up.
        async with asyncio.timeout(PATIENCE):
            while OBSERVED not in (await patch(client)).headers[b"gateway-rewrite"].decode():
                assert not post.done()
        os.kill(stopped, signal.SIGCONT)
        assert (await post).status_code == 200
        await asyncio.gather(*hung)
        told = [(await patch(client)).headers[b"gateway-rewrite"].decode() for client in clients]
        assert {OBSERVED in one for one in told} == {True}
    events = [line["event"] for line in audit_lines(tmp_path / "rewrites.jsonl")]
    assert events.count("mode") == 1
    assert events.index("mode") < events.index("skip")


async def beginning(running: Workers) -> int:
    """The process that takes the place of worker 2, stopped before it could ask for anything."""
    known = set(running.pids.values())
    running.kill(2)
    found: set[int] = set()

    def begun() -> bool:
        path = Path(f"/proc/{running.running.pid}/task/{running.running.pid}/children")
        found.update(set(map(int, path.read_text().split())) - known)
        # Not the fork of the supervisor that it is at first.
        return any(b"gateway.workers" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found)

    await until(begun, STARTED)
    (pid,) = found
    os.kill(pid, signal.SIGSTOP)
    # The supervisor may have some turns of its loop to go until it has said what it says first. Each of these
    # takes it more than one.
    async with running.admin() as side:
        for _ in range(10):
            assert (await side.get("/healthz")).status_code == 200
    return pid


async def test_one_that_begins_meanwhile_serves_no_call_by_what_held_before(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running, running.admin() as side:
        pid = await beginning(running)
        assert (await side.post("/api/mode", json=OBSERVE)).json()["ok"]
        # Some of these wait at its listener.
        async with running.connections() as clients:
            calls = [asyncio.create_task(patch(client)) for client in clients]
            await until(lambda: any(call.done() for call in calls))
            os.kill(pid, signal.SIGCONT)
            told = [(await call).headers[b"gateway-rewrite"].decode() for call in calls]
        assert {OBSERVED in one for one in told} == {True}
        assert running.pids[2] == pid


async def test_one_that_begins_meanwhile_reopens_its_logs_too(tmp_path: Path) -> None:
    own = Pair(trustme.CA(), tmp_path)
    tls = {"tls": own.settings()}
    async with mock() as upstream, workers(tmp_path, upstream.url, listen=tls) as running:
        pid = await beginning(running)
        running.running.signal(signal.SIGHUP)
        await until(lambda: "reload (SIGHUP)" in running.running.said)
        os.kill(pid, signal.SIGCONT)
        # Said of the certificate only.
        loaded = "worker 2: listen.tls: the certificate was loaded again"
        await until(lambda: loaded in running.running.said, STARTED)


class Hung:
    number = 1

    async def ask(self, what: str, asked: Any = None, seconds: float = 2.0) -> Any:
        await asyncio.sleep(seconds)
        raise NoAnswerFromThere("it hangs")


class Well(Hung):
    number = 2

    async def ask(self, what: str, asked: Any = None, seconds: float = 2.0) -> Any:
        return {"audit_log": "ok"}


@in_virtual_time
async def test_that_one_hangs_is_known_before_a_probe_gives_the_gateway_up() -> None:
    places = [cast(Place, Hung()), cast(Place, Well())]
    own = Metrics(Counts(), {})
    side = admin.build(places, LiveOfAll(lambda: 0.0, [], places), own, None, lambda: False)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [], "query_string": b""}
    await side(scope, receive, send)
    assert sent[0]["status"] == 200
    assert now() < PROBED / 2
