"""The pool as an httpx transport, so that the same test runs over it and over httpx's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from math import inf

import httpx

from gateway import errors
from gateway.upstream.connection import Timeouts
from gateway.upstream.pool import Pool
from gateway.upstream.reply import Reply

THEIRS: dict[type[Exception], type[httpx.HTTPError]] = {
    errors.PoolExhausted: httpx.PoolTimeout,
    errors.ConnectTimeout: httpx.ConnectTimeout,
    errors.ReadTimeout: httpx.ReadTimeout,
    errors.ConnectionRefused: httpx.ConnectError,
    errors.ConnectionTerminated: httpx.ReadError,
    errors.InvalidReply: httpx.RemoteProtocolError,
    errors.UnwritableRequest: httpx.LocalProtocolError,
}


@contextmanager
def their_errors() -> Iterator[None]:
    try:
        yield
    except (*THEIRS,) as error:
        raise THEIRS[type(error)](str(error)) from error


class HttpxPool(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self._pools: dict[tuple[object, ...], Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body: bytes | AsyncIterator[bytes] | None = aiter(request.stream)
        if isinstance(request.stream, httpx.ByteStream):
            body = b"".join([piece async for piece in request.stream]) or None
        with their_errors():
            reply = await self._pool(request).send(
                request.method.encode("ascii"),
                request.extensions.get("target", request.url.raw_path),
                request.headers.raw,
                body,
            )
        return httpx.Response(reply.status, headers=reply.headers, stream=ReplyStream(reply))

    def _pool(self, request: httpx.Request) -> Pool:
        url, given = request.url, request.extensions.get("timeout", {})
        times = {name: inf if value is None else value for name, value in given.items()}
        key = url.scheme, url.host, url.port, *times.values()
        if key not in self._pools:
            port = url.port or (443 if url.scheme == "https" else 80)
            self._pools[key] = Pool(url.scheme, url.host, port, timeouts=Timeouts(**times))
        return self._pools[key]

    async def aclose(self) -> None:
        for pool in self._pools.values():
            pool.close()
            if not pool.size:
                await pool.wait_closed()


class ReplyStream(httpx.AsyncByteStream):
    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with their_errors():
            while piece := await self._reply.read():
                yield piece

    async def aclose(self) -> None:
        self._reply.close()
