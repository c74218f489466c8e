"""
The upstream over httpx's own transport: chosen by `upstream.http2`, and fit for any other httpx transport.

The only file that knows httpx and its errors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import httpx

from gateway import errors
from gateway.http.headers import Fields, Headers
from gateway.http.slots import Values, filled
from gateway.upstream.connect import not_connected
from gateway.upstream.connection import Timeouts
from gateway.upstream.pool import PoolLimits
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, nobody

# Transfer-Encoding stays, for an upstream that speaks HTTP/1.1 after all: for the others httpcore drops it.
OF_THE_CONNECTION: Final = frozenset({b"connection", b"upgrade"})
FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})

# With words of our own for the client: httpx's quote what the upstream sent.
TRANSLATIONS: Final[tuple[tuple[type[httpx.HTTPError], type[errors.UpstreamError], str], ...]] = (
    (httpx.PoolTimeout, errors.PoolExhausted, "no connection to the upstream came free in time"),
    (httpx.ConnectTimeout, errors.ConnectTimeout, "no connection to the upstream in time"),
    (httpx.TimeoutException, errors.ReadTimeout, "the upstream took or sent nothing in time"),
    (httpx.ProtocolError, errors.InvalidReply, "the upstream broke the rules of the protocol"),
    (httpx.HTTPError, errors.ConnectionTerminated, "the connection to the upstream broke off"),
)


@contextmanager
def our_errors() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise translated(error) from error


def translated(error: httpx.HTTPError) -> errors.UpstreamError:
    said = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError):
        return not_connected(error, said)  # what the system said of it: nothing had been sent
    kind, words = next((ours, words) for theirs, ours, words in TRANSLATIONS if isinstance(error, theirs))
    return kind(words, evidence=said.encode("utf-8", "backslashreplace"))


def over_http2(
    origin: str, prefix: bytes, *, tls: ssl.SSLContext | None, timeouts: Timeouts, limits: PoolLimits
) -> HttpxTransport:
    """`origin` as scheme://host:port."""
    transport = httpx.AsyncHTTPTransport(
        verify=tls or True,
        http2=True,
        trust_env=False,
        limits=httpx.Limits(
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_connections,
            keepalive_expiry=limits.idle_timeout,
        ),
    )
    return HttpxTransport(transport, origin, timeouts, prefix)


class HttpxTransport:
    """A Transport (transport.py) over one of httpx's. Never a client: a client has cookies (C4)."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        origin: str,
        timeouts: Timeouts,
        prefix: bytes = b"",
    ) -> None:
        """`origin` as scheme://host:port; `prefix` goes before each target but `*`."""
        self._transport = transport
        self._origin = httpx.URL(origin)
        self._timeouts = asdict(timeouts)
        self._prefix = prefix
        self._closing: set[asyncio.Task[None]] = set()
        # As the pool's (pool.py).
        self.on_reply: Callable[[], None] | None = None

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
        """Never upgrades: HTTP/2 has none (RFC 9113 section 8.6), so what was offered is left out."""
        if self._prefix and target != b"*":
            target = self._prefix + target
        extensions: dict[str, Any] = {"target": target, "timeout": self._timeouts}
        if before_send is not None:
            extensions["trace"] = _at_the_head(before_send)
        given = (*filled(headers, values), *extra_headers)
        fields = [pair for pair in given if pair[0] not in OF_THE_CONNECTION]
        if isinstance(body, bytes) and FRAMING.isdisjoint(name for name, _ in fields):
            fields.append((b"content-length", b"%d" % len(body)))
        request = httpx.Request(
            method.decode(),
            self._origin,
            headers=fields,
            stream=_RequestStream(body),
            # With the target as it came: httpx would normalise a URL's path.
            extensions=extensions,
        )
        with our_errors():
            response = await self._transport.handle_async_request(request)
        if self.on_reply is not None:
            self.on_reply()
        reply = Reply()
        names = Fields((name.lower(), value) for name, value in response.headers.raw)
        reply.begin(_ReplyStream(response, self._closing), response.status_code, names)
        return reply

    def close(self) -> None:
        """Nothing can be closed at once: wait_closed does it."""

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._closing)
        await self._transport.aclose()


class _ReplyStream:
    """
    The source of a reply's body: httpx's stream, which does not tell what has arrived until it is asked.
    """

    def __init__(self, response: httpx.Response, closing: set[asyncio.Task[None]]) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._stream = response.stream
        self._pieces = aiter(response.stream)
        self._closing = closing

    async def more(self, reply: Reply) -> None:
        try:
            with our_errors():
                reply.arrived(await anext(self._pieces))
        except StopAsyncIteration:
            reply.finish()
            self._close()
        except errors.UpstreamError as error:
            reply.finish(error)
            self._close()

    def taken(self) -> None:
        """Nothing more is read until it is asked for."""

    def abandon(self, reply: Reply) -> None:
        reply.finish(errors.ConnectionTerminated("the reply was closed before its end"))
        self._close()

    def _close(self) -> None:
        # httpx can only close in a coroutine: it is waited for when the transport itself is closed.
        task = asyncio.ensure_future(self._stream.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _at_the_head(before_send: BeforeSend) -> Callable[[str, object], Awaitable[None]]:
    """httpcore tells of each step before it takes it: the first bytes of a request are its head's."""

    async def trace(step: str, _: object) -> None:
        if step.endswith(".send_request_headers.started"):
            commit = before_send()
            if commit is not None:
                commit()

    return trace


class _RequestStream(httpx.AsyncByteStream):
    def __init__(self, body: bytes | AsyncIterator[bytes] | None) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._body, bytes):
            yield self._body
        elif self._body is not None:
            async for piece in self._body:
                yield piece
