"""
One HTTP/1.1 connection to the upstream, and the request and reply that it carries.

Laws: what has arrived before a request is sent is never taken for its answer. A reply ends as its framing
says or breaks off with an error. Every wait for the upstream has a deadline.
"""

from __future__ import annotations

import asyncio
import select
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol, cast
from weakref import ref

from gateway.direct_task import Arrival
from gateway.errors import ConnectionTerminated, InvalidReply, ReadTimeout
from gateway.http.headers import Fields
from gateway.http.response_parser import ResponseParser
from gateway.upstream.reply import Reply
from gateway.upstream.request import OutgoingRequest, streamed

BUFFERED_BODY: Final = 131_072  # bytes of a reply nobody has read yet, past which the upstream has to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds."""

    connect: float = 2.0  # name, socket and TLS together
    write: float = 15.0  # without the upstream taking a byte
    read: float = 15.0  # to the reply's head, and to each next piece that is waited for
    pool: float = 1.0  # for a connection to come free


class Owner(Protocol):
    """Whose connection it is: the pool."""

    def released(self, connection: UpstreamConnection) -> None:
        """Its reply is complete, and nothing speaks against another request."""

    def closed(self, connection: UpstreamConnection) -> None:
        """It takes no more requests."""

    def lost(self, connection: UpstreamConnection) -> None:
        """Its socket is gone."""


def nobody() -> None:
    """The reply of a connection that carries none."""


