"""
What no rule matches: carried through both ways as it comes, nothing changed.

A connection to the upstream is not to be had at a slow client's pace. A body that is small and soon whole is
sent in one piece; the others are streamed, and these together hold no more than their share of connections.

Two kinds are noticed on their way. A write to a conversation takes its turn and makes the cache
forget (S3, S4); a client's own GET of what a fill would look up is remembered, which saves a look-up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from gateway import forwarding, tunnel
from gateway import headers as h
from gateway.credentials import Credentials
from gateway.downstream import Downstream
from gateway.errors import MethodNotAllowed, PoolExhausted
from gateway.forwarding import Hop
from gateway.headers import Fields
from gateway.order import Order
from gateway.rules import Rules, Write, identity
from gateway.states import States
from gateway.stores import Key, Reading
from gateway.templates import Fit, decoded
from gateway.upstream import Leaving, Reply, Upstream

AHEAD = 64 * 1024  # bytes of a body that are read before it is sent …
PATIENCE = 2.0  # … and seconds: then a client that waits for the reply's head before it goes on gets it

LEARNABLE_CODINGS = frozenset({None, b"gzip", b"deflate"})


class Uploads:
    """
    Places for bodies that are streamed: `limit` at a time. Who finds none in `patience` seconds is refused
    as if the pool were exhausted; for uploads it is.
    """

    def __init__(self, limit: int, patience: float) -> None:
        self._places = asyncio.Semaphore(limit)
        self._limit = limit
        self._patience = patience

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                await self._places.acquire()
        except TimeoutError as error:
            raise PoolExhausted(
                f"{self._limit} bodies are being streamed (half of upstream.max_connections)"
            ) from error
        try:
            yield
        finally:
            self._places.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """
    `max_body`: bytes of a write that are read before it takes its turn, and of a reply that may be learned
    from. `tunnel_idle` in seconds.
    """

    rules: Rules
    states: States
    order: Order
    upstream: Upstream
    uploads: Uploads
    credentials: Credentials
    hop: Hop
    clock: Callable[[], float]
    max_body: int
    tunnel_idle: float

    async def carry(self, client: Downstream) -> None:
        headers = client.onward(self.hop)
        if client.method in {"OPTIONS", "TRACE"}:
            left = forwarding.forwards_left(headers)
            if left == 0 or client.method == "TRACE":
                await self._end_here(client)
                return
            if left is not None:
                headers = h.replaced(headers, b"max-forwards", b"%d" % (left - 1))
        disguises = h.disguises(client.headers)
        write = self.rules.writes(client.path, client.method, *disguises)
        client.may_leave()
        if not client.has_body or await self._read_ahead(client, write is not None):
            await self._forward(client, write, headers, bool(disguises))
        else:
            # The place before the turn, for all: nobody holds up a conversation while he waits for a place.
            async with self.uploads.place():
                await self._forward(client, write, headers, bool(disguises))

    async def _read_ahead(self, client: Downstream, write: bool) -> bool:
        # A slow sender must not hold up the conversation's other calls: the turn is for what is here.
        return await (client.read_ahead(self.max_body) if write else client.read_ahead(AHEAD, PATIENCE))

    async def _forward(
        self, client: Downstream, write: Fit[Write] | None, headers: Fields, disguised: bool
    ) -> None:
        if write is not None:
            await self._write(client, write, headers)
            return
        read = None if disguised else self.rules.reads(client.method, client.path)
        if read is not None and client.path == client.target:
            key = Key(
                identity(decoded(read.parameters[read.value.conversation])),
                client.target,
                client.headers.once(self.credentials.of),
            )
            await self._read(client, key, headers)
            return
        if client.upgrade is not None and not client.has_body:
            await self._upgrade(client, client.upgrade, headers)
            return
        with await self._sent(client, headers) as reply:
            await self._relay(client, reply)

    async def _upgrade(self, client: Downstream, protocol: bytes, headers: Fields) -> None:
        own = [*client.own, (b"connection", b"upgrade"), (b"upgrade", protocol)]
        method = client.method.encode()
        with await self.upstream.send(method, client.target, headers, own=own, upgrade=True) as reply:
            if reply.status == 101:
                back = forwarding.back(reply.headers)
                down = client.switch([*back.headers, *back.with_ours([], client.own[0])])
                await tunnel.join(down, reply, self.tunnel_idle)
            else:
                await self._relay(client, reply)

    async def _write(self, client: Downstream, write: Fit[Write], headers: Fields) -> None:
        conversation = write.value.conversation(write.parameters)
        with await self.order.take(conversation, changing=True):
            await self.states.forget(conversation)
            try:
                reply = await self._sent(client, headers, client.must_stay)
            finally:
                await self.states.forget(conversation)
        with reply:
            await self._relay(client, reply)

    async def _read(self, client: Downstream, key: Key, headers: Fields) -> None:
        started = self.clock()
        lease = await self.states.lease(key.conversation)
        with await self._sent(client, headers) as reply:
            coding = h.first(reply.headers, b"content-encoding")
            learnable = reply.status == 200 and reply.headers.once(h.is_json) and coding in LEARNABLE_CODINGS
            body = await self._relay(client, reply, self.max_body if learnable else 0)
        if body:
            # A compressed representation's entity tag is not the plain one's (RFC 9110 section 8.8.3).
            etag = h.first(reply.headers, b"etag") if coding is None else None
            await self.states.learn(key, Reading(body, started, lease, etag, learned=True), coding)

    async def _sent(self, client: Downstream, headers: Fields, leaving: Leaving | None = None) -> Reply:
        body = client.body() if client.has_body else None
        if body is not None and h.first(headers, b"content-length") is None:
            headers = headers.once(h.chunked)
        return await self.upstream.send(
            client.method.encode(), client.target, headers, body, own=client.own, leaving=leaving
        )

    async def _relay(self, client: Downstream, reply: Reply, keep: int = 0) -> bytes | None:
        back = reply.headers.once(forwarding.back)
        return await client.relay(reply.status, back.headers, back.with_ours([], client.own[0]), reply, keep)

    async def _end_here(self, client: Downstream) -> None:
        """RFC 9110 sections 7.6.2 and 9.3.8."""
        if client.method == "TRACE":
            raise MethodNotAllowed("TRACE would echo credentials")
        allow = (b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
        await client.answer(200, [allow, (b"content-length", b"0")], b"")
