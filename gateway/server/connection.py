"""
The downstream connection: what uvicorn runs for each client that connects.

Law: the requests of a connection are served one at a time, in the order they came; every wait for a client
has a deadline and every buffer a bound; a reply that began and can't be finished is cut off, never completed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, cast
from urllib.parse import unquote

from gateway.errors import (
    BadRequest,
    BodyTimeout,
    GatewayError,
    HeadTimeout,
    HeadTooLarge,
    Overloaded,
    RequestError,
)
from gateway.http.chunked import ChunkedDecoder, InvalidChunk, TrailersTooLarge
from gateway.http.grammar import CHUNKED
from gateway.http.request_parser import (
    MAX_BLANK_LINES,
    HeadLimits,
    RequestHead,
    blank_lines,
    parse_head,
    refuse_hopeless,
)
from gateway.server.byte_rate import ByteRate
from gateway.server.request_cycle import STATUS_LINES, DuplexStream, Message, RequestCycle, date_line, refusal

if sys.platform != "win32":
    import fcntl
    import termios

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

App: TypeAlias = Callable[..., Coroutine[Any, Any, None]]

MAX_DRAIN: Final = 256 * 1024  # body bytes read for nothing so that the connection can be used again
LINGER: Final = 2.0  # seconds given to a client to read the last reply before the close
GRACE: Final = 0.5  # seconds after its last reply in which a stopping server still takes a request
STALL: Final = 0.5  # seconds for which any client may keep a reply waiting, however many do
AWAITED: Final = 4  # times max_in_flight: so many calls may wait for their bodies beside those in flight
MAX_LINGERING: Final = 256  # connections turned away that are still to read why

_HEAD, _BODY, _QUEUE, _TUNNEL, _DISCARD, _CLOSING = range(6)
_TICK: Final = 0.002  # a loop's clock may run this much behind its timers

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close by RST
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}

logger = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(HeadLimits):
    """What one client may take of the gateway; durations in seconds."""

    max_connections: int = 20_000
    max_in_flight: int = 1_000
    head_timeout: float = (
        10.0  # for a whole head; on a new connection, from the connect to the first byte too
    )
    body_timeout: float = 10.0  # between two pieces of a body that the application waits for
    keep_alive: float = 60.0  # between a reply and the next request
    write_timeout: float = 60.0  # without the client taking a byte of what is ready for it
    min_rate: int = 500  # bytes a second, of a body or a reply, while the client is waited for. 0: any
    rate_window: float = 10.0  # of such waiting, over which min_rate is the average
    max_stalled: int = 100  # replies that wait for their clients: past it, who has stalled longest is cut off


@dataclass(slots=True)
class ServerStats:
    """What the connections of one server share. The counters' keys: a refusal's slug, an abort's cause."""

    refused: Counter[str] = field(default_factory=Counter)
    aborted: Counter[str] = field(default_factory=Counter)
    turned_away: int = 0  # connections over the limit that are still to read why
    awaiting: int = 0  # applications that wait for their client's body
    stalled: dict[ClientConnection, float] = field(default_factory=dict)  # since when, the longest first
    overload_logged: float = -inf
    stopping: bool = False


