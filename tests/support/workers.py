"""A gateway of several workers, as processes, and which of them serves which connection."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.gateways import PARTICIPANT
from tests.support.mocking import RunningMock
from tests.support.processes import (
    GatewayProcess,
    Process,
    process,
    where_it_listens,
    write_configuration,
)
from tests.support.serving import Client, Reply, connect
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent.parent
BODY = b'{"attributes": {"a": 1}}'
# The kernel gives a connection to either of two workers: that one has none of so many is not to be expected.
MANY = 32
STARTED = 30.0  # seconds for several processes to begin on a busy machine


@dataclass(frozen=True, slots=True)
class Workers:
    gateway: GatewayProcess
    folder: Path

    @property
    def running(self) -> Process:
        return self.gateway.process

    @property
    def pids(self) -> dict[int, int]:
        """The process that each worker has been last, by its number."""
        found = re.findall(r"worker (\d+) is ready, as process (\d+)", self.running.said)
        return {int(number): int(pid) for number, pid in found}

    def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> int:
        pid = self.pids[number]
        os.kill(pid, how)
        return pid

    async def replaced(self, number: int, pid: int) -> None:
        await until(lambda: self.pids[number] != pid, STARTED)

    def admin(self) -> httpx.AsyncClient:
        return self.gateway.admin()

    async def metric(self, name: str) -> float:
        async with self.admin() as side:
            text = (await side.get("/metrics")).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        assert found is not None, text
        return float(found[1])

    async def rewrites(self, count: int = MANY) -> set[str]:
        """What as many new connections, to all workers, say of a call."""
        async with self.connections(count) as clients:
            return {(await patch(client)).headers[b"gateway-rewrite"].decode() for client in clients}

    @asynccontextmanager
    async def connections(self, count: int = MANY) -> AsyncIterator[list[Client]]:
        async with AsyncExitStack() as opened:
            yield [await opened.enter_async_context(connect(self.gateway.port)) for _ in range(count)]


async def patch(client: Client, conversation: str = "c1") -> Reply:
    target = PARTICIPANT.replace("/c1/", f"/{conversation}/").encode()
    await client.send(
        b"PATCH %b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer one\r\nContent-Length: %d\r\n\r\n%b"
        % (target, len(BODY), BODY)
    )
    return await client.reply()


def workers_of(upstream: RunningMock) -> set[bytes]:
    """Those whose PATCH it saw: each process has a name of its own in Via."""
    return {dict(entry.headers)[b"via"] for entry in upstream.ledger.of("PATCH")}


@asynccontextmanager
async def workers(folder: Path, upstream: str, count: int = 2, /, **changes: Any) -> AsyncIterator[Workers]:
    """`changes` are those of `gateways.document`."""
    write_configuration(folder, upstream, 0, 0, **changes)
    async with supervised(folder, count) as running:
        yield Workers(await where_it_listens(running, folder), folder)


@asynccontextmanager
async def supervised(
    folder: Path, count: int, *more: str, within: Sequence[str] = ()
) -> AsyncIterator[Process]:
    """Whatever becomes of it; its workers end with it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    async with process(
        str(count), *more, folder=folder, module="tests.support.supervised", within=within, PYTHONPATH=path
    ) as running:
        try:
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                running.signal(signal.SIGTERM)
                await running.exit()


def lives(pid: int) -> bool:
    """Not as a zombie, which nobody may be there to bury."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"


async def gone(pids: list[int]) -> None:
    await until(lambda: not any(map(lives, pids)))
