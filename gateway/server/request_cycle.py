"""
One request and the reply to it: what whoever serves the request reads and writes.

Law: a reply that began and can't be finished is cut off, never completed and never answered a second time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, Protocol

from msgspec import Struct

from gateway.direct_task import DirectTask
from gateway.errors import AbortCause, GatewayError, MethodNotAllowed
from gateway.http.headers import Fields, Header, Headers
from gateway.http.problem import problem
from gateway.http.request_parser import RequestHead
from gateway.http.response_writer import ResponseWriter, switching, whole_response
from gateway.http.slots import Values
from gateway.server.duplex_stream import DuplexStream
from gateway.server.request_body import RequestBody
from gateway.server.write_flow import ClientDisconnected, WriteFlow, may_hold_one

SMALL: Final = 16_384  # bytes of what may wait for the end of the loop's turn
_ALLOW: Final = (b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
logger = logging.getLogger("gateway")


class CycleConnection(Protocol):
    """What a request needs of the connection on which it came."""

    address: str
    flow: WriteFlow
    tasks: set[Any]
    stopping: bool  # the server takes no more requests than have begun

    def must_close(self, cycle: RequestCycle, whole: bool) -> bool:
        """Asked before a reply's head is written, which has to say so. `whole`: its body goes out with it."""

    def leaves_flight(self, cycle: RequestCycle) -> None: ...

    def completed(self, cycle: RequestCycle) -> None: ...

    def switch(self, head: bytes) -> DuplexStream: ...

    def abort(self, cause: AbortCause, reset: bool = False) -> None: ...


