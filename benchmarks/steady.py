"""
Normal clients while something else goes on: how many of their calls succeed, and how fast.

    .venv/bin/python -m benchmarks.steady --name 'slow headers' -- slowhttptest … http://127.0.0.1:{port}/

Starts an upstream and a gateway with default limits, runs the command with {port} replaced, and prints a row
of the table that `slow.sh` makes. The command is ended by its id if it takes longer than --seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from benchmarks import rig
from benchmarks.client import Broken, Tally, connection

CLIENTS = 20
THINK = 0.05
PATIENCE = 16.0  # seconds: when real clients give up
BASELINE = 5.0
COLUMNS = [
    "attack",
    "seconds",
    "connections",
    "calls served",
    "p99 (ms)",
    "p99 without it",
    "errors",
    "counts",
]
TOKEN = ("Authorization", "Bearer normal")
BODY = b'{"attributes": {"supervisorNote": "test"}}'


async def client(port: int, number: int, going: Callable[[], bool], tally: Tally) -> None:
    """A PATCH that is filled, a GET that passes through, and again; on a new connection where one broke."""
    while going():
        try:
            async with connection(port, patience=PATIENCE) as one:
                while going():
                    await asyncio.sleep(THINK)
                    if await tally.call(one, "PATCH", rig.path(f"c{number}"), [TOKEN], BODY) is None:
                        break
                    if await tally.call(one, "GET", "/api/v2/users/me", [TOKEN]) is None:
                        break
        except Broken as error:
            tally.failures[str(error)] += 1
            await asyncio.sleep(THINK)


async def served(port: int, going: Callable[[], bool]) -> Tally:
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(port, number, going, tally))
    return tally


def during(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def attacked(gateway: rig.Gateway, command: list[str], seconds: float, log: Path) -> tuple[Tally, float]:
    began = time.monotonic()
    with log.open("wb") as said:
        attack = subprocess.Popen(
            [part.replace("{port}", str(gateway.port)) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            in_time = during(seconds)
            tally = uvloop.run(served(gateway.port, lambda: in_time() and attack.poll() is None))
        finally:
            lasted = time.monotonic() - began
            if attack.poll() is None:
                attack.terminate()
            attack.wait(rig.PATIENCE)
    return tally, lasted


def connections(log: Path) -> str:
    """The most that slowhttptest says it had open at a time."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    return str(max((int(found) for found in re.findall(r"connected:\s+(\d+)", plain)), default="-"))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--name", default="attack")
    ap.add_argument("--seconds", type=float, default=30)
    ap.add_argument("--head", action="store_true", help="print the table's head, and do nothing")
    ap.add_argument("command", nargs="*")
    a = ap.parse_args()
    if a.head:
        rig.table(COLUMNS, [])
        return
    rig.many_files()
    rig.pinned_off_the_gateway()
    with rig.folder() as work, rig.upstream(work) as port, rig.gateway(work, port) as gateway:
        before = uvloop.run(served(gateway.port, during(BASELINE)))
        log = work / "attack.log"
        tally, lasted = attacked(gateway, a.command, a.seconds, log)
        counts = gateway.counts()
        prefix = 'gateway_refusals_total{cause="'
        refused = [f"{counts[name]}x {name[len(prefix) : -2]}" for name in counts if name.startswith(prefix)]
        row = [
            a.name,
            f"{lasted:.0f}",
            connections(log),
            f"{tally.good} of {tally.good + tally.bad}",
            tally.ms(0.99),
            before.ms(0.99),
            tally.wrong(),
            ", ".join(refused) or "-",
        ]
    print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
