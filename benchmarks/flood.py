"""
A flood of distinct conversation ids and of distinct credentials: everything that is kept stays bounded.

    .venv/bin/python -m benchmarks.flood --calls 100000

The whole gateway in this process, without sockets. Each flood fills one of the tables: readings and
generations (ids; callers), accepted values (explicit ones), pauses (429 with Retry-After). Memory is this
process's; past `max_entries` it must not grow any more. What was chosen from readings and the look-ups in
flight are private attributes, since they have no public name.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import uvloop

from benchmarks import rig
from gateway import app
from gateway.config import Settings
from gateway.http.headers import Fields, Header, Headers
from gateway.http.slots import Values
from gateway.proxy.lifecycle import Lifecycle
from gateway.proxy.tunnel import ByteStream
from gateway.server.write_flow import may_hold_one
from gateway.state.memory import MemoryStore, Sizes
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, nobody

JSON: list[Header] = [(b"content-type", b"application/json")]
PEOPLE = json.dumps({"participants": [{"id": "p1", "state": "connected", "attributes": {}}]}).encode()
WAIT = [*JSON, (b"retry-after", b"60")]
UNFILLED = b'{"attributes": {"supervisorNote": "test"}}'
EXPLICIT = b'{"state": "connected", "attributes": {}}'
FLAT = 10.0  # MiB that a table already full may still grow by


class Upstream:
    """A transport: GETs show one participant or are refused, all else is accepted."""

    limited = False

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        values: Values = (),
        before_send: BeforeSend | None = None,
        caller: Callable[[], str] = nobody,
    ) -> Reply:
        if before_send is not None:
            commit = before_send()
            if commit is not None:
                commit()
        # Else each call would be over before the next begins.
        await asyncio.sleep(0)
        if method != b"GET":
            return Reply.of(202, Fields(JSON), b"{}")
        return Reply.of(429, Fields(WAIT), b"{}") if self.limited else Reply.of(200, Fields(JSON), PEOPLE)

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass


class Call:
    """A gateway.proxy.client.ClientRequest, and its body. It keeps the status of the reply alone."""

    method = "PATCH"
    version = "1.1"
    address = "127.0.0.1"
    certificate = b""
    upgrade: bytes | None = None
    cancel_on_disconnect = False
    holds_connection = staticmethod(may_hold_one)
    trace_id = ""
    gone = False
    ended = False
    status = 0

    def __init__(self, target: bytes, headers: Fields, body: bytes) -> None:
        self.target = target
        self.headers = headers
        self.values: tuple[bytes, ...] = ()
        self.task: Any = None
        self._body = body

    @property
    def body(self) -> Call:
        return self

    def whole(self) -> bytes | None:
        self.ended = True
        return self._body

    async def read(self) -> bytes:
        raise AssertionError("the body is whole")

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        self.status = status
        return True

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        self.status = status

    async def write(self, piece: bytes, more: bool) -> None:
        pass

    def switch(self, headers: Headers) -> ByteStream:
        raise AssertionError("no upgrade was offered")


class Kept(NamedTuple):
    store: Sizes
    chosen: int
    in_flight: int
    locks: int


@dataclass(slots=True)
class Flood:
    gateway: app.Gateway
    lifecycle: Lifecycle
    store: MemoryStore
    statuses: dict[int, int]
    locks: int = 0

    async def call(self, conversation: str, caller: str, body: bytes) -> None:
        target = rig.path(conversation).encode()
        headers = Fields(
            [
                (b"host", b"gateway.test"),
                (b"authorization", b"Bearer " + caller.encode()),
                (b"content-length", b"%d" % len(body)),
            ]
        )
        call = Call(target, headers, body)
        await self.lifecycle.serve(call)
        self.statuses[call.status] = self.statuses.get(call.status, 0) + 1
        self.locks = max(self.locks, len(self.gateway.main.locks))

    async def run(self, name: str, calls: int, at_once: int, body: bytes) -> None:
        numbers: Iterator[int] = iter(range(calls))

        async def some() -> None:
            for number in numbers:
                one = f"{name}-{number}"
                await self.call("c1" if "callers" in name else one, one if "callers" in name else "one", body)

        self.locks = 0
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(some())

    def kept(self) -> Kept:
        lookups = self.gateway.main.lookups
        return Kept(
            self.store.sizes(),
            len(lookups._chosen_from),
            len(lookups._in_flight),
            len(self.gateway.main.locks),
        )


def memory() -> float:
    gc.collect()
    return rig.resident(os.getpid()) / rig.MIB


async def measure(calls: int, at_once: int, max_entries: int) -> bool:
    # The audit log is written, and thrown away by the kernel.
    chosen = rig.settings("http://127.0.0.1:9", "/dev/null", state_cache={"max_entries": max_entries})
    settings = Settings.model_validate(chosen)
    upstream = Upstream()
    store = MemoryStore(settings.state_cache.max_entries, settings.state_cache.max_bytes, time.monotonic)
    gateway = app.build(settings, transport=upstream, store=store)
    assert isinstance(gateway.app, Lifecycle)
    flood = Flood(gateway, gateway.app, store, {})
    await flood.run("warm", 2000, at_once, UNFILLED)
    floods = {
        "ids": UNFILLED,
        "callers": UNFILLED,
        "explicit values": EXPLICIT,
        "limited callers": UNFILLED,
    }
    rows: list[list[object]] = []
    flat = True
    for name, body in floods.items():
        upstream.limited = name == "limited callers"
        began = time.monotonic()
        at = [memory()]
        # The first part fills the table, the second and third only replace what is in it.
        for part, size in enumerate((3 * max_entries, (calls - 3 * max_entries) // 2)):
            await flood.run(f"{name} {part}", size, at_once, body)
            at.append(memory())
        most = flood.locks
        await flood.run(f"{name} 2", calls - 3 * max_entries - (calls - 3 * max_entries) // 2, at_once, body)
        at.append(memory())
        kept = flood.kept()
        growth = at[-1] - at[1]
        flat = flat and growth <= FLAT and max(*kept.store, kept.chosen) <= max_entries
        flat = flat and not kept.in_flight + kept.locks
        rate = calls / (time.monotonic() - began)
        figures = " → ".join(f"{one:.0f}" for one in at)
        rows.append([name, calls, f"{rate:.0f}", figures, f"{growth:+.1f}", *kept.store, kept.chosen,
                     f"{max(most, flood.locks)}, {kept.locks}", kept.in_flight])  # fmt: skip
    rig.table(
        [
            "flood of distinct",
            "calls",
            "calls/s",
            "resident MiB: before → full → half → all",
            "since full",
            "readings",
            "generations",
            "accepted values",
            "pauses",
            "chosen from",
            "locks: most, after",
            "look-ups in flight",
        ],
        rows,
    )
    counts = flood.gateway.counts
    print(
        f"\nReplies: {flood.statuses}. Counts: { {' '.join(key): count for key, count in counts.items()} }."
    )
    print(f"Every table stays within max_entries ({max_entries}), memory flat: {'yes' if flat else 'NO'}.")
    await flood.gateway.close()
    return flat


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        "--calls", type=int, default=100_000, help="of each flood, each with another id or caller"
    )
    ap.add_argument("--at-once", type=int, default=200)
    ap.add_argument("--max-entries", type=int, default=10_000, help="state_cache.max_entries")
    a = ap.parse_args()
    if a.calls < 4 * a.max_entries:
        raise SystemExit("--calls must be at least four times --max-entries: else nothing overflows")
    raise SystemExit(0 if uvloop.run(measure(a.calls, a.at_once, a.max_entries)) else 1)


if __name__ == "__main__":
    main()
