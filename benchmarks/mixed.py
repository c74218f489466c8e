"""
Minutes of everything at once, and the gateway's memory every few seconds: it must end flat.

    .venv/bin/python -m benchmarks.mixed --minutes 10

Fills with small and large bodies, explicit writes, reads that are learned from, calls that pass through,
uploads, downloads, clients that leave amid a head, a body or a reply, slow readers, a connection for each
call, tunnels. The audit log is rotated away every half minute, so that it fills no disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import uvloop

from benchmarks import rig
from benchmarks.client import Broken, Connection, Tally, connection, opened

SMALL = b'{"attributes": {"supervisorNote": "test"}}'
LARGE = b'{"attributes": {"supervisorNote": "%s"}}' % (b"x" * 65_000)
EXPLICIT = b'{"state": "connected", "attributes": {}}'
SINK = bytes(300_000)
CONVERSATIONS, CALLERS = 500, 20  # as many readings as are kept: full after some minutes
THINK = 0.03  # seconds between two calls of a client, at most
WARM = 1 / 3  # of the time, before the slope is taken
ROTATED = 30.0


@dataclass(slots=True)
class Load:
    port: int
    end: float
    tallies: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    left: int = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for kind, (clients, act) in KINDS.items():
                for _ in range(clients):
                    group.create_task(self._client(self.tallies[kind], act))

    async def _client(self, tally: Tally, act: Act) -> None:
        while time.monotonic() < self.end:
            try:
                # A new connection now and then.
                async with connection(self.port) as one:
                    for _ in range(random.randint(1, 200)):
                        await asyncio.sleep(random.uniform(0, THINK))
                        if time.monotonic() > self.end or not await act(self, one, tally):
                            break
            except (Broken, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
                tally.failures[str(error) or type(error).__name__] += 1


Act = Callable[[Load, Connection, Tally], Awaitable[bool]]


def caller() -> tuple[str, str]:
    return "Authorization", f"Bearer caller{random.randrange(CALLERS)}"


def conversation() -> str:
    return f"c{random.randrange(CONVERSATIONS)}"


async def fill(load: Load, one: Connection, tally: Tally) -> bool:
    body = LARGE if random.random() < 0.05 else SMALL
    headers = [caller(), ("Content-Type", "text/plain")]
    return await tally.call(one, "PATCH", rig.path(conversation()), headers, body) is not None


async def explicit(load: Load, one: Connection, tally: Tally) -> bool:
    return await tally.call(one, "PATCH", rig.path(conversation()), [caller()], EXPLICIT) is not None


async def read(load: Load, one: Connection, tally: Tally) -> bool:
    return await tally.call(one, "GET", f"{rig.CONVERSATIONS}/{conversation()}", [caller()]) is not None


async def pass_through(load: Load, one: Connection, tally: Tally) -> bool:
    if random.random() < 0.2:
        return await tally.call(one, "POST", "/sink", [caller()], SINK) is not None
    return await tally.call(one, "GET", "/api/v2/users/me", [caller()]) is not None


async def one_call(load: Load, one: Connection, tally: Tally) -> bool:
    await tally.call(one, "PATCH", rig.path(conversation()), [caller(), ("Connection", "close")], SMALL)
    return False


async def download(load: Load, one: Connection, tally: Tally) -> bool:
    return await tally.call(one, "GET", f"/bulk/{random.randrange(2 * rig.MIB)}") is not None


async def leave(load: Load, one: Connection, tally: Tally) -> bool:
    """Amid the head, amid the body, before the reply, or amid it."""
    way = random.randrange(4)
    if way == 0:
        one.writer.write(b"PATCH " + rig.path(conversation()).encode())
    elif way == 1:
        one.send("PATCH", rig.path(conversation()), [caller(), ("Content-Length", "100")])
        one.writer.write(SMALL)
    elif way == 2:
        one.send("PATCH", rig.path(conversation()), [caller()], SMALL)
    else:
        one.send("GET", "/bulk/10000000")
    await asyncio.sleep(random.choice((0, 0.001, random.uniform(0, 0.2))))
    one.reset()
    load.left += 1
    return False


async def read_slowly(load: Load, _: Connection, tally: Tally) -> bool:
    """100 kB/s for some seconds, then gone."""
    one = await opened(load.port, buffer=2**14)
    one.send("GET", "/bulk/20000000")
    tally.statuses[(await one.head()).status] += 1
    end = min(load.end, time.monotonic() + random.uniform(1, 10))
    while time.monotonic() < end:
        await one.reader.readexactly(10_000)
        await asyncio.sleep(0.1)
    one.reset()
    return False


async def tunnel(load: Load, one: Connection, tally: Tally) -> bool:
    one.send("GET", "/echo", [("Connection", "upgrade"), ("Upgrade", "echo")])
    reply = await one.head()
    tally.statuses[reply.status] += 1
    for _ in range(random.randrange(50) if reply.status == 101 else 0):
        said = os.urandom(random.randrange(1, 5000))
        one.writer.write(said)
        async with asyncio.timeout(10):
            if await one.reader.readexactly(len(said)) != said:
                raise Broken("another echo")
        await asyncio.sleep(random.uniform(0, THINK))
    return False


KINDS: dict[str, tuple[int, Act]] = {
    "fills": (16, fill),
    "explicit writes": (4, explicit),
    "reads": (4, read),
    "passed through": (6, pass_through),
    "a connection each": (4, one_call),
    "downloads": (2, download),
    "slow readers": (8, read_slowly),
    "tunnels": (4, tunnel),
    "clients that leave": (4, leave),
}


async def rotated(gateway: rig.Gateway) -> None:
    while True:
        await asyncio.sleep(ROTATED)
        old = gateway.audit.with_suffix(".old")
        with contextlib.suppress(FileNotFoundError):
            gateway.audit.rename(old)
            old.unlink()


async def run(gateway: rig.Gateway, seconds: float) -> Load:
    load = Load(gateway.port, time.monotonic() + seconds)
    rotating = asyncio.create_task(rotated(gateway))
    try:
        await load.run()
    finally:
        rotating.cancel()
    return load


def slope(samples: list[rig.Sample]) -> float:
    """KiB a minute, by least squares, past the warm-up."""
    late = [one for one in samples if one.at >= WARM * samples[-1].at]
    if len(late) < 3:
        return float("nan")
    return statistics.linear_regression([one.at for one in late], [one.mib for one in late])[0] * 60 * 1024


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--minutes", type=float, default=10)
    ap.add_argument("--every", type=float, default=5, help="seconds between two looks at the memory")
    a = ap.parse_args()
    rig.many_files()
    rig.pinned_off_the_gateway()
    with rig.folder() as work, rig.upstream(work) as port, rig.gateway(work, port) as gateway:
        with rig.sampled(gateway.process.pid, a.every) as samples:
            load = uvloop.run(run(gateway, a.minutes * 60))
        files = gateway.process.files()
    rows = [
        [
            kind,
            len(tally.seconds) or sum(tally.statuses.values()),
            tally.ms(0.5),
            tally.ms(0.99),
            tally.wrong(),
        ]
        for kind, tally in load.tallies.items()
        if tally.statuses or tally.failures
    ]
    rig.table(["load", "replies", "p50 (ms)", "p99 (ms)", "errors"], rows)
    print(f"clients that left: {load.left}\n")
    mib = [one.mib for one in samples]
    warm = next(one.mib for one in samples if one.at >= WARM * samples[-1].at)
    rig.table(
        ["minutes", "first (MiB)", "after a third", "at most", "at last", "slope (KiB/min)", "files"],
        [[f"{samples[-1].at / 60:.1f}", *(f"{one:.1f}" for one in (mib[0], warm, max(mib), mib[-1])),
          f"{slope(samples):+.0f}", files]],
    )  # fmt: skip


if __name__ == "__main__":
    main()
