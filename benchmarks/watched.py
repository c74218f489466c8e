"""
What watching costs: filled PATCHes with the live page open and shut, with metrics scraped, with a line a
rewrite on the console, with the callers kept on disk; by turns on the same machine.

    .venv/bin/python -m benchmarks.watched [--rounds 5] [--seconds 2] [--rate 3000] [--clients 40]
    .venv/bin/python -m benchmarks.watched --open 60        # the page open all the time: memory
    .venv/bin/python -m benchmarks.watched --streams 10000  # event streams, opened as fast as can be

Each client keeps its connection; together they make `--rate` calls a second, or with 0 as many as they can.
Told is what the gateway's process takes of its processor for a call, and the median of the rounds' ratios to
those in which nobody watched. The page is a reader of /api/events, and where there is one, Chromium: of that
also how long it was between two frames, and how long a click on a call took to open it. Bounded: rounds x
seconds for each way to watch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import uvloop

from benchmarks import rig
from benchmarks.client import Broken, Connection, Tally, connection, opened

BODY = b'{"attributes": {"supervisorNote": "test"}}'
HEADERS = [("Authorization", "Bearer normal"), ("User-Agent", "legacy"), ("Content-Type", "text/plain")]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FRAMES = """() => {
  const gaps = window.gaps = [];
  let last = performance.now();
  const next = (now) => { gaps.push(now - last); last = now; requestAnimationFrame(next); };
  requestAnimationFrame(next);
}"""
OPENED = """() => new Promise((told) => {
  const began = performance.now();
  document.querySelector("#calls button")?.click();
  requestAnimationFrame(() => setTimeout(() => told(performance.now() - began)));
})"""


async def client(port: int, number: int, end: float, every: float, tally: Tally) -> None:
    async with connection(port) as one:
        due = time.monotonic() + every * number / 40
        while (now := time.monotonic()) < end:
            if due > now:
                await asyncio.sleep(due - now)
            due += every
            if await tally.call(one, "PATCH", rig.path(f"c{number}"), HEADERS, BODY) is None:
                return


async def loaded(port: int, clients: int, seconds: float, rate: float) -> Tally:
    tally = Tally()
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(port, number, end, clients / rate if rate else 0.0, tally))
    return tally


# --- ways to watch


Watching: TypeAlias = Callable[[rig.Gateway], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def nobody(_: rig.Gateway) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def until_over(task: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@dataclass(slots=True)
class Reader:
    """Of the event stream, as the page has it."""

    bytes: int = 0
    events: int = 0

    @asynccontextmanager
    async def __call__(self, gateway: rig.Gateway) -> AsyncIterator[None]:
        async with connection(gateway.admin) as one:
            one.send("GET", "/api/events")
            assert (await one.head()).status == 200
            async with until_over(asyncio.create_task(self._read(one))):
                yield

    async def _read(self, one: Connection) -> None:
        while piece := await one.reader.read(2**18):
            self.bytes += len(piece)
            self.events += piece.count(b"event: calls")


@asynccontextmanager
async def scraper(gateway: rig.Gateway) -> AsyncIterator[None]:
    """/metrics once a second, ten times as often as is usual."""

    async def scrape() -> None:
        async with connection(gateway.admin) as one:
            while True:
                assert (await one.call("GET", "/metrics")).status == 200
                await asyncio.sleep(1)

    async with until_over(asyncio.create_task(scrape())):
        yield


@dataclass(slots=True)
class Browser:
    """A tab of headless Chromium. Times in milliseconds, memory in MiB."""

    tab: Any
    gaps: list[float] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)
    heap: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def __call__(self, gateway: rig.Gateway) -> AsyncIterator[None]:
        await self.tab.goto(f"http://127.0.0.1:{gateway.admin}/")
        await self.tab.wait_for_function("() => document.querySelector('#state').textContent === 'live'")
        await self.tab.evaluate(FRAMES)
        try:
            async with until_over(asyncio.create_task(self._click())):
                yield
            self.gaps += await self.tab.evaluate("() => window.gaps")
            self.heap.append(await self.tab.evaluate("() => performance.memory.usedJSHeapSize / 2**20"))
        finally:
            await self.tab.goto("about:blank")

    async def _click(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.clicks.append(await self.tab.evaluate(OPENED))

    def told(self) -> str:
        def ms(values: list[float], share: float) -> str:
            return f"{rig.quantile(values, share):.0f}"

        return (
            f"Chromium: {len(self.gaps)} frames, ms between two: p50 {ms(self.gaps, 0.5)}, "
            f"p99 {ms(self.gaps, 0.99)}, most {ms(self.gaps, 1)}; a call opened in ms: "
            f"p50 {ms(self.clicks, 0.5)}, most {ms(self.clicks, 1)}; "
            f"heap {self.heap[0]:.0f} MiB at first, {self.heap[-1]:.0f} at last"
        )


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser | None]:
    """None where there is no browser, or nothing to drive it."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        yield None
        return
    if CHROMIUM is None:
        yield None
        return
    async with async_playwright() as driver:
        options = ["--no-sandbox", "--enable-precise-memory-info"]
        running = await driver.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield Browser(await running.new_page())
        finally:
            await running.close()


# --- what is measured


class Way(NamedTuple):
    name: str
    gateway: rig.Gateway
    watching: Watching


@dataclass(slots=True)
class Seen:
    tallies: list[Tally] = field(default_factory=list)
    micros: list[float] = field(default_factory=list)  # of the gateway's processor, for a call

    @property
    def calls(self) -> Tally:
        return Tally([one for tally in self.tallies for one in tally.seconds])


