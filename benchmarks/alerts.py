"""
Alerts of deploy/prometheus, fired by their faults, and what a scrape costs.

    .venv/bin/python -m benchmarks.alerts [--only GatewayConflicts]

A real Prometheus (`prometheus` on the path) scrapes a gateway that repairs calls, once a second, with the
rules as they are shipped, but for their windows and `for:`, which are cut to seconds. Fault by fault: it is
caused, its alert is read back from Prometheus as firing, it is cured, and every alert is gone before the
next. "with it" are alerts that fired beside it. Takes three minutes; exits with 1 if one did not fire or did
not end.

Then /metrics is read at the shipped rules and at 3,000.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
import yaml

from benchmarks import rig
from benchmarks.client import Broken, opened
from gateway.admin import client as admin

ROOT = Path(__file__).parent.parent
WINDOW, FOR = "8s", "2s"
TO_FIRE, TO_END = 30.0, 60.0  # seconds
IN_FLIGHT = 16
SCRAPES = 20
MANY = 3000
JSON = "application/json"
BODY = b'{"attributes": {"supervisorNote": "test"}}'
FIELDS = [("Authorization", "Bearer one"), ("Content-Type", "text/plain")]


def shortened(rules: str) -> str:
    """The shipped rules, for a fault of seconds."""
    rules = re.sub(r"\[\d+m\]", f"[{WINDOW}]", rules)
    return re.sub(r"for: \d+m", f"for: {FOR}", rules)


@dataclass
class Stage:
    """The gateway, its upstream's side door, and Prometheus."""

    work: Path
    gateway: rig.Gateway
    upstream: int
    prometheus: int
    calls: int = 0

    def asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus}/api/v1/{path}", timeout=5) as reply:
            return json.load(reply)["data"]

    def scraped(self) -> bool:
        return bool(self.asked("query?query=up")["result"])

    def firing(self) -> set[str]:
        alerts = self.asked("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def faults(self, **fault: Any) -> None:
        url = f"http://127.0.0.1:{self.upstream}/_mock/faults"
        asked = urllib.request.Request(url, json.dumps(fault).encode(), {"Content-Type": JSON})
        urllib.request.urlopen(asked, timeout=5).close()

    async def call(self, method: str, target: str, body: bytes | None = None) -> None:
        """On a connection of its own, whatever comes of it."""
        with contextlib.suppress(Broken, TimeoutError, OSError):
            one = await opened(self.gateway.port)
            await one.call(method, target, [*FIELDS, ("Connection", "close")], body)
            await one.close()

    async def patch(self) -> None:
        """Each is about another conversation, so that it is looked up."""
        self.calls += 1
        await self.call("PATCH", rig.path(f"c{self.calls}"), BODY)


# --- the faults: each is caused when it is entered, and cured when it is left


@contextlib.asynccontextmanager
async def no_room_for_the_log(stage: Stage) -> AsyncIterator[None]:
    """Its file may not grow, as on a full disk."""
    pid = stage.gateway.process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (stage.gateway.audit.stat().st_size, most))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


@contextlib.asynccontextmanager
async def another_state(stage: Stage) -> AsyncIterator[None]:
    """The upstream's reply names another state than the one that was filled."""
    told = {"status": 200, "headers": [["content-type", JSON]]}
    body = '{"id": "p1", "state": "disconnected"}'
    stage.faults(method="PATCH", body=body, **told)
    yield


@contextlib.asynccontextmanager
async def failing(stage: Stage, **fault: Any) -> AsyncIterator[None]:
    stage.faults(times=100_000, **fault)
    try:
        yield
    finally:
        await restart_upstream(stage)


@contextlib.asynccontextmanager
async def upstream_down(stage: Stage) -> AsyncIterator[None]:
    os.kill(UPSTREAM[-1].pid, signal.SIGTERM)
    try:
        yield
    finally:
        await restart_upstream(stage)


@contextlib.asynccontextmanager
async def overload(stage: Stage) -> AsyncIterator[None]:
    """More calls than limits.max_in_flight, and an upstream that takes a second for each."""
    stage.faults(method="GET", path="/slow", hold=1.0, times=100_000)
    over = False

    async def again() -> None:
        while not over:
            await stage.call("GET", "/slow")

    callers = [asyncio.create_task(again()) for _ in range(3 * IN_FLIGHT)]
    try:
        yield
    finally:
        over = True
        await asyncio.gather(*callers)
        await restart_upstream(stage)


@contextlib.asynccontextmanager
async def a_bad_file(stage: Stage) -> AsyncIterator[None]:
    file = stage.work / "config.yaml"
    good = file.read_text()
    file.write_text("rules: [")
    await asyncio.to_thread(admin.post, "127.0.0.1", stage.gateway.admin, "/api/reload", {})
    try:
        yield
    finally:
        file.write_text(good)
        await asyncio.to_thread(admin.post, "127.0.0.1", stage.gateway.admin, "/api/reload", {})


