"""
Stops under load, again and again: what SIGTERM loses of the calls in flight, and SIGKILL of the audit log.

    .venv/bin/python -m benchmarks.stops [--terms 50] [--kills 30] [--clients 40] [--seed 1]

Clients keep their connections and PATCH without a state; where a connection ends they open another, until
none is accepted. The upstream notes each request as its first byte comes, and applies a PATCH when its last
one has. The gateway gets its signal amid that, up to half a second after the first PATCH, and is started
anew. Violations:

    either    a PATCH of which the upstream saw a byte is without its rewrite on the audit log (unlogged), or
              was applied twice
    SIGTERM   … without its outcome there, or its client has no whole 202 (lost)
              a reply is another than the upstream's 202
              the exit is another than 0, or there is none within 15 seconds

A call of which the upstream saw nothing, and whose connection ends, is none: it came too late to be read
("unread"). Calls and lines are joined by X-Request-Id. Exits with 1 where there was a violation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import rig
from benchmarks.client import Broken, Connection, opened
from benchmarks.upstream import CONVERSATION

HEAD_END = b"\r\n\r\n"
CLIENTS_PATIENCE = 20.0  # seconds
MAX_NOTE = 2000  # characters of a body
LATEST = 0.5  # seconds of load before the signal
SLOWEST = 0.03  # seconds that the upstream takes for a PATCH
COLUMNS = [
    "signal",
    "stops",
    "calls",
    "in flight then",
    "seen",
    "lost",
    "unread",
    "unlogged",
    "exits",
    "longest (s)",
    "violations",
]
CONTENT_TYPES = ("text/plain", "application/json", "application/x-www-form-urlencoded")


def reply(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


SHOWN = reply(b"200 OK", CONVERSATION)
ACCEPTED = reply(b"202 Accepted", b"{}")


@dataclass(slots=True)
class Seen:
    """What the upstream saw of PATCHes: of each the id, and of which all bytes have come."""

    rng: random.Random
    ids: set[str] = field(default_factory=set)
    applied: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.Protocol] = field(default_factory=set)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # while there is no connection

    def note(self, id: str) -> None:
        self.ids.add(id)
        self.first.set()

    def apply(self, id: str) -> None:
        (self.twice if id in self.applied else self.applied).add(id)

    def opened(self, connection: asyncio.Protocol) -> None:
        self.connections.add(connection)
        self.left.clear()

    def closed(self, connection: asyncio.Protocol) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self.left.set()


class Upstream(asyncio.Protocol):
    """A connection that has one request at a time, as the gateway's have."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._seen.opened(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(HEAD_END)
        if not end:
            return
        headers = fields(head)
        if len(body) < int(headers.get(b"content-length", b"0")):
            if head.startswith(b"PATCH "):
                self._seen.note(named(head))
            return
        self._received = b""
        if not head.startswith(b"PATCH "):
            self._transport.write(SHOWN)
            return
        self._seen.note(named(head))
        self._seen.apply(named(head))
        asyncio.get_running_loop().call_later(self._seen.rng.uniform(0, SLOWEST), self._accept)

    def _accept(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ACCEPTED)

    def connection_lost(self, error: Exception | None) -> None:
        self._seen.closed(self)
        # Part of a head; a GET's is nobody's call.
        if self._received and not self._received.startswith(b"G"):
            self._seen.note(named(self._received))


def fields(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in lines}


def named(head: bytes) -> str:
    """The id of a request; of one that was torn before it, what came of it, which no call is named."""
    return fields(head).get(b"x-request-id", head).decode("latin-1")


@contextlib.asynccontextmanager
async def upstream(seen: Seen) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(seen), "127.0.0.1", 0, backlog=1024)
    async with server:
        yield server.sockets[0].getsockname()[1]


@dataclass(slots=True)
class Load:
    """One gateway's clients, and what became of each call: its status, or 0 while there is none."""

    port: int
    turn: int
    rng: random.Random
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def unanswered(self) -> int:
        return sum(not status for status in self.statuses.values())

    async def client(self, number: int) -> None:
        """Until no connection is accepted."""
        while True:
            try:
                one = await opened(self.port, patience=CLIENTS_PATIENCE)
            except Broken:
                return
            with contextlib.suppress(Broken, TimeoutError):
                while await self._call(one, number):
                    pass
            await one.close()

    async def _call(self, one: Connection, number: int) -> bool:
        """Whether another call may follow on the connection."""
        id = f"{self.turn}-{number}-{len(self.statuses)}"
        self.statuses[id] = 0
        headers = [
            ("X-Request-Id", id),
            ("Authorization", f"Bearer caller-{number % 5}"),
            ("Content-Type", self.rng.choice(CONTENT_TYPES)),
        ]
        body = b'{"attributes": {"note": "%b"}}' % (b"n" * self.rng.randrange(MAX_NOTE))
        answer = await one.call("PATCH", rig.path(f"c{number}"), headers, body)
        self.statuses[id] = answer.status
        return (b"connection", b"close") not in answer.headers


