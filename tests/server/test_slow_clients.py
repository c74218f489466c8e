"""
Clients that are too slow, over sockets and by real timers: each deadline goes off, and none too early.

When to the second, and all that is no client's fault, is in test_deadlines.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

import pytest

from gateway.errors import BodyTimeout
from gateway.server.asgi import Message
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.write_flow import ClientDisconnected
from tests.support.applications import Echo, body_of, reply
from tests.support.raw_requests import GET, LAST, get, post
from tests.support.serving import (
    Client,
    connect,
    exchange,
    on_both_loops,
    port_of,
    quiet,
    running,
    serve,
)


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_f7_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serve(Echo(), ServerLimits(head_timeout=0.05)) as port:
        assert await exchange(port, b"") == b""


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_f7_a_head_has_to_be_there_in_time_however_busily_it_drips() -> None:
    echo, stats = Echo(), ServerStats()
    async with serve(echo, ServerLimits(head_timeout=0.3), stats) as port, connect(port) as client:
        start = asyncio.get_running_loop().time()

        async def drip() -> None:
            for byte in get(b"/", *[b"X: y"] * 90):
                client.writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        status, headers, body = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert json.loads(body)["code"] == "gateway.head-timeout"
        assert 0.25 < asyncio.get_running_loop().time() - start < 2
        assert await client.rest() == b""
        dripping.cancel()
    assert stats.refused == {"head-timeout": 1}
    assert echo.scopes == []


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_f7_an_idle_connection_is_closed_without_a_word() -> None:
    async with serve(Echo(), ServerLimits(keep_alive=0.05)) as port, connect(port) as client:
        await client.send(GET)
        assert (await client.reply())[0] == 200
        assert await client.rest() == b""


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_f7_a_body_that_stops_coming_is_408() -> None:
    raised: list[Exception] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        try:
            await body_of(receive)
        except BodyTimeout as error:
            raised.append(error)
            raise

    stats = ServerStats()
    async with serve(app, ServerLimits(body_timeout=0.05), stats) as port, connect(port) as client:
        await client.send(post(b"hello")[:-3])
        status, headers, body = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert json.loads(body)["code"] == "gateway.body-timeout"
        await client.send(b"llo" + GET)
        assert await client.rest() == b""
    assert len(raised) == 1
    assert stats.refused == {"body-timeout": 1}


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_f7_a_body_that_stops_coming_after_the_reply_began_cuts_it() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue

    stats = ServerStats()
    async with serve(app, ServerLimits(body_timeout=0.05), stats) as port, connect(port) as client:
        await client.send(post(b"hello")[:-3])
        await client.until(b"5\r\nbegun\r\n")
        with pytest.raises(ConnectionResetError):
            await client.rest()
    assert stats.aborted == {"body-timeout": 1}


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_f7_an_early_reply_does_not_wait_long_for_the_rest_of_the_body() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    async with serve(app, ServerLimits(body_timeout=0.05)) as port, connect(port) as client:
        await client.send(post(b"hello")[:-3])
        assert (await client.reply())[0] == 401
        assert await client.rest() == b""


async def drip(client: Client, piece: bytes, every: float) -> None:
    with suppress(ConnectionError):
        while True:
            await client.send(piece)
            await asyncio.sleep(every)


UPLOAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_body_below_the_least_rate_is_408_however_steadily_it_drips() -> None:
    stats = ServerStats()
    limits = ServerLimits(min_rate=5000, rate_window=0.05)
    async with serve(Echo(), limits, stats) as port, connect(port) as client:
        await client.send(UPLOAD)
        dripping = asyncio.create_task(drip(client, b"x", 0.01))
        status, headers, body = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert json.loads(body)["code"] == "gateway.body-timeout"
        assert "limits.min_rate" in json.loads(body)["detail"]
        dripping.cancel()
    assert stats.refused == {"body-timeout": 1}
    assert stats.awaiting == 0


@pytest.mark.parametrize(
    ("request_head", "whole"),
    [(GET, True), (GET, False), (LAST, True)],
    ids=["whole", "in pieces", "the last"],
)
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_client_that_reads_nothing_is_cut_off(request_head: bytes, whole: bool) -> None:
    ended: list[BaseException | None] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            if whole:
                await send({"type": "http.response.body", "body": b"x" * (24 << 20)})
            while not whole:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            ended.append(error)
            raise

    stats = ServerStats()
    async with (
        running(app, ServerLimits(write_timeout=0.05), stats) as server,
        connect(port_of(server), buffer=8192) as client,
    ):
        await client.send(request_head)
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await quiet(server)
    assert stats.aborted == {"write-timeout": 1}
    assert [type(error) for error in ended] == ([] if whole else [ClientDisconnected])


@on_both_loops
async def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    body = b"x" * 8_000_000

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, body, 200, (b"connection", b"close"))

    async with serve(app, ServerLimits(write_timeout=0.5)) as port:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, GET)
            size = 0
            # Slower than the kernel's buffers are deep: for a while only the peer's window moves.
            while piece := await loop.sock_recv(sock, 50_000 if size < 800_000 else 1 << 20):
                size += len(piece)
                if size < 800_000:
                    await asyncio.sleep(0.1)
    assert size > len(body)


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_reader_below_the_least_rate_is_cut_off_though_it_takes_something() -> None:
    ended: list[BaseException] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            ended.append(error)
            raise

    stats = ServerStats()
    async with (
        running(app, ServerLimits(min_rate=10_000_000, rate_window=0.05), stats) as server,
        connect(port_of(server), buffer=4096, limit=4096) as client,
    ):
        await client.send(GET)

        async def sip() -> None:
            with suppress(ConnectionError):
                while await client.reader.read(1000):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        sipping = asyncio.create_task(sip())
        await quiet(server)
        sipping.cancel()
    assert stats.aborted == {"write-rate": 1}
    assert [type(error) for error in ended] == [ClientDisconnected]
