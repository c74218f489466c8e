"""
The upstream, as the lifecycle sees it: a call goes out, a reply comes back, errors are the gateway's own.

The only file that names httpx's errors (errors.py has ours). Nothing is ever sent to another address
than the configured one, and the target is the client's bytes after the configured prefix (C7).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Protocol, cast

import httpx
from msgspec import Struct

from gateway import errors
from gateway.http.headers import Fields, Headers

# Called before a call's first byte goes out. What it returns is called before that too: once is enough for
# all calls that leave together and return the same.
BeforeSend = Callable[[], Callable[[], None] | None]


class Wire(Protocol):
    """What carries a message to the one origin and back: transport.Pool, or httpx's own transport."""

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        before_send: BeforeSend | None = None,
    ) -> WireReply: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


class WireReply(Protocol):
    status: int
    headers: Fields

    @property
    def ended(self) -> bool: ...

    def whole(self) -> bytes | None: ...

    async def read(self) -> bytes: ...

    def close(self) -> None: ...


class WireTunnel(WireReply, Protocol):
    """The reply that a 101 is."""

    async def write(self, data: bytes) -> None: ...

    def write_eof(self) -> None: ...


class Reply(Struct, eq=False):
    """The reply's head, and its body piece by piece. Closing it before its end closes the connection."""

    _wire: WireReply
    status: int
    headers: Fields
    _held: bytes = b""

    @property
    def ended(self) -> bool:
        """Whether read() has nothing more to give."""
        return not self._held and self._wire.ended

    def whole(self) -> bytes | None:
        """What is left of the body, if it is all there by now; None where read() may have to wait."""
        whole = self._wire.whole()
        if whole is not None and self._held:
            held, self._held = self._held, b""
            return held + whole
        return whole

    async def read(self) -> bytes:
        """Empty at the end. Raises an UpstreamError where the body breaks off (C3)."""
        if self._held:
            held, self._held = self._held, b""
            return held
        try:
            return await self._wire.read()
        except httpx.HTTPError as error:
            raise translated(error) from error

    async def hold(self, limit: int) -> bool:
        """
        Reads ahead, to the body's end or past `limit` bytes. True at its end: then the connection is free
        for another call while this reply waits to be relayed, if it ever is. Closed where that fails.
        """
        pieces = [self._held]
        size = len(self._held)
        self._held = b""
        try:
            while size <= limit and not self._wire.ended:
                piece = await self.read()
                pieces.append(piece)
                size += len(piece)
        except (errors.UpstreamError, asyncio.CancelledError):
            self._wire.close()
            raise
        self._held = b"".join(pieces)
        if self._wire.ended:
            self._wire.close()
        return self._wire.ended

    async def write(self, data: bytes) -> None:
        """Into the tunnel that a 101 opened. Raises an UpstreamError."""
        try:
            await self._tunnel.write(data)
        except httpx.HTTPError as error:
            raise translated(error) from error

    def write_eof(self) -> None:
        self._tunnel.write_eof()

    @property
    def _tunnel(self) -> WireTunnel:
        assert self.status == 101
        return cast("WireTunnel", self._wire)

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.close()


class Upstream:
    def __init__(self, wire: Wire, prefix: bytes = b"") -> None:
        self._wire = wire
        self._prefix = prefix

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        before_send: BeforeSend | None = None,
    ) -> Reply:
        """
        `own`: further fields, which this call shares with no other. A body in one piece whose length no field
        gives gets its Content-Length.

        Returns when the reply's head is there. Raises an UpstreamError. With `upgrade` a 101 is a reply
        like another, and its connection then a tunnel. `leaving` is called right before the first byte
        goes out, when a connection is had, and what it returned after it: what either raises is raised here,
        and nothing was sent.
        """
        if self._prefix and target != b"*":
            target = self._prefix + target
        try:
            reply = await self._wire.send(
                method,
                target,
                headers,
                body,
                extra_headers=extra_headers,
                upgrade=upgrade,
                before_send=before_send,
            )
        except httpx.HTTPError as error:
            raise translated(error) from error
        return Reply(reply, reply.status, reply.headers)


def translated(error: httpx.HTTPError) -> errors.UpstreamError:
    # Later an SSLError may stand behind any error, and "nothing was sent" would be a lie.
    causes = _causes(error) if isinstance(error, httpx.ConnectError) else []
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return errors.TlsFailed(_said(error))
    # A name with a label that is too long is a UnicodeError before anybody is asked for it.
    if any(isinstance(cause, socket.gaierror | UnicodeError) for cause in causes):
        return errors.NameNotResolved(_said(error))
    for kind, ours in TRANSLATIONS:
        if isinstance(error, kind):
            return ours(_said(error))
    return errors.ConnectionTerminated(_said(error))


TRANSLATIONS: tuple[tuple[type[httpx.HTTPError], type[errors.UpstreamError]], ...] = (
    (httpx.PoolTimeout, errors.PoolExhausted),
    (httpx.ConnectTimeout, errors.ConnectTimeout),
    (httpx.ConnectError, errors.ConnectionRefused),
    (httpx.TimeoutException, errors.ReadTimeout),
    (httpx.ProtocolError, errors.InvalidReply),
)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(found) < 10:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
