"""
The downstream connection in virtual time and without a socket: a test sends, lets seconds pass, and sees when
what was written, and how the connection ended.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, cast

from uvicorn.server import ServerState

from gateway.server.connection import App, ClientConnection
from gateway.server.limits import ServerLimits, ServerStats
from tests.simulation.loop import Loop
from tests.support.serving import config_of

HIGH_WATER = 64 * 1024  # bytes that may wait for the client, as in asyncio's own transports


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Time moves only when everybody waits, then to the next timer: an hour takes no time, and is exact."""

    def run(**arguments: Any) -> None:
        loop = Loop(None)
        loop.run(test(**arguments))
        assert loop.failures == []

    functools.update_wrapper(run, test)
    vars(run)["__signature__"] = inspect.signature(test)
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


class MemoryTransport(asyncio.Transport):
    """`got` is what the client has read: all that is written, or while it is not `reading` what it takes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 50_000), "sockname": ("192.0.2.2", 80)})
        self.connection: ClientConnection
        self.got = b""
        self.reading = True
        self.eof_at: float | None = None
        self.ended_at: float | None = None
        self.aborted = False
        self.changed = asyncio.Event()
        self.read_from = True  # whether the server reads what the client sends
        self._unheard = b""
        self._unread = b""
        self._paused = False
        self._closing = False
        self._eof = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        self._unread += bytes(data)
        if self.reading:
            self.take(len(self._unread))
        elif len(self._unread) > HIGH_WATER and not self._paused:
            self._paused = True
            self.connection.pause_writing()

    def take(self, size: int) -> None:
        """The client reads so many bytes of what waits for it."""
        self.got += self._unread[:size]
        self._unread = self._unread[size:]
        self.changed.set()
        if self._paused and len(self._unread) <= HIGH_WATER // 4:
            self._paused = False
            self.connection.resume_writing()
        self._flushed()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof = True
        self._flushed()

    def close(self) -> None:
        self._closing = True
        self._flushed()

    def abort(self) -> None:
        self._closing = self.aborted = True
        self._end()

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return len(self._unread)

    def pause_reading(self) -> None:
        self.read_from = False

    def resume_reading(self) -> None:
        self.read_from = True
        asyncio.get_running_loop().call_soon(self._hear)

    def _hear(self) -> None:
        if self.read_from and self._unheard and not self._closing:
            data, self._unheard = self._unheard, b""
            self.connection.data_received(data)

    def _flushed(self) -> None:
        if self._unread:
            return
        if self._eof and self.eof_at is None:
            self.eof_at = now()
            self.changed.set()
        if self._closing:
            self._end()

    def _end(self) -> None:
        if self.ended_at is None:
            self.ended_at = now()
            self.changed.set()
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)


class VirtualClient(MemoryTransport):
    """A client that has just connected."""

    def __init__(
        self,
        app: App,
        limits: ServerLimits | None = None,
        stats: ServerStats | None = None,
        state: ServerState | None = None,
    ) -> None:
        """Clients that share a `state` are connected to one server."""
        super().__init__()
        config = config_of(app, limits or ServerLimits(), stats or ServerStats())
        factory = cast(type[ClientConnection], config.http_protocol_class)
        self.connection = factory(config, state or ServerState(), {})
        self.connection.connection_made(self)

    def send(self, data: bytes) -> None:
        """It waits while the server does not read."""
        self._unheard += data
        self._hear()

    async def until(self, end: bytes) -> None:
        """Until the client has got this."""
        while not self.got.endswith(end):
            assert not self.over, self.got
            self.changed.clear()
            await self.changed.wait()

    async def rest(self) -> bytes:
        """All that the client gets until nothing more will come."""
        while not self.over:
            self.changed.clear()
            await self.changed.wait()
        return self.got

    @property
    def over(self) -> bool:
        """Whether the server has ended the connection, or its side of it."""
        return self.eof_at is not None or self.ended_at is not None