class ClientConnection(asyncio.Protocol):
    """One client's connection; `build` binds it to limits of its own."""

    limits: ClassVar[ServerLimits] = ServerLimits()
    stats: ClassVar[ServerStats] = ServerStats()

    __slots__ = (
        "_app",
        "_app_state",
        "_blank",
        "_block",
        "_buffer",
        "_chunks",
        "_client",
        "_connections",
        "_deadline",
        "_drained",
        "_exchange",
        "_idle_since",
        "_last",
        "_paused",
        "_remaining",
        "_scheme",
        "_serve",
        "_server",
        "_server_state",
        "_state",
        "_stopping",
        "_taking",
        "_timer",
        "_timer_at",
        "_tunnel",
        "_turned_away",
        "_unsent",
        "_untaken_until",
        "_write_deadline",
        "_writers",
        "address",
        "gone",
        "loop",
        "tasks",
        "transport",
        "write_paused",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = cast(App, config.loaded_app)
        self._serve = getattr(self._app, "serve", None)
        self._app_state = app_state
        self._server_state = server_state
        self._connections: set[Any] = server_state.connections
        self.tasks = server_state.tasks
        self.loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport

        self._state = _HEAD
        self._buffer = b""  # what came and was not read yet: part of a head, or what follows this request
        self._blank = 0
        self._exchange: RequestCycle | None = None
        self._last: RequestHead | None = None
        self._block = b""
        self._remaining = 0
        self._chunks: ChunkedDecoder | None = None
        self._drained = 0
        self._tunnel: DuplexStream | None = None
        self._paused = False
        self._stopping = self.stats.stopping
        self._turned_away = False
        self.gone = False

        self.write_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._unsent = 0
        self._untaken_until = inf
        self._taking: ByteRate | None = None

        # One timer serves both deadlines, and rings in vain rather than be moved with every request.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._deadline = inf
        self._write_deadline = inf
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._client = _address(transport, "peername")
        self.address = self._client[0] if self._client else ""
        self._server = _address(transport, "sockname")
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        if len(self._connections) >= self.limits.max_connections:
            self._turn_away()
            return
        self._connections.add(self)
        self._idle_since = self.loop.time()
        self._deadline = self._idle_since + self.limits.head_timeout
        self._arm()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _HEAD:
            self._read_head(data)
        elif state == _BODY:
            self._read_body(data)
        elif state == _QUEUE:
            self._buffer += data
            self._pause_reading()
        elif state == _TUNNEL and self._tunnel is not None and self._tunnel.arrived(data):
            self._pause_reading()

    def eof_received(self) -> bool:
        if self._tunnel is not None and self.transport.can_write_eof():
            self._tunnel.end()
            return True
        # A client that closes and one that only ends its sending look the same: both are taken as gone.
        if self._exchange is not None:
            self._exchange.lost()
        self.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._connections.discard(self)
        self._state = _CLOSING
        self._buffer = b""
        if self._turned_away:
            self.stats.turned_away -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._exchange is not None:
            self._exchange.lost()
            self._exchange = None
        if self._tunnel is not None:
            self._tunnel.end()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.write_paused = True
        # A tunnel is no reply: a side that is slow for a while is its way of life.
        if self.limits.min_rate and self._tunnel is None:
            self._taking = self._taking or ByteRate()
            self._taking.start(self.loop.time())
        self._watch_writing()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._state != _CLOSING:
            self._write_deadline = inf
            if self._taking is not None:
                self._taking.moved += self._unsent - self._count_unsent()
                self._taking.stop(self.loop.time())
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)

    def shutdown(self) -> None:
        """The server stops: what was begun is finished, what follows it is not waited for."""
        self._stopping = self.stats.stopping = True
        if self._state == _HEAD and not self._buffer:
            self._deadline = self._idle_since + GRACE
            self._arm()

    # What an exchange asks of its connection.

    async def writable(self) -> None:
        stalled = self.stats.stalled
        if self.write_paused and self._tunnel is None:
            stalled[self] = self.loop.time()
            if len(stalled) > self.limits.max_stalled:
                self.loop.call_later(STALL, self._make_room)
        try:
            while self.write_paused:
                writer = self.loop.create_future()
                self._writers.append(writer)
                await writer
        finally:
            stalled.pop(self, None)

    def _make_room(self) -> None:
        stalled, now = self.stats.stalled, self.loop.time()
        while len(stalled) > self.limits.max_stalled:
            longest, since = next(iter(stalled.items()))
            if now - since < STALL - _TICK:
                break
            del stalled[longest]
            longest.abort("stalled", reset=True)

    def want_body(self, exchange: RequestCycle) -> None:
        if exchange.expecting and not exchange.started:
            exchange.expecting = False
            self.transport.write(_CONTINUE)
        self.resume_reading()
        now = self.loop.time()
        self.stats.awaiting += 1
        exchange.awaited_until = self._deadline = now + self.limits.body_timeout
        if self.limits.min_rate:
            exchange.pace = exchange.pace or ByteRate()
            exchange.pace.start(now)
            self._deadline = min(self._deadline, exchange.pace.ends(self.limits.rate_window))
        self._arm()

    def want_no_body(self, exchange: RequestCycle) -> None:
        if exchange.awaited_until is not None:
            exchange.awaited_until = None
            self.stats.awaiting -= 1
            if exchange.pace is not None:
                exchange.pace.stop(self.loop.time())
        if not exchange.complete:
            self._deadline = inf

    def is_last(self, exchange: RequestCycle, complete: bool) -> bool:
        """Whether the reply whose head is about to be written has to say that the connection closes."""
        if self._state == _BODY:
            # After a final status instead of 100 the client may or may not send the body: nobody can tell
            # what the next bytes are (RFC 9110 section 10.1.1).
            if exchange.expecting:
                return True
            if complete and self._chunks is None and self._remaining > MAX_DRAIN:
                return True
        return self._stopping and not self._buffer

    def completed(self, exchange: RequestCycle) -> None:
        self._server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            if self._state == _QUEUE and not exchange.client_stays and not self._buffer:
                self.close()
            else:
                self._linger()
        elif self._state == _BODY:
            self._drained = 0
            self._deadline = self.loop.time() + self.limits.body_timeout
            self._arm()
            self.resume_reading()
        else:
            self._next()

    def tunnel(self, exchange: RequestCycle, head: bytes) -> DuplexStream:
        self.transport.write(head)
        self._taking = None
        self._tunnel = DuplexStream(self, exchange, self._buffer)
        self._buffer = b""
        self._state = _TUNNEL
        self.resume_reading()
        return self._tunnel

    def resume_reading(self) -> None:
        if self._paused and not (self._state == _QUEUE and self._buffer) and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """What was written is sent first, for as long as the client takes it."""
        if self._state == _CLOSING:
            return
        self._state = _CLOSING
        self._buffer = b""
        self._deadline = inf
        if self.transport.get_write_buffer_size():
            self._watch_writing()
        self.transport.close()

    def abort(self, cause: str, reset: bool = False) -> None:
        """`reset` is for where the end of the connection would pass for the end of the reply."""
        if self.gone:
            return
        self.stats.aborted[cause] += 1
        logger.warning("connection aborted: %s; client %s", cause, self._peer())
        self._state = _CLOSING
        sock = self.transport.get_extra_info("socket")
        if reset and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # Reading.

    def _read_head(self, data: bytes) -> None:
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
        if data[0] == 0x0D:
            skip = blank_lines(data)
            self._blank += skip
            if self._blank > MAX_BLANK_LINES * 2:
                self._refuse(BadRequest("too many empty lines before the request line"))
                return
            data = data[skip:]
            seen = max(seen - skip, 0)
            if not data:
                self._buffer = b""
                return
        end = data.find(b"\r\n\r\n", max(seen - 3, 0)) + 4
        try:
            if end < 4:
                refuse_hopeless(data, seen, self.limits)
                if not self._buffer:
                    self._deadline = self.loop.time() + self.limits.head_timeout
                    self._arm()
                self._buffer = data
                return
            head = parse_head(data if end == len(data) else data[:end], self.limits, self._last)
        except RequestError as error:
            self._refuse(error)
            return
        # What is made of the fields is kept from the second time on: who calls once leaves little behind.
        self._last = head if head.block and head.block == self._block else None
        self._block = head.block
        self._buffer = b""
        self._blank = 0
        self._deadline = inf
        self._begin(head, data[end:])

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        exchange = self._exchange = RequestCycle(self, head)
        length = head.length
        if length:
            self._state = _BODY
            self._remaining = length
            self._chunks = ChunkedDecoder() if length == CHUNKED else None
        else:
            self._state = _QUEUE
        # Whose body is still to come does nothing yet, but holds a part of it: of those there is a bound too.
        # Where many bodies end at once, so many more are in flight than max_in_flight.
        most = self.limits.max_in_flight
        if len(self.tasks) - min(self.stats.awaiting, AWAITED * most) < most:
            if self._serve is None:
                life = self._app(self._scope(head, exchange), exchange.receive, exchange.send)
            else:
                life = self._serve(exchange)
            task = exchange.task = self.loop.create_task(life)
            self.tasks.add(task)
            task.add_done_callback(exchange.finished)
        else:
            error = Overloaded(
                f"{self.limits.max_in_flight} requests are being served (limits.max_in_flight)"
            )
            self._count(error)
            if len(rest) > length:
                exchange.keep_alive = False  # nor is what follows it looked at
            exchange.answer(error)
        if len(rest) == length > 0 and not exchange.complete:
            self._state = _QUEUE
            exchange.arrived(rest, False)
        elif rest:
            self.data_received(rest)

    def _scope(self, head: RequestHead, exchange: RequestCycle) -> Message:
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1" if head.minor else "1.0",
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "root_path": "",
            "method": head.method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": head.headers,
            "state": self._app_state.copy(),
            "extensions": {"gateway": exchange},
        }

    def _read_body(self, data: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        chunks = self._chunks
        if chunks is None:
            taken = min(len(data), self._remaining)
            body = data[:taken]
            self._remaining -= taken
            ended = not self._remaining
        else:
            try:
                body, taken = chunks.feed(data)
            except InvalidChunk as error:
                kind = HeadTooLarge if isinstance(error, TrailersTooLarge) else BadRequest
                self._body_failed(exchange, kind(str(error)))
                return
            ended = chunks.ended
        if ended:
            self._state = _QUEUE
            self._chunks = None
            self._buffer = data[taken:]
        if not exchange.complete:
            full = exchange.arrived(body, not ended)
            if self._buffer or (full and not ended):
                self._pause_reading()
        elif ended:
            self._next()
        else:
            self._drained += taken
            if self._drained > MAX_DRAIN:
                self._linger()

    def _body_failed(self, exchange: RequestCycle, error: GatewayError) -> None:
        self._count(error)
        if exchange.complete:
            self._linger()
            return
        self._state = _DISCARD
        exchange.fail(error)

    def _next(self) -> None:
        """The request is done with: on to what follows it, or to waiting for that."""
        self._exchange = None
        self._state = _HEAD
        self._idle_since = self.loop.time()
        self._deadline = self._idle_since + (GRACE if self._stopping else self.limits.keep_alive)
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self._read_head(data)
        if self._paused:
            self.resume_reading()
        if self._deadline < self._timer_at:
            self._arm()

    def _pause_reading(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    # Refusing and ending.

    def _refuse(self, error: GatewayError) -> None:
        """Answers what is no request that is served. Nothing after it on this connection can be read."""
        self._count(error)
        status, headers, body = refusal(error)
        lines = [STATUS_LINES[status]]
        for name, value in (*headers, (b"connection", b"close")):
            lines += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*lines, date_line(int(time.time())), b"\r\n", body)))
        self._linger()

    def _turn_away(self) -> None:
        if self.stats.turned_away < MAX_LINGERING:
            self._turned_away = True
            self.stats.turned_away += 1
            self._refuse(
                Overloaded(f"{len(self._connections)} clients are connected (limits.max_connections)")
            )
        else:
            self.stats.refused["overloaded"] += 1
            self._state = _CLOSING
            self.transport.abort()

    def _linger(self) -> None:
        """Ends the sending and reads on for a moment: a close with bytes unread would destroy the reply."""
        self._exchange = None
        self._chunks = None
        self._buffer = b""
        if self.transport.is_closing():
            return
        if not self.transport.can_write_eof():
            self.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset the connection, and the loop has yet to notice
            self._state = _CLOSING
            self.transport.abort()
            return
        self._state = _DISCARD
        self.resume_reading()
        self._deadline = self.loop.time() + LINGER
        self._arm()

    def _count(self, error: GatewayError) -> None:
        slug = error.slug()
        self.stats.refused[slug] += 1
        if isinstance(error, Overloaded):
            now = self.loop.time()
            if now < self.stats.overload_logged + 1.0:
                return  # a line a second says it, and costs nothing when there is nothing to spare
            self.stats.overload_logged = now
        logger.warning("refused: %s: %s; client %s", slug, error.detail, self._peer())

    def _peer(self) -> str:
        return "{}:{}".format(*self._client) if self._client else "unknown"

    # Deadlines.

    def _arm(self) -> None:
        at = min(self._deadline, self._write_deadline)
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self.loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = inf
        due = self.loop.time() + _TICK
        if self._write_deadline <= due:
            self._on_write_deadline(due)
        if self._deadline <= due:
            self._deadline = inf
            self._on_deadline(due)
        self._arm()

    def _on_deadline(self, due: float) -> None:
        if self._state == _HEAD and self._buffer:
            limit = self.limits.head_timeout
            self._refuse(HeadTimeout(f"not within {limit:g} s of its first byte (limits.head_timeout)"))
        elif self._state == _BODY and self._exchange is not None:
            self._on_body_deadline(self._exchange, due)
        else:
            self.close()

    def _on_body_deadline(self, exchange: RequestCycle, due: float) -> None:
        if not (exchange.waiting or exchange.complete):
            return  # a piece has come in this very turn of the loop
        limits = self.limits
        cause, detail = "body-timeout", f"nothing came for {limits.body_timeout:g} s (limits.body_timeout)"
        if exchange.pace is not None and exchange.awaited_until is not None and exchange.awaited_until > due:
            if not exchange.pace.too_slow(due, limits.min_rate, limits.rate_window):
                self._deadline = min(exchange.awaited_until, exchange.pace.ends(limits.rate_window))
                return
            cause, detail = "body-rate", f"less than {limits.min_rate} bytes a second came (limits.min_rate)"
        if exchange.started and not exchange.complete:
            self.abort(cause, reset=True)
        else:
            self._body_failed(exchange, BodyTimeout(detail))

    def _watch_writing(self) -> None:
        self._unsent = self._count_unsent()
        self._untaken_until = self.loop.time() + self.limits.write_timeout
        self._set_write_deadline()
        self._arm()

    def _set_write_deadline(self) -> None:
        self._write_deadline = self._untaken_until
        if self._taking is not None and self.write_paused:
            self._write_deadline = min(self._untaken_until, self._taking.ends(self.limits.rate_window))

    def _on_write_deadline(self, due: float) -> None:
        limits = self.limits
        taken = self._unsent
        self._unsent = self._count_unsent()
        taken -= self._unsent
        self._write_deadline = inf
        if taken > 0:
            self._untaken_until = due + limits.write_timeout
        elif self._untaken_until <= due:
            self.abort("write-timeout", reset=True)
            return
        if self._taking is not None and self.write_paused:
            self._taking.moved += taken
            if self._taking.too_slow(due, limits.min_rate, limits.rate_window):
                self.abort("write-rate", reset=True)
                return
        self._set_write_deadline()

    def _count_unsent(self) -> int:
        """Bytes the client has not taken: a slow reader empties the kernel's buffer long before ours."""
        unsent = self.transport.get_write_buffer_size()
        if sys.platform != "win32":
            sock = self.transport.get_extra_info("socket")
            try:
                queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            except OSError:
                return unsent  # not every system counts a socket's queue
            unsent += int.from_bytes(queued, sys.byteorder)
        return unsent


def build(limits: ServerLimits, stats: ServerStats) -> type[ClientConnection]:
    """For `uvicorn.Config(http=...)`."""
    members = {"__slots__": (), "limits": limits, "stats": stats}
    return type("DownstreamProtocol", (ClientConnection,), members)


def _address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    address = transport.get_extra_info(which)
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
