"""
HTTP/1.1 to an upstream: a pool of connections for one origin, and httpx's transport API on top of it.

`Pool.send` gives a `Reply` once its head is there, `Reply.read` the body as it comes. Errors are httpx's:

    ConnectError, ConnectTimeout, PoolTimeout   nothing was sent; the cause is socket.gaierror, ssl.SSLError
    LocalProtocolError                          the request breaks the rules: not sent, or broken off
    WriteError, WriteTimeout                    the request may have arrived, in part at least
    ReadError, ReadTimeout                      so it may, and the reply is missing or incomplete
    RemoteProtocolError                         so it may, and the reply breaks the rules

The laws: a reply ends as its framing says or it raises. What has arrived before a request leaves is never
taken for its answer. A request of which a byte may have left goes out again only if it is safe (RFC 9110
section 9.2.1). A connection is opening, idle, busy with one exchange, or closed, and counts until then.
"""

from __future__ import annotations

import asyncio
import random
import re
import select
import socket
import ssl
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import Any, cast

import httpx
from msgspec import Struct

from gateway.errors import InvalidReply
from gateway.http.grammar import CHUNKED, METHODS, SAFE_METHODS, match_token
from gateway.http.headers import Fields, Headers, method_overrides, text
from gateway.http.response_parser import ResponseParser
from gateway.http.writer import Unwritable, field_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds; math.inf is without end."""

    connect: float = 2.0  # name, socket and TLS together
    write: float = 15.0  # without the upstream taking a byte
    read: float = 15.0  # to the reply's head, and to each next piece that is waited for
    pool: float = 1.0  # for a connection to come free
    total: float = inf  # from send() to the end of the reply


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    max_connections: int = 200
    # Under the five seconds after which uvicorn, Node and Apache close an idle connection themselves: whoever
    # closes first never sends into a connection that is closing.
    idle_timeout: float = 4.0
    max_lifetime: float = 30.0  # then a name is resolved anew
    max_head: int = 65_536
    max_headers: int = 200


BUFFERED_BODY = 131_072  # bytes of a reply nobody has read yet, past which the upstream has to wait
SEPARATE_BODY = 16_384  # from this size on a body is not copied behind the head

TARGET = re.compile(rb"[\x21-\x7e]+")


def tls_context(
    ca: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """
    A context that verifies chain and name: against the certificates in the file `ca` alone, or the system's.
    `certificate` and `key` are the files of a client certificate.
    """
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


Commit = Callable[[], None]
BeforeSend = Callable[[], Commit | None]


class Exchange:
    """One request as it goes out, and what has come back for it: shared by its Connection and its Reply."""

    __slots__ = (
        "answer",
        "connection",
        "deadline",
        "error",
        "head",
        "head_only",
        "keep",
        "large",
        "length",
        "over",
        "pieces",
        "replayable",
        "reply",
        "reused",
        "stream",
        "timeouts",
        "upgrade",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        extra_headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
        upgrade: bool,
        timeouts: Timeouts,
        deadline: float,
    ) -> None:
        self.head_only = method == b"HEAD"
        self.upgrade = upgrade
        self.timeouts = timeouts
        self.deadline = deadline
        self.connection: Connection | None = None  # since it left
        self.reused = False
        self.pieces: list[bytes] = []
        self.over = False
        self.error: BaseException | None = None
        self.reply: asyncio.Future[None] | None = None
        self.answer: tuple[int, bytes, Fields] | None = None

        if TARGET.fullmatch(target) is None or method not in METHODS:
            _refuse_odd(method, target)
        try:
            lines = headers.derived(field_lines) if isinstance(headers, Fields) else field_lines(headers)
            more = field_lines(extra_headers)
        except Unwritable as error:
            raise httpx.LocalProtocolError(f"not a request to send: {error}") from error
        length = lines.length
        self.keep = not lines.closes
        said = lines.text
        if extra_headers:
            if more.length is not None:
                if length is not None:
                    raise httpx.LocalProtocolError("the request's framing is given twice")
                length = more.length
            self.keep = not (lines.closes or more.closes)
            said += more.text
        self.large = b""
        if body is None or isinstance(body, bytes):
            self.stream = None
            self.replayable = (
                method in SAFE_METHODS
                and not method_overrides(headers)
                and not method_overrides(extra_headers)
            )
            if body is None:
                body = b""
            elif length is None:
                length = len(body)
                said += b"content-length: %d\r\n" % length
            if length == CHUNKED:
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
            elif len(body) != (length or 0):
                raise httpx.LocalProtocolError(f"Content-Length is {length}, the body has {len(body)} bytes")
            if len(body) >= SEPARATE_BODY:
                self.large, body = body, b""
        else:
            self.stream, body = body, b""
            self.replayable = False
        self.length = length or 0
        self.head = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, said, body)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """What is raised in its block is raised by its send()."""
        self.error = error
        return isinstance(error, Exception)

    def goes_on(self) -> None:
        """Whoever waits for the reply is to see what has become of it."""
        waiter, self.reply = self.reply, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def replays(self) -> bool:
        """Whether it may go out once more: it met a connection that was closed while nobody used it."""
        return (
            self.connection is not None
            and self.reused
            and self.replayable
            and not self.connection.heard
            and isinstance(self.error, httpx.NetworkError)
        )


def _refuse_odd(method: bytes, target: bytes) -> None:
    if TARGET.fullmatch(target) is None or match_token(method) is None or method == b"CONNECT":
        raise httpx.LocalProtocolError(f"not a request to send: {text(method)} {text(target)}")


class Reply(Struct, eq=False):
    """
    A reply whose head has arrived. Header names are lower-case; order and repeats are the upstream's.

    Its connection goes back to the pool at the moment the body's last byte arrives. Whoever stops before that
    calls close(), which closes the connection.
    """

    status: int
    reason: bytes
    headers: Fields
    _connection: Connection
    _exchange: Exchange

    @property
    def ended(self) -> bool:
        """Whether the whole body was handed out, or there is none. False when it broke off."""
        exchange = self._exchange
        return exchange.over and not exchange.pieces and exchange.error is None

    def whole(self) -> bytes | None:
        """The rest of the body once it has all arrived; None before, and when it broke off."""
        exchange = self._exchange
        if not exchange.over or exchange.error is not None:
            return None
        pieces = exchange.pieces
        exchange.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        """What has arrived of the body, waiting if that is nothing yet; empty at its end."""
        exchange = self._exchange
        pieces = exchange.pieces
        if not pieces and not exchange.over:
            await self._connection.more(exchange)
        if pieces:
            piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if not exchange.over:
                self._connection.taken()
            return piece
        if exchange.error is not None:
            raise exchange.error
        return b""

    def close(self) -> None:
        """Of no effect once the body has arrived or broken off."""


class _Unended(Reply, eq=False):
    """Of whose body something is still to come."""

    def close(self) -> None:
        self._connection.abandon(self._exchange)

    def __del__(self) -> None:
        if self._connection.exchange is self._exchange:
            warnings.warn("a reply was neither read nor closed", ResourceWarning, stacklevel=1)
            self._connection.abandon(self._exchange)


class Tunnel(_Unended, eq=False):
    """
    A 101 that was asked for. read() gives what the upstream sends, empty once it has ended its side. The
    connection is the caller's until close(), still counts as one of the pool's, and has no deadlines but
    that of a write that stalls.
    """

    async def write(self, data: bytes) -> None:
        """Returns when the upstream keeps up again."""
        await self._connection.write(self._exchange, data)

    def close(self) -> None:
        """What was written still arrives."""
        self._connection.hang_up(self._exchange)

    def write_eof(self) -> None:
        """Ends our side (TLS cannot: there it is of no effect)."""
        self._connection.write_eof(self._exchange)


class Connection(asyncio.Protocol):
    """One connection of a pool, and the exchange that it carries."""

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.loop = asyncio.get_running_loop()
        self._reader = ResponseParser(self, pool.limits.max_head, pool.limits.max_headers)
        self.exchange: Exchange | None = None
        self.counted = False  # as one of the pool's
        self.lost = False
        self.used = False
        self.heard = False  # a byte has come back in this exchange
        self.idle_since = 0.0
        # Spread, so that connections opened together are not all replaced together.
        self.expires = self.loop.time() + pool.limits.max_lifetime * random.uniform(0.75, 1.0)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._read_deadline = inf
        self._write_deadline = inf
        self._waiter: asyncio.Future[None] | None = None  # of who waits for more of the body
        self._reading = True
        self._unread = 0
        self._upload: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None  # there while the upstream does not keep up
        self._unwritten = 0

    # What the pool and the reply ask of it.

    def start(self, exchange: Exchange) -> asyncio.Future[None]:
        """Sends the request. The future is done when `exchange` has an answer, or the error instead of it."""
        self.exchange = exchange
        exchange.connection = self
        exchange.reused = self.used
        self.used = True
        self.heard = False
        self._reader.expect(exchange.head_only, exchange.upgrade)
        reply = exchange.reply
        if reply is None:
            reply = exchange.reply = self.loop.create_future()
        deadline = exchange.deadline
        if exchange.stream is None:
            deadline = min(deadline, self.loop.time() + exchange.timeouts.read)
        self._read_deadline = deadline
        if deadline < self._timer_at:
            self._arm(deadline)
        if exchange.large:
            self.transport.writelines((exchange.head, exchange.large))
        else:
            self.transport.write(exchange.head)
        if exchange.stream is not None:
            self._upload = self.loop.create_task(self._send_stream(exchange, exchange.stream))
            self._upload.add_done_callback(self._uploaded)
        return reply

    async def more(self, exchange: Exchange) -> None:
        """Waits for the next piece of the body, or its end."""
        if self._waiter is not None:
            raise RuntimeError("another read() waits for this reply")
        waiter = self._waiter = self.loop.create_future()
        self._expect()
        try:
            await waiter
        except asyncio.CancelledError:
            self.abandon(exchange)
            raise

    def taken(self) -> None:
        self._unread = 0
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    def abandon(self, exchange: Exchange) -> None:
        """Closes the connection if the exchange is still on."""
        if self.exchange is exchange and not self.loop.is_closed():
            self.fail(httpx.ReadError("the reply was closed before its end"))

    async def write(self, exchange: Exchange, data: bytes) -> None:
        if self.exchange is exchange:
            self.transport.write(data)
            await self._drain()
        if self.exchange is not exchange:
            raise httpx.WriteError("the tunnel is closed") from exchange.error

    def write_eof(self, exchange: Exchange) -> None:
        if self.exchange is exchange and self._pool.tls is None:
            self.transport.write_eof()

    def hang_up(self, exchange: Exchange) -> None:
        if self.exchange is exchange and not self.loop.is_closed():
            self._end(exchange)
            self._forget()
            if self.transport.get_write_buffer_size():
                self.loop.call_later(exchange.timeouts.write, self._abort)
            self.transport.close()

    def fail(self, error: BaseException) -> None:
        """Ends the exchange, and with it the connection."""
        exchange = self.exchange
        if exchange is not None:
            exchange.error = error
            self._end(exchange)
            exchange.goes_on()
        self._forget()
        self._abort()

    def close(self) -> None:
        self._forget()
        # asyncio's TLS transport does not survive to be asked anything once it is closing.
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self._abort()
        else:
            self.transport.close()

    def _abort(self) -> None:
        if not self.lost:
            self.transport.abort()

    def reusable(self, now: float) -> bool:
        """Whether nothing speaks against an idle one, not even an end that the loop has yet to notice."""
        return (
            now - self.idle_since < self._pool.limits.idle_timeout
            and now < self.expires
            and not self._poll.poll(0)
        )

    # What asyncio tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self.exchange is None:
            self.close()
        elif self._reader.switched:
            self.received(data)
        else:
            try:
                self._reader.feed(data)
            except InvalidReply as error:
                self.fail(httpx.RemoteProtocolError(str(error)))

    def eof_received(self) -> bool:
        exchange = self.exchange
        if exchange is None:
            self.close()
        elif self._reader.switched:
            exchange.over = True
            self._wake()
            return self._pool.tls is None
        elif self._reader.ends_here():
            self.ended(keep=False)
        else:
            self.fail(httpx.ReadError(self._broken_off()))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.exchange is not None:
            writing = self._upload is not None or self._writable is not None
            kind = httpx.WriteError if writing else httpx.ReadError
            error = kind(f"{self._broken_off()}: {exc}" if exc else self._broken_off())
            error.__cause__ = exc
            self.fail(error)
        self._forget()
        self._pool.lost(self)

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()
        if self.exchange is not None:
            self._unwritten = self.transport.get_write_buffer_size()
            self._write_deadline = self.loop.time() + self.exchange.timeouts.write
            self._arm(self._write_deadline)

    def resume_writing(self) -> None:
        self._write_deadline = inf
        self._let_write()
        self._expect()

    # What the reader tells it.

    def replied(self, status: int, headers: Fields) -> None:
        exchange = self.exchange
        assert exchange is not None
        exchange.answer = status, b"", headers
        if self._reader.switched:
            exchange.deadline = inf
        self._read_deadline = exchange.deadline
        if self._upload is not None and (status >= 300 or status == 101):
            # RFC 9112 section 9.5: the answer is there, nobody needs the rest of the request.
            self._stop_upload(exchange)
        exchange.goes_on()

    def received(self, piece: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        exchange.pieces.append(piece)
        self._unread += len(piece)
        if self._unread > BUFFERED_BODY and self._reading:
            self._reading = False
            self.transport.pause_reading()
        if self._waiter is not None:
            self._wake()

    def ended(self, keep: bool) -> None:
        exchange = self.exchange
        assert exchange is not None
        self._end(exchange)
        if keep and exchange.keep and not self.transport.get_write_buffer_size():
            self._unread = 0
            if not self._reading:
                self.taken()
            self._pool.release(self)
        else:
            self.close()

    # The request's body, where it is a stream.

    async def _send_stream(self, exchange: Exchange, stream: AsyncIterator[bytes]) -> None:
        length = left = exchange.length
        write = self.transport.write
        async for piece in stream:
            if not piece:
                continue
            if length == CHUNKED:
                write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                left -= len(piece)
                if left < 0:
                    raise httpx.LocalProtocolError(f"the body is longer than its Content-Length of {length}")
                write(piece)
            await self._drain()
        if length == CHUNKED:
            write(b"0\r\n\r\n")
        elif left:
            raise httpx.LocalProtocolError(f"the body is {left} bytes shorter than its Content-Length")

    def _uploaded(self, task: asyncio.Task[None]) -> None:
        """What the stream raised is raised by send() or read(), as it is."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._upload is not task:
            return
        self._upload = None
        if error is None:
            self._expect()
        elif isinstance(error, asyncio.CancelledError):
            self.fail(httpx.WriteError("the sending of the request's body was cancelled"))
        else:
            self.fail(error)

    def _stop_upload(self, exchange: Exchange) -> None:
        exchange.keep = False
        if self._upload is not None:
            task, self._upload = self._upload, None
            task.cancel()

    async def _drain(self) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)
        elif self.transport.is_closing():
            # What is written now is dropped, which nobody is ever made to wait for.
            await asyncio.sleep(0)

    def _let_write(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    # Deadlines. The one timer is set anew only when it fires, or when a nearer deadline comes.

    def _expect(self) -> None:
        """From here on the upstream may be late: somebody waits, and it has all it needs for its answer."""
        exchange = self.exchange
        if exchange is None or self._upload is not None or self._reader.switched:
            return
        if self._waiter is not None or not self._reader.headed:
            self._read_deadline = min(exchange.deadline, self.loop.time() + exchange.timeouts.read)
            self._arm(self._read_deadline)

    def _arm(self, when: float) -> None:
        if when < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self.loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = inf
        exchange = self.exchange
        if exchange is None:
            return
        now = self.loop.time()
        nearest = self._read_deadline
        if self._writable is not None:
            # While the upstream takes what was written, it is neither stuck nor late with its reply.
            unwritten = self.transport.get_write_buffer_size()
            if unwritten < self._unwritten:
                self._unwritten = unwritten
                self._write_deadline = now + exchange.timeouts.write
            nearest = min(self._write_deadline, exchange.deadline)
        if nearest > now:
            self._arm(nearest)
        elif exchange.deadline <= now:
            self.fail(httpx.ReadTimeout("the upstream did not reply within the time for the whole request"))
        elif self._writable is not None:
            self.fail(httpx.WriteTimeout(f"the upstream took nothing for {exchange.timeouts.write:g} s"))
        else:
            self.fail(httpx.ReadTimeout(f"the upstream sent nothing for {exchange.timeouts.read:g} s"))

    # Ends.

    def _end(self, exchange: Exchange) -> None:
        self.exchange = None
        self._read_deadline = self._write_deadline = inf
        exchange.over = True
        if self._upload is not None:
            self._stop_upload(exchange)
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if self.exchange is not None:
            self._read_deadline = self.exchange.deadline
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _forget(self) -> None:
        """Whatever closes it: it is no longer counted, and nothing of it is left to come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_at = inf
        self._let_write()
        if self.counted:
            self.counted = False
            self._pool.closed(self)

    def _broken_off(self) -> str:
        if self._reader.switched:
            return "the upstream closed the tunnel"
        if self._reader.headed:
            return "the upstream closed the connection within the reply's body"
        if self.heard:
            return "the upstream closed the connection within the reply's head"
        return "the upstream closed the connection without a reply"


class Pool:
    """
    Connections to one origin. Of the idle ones the last to come back is the first to be taken, so that those
    not needed grow old and go; who has to wait is served first come, first served.
    """

    def __init__(
        self,
        scheme: str,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        if scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"neither http nor https: {scheme!r}")
        if tls is not None and (tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname):
            raise ValueError("the TLS context must verify the upstream's certificate and name")
        self.host = host
        self.port = port
        self.limits = limits or PoolLimits()
        self.timeouts = timeouts or Timeouts()
        self.tls = (tls or tls_context()) if scheme == "https" else None
        self._size = 0  # opening, idle and busy
        self._idle: dict[Connection, None] = {}  # oldest first. Not empty only while nobody waits
        self._queue: deque[asyncio.Future[Connection | None]] = deque()
        self._departing: list[tuple[Exchange, BeforeSend]] = []
        self._sockets: set[Connection] = set()  # also those closed whose socket is still to go
        self._gone: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the idle ones
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def size(self) -> int:
        """Connections that are opening, idle or busy: at most `max_connections`."""
        return self._size

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection to come free."""
        return sum(not place.done() for place in self._queue)

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
        timeouts: Timeouts | None = None,
        deadline: float = inf,
    ) -> Reply:
        """
        Sends one request and returns the reply once its head is there. The headers, then `own`, are sent as
        they are: Host is the caller's, and the framing: Content-Length, which a body in one piece can do
        without, or `transfer-encoding: chunked`, which is done here. What is made of Fields is made once.

        A body that is a stream is read while the reply is waited for, and no further once the reply is
        complete or says no; what it raises is raised here. With `upgrade` a 101 is returned, as a Tunnel.
        `deadline` is a time of the loop's clock, and `timeouts.total` can only bring it nearer.

        `leaving` is called when a connection is had, right before the first byte is written; after it what it
        returned, once for all requests that leave together and returned the same. What either raises is
        raised here, and nothing was sent.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        # Asking for the running loop asks the system for the process id, so it is asked as rarely as may be.
        loop = self._loop if self._idle and self._loop is not None else asyncio.get_running_loop()
        now = loop.time()
        timeouts = timeouts or self.timeouts
        exchange = Exchange(
            method,
            target,
            headers,
            extra_headers,
            body,
            upgrade,
            timeouts,
            min(deadline, now + timeouts.total),
        )
        if exchange.deadline <= now:
            raise httpx.ConnectTimeout("no time is left to send the request")
        if before_send is not None and self._idle and (self._departing or len(self._idle) < self._size):
            # In company: who is alone gains nothing by waiting for others.
            if not self._departing:
                loop.call_soon(self._depart, loop)
            self._departing.append((exchange, before_send))
            reply = exchange.reply = loop.create_future()
        else:
            reply = self._leave(self._take(now) or await self._acquire(exchange), exchange, before_send)
        while True:
            try:
                await reply
            except asyncio.CancelledError:
                if exchange.connection is not None:
                    exchange.connection.abandon(exchange)
                raise
            if exchange.answer is not None:
                assert exchange.connection is not None
                status, reason, said = exchange.answer
                kind = Tunnel if status == 101 else Reply if exchange.over else _Unended
                return kind(status, reason, said, exchange.connection, exchange)
            if exchange.error is None:  # it found no connection when the others left
                reply = self._leave(await self._acquire(exchange), exchange, before_send)
            elif exchange.replays():
                exchange.error, exchange.over, exchange.replayable = None, False, False
                reply = (await self._acquire(exchange, fresh=True)).start(exchange)
            else:
                raise exchange.error

    def _leave(
        self, connection: Connection, exchange: Exchange, before_send: BeforeSend | None
    ) -> asyncio.Future[None]:
        if before_send is not None:
            left = False
            try:
                commit = before_send()
                if commit is not None:
                    commit()
                left = True
            finally:
                if not left:
                    self.release(connection)
        return connection.start(exchange)

    def _depart(self, loop: asyncio.AbstractEventLoop) -> None:
        """All that wanted to leave in one turn of the loop, and find a connection idle: one commit does."""
        departing, self._departing = self._departing, []
        going: list[tuple[Connection, Exchange]] = []
        commits: dict[Commit, list[Exchange]] = {}
        for exchange, before_send in departing:
            if exchange.reply is None or exchange.reply.done():
                continue  # cancelled meanwhile
            connection = self._take(loop.time())
            if connection is None:
                exchange.goes_on()
                continue
            going.append((connection, exchange))
            with exchange:
                commit = before_send()
                if commit is not None:
                    commits.setdefault(commit, []).append(exchange)
        for commit, together in commits.items():
            with together[0] as first:
                commit()
            for exchange in together:
                exchange.error = first.error
        for connection, exchange in going:
            if exchange.error is None:
                connection.start(exchange)
            else:
                exchange.goes_on()
                self.release(connection)

    def close(self) -> None:
        """Takes no more requests. Idle connections are closed now, busy ones when their reply is over."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._idle):
            connection.close()

    async def wait_closed(self) -> None:
        """Returns when no connection is left."""
        while self._sockets or self._size:
            if self._gone is None:
                self._gone = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)

    # Who gets a connection.

    def _take(self, now: float) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.reusable(now):
                return connection
            connection.close()
        return None

    async def _acquire(self, exchange: Exchange, *, fresh: bool = False) -> Connection:
        """
        An idle connection, or a new one, or the next that comes free. With `fresh` no idle one: the one taken
        before turned out to be dead, and the others have had longer to die.
        """
        now = asyncio.get_running_loop().time()
        deadline = min(exchange.deadline, now + exchange.timeouts.pool)
        if fresh and self._idle and self._size >= self.limits.max_connections:
            next(iter(self._idle)).close()
        connection = None if fresh else self._take(now)
        first = False
        while connection is None:
            if self._size < self.limits.max_connections:
                self._size += 1
            else:
                connection = await self._wait_turn(deadline, first)
            if connection is None:
                return await self._open(exchange)
            if connection.transport.is_closing():
                connection = None
                first = True
        return connection

    async def _wait_turn(self, deadline: float, first: bool) -> Connection | None:
        """A connection that came free; or None: there is room for a new one, already counted."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[Connection | None] = loop.create_future()
        if first:
            self._queue.appendleft(place)
        else:
            self._queue.append(place)
        timer = loop.call_at(deadline, self._expire, place) if deadline < inf else None
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.done() and place.exception() is None:
                self._give_back(place.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _expire(self, place: asyncio.Future[Connection | None]) -> None:
        if not place.done():
            place.set_exception(httpx.PoolTimeout("no connection to the upstream came free in time"))
        while self._queue and self._queue[0].done():
            self._queue.popleft()

    def _give_back(self, connection: Connection | None) -> None:
        if connection is None:
            self._size -= 1
            self._admit()
        elif connection.counted:
            self.release(connection)

    def _admit(self) -> None:
        """Lets who waits longest open a connection, for each that is gone."""
        while self._queue and self._size < self.limits.max_connections:
            place = self._queue.popleft()
            if not place.done():
                self._size += 1
                place.set_result(None)
        if self._gone is not None and not self._sockets and not self._size:
            self._gone.set_result(None)
            self._gone = None

    async def _open(self, exchange: Exchange) -> Connection:
        """A new connection, for a place in `_size` that is already taken."""
        loop = asyncio.get_running_loop()
        when = min(exchange.deadline, loop.time() + exchange.timeouts.connect)
        opened = False
        try:
            async with asyncio.timeout_at(when if when < inf else None):
                connection = await self._connect(loop)
            if connection.transport.is_closing():
                raise ConnectionResetError("the upstream closed the connection, or spoke, as it was opened")
            opened = connection.counted = True
            self._sockets.add(connection)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {self.host}:{self.port} in time") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"no connection to {self.host}:{self.port}: {error}") from error
        finally:
            if not opened:
                self._size -= 1
                self._admit()
        return connection

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        addresses = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        found = await first_connected([(family, address) for family, _, _, _, address in addresses])
        _, connection = await loop.create_connection(
            lambda: Connection(self),
            sock=found,
            ssl=self.tls,
            server_hostname=self.host if self.tls is not None else None,
            ssl_shutdown_timeout=1.0 if self.tls is not None else None,
        )
        return connection

    # What connections tell it.

    def lost(self, connection: Connection) -> None:
        self._sockets.discard(connection)
        self._admit()

    def closed(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._size -= 1
        self._admit()

    def release(self, connection: Connection) -> None:
        """Its exchange is complete, and nothing speaks against another."""
        loop = self._loop = connection.loop
        now = loop.time()
        if self._closed or now >= connection.expires:
            connection.close()
            return
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(connection)
                return
        connection.idle_since = now
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = loop.call_later(self.limits.idle_timeout, self._sweep)

    def _sweep(self) -> None:
        """Closes what has been idle for too long; comes again when the next will have been."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._idle):
            when = connection.idle_since + self.limits.idle_timeout
            if when > now:
                self._sweeper = loop.call_at(when, self._sweep)
                return
            connection.close()


