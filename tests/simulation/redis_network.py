"""
A simulated Redis server behind a simulated network: connections that gateways open to it, messages that take
their time, and what befalls the server.

A connection is one of TCP: what is sent on it arrives in order, or never. While a node is cut off nothing of
its own arrives; what was under way comes later, and the server does it then, whoever still waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from gateway.errors import StoreUnavailable
from gateway.state.redis_connection import RedisConnection, RedisError, Word
from tests.simulation.loop import Loop
from tests.simulation.redis_model import RedisModel

NOON = 1_800_000_000  # Unix seconds, by the server's clock, when a schedule begins


def outside(call: Callable[..., Any], *arguments: Any) -> Any:
    """For what happens on the wire or at the server: no node's pause holds it up."""
    return contextvars.Context().run(call, *arguments)


class Pipe:
    """
    One way of a connection: whatever order its timers go off in, what was sent first arrives first. `context`
    is that of the process where it arrives, which hears of it only when it runs.
    """

    def __init__(self, loop: Loop, context: contextvars.Context) -> None:
        self._loop = loop
        self.context = context
        self._under_way: deque[Callable[[], Any]] = deque()
        self._last = 0.0

    def send(self, when: float, call: Callable[..., Any], *what: Any) -> None:
        self._last = max(self._last, when)
        self._under_way.append(partial(call, *what))
        self._loop.call_at(self._last, self._next, context=self.context)

    def _next(self) -> None:
        self._under_way.popleft()()


class SimulatedConnection(RedisConnection):
    """`node` is whose it is."""

    def __init__(
        self,
        server: SimulatedRedis,
        node: object,
        timeout: float,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[RedisConnection], None],
    ) -> None:
        self._server = server
        self.node = node
        self._loop: Loop = server.loop
        self._timeout = timeout
        self._on_push = on_push
        self._on_lost = on_lost
        self._watch = None
        self._transport = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self.problem: str | None = None
        self.channels: set[bytes] = set()
        self.there = server.pipe(node, "there", contextvars.Context())
        self.back = server.pipe(node, "back", contextvars.copy_context())

    def ask(self, *words: Word) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.problem is not None:
            reply.set_exception(StoreUnavailable(self.problem))
            reply.exception()
            return reply
        self._waiting.append((reply, self._loop.time()))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        self._server.carry(self, [_bytes(word) for word in words], answered=True)
        return reply

    def tell(self, *words: Word) -> None:
        self._server.carry(self, [_bytes(word) for word in words], answered=False)

    def replied(self, reply: Any) -> None:
        if self.problem is not None:
            return
        future, _ = self._waiting.popleft()
        if future.done():
            return
        if isinstance(reply, RedisError):
            future.set_exception(reply)
            future.exception()
        else:
            future.set_result(reply)

    def pushed(self, channel: bytes, message: bytes) -> None:
        if self.problem is None:
            self._on_push([b"message", channel, message])


def _bytes(word: Word) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


