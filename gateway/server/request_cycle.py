"""
One request and its reply on a downstream connection: ASGI's receive and send, and what ASGI has no word for.

Law: a reply's head is checked as a whole before a byte of it is written, so no field can add a line to it; a
reply that can't be finished is cut off.
"""

from __future__ import annotations

import asyncio
import http
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gateway.errors import GatewayError, MethodNotAllowed
from gateway.http.chunked import LAST_CHUNK, chunk
from gateway.http.grammar import BODILESS, CHUNKED, NO_BODY, UNTIL_CLOSE
from gateway.http.headers import Fields, Header, Headers, first
from gateway.http.problem import problem
from gateway.http.request_parser import RequestHead
from gateway.http.writer import OF_A_REPLY_WITHOUT_LENGTH, OF_THE_CONNECTION, checked, field_lines
from gateway.server.byte_rate import ByteRate

if TYPE_CHECKING:
    from gateway.server.connection import ClientConnection

Message: TypeAlias = dict[str, Any]

HIGH_WATER: Final = 64 * 1024  # body bytes that may wait for the application

_ALLOW: Final = (b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode("ascii"))
    for status in http.HTTPStatus
}
logger = logging.getLogger("gateway")


class ClientDisconnected(OSError):
    """Nothing can be sent to this client any more."""


