"""
The upstream as an ASGI application in the same process: no socket, and otherwise a Transport like the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from gateway.errors import ConnectionTerminated, InvalidReply
from gateway.http.grammar import BODILESS
from gateway.http.headers import Fields, Headers, first
from gateway.http.slots import Values, filled
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, nobody

Message: TypeAlias = MutableMapping[str, Any]
InnerApp: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

HIGH_WATER: Final = 64 * 1024  # bytes of a reply that wait for a reader before the application has to
FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
log = logging.getLogger("gateway")


class ApplicationTransport:
    """`scope_of` gives what an application finds in its scope beside the request, by method and target."""

    def __init__(self, inner: InnerApp, scope_of: Callable[[str, bytes], Message]) -> None:
        self._inner = inner
        self._scope_of = scope_of
        self._running: set[asyncio.Task[None]] = set()

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
        """Never upgrades, and the application is never at its limit: nobody waits for a turn."""
        fields = [*filled(headers, values), *extra_headers]
        if isinstance(body, bytes) and FRAMING.isdisjoint(name for name, _ in fields):
            fields.append((b"content-length", b"%d" % len(body)))
        path, _, query = target.partition(b"?")
        scope: Message = {
            **self._scope_of(method.decode(), target),
            "type": "http",
            "method": method.decode(),
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "headers": fields,
        }
        if before_send is not None:
            commit = before_send()
            if commit is not None:
                commit()
        exchange = _Exchange(body, method == b"HEAD")
        task = asyncio.create_task(self._run(scope, exchange))
        self._running.add(task)
        task.add_done_callback(exchange.ended)
        task.add_done_callback(self._running.discard)
        try:
            await exchange.begun.wait()
        except asyncio.CancelledError:
            exchange.abandon(exchange.reply)
            raise
        if not exchange.reply.status and exchange.reply.error is not None:
            raise exchange.reply.error
        return exchange.reply

    async def _run(self, scope: Message, exchange: _Exchange) -> None:
        await self._inner(scope, exchange.receive, exchange.send)

    def close(self) -> None:
        """Nothing stays open between two requests."""

    async def wait_closed(self) -> None:
        """What the application still does for requests that were given up is cancelled."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class _Exchange:
    """One request to the application: its receive and send, and the source of the reply's body."""

    def __init__(self, body: bytes | AsyncIterator[bytes] | None, head_only: bool) -> None:
        self.reply = Reply()
        self.begun = asyncio.Event()  # the reply's head is there, or never will be
        self._body = body
        self._head_only = head_only
        self._received = False
        self._waiting = 0  # bytes of the reply that nobody has taken
        self._left: int | None = None  # bytes that the reply's Content-Length lets come
        self._over = asyncio.Event()  # the application is told that its client has gone
        self._moved = asyncio.Event()
        self._wanted = asyncio.Event()
        self._start: tuple[int, Fields] | None = None

    # For the application.

    async def receive(self) -> Message:
        if self._received or self._over.is_set():
            await self._over.wait()
            return {"type": "http.disconnect"}
        body = self._body
        if body is None or isinstance(body, bytes):
            self._received = True
            return {"type": "http.request", "body": body or b"", "more_body": False}
        # What the body raises is the request's sender's to know, not the application's.
        coming = asyncio.ensure_future(_next(body))
        await asyncio.wait([coming])
        error = coming.exception()
        if error is not None:
            self._finish(error)
            return {"type": "http.disconnect"}
        piece = coming.result()
        self._received = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(self, message: Message) -> None:
        kind, reply = message["type"], self.reply
        if kind == "http.response.start":
            if self._start is not None:
                raise RuntimeError("the reply has been started before")
            fields = Fields((bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ()))
            self._start = message["status"], fields
            length = first(fields, b"content-length")
            if length is not None and length.isdigit() and not self._has_no_body():
                self._left = int(length)
            reply.begin(self, *self._start)
            self.begun.set()
        elif kind == "http.response.body":
            if self._start is None:
                raise RuntimeError("a body before the reply was started")
            await self._piece(message.get("body", b""), message.get("more_body", False))

    async def _piece(self, piece: bytes, more: bool) -> None:
        reply = self.reply
        if reply.over:
            if reply.error is not None:
                raise OSError("the client has gone")
            return
        if piece and not self._has_no_body():
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    self._finish(InvalidReply("its body is longer than its Content-Length"))
                    return
            reply.arrived(bytes(piece))
            self._waiting += len(piece)
            self._moved.set()
        if not more:
            short = "its body is shorter than its Content-Length"
            self._finish(ConnectionTerminated(short) if self._left else None)
        elif self._waiting > HIGH_WATER:
            self._wanted.clear()
            await self._wanted.wait()

    def _has_no_body(self) -> bool:
        return self._head_only or (self._start is not None and self._start[0] in BODILESS)

    def _finish(self, error: BaseException | None = None) -> None:
        if not self.reply.over:
            self.reply.finish(error)
        self._over.set()
        self._moved.set()
        self._wanted.set()
        self.begun.set()

    def ended(self, task: asyncio.Task[None]) -> None:
        """The application has returned, or raised: then any server of it would have said 500."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not (self._over.is_set() and isinstance(error, OSError)):
            log.error("the application behind the gateway failed", exc_info=error)
        if self._start is None and not self.reply.over and not task.cancelled():
            said = b"Internal Server Error"
            fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(said))]
            self.reply.begin(self, 500, Fields(fields))
            self.reply.arrived(said)
            self._finish()
        elif not self.reply.over:
            self._finish(ConnectionTerminated("the application ended before its reply did"))

    # For the reply.

    async def more(self, reply: Reply) -> None:
        self._wanted.set()
        if not reply.over:
            await self._moved.wait()
            self._moved.clear()

    def taken(self) -> None:
        self._waiting = 0
        self._wanted.set()

    def abandon(self, reply: Reply) -> None:
        self._finish(ConnectionTerminated("the reply was closed before its end"))


async def _next(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)
