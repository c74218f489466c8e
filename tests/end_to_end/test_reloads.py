"""The configuration read again: all of it or nothing; no call fails, those in flight end as they began."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from typer.testing import CliRunner

from gateway.admin.access import admitting
from gateway.admin.changes import routes
from gateway.bounded_reads import BoundedReads
from gateway.cli import cli
from gateway.config import ConfigError, Settings, read_file
from gateway.mock.server import Fault
from gateway.process.reloads import Reloaded, Reloads, differing, watched
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, Running, gateway, settings
from tests.support.mocking import mock
from tests.support.processes import gateway_process
from tests.support.waiting import until

OTHER = f"{CONVERSATION.replace('/web/', '/fax/')}/participants/p1"


def reloads(running: Running, first: Settings, load: Callable[[], Settings]) -> Reloads:
    built = running.gateway
    return Reloads(first, load, built.follow, built.record, built.counts)


def refused() -> Settings:
    raise ConfigError(["config.yaml: rules[0].mode: no such mode"])


async def patched(client: httpx.AsyncClient, **headers: str) -> str:
    reply = await client.patch(PARTICIPANT, content=BODY, headers={**TOKEN, **headers})
    return str(reply.headers.get("gateway-rewrite"))


async def test_the_next_call_goes_by_the_new_rules_and_one_in_flight_ends_by_the_old(tmp_path: Path) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        first = settings(upstream.url, str(running.audit))
        later = settings(upstream.url, str(running.audit), rule={"mode": "observe"})
        again = reloads(running, first, lambda: later)
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", hold=held))
        in_flight = asyncio.create_task(patched(client))
        await upstream.ledger.arrived(1)
        assert await again.reload("a test") == Reloaded(
            True, ["rule web-participant-state: mode enforce is now observe"]
        )
        assert "skipped=observe" in await patched(client)
        held.set()
        assert "filled=state" in await in_flight
        modes = [(line["event"], line["mode"]) for line in running.lines() if "mode" in line]
    assert modes == [("mode", "observe"), ("skip", "observe"), ("rewrite", "enforce")]


async def test_a_bad_file_changes_nothing_and_says_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        again = reloads(running, settings(upstream.url, str(running.audit)), refused)
        told = await again.reload("a test")
        assert told == Reloaded(False, ["config.yaml: rules[0].mode: no such mode"])
        assert again.problem is not None
        assert "filled=state" in await patched(client)
        assert running.counts("gateway_reloads_total", "failed") == 1
    assert "reload (a test) refused, nothing is changed" in caplog.text


async def test_under_load_no_call_fails_whatever_the_files_say() -> None:
    """Good files and bad ones by turns; each good one has another mode."""
    async with mock() as upstream, gateway(upstream.url) as running:
        files = {
            mode: settings(upstream.url, str(running.audit), rule={"mode": mode})
            for mode in ("enforce", "on_reject")
        }
        now = iter(range(60))

        def load() -> Settings:
            number = next(now)
            return refused() if number % 2 else files["enforce" if number % 4 else "on_reject"]

        again = reloads(running, files["enforce"], load)
        over = False
        statuses: list[int] = []

        async def call() -> None:
            async with running.client() as client:
                while not over:
                    reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
                    statuses.append(reply.status_code)

        callers = [asyncio.create_task(call()) for _ in range(8)]
        done = [(await again.reload("a test")).ok for _ in range(60)]
        await until(lambda: len(statuses) > 200)
        over = True
        await asyncio.gather(*callers)
    assert done == [True, False] * 30
    assert set(statuses) == {202}


@pytest.mark.parametrize("differ", [True, False], ids=["other rules", "another mode"])
async def test_readings_survive_a_change_of_modes_alone(differ: bool) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        first = settings(upstream.url, str(running.audit))
        writes = {"writes": [f"{CONVERSATION.replace('c1', '{conversationId}')}/**", "/other/**"]}
        later = settings(upstream.url, str(running.audit), rule=writes if differ else {"mode": "on_reject"})
        await patched(client)
        await reloads(running, first, lambda: later).reload("a test")
        assert "filled=state" in await patched(client)
        assert running.asked == (2 if differ else 1)


async def test_a_write_that_only_the_new_rules_know_is_one_though_it_began_before_them() -> None:
    """S3: it held no lock, so what was read while it was under way is not used after it."""
    other = "/other/c1"
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="POST", hold=held))
        write = asyncio.create_task(client.post(other, headers=TOKEN))
        await upstream.ledger.arrived(1)
        first = settings(upstream.url, str(running.audit))
        later = settings(upstream.url, str(running.audit), rule={"writes": ["/other/{conversationId}"]})
        await reloads(running, first, lambda: later).reload("a test")
        await patched(client)
        held.set()
        await write
        assert "filled=state" in await patched(client)
        assert running.asked == 2


async def test_what_takes_a_restart_is_named_each_time() -> None:
    async with mock() as upstream, gateway(upstream.url) as running:
        first = settings(upstream.url, str(running.audit))
        later = settings(upstream.url, str(running.audit), listen={"port": 1}, limits={"max_body": 5})
        again = reloads(running, first, lambda: later)
        told = [await again.reload("a test") for _ in range(2)]
    said = ["listen.port differs: it takes a restart", "limits.max_body differs: it takes a restart"]
    assert told == [Reloaded(True, said)] * 2
    assert differing(first, first) == []


@pytest.mark.parametrize("by_file", [False, True], ids=["ended by hand", "ended by the file"])
async def test_a_mode_holds_through_reloads_until_the_file_has_another(by_file: bool) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        first = settings(upstream.url, str(running.audit))
        files = [first, settings(upstream.url, str(running.audit), rule={"mode": "on_reject"})]
        again = reloads(running, first, lambda: files[0])
        assert (await again.set_mode("web-participant-state", "observe", "me")).ok
        assert "skipped=observe" in await patched(client)
        stays = "rule web-participant-state stays in mode observe, which was set: the file says enforce"
        for _ in range(2):
            assert (await again.reload("a test")).said == [stays]
            assert "skipped=observe" in await patched(client)
        if by_file:
            del files[0]
            ended = await again.reload("a test")
        else:
            ended = await again.set_mode("web-participant-state", "enforce", "me")
        now = "on_reject" if by_file else "enforce"
        assert ended.said == [f"rule web-participant-state: mode observe is now {now}"]
        assert (await again.reload("a test")).said == []
        for name, mode in (("nobody", "observe"), ("web-participant-state", "on")):
            assert not (await again.set_mode(name, mode, "me")).ok
        lines = [(line["before"], line["mode"]) for line in running.lines("mode")]
    assert lines == [("enforce", "observe"), ("observe", now)]


async def test_a_mode_that_was_set_goes_with_its_rule() -> None:
    async with mock() as upstream, gateway(upstream.url) as running:
        first = settings(upstream.url, str(running.audit))
        other = settings(upstream.url, str(running.audit), rule={"name": "another"})
        files = iter([other, first])
        again = reloads(running, first, lambda: next(files))
        await again.set_mode("web-participant-state", "observe", "me")
        said = [(await again.reload("a test")).said for _ in range(2)]
    assert said == [
        ["rule web-participant-state is gone", "rule another is new, in mode enforce"],
        ["rule another is gone", "rule web-participant-state is new, in mode enforce"],
    ]


async def test_a_mode_is_on_the_audit_log_before_any_call_goes_by_it() -> None:
    """By a reload, and set by hand: a call is made the moment that the rules are followed."""
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        first = settings(upstream.url, str(running.audit))
        later = settings(upstream.url, str(running.audit), rule={"mode": "observe"})
        built = running.gateway

        async def follow(chosen: Settings, rules_differ: bool) -> None:
            await built.follow(chosen, rules_differ)
            await patched(client)

        again = Reloads(first, lambda: later, follow, built.record, built.counts)
        await again.reload("a test")
        await again.set_mode("web-participant-state", "shadow", "me")
        events = [(line["event"], line["mode"]) for line in running.lines() if "mode" in line]
    assert events == [("mode", "observe"), ("skip", "observe"), ("mode", "shadow"), ("skip", "shadow")]


async def test_a_file_system_that_hangs_refuses_the_reload_and_holds_up_nothing_else() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        first = settings(upstream.url, str(running.audit))
        hangs, reads = threading.Event(), BoundedReads(0.05)

        def load() -> Settings:
            assert hangs.wait(10)
            return first

        built = running.gateway
        again = Reloads(first, load, built.follow, built.record, built.counts, reads)
        reloading = asyncio.create_task(again.reload("a test"))
        assert "filled=state" in await patched(client)
        assert await reloading == Reloaded(
            False, ["the file system did not answer within 0.05 s"], elsewhere=True
        )
        assert await again.reload("a test") == Reloaded(
            False, ["the file system hangs: a read that began before is not over"], elsewhere=True
        )
        assert (await again.set_mode("web-participant-state", "observe", "me")).ok
        assert running.counts("gateway_reloads_total", "failed") == 2
        hangs.set()
        await until(reads.idle)
        assert (await again.reload("a test")).ok


@pytest.mark.parametrize("sync", ["never", "always"])
async def test_no_mode_changes_while_the_audit_log_cannot_be_written(sync: str, tmp_path: Path) -> None:
    log = tmp_path / "rewrites.jsonl"
    async with mock() as upstream, gateway(upstream.url, str(log)) as running, running.client() as client:
        first = settings(upstream.url, str(log))
        later = settings(upstream.url, str(log), rule={"mode": "shadow"})
        again = reloads(running, first, lambda: later)
        running.gateway.audit.waits = sync == "always"
        await running.gateway.audit.begin()
        log.unlink()
        log.mkdir()
        for told in (
            await again.set_mode("web-participant-state", "observe", "me"),
            await again.reload("me"),
        ):
            assert not told.ok
            assert told.said[0].startswith(
                f"nothing changes unrecorded: the audit log {log} cannot be opened"
            )
        assert again.settings == first
        assert running.counts("gateway_reloads_total", "failed") == 1
        log.rmdir()
        assert "filled=state" in await patched(client)
        assert (await again.reload("me")).ok
        lines = [(line["before"], line["mode"]) for line in running.lines("mode")]
    assert lines == [("enforce", "shadow")]


async def test_a_watched_file_is_read_when_it_is_another(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("one")
    asked: list[str] = []

    class Asked:
        async def reload(self, by: str, again: bool) -> Reloaded:
            asked.append(by)
            return Reloaded(True)

    task = asyncio.create_task(watched(read_file(file), cast(Reloads, Asked()), every=0.01))
    await asyncio.sleep(0.05)
    assert asked == []
    file.unlink()
    await asyncio.sleep(0.05)
    file.write_text("another")
    await until(lambda: asked)
    task.cancel()
    assert asked == ["the file changed"]


class Answering:
    """One reload after the other; `again` is what each was told."""

    def __init__(self, *answers: Reloaded) -> None:
        self.again: list[bool] = []
        self._answers = list(answers)

    async def reload(self, by: str, again: bool) -> Reloaded:
        self.again.append(again)
        return self._answers.pop(0)


async def test_a_file_that_is_another_when_the_watch_begins_is_read(tmp_path: Path) -> None:
    """Than the settings were read from: it changed during the start."""
    file = tmp_path / "config.yaml"
    file.write_text("one")
    read = read_file(file)
    file.write_text("another")
    asked = Answering(Reloaded(True))
    task = asyncio.create_task(watched(read, cast(Reloads, asked), every=0.001))
    await until(lambda: asked.again)
    task.cancel()


async def test_what_is_refused_for_something_beside_the_watched_file_is_tried_again(tmp_path: Path) -> None:
    """And what its own text is refused for is not: nor is what was taken."""
    file = tmp_path / "config.yaml"
    file.write_text("one")
    elsewhere, own = Reloaded(False, elsewhere=True), Reloaded(False)
    asked = Answering(elsewhere, elsewhere, Reloaded(True), own, Reloaded(True))
    task = asyncio.create_task(watched(read_file(file), cast(Reloads, asked), every=0.001, pause=0.001))
    for text, came in (("another", 3), ("wrong one", 4), ("right again", 5)):
        file.write_text(text)
        await until(lambda came=came: len(asked.again) == came)  # type: ignore[misc]
        await asyncio.sleep(0.02)
    assert asked.again == [False, True, True, False, False]
    assert not task.done()
    task.cancel()


async def test_a_change_that_could_not_be_recorded_is_made_when_it_can_and_refused_on_the_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, log = tmp_path / "config.yaml", tmp_path / "rewrites.jsonl"
    file.write_text("one")
    async with mock() as upstream, gateway(upstream.url, str(log)) as running:
        later = settings(upstream.url, str(log), rule={"mode": "observe"})
        loads = 0

        def load() -> Settings:
            nonlocal loads
            loads += 1
            return later

        again = reloads(running, settings(upstream.url, str(log)), load)
        running.gateway.audit.waits = True
        await running.gateway.audit.begin()
        task = asyncio.create_task(watched(read_file(file), again, every=0.001, pause=0.001))
        log.unlink()
        log.mkdir()
        file.write_text("another")
        await until(lambda: loads > 3)
        log.rmdir()
        await until(lambda: again.settings == later)
        task.cancel()
        assert running.counts("gateway_reloads_total", "failed") == 1
    assert len([line for line in caplog.messages if "refused, nothing is changed" in line]) == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/api/reload", {}, b"", 405),
        ("GET", "/api/mode", {}, b"", 405),
        ("POST", "/api/reload", {"origin": "http://evil"}, b"", 403),
        ("POST", "/api/reload", {"origin": "null"}, b"", 403),
        ("POST", "/api/mode", {"origin": "http://evil"}, b'{"rule":"r","mode":"m"}', 403),
        ("POST", "/api/mode", {}, b"", 400),
        ("POST", "/api/mode", {}, b"[" * 4000, 400),
        ("POST", "/api/mode", {}, b'{"rule":"r","mode":"m"}' + b" " * 5000, 400),
        ("POST", "/api/reload", {"origin": "http://["}, b"", 403),
        ("POST", "/api/mode", {}, b'{"rule":1,"mode":"m"}', 400),
        ("POST", "/api/mode", {"origin": "http://admin"}, b'{"rule":"r","mode":"m"}', 200),
        ("POST", "/api/reload", {}, b"", 409),
    ],
)
async def test_changes_are_asked_for_by_post_and_by_no_other_site_s_page(
    method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    changed: list[str] = []

    def answers(ok: bool) -> Callable[..., Awaitable[Reloaded]]:
        async def answer(*asked: str) -> Reloaded:
            changed.append(asked[-1])
            return Reloaded(ok, ["said"])

        return answer

    app = admitting(cast(Any, Starlette(routes=routes(answers(False), answers(True)))), None, False)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=cast(Any, app)), base_url="http://admin"
    ) as client:
        reply = await client.request(method, path, headers=headers, content=body)
    assert reply.status_code == status
    assert bool(changed) == (status in (200, 409))


async def test_the_command_line_asks_the_running_gateway(tmp_path: Path) -> None:
    async with mock() as upstream, gateway_process(tmp_path, upstream.url) as running:
        file, reachable = tmp_path / "config.yaml", tmp_path / "reachable.yaml"
        document: dict[str, Any] = yaml.safe_load(file.read_text())
        reachable.write_text(yaml.safe_dump(document | {"admin": {"port": running.admin_port}}))

        async def command(*arguments: str) -> tuple[int, str]:
            asked = [*arguments, "--config", str(reachable)]
            result = await asyncio.to_thread(CliRunner().invoke, cli, asked)
            return result.exit_code, result.output

        assert await command("mode", "web-participant-state", "observe") == (
            0,
            "rule web-participant-state: mode enforce is now observe\n",
        )
        assert (await command("mode", "web-participant-state", "on"))[0] == 1
        # Of its file only where the admin side is has to be right.
        reachable.write_text(
            f"admin: {{port: {running.admin_port}}}\nlisten: {{port: nowhere}}\n"
            "upstream: {url: '${NOT_SET_HERE}'}\ncredentials: {key: '${NOT_SET_HERE}'}\n"
        )
        in_mode = (0, "web-participant-state is in mode observe already\n")
        assert await command("mode", "web-participant-state", "observe") == in_mode
        reachable.write_text("not: [YAML")
        there = ("--admin", f"http://127.0.0.1:{running.admin_port}")
        assert await command("mode", "web-participant-state", "observe", *there) == in_mode
        reachable.write_text(yaml.safe_dump(document | {"admin": {"port": running.admin_port}}))
        stays = "rule web-participant-state stays in mode observe, which was set: the file says enforce\n"
        assert (await command("reload")) == (0, stays)
        document["rules"][0]["mode"] = "shadow"
        file.write_text(yaml.safe_dump(document))
        running.process.signal(signal.SIGHUP)
        await until(lambda: "mode observe is now shadow" in running.process.said)
        file.write_text("rules: [")
        running.process.signal(signal.SIGHUP)
        await until(lambda: "refused, nothing is changed" in running.process.said)
        reachable.write_text(yaml.safe_dump(document | {"admin": {"port": 1}}))
        for wrong in ("127.0.0.1:9901", "https://a:1", "http://:1", "http://a:x", "http://a/b"):
            code, said = await command("reload", "--admin", wrong)
            assert (code, "expected a URL such as http://127.0.0.1:9901" in said) == (1, True)
        reachable.write_text("admin: {prot: 1}")
        assert await command("reload") == (
            1,
            "reachable.yaml:1:9: admin.prot: unknown key; did you mean 'port'?\n",
        )
        reachable.write_text(yaml.safe_dump(document | {"admin": {"port": 1}}))
        code, said = await command("reload")
        assert code == 1
        assert "no gateway answers on 127.0.0.1:1 (admin.host, admin.port)" in said
