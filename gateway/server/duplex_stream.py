"""
A connection after its 101 (RFC 9110 section 7.8): raw bytes both ways until one side ends.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.server.request_body import HIGH_WATER
from gateway.server.write_flow import ClientDisconnected, WriteFlow


class SwitchedConnection(Protocol):
    """What a stream needs of the connection that it is."""

    flow: WriteFlow

    def resume_reading(self) -> None: ...

    def end_tunnel(self, reset: bool) -> None: ...


class DuplexStream:
    def __init__(self, connection: SwitchedConnection, data: bytes) -> None:
        """`data` came behind the request's head."""
        self._connection = connection
        self._flow = connection.flow
        self._pieces = [data] if data else []
        self._size = len(data)
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """What has come, as soon as there is any; b"" once the client has ended."""
        while not self._pieces and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._connection.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Returns when the client keeps up. Raises ClientDisconnected."""
        if self._flow.paused:
            await self._flow.drain()
        if self._flow.transport.is_closing():
            raise ClientDisconnected("the client has gone")
        self._flow.write(data)

    def close(self) -> None:
        """What was written is sent first."""
        self._connection.end_tunnel(reset=False)

    def abort(self) -> None:
        self._connection.end_tunnel(reset=True)

    def arrived(self, data: bytes) -> bool:
        """Whether the client should wait before it sends more."""
        self._pieces.append(data)
        self._size += len(data)
        self._wake()
        return self._size > HIGH_WATER

    def end(self) -> None:
        """The client has ended its side."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