class Stop(NamedTuple):
    """One gateway's end. `audit` has the events on the log of each id."""

    signal: signal.Signals
    exit: int | None
    seconds: float
    in_flight: int
    statuses: dict[str, int]
    seen: Seen
    audit: dict[str, set[str]]

    def lost(self) -> set[str]:
        answered = {id for id, status in self.statuses.items() if status == 202}
        return self.seen.ids - answered

    def unlogged(self, event: str) -> set[str]:
        return {id for id in self.seen.ids if event not in self.audit.get(id, ())}

    def violations(self) -> dict[str, Collection[str]]:
        found: dict[str, Collection[str]] = {
            "rewrite not on the log": self.unlogged("rewrite"),
            "applied twice": self.seen.twice,
        }
        if self.signal is signal.SIGTERM:
            found["lost"] = self.lost()
            found["outcome not on the log"] = self.unlogged("outcome")
            found["other reply"] = [
                f"{id}: {status}" for id, status in self.statuses.items() if status not in {0, 202}
            ]
            found["exit"] = [] if self.exit == 0 else [f"{self.exit}"]
        return {what: those for what, those in found.items() if those}


def events(audit: Path) -> dict[str, set[str]]:
    """By id. What SIGKILL left of a line's beginning, at the end, is none."""
    found: dict[str, set[str]] = {}
    for text in audit.read_bytes().splitlines(keepends=True):
        if text.endswith(b"\n"):
            line = json.loads(text)
            found.setdefault(line.get("request_id"), set()).add(line["event"])
    return found


def ended(running: subprocess.Popen[bytes]) -> int | None:
    try:
        return running.wait(rig.PATIENCE)
    except subprocess.TimeoutExpired:
        return None


async def stopped(number: signal.Signals, turn: int, clients: int, rng: random.Random, work: Path) -> Stop:
    """A gateway from its start to its end."""
    seen = Seen(rng)
    async with upstream(seen) as port:
        stack = contextlib.ExitStack()
        # In a thread: its upstream and its clients go on meanwhile.
        gateway = await asyncio.to_thread(stack.enter_context, rig.gateway(work, port))
        try:
            load = Load(gateway.port, turn, rng)
            async with asyncio.TaskGroup() as group:
                for client in range(clients):
                    group.create_task(load.client(client))
                await asyncio.wait_for(seen.first.wait(), rig.PATIENCE)
                await asyncio.sleep(rng.uniform(0, LATEST))
                in_flight = load.unanswered
                began = time.monotonic()
                gateway.process.running.send_signal(number)
                code = await asyncio.to_thread(ended, gateway.process.running)
                seconds = time.monotonic() - began
                if code is None:
                    await asyncio.to_thread(stack.close)
        finally:
            await asyncio.to_thread(stack.close)
        # What a gateway that has ended sent before is read to its end.
        await asyncio.wait_for(seen.left.wait(), rig.PATIENCE)
        audit = await asyncio.to_thread(events, gateway.audit)
        gateway.audit.unlink()
    return Stop(number, code, seconds, in_flight, load.statuses, seen, audit)


def report(stops: dict[signal.Signals, list[Stop]]) -> int:
    rows, broken = [], 0
    for number, those in stops.items():
        counts: Counter[str] = Counter()
        for stop in those:
            for what, found in stop.violations().items():
                counts[what] += len(found)
                for one in sorted(found)[:3]:
                    print(f"{what}: {one[:200]!r}")
        broken += counts.total()
        term = number is signal.SIGTERM
        rows.append(
            [
                number.name,
                len(those),
                f"{sum(len(stop.statuses) for stop in those):,}",
                f"{sum(stop.in_flight for stop in those):,}",
                f"{sum(len(stop.seen.ids) for stop in those):,}",
                sum(len(stop.lost()) for stop in those) if term else "-",
                sum(map(unread, those)),
                sum(len(stop.unlogged("rewrite")) for stop in those),
                told(Counter(stop.exit for stop in those)),
                f"{max((stop.seconds for stop in those), default=0.0):.1f}",
                told(counts),
            ]
        )
    rig.table(COLUMNS, rows)
    return broken


def unread(stop: Stop) -> int:
    return sum(not status and id not in stop.seen.ids for id, status in stop.statuses.items())


def told(counter: Counter[str] | Counter[int | None]) -> str:
    return ", ".join(f"{count}x {what}" for what, count in counter.most_common()) or "none"


async def run(a: argparse.Namespace, work: Path) -> dict[signal.Signals, list[Stop]]:
    rng = random.Random(a.seed)
    found: dict[signal.Signals, list[Stop]] = {signal.SIGTERM: [], signal.SIGKILL: []}
    for number, times in ((signal.SIGTERM, a.terms), (signal.SIGKILL, a.kills)):
        for turn in range(times):
            found[number].append(await stopped(number, turn, a.clients, rng, work))
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--terms", type=int, default=50)
    ap.add_argument("--kills", type=int, default=30)
    ap.add_argument("--clients", type=int, default=40)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    rig.pinned_off_the_gateway()
    with rig.folder() as work:
        broken = report(uvloop.run(run(a, work)))
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
