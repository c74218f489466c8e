"""What the end-to-end tests ask again and again: of a reply, of an error, of a moment, of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import http_sf

MIB = 2**20


def told(value: str) -> dict[str, Any]:
    """The parameters of a Gateway-Rewrite field, by a parser of structured fields that is not ours."""
    item = http_sf.parse(value.encode(), tltype="item")
    assert isinstance(item, tuple)
    name, parameters = item
    assert str(name) == "web-participant-state"
    return {key: value if value is True else str(value) for key, value in parameters.items()}


def refused_by_the_gateway(headers: Mapping[str, str], document: Mapping[str, Any], status: int) -> str:
    """Who refused, why, and what to do: for a reader and for a program. Returns Proxy-Status' error."""
    assert headers["content-type"] == "application/problem+json"
    assert document["status"] == status
    assert document["type"].startswith("urn:gateway:error:")
    assert document["refused_by"] == "gateway"
    assert all(document[member] for member in ("title", "detail", "advice", "message", "code"))
    assert document["contextId"] == headers["x-request-id"]
    if status in {502, 504}:
        assert "retry-after" not in headers  # C8: real clients replay a PATCH on it
    members: Any = http_sf.parse(headers["proxy-status"].encode(), tltype="list")
    ((name, parameters),) = members
    assert str(name) == "gateway"
    return str(parameters["error"])


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """For what has no event of its own to wait for."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Process:
    """`gateway …` as a process of its own; what it says is collected as it comes."""

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
    def ended(self) -> int | None:
        return self._running.returncode

    def signal(self, number: signal.Signals) -> None:
        self._running.send_signal(number)

    async def exit(self, seconds: float = 10.0) -> int:
        async with asyncio.timeout(seconds):
            await self._reading
            return await self._running.wait()


@contextlib.asynccontextmanager
async def process(*arguments: str, folder: Path, **environment: str) -> AsyncIterator[Process]:
    """Killed, by its id, when the block ends."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )
    running = Process(started)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await running.exit()


async def listening(running: Process, port: int, seconds: float = 10.0) -> None:
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
