"""
What no rule matches: passed through both ways as it comes, nothing changed.

A slow client must not hold a connection to the upstream. A body that is small and soon whole is read first
and sent in one piece; the others are streamed, and all of them together hold no more than half of the
connections. A write is never streamed: all of it is here, in memory or on disk (spool.py), before it takes
its conversation's lock, or all are forgotten for it.

Two kinds of call are noticed on their way. A write to a conversation takes its exclusive lock and
invalidates what was read of it (S3, S4); a client's own GET of what a fill would look up is kept, which
saves a look-up, if a look-up with the same fields would have got the same reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

from gateway.errors import UNSENT, MethodNotAllowed, PoolExhausted, StoreUnavailable
from gateway.http import forwarding
from gateway.http import headers as h
from gateway.http.headers import Fields
from gateway.paths import PathMatch, decoded
from gateway.proxy import tunnel
from gateway.proxy.client import Client
from gateway.proxy.departure import Departure
from gateway.proxy.spool import Spools
from gateway.repairs import Fill
from gateway.rules import Rules, Write, identity
from gateway.state.credentials import CredentialFingerprints
from gateway.state.freshness import may_have_changed
from gateway.state.lookup import Lookups
from gateway.state.store import Key, Locks, Reading
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, Transport

# A body is streamed if it is larger than this many bytes, or not whole after these seconds: its client may be
# waiting for the head of the reply before it sends the rest.
MAX_READ_AHEAD = 64 * 1024
READ_AHEAD_PATIENCE = 2.0

# A cache in between answered, which no look-up lets it; a session began, with which the next call is another
# caller's; a part, whatever the status says.
NOT_PRIMING = frozenset({b"age", b"set-cookie", b"set-cookie2", b"content-range"})
PRIMING_CODINGS = frozenset({None, b"gzip", b"deflate"})


class UploadSlots:
    """
    For bodies that are streamed: `limit` at a time, a quarter of those (at least one) for one caller. A call
    that gets no slot in `patience` seconds is refused as if the pool were exhausted; for uploads it is.
    """

    def __init__(self, limit: int, patience: float) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._limit = limit
        self._share = max(1, limit // 4)
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._patience = patience

    @contextlib.asynccontextmanager
    async def slot(self, caller: str) -> AsyncIterator[None]:
        own = self._of.setdefault(caller, asyncio.Semaphore(self._share))
        async with contextlib.AsyncExitStack() as taken:
            try:
                async with asyncio.timeout(self._patience):
                    await taken.enter_async_context(own)
                    await taken.enter_async_context(self._slots)
            except TimeoutError as error:
                raise PoolExhausted(
                    f"{self._limit} bodies are being streamed (half of upstream.max_connections), "
                    f"or {self._share} of this caller"
                ) from error
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Passthrough:
    """
    `max_body`: bytes of a reply that may be kept.
    `tunnel_idle` in seconds.
    """

    lookups: Lookups
    locks: Locks
    upstream: Transport
    uploads: UploadSlots
    spools: Spools
    tunnels: tunnel.TunnelSlots
    credentials: CredentialFingerprints
    max_body: int
    tunnel_idle: float

    async def carry(self, client: Client, rules: Rules) -> None:
        headers, method_overrides = client.head.upstream, client.head.overrides
        if client.method in {"OPTIONS", "TRACE"}:
            left = forwarding.forwards_left(headers)
            if left == 0 or client.method == "TRACE":
                await self._end_here(client)
                return
            if left is not None:
                headers = h.replaced(headers, b"max-forwards", b"%d" % (left - 1))
        write = rules.writes(client.path, client.method, *method_overrides)
        client.cancel_on_disconnect()
        spool = None
        try:
            if not client.has_body:
                here = True
            elif write is not None:
                # Before it takes its lock: a slow sender does not hold up the conversation. Nor does one that
                # breaks off make all forgotten.
                spool = await self.spools.read(client, client.caller())
                here = True
            else:
                here = await client.read_ahead(MAX_READ_AHEAD, READ_AHEAD_PATIENCE)
            if here:
                await self._forward(client, rules, write, headers, bool(method_overrides))
                return
            async with self.uploads.slot(client.caller()):
                await self._forward(client, rules, write, headers, bool(method_overrides))
        finally:
            if spool is not None:
                spool.close()

    async def _forward(
        self,
        client: Client,
        rules: Rules,
        write: PathMatch[Write] | None,
        headers: Fields,
        overridden: bool,
    ) -> None:
        if write is not None:
            await self._write(client, write, headers)
            return
        read = None if overridden else rules.reads(client.method, client.path)
        if read is not None:
            key = self._looked_up_as(client, read, headers)
            if key is not None:
                await self._read(client, key, headers)
                return
        if client.upgrade is not None and not client.has_body:
            await self._upgrade(client, client.upgrade, headers)
            return
        with await self._sent(client, headers) as reply:
            await self._relay(client, reply)

    async def _upgrade(self, client: Client, protocol: bytes, headers: Fields) -> None:
        extra_headers = [*client.extra_headers, (b"connection", b"upgrade"), (b"upgrade", protocol)]
        method = client.method.encode()
        who = client.caller()
        self.tunnels.take(who)
        try:
            reply = await self.upstream.send(
                method,
                client.target,
                headers,
                extra_headers=extra_headers,
                upgrade=True,
                values=client.values,
                caller=client.caller,
            )
            if reply.status == 101:
                with reply:
                    response = forwarding.client_response_headers(reply.headers)
                    own = response.extra_headers([], client.extra_headers[0])
                    down = client.switch([*response.headers, *own])
                    await tunnel.join(down, reply, self.tunnel_idle)
                return
        finally:
            self.tunnels.give_back(who)
        with reply:  # the upstream did not switch: a reply like another
            await self._relay(client, reply)

    async def _write(self, client: Client, write: PathMatch[Write], headers: Fields) -> None:
        conversation = write.value.conversation(write.parameters)
        caller = client.caller()
        with await self.locks.acquire(conversation, exclusive=True, caller=caller) as lock:
            opened = await self.lookups.begin_write(conversation, caller, exclusive=True)

            def allow() -> None:
                if not lock.holds():
                    raise StoreUnavailable("the lease of this process's locks was about to end")
                client.shield_from_disconnect()

            departure = Departure(allow)
            reply = None
            try:
                try:
                    reply = await self._sent(client, headers, departure)
                except UNSENT:
                    departure.left = False
                    raise
                finally:
                    status = None if reply is None else reply.status
                    if departure.left and may_have_changed(status, filled=False, changing=True):
                        await self.lookups.invalidate_after(conversation)
                    else:
                        await self.lookups.changed_nothing(opened)
            except asyncio.CancelledError:
                # It may come while the store is told, when nothing else closes the reply.
                if reply is not None:
                    reply.close()
                raise
        with reply:
            await self._relay(client, reply)

    def _looked_up_as(self, client: Client, read: PathMatch[Fill], headers: Fields) -> Key | None:
        """The key of the look-up that would be the same request as this GET, if one would."""
        query = b""
        if client.path != client.target:
            query = self.credentials.carried_query(client.target) or b""
            if client.target != client.path + b"?" + query:
                return None
        if client.has_body or client.upgrade is not None or not headers.derived(forwarding.is_like_lookup):
            return None
        return Key(
            identity(decoded(read.parameters[read.value.conversation])),
            client.target,
            self.credentials.of_call(headers, query, client.certificate, client.values),
        )

    async def _read(self, client: Client, key: Key, headers: Fields) -> None:
        stamp = await self.lookups.stamp(key.conversation)
        with await self._sent(client, headers) as reply:
            coding = h.first(reply.headers, b"content-encoding")
            primes = (
                stamp is not None
                and reply.status == 200
                and reply.headers.derived(h.is_json)
                and coding in PRIMING_CODINGS
                and NOT_PRIMING.isdisjoint(reply.headers.derived(h.by_name))
                and not forwarding.varies_beyond(reply.headers, headers, self.credentials.ignored)
            )
            body = await self._relay(client, reply, self.max_body if primes else 0)
        if body and stamp is not None:
            # A compressed representation's entity tag is not the plain one's (RFC 9110 section 8.8.3).
            etag = h.first(reply.headers, b"etag") if coding is None else None
            reading = Reading(body, stamp.time, stamp.generation, etag, learned=True)
            await self.lookups.prime(key, reading, coding)

    async def _sent(self, client: Client, headers: Fields, before_send: BeforeSend | None = None) -> Reply:
        body = client.body() if client.has_body else None
        if body is not None and h.first(headers, b"content-length") is None:
            headers = headers.derived(h.chunked)
        return await self.upstream.send(
            client.method.encode(),
            client.target,
            headers,
            body,
            extra_headers=client.extra_headers,
            values=client.values,
            before_send=before_send,
            caller=client.caller,
        )

    async def _relay(self, client: Client, reply: Reply, keep: int = 0) -> bytes | None:
        if reply.error is not None and not reply.ended:  # before anything of it was sent
            raise reply.error
        response = reply.headers.derived(forwarding.client_response_headers)
        extra_headers = response.extra_headers([], client.extra_headers[0])
        return await client.relay(reply.status, response.headers, extra_headers, reply, keep)

    async def _end_here(self, client: Client) -> None:
        """RFC 9110 sections 7.6.2 and 9.3.8."""
        if client.method == "TRACE":
            raise MethodNotAllowed("TRACE would echo credentials")
        allow = (b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
        await client.answer(200, [allow, (b"content-length", b"0")], b"")
