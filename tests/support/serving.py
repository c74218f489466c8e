"""
A real server for the tests: uvicorn with the gateway's protocol in the test's own loop, on a port of its own,
and clients that send and receive bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, cast

import pytest
import uvicorn
import uvloop

from gateway.server.connection import App, build
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.tls import Certificates, TlsListener
from tests.support.waiting import PATIENCE

LOOPS = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test twice: on asyncio's own event loop and on uvloop's."""

    def run(loop: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test(**arguments))

    own = inspect.signature(run).parameters["loop"]
    signature = inspect.Signature([own, *inspect.signature(test).parameters.values()])
    functools.update_wrapper(run, test)
    vars(run)["__signature__"] = signature
    result: Callable[..., None] = LOOPS(run)
    return result


# What the servers show, where the fixture `over_tls` has them and their clients speak TLS.
certificates: Certificates | None = None
trust: ssl.SSLContext | None = None


@contextlib.contextmanager
def over(shown: Certificates, trusted: ssl.SSLContext) -> Iterator[None]:
    global certificates, trust
    certificates, trust = shown, trusted
    try:
        yield
    finally:
        certificates = trust = None


def config_of(
    app: App, limits: ServerLimits, stats: ServerStats, shown: Certificates | None = None
) -> uvicorn.Config:
    plain, shown = build(limits, stats), shown or certificates
    config = uvicorn.Config(
        cast(Any, app),
        http=plain if shown is None else cast(Any, TlsListener(plain, shown)),
        port=0,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    config.load()
    return config


@asynccontextmanager
async def running(
    app: App,
    limits: ServerLimits | None = None,
    stats: ServerStats | None = None,
    shown: Certificates | None = None,
) -> AsyncIterator[uvicorn.Server]:
    """For the tests that stop the server themselves; `port_of` tells where it listens."""
    config = config_of(app, limits or ServerLimits(), stats or ServerStats(), shown)
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await quiet(server)


async def quiet(server: uvicorn.Server) -> None:
    """
    Until nobody is connected and nothing runs; uvicorn's own wait looks only ten times a second. A client
    that has closed is gone after a few turns of the loop: only after those is there time to wait for.
    """
    state = server.server_state
    async with asyncio.timeout(10):
        for turn in itertools.count():
            if not (state.connections or state.tasks):
                return
            await asyncio.sleep(0 if turn < 20 else 0.002)


@asynccontextmanager
async def directly(app: App) -> AsyncIterator[tuple[Any, Client]]:
    """A protocol whose input the test hands over by itself, on a socket that its output goes to."""
    config = config_of(app, ServerLimits(), ServerStats())
    server = uvicorn.Server(config)
    ours, theirs = socket.socketpair()
    factory: Any = config.http_protocol_class
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_accepted_socket(
        lambda: factory(config=config, server_state=server.server_state, app_state={}, _loop=loop), ours
    )
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield protocol, Client(reader, writer, 5.0)
    finally:
        writer.close()
        transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def serve(
    app: App,
    limits: ServerLimits | None = None,
    stats: ServerStats | None = None,
    shown: Certificates | None = None,
) -> AsyncIterator[int]:
    """The port at which `app` is served for as long as the block runs."""
    async with running(app, limits, stats, shown) as server:
        yield port_of(server)


def port_of(server: uvicorn.Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


class Reply(NamedTuple):
    """`headers` have lower-case names, each with its last value."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Client:
    """One connection, byte by byte. Everything it waits for must come within `patience` seconds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float) -> None:
        self.reader = reader
        self.writer = writer
        self._patience = patience

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(self._patience):
            await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(self._patience):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(self._patience):
            return await self.reader.readexactly(size)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(self._patience):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        async with asyncio.timeout(self._patience):
            return await self.reader.read()

    async def status_and_headers(self) -> tuple[int, dict[bytes, bytes]]:
        head = await self.head()
        line, *fields = head[:-4].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (f.partition(b":") for f in fields)}
        return int(line.split(b" ")[1]), headers

    async def reply(self) -> Reply:
        """One reply that has a Content-Length or is chunked."""
        status, headers = await self.status_and_headers()
        body = b""
        if b"transfer-encoding" in headers:
            while size := int(await self.until(b"\r\n"), 16):
                body += (await self.exactly(size + 2))[:-2]
            await self.exactly(2)
        else:
            body = await self.exactly(int(headers.get(b"content-length", b"0")))
        return Reply(status, headers, body)

    def end(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """RST, not FIN."""
        sock: Any = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


@asynccontextmanager
async def connect(
    port: int,
    *,
    patience: float = PATIENCE,
    buffer: int | None = None,
    limit: int = 1 << 20,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """
    `buffer` makes the kernel's receive buffer that small, and `limit` our own, for a client that reads
    little or nothing.
    """
    sock = socket.socket()
    sock.setblocking(False)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    tls = tls or trust
    name = None if tls is None else "localhost"
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit, ssl=tls, server_hostname=name)
    try:
        yield Client(reader, writer, patience)
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):  # it may be the server that ended it
            await writer.wait_closed()


async def exchange(port: int, data: bytes) -> bytes:
    """What the server says to `data` until it ends the connection."""
    async with connect(port) as client:
        await client.send(data)
        return await client.rest()