class RequestCycle(Struct, eq=False):
    """
    `cancel_on_disconnect`: whether the task that serves the request is cancelled when the client leaves
    before it has its reply. `holds_connection`: whether the reply still holds a connection to the upstream.
    `request_id` is what an error is answered and logged under.
    """

    _connection: CycleConnection
    _flow: WriteFlow
    head: RequestHead
    body: RequestBody
    method: str
    target: bytes
    headers: Fields
    values: Values
    address: str
    version: str  # of HTTP
    certificate: bytes  # a fingerprint of the one that the client has shown in TLS
    upgrade: bytes | None  # the protocol that the client offers to switch to
    keep_alive: bool
    caller: str | None = None  # where it is counted who has the places in flight
    cancel_on_disconnect: bool = False
    complete: bool = False
    gone: bool = False  # the client has left
    holds_connection: Any = may_hold_one
    in_flight: bool = False  # counted for max_in_flight
    request_id: str = ""
    started: bool = False
    task: Any = None  # that serves it
    trace_id: str = ""  # that whoever traces the call gave it
    _over: asyncio.Event | None = None
    _stream: DuplexStream | None = None
    _writer: ResponseWriter | None = None

    @property
    def transport(self) -> asyncio.Transport:
        return self._flow.transport

    # For whoever serves it.

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """
        The whole reply in one step; none of `extra_headers` says how long it is. False, and nothing is done,
        while the client does not take what was written before: start() and write() wait for that.
        """
        flow, head = self._flow, self.head
        if flow.paused:
            return False
        if self.started or self.gone or flow.transport.is_closing():
            self._check_startable()
        connection, close = self._connection, not self.keep_alive
        if connection.stopping or not self.body.here:
            close = close or connection.must_close(self, True)
        data, close = whole_response(
            status, headers, body, extra_headers, head.method, head.minor, close, date
        )
        self.started = True
        self.keep_alive = not close
        if len(data) < SMALL:
            flow.write_soon(data)
        else:
            flow.write(data)
        self._complete()
        return True

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        """Raises ValueError for a head that can't be written, and ClientDisconnected."""
        if self._flow.paused:
            await self._flow.drain(self.holds_connection)
        self._start(status, headers, extra_headers)
        # The head waits for what else is written in the same turn of the loop, and no longer.
        asyncio.get_running_loop().call_soon(self._write_head)

    async def write(self, piece: bytes, more: bool) -> None:
        """A piece of the reply's body, the last unless there is `more`. Raises ClientDisconnected."""
        if self._flow.paused:
            await self._flow.drain(self.holds_connection)
        self._check_client()
        self._write(piece, more)

    def switch(self, headers: Headers) -> DuplexStream:
        """Accepts the upgrade with a 101 that has these fields; the connection is raw bytes from here on."""
        self._check_client()
        if self.upgrade is None or self.started:
            raise RuntimeError("no upgrade was offered, or the request has been answered")
        head = switching(headers, self.upgrade)
        self.started = True
        self._stream = self._connection.switch(head)
        return self._stream

    async def wait_over(self) -> None:
        """Until the client has gone, or has its whole reply."""
        if not (self.gone or self.complete):
            self._over = self._over or asyncio.Event()
            await self._over.wait()

    # For the connection.

    def answer(self, error: GatewayError) -> None:
        """With the problem that it is, unless the client has gone."""
        if self._has_client():
            status, headers, body = refusal(error, self.request_id)
            self._start(status, headers)
            self._write(body, False)

    def lost(self) -> None:
        """The client has gone."""
        if self.gone:
            return
        self.gone = True
        self.body.close()
        if self._over is not None:
            self._over.set()
        if self.cancel_on_disconnect and not self.complete:
            self.task.cancel()

    def finished(self, task: asyncio.Task[None] | DirectTask) -> None:
        """The application has returned or raised; what its reply lacks is settled here."""
        self._connection.tasks.discard(task)
        # A cancelled task keeps the frames of the call, and the body in them: it must not be kept in turn.
        self.cancel_on_disconnect = False
        self.task = None
        if self.in_flight:
            self._connection.leaves_flight(self)
        if self.complete and isinstance(task, DirectTask) and task.failure is None:
            return  # as most do
        settled = self.complete or not self._has_client()
        if task.cancelled():
            if not settled:
                self._cut("cancelled")
            return
        error = task.exception()
        if error is None:
            if settled:
                return
            if self._stream is not None:
                self._stream.close()
                return
            error = RuntimeError("the application returned before its reply was complete")
        foreseen = isinstance(error, GatewayError) or (self.gone and isinstance(error, OSError))
        if not foreseen:
            self.request_id = self.request_id or secrets.token_hex(16)
            logger.error("request %s: the application failed", self.request_id, exc_info=error)
        if settled:
            return
        if self.started:
            self._cut("application-error")
        elif isinstance(error, GatewayError):
            self.answer(error)
        else:
            self.answer(GatewayError("the cause is in the gateway's log, under this request id"))

    def _cut(self, cause: AbortCause) -> None:
        # Where the end of the connection would be the body's, it must not look like that.
        self._connection.abort(cause, self._writer is not None and self._writer.ends_by_close)

    def _has_client(self) -> bool:
        # The transport knows of a write that failed, or of our abort, a turn of the loop before it tells us.
        if self._flow.transport.is_closing() and not self.complete:
            self.lost()
        return not self.gone

    def _check_client(self) -> None:
        if not self._has_client():
            raise ClientDisconnected("the client has gone")

    def _check_startable(self) -> None:
        self._check_client()
        if self.started:
            raise RuntimeError("the reply has been started before")

    def _start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        self._check_startable()
        self._writer = ResponseWriter(status, headers, extra_headers, self.head.method, self.head.minor, date)
        self.started = True

    def _write(self, piece: bytes, more: bool) -> None:
        writer = self._writer
        if writer is None:
            raise RuntimeError("a body before the reply was started")
        if writer.head is not None and self.keep_alive:
            self.keep_alive = not (writer.closes or self._connection.must_close(self, not more))
        data = writer.write(piece, more, not self.keep_alive)
        if data:
            if len(data) < SMALL:
                self._flow.write_soon(data)
            else:
                self._flow.write(data)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.complete = True
        if not self.body.here:
            self.body.close()
        if self._over is not None:
            self._over.set()
        self._connection.completed(self)

    def _write_head(self) -> None:
        writer = self._writer
        if writer is not None and writer.head is not None and not self.gone:
            if self.keep_alive:
                self.keep_alive = not (writer.closes or self._connection.must_close(self, False))
            self._flow.write(writer.write_head(not self.keep_alive))


def date() -> bytes:
    """Of now, as Date has it (RFC 9110 section 5.6.7)."""
    return _date(int(time.time()))


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")


def refusal(error: GatewayError, request_id: str = "") -> tuple[int, list[Header], bytes]:
    status, headers, body = problem(error, request_id or secrets.token_hex(16))
    if isinstance(error, MethodNotAllowed):
        headers.append(_ALLOW)  # RFC 9110 section 15.5.6
    return status, headers, body