class UpstreamConnection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(
        self, owner: Owner, timeouts: Timeouts, *, expires: float, max_head: int, max_headers: int
    ) -> None:
        """`expires`: the loop's time from which on it takes no more requests."""
        self._owner = owner
        self._timeouts = timeouts
        self.loop = asyncio.get_running_loop()
        self._parser = ResponseParser(self, max_head, max_headers)
        self._request: OutgoingRequest | None = None  # while its reply is not over
        # Weak, since a reply that nobody holds any more is one that nobody will read.
        self._reply: Callable[[], Reply | None] = nobody
        self._headed: Arrival | None = None  # of who waits for the reply's head
        self._arrived: Arrival | None = None  # the same, while what came with the head is still looked at
        self.counted = False  # as one of the pool's
        self.gone = False
        self.used = False
        self.heard = False  # a byte has come back since the request was sent
        self.idle_since = 0.0
        self.expires = expires
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
        self._tls = False

    # What the pool asks of it.

    def start(self, request: OutgoingRequest, reply: Reply, headed: Arrival) -> None:
        """
        Sends the request. `headed` is there when the reply has its head and what came with that, or broke off
        before it.
        """
        self._request = request
        self._reply = ref(reply, self._dropped)
        self._headed = headed
        self.used = True
        self.heard = False
        self._parser.expect(request.head_only, request.upgrade)
        if request.stream is None:
            when = self._read_deadline = self.loop.time() + self._timeouts.read
            if when < self._timer_at:
                self._arm(when)
        if request.large_body:
            self.transport.writelines((request.head, request.large_body))
        else:
            self.transport.write(request.head)
        if request.stream is not None:
            self._upload = self.loop.create_task(self._send_stream(request, request.stream))
            self._upload.add_done_callback(self._uploaded)

    def silent(self) -> bool:
        """
        Whether no byte and no end waits that the loop has yet to notice: in its socket, or read from there
        and still within TLS. A TLS connection that is new may have session tickets in its socket, which say
        nothing.
        """
        if not self._tls:
            return not self._poll.poll(0)
        pending = self.transport.get_extra_info("ssl_object").pending()
        return not pending and not (self.used and self._poll.poll(0))

    def ready(self) -> bool:
        """Asked right before the first byte of a request goes out: not closing, and silent."""
        return not self.transport.is_closing() and self.silent()

    def close(self) -> None:
        self._leave_pool()
        # asyncio's TLS transport does not survive to be asked anything once it is closing.
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self._abort()
        else:
            self.transport.close()

    # What the reply asks of it (reply.Source, reply.Tunnel).

    async def more(self, reply: Reply) -> None:
        if self._waiter is not None:
            raise RuntimeError("another read() waits for this reply")
        waiter = self._waiter = self.loop.create_future()
        self._expect()
        try:
            await waiter
        except asyncio.CancelledError:
            self.cut(reply)
            raise

    def taken(self) -> None:
        self._unread = 0
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    def abandon(self, reply: Reply) -> None:
        if self._parser.switched and self._carries(reply) and not self.loop.is_closed():
            self._hang_up(reply)
        else:
            self.cut(reply)

    def cut(self, reply: Reply) -> None:
        """Breaks the reply off at once, a tunnel too, whatever is still to be sent."""
        if self._carries(reply) and not self.loop.is_closed():
            self.fail(ConnectionTerminated("the reply was closed before its end"))

    async def write(self, reply: Reply, data: bytes) -> None:
        if self._carries(reply):
            self.transport.write(data)
            await self._drain()
        if not self._carries(reply):
            raise ConnectionTerminated("the tunnel is closed") from reply.error

    def write_eof(self, reply: Reply) -> None:
        if self._carries(reply) and not self._tls:
            self.transport.write_eof()

    def _carries(self, reply: Reply) -> bool:
        return self._reply() is reply

    def _hang_up(self, reply: Reply) -> None:
        """Closes the tunnel; what was written is sent first, for as long as the upstream takes it."""
        self._end()
        reply.finish()
        self._leave_pool()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._timeouts.write, self._abort)
        self.transport.close()

    def _dropped(self, _: object) -> None:
        if self._request is not None and not self.loop.is_closed():
            warnings.warn("a reply was neither read nor closed", ResourceWarning, stacklevel=1)
            self.fail(ConnectionTerminated("nobody reads the reply"))

    # What asyncio tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._tls = transport.get_extra_info("sslcontext") is not None
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._request is None:
            self.close()
        elif self._parser.switched:
            self.received(data)
        else:
            try:
                self._parser.feed(data)
            except InvalidReply as error:
                self.fail(error)
            arrived = self._arrived
            if arrived is not None:
                self._arrived = None
                arrived.arrived()

    def eof_received(self) -> bool:
        if self._request is None:
            self.close()
        elif self._parser.switched:
            reply = self._reply()
            if reply is not None:
                reply.finish()
            self._wake()
            return not self._tls
        elif self._parser.ends_here():
            self.ended(keep=False)
        else:
            self.fail(ConnectionTerminated(self._broken_off()))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self._request is not None:
            error = ConnectionTerminated(f"{self._broken_off()}: {exc}" if exc else self._broken_off())
            error.__cause__ = exc
            self.fail(error)
        self._leave_pool()
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()
        if self._request is not None:
            self._unwritten = self.transport.get_write_buffer_size()
            self._write_deadline = self.loop.time() + self._timeouts.write
            self._arm(self._write_deadline)

    def resume_writing(self) -> None:
        self._write_deadline = inf
        self._let_write()
        self._expect()

    # What the parser tells it (response_parser.Sink).

    def replied(self, status: int, headers: Fields) -> None:
        self._read_deadline = inf
        if self._upload is not None and (status >= 300 or status == 101):
            # RFC 9112 section 9.5: the answer is there, nobody needs the rest of the request.
            self._stop_upload()
        reply = self._reply()
        if reply is not None:
            reply.begin(self, status, headers)
        self._arrived, self._headed = self._headed, None

    def received(self, piece: bytes) -> None:
        reply = self._reply()
        if reply is None:
            return
        reply.arrived(piece)
        self._unread += len(piece)
        if self._unread > BUFFERED_BODY and self._reading:
            self._reading = False
            self.transport.pause_reading()
        if self._waiter is not None:
            self._wake()

    def ended(self, keep: bool) -> None:
        request, reply = self._request, self._reply()
        self._end()
        if reply is not None:
            reply.finish()
        if keep and request is not None and request.keep_alive and not self.transport.get_write_buffer_size():
            self._unread = 0
            if not self._reading:
                self.taken()
            self._owner.released(self)
        else:
            self.close()

    def replied_whole(self, status: int, headers: Fields, body: bytes, keep: bool) -> None:
        if self._upload is not None or self._unread:
            self.replied(status, headers)
            if body:
                self.received(body)
            self.ended(keep)
            return
        request, reply = self._request, self._reply()
        self._arrived, self._headed = self._headed, None
        self._request, self._reply = None, nobody
        self._read_deadline = inf
        self._write_deadline = inf
        if reply is not None:
            reply.came(self, status, headers, body)
        unwritten = self.transport.get_write_buffer_size()
        if keep and request is not None and request.keep_alive and not unwritten:
            self._owner.released(self)
        else:
            self.close()

    # The request's body, where it is a stream.

    async def _send_stream(self, request: OutgoingRequest, stream: AsyncIterator[bytes]) -> None:
        async for piece in streamed(request, stream):
            self.transport.write(piece)
            await self._drain()

    def _uploaded(self, task: asyncio.Task[None]) -> None:
        """What the stream raised is raised by send() or read(), as it is."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._upload is not task:
            return
        self._upload = None
        if error is None:
            self._expect()
        elif isinstance(error, asyncio.CancelledError):
            self.fail(ConnectionTerminated("the sending of the request's body was cancelled"))
        else:
            self.fail(error)

    def _stop_upload(self) -> None:
        if self._request is not None:
            self._request.keep_alive = False
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
        """Starts the read timeout, if somebody waits and the upstream has all that it needs to answer."""
        if self._request is None or self._upload is not None or self._parser.switched:
            return
        if self._waiter is not None or not self._parser.headed:
            self._read_deadline = self.loop.time() + self._timeouts.read
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
        if self._request is None:
            return
        now = self.loop.time()
        nearest = self._read_deadline
        if self._writable is not None:
            # While the upstream takes what was written, it is neither stuck nor late with its reply.
            unwritten = self.transport.get_write_buffer_size()
            if unwritten < self._unwritten:
                self._unwritten = unwritten
                self._write_deadline = now + self._timeouts.write
            nearest = self._write_deadline
        if nearest > now:
            if nearest < inf:
                self._arm(nearest)
        elif self._writable is not None:
            self.fail(ReadTimeout(f"the upstream took nothing for {self._timeouts.write:g} s"))
        else:
            seconds = f"{self._timeouts.read:g} s (upstream.read_timeout)"
            if self.heard and not self._parser.headed:
                self.fail(ReadTimeout(f"the reply's head was not whole within {seconds}"))
            else:
                self.fail(ReadTimeout(f"the upstream sent nothing for {seconds}"))

    # Ends.

    def fail(self, error: BaseException) -> None:
        """Breaks the reply off, and closes the connection."""
        if self._request is not None:
            reply = self._reply()
            self._end()
            if reply is not None:
                reply.finish(error)
        self._leave_pool()
        self._abort()
        self._tell_headed()

    def _end(self) -> None:
        """The reply is over: nothing that comes now belongs to it."""
        if self._upload is not None:
            self._stop_upload()
        self._request = None
        self._reply = nobody
        self._read_deadline = self._write_deadline = inf
        if self._waiter is not None:
            self._wake()

    def _tell_headed(self) -> None:
        headed, self._headed = self._headed, None
        if headed is not None:
            headed.arrived()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        self._read_deadline = inf
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _leave_pool(self) -> None:
        """Tells the pool, once, that it takes no more requests; stops its timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_at = inf
        self._let_write()
        if self.counted:
            self.counted = False
            self._owner.closed(self)

    def _abort(self) -> None:
        if not self.gone:
            self.transport.abort()

    def _broken_off(self) -> str:
        if self._parser.switched:
            return "the upstream closed the tunnel"
        if self._parser.headed:
            return "the upstream closed the connection within the reply's body"
        if self.heard:
            return "the upstream closed the connection within the reply's head"
        return "the upstream closed the connection without a reply"
