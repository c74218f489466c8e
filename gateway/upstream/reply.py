"""
One reply of the upstream: its head, its body piece by piece as it arrives, and how it ends. The only reply
there is.

Law: a reply ends as its framing says, or reading it raises (C3).
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Protocol, cast

from msgspec import Struct

from gateway.http.headers import Fields

_NO_FIELDS = Fields()


class Source(Protocol):
    """
    Where the body comes from. It calls `arrived` and `finish`, and needs to be told what is wanted of it.
    """

    async def more(self, reply: Reply) -> None:
        """Waits until there is another piece, the end, or an error."""

    def taken(self) -> None:
        """All that had arrived was handed out: the upstream may go on sending."""

    def abandon(self, reply: Reply) -> None:
        """Nobody wants the rest. Of no effect once the body has arrived or broken off."""


class Tunnel(Source, Protocol):
    """The connection of a 101: raw bytes both ways."""

    async def write(self, reply: Reply, data: bytes) -> None: ...

    def write_eof(self, reply: Reply) -> None: ...


class Reply(Struct, eq=False, weakref=True):
    """
    `status` and `headers` (names in lower case; order and repeats are the upstream's) are there once send()
    has returned it. Its connection is free for another request from the moment the body's last byte has
    arrived; whoever stops before that calls close(), which closes the connection.
    """

    status: int = 0
    headers: Fields = _NO_FIELDS
    over: bool = False  # nothing more will arrive
    error: BaseException | None = None  # why it broke off
    _pieces: list[bytes] = []
    _held: int = 0  # bytes in them
    _source: Source | None = None
    _coming: asyncio.Task[None] | None = None  # the next piece, which hold() did not wait for

    @classmethod
    def of(cls, status: int, headers: Fields, body: bytes) -> Reply:
        """One that is whole: nothing more is to come."""
        reply = cls()
        reply.status, reply.headers = status, headers
        if body:
            reply.arrived(body)
        reply.finish()
        return reply

    # What its source tells it.

    def begin(self, source: Source, status: int, headers: Fields) -> None:
        self._source = source
        self.status = status
        self.headers = headers

    def came(self, source: Source, status: int, headers: Fields, body: bytes) -> None:
        """All at once: as begin, arrived and finish."""
        self._source = source
        self.status = status
        self.headers = headers
        if body:
            self._pieces.append(body)
            self._held = len(body)
        self.over = True

    def arrived(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)

    def finish(self, error: BaseException | None = None) -> None:
        self.over = True
        self.error = error

    # What its reader asks.

    @property
    def ended(self) -> bool:
        """Whether the whole body was handed out, or there is none. False when it broke off."""
        return self.over and not self._pieces and self.error is None

    def whole(self) -> bytes | None:
        """The rest of the body once it has all arrived; None before, and when it broke off."""
        if not self.over or self.error is not None:
            return None
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        """
        What has arrived of the body, waiting if that is nothing yet; empty at its end. Raises an
        UpstreamError where it breaks off, or what the request's own body raised.
        """
        while not self._pieces and not self.over:
            coming, self._coming = self._coming, None
            await (coming or self._begun.more(self))
        if self._pieces:
            pieces, self._pieces, self._held = self._pieces, [], 0
            if not self.over:
                self._begun.taken()
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self.error is not None:
            raise self.error
        return b""

    async def hold(self, limit: int, patience: float | None = None) -> bool:
        """
        Waits for the body's end, or for more than `limit` bytes, or `patience` seconds. True at its end: then
        the connection is free for another request while this reply waits to be relayed, if it ever is. Raises
        as read() does.
        """
        until = None if patience is None else time.monotonic() + patience
        try:
            while not self.over and self._held <= limit:
                if until is None:
                    await self._begun.more(self)
                elif not await self._comes(until - time.monotonic()):
                    return False
        except asyncio.CancelledError:
            self.close()
            raise
        if self.error is not None:
            raise self.error
        return self.over

    async def _comes(self, patience: float) -> bool:
        """Whether another piece comes in time; read() waits for it later if it does not."""
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._begun.more(self))
        await asyncio.wait([self._coming], timeout=patience)
        if not self._coming.done():
            return False
        coming, self._coming = self._coming, None
        coming.result()
        return True

    async def write(self, data: bytes) -> None:
        """Into the tunnel that a 101 opened; returns when the upstream keeps up. Raises an UpstreamError."""
        await self._tunnel.write(self, data)

    def write_eof(self) -> None:
        """Ends our side of the tunnel (TLS cannot: there it is of no effect)."""
        self._tunnel.write_eof(self)

    def close(self) -> None:
        """
        Of no effect once the body has arrived or broken off. Into a tunnel, what was written still goes.
        """
        if self._coming is not None:
            self._coming.cancel()
        # A tunnel whose other side has ended is still open to ours.
        if self._source is not None and (not self.over or self.status == 101):
            self._source.abandon(self)

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _begun(self) -> Source:
        assert self._source is not None
        return self._source

    @property
    def _tunnel(self) -> Tunnel:
        assert self.status == 101
        return cast("Tunnel", self._source)
