"""
The server stops: what was begun is finished, and nothing that follows is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn

from gateway.server.asgi import Message
from gateway.server.connection import GRACE
from gateway.server.limits import ServerStats
from tests.support.applications import Echo, Held
from tests.support.raw_requests import GET
from tests.support.serving import (
    connect,
    exchange,
    on_both_loops,
    port_of,
    running,
    serve,
)
from tests.support.virtual import VirtualClient, in_virtual_time


async def stop(server: uvicorn.Server) -> asyncio.Task[None]:
    """uvicorn's own shutdown, begun."""
    task = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0)
    assert not server.servers[0].is_serving()
    return task


@on_both_loops
async def test_x19_what_is_in_flight_is_finished_and_its_reply_says_that_it_is_the_last() -> None:
    held = Held()
    async with running(held) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET)
            await held.begun.wait()
            stopping = await stop(server)
            held.go.set()
            status, headers, body = await client.reply()
            assert (status, headers[b"connection"], body) == (200, b"close", b"held")
            assert await client.rest() == b""
        await stopping


@on_both_loops
async def test_x19_a_reply_that_began_before_the_stop_is_finished() -> None:
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with running(app) as server, connect(port_of(server)) as client:
        await client.send(GET)
        await client.until(b"3\r\none\r\n")
        stopping = await stop(server)
        go.set()
        assert await client.rest() == b"3\r\ntwo\r\n0\r\n\r\n"
        await stopping


@on_both_loops
async def test_x19_a_request_whose_head_had_begun_is_served() -> None:
    async with running(Echo()) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET)
            await client.reply()
            await client.send(GET[:10])
            await asyncio.sleep(0.02)
            stopping = await stop(server)
            await client.send(GET[10:])
            status, headers, _ = await client.reply()
            assert (status, headers[b"connection"]) == (200, b"close")
            assert await client.rest() == b""
        await stopping


@on_both_loops
async def test_x19_requests_that_were_there_are_all_served() -> None:
    held = Held()
    async with running(held) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET * 5)
            await held.begun.wait()
            await asyncio.sleep(0.02)
            stopping = await stop(server)
            held.go.set()
            got = await client.rest()
            assert got.count(b"HTTP/1.1 200") == 5
            assert got.count(b"connection: close") == 1
            assert got.endswith(b"connection: close\r\n\r\nheld")
        await stopping


@on_both_loops
async def test_x19_a_request_that_crosses_the_stop_is_served() -> None:
    async with running(Echo()) as server:
        port = port_of(server)
        async with connect(port) as fresh, connect(port) as busy:
            await busy.send(GET)
            await busy.reply()
            stopping = await stop(server)
            await busy.send(GET)
            status, headers, _ = await busy.reply()
            assert (status, headers[b"connection"]) == (200, b"close")
            assert await fresh.rest() == b""
        await stopping


@in_virtual_time
async def test_x19_a_client_may_send_a_request_for_a_moment_after_its_last_reply() -> None:
    fresh, idle, busy = (VirtualClient(Echo()) for _ in range(3))
    idle.send(GET)
    await asyncio.sleep(GRACE + 0.1)
    busy.send(GET)
    await asyncio.sleep(0.1)
    for client in (fresh, idle, busy):
        client.connection.shutdown()
    await asyncio.sleep(GRACE - 0.2)
    assert (fresh.over, idle.over, busy.over) == (True, True, False)
    busy.send(GET)
    assert (await busy.rest()).count(b"\r\nconnection: close\r\n") == 1


@on_both_loops
async def test_x19_no_request_of_busy_clients_is_lost() -> None:
    """Each sends its next request as soon as it has a reply, until a reply says that it is the last."""
    async with running(Echo()) as server:
        port = port_of(server)
        answered, many = 0, asyncio.Event()

        async def busy() -> None:
            nonlocal answered
            async with connect(port) as client:
                while True:
                    await client.send(GET)
                    status, headers, _ = await client.reply()
                    assert status == 200
                    answered += 1
                    if answered == 200:
                        many.set()
                    if headers.get(b"connection") == b"close":
                        assert await client.rest() == b""
                        return

        clients = [asyncio.create_task(busy()) for _ in range(20)]
        await many.wait()
        stopping = await stop(server)
        await asyncio.gather(*clients)
        await stopping


@on_both_loops
async def test_x19_a_connection_accepted_after_the_stop_is_told_at_its_first_reply() -> None:
    async with serve(Echo(), stats=ServerStats(stopping=True)) as port:
        assert b"\r\nconnection: close\r\n" in await exchange(port, GET)


@on_both_loops
async def test_a_task_that_is_cancelled_for_the_stop_cuts_its_reply(caplog: pytest.LogCaptureFixture) -> None:
    held, stats = Held(), ServerStats()
    async with running(held, stats=stats) as server, connect(port_of(server)) as client:
        await client.send(GET)
        await held.begun.wait()
        for task in server.server_state.tasks:
            task.cancel()
        assert await client.rest() == b""
    assert stats.aborted == {"cancelled": 1}
