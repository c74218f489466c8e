"""
Too many clients, too many calls: who is refused, how early, and that the others are served.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from uvicorn.server import ServerState

from gateway.errors import AbortCause
from gateway.server.asgi import Message
from gateway.server.held_back import LOT, TICK
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.stalled_replies import LOOK, STALL, StalledReplies
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
async def test_as_many_are_cut_off_as_are_wanted_those_that_have_waited_longest() -> None:
    stats = ServerStats(stalled=StalledReplies(lambda: 2 - stats.aborted.total()))
    clients = []
    for _ in range(4):
        client = VirtualClient(flooded, stats=stats)
        client.reading = False
        client.send(GET)
        clients.append(client)
        await asyncio.sleep(0.1)
    assert not any(client.over for client in clients), "each may keep its reply waiting for a moment"
    assert len(stats.stalled) == 4
    await asyncio.sleep(2)
    assert [client.aborted for client in clients] == [True, True, False, False]
    for client, since in zip(clients, (0.0, 0.1), strict=False):
        assert client.ended_at == pytest.approx(since + STALL, abs=LOOK)
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
    stats = ServerStats(stalled=StalledReplies(lambda: 3))
    clients = []
    for _ in range(3):
        client = VirtualClient(flooded, stats=stats)
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


def counting(seconds: float = 0.0) -> Any:
    """Answers at once, and is busy for so long afterwards."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send)
        await asyncio.sleep(seconds)

    return app


@in_virtual_time
async def test_a_call_leaves_the_flight_with_its_replys_last_byte() -> None:
    stats = ServerStats()
    limits = ServerLimits(max_in_flight=1)
    clients = [VirtualClient(counting(60), limits, stats) for _ in range(3)]
    for client in clients:
        client.send(GET)
        await client.until(b"\r\n\r\n")
        assert client.got.startswith(b"HTTP/1.1 200")
    assert stats.in_flight == 0
    assert not stats.refused
    for client in clients:
        client.abort()
    await asyncio.sleep(61)
    assert stats.in_flight == 0, "it does not leave twice"


@in_virtual_time
async def test_a_call_whose_client_has_gone_is_in_flight_until_it_is_over() -> None:
    held, stats = Held(), ServerStats()
    limits = ServerLimits(max_in_flight=1)
    first, second = (VirtualClient(held, limits, stats) for _ in range(2))
    first.send(GET)
    await held.begun.wait()
    first.abort()
    await asyncio.sleep(0.001)
    second.send(GET)
    await asyncio.sleep(0)
    assert second.got.startswith(b"HTTP/1.1 503")
    held.go.set()
    await asyncio.sleep(0.001)
    assert stats.in_flight == 0
    second.abort()
    await asyncio.sleep(0.001)


@in_virtual_time
async def test_who_was_refused_is_not_read_for_a_while_and_then_served() -> None:
    held, stats = Held(), ServerStats()
    limits = ServerLimits(max_in_flight=1, keep_alive=0.2)
    first, second = (VirtualClient(held, limits, stats) for _ in range(2))
    first.send(GET)
    await held.begun.wait()
    second.send(GET)
    await asyncio.sleep(0)
    refused = len(second.got)
    assert second.got.startswith(b"HTTP/1.1 503")
    second.send(GET)
    held.go.set()
    await asyncio.sleep(limits.overload_pause - 0.01)
    assert len(second.got) == refused, "whoever calls again at once waits"
    assert not second.over, "it is not late while it is not read"
    await asyncio.sleep(0.02)
    assert second.got[refused:].startswith(b"HTTP/1.1 200")
    assert len(stats.held_back) == 0
    await asyncio.sleep(0.3)
    assert second.over, "then the time for its next request counts again"


@in_virtual_time
async def test_who_has_taken_all_places_in_flight_leaves_some_for_those_who_have_few() -> None:
    held = Held()
    stats = ServerStats(caller_of=lambda _headers, _values, _address, target, _shown: target.decode())
    limits = ServerLimits(max_in_flight=20)

    def begin(caller: bytes, count: int) -> list[VirtualClient]:
        clients = [VirtualClient(held, limits, stats) for _ in range(count)]
        for client in clients:
            client.send(GET.replace(b"/", b"/" + caller, 1))
        return clients

    def refused(clients: list[VirtualClient]) -> list[bool]:
        return [client.got.startswith(b"HTTP/1.1 503") for client in clients]

    many, few, other, last = begin(b"many", 22), begin(b"few", 2), begin(b"other", 1), begin(b"many", 1)
    await held.begun.wait()
    assert refused(many) == [False] * 20 + [True] * 2, "alone it has all of them"
    assert (refused(few), refused(other), refused(last)) == ([False] * 2, [True], [True])
    held.go.set()
    await asyncio.sleep(0.1)
    for client in (*many[:20], *few):
        assert client.got.startswith(b"HTTP/1.1 200")
    assert (stats.in_flight, stats.in_flight_of) == (0, {})


@in_virtual_time
async def test_many_that_were_refused_are_read_again_in_lots() -> None:
    held, stats = Held(), ServerStats()
    limits = ServerLimits(max_in_flight=1)
    first = VirtualClient(held, limits, stats)
    first.send(GET)
    await held.begun.wait()
    crowd = [VirtualClient(held, limits, stats) for _ in range(10 * LOT)]
    for client in crowd:
        client.send(GET)
        client.send(GET)  # at once again
    assert stats.refused == {"overloaded": len(crowd)}
    await asyncio.sleep(limits.overload_pause + TICK / 2)
    assert stats.refused == {"overloaded": len(crowd) + LOT}
    await asyncio.sleep(TICK * 4)
    assert stats.refused == {"overloaded": len(crowd) + 5 * LOT}
    await asyncio.sleep(TICK * 40)
    assert stats.refused == {"overloaded": 2 * len(crowd)}, "and each only once"
    for client in (first, *crowd):
        client.abort()
    held.go.set()
    await asyncio.sleep(0.001)
    assert len(stats.held_back) == 0, "nothing is kept of those who have gone"


