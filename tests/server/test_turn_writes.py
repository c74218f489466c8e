"""
What is written in one turn of the loop leaves at its end, whole and in its order, or before the connection
does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from gateway.errors import GatewayError
from gateway.http.headers import Header
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.request_cycle import SMALL, RequestCycle
from gateway.server.turn_writes import TurnWrites
from tests.support.raw_requests import GET, LAST
from tests.support.virtual import VirtualClient, in_virtual_time

TWO: list[Header] = [(b"content-length", b"2")]


class Answering:
    """An application that answers at once, with so many bytes."""

    direct = True

    def __init__(self, size: int = 2) -> None:
        self._size = size

    def serve(self, cycle: RequestCycle) -> Coroutine[Any, Any, None]:
        async def served() -> None:
            headers = [(b"content-length", b"%d" % self._size)]
            assert cycle.respond(200, headers, b"x" * self._size)

        return served()


def served(client: VirtualClient, *requests: bytes) -> None:
    """As the loop does it: not within a task."""
    for data in requests:
        asyncio.get_running_loop().call_soon(client.send, data)


@in_virtual_time
async def test_replies_leave_together_at_the_end_of_the_turn() -> None:
    stats, order = ServerStats(), []
    clients = [VirtualClient(Answering(), ServerLimits(), stats) for _ in range(3)]

    def act() -> None:
        for client in clients:
            client.send(GET)
            order.append(bytes(client.got))

    asyncio.get_running_loop().call_soon(act)
    await asyncio.sleep(0.001)
    assert order == [b"", b"", b""]
    for client in clients:
        assert client.got.endswith(b"\r\n\r\nxx")


@in_virtual_time
async def test_replies_to_requests_that_came_together_keep_their_order() -> None:
    client = VirtualClient(Answering())
    served(client, GET * 3)
    await asyncio.sleep(0.001)
    assert client.got.count(b"HTTP/1.1 200 OK") == 3
    assert client.got.endswith(b"\r\n\r\nxx")


@in_virtual_time
async def test_the_last_reply_leaves_before_the_connection_ends() -> None:
    client = VirtualClient(Answering())
    served(client, LAST)
    assert (await client.rest()).endswith(b"connection: close\r\n\r\nxx")


@in_virtual_time
async def test_what_is_large_does_not_wait_and_does_not_overtake() -> None:
    client = VirtualClient(Answering(SMALL))
    seen = []

    def act() -> None:
        client.send(GET)
        seen.append(len(client.got))

    asyncio.get_running_loop().call_soon(act)
    await asyncio.sleep(0.001)
    assert seen[0] > SMALL


@in_virtual_time
async def test_what_waits_for_a_client_that_is_gone_is_dropped() -> None:
    client = VirtualClient(Answering())

    def act() -> None:
        client.send(GET)
        client.abort()

    asyncio.get_running_loop().call_soon(act)
    await asyncio.sleep(0.001)
    assert b"200" not in client.got


class Failing:
    def flush(self) -> None:
        raise ValueError("x")


class Noting:
    flushed = False

    def flush(self) -> None:
        self.flushed = True


async def test_one_that_cannot_be_written_does_not_keep_the_others() -> None:
    loop, writes, last = asyncio.get_running_loop(), TurnWrites(), Noting()
    loop.set_exception_handler(lambda *_: None)
    for one in (Failing(), Failing(), last):
        writes.add(one, loop)
    for _ in range(5):
        await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert last.flushed


class BreakingOff:
    """An application whose reply breaks off in the step in which it began."""

    direct = True

    def serve(self, cycle: RequestCycle) -> Coroutine[Any, Any, None]:
        async def served() -> None:
            await cycle.start(200, [(b"content-length", b"2")])
            await cycle.write(b"x", True)
            raise GatewayError("it broke off")

        return served()


@in_virtual_time
async def test_what_was_written_before_a_reply_broke_off_is_sent() -> None:
    client = VirtualClient(BreakingOff())
    served(client, GET)
    await asyncio.sleep(0.001)
    assert client.aborted
    assert client.got.endswith(b"\r\n\r\nx")
