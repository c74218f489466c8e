"""
After a 101 the connection is a tunnel: raw bytes both ways until one side ends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from gateway.server.asgi import Message
from gateway.server.duplex_stream import DuplexStream
from gateway.server.limits import ServerStats
from gateway.server.stalled_replies import StalledReplies
from gateway.server.write_flow import ClientDisconnected
from tests.support.applications import SWITCHED, Echo, Tunnel, cycle_of
from tests.support.raw_requests import GET, LAST, UPGRADE, get
from tests.support.serving import (
    connect,
    exchange,
    on_both_loops,
    port_of,
    quiet,
    running,
    serve,
)
from tests.support.virtual import VirtualClient, in_virtual_time


@on_both_loops
async def test_an_upgrade_becomes_a_tunnel_and_early_bytes_are_kept() -> None:
    tunnel = Tunnel()
    async with serve(tunnel) as port, connect(port) as client:
        await client.send(UPGRADE + b"early")
        assert await client.head() == SWITCHED
        assert await client.until(b">") == b"<early>"
        await client.send(GET)
        assert await client.exactly(len(GET) + 2) == b"<" + GET + b">"
        client.end()
        assert await client.rest() == b""
    assert len(tunnel.scopes) == 1


@on_both_loops
async def test_a_101_has_the_fields_that_the_application_gives_it() -> None:
    fields = [(b"connection", b"Upgrade"), (b"upgrade", b"WebSocket")]
    async with serve(Tunnel(fields=fields)) as port, connect(port) as client:
        await client.send(UPGRADE)
        got = await client.head()
    assert got.endswith(b"x\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n")


@on_both_loops
async def test_a_tunnel_is_open_one_way_after_the_client_ended_the_other() -> None:
    async def after(stream: DuplexStream) -> None:
        assert await stream.read() == b""
        assert await stream.read() == b""
        await stream.write(b"still open")

    async with serve(Tunnel(after)) as port, connect(port) as client:
        await client.send(UPGRADE)
        assert await client.head() == SWITCHED
        client.end()
        assert await client.rest() == b"still open"


@on_both_loops
async def test_a5_without_a_101_what_follows_an_upgrade_is_the_next_request() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, UPGRADE + get(b"/second") + LAST)
    assert got.count(b"HTTP/1.1 200") == 3
    assert echo.targets == [b"/ws", b"/second", b"/last"]
    assert [cycle_of(scope).upgrade for scope in echo.scopes] == [b"websocket", None, None]


@on_both_loops
async def test_a5_h2c_is_not_offered_to_the_application(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(Tunnel()) as port:
        got = await exchange(
            port,
            get(b"/", b"Connection: Upgrade, HTTP2-Settings, close", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
        )
    assert got.endswith(b"plain")

    async def forcing(scope: Message, receive: Any, send: Any) -> None:
        cycle_of(scope).switch([])

    async with serve(forcing) as port:
        assert (await exchange(port, LAST)).startswith(b"HTTP/1.1 500")


@on_both_loops
async def test_a18_a_101_cannot_be_split(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        cycle_of(scope).switch([(b"x", b"a\r\nb: c")])

    async with serve(app) as port, connect(port) as client:
        await client.send(UPGRADE)
        assert (await client.reply())[0] == 500


@on_both_loops
async def test_a_tunnel_has_back_pressure_both_ways() -> None:
    read: list[int] = []
    go = asyncio.Event()

    async def after(stream: DuplexStream) -> None:
        await go.wait()
        while sum(read) < 16 << 20:
            read.append(len(await stream.read()))
        for _ in range(256):
            await stream.write(b"y" * 65536)

    async with serve(Tunnel(after)) as port, connect(port) as client:
        await client.send(UPGRADE)
        await client.head()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.send(b"x" * (16 << 20))
        go.set()
        assert len(await client.rest()) == 16 << 20
    assert max(read) < 1 << 20


@in_virtual_time
async def test_a_side_of_a_tunnel_may_be_slow_for_a_while() -> None:
    async def after(stream: DuplexStream) -> None:
        await stream.write(b"x" * 100_000)
        await stream.write(b"end")

    stats = ServerStats(stalled=StalledReplies(lambda: 1))
    client = VirtualClient(Tunnel(after), stats=stats)
    client.reading = False
    client.send(UPGRADE)
    await asyncio.sleep(59)
    client.reading = True
    client.take(1_000_000)
    assert (await client.rest()).endswith(b"xend")
    assert not stats.aborted


@pytest.mark.parametrize("how", ["close", "abort", "return", "raise", "client", "client, cancelled"])
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_how_a_tunnel_ends(how: str, caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[bool] = []
    ended = asyncio.Event()

    async def after(stream: DuplexStream) -> None:
        cycle_of(tunnel.scopes[0]).cancel_on_disconnect = how != "client"
        try:
            await whole_tunnel(stream)
            await asyncio.sleep(0)
            cancelled.append(False)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        finally:
            ended.set()

    async def whole_tunnel(stream: DuplexStream) -> None:
        await stream.write(b"last words")
        if how == "close":
            stream.close()
        elif how == "abort":
            stream.abort()
        elif how == "raise":
            raise LookupError
        elif how.startswith("client"):
            while await stream.read():
                continue
            with pytest.raises(ClientDisconnected):
                await stream.write(b"x")

    tunnel = Tunnel(after)
    stats = ServerStats()
    async with running(tunnel, stats=stats) as server:
        async with connect(port_of(server)) as client:
            await client.send(UPGRADE)
            await client.head()
            if how.startswith("client"):
                await client.until(b"words")
                client.reset()
                async with asyncio.timeout(5):
                    await ended.wait()
            elif how in ("close", "return"):
                assert await client.rest() == b"last words"
            else:
                with suppress(ConnectionResetError):
                    await client.rest()
        await quiet(server)
    assert cancelled == ([] if how == "raise" else [how == "client, cancelled"])
    assert stats.aborted == (
        {"tunnel": 1} if how == "abort" else {"application-error": 1} if how == "raise" else {}
    )
