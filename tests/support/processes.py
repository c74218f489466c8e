"""`gateway …` as a process of its own: what it says, at which ports it listens, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.support.clients import bare_client
from tests.support.gateways import document
from tests.support.ports import unused_ports
from tests.support.waiting import PATIENCE, until

# Seconds for an interpreter that imports it all, beside others that do, on a machine that is busy: no timeout
# of the gateway's runs meanwhile that this could hide.
START = 60.0


class Process:
    """What it says is collected as it comes."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self._running = running
        self._said = bytearray()
        assert running.stdout is not None
        self._reading = asyncio.ensure_future(self._read(running.stdout))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(65_536):
            self._said += piece

    @property
    def said(self) -> str:
        return self._said.decode(errors="backslashreplace")

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def ended(self) -> int | None:
        return self._running.returncode

    def signal(self, number: signal.Signals) -> None:
        self._running.send_signal(number)

    async def exit(self, seconds: float = PATIENCE) -> int:
        async with asyncio.timeout(seconds):
            await self._reading
            return await self._running.wait()


@contextlib.asynccontextmanager
async def process(
    *arguments: str,
    folder: Path,
    module: str = "gateway",
    within: Sequence[str] = (),
    files: int | None = None,
    file_size: int | None = None,
    **environment: str,
) -> AsyncIterator[Process]:
    """
    Killed, by its id, when the block ends. `within` is a command that starts it; `files` is how many it may
    open, if not as many as we, and `file_size` how many bytes one may have.
    """
    asked = {resource.RLIMIT_NOFILE: files, resource.RLIMIT_FSIZE: file_size}
    limits = {name: most for name, most in asked.items() if most is not None}
    started = await asyncio.create_subprocess_exec(
        *within,
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        preexec_fn=partial(_prepare, limits),
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )
    running = Process(started)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await running.exit()


def _prepare(limits: dict[int, int]) -> None:
    # Whoever runs the tests in the background of a script has SIGINT ignored, or SIGHUP under nohup, and so
    # would this process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))


async def listening(running: Process, port: int, seconds: float = START) -> None:
    """Returns when the process accepts connections on `port`; fails with what it said if it ends before."""
    async with asyncio.timeout(seconds):
        while True:
            assert running.ended is None, running.said
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return


async def refused(port: int) -> None:
    """Until nobody listens there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # nobody had accepted it when the listener was closed
            writer.close()
            await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    process: Process
    port: int
    admin_port: int
    audit: Path

    def client(self) -> httpx.AsyncClient:
        return bare_client(f"http://127.0.0.1:{self.port}")

    def admin(self) -> httpx.AsyncClient:
        return bare_client(f"http://127.0.0.1:{self.admin_port}")


@contextlib.asynccontextmanager
async def gateway_process(
    folder: Path, upstream: str, /, files: int | None = None, file_size: int | None = None, **changes: Any
) -> AsyncIterator[GatewayProcess]:
    """
    `gateway run` in `folder`, at ports that the kernel chooses, until the block ends; `changes` are those of
    `gateways.document`.
    """
    write_configuration(folder, upstream, 0, 0, **changes)
    async with process("run", folder=folder, files=files, file_size=file_size) as running:
        yield await where_it_listens(running, folder)


async def where_it_listens(running: Process, folder: Path, seconds: float = START) -> GatewayProcess:
    """`folder` has its audit log."""
    await until(lambda: "listening on" in running.said or running.ended is not None, seconds)
    ports = re.search(r"listening on 127\.0\.0\.1:(\d+), admin on 127\.0\.0\.1:(\d+)", running.said)
    assert ports is not None, running.said
    return GatewayProcess(running, int(ports[1]), int(ports[2]), folder / "rewrites.jsonl")


def write_configuration(folder: Path, upstream: str, port: int, admin: int, /, **changes: Any) -> None:
    changes["listen"] = {"port": port, **changes.get("listen", {})}
    changes["admin"] = {"port": admin, **changes.get("admin", {})}
    chosen = document(upstream, "rewrites.jsonl", **changes)
    (folder / "config.yaml").write_text(json.dumps(chosen, indent=1))  # JSON is YAML


def configured(folder: Path, upstream: str) -> tuple[int, int]:
    """Writes a configuration with ports that are free, for who has to know them before; returns these."""
    port, admin = unused_ports(2)
    write_configuration(folder, upstream, port, admin)
    return port, admin
