"""
The downstream connection: what uvicorn runs for each client that connects.

    reading      bytes into a head, and what follows it into the request's body
    serving      a task for the request: the application's
    replying     what the request cycle writes; then on to the next request
    ending       refused, turned away, lingering, closed, aborted
    deadlines    how long a client is waited for, each wait in one table

Law: the requests of a connection are served one at a time, in the order they came; every wait for a client
has a deadline and every buffer a bound.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias, cast

from gateway.direct_task import DirectTask
from gateway.errors import (
    AbortCause,
    BadRequest,
    BodyTimeout,
    GatewayError,
    HeadTimeout,
    Overloaded,
    RequestError,
    TlsOnPlainPort,
)
from gateway.http.grammar import CHUNKED, HEAD_END
from gateway.http.head_shapes import HeadShapes
from gateway.http.request_parser import (
    MAX_BLANK_LINES,
    RequestHead,
    blank_lines,
    parse_head,
    refuse_hopeless,
)
from gateway.http.response_writer import ResponseWriter
from gateway.server import asgi
from gateway.server.access_log import Access
from gateway.server.client_watch import CLOCK_SLACK, ClientWatch
from gateway.server.duplex_stream import DuplexStream
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.logged_cycle import LoggedCycle
from gateway.server.request_body import RequestBody
from gateway.server.request_cycle import RequestCycle, date, refusal
from gateway.server.write_flow import WriteFlow

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

MAX_DRAIN: Final = 256 * 1024  # body bytes read for nothing so that the connection can be used again
AWAITING_FACTOR: Final = 4  # times max_in_flight: calls that may wait for their bodies beside those in flight

LINGER: Final = 2.0  # seconds given to a client to read the last reply before the close
GRACE: Final = 0.5  # seconds after its last reply in which a stopping server still takes a request

# What the bytes that come next are: of a head; of the body; of a later request, which waits until this one is
# answered (RFC 9112 section 9.3.2); a tunnel's; nothing that is read any more.
_HEAD, _BODY, _QUEUE, _TUNNEL, _DISCARD, _CLOSING = range(6)

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close by RST
CLIENT_HELLO: Final = b"\x16\x03"  # how its record begins (RFC 8446 section 5.1)
TLS_ON_PLAIN: Final = "a TLS handshake came to a port where plain HTTP is spoken (listen.tls is not set)"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestServer(Protocol):
    """
    An application that serves request cycles themselves, without ASGI's messages. `direct`: it does so in a
    DirectTask, since nothing that it calls wants asyncio's own.
    """

    direct: bool

    def serve(self, cycle: RequestCycle, /) -> Coroutine[Any, Any, None]: ...


App: TypeAlias = RequestServer | asgi.AsgiApp


class ClientConnection(asyncio.Protocol):
    """One client's connection; `build` binds it to limits of its own."""

    limits: ClassVar[ServerLimits] = ServerLimits()
    stats: ClassVar[ServerStats] = ServerStats()
    shapes: ClassVar[HeadShapes] = HeadShapes()
    cycle: ClassVar[Callable[..., RequestCycle]] = RequestCycle

    __slots__ = (
        "_application",
        "_blank",
        "_buffer",
        "_connections",
        "_cycle",
        "_deadline",
        "_direct",
        "_held",
        "_last",
        "_loop",
        "_lost",
        "_paused",
        "_peer",
        "_server_state",
        "_state",
        "_stream",
        "_timer",
        "_timer_at",
        "_transport",
        "_turned_away",
        "address",
        "certificate",
        "flow",
        "idle_since",
        "stopping",
        "tasks",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        app = config.loaded_app
        self._application: Callable[[RequestCycle], Coroutine[Any, Any, None]]
        self._direct = getattr(app, "direct", False)
        self._application = getattr(app, "serve", None) or asgi.serving(cast(asgi.AsgiApp, app), app_state)
        self._server_state = server_state
        self._connections: set[Any] = server_state.connections
        self.tasks: set[Any] = server_state.tasks  # uvicorn cancels them, should they take too long to end
        self._loop = _loop or asyncio.get_running_loop()
        self.certificate = b""  # a fingerprint of the one that the client has shown in TLS

        self._state = _HEAD
        self._buffer = b""  # what came and was not read yet: part of a head, or what follows this request
        self._blank = 0  # bytes of empty lines before the head
        self._last: RequestHead | None = None  # the last one
        self._cycle: RequestCycle | None = None
        self._stream: DuplexStream | None = None
        self._paused = False
        self._held = False  # refused for overload a moment ago: not read, whatever else would have it read
        self.stopping = self.stats.stopping
        self._turned_away = False

        # One timer serves all deadlines, and rings in vain rather than be moved with every request.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._deadline = inf
        self.idle_since = 0.0
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flow = WriteFlow(self._transport, self._loop, self.limits, self.stats, self.cut_off)
        self._peer = asgi.endpoint(transport, "peername")
        self.address = self._peer[0] if self._peer else ""
        if len(self._connections) >= self.limits.max_connections and not self._made_room():
            self._turn_away()
            return
        self._connections.add(self)
        self.idle_since = self._loop.time()
        self._wait_until(self.idle_since + self.limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._connections.discard(self)
        self._state = _CLOSING
        self._buffer = b""
        if self._held:
            self.stats.held_back.discard(self)
        if self._turned_away:
            self.stats.turned_away -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._cycle is not None:
            self._cycle.lost()
            self._cycle = None
        if self._stream is not None:
            self._stream.end()
            self._stream = None
        self.flow.lost()

    def shutdown(self) -> None:
        """The server stops: what was begun is finished, what follows it is not waited for."""
        self.stopping = self.stats.stopping = True
        if self._state == _HEAD and not self._buffer:
            self._wait_until(self.idle_since + GRACE)

    # Reading.

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _HEAD:
            self._read_head(data)
        elif state == _BODY:
            self._read_body(data)
        elif state == _QUEUE:
            self._buffer += data
            self._pause_reading()
        elif state == _TUNNEL and self._stream is not None and self._stream.arrived(data):
            self._pause_reading()

    def eof_received(self) -> bool:
        if self._stream is not None and self._transport.can_write_eof():
            self._stream.end()
            return True
        # A client that closes and one that only ends its sending look the same: both are taken as gone.
        if self._cycle is not None:
            self._cycle.lost()
        self.close()
        return False

    def _read_head(self, data: bytes) -> None:
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
        if data[0] == 0x0D:
            skip = blank_lines(data)  # RFC 9112 section 2.2
            self._blank += skip
            if self._blank > MAX_BLANK_LINES * 2:
                self.refuse(BadRequest("too many empty lines before the request line"))
                return
            data = data[skip:]
            seen = max(seen - skip, 0)
            if not data:
                self._buffer = b""
                return
        end = data.find(HEAD_END, max(seen - 3, 0)) + 4
        try:
            if end < 4:
                refuse_hopeless(data, seen, self.limits)
                if not self._buffer:
                    self._wait_until(self._loop.time() + self.limits.head_timeout)
                self._buffer = data
                return
            head = parse_head(data if end == len(data) else data[:end], self.limits, self.shapes, self._last)
        except RequestError as error:
            self.refuse(TlsOnPlainPort(TLS_ON_PLAIN) if data.startswith(CLIENT_HELLO) else error)
            return
        self._last = head
        self._buffer = b""
        self._blank = 0
        self._deadline = inf
        self._begin(head, data[end:])

    def _read_body(self, data: bytes) -> None:
        cycle = self._cycle
        assert cycle is not None
        body = cycle.body
        try:
            taken = body.feed(data)
        except RequestError as error:
            self._body_failed(cycle, error)
            return
        if body.here:
            self._state = _QUEUE
            self._buffer = data[taken:]
        if not cycle.complete:
            if self._buffer or (body.full and not body.here):
                self._pause_reading()
        elif body.here:
            self._next()
        elif body.drained > MAX_DRAIN:
            self._linger()

    def _body_failed(self, cycle: RequestCycle, error: GatewayError) -> None:
        self._count(error)
        if cycle.complete:
            self._linger()
            return
        self._state = _DISCARD
        self._deadline = inf
        cycle.keep_alive = False
        cycle.body.fail(error)

    def _pause_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not (self._state == _QUEUE and self._buffer) and not self._transport.is_closing():
            if self._held:
                return
            self._paused = False
            self._transport.resume_reading()

    def _hold_back(self) -> None:
        """Its client was refused for overload: the next request is not read at once."""
        pause = self.limits.overload_pause
        if pause and not self._held and self._state in (_HEAD, _BODY):
            self._pause_reading()
            self._held = True
            self.stats.held_back.add(self, pause, self._loop)

    def read_again(self) -> None:
        self._held = False
        if self._state in (_HEAD, _BODY):
            patience = self.limits.body_timeout if self._state == _BODY else self._patience()
            self._wait_until(self._loop.time() + patience)
        self.resume_reading()

    # Serving.

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        """`rest` is what came behind the head: of the body, or of what follows it."""
        length = head.length
        if length == len(rest):
            self._state = _QUEUE
            body, rest = RequestBody(self, length, rest, False), b""
        elif 0 <= length < len(rest):
            self._state = _QUEUE
            body, rest = RequestBody(self, length, rest[:length], False), rest[length:]
        else:
            self._state = _BODY
            body = RequestBody(self, length, None, head.expect_continue)
        cycle = self._cycle = self.cycle(
            self,
            self.flow,
            head,
            body,
            head.method.decode("ascii"),
            head.target,
            head.headers,
            head.values,
            self.address,
            "1.1" if head.minor else "1.0",
            self.certificate,
            head.upgrade,
            head.keep_alive,
        )
        # A call that still waits for its body is not in flight, but its buffer counts: there is a bound for
        # these too. Where many bodies end at once, more are in flight than max_in_flight.
        most, stats = self.limits.max_in_flight, self.stats
        taken = stats.in_flight
        if stats.awaiting:
            taken -= min(stats.awaiting, AWAITING_FACTOR * most)
        if taken * 2 >= most and not self._has_place(cycle, taken):
            self._refuse_for_overload(cycle, rest)
            return
        stats.in_flight += 1
        cycle.in_flight = True
        if rest:
            self.data_received(rest)
        coroutine, loop = self._application(cycle), self._loop
        if self._direct:
            direct = cycle.task = DirectTask(coroutine, loop, cycle.finished)
            self.tasks.add(direct)
            direct.start()
        else:
            cycle.task = task = loop.create_task(coroutine)
            self.tasks.add(task)
            task.add_done_callback(cycle.finished)

    def _refuse_for_overload(self, cycle: RequestCycle, rest: bytes) -> None:
        most, body = self.limits.max_in_flight, cycle.body
        error = Overloaded(
            f"{most} requests are being served (limits.max_in_flight); a tenth more are kept for callers "
            f"that have less than a tenth"
        )
        self._count(error)
        if cycle.head.length == CHUNKED or (body.here and rest):
            cycle.keep_alive = False  # nor is what follows it looked at
        self.stats.stalled.want_place(most, self._loop)
        cycle.answer(error)
        self._hold_back()
        if rest:
            self.data_received(rest)

    def _has_place(self, cycle: RequestCycle, taken: int) -> bool:
        """
        Past max_in_flight, a tenth more for callers that have less than a tenth: one caller can't take all.
        Who has how many is counted from half of max_in_flight on.
        """
        most, stats = self.limits.max_in_flight, self.stats
        few = most // 10
        if taken >= most + few:
            return False
        caller = stats.caller_of(cycle.headers, cycle.values, self.address, cycle.target, self.certificate)
        if taken >= most and stats.in_flight_of[caller] >= few:
            return False
        stats.in_flight_of[caller] += 1
        cycle.caller = caller
        return True

    def await_body(self, body: RequestBody) -> None:
        if body.expects_continue and self._cycle is not None and not self._cycle.started:
            body.expects_continue = False
            self.flow.write(_CONTINUE)
        self.resume_reading()
        self.stats.awaiting += 1
        if body.watch is None:
            limits = self.limits
            body.watch = ClientWatch(limits.body_timeout, limits.min_rate, limits.rate_window)
        body.watch.start(self._loop.time())
        self._wait_until(body.watch.deadline)

    def stop_awaiting_body(self, body: RequestBody) -> None:
        self.stats.awaiting -= 1
        if body.watch is not None:
            body.watch.stop(self._loop.time())

    # Replying.

    def pause_writing(self) -> None:
        self.flow.pause()
        self._arm()

    def resume_writing(self) -> None:
        self.flow.resume()

    def must_close(self, cycle: RequestCycle, whole: bool) -> bool:
        if self._state == _BODY:
            # After a final status instead of 100 the client may or may not send the body: nobody can tell
            # what the next bytes are (RFC 9110 section 10.1.1).
            if cycle.body.expects_continue:
                return True
            if whole and cycle.body.remaining > MAX_DRAIN:
                return True
        return self.stopping and not self._buffer

    def leaves_flight(self, cycle: RequestCycle) -> None:
        """With its reply's last byte, not when its task is done."""
        cycle.in_flight = False
        self.stats.in_flight -= 1
        if cycle.caller is not None:
            in_flight_of = self.stats.in_flight_of
            in_flight_of[cycle.caller] -= 1
            if not in_flight_of[cycle.caller]:
                del in_flight_of[cycle.caller]

    def completed(self, cycle: RequestCycle) -> None:
        if cycle.in_flight:
            self.leaves_flight(cycle)
        self._server_state.total_requests += 1
        if self._transport.is_closing():
            return
        if not cycle.keep_alive:
            if self._state == _QUEUE and not cycle.head.keep_alive and not self._buffer:
                self.close()
            else:
                self._linger()
        elif self._state == _BODY:
            self._wait_until(self._loop.time() + self.limits.body_timeout)
            self.resume_reading()
        else:
            self._next()

    def _next(self) -> None:
        """The request is done with: on to what follows it, or to waiting for that."""
        self._cycle = None
        self._state = _HEAD
        self.idle_since = now = self._loop.time()
        self._deadline = now + (GRACE if self.stopping else self.limits.keep_alive)
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self._read_head(data)
        if self._paused:
            self.resume_reading()
        if self._deadline < self._timer_at:
            self._arm()

    def _patience(self) -> float:
        """Seconds that the next request is waited for."""
        return GRACE if self.stopping else self.limits.keep_alive

    def switch(self, head: bytes) -> DuplexStream:
        self.flow.write(head)
        self.flow.becomes_tunnel()
        self._stream = DuplexStream(self, self._buffer)
        self._buffer = b""
        self._state = _TUNNEL
        self.resume_reading()
        return self._stream

    # Ending.

    def refuse(self, error: GatewayError) -> None:
        """Answers what is no request that is served. Nothing after it on this connection can be read."""
        self._count(error)
        status, headers, body = refusal(error)
        if self.stats.access is not None:
            self.stats.access(Access(self.address, status=status, sent=len(body)))
        writer = ResponseWriter(status, headers, (), b"GET", 1, date)
        self.flow.write(writer.write(body, more=False, close=True))
        self._linger()

    def end_unanswered(self, error: GatewayError) -> None:
        """For what was said in no HTTP, and answered below it."""
        self._count(error)
        self._linger()

    def _made_room(self) -> bool:
        """Whether somebody who says nothing could go in its place."""
        if not self.limits.makes_room:
            return False
        silent = [one for one in self._connections if one.silent]
        if silent:
            longest = min(silent, key=lambda one: one.idle_since)
            self._connections.discard(longest)
            longest.close()
        return bool(silent)

    @property
    def silent(self) -> bool:
        """Whether nothing is served: it is in a head, or owes the rest of a body, read or not."""
        answered = self._cycle is not None and self._cycle.complete
        return self._state in (_HEAD, _BODY, _DISCARD) or answered

    def _turn_away(self) -> None:
        if self.stats.turned_away < self.limits.max_lingering:
            self._turned_away = True
            self.stats.turned_away += 1
            self.refuse(
                Overloaded(f"{len(self._connections)} clients are connected (limits.max_connections)")
            )
        else:
            self.stats.refused["overloaded"] += 1
            self._state = _CLOSING
            self._transport.abort()

    def _linger(self) -> None:
        """
        Ends the sending and reads on for a moment: a close with bytes unread would destroy the reply
        (RFC 9112 section 9.6).
        """
        self._cycle = None
        self._buffer = b""
        self.flow.flush()
        if self._held:
            self._held = False
            self.stats.held_back.discard(self)
        if self._transport.is_closing():
            return
        if not self._transport.can_write_eof():
            self.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # the client has reset the connection, and the loop has yet to notice
            self._state = _CLOSING
            self._transport.abort()
            return
        self._state = _DISCARD
        self.resume_reading()
        self._wait_until(self._loop.time() + LINGER)

    def close(self) -> None:
        """What was written is sent first, for as long as the client takes it."""
        if self._state == _CLOSING:
            return
        self._state = _CLOSING
        self._buffer = b""
        self._deadline = inf
        self.flow.finish()
        self._arm()
        self._transport.close()

    def end_tunnel(self, reset: bool) -> None:
        if self._cycle is not None:
            self._cycle.complete = True
        if reset:
            self.abort("tunnel", reset=True)
        else:
            self.close()

    def cut_off(self, cause: AbortCause) -> None:
        """In the middle of a reply or a body: a close could pass for its end."""
        self.abort(cause, reset=True)

    def abort(self, cause: AbortCause, reset: bool = False) -> None:
        if self._lost:
            return
        self.stats.aborted[cause] += 1
        self.flow.flush()
        self.stats.log.aborted(cause, self._client())
        self._state = _CLOSING
        sock = self._transport.get_extra_info("socket")
        if reset and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _count(self, error: GatewayError) -> None:
        error.counted = True
        self.stats.refused[error.slug()] += 1
        self.stats.log.refused(error, self._client())

    def _client(self) -> str:
        return "{}:{}".format(*self._peer) if self._peer else "unknown"

    # Deadlines. What a client is waited for, for how long, and what happens then:
    #
    #   a head's end, from its first byte     head_timeout             408
    #   a new connection's first byte         head_timeout             closed
    #   the next request                      keep_alive, or GRACE     closed
    #   a piece of the body                   body_timeout, min_rate   408; reset if the reply has begun
    #   the rest of the body after the reply  body_timeout             closed
    #   the last reply's way to the client    LINGER                   closed
    #   taking what was written               write_timeout, min_rate  reset

    def _wait_until(self, deadline: float) -> None:
        self._deadline = deadline
        self._arm()

    def _arm(self) -> None:
        at = min(self._deadline, self.flow.deadline)
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = inf
        due = self._loop.time() + CLOCK_SLACK
        if self.flow.deadline <= due:
            failure = self.flow.overdue(due)
            if failure is not None:
                self.cut_off("write-rate" if failure == "rate" else "write-timeout")
        if self._deadline <= due:
            self._deadline = inf
            self._on_deadline(due)
        self._arm()

    def _on_deadline(self, due: float) -> None:
        if self._held and not self.stopping:
            return  # who is not read can't be late: it has its time when it is read again
        if self._state == _HEAD and self._buffer:
            limit = self.limits.head_timeout
            self.refuse(HeadTimeout(f"not within {limit:g} s of its first byte (limits.head_timeout)"))
        elif self._state == _BODY and self._cycle is not None:
            self._on_body_deadline(self._cycle, due)
        elif self._state != _QUEUE:  # there the whole request has come: nothing is waited for
            self.close()

    def _on_body_deadline(self, cycle: RequestCycle, due: float) -> None:
        failure: str | None = "timeout"
        if not cycle.complete:
            watch = cycle.body.watch
            if watch is None or not cycle.body.awaited:
                return  # the body has arrived, perhaps in this same turn of the loop
            failure = watch.verdict(due)
            if failure is None:
                self._deadline = watch.deadline
                return
        if cycle.started and not cycle.complete:
            self.cut_off("body-rate" if failure == "rate" else "body-timeout")
        elif failure == "rate":
            rate = self.limits.min_rate
            self._body_failed(cycle, BodyTimeout(f"less than {rate} bytes a second came (limits.min_rate)"))
        else:
            limit = self.limits.body_timeout
            self._body_failed(cycle, BodyTimeout(f"nothing came for {limit:g} s (limits.body_timeout)"))


def build(
    limits: ServerLimits, stats: ServerStats, shapes: HeadShapes | None = None
) -> type[ClientConnection]:
    """For `uvicorn.Config(http=...)`."""
    members = {"__slots__": (), "limits": limits, "stats": stats, "shapes": shapes or HeadShapes()}
    if stats.access is not None:
        members["cycle"] = staticmethod(partial(LoggedCycle, told=stats.access))
    return type("BoundClientConnection", (ClientConnection,), members)
