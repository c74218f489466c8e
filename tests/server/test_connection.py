"""
One connection: its requests in their order, how long it stays, and the same over TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any

import pytest
import trustme
import uvicorn

from gateway.server.asgi import Message
from gateway.server.connection import build
from gateway.server.limits import ServerLimits, ServerStats
from tests.support.applications import SWITCHED, Echo, Held, Tunnel, reply
from tests.support.raw_requests import GET, LAST, UPGRADE, get, post
from tests.support.serving import (
    Client,
    connect,
    exchange,
    on_both_loops,
    quiet,
    serve,
)


@on_both_loops
async def test_close_is_honoured_both_ways_and_nothing_after_it_is_served() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, get(b"/1", b"Connection: x, CLOSE") + GET)
        assert got.count(b"HTTP/1.1") == got.count(b"connection: close\r\n") == 1
    assert echo.targets == [b"/1"]

    async def closing(scope: Message, receive: Any, send: Any) -> None:
        echo.scopes.append(scope)
        await reply(send, b"bye", 200, (b"connection", b"Close"))

    async with serve(closing) as port:
        got = await exchange(port, get(b"/2") + GET)
    assert got.count(b"HTTP/1.1") == got.lower().count(b"connection: close\r\n") == 1
    assert echo.targets == [b"/1", b"/2"]


@on_both_loops
async def test_what_follows_a_request_waits_and_is_not_piled_up() -> None:
    held = Held()
    async with serve(held) as port, connect(port) as client:
        await client.send(GET)
        await held.begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.send(get(b"/", b"X: " + b"a" * 20000) * 1000)
        held.go.set()
        for _ in range(1001):
            assert (await client.reply())[0] == 200


@on_both_loops
async def test_pipelined_requests_are_answered_in_order() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, b"".join(get(b"/%d" % n) for n in range(500)) + post(b"x") + LAST)
    bodies = [part.partition(b"\r\n\r\n")[2].strip() for part in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(b"/%d" % n for n in range(500)), b"/ x", b"/last"]


@on_both_loops
async def test_two_requests_of_one_connection_are_never_served_at_once() -> None:
    try_acquire = most = 0

    async def app(scope: Message, receive: Any, send: Any) -> None:
        nonlocal try_acquire, most
        try_acquire += 1
        most = max(most, try_acquire)
        await asyncio.sleep(0)
        try_acquire -= 1
        await reply(send)

    async with serve(app) as port:
        await exchange(port, GET * 50 + LAST)
    assert most == 1


@on_both_loops
async def test_over_tls_requests_and_refusals_and_tunnels_are_the_same() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    tunnel = Tunnel()
    config = uvicorn.Config(
        tunnel, http=build(ServerLimits(), ServerStats()), ws="none", log_config=None, proxy_headers=False
    )
    config.load()
    server, factory, loop = uvicorn.Server(config), config.http_protocol_class, asyncio.get_running_loop()

    def make() -> Any:
        make_any: Any = factory
        return make_any(config=config, server_state=server.server_state, app_state={}, _loop=loop)

    listener = await loop.create_server(make, "127.0.0.1", 0, ssl=ours)
    port = listener.sockets[0].getsockname()[1]
    for data, missing in (
        (GET + LAST, [b"HTTP/1.1 200 OK", b"plainHTTP/1.1 200 OK", b"plain"]),
        (
            GET + b"GET / HTTP/1.1\r\n\r\n",
            [b"HTTP/1.1 200 OK", b"plainHTTP/1.1 400 Bad Request", b"Host is missing"],
        ),
        (UPGRADE + b"early", [SWITCHED, b"<early>"]),
    ):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=theirs, server_hostname="localhost"
        )
        client = Client(reader, writer, 5.0)
        await client.send(data)
        for want in missing:
            await client.until(want)
        if data.startswith(UPGRADE):
            writer.close()
        else:
            await client.rest()
            writer.close()
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
    listener.close()
    await quiet(server)
    assert {scope["scheme"] for scope in tunnel.scopes} == {"https"}
