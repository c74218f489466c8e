"""
Connections to one origin, and who gets which.

Laws: a request of which a byte may have left is sent again only if it is safe (RFC 9110 section 9.2.1), and
then once. A connection is opening, idle, busy with one request, or closed, and counts until then. Of the idle
ones the last to come back is the first to be taken, so that those not needed grow old and go. Who has to
wait is served by turns with other callers, and first come, first served among the
requests of one. Whoever holds a connection for nothing is told when somebody waits (`on_wait`).

What the upstream sends unasked is never an answer: a connection is polled when it is taken, be it idle, new
or handed over by the request before, and once more when `before_send` has taken its time; between the last
poll and the first byte nothing else happens. One that hears something while it is idle closes itself; what
follows a reply closes its connection (http/response_parser.py). What arrives after the poll no proxy can
tell from an answer.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from msgspec import Struct

from gateway.direct_task import Arrival
from gateway.errors import ConnectionRefused, ConnectionTerminated, PoolExhausted
from gateway.http.headers import Headers
from gateway.http.slots import Values
from gateway.upstream.connect import SPOKE, open_connection, tls_context
from gateway.upstream.connection import Timeouts, UpstreamConnection
from gateway.upstream.reply import Reply
from gateway.upstream.request import OutgoingRequest, outgoing
from gateway.upstream.transport import BeforeSend, Commit, nobody

CLOCK_SLACK: Final = 0.002  # seconds that a loop's clock may run behind its timers


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Numbers of connections, seconds, bytes of a reply's head, and its field lines."""

    max_connections: int = 200
    # Under the five seconds after which uvicorn, Node and Apache close an idle connection themselves: whoever
    # closes first never sends into a connection that is closing.
    idle_timeout: float = 4.0
    max_lifetime: float = 30.0  # then a name is resolved anew
    max_head: int = 65_536
    max_headers: int = 200


