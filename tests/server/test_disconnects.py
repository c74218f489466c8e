"""
Clients that leave: how a call hears of it, and what becomes of it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.server.asgi import Message
from gateway.server.limits import ServerStats
from gateway.server.write_flow import ClientDisconnected
from tests.support.applications import Held, body_of, cycle_of, reply
from tests.support.raw_requests import GET, UPGRADE, post
from tests.support.serving import (
    Client,
    connect,
    on_both_loops,
    port_of,
    quiet,
    running,
    serve,
)


@pytest.mark.parametrize("how", ["close", "reset", "end"])
@on_both_loops
async def test_a_client_that_leaves_is_noticed(how: str, caplog: pytest.LogCaptureFixture) -> None:
    begun, done = asyncio.Event(), asyncio.Event()
    heard: list[Any] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        cycle = cycle_of(scope)
        await body_of(receive)
        assert not cycle.gone
        begun.set()
        heard.append(await receive())
        heard.append(cycle.gone)
        try:
            await reply(send, b"too late")
        except ClientDisconnected:
            heard.append("send raised")
            raise
        finally:
            done.set()

    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"x" * 300_000))
        await begun.wait()
        leave(client, how)
        async with asyncio.timeout(5):
            await done.wait()
    assert heard == [{"type": "http.disconnect"}, True, "send raised"]
    assert caplog.records == []


def leave(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    elif how == "end":
        client.end()
    else:
        client.writer.close()


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_client_that_leaves_in_its_body_ends_it_with_a_disconnect() -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            heard.put_nowait(message)
            if message["type"] == "http.disconnect":
                break

    async with serve(app) as port:
        async with connect(port) as client:
            await client.send(post(b"hello")[:-2])
            assert (await heard.get())["body"] == b"hel"
        async with asyncio.timeout(5):
            assert await heard.get() == {"type": "http.disconnect"}


@pytest.mark.parametrize("how", ["close", "reset", "end"])
@pytest.mark.parametrize("wanted", [True, False])
@on_both_loops
async def test_a_task_is_cancelled_when_its_client_leaves_if_it_wants_that_and_makes_no_noise(
    wanted: bool, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun, stats = asyncio.Event(), ServerStats()
    cancelled: list[bool] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        cycle = cycle_of(scope)
        cycle.cancel_on_disconnect = True
        cycle.cancel_on_disconnect = wanted
        assert (await receive())["type"] == "http.request"
        begun.set()
        try:
            assert await receive() == {"type": "http.disconnect"}
            await asyncio.sleep(0)
            cancelled.append(False)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async with running(app, stats=stats) as server, connect(port_of(server)) as client:
        await client.send(GET)
        await begun.wait()
        leave(client, how)
        await quiet(server)
    assert cancelled == [wanted]
    assert caplog.records == []
    assert stats.aborted == {}


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_no_task_is_cancelled_once_its_reply_is_complete() -> None:
    done, finished = asyncio.Event(), asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        cycle_of(scope).cancel_on_disconnect = True
        await reply(send, b"x")
        assert await receive() == {"type": "http.disconnect"}
        with pytest.raises(RuntimeError):
            await send({"type": "http.response.body", "body": b"more"})
        await done.wait()
        finished.set()

    async with serve(app) as port:
        async with connect(port) as client:
            await client.send(GET)
            await client.reply()
        done.set()
    assert finished.is_set()


@on_both_loops
async def test_a_client_that_left_behind_a_pipeline_is_noticed_when_it_is_answered() -> None:
    """Reading is paused there, so that only the reply meets the closed connection."""
    held, stats = Held(), ServerStats()
    async with running(held, stats=stats) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET + GET)
            await held.begun.wait()
        cycle = held.cycle
        cycle.respond(200, [(b"connection", b"close"), (b"content-length", b"1")], b"x")
        held.go.set()
        await quiet(server)
        assert cycle.complete


@on_both_loops
async def test_nothing_can_be_sent_to_a_client_that_left() -> None:
    raised: list[str] = []
    done = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        cycle = cycle_of(scope)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        for attempt in (lambda: cycle.respond(200, [], b""), lambda: cycle.switch([])):
            try:
                attempt()
            except ClientDisconnected as error:
                raised.append(str(error))
        done.set()

    async with serve(app) as port:
        async with connect(port) as client:
            await client.send(UPGRADE)
        async with asyncio.timeout(5):
            await done.wait()
    assert raised == ["the client has gone"] * 2