Address = tuple[int, Any]  # a family, and what socket.connect takes there


async def first_connected(addresses: Sequence[Address], delay: float = 0.25) -> socket.socket:
    """
    The socket that connects first. Each address is tried `delay` seconds after the one before it, or when one
    has failed; the families by turns (RFC 8305 sections 4 and 5). Raises what the last one failed with.
    """
    if len(addresses) == 1:
        return await _connected(addresses[0])
    left = deque(_alternating(addresses))
    attempts: set[asyncio.Task[socket.socket]] = set()
    winner: socket.socket | None = None
    error: BaseException = OSError("the name has no address")
    try:
        while winner is None and (left or attempts):
            if left:
                attempts.add(asyncio.create_task(_connected(left.popleft())))
            done, attempts = await asyncio.wait(
                attempts, timeout=delay if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                failure = attempt.exception()
                if failure is not None:
                    error = failure
                elif winner is None:
                    winner = attempt.result()
                else:
                    attempt.result().close()
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close_late)
            attempt.cancel()
    if winner is None:
        raise error
    return winner


def _alternating(addresses: Sequence[Address]) -> list[Address]:
    """In their order, but the first family and the others by turns."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    mixed = [address for pair in zip(first, others, strict=False) for address in pair]
    paired = len(mixed) // 2
    return mixed + first[paired:] + others[paired:]


async def _connected(address: Address) -> socket.socket:
    family, where = address
    # Named, or asyncio does not take it for TCP and leaves Nagle's algorithm on.
    attempt = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    connected = False
    try:
        attempt.setblocking(False)
        await asyncio.get_running_loop().sock_connect(attempt, where)
        connected = True
    finally:
        if not connected:
            attempt.close()
    return attempt


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


class PooledTransport(httpx.AsyncBaseTransport):
    """
    For `httpx.AsyncClient(transport=...)`: a pool for each origin. A request's extensions `timeout` and
    `target` are honoured; what the former does not name is as in `timeouts`.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        self._tls = tls
        self._timeouts = timeouts or Timeouts()
        self._limits = limits
        self._pools: dict[tuple[str, str, int], Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body: bytes | AsyncIterator[bytes] | None
        if isinstance(request.stream, httpx.ByteStream):
            body = b"".join([piece async for piece in request.stream]) or None
        elif isinstance(request.stream, httpx.AsyncByteStream):
            body = aiter(request.stream)
        else:
            raise RuntimeError("the request's stream is not an asynchronous one")
        reply = await self._pool(request.url).send(
            request.method.encode("ascii"),
            request.extensions.get("target", request.url.raw_path),
            request.headers.raw,
            body,
            timeouts=self._chosen(request.extensions.get("timeout", {})),
        )
        return httpx.Response(
            reply.status,
            headers=reply.headers,
            stream=_ReplyStream(reply),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": reply.reason},
        )

    async def aclose(self) -> None:
        """Idle connections are closed now, busy ones when their reply is over."""
        for pool in self._pools.values():
            pool.close()
            if not pool.size:
                await pool.wait_closed()
        self._pools.clear()

    def _pool(self, url: httpx.URL) -> Pool:
        host = url.raw_host.decode("ascii")
        origin = url.scheme, host, url.port or (443 if url.scheme == "https" else 80)
        pool = self._pools.get(origin)
        if pool is None:
            for other in [key for key, unused in self._pools.items() if not unused.size]:
                del self._pools[other]
            if url.scheme == "https" and self._tls is None:
                self._tls = tls_context()
            pool = self._pools[origin] = Pool(
                *origin, tls=self._tls, timeouts=self._timeouts, limits=self._limits
            )
        return pool

    def _chosen(self, timeout: dict[str, float | None]) -> Timeouts:
        ours = self._timeouts

        def seconds(name: str, default: float) -> float:
            value = timeout.get(name, default)
            return inf if value is None else value

        return Timeouts(
            connect=seconds("connect", ours.connect),
            write=seconds("write", ours.write),
            read=seconds("read", ours.read),
            pool=seconds("pool", ours.pool),
            total=ours.total,
        )


class _ReplyStream(httpx.AsyncByteStream):
    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._reply.read():
            yield piece

    async def aclose(self) -> None:
        self._reply.close()