class SimulatedRedis:
    """
    `latency`: the longest that a message takes, one way. `slots`: of the cluster that it is in. `model`: what
    runs the scripts, and keeps the data.
    """

    connection = SimulatedConnection

    def __init__(
        self,
        loop: Loop,
        rng: Random,
        latency: float,
        slots: Any = None,
        model: Callable[..., Any] = RedisModel,
    ) -> None:
        self.loop = loop
        self._slots = slots
        self._rng = rng
        self._latency = latency
        self.offset = 0.0  # by which its clock was set
        self.model = model(self._micros, self._publish)
        self._empty = self.model.snapshot()
        self._run = 0
        self._scripts: dict[bytes, bytes] = {}
        self._connections: dict[SimulatedConnection, None] = {}  # in their order
        self._stopped = False
        self._queue: deque[tuple[SimulatedConnection, list[bytes], bool]] = deque()
        self._cut_until: dict[object, float] = {}
        self.down = False
        self._replicas: list[tuple[float, Any]] = []

    def _micros(self) -> int:
        return int((NOON + self.loop.time() + self.offset) * 1e6)

    async def open(self, node: object, timeout: float, on_push: Any, on_lost: Any) -> RedisConnection:
        """As RedisConnection.open."""
        await asyncio.sleep(self._delay())
        if self.down or self._cut_until.get(node, 0.0) > self.loop.time():
            raise StoreUnavailable("no connection to it could be made")
        connection = self.connection(self, node, timeout, on_push, on_lost)
        self._connections[connection] = None
        return connection

    # --- the network

    def pipe(self, node: object, way: str, context: contextvars.Context) -> Pipe:
        return Pipe(self.loop, context)

    def _delay(self) -> float:
        return self._rng.choice((0.0002, 0.0005, self._latency))

    def _when(self, node: object) -> float:
        return max(self.loop.time(), self._cut_until.get(node, 0.0)) + self._delay()

    def carry(self, connection: SimulatedConnection, words: list[bytes], *, answered: bool) -> None:
        if self.loop.is_closed():
            return  # of a process that was killed, when its remains are cleared away
        connection.there.send(self._when(connection.node), self._arrived, connection, words, answered)

    def _return(self, connection: SimulatedConnection, call: Callable[..., None], *what: Any) -> None:
        connection.back.send(self._when(connection.node), call, *what)

    def _publish(self, channel: bytes, message: bytes) -> None:
        for connection in self._connections:
            if channel in connection.channels:
                self._return(connection, connection.pushed, channel, message)

    # --- the server

    def _arrived(self, connection: SimulatedConnection, words: list[bytes], answered: bool) -> None:
        if connection not in self._connections:
            return
        if self._stopped:
            self._queue.append((connection, words, answered))
            return
        reply = self._done(connection, words)
        if answered:
            self._return(connection, connection.replied, reply)

    def _done(self, connection: SimulatedConnection, words: list[bytes]) -> Any:
        match words[0]:
            case b"EVALSHA":
                text = self._scripts.get(words[1])
                if text is None:
                    return RedisError("NOSCRIPT")
                return self._evaluated(text, words)
            case b"EVAL":
                return self._evaluated(words[1], words)
            case b"SCRIPT":
                self._scripts[hashlib.sha1(words[2]).hexdigest().encode()] = words[2]
                return b"OK"
            case b"SUBSCRIBE":
                connection.channels.update(words[1:])
            case b"TIME":
                micros = self._micros()
                return [b"%d" % (micros // 1_000_000), b"%d" % (micros % 1_000_000)]
            case b"CLUSTER":
                return self._slots
            case b"INFO":
                clustered = "" if self._slots is None else "cluster_enabled:1\r\n"
                return (
                    f"role:master\r\nrun_id:{self._run}\r\nmaster_replid:{self._run}\r\n{clustered}".encode()
                )
        return b"OK"

    def _evaluated(self, text: bytes, words: list[bytes]) -> Any:
        count = int(words[2])
        return self.model.evaluate(text, words[3 : 3 + count], words[3 + count :])

    # --- what befalls it

    def cut_off(self, node: object, seconds: float) -> None:
        self._cut_until[node] = self.loop.time() + seconds

    def stop(self, seconds: float) -> None:
        self._stopped = True
        outside(self.loop.call_later, seconds, self._go_on)

    def _go_on(self) -> None:
        self._stopped = False
        queue, self._queue = self._queue, deque()
        for one in queue:
            self._arrived(*one)

    def restart(self, data: Any, seconds: float) -> None:
        """Another process, with this data: that of the old one, or of a replica that was behind."""
        self._run += 1
        self.down = True
        lost, self._connections = self._connections, {}
        self._queue.clear()
        for connection in lost:
            self._return(connection, connection.end, "the connection to it was lost")

        def up() -> None:
            self.model.restore(data)
            self.down = False

        outside(self.loop.call_later, seconds, up)

    def flush(self) -> None:
        self.model.flush()

    def keep(self) -> None:
        """What a replica has by now."""
        self._replicas.append((self.loop.time(), self.model.snapshot()))

    def replica(self, behind: float) -> Any:
        """What one has that is so many seconds behind."""
        then = self.loop.time() - behind
        kept = [data for time, data in self._replicas if time <= then]
        return kept[-1] if kept else self._empty
