"""
A transport whose replies say where they are as the client sees it: `listen.rewrite_replies`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

from gateway.http.headers import Headers, first
from gateway.http.relocated import relocated
from gateway.http.slots import Slot, Values
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, Transport, nobody


class RelocatedReplies:
    def __init__(self, carrier: Transport, url: str, public: bytes) -> None:
        """`url` is that of the upstream; `public` the prefix with which clients call."""
        to = urlsplit(url)
        self._carrier = carrier
        self._authority = to.netloc.encode()
        self._prefix = to.path.rstrip("/").encode()
        self._public = public

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
        reply = await self._carrier.send(
            method,
            target,
            headers,
            body,
            extra_headers=extra_headers,
            upgrade=upgrade,
            values=values,
            before_send=before_send,
            caller=caller,
        )
        if any(name in {b"location", b"set-cookie"} for name, _ in reply.headers):
            # As the upstream was called: with `preserve_host` it knows the client's name for it.
            host = first(headers, b"host")
            host = values[host.number] if isinstance(host, Slot) else host
            reply.headers = reply.headers.derived(
                relocated, host or self._authority, self._prefix, self._public
            )
        return reply

    def close(self) -> None:
        self._carrier.close()

    async def wait_closed(self) -> None:
        await self._carrier.wait_closed()