class RequestCycle:
    """One request and its reply: ASGI's `receive` and `send`, and what ASGI has no word for."""

    # Defaults stand on the class: most requests leave most of them as they are.
    abandon: Callable[[], object] | None = None
    disconnected = False
    request_id = ""
    task: asyncio.Task[None]
    complete = False
    started = False
    awaited_until: float | None = None  # when the application will have waited too long for the body
    pace: ByteRate | None = None
    _delivered = False
    _failure: GatewayError | None = None
    _framing = 0
    _head: bytes | None = None
    _held = 0
    _switched = False
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: ClientConnection, head: RequestHead) -> None:
        self.method = head.method.decode("ascii")
        self.target = head.target
        self.version = "1.1" if head.minor else "1.0"
        self.headers = head.headers
        self.address = connection.address
        self.upgrade = head.upgrade
        self.client_stays = self.keep_alive = head.keep_alive
        self.expecting = head.expect_continue
        self._connection = connection
        self._bodiless = head.method == b"HEAD"
        self._lengthless = CHUNKED if head.minor else UNTIL_CLOSE
        self._more = head.length != 0
        self._pieces: list[bytes] = []

    async def receive(self) -> Message:
        while not (self.disconnected or self.complete):
            if self._failure is not None:
                raise self._failure
            if not self._delivered and (self._pieces or not self._more):
                return self._take()
            if self._waiter is not None:
                raise RuntimeError("receive() is waited for already")
            if not self._delivered:
                self._connection.want_body(self)
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._connection.want_no_body(self)
        return {"type": "http.disconnect"}

    def whole_body(self) -> bytes | None:
        """The body, when all of it is here and `receive` has given none of it; then nobody else gets it."""
        if self._more or self._delivered or self.disconnected:
            return None
        self._delivered = True
        pieces = self._pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def waiting(self) -> bool:
        """Whether the application waits, with nothing there for it yet."""
        return self._waiter is not None and not self._waiter.done()

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection.write_paused:
            await connection.writable()
        if not self._has_client():
            raise ClientDisconnected("the client has gone")
        kind = message["type"]
        if kind == "http.response.body":
            self._write(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            # The head waits for what the application sends in the same turn of the loop, and no longer.
            connection.loop.call_soon(self._flush)
        else:
            raise RuntimeError(f"an ASGI message of type {kind!r}")

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """
        A whole reply in one call, the shortest way; `own` are further fields, none of which frames it. False,
        and nothing is done, while the client does not take what was written before: then `send` waits for it.
        """
        if self._connection.write_paused:
            return False
        if not self._has_client():
            raise ClientDisconnected("the client has gone")
        self._start(status, headers, extra_headers)
        self._write(body, False)
        return True

    def switch(self, headers: Iterable[Header]) -> DuplexStream:
        """Accepts the upgrade with a 101 that has these fields; the connection is raw bytes from here on."""
        if not self._has_client():
            raise ClientDisconnected("the client has gone")
        if self.upgrade is None or self.started:
            raise RuntimeError("no upgrade was offered, or the request has been answered")
        fields = list(headers)
        if first(fields, b"upgrade") is None:
            fields.append((b"upgrade", self.upgrade))
        if first(fields, b"connection") is None:
            fields.append((b"connection", b"upgrade"))
        head = STATUS_LINES[101] + field_lines(fields).text + b"\r\n"
        self.started = self._switched = True
        return self._connection.tunnel(self, head)

    def answer(self, error: GatewayError) -> None:
        if self._has_client():
            status, headers, body = refusal(error, self.request_id)
            self._start(status, headers)
            self._write(body, False)

    def arrived(self, body: bytes, more: bool) -> bool:
        """Takes a piece of the request's body; whether the client should wait before the next."""
        self.expecting = False
        self._more = more
        if body:
            self._pieces.append(body)
            self._held += len(body)
        if self._waiter is not None and (body or not more):
            self._wake()
        return self._held > HIGH_WATER

    def fail(self, error: GatewayError) -> None:
        """The rest of the body will not be read: `receive` raises."""
        self._failure = error
        self.keep_alive = False
        self._wake()

    def lost(self) -> None:
        """The client has gone."""
        if self.disconnected:
            return
        self.disconnected = True
        self._wake()
        if self.abandon is not None and not self.complete:
            self.abandon()
        self.abandon = None

    def finished(self, task: asyncio.Task[None]) -> None:
        """The application has returned or raised; what its reply lacks is settled here."""
        connection = self._connection
        connection.tasks.discard(task)
        self.abandon = None
        settled = self.complete or not self._has_client()
        if task.cancelled():
            if not settled:
                connection.abort("cancelled", self._framing == UNTIL_CLOSE)
            return
        error = task.exception()
        if error is None:
            if settled:
                return
            if self._switched:
                connection.close()
                return
            error = RuntimeError("the application returned before its reply was complete")
        foreseen = isinstance(error, GatewayError) or (self.disconnected and isinstance(error, OSError))
        if not foreseen:
            self.request_id = self.request_id or secrets.token_hex(16)
            logger.error("request %s: the application failed", self.request_id, exc_info=error)
        if settled:
            return
        if self.started:
            connection.abort("application-error", self._framing == UNTIL_CLOSE)
        elif isinstance(error, GatewayError):
            self.answer(error)
        else:
            self.answer(GatewayError("the cause is in the gateway's log, under this request id"))

    def _has_client(self) -> bool:
        # The transport knows of a write that failed, or of our abort, a turn of the loop before it tells us.
        if self._connection.transport.is_closing() and not self.complete:
            self.lost()
        return not self.disconnected

    def _take(self) -> Message:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._more:
            if self.pace is not None:
                self.pace.moved += self._held
            self._pieces = []
            self._held = 0
            self._connection.resume_reading()
        else:
            pieces.clear()
            self._delivered = True
        return {"type": "http.request", "body": body, "more_body": self._more}

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        if self.started:
            raise RuntimeError("the reply has been started before")
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is not the status of a final reply")
        # RFC 9110 section 8.6: a 204 has no length, and a 304's would be that of the reply it stands for.
        sizeless = status in BODILESS
        unwritten = OF_A_REPLY_WITHOUT_LENGTH if sizeless else OF_THE_CONNECTION
        if isinstance(headers, Fields):
            lines = headers.derived(field_lines, unwritten)
        else:
            lines = field_lines(headers, unwritten)
        head = (STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status) + lines.text
        if extra_headers:
            head += checked(b"\r\n".join([*map(b": ".join, extra_headers), b""]), len(extra_headers))
        if lines.closes:
            self.keep_alive = False
        if not lines.dated:
            head += date_line(int(time.time()))
        if sizeless or self._bodiless:
            self._framing = NO_BODY
        elif lines.length is not None:
            self._framing = lines.length
        else:
            self._framing = self._lengthless
            if self._framing == CHUNKED:
                head += b"transfer-encoding: chunked\r\n"
        self._head = head
        self.started = True

    def _write(self, body: bytes, more: bool) -> None:
        if not self.started or self.complete:
            raise RuntimeError("a body before the reply was started, or after it was complete")
        framing = self._framing
        if framing >= 0:
            framing -= len(body)
            if framing < 0 or (framing and not more):
                raise RuntimeError("the body is not as long as the reply's Content-Length")
            self._framing = framing
        elif framing == CHUNKED:
            body = chunk(body)
            if not more:
                body += LAST_CHUNK
        elif framing == NO_BODY:
            body = b""
        if self._head is not None:
            body = self._end_head(not more) + body
        if body:
            self._connection.transport.write(body)
        if not more:
            self.complete = True
            if self._waiter is not None:
                self._wake()
            self._connection.completed(self)

    def _flush(self) -> None:
        if self._head is not None and not self.disconnected:
            self._connection.transport.write(self._end_head(False))

    def _end_head(self, complete: bool) -> bytes:
        head = self._head or b""
        self._head = None
        if self.keep_alive and not self._connection.is_last(self, complete):
            return head + b"\r\n"
        self.keep_alive = False
        return head + b"connection: close\r\n\r\n"


class DuplexStream:
    """A connection after its 101: bytes both ways until one side ends."""

    def __init__(self, connection: ClientConnection, exchange: RequestCycle, data: bytes) -> None:
        self._connection = connection
        self._exchange = exchange
        self._pieces = [data] if data else []
        self._held = len(data)
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """What has come, as soon as there is any; b"" once the client has ended."""
        while not self._pieces and not self._ended:
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        self._connection.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        if self._connection.write_paused:
            await self._connection.writable()
        if self._connection.transport.is_closing():
            raise ClientDisconnected("the client has gone")
        self._connection.transport.write(data)

    def close(self) -> None:
        """What was written is sent first."""
        self._exchange.complete = True
        self._connection.close()

    def abort(self) -> None:
        self._exchange.complete = True
        self._connection.abort("tunnel", reset=True)

    def arrived(self, data: bytes) -> bool:
        self._pieces.append(data)
        self._held += len(data)
        self._wake()
        return self._held > HIGH_WATER

    def end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@lru_cache(maxsize=2)
def date_line(second: int) -> bytes:
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")


def refusal(error: GatewayError, request_id: str = "") -> tuple[int, list[Header], bytes]:
    status, headers, body = problem(error, request_id or secrets.token_hex(16))
    if isinstance(error, MethodNotAllowed):
        headers.append(_ALLOW)
    return status, headers, body
