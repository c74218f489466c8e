"""What clients do not take of their replies has one bound, and those who take least make room."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.server.asgi import Message
from gateway.server.duplex_stream import DuplexStream
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.unsent_replies import PATIENCE, UnsentReplies
from tests.support.applications import Tunnel, reply
from tests.support.raw_requests import GET
from tests.support.virtual import VirtualClient, in_virtual_time

SIZE = 200_000  # bytes of a body, which is written in one piece
SMALL = 10_000
HEADS = 2_000  # bytes that are more than three replies' heads


async def at_once(scope: Message, receive: Any, send: Any) -> None:
    await reply(send, b"x" * (SMALL if scope["path"] == "/small" else SIZE))


def reader(stats: ServerStats, target: bytes = b"/") -> VirtualClient:
    """One that has asked, and reads nothing."""
    client = VirtualClient(at_once, ServerLimits(), stats)
    client.reading = False
    client.send(GET.replace(b" / ", b" %b " % target))
    return client


async def ended(*clients: VirtualClient) -> None:
    for client in clients:
        client.abort()
    await asyncio.sleep(0.001)


@in_virtual_time
async def test_past_the_bound_those_who_have_taken_nothing_for_longest_are_cut_off() -> None:
    stats = ServerStats(unsent=UnsentReplies(3 * SIZE + HEADS))
    clients = []
    for _ in range(2):
        clients.append(reader(stats))
        await asyncio.sleep(PATIENCE)
    clients[0].take(SIZE)  # all but its head's worth: it begins anew
    clients.append(reader(stats))
    await asyncio.sleep(PATIENCE)
    clients[0].send(GET)
    clients.append(reader(stats))
    await asyncio.sleep(PATIENCE)

    assert [client.aborted for client in clients] == [False, True, False, False]
    assert stats.aborted == {"stalled": 1}
    assert 3 * SIZE < stats.unsent.held < 3 * SIZE + HEADS
    await ended(*clients)
    assert stats.unsent.held == 0


@in_virtual_time
async def test_whoever_has_only_just_begun_to_wait_is_left_alone() -> None:
    stats = ServerStats(unsent=UnsentReplies(SIZE))
    clients = [reader(stats) for _ in range(4)]
    await asyncio.sleep(PATIENCE / 2)

    assert not any(client.aborted for client in clients)
    for client in clients:
        client.take(2 * SIZE)
    assert stats.unsent.held == 0
    assert all(client.got.endswith(b"x" * SIZE) for client in clients)
    await ended(*clients)


@in_virtual_time
async def test_small_replies_and_tunnels_do_not_count() -> None:
    stats = ServerStats(unsent=UnsentReplies(0))
    small = [reader(stats, b"/small") for _ in range(9)]

    async def more_than_it_takes(stream: DuplexStream) -> None:
        await stream.write(b"x" * SIZE)
        await stream.read()

    tunnel = VirtualClient(Tunnel(more_than_it_takes), ServerLimits(), stats)
    tunnel.reading = False
    tunnel.send(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
    await asyncio.sleep(2 * PATIENCE)
    late = reader(stats, b"/small")
    await asyncio.sleep(PATIENCE)

    assert tunnel.get_write_buffer_size() > SIZE
    assert stats.unsent.held == 0
    assert not any(client.aborted for client in (*small, tunnel, late))
    await ended(*small, tunnel, late)
