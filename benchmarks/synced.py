"""
What `audit.sync: always` costs: filled PATCHes with it and without, by turns on the same machine.

    .venv/bin/python -m benchmarks.synced [--rounds 5] [--seconds 2] [--clients 1,20,200]

Two gateways, alike but for audit.sync, in front of one upstream; each client makes one call at a time. Prints
calls a second of both, the median of the rounds' ratios, and what a call takes. The log is where temporary
files are (TMPDIR): it is that disk which is measured. Bounded: rounds x seconds x 2 for each of --clients.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from pathlib import Path

import uvloop

from benchmarks import rig
from benchmarks.client import Tally, connection

TOKEN = ("Authorization", "Bearer normal")
BODY = b'{"attributes": {"supervisorNote": "test"}}'


async def client(port: int, number: int, end: float, tally: Tally) -> None:
    async with connection(port) as one:
        while time.monotonic() < end:
            if await tally.call(one, "PATCH", rig.path(f"c{number}"), [TOKEN], BODY) is None:
                return


async def loaded(port: int, clients: int, seconds: float) -> Tally:
    tally = Tally()
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(port, number, end, tally))
    return tally


def measured(never: int, always: int, clients: int, rounds: int, seconds: float) -> list[object]:
    """A row of the table: the two by turns, beginning with the other one each time."""
    tallies: dict[int, list[Tally]] = {never: [], always: []}
    for turn in range(rounds):
        for port in (never, always) if turn % 2 else (always, never):
            tallies[port].append(uvloop.run(loaded(port, clients, seconds)))
    rates = {port: [tally.good / seconds for tally in found] for port, found in tallies.items()}
    ratio = statistics.median(with_it / without for without, with_it in zip(*rates.values(), strict=True))
    both = {port: Tally([one for tally in found for one in tally.seconds]) for port, found in tallies.items()}
    bad = sum(tally.bad for found in tallies.values() for tally in found)
    return [
        clients,
        *(f"{statistics.median(rates[port]):,.0f}" for port in (never, always)),
        f"{ratio:.3f}",
        *(f"{both[port].ms(0.5)} / {both[port].ms(0.99)}" for port in (never, always)),
        bad,
    ]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=float, default=2)
    ap.add_argument("--clients", default="1,20,200")
    a = ap.parse_args()
    rig.pinned_off_the_gateway()
    with rig.folder() as work, contextlib.ExitStack() as held:
        upstream = held.enter_context(rig.upstream(work))
        ports = []
        for sync in ("never", "always"):
            place: Path = work / sync
            place.mkdir()
            audit = {"path": str(place / "rewrites.jsonl"), "sync": sync}
            ports.append(held.enter_context(rig.gateway(place, upstream, audit=audit)).port)
        rows = [
            measured(ports[0], ports[1], int(clients), a.rounds, a.seconds)
            for clients in a.clients.split(",")
        ]
    rig.table(
        ["clients", "never (calls/s)", "always", "ratio", "never p50 / p99 (ms)", "always", "failed"], rows
    )


if __name__ == "__main__":
    main()
