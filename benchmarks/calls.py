"""
What a call costs in Python: how often which function is called, or how many bytecode instructions it takes.

    .venv/bin/python -m benchmarks.calls [--workloads fill,varied,through] [--steps]

The whole gateway in this process with its own connections and pool, over transports that do nothing; each
look-up is cached before anything is counted. The counts are the same in each run, whatever else the
machine does, but for what is done once a second (the Date), and are for one version of CPython. A coroutine
that goes on after a wait is called once more. What the transports are called for counts as a call into C,
since uvloop's are C.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks import rig
from benchmarks.upstream import ANSWER
from gateway import app
from gateway.config import Settings
from gateway.process import lifetime
from gateway.server import connection
from gateway.server.connection import ClientConnection
from gateway.server.limits import ServerLimits
from gateway.upstream.connection import UpstreamConnection
from gateway.upstream.pool import Pool

CLIENTS = 32
CONVERSATIONS = 20 * CLIENTS
BATCH = 10 * CLIENTS
TURNS = 1000  # of the loop, until calls that have no answer never will
AGENTS = ("legacy/1.0", "Java/1.8.0_202", "okhttp/3.12.1", "python-requests/2.31.0")
TYPES = ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8")


class SilentTransport(asyncio.Transport):
    """Keeps what is written. Its socket is real, since the pool polls it."""

    def __init__(self) -> None:
        self._socket, self._peer = socket.socketpair()
        super().__init__({"peername": ("127.0.0.1", 50_000), "socket": self._socket})
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self._socket.close()
        self._peer.close()


class SilentPool(Pool):
    """Its connections have transports that do nothing."""

    def __init__(self) -> None:
        super().__init__("http", "127.0.0.1", 9)
        self.opened: list[tuple[UpstreamConnection, SilentTransport]] = []

    async def _open(self) -> UpstreamConnection:
        made, transport = self._make(), SilentTransport()
        made.connection_made(transport)
        made.counted = True
        self.opened.append((made, transport))
        return made


def fill(_: random.Random, number: int) -> bytes:
    """The same bytes each time."""
    return patch("c1", b'{"attributes": {"supervisorNote": "test"}}', "Content-Type: text/plain")


def varied(rng: random.Random, number: int) -> bytes:
    """Differs in every line that can."""
    body = b'{"attributes": {"supervisorNote": "%b"}}' % (b"n" * rng.randint(1, 200))
    return patch(
        f"c{number % CONVERSATIONS}",
        body,
        f"Content-Type: {rng.choice(TYPES)}",
        f"User-Agent: {rng.choice(AGENTS)}",
        f"traceparent: 00-{rng.randbytes(16).hex()}-{rng.randbytes(8).hex()}-01",
        token=f"caller-{number % 50}",
    )


def through(_: random.Random, number: int) -> bytes:
    """What no rule matches."""
    return b"GET /api/v2/users/me HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer normal\r\n\r\n"


WORKLOADS: dict[str, Callable[[random.Random, int], bytes]] = {
    "fill": fill,
    "varied": varied,
    "through": through,
}


def patch(conversation: str, body: bytes, *lines: str, token: str = "normal") -> bytes:
    head = (
        f"PATCH {rig.path(conversation)} HTTP/1.1",
        "Host: gateway.test",
        f"Authorization: Bearer {token}",
        *lines,
        f"Content-Length: {len(body)}",
        "",
        "",
    )
    return "\r\n".join(head).encode() + body


@dataclass(slots=True)
class Bench:
    """Clients of one gateway, and its upstream."""

    pool: SilentPool
    clients: list[tuple[ClientConnection, SilentTransport]]

    async def call(self, requests: Sequence[bytes]) -> None:
        for begin in range(0, len(requests), CLIENTS):
            await self._turn(requests[begin : begin + CLIENTS])

    async def _turn(self, requests: Sequence[bytes]) -> None:
        """One call of each client. Bytes come as the loop brings them: outside of any task."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        turns = itertools.count()

        def arrive() -> None:
            for (client, _), request in zip(self.clients, requests, strict=True):
                client.data_received(request)
            loop.call_soon(answer)

        def answer() -> None:
            for upstream, transport in self.pool.opened:
                if transport.written:
                    transport.written.clear()
                    upstream.data_received(ANSWER)
            if all(transport.written for _, transport in self.clients):
                loop.call_soon(over.set_result, None)
            elif next(turns) < TURNS:
                loop.call_soon(answer)
            else:
                over.set_exception(SystemExit("a call has no answer"))

        loop.call_soon(arrive)
        await over
        for _, transport in self.clients:
            if not transport.written[0].startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"not the upstream's answer: {transport.written[0]!r}")
            transport.written.clear()


