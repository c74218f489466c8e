"""
An upgraded connection (WebSocket and others): raw bytes both ways until one side ends, or neither speaks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import Protocol

from gateway.errors import Overloaded, UpstreamError


class ByteStream(Protocol):
    """One side of a tunnel."""

    async def read(self) -> bytes:
        """Empty once that side has ended."""

    async def write(self, data: bytes) -> None:
        """Returns when that side keeps up."""

    def close(self) -> None:
        """What was written is sent first."""


class HalfClosableStream(ByteStream, Protocol):
    """A side that can be told that no more will come, and still be read."""

    def write_eof(self) -> None: ...


class TunnelSlots:
    """
    For tunnels, which each hold a connection to the upstream: `limit` at a time, a quarter of those (at
    least one) for one client.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = max(1, limit // 4)
        self._taken: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return self._taken.total()

    def take(self, client: Hashable) -> None:
        """Raises Overloaded."""
        if len(self) >= self._limit:
            raise Overloaded(f"{self._limit} tunnels are open (limits.max_tunnels)")
        if self._taken[client] >= self._share:
            raise Overloaded(f"this client has {self._share} tunnels open (a quarter of limits.max_tunnels)")
        self._taken[client] += 1

    def give_back(self, client: Hashable) -> None:
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


async def join(client: ByteStream, upstream: HalfClosableStream, idle: float) -> None:
    """
    Returns when the upstream has ended, when the client broke off, or after `idle` seconds without a
    byte either way. Each write waits for its reader, so a slow side slows the other and nothing piles up.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle) as silence:

            def heard() -> None:
                silence.reschedule(loop.time() + idle)

            sending = asyncio.create_task(_pump(client.read, upstream.write, heard, upstream.write_eof))
            try:
                await _pump(upstream.read, client.write, heard)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
    except (TimeoutError, UpstreamError, OSError):
        # Silence, or an end that broke off: both are ends of a tunnel, and there is nobody to tell.
        return
    finally:
        upstream.close()
        client.close()


async def _pump(
    read: Callable[[], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    heard: Callable[[], None],
    end: Callable[[], None] | None = None,
) -> None:
    while data := await read():
        heard()
        await write(data)
    if end is not None:
        end()
