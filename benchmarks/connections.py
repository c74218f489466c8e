"""
How many clients one gateway holds: idle keep-alive ones, and active ones beside them.

    .venv/bin/python -m benchmarks.connections --idle 10000 --active 2000

Each idle client has made one call and makes another at the end, to show that it was held. The active ones
PATCH (filled), together `--rate` times a second. Memory is what the gateway grew by, per connection.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Iterable

import uvloop

from benchmarks import rig
from benchmarks.client import Broken, Connection, Tally, opened

AT_ONCE = 100  # connections that are being opened, or checked, at a time
BODY = b'{"attributes": {"supervisorNote": "test"}}'
TOKEN = ("Authorization", "Bearer abcdefghijklmnopqrstuvwxyz")
WARM = 2.0  # seconds of load before memory is read for the first time


async def held(port: int, numbers: Iterable[int], tally: Tally) -> list[Connection]:
    """Open connections, each after one call."""
    few = asyncio.Semaphore(AT_ONCE)
    connections: list[Connection] = []

    async def hold(number: int) -> None:
        async with few:
            try:
                one = await opened(port, number=number)
            except Broken as error:
                tally.failures[str(error)] += 1
                return
            connections.append(one)
            await tally.call(one, "GET", "/api/v2/users/me", [TOKEN])

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(hold(number))
    return connections


async def called_again(connections: list[Connection]) -> Tally:
    few = asyncio.Semaphore(AT_ONCE)
    tally = Tally()

    async def again(one: Connection) -> None:
        async with few:
            await tally.call(one, "GET", "/api/v2/users/me", [TOKEN])

    async with asyncio.TaskGroup() as group:
        for one in connections:
            group.create_task(again(one))
    return tally


async def active(connections: list[Connection], rate: float, seconds: float) -> Tally:
    """Each PATCHes at its own steady pace, whether or not the others get their replies."""
    tally = Tally()
    period = len(connections) / rate
    end = time.monotonic() + seconds

    async def patch(number: int, one: Connection) -> None:
        due = time.monotonic() + random.uniform(0, period)
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            target = rig.path(f"c{number % 1000}")
            if await tally.call(one, "PATCH", target, [TOKEN, ("Content-Type", "text/plain")], BODY) is None:
                return
            due = max(due + period, time.monotonic())

    async with asyncio.TaskGroup() as group:
        for number, one in enumerate(connections):
            group.create_task(patch(number, one))
    return tally


async def measure(gateway: rig.Gateway, idle: int, many: int, rate: float, seconds: float) -> None:
    opening, rss = Tally(), gateway.process.rss
    warm = await held(gateway.port, range(20), opening)
    await active(warm, min(rate, 500), WARM)
    before = rss()
    sleeping = await held(gateway.port, range(20, 20 + idle), opening)
    with_idle = rss()
    awake = await held(gateway.port, range(20 + idle, 20 + idle + many), opening)
    tally = await active(awake, rate, seconds)
    with_both = rss()
    files = gateway.process.files()
    again = await called_again(sleeping)
    rig.table(
        ["figure", "value"],
        [
            ["idle clients held / asked for", f"{again.good} / {idle}"],
            ["active clients / asked for", f"{len(awake)} / {many}"],
            ["file descriptors of the gateway", files],
            ["resident before, with idle, with both (MiB)",
             ", ".join(f"{one / rig.MIB:.1f}" for one in (before, with_idle, with_both))],
            ["KiB per idle connection", f"{(with_idle - before) / 1024 / max(1, idle):.2f}"],
            ["KiB per active connection", f"{(with_both - with_idle) / 1024 / max(1, many):.2f}"],
            ["PATCHes a second (asked for)", f"{tally.good / seconds:.0f} ({rate:.0f})"],
            ["p50 / p99 of the PATCHes (ms)", f"{tally.ms(0.5)} / {tally.ms(0.99)}"],
            ["errors: connecting; PATCHes; idle ones afterwards",
             f"{opening.wrong()}; {tally.wrong()}; {again.wrong()}"],
        ],
    )  # fmt: skip
    for one in (*warm, *sleeping, *awake):
        one.writer.transport.abort()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--idle", type=int, default=10_000)
    ap.add_argument("--active", type=int, default=2_000)
    ap.add_argument("--rate", type=float, default=1_000, help="PATCHes a second, of all active ones")
    ap.add_argument("--seconds", type=float, default=30)
    a = ap.parse_args()
    most = rig.many_files()
    if a.idle + a.active + 500 > most:
        raise SystemExit(
            f"{a.idle + a.active} connections need more than the {most} files this user may open"
        )
    rig.pinned_off_the_gateway()
    # Idle ones must not be closed for their idleness while the others are measured.
    limits = {"keep_alive": "10m", "max_connections": a.idle + a.active + 100}
    with rig.folder() as work, rig.upstream(work) as port, rig.gateway(work, port, limits=limits) as gateway:
        uvloop.run(measure(gateway, a.idle, a.active, a.rate, a.seconds))


if __name__ == "__main__":
    main()