async def by_turns(ways: list[Way], a: argparse.Namespace) -> None:
    found = {way.name: Seen() for way in ways}
    for turn in range(a.rounds + 1):
        for way in ways[::-1] if turn % 2 else ways:
            async with way.watching(way.gateway):
                before = rig.processor_time(way.gateway.process.pid)
                tally = await loaded(way.gateway.port, a.clients, a.seconds, a.rate)
                took = rig.processor_time(way.gateway.process.pid) - before
            if turn:  # the first warms up
                found[way.name].tallies.append(tally)
                found[way.name].micros.append(took / max(1, tally.good) * 1e6)
    alone = found[ways[0].name]
    rows = []
    for name, seen in found.items():
        ratios = [one / other for one, other in zip(seen.micros, alone.micros, strict=True)]
        rates = [tally.good / a.seconds for tally in seen.tallies]
        rows.append(
            [
                name,
                f"{statistics.median(rates):,.0f}",
                f"{statistics.median(seen.micros):.0f}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
                f"{seen.calls.ms(0.5)} / {seen.calls.ms(0.99)}",
                sum(tally.bad for tally in seen.tallies),
            ]
        )
    rig.table(["", "calls/s", "µs a call", "ratio", "of the rounds", "p50 / p99 (ms)", "failed"], rows)


async def kept_open(gateway: rig.Gateway, watching: Watching, a: argparse.Namespace) -> None:
    with rig.sampled(gateway.process.pid, a.open / 12) as samples:
        async with watching(gateway):
            tally = await loaded(gateway.port, a.clients, a.open, a.rate)
    rig.table(["seconds", "MiB"], [[f"{sample.at:.0f}", f"{sample.mib:.1f}"] for sample in samples])
    print(f"{tally.good:,} calls, failed: {tally.bad}")


async def flooded(gateway: rig.Gateway, a: argparse.Namespace) -> None:
    """Streams one after the other, all left open, while the clients call and somebody asks for /readyz."""
    outcomes: Counter[str] = Counter()
    ready: list[float] = []

    async def one_stream(number: int, held: list[Connection], gate: asyncio.Semaphore) -> None:
        async with gate:
            try:
                one = await opened(gateway.admin, number=number, patience=10)
                held.append(one)
                one.send("GET", "/api/events")
                outcomes[str((await asyncio.wait_for(one.head(), 10)).status)] += 1
            except (Broken, OSError, TimeoutError) as error:
                outcomes[type(error).__name__] += 1

    async def probe() -> None:
        while True:
            began = time.perf_counter()
            async with connection(gateway.admin) as one:
                assert (await one.call("GET", "/readyz")).status == 200
            ready.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.1)

    held: list[Connection] = []
    gate = asyncio.Semaphore(50)
    before = gateway.process.rss()
    load = asyncio.create_task(loaded(gateway.port, a.clients, a.seconds * 5, a.rate))
    async with until_over(asyncio.create_task(probe())):
        began = time.monotonic()
        await asyncio.gather(*[one_stream(number, held, gate) for number in range(a.streams)])
        took = time.monotonic() - began
        files, after = gateway.process.files(), gateway.process.rss()
        tally = await load
    print(f"{a.streams:,} streams asked for in {took:.1f} s: {dict(outcomes)}; files open: {files}")
    print(f"memory: {before / rig.MIB:.1f} MiB before, {after / rig.MIB:.1f} with them")
    print(f"/readyz: {len(ready)} times, ms: p50 {rig.quantile(ready, 0.5):.1f}, most {max(ready):.1f}")
    print(f"calls: {tally.good / (a.seconds * 5):,.0f}/s, p99 {tally.ms(0.99)} ms, failed: {tally.bad}")
    for one in held:
        one.reset()


async def measured(work: Path, a: argparse.Namespace) -> None:
    async with AsyncExitStack() as held:
        upstream = held.enter_context(rig.upstream(work))

        def gateway(name: str, **sections: Any) -> rig.Gateway:
            (work / name).mkdir()
            sections = {"log": {"rewrites": False}, **sections}
            return held.enter_context(rig.gateway(work / name, upstream, **sections))

        plain = gateway("plain")
        if a.streams:
            await flooded(plain, a)
            return
        browser = await held.enter_async_context(chromium())
        if a.open:
            await kept_open(plain, browser or Reader(), a)
        else:
            reader = Reader()
            ways = [
                Way("nobody watches", plain, nobody),
                Way("the page's events are read", plain, reader),
                Way("/metrics each second", plain, scraper),
                Way("a line each rewrite (log.rewrites)", gateway("console", log={"rewrites": True}), nobody),
                Way(
                    "callers in SQLite",
                    gateway("callers", callers={"path": str(work / "callers.sqlite3")}),
                    nobody,
                ),
            ]
            if browser is not None:
                ways.insert(2, Way("the page in Chromium", plain, browser))
            await by_turns(ways, a)
            print(f"events: {reader.events}, {reader.bytes / max(1, reader.events) / 1024:.1f} KiB each")
        if browser is not None:
            print(browser.told())


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=float, default=2)
    ap.add_argument("--rate", type=float, default=3000)
    ap.add_argument("--clients", type=int, default=40)
    ap.add_argument("--open", type=float, default=0)
    ap.add_argument("--streams", type=int, default=0)
    a = ap.parse_args()
    rig.many_files()
    rig.pinned_off_the_gateway()
    with rig.folder() as work:
        uvloop.run(measured(work, a))


if __name__ == "__main__":
    main()
