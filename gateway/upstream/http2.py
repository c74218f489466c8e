"""
The upstream over httpx's own transport: chosen by `upstream.http2`, and fit for any other httpx transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from gateway.http.headers import Fields, Headers

# Transfer-Encoding stays, for an upstream that speaks HTTP/1.1 after all: for the others httpcore drops it.
CONNECTION = frozenset({b"connection", b"upgrade"})
FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class HttpxReply:
    def __init__(self, response: httpx.Response, closing: set[asyncio.Task[None]]) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self.status = response.status_code
        self.headers = Fields((name.lower(), value) for name, value in response.headers.raw)
        self._stream = response.stream
        self._pieces = aiter(response.stream)
        self._closing = closing
        self._closed = False
        self.ended = False

    def whole(self) -> None:
        """httpx does not tell what has arrived."""

    async def read(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self.ended = True
            return b""

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            # httpx can only close in a coroutine: it is waited for when the wire itself is closed.
            task = asyncio.ensure_future(self._stream.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class HttpxWire:
    """`origin` as scheme://host:port. The transport, never a client: a client has cookies (C4)."""

    def __init__(self, transport: httpx.AsyncBaseTransport, origin: str, timeouts: dict[str, float]) -> None:
        self._transport = transport
        self._origin = httpx.URL(origin)
        self._timeouts = timeouts
        self._closing: set[asyncio.Task[None]] = set()

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        before_send: Callable[[], Callable[[], None] | None] | None = None,
    ) -> HttpxReply:
        """Never upgrades: HTTP/2 has none (RFC 9113 section 8.6), so what was offered is left out."""
        extensions: dict[str, Any] = {"target": target, "timeout": self._timeouts}
        if before_send is not None:
            extensions["trace"] = _at_the_head(before_send)
        fields = [pair for pair in (*headers, *extra_headers) if pair[0] not in CONNECTION]
        if isinstance(body, bytes) and FRAMING.isdisjoint(name for name, _ in fields):
            fields.append((b"content-length", b"%d" % len(body)))
        request = httpx.Request(
            method.decode(),
            self._origin,
            headers=fields,
            stream=_Stream(body),
            # With the target as it came: httpx would normalise a URL's path.
            extensions=extensions,
        )
        return HttpxReply(await self._transport.handle_async_request(request), self._closing)

    def close(self) -> None:
        """Nothing can be closed at once: wait_closed does it."""

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._closing)
        await self._transport.aclose()


def _at_the_head(
    before_send: Callable[[], Callable[[], None] | None],
) -> Callable[[str, object], Awaitable[None]]:
    """httpcore tells of each step before it takes it: the first bytes of a request are its head's."""

    async def trace(step: str, _: object) -> None:
        if step.endswith(".send_request_headers.started"):
            commit = before_send()
            if commit is not None:
                commit()

    return trace


class _Stream(httpx.AsyncByteStream):
    def __init__(self, body: bytes | AsyncIterator[bytes] | None) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._body, bytes):
            yield self._body
        elif self._body is not None:
            async for piece in self._body:
                yield piece