@contextlib.asynccontextmanager
async def few_descriptors(stage: Stage) -> AsyncIterator[None]:
    """Two hundred idle clients, and hardly more descriptors."""
    pid = stage.gateway.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    idle = [await opened(stage.gateway.port) for _ in range(200)]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (stage.gateway.process.files() + 10, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for one in idle:
            await one.close()


Fault = Callable[[Stage], contextlib.AbstractAsyncContextManager[None]]

FAULTS: dict[str, tuple[str, Fault]] = {
    "GatewayAuditLogFailing": ("the log's file may not grow", no_room_for_the_log),
    "GatewayAuditLinesLost": ("the log's file may not grow", no_room_for_the_log),
    "GatewayConflicts": ("a reply names another state", another_state),
    "GatewayLookupsFail": (
        "look-ups are answered with 500",
        lambda it: failing(it, method="GET", status=500),
    ),
    "GatewayServerErrors": ("the upstream is down", upstream_down),
    "GatewayOverloaded": (f"{3 * IN_FLIGHT} callers, max_in_flight {IN_FLIGHT}", overload),
    "GatewayAddsLatency": ("look-ups take 0.8 s", lambda it: failing(it, method="GET", hold=0.8)),
    "GatewayReloadFailed": ("a bad file is reloaded", a_bad_file),
    "GatewayFewDescriptors": ("200 idle clients, room for 10 more", few_descriptors),
}

UPSTREAM: list[rig.Process] = []  # the mock that runs now


async def restart_upstream(stage: Stage) -> None:
    """Another mock has no faults left."""
    running = UPSTREAM.pop()
    running.running.terminate()
    await asyncio.to_thread(running.running.wait, rig.PATIENCE)
    UPSTREAM.append(begun(stage.work, stage.upstream))


def begun(work: Path, port: int) -> rig.Process:
    argv = (sys.executable, "-m", "gateway", "mock", "--port", str(port), "--rate-limit", "0")
    return rig.begin(work / "upstream.log", port, *argv)


@contextlib.contextmanager
def prometheus(work: Path, target: int) -> Iterator[int]:
    (port,) = rig.free_ports(1)
    folder = work / "prometheus"
    folder.mkdir()
    shipped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = shipped["scrape_configs"]
    job |= {"scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(shipped))
    rules = (ROOT / "deploy/prometheus/gateway.rules.yaml").read_text()
    (folder / "gateway.rules.yaml").write_text(shortened(rules))
    argv = (
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    with rig.process(work / "prometheus.log", port, *argv):
        yield port


async def until(seen: Callable[[], bool], seconds: float) -> float | None:
    """How long it took, None where it did not come."""
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        with contextlib.suppress(urllib.error.URLError):
            if await asyncio.to_thread(seen):
                return took
        await asyncio.sleep(0.2)
    return None


async def fired(stage: Stage, alert: str) -> list[object]:
    words, fault = FAULTS[alert]
    await until(lambda: not stage.firing(), TO_END)
    async with fault(stage):
        took = await until(lambda: alert in stage.firing(), TO_FIRE)
        beside = sorted(stage.firing() - {alert})
    ended = await until(lambda: not stage.firing(), TO_END)
    with_it = ", ".join(name.removeprefix("Gateway") for name in beside)
    return [alert, words, seconds(took), seconds(ended), with_it]


def seconds(took: float | None) -> str:
    return "never" if took is None else f"{took:.1f}"


async def all_fired(names: list[str]) -> bool:
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(rig.folder())
        (upstream,) = rig.free_ports(1)
        UPSTREAM.append(begun(work, upstream))
        stack.callback(lambda: UPSTREAM.pop().end())
        limits = {"max_in_flight": IN_FLIGHT, "overload_pause": "50ms"}
        gateway = stack.enter_context(rig.gateway(work, upstream, limits=limits))
        stage = Stage(work, gateway, upstream, stack.enter_context(prometheus(work, gateway.admin)))
        over = False

        async def background() -> None:
            while not over:
                await stage.patch()
                await asyncio.sleep(0.05)

        calling = asyncio.create_task(background())
        try:
            # What was counted before the first scrape has never increased.
            await until(stage.scraped, TO_FIRE)
            rows = [await fired(stage, name) for name in names]
        finally:
            over = True
            await calling
    rig.table(("alert", "fault", "fired after (s)", "over after (s)", "with it"), rows)
    return all("never" not in row for row in rows)


def scraped(count: int | None) -> list[object]:
    """`count` rules, None for those that are shipped."""
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(rig.folder())
        shipped = yaml.safe_load((ROOT / "config.yaml").read_text())["rules"]
        rules = shipped if count is None else [numbered(number) for number in range(count)]
        for rule in rules:
            rule.pop("cases", None)
        upstream = stack.enter_context(rig.upstream(work))
        gateway = stack.enter_context(rig.gateway(work, upstream, rules=rules))
        took, size = [], 0
        before = rig.processor_time(gateway.process.pid)
        for _ in range(SCRAPES):
            began = time.perf_counter()
            with urllib.request.urlopen(f"http://127.0.0.1:{gateway.admin}/metrics", timeout=30) as reply:
                size = len(reply.read())
            took.append(time.perf_counter() - began)
        spent = rig.processor_time(gateway.process.pid) - before
    return [
        len(rules),
        f"{rig.quantile(took, 0.5) * 1000:.1f}",
        f"{max(took) * 1000:.1f}",
        f"{spent / SCRAPES * 1000:.1f}",
        f"{size / 1024:.0f}",
    ]


def numbered(number: int) -> dict[str, Any]:
    """Short, for a file of 1 MiB has to hold them all."""
    repairs = [{"type": "encoding"}, {"type": "content_type"}]
    return {"name": f"rule-{number}", "match": {"path": f"/api/{number}/{{id}}"}, "repairs": repairs}


async def main(arguments: argparse.Namespace) -> int:
    if shutil.which("prometheus") is None:
        raise SystemExit("prometheus is not on the path: Debian's package is called that")
    names = [arguments.only] if arguments.only in FAULTS else list(FAULTS)
    good = arguments.only == "scrapes" or await all_fired(names)
    if arguments.only not in FAULTS:
        print()
        rows = [scraped(None), scraped(MANY)]
        rig.table(("rules", "scrape p50 (ms)", "max (ms)", "of a processor (ms)", "KiB"), rows)
    return int(not good)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=[*FAULTS, "scrapes"])
    rig.pinned_off_the_gateway()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise SystemExit(runner.run(main(parser.parse_args())))