class Where(NamedTuple):
    file: str
    function: str


@dataclass(slots=True)
class Counted:
    """Of this thread, but for what this file does."""

    found: Counter[Where] = field(default_factory=Counter)
    into_c: int = 0
    _places: dict[Any, Where | None] = field(default_factory=dict)

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """For sys.setprofile: calls."""
        if event == "call":
            where = self._where(frame)
            if where is not None:
                self.found[where] += 1
            elif frame.f_back is not None and self._where(frame.f_back) is not None:
                self.into_c += 1
        elif event == "c_call" and self._where(frame) is not None:
            self.into_c += 1

    def trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        """For sys.settrace: instructions."""
        where = self._where(frame)
        if where is None:
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        found = self.found

        def step(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            if event == "opcode":
                found[where] += 1
            return step

        return step

    def _where(self, frame: FrameType) -> Where | None:
        code = frame.f_code
        if code not in self._places:
            own = code.co_filename == __file__
            self._places[code] = None if own else Where(shortened(code.co_filename), code.co_qualname)
        return self._places[code]


def shortened(file: str) -> str:
    """From the package's folder on; of another file its last two parts."""
    parts = Path(file).parts
    return "/".join(parts[parts.index("gateway") if "gateway" in parts else -2 :])


def connected(
    gateway: app.Gateway, limits: ServerLimits
) -> Iterator[tuple[ClientConnection, SilentTransport]]:
    made = connection.build(limits, gateway.stats)
    config = uvicorn.Config(cast(Any, gateway.app), http=cast(Any, made), **lifetime.QUIET)
    config.load()
    state = ServerState()
    for _ in range(CLIENTS):
        client, transport = made(config, state, {}), SilentTransport()
        client.connection_made(transport)
        yield client, transport


async def counted(workload: str, steps: bool, work: Path) -> Counted:
    make, rng = WORKLOADS[workload], random.Random(1)
    chosen = rig.settings("http://127.0.0.1:9", str(work / f"{workload}.jsonl"), fill={"max_age": "60s"})
    settings, pool = Settings.model_validate(chosen), SilentPool()
    # The log's clock goes on by as much from line to line, so that each run makes as many new time stamps.
    wall = itertools.count(1_800_000_000.0, 0.000_05).__next__
    gateway = app.build(settings, transport=pool, wall=wall)
    await gateway.audit.begin()
    bench = Bench(pool, list(connected(gateway, lifetime.downstream_limits(settings))))
    for _ in range(2):
        await bench.call([make(rng, number) for number in range(CONVERSATIONS)])
    requests = [make(rng, number) for number in range(BATCH)]
    found = Counted()
    if steps:
        sys.settrace(found.trace)
    else:
        sys.setprofile(found.profile)
    try:
        await bench.call(requests)
    finally:
        sys.settrace(None)
        sys.setprofile(None)
    for client, _ in bench.clients:
        client.connection_lost(None)
    for upstream, _ in pool.opened:
        upstream.connection_lost(None)
    await gateway.close()
    for _, transport in (*bench.clients, *pool.opened):
        transport.close()
    return found


def by_file(found: Mapping[Where, int]) -> Counter[str]:
    files: Counter[str] = Counter()
    for where, count in found.items():
        files[where.file] += count
    return files


def a_call(count: int, steps: bool) -> str:
    return f"{count / BATCH:,.0f}" if steps else f"{count / BATCH:.2f}"


def report(workload: str, counted: Counted, steps: bool) -> None:
    what = "instructions" if steps else "calls"
    files = by_file(counted.found)
    rows = sorted(counted.found.items(), key=lambda row: (-files[row[0].file], row[0].file, -row[1]))
    rig.table(
        [workload, f"{what} a call"],
        [[f"{where.file}: {where.function}", a_call(count, steps)] for where, count in rows],
    )
    print()
    rig.table(
        [f"{workload}, by file", f"{what} a call"],
        [[file, a_call(count, steps)] for file, count in files.most_common()],
    )
    into_c = "" if steps else f", and {a_call(counted.into_c, steps)} calls into C"
    total = a_call(files.total(), steps)
    print(f"\n{workload}: {total} {what} a call in {len(files)} files{into_c}\n", flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--workloads", default=",".join(WORKLOADS))
    ap.add_argument("--steps", action="store_true", help="instructions, not calls")
    a = ap.parse_args()
    with rig.folder() as work:
        for workload in a.workloads.split(","):
            # Not by uvloop.run, which has a function of its own around the task.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                report(workload, runner.run(counted(workload, a.steps, work)), a.steps)


if __name__ == "__main__":
    main()
