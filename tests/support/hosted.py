"""
The gateway in each of the ways in which it can be run, before the same upstream: by its own server, under
others, as a middleware, as a transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn

from gateway import app
from gateway.asgi import GatewayApp, GatewayMiddleware, create_app
from gateway.in_process.httpx_transport import RepairingTransport
from gateway.mock.server import Mock
from gateway.server.asgi import AsgiApp, Message, Receive, Send
from tests.support.audit_lines import audit_lines
from tests.support.clients import bare_client
from tests.support.gateways import gateway, settings
from tests.support.mocking import RunningMock, mock
from tests.support.ports import unused_ports
from tests.support.waiting import until


class Before(NamedTuple):
    """`port` is where it is called; a transport has none."""

    gateway: app.Gateway
    client: httpx.AsyncClient
    audit: Path
    port: int


class Hosted(NamedTuple):
    upstream: RunningMock
    gateway: app.Gateway
    client: httpx.AsyncClient
    audit: Path
    port: int

    def events(self) -> list[str]:
        """Of the audit log's lines, which begins with the first."""
        return [line["event"] for line in audit_lines(self.audit)] if self.audit.exists() else []


class _Uvicorn(uvicorn.Server):
    """The signals of the process are pytest's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def under_uvicorn(served: AsgiApp, **options: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(
        served,
        port=0,
        lifespan="on",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=10,
        **options,
    )
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def under_hypercorn(served: AsgiApp) -> AsyncIterator[int]:
    hypercorn: Any = pytest.importorskip("hypercorn.asyncio")
    config: Any = pytest.importorskip("hypercorn.config").Config()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]
    config.include_server_header = config.include_date_header = False
    config.errorlog = config.accesslog = None
    stopped = asyncio.Event()
    task = asyncio.create_task(hypercorn.serve(served, config, shutdown_trigger=stopped.wait))
    try:
        yield port
    finally:
        stopped.set()
        await task


@asynccontextmanager
async def under_granian(served: AsgiApp) -> AsyncIterator[int]:
    embed: Any = pytest.importorskip("granian.server.embed")
    constants: Any = pytest.importorskip("granian.constants")
    (port,) = unused_ports(1)
    server = embed.Server(served, port=port, interface=constants.Interfaces.ASGI, log_enabled=False)
    task = asyncio.create_task(server.serve())
    await until(lambda: task.done() or _listens(port))
    try:
        yield port
    finally:
        server.stop()
        await task


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


SERVERS: dict[str, Callable[[AsgiApp], Any]] = {
    "uvicorn": under_uvicorn,
    "hypercorn": under_hypercorn,
    "granian": under_granian,
}


class _Cut:
    """The mock's connection, where it has none: it ends as the application does."""

    def abort(self) -> None:
        raise ConnectionAbortedError

    def get_extra_info(self, _: str) -> _Cut:
        return self

    def setsockopt(self, *_: Any) -> None: ...


def as_application(upstream: Mock) -> AsgiApp:
    """The mock behind the middleware."""

    async def inner(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        state = {**scope.get("state", {}), "target": target, "transport": _Cut()}
        await upstream.app({**scope, "state": state}, receive, send)

    return inner


@asynccontextmanager
async def before(
    way: str, url: str, inner: AsgiApp | None = None, seams: dict[str, Any] | None = None, /, **changes: Any
) -> AsyncIterator[Before]:
    """In front of what is at `url`, or is `inner`; `changes` are those of `document`."""
    given = seams or {}
    async with contextlib.AsyncExitStack() as stack:
        audit = changes.pop("audit", None)
        if way == "own":
            run = await stack.enter_async_context(gateway(url, audit, **given, **changes))
            client = await stack.enter_async_context(run.client())
            yield Before(run.gateway, client, run.audit, run.port)
            return
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rewrites.jsonl"
        chosen = settings(url, audit or str(path), **changes)
        if way == "transport":
            transport = RepairingTransport(chosen, **given)
            client = httpx.AsyncClient(transport=transport, base_url=url, timeout=20)
            client.headers.clear()
            await stack.enter_async_context(client)
            yield Before(transport.within.running, client, path, 0)
            return
        if inner is not None:
            served: GatewayApp = GatewayMiddleware(inner, chosen, **given)
        else:
            served = create_app(chosen, **given)
        port = await stack.enter_async_context(SERVERS[way if way in SERVERS else "uvicorn"](served))
        client = await stack.enter_async_context(bare_client(f"http://127.0.0.1:{port}"))
        await until(lambda: served.within.gateway is not None)
        yield Before(served.within.running, client, path, port)


@asynccontextmanager
async def hosted(way: str, seams: dict[str, Any] | None = None, /, **changes: Any) -> AsyncIterator[Hosted]:
    """Before the mock. `way` is "own", one of SERVERS, "middleware" or "transport"."""
    async with mock() as upstream:
        inner = as_application(upstream) if way == "middleware" else None
        async with before(way, upstream.url, inner, seams, **changes) as running:
            yield Hosted(upstream, *running)