@in_virtual_time
async def test_without_a_pause_the_refused_are_read_at_once() -> None:
    held, stats = Held(), ServerStats()
    limits = ServerLimits(max_in_flight=1, overload_pause=0)
    first, second = (VirtualClient(held, limits, stats) for _ in range(2))
    first.send(GET)
    await held.begun.wait()
    for _ in range(3):
        second.send(GET)
    assert stats.refused == {"overloaded": 3}
    for client in (first, second):
        client.abort()
    held.go.set()
    await asyncio.sleep(0.001)


async def in_large_pieces(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 2_000_000, "more_body": True})


def stalled_readers(count: int, stats: ServerStats) -> list[VirtualClient]:
    clients = [VirtualClient(in_large_pieces, stats=stats) for _ in range(count)]
    for client in clients:
        client.reading = False
        client.send(GET)
    return clients


async def reads(clients: dict[VirtualClient, int], seconds: float) -> None:
    """Each takes so many bytes a second."""
    for _ in range(round(seconds * 10)):
        await asyncio.sleep(0.1)
        for client, rate in clients.items():
            client.take(rate // 10)


@in_virtual_time
async def test_a_reader_is_judged_by_what_it_takes_not_by_when_it_was_last_woken() -> None:
    stats = ServerStats(stalled=StalledReplies(lambda: 4))
    clients = stalled_readers(4, stats)
    await reads(dict(zip(clients, [100_000, 20_000, 100_000, 0], strict=True)), 5)
    assert [client.aborted for client in clients] == [False, True, False, True]
    assert stats.aborted == {"stalled": 2}
    for client in clients:
        client.abort()
    await asyncio.sleep(0.001)


@in_virtual_time
async def test_nobody_is_cut_off_before_somebody_needs_what_he_holds() -> None:
    needed = 0
    stats = ServerStats(stalled=StalledReplies(lambda: needed - stats.aborted.total()))
    clients = stalled_readers(3, stats)
    await asyncio.sleep(5)
    assert not any(client.aborted for client in clients)
    needed = 2
    stats.stalled.look(asyncio.get_running_loop())
    assert [client.aborted for client in clients] == [True, True, False], "at once"
    clients[2].abort()
    await asyncio.sleep(0.001)
    assert stats.aborted == {"stalled": 2}


class Stalled:
    """A reply that waits; `over`: all of it is here."""

    def __init__(self, *, over: bool = False) -> None:
        self.over = over
        self.cut = False

    def taken_since_waiting(self) -> int:
        return 0

    def holds_connection(self) -> bool:
        return not self.over

    def cut_off(self, cause: AbortCause) -> None:
        self.cut = True


@in_virtual_time
async def test_nobody_is_cut_off_for_a_connection_who_holds_none_or_while_one_is_on_its_way() -> None:
    wanted, loop = 1, asyncio.get_running_loop()
    stalled = StalledReplies(lambda: wanted)
    replies = [Stalled(over=True), Stalled(), Stalled()]
    for one in replies:
        stalled.add(one, loop)
    await asyncio.sleep(5)
    assert [one.cut for one in replies] == [False, True, False]
    stalled.discard(replies[1])
    wanted = 0
    await asyncio.sleep(5)
    assert [one.cut for one in replies] == [False, True, False]


@in_virtual_time
async def test_past_half_of_the_places_in_flight_stalled_replies_make_room_for_who_is_refused() -> None:
    stats, limits = ServerStats(), ServerLimits(max_in_flight=4)
    clients = [VirtualClient(flooded, limits, stats) for _ in range(4)]
    for client in clients:
        client.reading = False
        client.send(GET)
    await asyncio.sleep(5)
    assert not any(client.aborted for client in clients)
    newcomer = VirtualClient(flooded, limits, stats)
    newcomer.send(GET)
    await asyncio.sleep(0)
    assert newcomer.got.startswith(b"HTTP/1.1 503")
    await asyncio.sleep(1)
    assert [client.aborted for client in clients] == [True, True, False, False]
    assert stats.in_flight == 2
    for client in clients[2:]:
        client.abort()
    await asyncio.sleep(0.001)


@in_virtual_time
async def test_where_room_is_made_a_new_client_takes_the_place_of_the_longest_silent() -> None:
    held, stats = Held(), ServerStats()
    limits = ServerLimits(max_connections=2, makes_room=True)
    state = ServerState()
    busy, silent = (VirtualClient(held, limits, stats, state) for _ in range(2))
    busy.send(GET)
    await held.begun.wait()
    newcomer = VirtualClient(held, limits, stats, state)
    await asyncio.sleep(0.001)
    assert (busy.over, silent.over, newcomer.over) == (False, True, False)
    held.go.set()
    newcomer.send(GET)
    await newcomer.until(b"held")
    assert not stats.refused


@in_virtual_time
async def test_where_nobody_is_silent_no_room_can_be_made() -> None:
    held, stats = Held(), ServerStats()
    limits = ServerLimits(max_connections=1, makes_room=True)
    state = ServerState()
    busy = VirtualClient(held, limits, stats, state)
    busy.send(GET)
    await held.begun.wait()
    newcomer = VirtualClient(held, limits, stats, state)
    assert newcomer.got.startswith(b"HTTP/1.1 503")
    held.go.set()
    await asyncio.sleep(0.001)