class _Sending(Struct, eq=False):
    """A request on its way to a connection, and who waits for its reply's head."""

    request: OutgoingRequest
    before_send: BeforeSend | None
    caller_of: Callable[[], str]
    reply: Reply
    headed: Arrival | None = None
    connection: UpstreamConnection | None = None  # since it was sent
    reused: bool = False
    fresh: bool = False  # no idle connection is good enough
    may_open: bool = False  # a new one is counted for it
    caller: str = ""
    deadline: float = 0.0  # while it waits for a connection

    def __enter__(self) -> _Sending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """An exception in its block fails this request alone: its send() raises it."""
        if isinstance(error, Exception):
            self.reply.finish(error)
            return True
        return False

    def start(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        self.reused = connection.used
        if self.headed is None:
            self.headed = Arrival(connection.loop)
        connection.start(self.request, self.reply, self.headed)

    def wake(self) -> None:
        """Wakes its send(), which looks at the reply."""
        if self.headed is not None:
            self.headed.arrived()

    def met_a_dead_connection(self) -> bool:
        """Whether it may be sent once more: its connection was closed while nobody used it."""
        return (
            self.connection is not None
            and self.reused
            and self.request.replayable
            and not self.connection.heard
            and isinstance(self.reply.error, ConnectionTerminated)
        )

    def prepare_replay(self) -> None:
        """The connection taken before turned out to be dead, and the idle ones have had longer to die."""
        self.request.replayable = False
        self.reply = Reply()
        self.headed = None
        self.before_send = None  # it has been recorded
        self.fresh = True


class Pool:
    """A Transport (transport.py) over HTTP/1.1 connections of our own."""

    def __init__(
        self,
        scheme: str,
        host: str,
        port: int,
        *,
        prefix: bytes = b"",
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        """`prefix` goes before each target but `*`."""
        if scheme not in ("http", "https"):
            raise ValueError(f"neither http nor https: {scheme!r}")
        if tls is not None and (tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname):
            raise ValueError("the TLS context must verify the upstream's certificate and name")
        self.host = host
        self.port = port
        self.limits = limits or PoolLimits()
        self.timeouts = timeouts or Timeouts()
        self._prefix = prefix
        self._tls = (tls or tls_context()) if scheme == "https" else None
        self._size = 0  # opening, idle and busy
        self._idle: dict[UpstreamConnection, None] = {}  # oldest first; empty whenever a request waits
        # By caller, whose turn is next first; and all of them, who came first first.
        self._queue: OrderedDict[str, OrderedDict[_Sending, None]] = OrderedDict()
        self._waiting: OrderedDict[_Sending, None] = OrderedDict()
        self._expiry: asyncio.TimerHandle | None = None  # of the first: they all wait for as long
        # Told of each request that has to wait.
        self.on_wait: Callable[[asyncio.AbstractEventLoop], None] | None = None
        # Told of each reply, where somebody waits for the upstream to answer again.
        self.on_reply: Callable[[], None] | None = None
        self._handed: list[UpstreamConnection] = []  # that came free in this turn of the loop, for who waits
        self._together: list[_Sending] = []  # to be sent in this turn of the loop
        self._sockets: set[UpstreamConnection] = set()  # also those closed whose socket is still to go
        self._gone: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of its connections
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
        return len(self._waiting)

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
        if self._closed:
            raise RuntimeError("the pool is closed")
        if self._prefix and target != b"*":
            target = self._prefix + target
        request = outgoing(method, target, headers, extra_headers, body, upgrade, values)
        sending = _Sending(request, before_send, caller, Reply())
        # Asking for the running loop asks the system for the process id, so it is asked as rarely as may be.
        known = self._loop if self._idle or self._waiting else None
        loop = known or asyncio.get_running_loop()
        if self._idle and (self._together or len(self._idle) < self._size):
            # Only while others are in flight: a request that is alone would gain nothing.
            if not self._together:
                loop.call_soon(self._send_together, loop)
            self._together.append(sending)
            sending.headed = Arrival(loop)
        else:
            connection = self._take(loop.time(), before_send is None) if self._idle else None
            if connection is None and self._size >= self.limits.max_connections:
                self._enqueue(sending, loop)
            else:
                await self._send_on(connection, sending)
        while True:
            assert sending.headed is not None
            try:
                await sending.headed
            except asyncio.CancelledError:
                self._leave_queue(sending)
                if sending.connection is not None:
                    sending.connection.cut(sending.reply)
                if sending.may_open:
                    self._size -= 1
                    self._admit()
                raise
            reply = sending.reply
            if reply.status:
                if self.on_reply is not None:
                    self.on_reply()
                return reply
            if reply.error is None:  # it is to open a connection, or found none when the others were sent
                sending.headed = None
                await self._send_on(None, sending)
            elif sending.met_a_dead_connection():
                sending.prepare_replay()
                await self._send_on(None, sending)
            else:
                raise reply.error

    async def _send_on(self, connection: UpstreamConnection | None, sending: _Sending) -> None:
        """On this connection, or on one that is to be had; if there is none now, it waits in the queue."""
        while True:
            connection = connection or await self._acquire(sending)
            if connection is None:
                self._enqueue(sending, asyncio.get_running_loop())
                return
            if sending.before_send is None:
                break
            allowed = False
            try:
                commit = sending.before_send()
                if commit is not None:
                    commit()
                allowed = True
            finally:
                if not allowed:
                    self.released(connection)
            if connection.ready():
                break
            # It spoke meanwhile. For the next one all is asked anew: it may have to be waited for.
            connection.close()
            connection = None
        sending.start(connection)

    def _send_together(self, loop: asyncio.AbstractEventLoop) -> None:
        """All that came in one turn of the loop, and find a connection idle: one commit does for them."""
        together, self._together = self._together, []
        going: list[tuple[UpstreamConnection, _Sending]] = []
        for sending in together:
            if sending.headed is None or sending.headed.there:
                continue  # cancelled meanwhile
            connection = self._take(loop.time(), False)
            if connection is None:
                sending.wake()
            else:
                going.append((connection, sending))
        self._record_and_start(going)

    def _hand_out(self) -> None:
        """What came free in this turn of the loop, to those whose turn it is."""
        handed, self._handed = self._handed, []
        going: list[tuple[UpstreamConnection, _Sending]] = []
        for connection in handed:
            if not connection.counted:
                continue  # it has closed itself
            if not connection.ready():
                connection.close()
                continue
            sending = self._next()
            if sending is None:
                self.released(connection)
            elif sending.before_send is None:
                sending.start(connection)
            else:
                going.append((connection, sending))
        if going:
            self._record_and_start(going)

    def _record_and_start(self, going: list[tuple[UpstreamConnection, _Sending]]) -> None:
        """One commit does for all that returned the same."""
        commits: dict[Commit, list[_Sending]] = {}
        for _, sending in going:
            with sending:
                commit = sending.before_send() if sending.before_send is not None else None
                if commit is not None:
                    commits.setdefault(commit, []).append(sending)
        for commit, committed in commits.items():
            with committed[0] as first:
                commit()
            if first.reply.error is not None:
                for sending in committed[1:]:
                    sending.reply.finish(first.reply.error)
        for connection, sending in going:
            if sending.reply.error is not None:
                sending.wake()
                self.released(connection)
            elif connection.ready():
                sending.start(connection)
            else:  # it spoke meanwhile: alone, on another
                connection.close()
                sending.wake()

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

    def _take(self, now: float, polled: bool = True) -> UpstreamConnection | None:
        """Not `polled` where it is asked once more anyway, when the request has been recorded."""
        since = now - self.limits.idle_timeout
        while self._idle:
            connection, _ = self._idle.popitem()
            young = connection.idle_since > since and now < connection.expires
            if young and (not polled or connection.silent()):
                return connection
            connection.close()
        return None

    async def _acquire(self, sending: _Sending) -> UpstreamConnection | None:
        """
        An idle connection, or a new one; None: there are as many as may be, and all are busy. Raises what
        kept a connection from being opened.
        """
        if sending.may_open:
            sending.may_open = False
            return await self._open()
        if sending.fresh:
            if self._size >= self.limits.max_connections and self._idle:
                next(iter(self._idle)).close()
        else:
            connection = self._take(asyncio.get_running_loop().time())
            if connection is not None:
                return connection
        if self._size >= self.limits.max_connections:
            return None
        self._size += 1
        return await self._open()

    def _enqueue(self, sending: _Sending, loop: asyncio.AbstractEventLoop) -> None:
        sending.headed = Arrival(loop)
        sending.deadline = loop.time() + self.timeouts.pool
        sending.caller = sending.caller_of()
        places = self._queue.get(sending.caller)
        if places is None:
            places = self._queue[sending.caller] = OrderedDict()
        places[sending] = None
        self._waiting[sending] = None
        if self._expiry is None:
            self._expiry = loop.call_at(sending.deadline, self._expire, loop)
        if self.on_wait is not None:
            self.on_wait(loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expiry = None
        now = loop.time() + CLOCK_SLACK
        while self._waiting:
            sending = next(iter(self._waiting))
            if sending.deadline > now:
                self._expiry = loop.call_at(sending.deadline, self._expire, loop)
                return
            self._leave_queue(sending)
            sending.reply.finish(PoolExhausted("no connection to the upstream came free in time"))
            sending.wake()

    def _leave_queue(self, sending: _Sending) -> None:
        """Of no effect where it has left."""
        if sending in self._waiting:
            del self._waiting[sending]
            places = self._queue[sending.caller]
            del places[sending]
            if not places:
                del self._queue[sending.caller]

    def _next(self) -> _Sending | None:
        """Who gets what is free: the first of the caller whose turn it is, who then is the last."""
        while self._queue:
            caller, places = self._queue.popitem(last=False)
            sending, _ = places.popitem(last=False)
            del self._waiting[sending]
            if places:
                self._queue[caller] = places
            assert sending.headed is not None
            if not sending.headed.there:  # else it has just been cancelled
                return sending
        return None

    def _admit(self) -> None:
        """Lets who waits open a connection, for each that is gone."""
        while self._size < self.limits.max_connections and (sending := self._next()) is not None:
            self._size += 1
            sending.may_open = True
            sending.wake()
        if self._gone is not None and not self._sockets and not self._size:
            self._gone.set_result(None)
            self._gone = None

    async def _open(self) -> UpstreamConnection:
        """A new connection, for a place in `_size` that is already taken."""
        opened = False
        try:
            connection = await open_connection(
                self._make, self.host, self.port, self._tls, self.timeouts.connect
            )
            if not connection.silent():
                connection.close()
                raise ConnectionRefused(f"no connection to {self.host}:{self.port}: {SPOKE}")
            opened = connection.counted = True
            self._sockets.add(connection)
        finally:
            if not opened:
                self._size -= 1
                self._admit()
        return connection

    def _make(self) -> UpstreamConnection:
        limits = self.limits
        # Spread, so that connections opened together are not all replaced together.
        lifetime = limits.max_lifetime * random.uniform(0.75, 1.0)
        return UpstreamConnection(
            self,
            self.timeouts,
            expires=asyncio.get_running_loop().time() + lifetime,
            max_head=limits.max_head,
            max_headers=limits.max_headers,
        )

    # What connections tell it (connection.Owner).

    def released(self, connection: UpstreamConnection) -> None:
        loop = self._loop = connection.loop
        now = loop.time()
        if self._closed or now >= connection.expires:
            connection.close()
            return
        if self._waiting:
            # A turn of the loop later, when what follows the reply is noticed, and for all at once.
            if not self._handed:
                loop.call_soon(self._hand_out)
            self._handed.append(connection)
            return
        connection.idle_since = now
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = loop.call_later(self.limits.idle_timeout, self._sweep)

    def closed(self, connection: UpstreamConnection) -> None:
        self._idle.pop(connection, None)
        self._size -= 1
        self._admit()

    def lost(self, connection: UpstreamConnection) -> None:
        self._sockets.discard(connection)
        self._admit()

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
