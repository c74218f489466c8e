"""
Too many clients, too many calls: who is refused, how early, and that the others are served.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from gateway.server.asgi import Message
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.stalled_replies import STALL
from tests.support.applications import Echo, Held, reply
from tests.support.raw_requests import GET, chunked, post
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
async def test_a_call_whose_body_is_waited_for_leaves_room_in_flight() -> None:
    echo, stats = Echo(), ServerStats()
    async with serve(echo, ServerLimits(max_in_flight=4), stats) as port, AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(10))
        clients = [await stack.enter_async_context(connect(port)) for _ in range(8)]
        for number, client in enumerate(clients, 1):
            await client.send(post(b"hello")[:-3])
            while stats.awaiting < number:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        async with connect(port) as other:
            await other.send(GET)
            assert (await other.reply())[0] == 200
        clients[0].reset()
        clients[1].end()
        for rest in (b"llo", post(b"hello")):
            await clients[2].send(rest)
            assert (await clients[2].reply())[::2] == (200, b"/ hello")
        while stats.awaiting > 5:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        for client in clients[3:]:
            await client.send(b"llo")
            assert (await client.reply())[0] == 200
    assert stats.awaiting == 0
    assert not stats.refused


@on_both_loops
async def test_one_that_gives_up_waiting_for_the_body_or_waits_twice_counts_again() -> None:
    held, done, stats = asyncio.Event(), asyncio.Event(), ServerStats()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        assert stats.awaiting == 1
        with pytest.raises(RuntimeError):
            await receive()
        assert stats.awaiting == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        held.set()
        await done.wait()
        await reply(send)

    async with serve(app, ServerLimits(max_in_flight=1), stats) as port, connect(port) as client:
        await client.send(post(b"hello")[:-5])
        await asyncio.wait_for(held.wait(), 5)
        assert stats.awaiting == 0
        async with connect(port) as other:
            await other.send(GET)
            assert (await other.reply())[0] == 503
        done.set()
        assert (await client.reply())[0] == 200


@on_both_loops
async def test_past_max_connections_a_client_is_told_at_once_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stats = ServerStats()
    async with running(Echo(), ServerLimits(max_connections=2), stats) as server:
        port = port_of(server)
        async with connect(port) as first, connect(port) as second:
            for client in (first, second):
                await client.send(GET)
                assert (await client.reply())[0] == 200
            for _ in range(3):
                async with connect(port) as third:
                    status, headers, body = await third.reply()
                    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
                    assert headers[b"proxy-status"] == b"gateway; error=connection_limit_reached"
                    assert json.loads(body)["code"] == "gateway.overloaded"
                    assert await third.rest() == b""
            await first.send(GET)
            assert (await first.reply())[0] == 200
        await quiet(server)
        async with connect(port) as fourth:
            await fourth.send(GET)
            assert (await fourth.reply())[0] == 200
    assert stats.refused == {"overloaded": 3}
    assert stats.turned_away == 0
    assert len(caplog.records) == 1, "a flood of refusals is one line a second"


@on_both_loops
async def test_a_flood_past_max_connections_is_not_even_answered() -> None:
    stats = ServerStats()
    async with running(Echo(), ServerLimits(max_connections=1), stats) as server, AsyncExitStack() as stack:
        port = port_of(server)
        first = await stack.enter_async_context(connect(port))
        flood = [
            await stack.enter_async_context(connect(port)) for _ in range(ServerLimits().max_lingering + 20)
        ]
        assert (await flood[0].reply())[0] == 503
        last = b"?"
        with suppress(ConnectionResetError):
            last = await flood[-1].rest()
        assert last in (b"", b"?")
        await first.send(GET)
        assert (await first.reply())[0] == 200
    assert stats.refused == {"overloaded": ServerLimits().max_lingering + 20}


@on_both_loops
async def test_past_max_in_flight_a_request_is_refused_at_once_and_its_connection_stays() -> None:
    held, stats = Held(), ServerStats()
    async with (
        serve(held, ServerLimits(max_in_flight=1), stats) as port,
        connect(port) as first,
        connect(port) as second,
    ):
        await first.send(GET)
        await held.begun.wait()
        for data in (GET, post(b"x" * 1000), chunked(b"x")[:-3]):
            await second.send(data)
            status, headers, _ = await second.reply()
            assert (status, headers[b"retry-after"]) == (503, b"1")
        await second.send(b"\r\n")
        held.go.set()
        assert (await first.reply())[0] == 200
        await second.send(b"" if b"connection" in headers else GET)
        async with asyncio.timeout(5):
            if b"connection" not in headers:
                assert (await second.reply())[0] == 200
            else:
                assert await second.rest() == b""
    assert stats.refused == {"overloaded": 3}


@on_both_loops
async def test_past_max_in_flight_a_pipeline_ends_with_its_first_refusal() -> None:
    held, stats = Held(), ServerStats()
    async with serve(held, ServerLimits(max_in_flight=1), stats) as port, connect(port) as first:
        await first.send(GET)
        await held.begun.wait()
        got = await exchange(port, GET * 9000)
        assert got.count(b"HTTP/1.1 503") == 1
        assert b"connection: close\r\n" in got
        held.go.set()
        assert (await first.reply())[0] == 200
    assert stats.refused == {"overloaded": 1}


async def flooded(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


@in_virtual_time
async def test_past_max_stalled_the_replies_that_have_waited_longest_are_cut_off() -> None:
    stats = ServerStats()
    clients = []
    for _ in range(4):
        client = VirtualClient(flooded, ServerLimits(max_stalled=2), stats)
        client.reading = False
        client.send(GET)
        clients.append(client)
        await asyncio.sleep(0.1)
    assert not any(client.over for client in clients), "each may keep its reply waiting for a moment"
    assert len(stats.stalled) == 4
    await asyncio.sleep(2)
    assert [client.aborted for client in clients] == [True, True, False, False]
    assert [client.ended_at for client in clients[:2]] == [pytest.approx(0.2 + STALL)] * 2
    assert stats.aborted == {"stalled": 2}
    clients[2].take(1_000_000)
    await asyncio.sleep(0.001)
    assert len(stats.stalled) == 2, "it waits again, behind the other"
    for client in clients[2:]:
        client.abort()
    await asyncio.sleep(0.001)
    assert len(stats.stalled) == 0


@in_virtual_time
async def test_a_reply_that_goes_on_in_time_is_not_cut_off_for_the_others() -> None:
    stats = ServerStats()
    clients = []
    for _ in range(3):
        client = VirtualClient(flooded, ServerLimits(max_stalled=2), stats)
        client.reading = False
        client.send(GET)
        clients.append(client)
    for _ in range(20):
        await asyncio.sleep(STALL - 0.1)
        for client in clients:
            client.take(200_000)
    assert not any(client.over for client in clients)
    for client in clients:
        client.abort()
    await asyncio.sleep(0.001)
