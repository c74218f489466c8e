"""
One connection to a Redis server, shared by all who ask at once: requests go out as they come, replies come in
that order.

RESP3, so that what others publish comes on the same connection. A reply that does not come in time ends the
connection, for those behind it could not be told apart any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from ssl import SSLContext
from typing import Any, TypeAlias, cast

import hiredis

from gateway.errors import StoreUnavailable
from gateway.state.address import Address

Word: TypeAlias = bytes | str | int | float


class RedisError(Exception):
    """The server refused one request; the connection goes on."""


class RedisConnection(asyncio.Protocol):
    def __init__(
        self,
        timeout: float,
        on_push: Callable[[list[Any]], None] = lambda message: None,
        on_lost: Callable[[RedisConnection], None] = lambda connection: None,
    ) -> None:
        """`timeout`: seconds in which each reply has to come. `on_lost` is called once it is of no use."""
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._on_push = on_push
        self._on_lost = on_lost
        self._reader = hiredis.Reader(notEnoughData=...)
        # Who waits for which reply, and since when.
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.problem: str | None = None  # why it is of no use any more

    @classmethod
    async def open(
        cls,
        host: tuple[str, int] | str,
        tls: SSLContext | None,
        timeout: float,
        on_push: Callable[[list[Any]], None] = lambda message: None,
        on_lost: Callable[[RedisConnection], None] = lambda connection: None,
    ) -> RedisConnection:
        """To a host and port or a Unix socket's path. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()

        def made() -> RedisConnection:
            return cls(timeout, on_push, on_lost)

        try:
            async with asyncio.timeout(timeout):
                if isinstance(host, str):
                    return (await loop.create_unix_connection(made, host))[1]
                name = host[0] if tls is not None else None
                return (await loop.create_connection(made, *host, ssl=tls, server_hostname=name))[1]
        except TimeoutError as error:
            raise StoreUnavailable(f"no connection to it could be made in {timeout:g} s") from error
        except OSError as error:
            raise StoreUnavailable(f"no connection to it could be made: {error}") from error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def ask(self, *words: Word) -> asyncio.Future[Any]:
        """Sent at once; the reply may be waited for, or not. It fails with RedisError or StoreUnavailable."""
        reply = self._loop.create_future()
        if self.problem is not None or self._transport is None:
            reply.set_exception(StoreUnavailable(self.problem or "there is no connection to it"))
            reply.exception()
            return reply
        self._waiting.append((reply, self._loop.time()))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        self._transport.write(hiredis.pack_command(cast(Any, words)))
        return reply

    def tell(self, *words: Word) -> None:
        """What is answered by a push, or by nothing."""
        if self._transport is not None:
            self._transport.write(hiredis.pack_command(cast(Any, words)))

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not ...:
                if type(reply) is hiredis.PushNotification:
                    self._on_push(reply)
                    continue
                future, _ = waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    future.set_exception(RedisError(str(reply)))
                    future.exception()  # who does not wait for it need not hear of it
                else:
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.end("it sent what is not its protocol")

    def _look(self) -> None:
        self._watch = None
        if not self._waiting or self.problem is not None:
            return
        left = self._waiting[0][1] + self._timeout - self._loop.time()
        if left <= 0:
            self.end(f"it did not answer in {self._timeout:g} s")
        else:
            self._watch = self._loop.call_later(left, self._look)

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the connection to it was lost")

    def end(self, problem: str) -> None:
        """All who wait hear of it."""
        if self.problem is not None:
            return
        self.problem = problem
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(StoreUnavailable(problem))
                future.exception()
        self._waiting.clear()
        self._on_lost(self)


def greeting(address: Address) -> Sequence[Word]:
    """The first request on a connection."""
    if address.password is None:
        return ("HELLO", 3)
    return ("HELLO", 3, "AUTH", address.user or "default", address.password)
