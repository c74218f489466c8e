"""One admin side for all workers: what is counted is summed, what is changed reaches all."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from typer.testing import CliRunner

from gateway.cli import cli
from tests.support.audit_lines import audit_lines
from tests.support.mocking import mock
from tests.support.processes import configured, listening, write_configuration
from tests.support.waiting import PATIENCE, until
from tests.support.workers import MANY, STARTED, Workers, patch, supervised, workers, workers_of

FILLED, OBSERVED = "filled=state", "skipped=observe"
RULE = "web-participant-state"
CALLS = "gateway_matched_calls_total"


def rewritten(running: Workers, upstream: str, **rule: str) -> None:
    ports = running.gateway.port, running.gateway.admin_port
    write_configuration(running.folder, upstream, *ports, rule=rule)


async def commanded(running: Workers, *words: str) -> tuple[int, str]:
    path = running.folder / "config.yaml"
    told = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--config", str(path)])
    return told.exit_code, told.output


async def test_the_metrics_are_the_sum_and_never_less_when_a_worker_is_gone(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        await running.rewrites()
        assert len(workers_of(upstream)) == 2
        assert await running.metric(CALLS) == MANY
        assert await running.metric(f'gateway_added_latency_seconds_count{{rule="{RULE}"}}') == MANY
        assert await running.metric("gateway_workers") == 2
        assert await running.metric("gateway_audit_failing") == 0
        assert await running.metric(f'gateway_rule_info{{rule="{RULE}",mode="enforce"}}') == 1
        pid = running.kill(1)
        await running.replaced(1, pid)
        assert await running.metric(CALLS) == MANY
        await running.rewrites()
        # One that ends by itself says last what it had counted.
        pid = running.kill(2, signal.SIGTERM)
        await running.replaced(2, pid)
        assert await running.metric(CALLS) == 2 * MANY
        async with running.admin() as side:
            assert (await side.get("/counts")).json()[CALLS] == 2 * MANY


async def test_it_is_ready_while_one_worker_is_and_says_how_each_is(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running, running.admin() as side:
        assert (await side.get("/healthz")).text == "ok\n"
        told = (await side.get("/readyz")).json()
        assert told["ready"] is True
        assert [told["workers"][number]["ready"] for number in ("1", "2")] == [True, True]
        running.kill(1, signal.SIGSTOP)
        told = await side.get("/readyz")
        assert told.status_code == 200
        assert told.json()["workers"]["1"] == {"ready": False, "checks": {"worker": "it does not answer"}}
        running.kill(1, signal.SIGCONT)
        (tmp_path / "rewrites.jsonl").unlink()
        (tmp_path / "rewrites.jsonl").mkdir()
        async with running.connections() as clients, asyncio.timeout(PATIENCE):
            while told.status_code == 200:  # each looks for a rotation ten times a second
                assert {(await patch(client)).status for client in clients} <= {202, 503}
                told = await side.get("/readyz")
        assert told.json()["checks"]["workers"] == "none is ready"
        (tmp_path / "rewrites.jsonl").rmdir()


async def test_a_mode_reaches_every_worker_and_those_that_come_later_and_is_recorded_once(
    tmp_path: Path,
) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        assert FILLED in next(iter(await running.rewrites(1)))
        rewritten(running, upstream.url)
        code, said = await commanded(running, "mode", RULE, "observe")
        assert (code, said) == (0, f"rule {RULE}: mode enforce is now observe\n")
        assert {OBSERVED in one for one in await running.rewrites()} == {True}
        pid = running.kill(1)
        await running.replaced(1, pid)
        assert {OBSERVED in one for one in await running.rewrites()} == {True}
        assert (await commanded(running, "mode", RULE, "nonsense"))[0] == 1
        async with running.admin() as side:
            assert (await side.get("/api/rules")).json()["rules"][0]["mode"] == "observe"
    modes = [line for line in audit_lines(tmp_path / "rewrites.jsonl") if line["event"] == "mode"]
    assert [(line["before"], line["mode"]) for line in modes] == [("enforce", "observe")]


async def test_on_sighup_each_follows_the_new_rules_and_has_the_rotated_log_anew(tmp_path: Path) -> None:
    log, access = tmp_path / "rewrites.jsonl", tmp_path / "access"
    logs = {"access": str(access)}
    async with mock() as upstream, workers(tmp_path, upstream.url, log=logs) as running:
        async with running.connections() as clients:
            assert {(await patch(client)).status for client in clients} == {202}
            await until(lambda: access.read_bytes().count(b"\n") == MANY)
            log.rename(tmp_path / "rewrites.jsonl.1")
            access.rename(tmp_path / "access.1")
            rewritten(running, upstream.url, mode="observe")
            running.running.signal(signal.SIGHUP)
            await until(lambda: "reload (SIGHUP): rule" in running.running.said)
            # No connection was dropped.
            told = [(await patch(client)).headers[b"gateway-rewrite"].decode() for client in clients]
            assert {OBSERVED in one for one in told} == {True}
            await until(lambda: access.exists() and access.read_bytes().count(b"\n") == MANY)
        pid = running.kill(2)
        await running.replaced(2, pid)
        assert {OBSERVED in one for one in await running.rewrites()} == {True}
        assert await running.metric('gateway_reloads_total{result="ok"}') == 1
    assert [line["event"] for line in audit_lines(log)].count("skip") == 2 * MANY


async def test_a_watched_file_that_changes_before_they_are_ready_is_read_once_they_are(
    tmp_path: Path,
) -> None:
    async with mock() as upstream:
        port, side = configured(tmp_path, upstream.url)
        async with supervised(tmp_path, 2, "--watch") as running:
            await listening(running, side)
            write_configuration(tmp_path, upstream.url, port, side, rule={"mode": "observe"})
            await until(lambda: "mode enforce is now observe" in running.said, STARTED)


async def test_a_file_that_is_refused_changes_nothing_anywhere(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running:
        rewritten(running, upstream.url)
        good = (tmp_path / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(good.replace('"rules"', '"limits": {"deadline": 0}, "rules"'))
        async with running.admin() as side:
            told = await side.post("/api/reload")
        assert told.status_code == 409
        assert told.json()["said"][0].endswith("limits.deadline: expected more than nothing, got 0")
        assert {FILLED in one for one in await running.rewrites()} == {True}
        # What waits for a restart waits for that of all: not for that of one.
        changed = json.loads(good)
        changed["limits"] = {"max_body": 10}
        changed["rules"][0]["mode"] = "on_reject"
        (tmp_path / "config.yaml").write_text(json.dumps(changed))
        code, said = await commanded(running, "reload")
        assert (code, said.splitlines()[-1]) == (0, "limits.max_body differs: it takes a restart")
        pid = running.kill(1)
        await running.replaced(1, pid)
        assert {FILLED in one for one in await running.rewrites()} == {True}


async def test_the_live_page_has_the_calls_of_all(tmp_path: Path) -> None:
    async with mock() as upstream, workers(tmp_path, upstream.url) as running, running.admin() as side:
        assert (await side.get("/")).headers["content-type"].startswith("text/html")
        await running.rewrites()
        assert len(workers_of(upstream)) == 2
        calls = (await side.get("/api/rewrites")).json()["calls"]
        assert len({call["number"] for call in calls}) == MANY
        ended = [call["ended"] for call in calls]
        assert ended == sorted(ended, reverse=True)
        (caller,) = (await side.get("/api/callers")).json()["callers"]
        assert caller["calls"] == MANY

        async with side.stream("GET", "/api/events") as stream:
            events = stream.aiter_lines()
            assert await anext(events) == "event: hello"
            came: list[int] = []
            first = 0
            while sum(came) < MANY:
                line = await anext(events)
                if line.startswith('data: {"seconds"'):
                    said = json.loads(line.removeprefix("data: "))
                    came.append(said["came"])
                    first += len(said["calls"])
                    if len(came) == 1:  # it watches
                        upstream.ledger.clear()
                        await running.rewrites()
            assert sum(came) == MANY
            assert first > 0
