"""WebSocket, and any other upgrade, through the gateway: once the upstream has agreed, bytes are bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.support.calls import GET, SWITCHING, UPGRADE
from tests.support.gateways import CONVERSATION, PARTICIPANT, Running, gateway, proxied
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.serving import Client, connect
from tests.support.waiting import PATIENCE


async def echo(peer: ServerConnection) -> None:
    async for message in peer:
        await peer.send(message)


@asynccontextmanager
async def websocket(
    upstream: Callable[[ServerConnection], Awaitable[None]] = echo,
    limits: dict[str, Any] | None = None,
    asking: dict[str, Any] | None = None,
    **answering: Any,
) -> AsyncIterator[tuple[ClientConnection, Running]]:
    async with serve(upstream, "127.0.0.1", 0, compression=None, ping_interval=None, **answering) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with gateway(f"http://127.0.0.1:{port}", limits=limits or {}) as running:
            url = f"ws://127.0.0.1:{running.port}/ws?x=%20"
            async with ws_connect(
                url, proxy=None, compression=None, ping_interval=None, max_size=None, **(asking or {})
            ) as client:
                yield client, running


async def test_messages_pass_both_ways_as_they_are() -> None:
    async with websocket(max_size=None) as (client, running):
        for message in (
            "",
            "caf\xe9 \U0001f600",
            b"",
            b"\0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"\xff" * 2**20,
            "x" * 2**20,
        ):
            await client.send(message)
            assert await client.recv() == message
        await client.send(iter(["in ", "frag", "ments"]))
        assert await client.recv() == "in fragments"
        await client.close()
        await running.disconnected()


async def test_pings_are_answered_by_the_other_side() -> None:
    pinged = asyncio.Event()

    async def upstream(peer: ServerConnection) -> None:
        await (await peer.ping(b"from upstream"))
        pinged.set()
        await peer.wait_closed()

    async with websocket(upstream) as (client, _):
        await asyncio.wait_for(await client.ping(b"from client"), PATIENCE)
        await asyncio.wait_for(pinged.wait(), PATIENCE)


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "going"), (3000, "caf\xe9"), (4999, "x" * 123)]
)
@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_close_codes_arrive(code: int, reason: str, first: str) -> None:
    closed: asyncio.Future[tuple[int | None, str | None]] = asyncio.get_running_loop().create_future()

    async def upstream(peer: ServerConnection) -> None:
        if first == "upstream":
            await peer.close(code, reason)
        await peer.wait_closed()
        closed.set_result((peer.close_code, peer.close_reason))

    async with websocket(upstream) as (client, running):
        if first == "client":
            await client.close(code, reason)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (code, reason)
        assert await closed == (code, reason)
        await running.disconnected()


async def test_a_subprotocol_is_negotiated() -> None:
    asking = {"subprotocols": [Subprotocol("one"), Subprotocol("two")]}
    async with websocket(asking=asking, subprotocols=[Subprotocol("two")]) as (client, _):
        assert client.subprotocol == "two"


async def test_an_upgrade_carries_what_every_request_carries_and_the_reply_its_own_fields() -> None:
    async def upstream(peer: ServerConnection) -> None:
        assert peer.request is not None
        request = peer.request
        await peer.send(
            "\n".join([request.path, *(f"{name}: {value}" for name, value in request.headers.raw_items())])
        )

    def answered(_: ServerConnection, __: Request, response: Response) -> Response:
        response.headers["Set-Cookie"] = "a=1"
        response.headers["Connection"] = "X-Secret"
        response.headers["X-Secret"] = "1"
        return response

    asking = {
        "additional_headers": [
            ("Connection", "X-Mine"),
            ("X-Mine", "1"),
            ("Authorization", "Bearer one"),
            ("Forwarded", "for=evil"),
        ],
        "origin": "https://dashboard.example",
    }
    async with websocket(upstream, asking=asking, process_response=answered) as (client, running):
        path, *lines = str(await client.recv()).split("\n")
        fields = dict(line.split(": ", 1) for line in lines)
        assert path == "/ws?x=%20"
        assert fields["upgrade"] == "websocket"
        assert fields["connection"].lower() == "upgrade"
        assert fields["via"].startswith("1.1 gateway")
        assert fields["forwarded"] == f'for=127.0.0.1;host="127.0.0.1:{running.port}";proto=http'
        assert fields["authorization"] == "Bearer one"
        assert fields["origin"] == "https://dashboard.example"
        assert "x-request-id" in fields
        assert "x-mine" not in fields
        assert client.response is not None
        assert client.response.headers["Set-Cookie"] == "a=1"
        assert "X-Secret" not in client.response.headers


@pytest.mark.parametrize("status", [401, 404, 200, 426])
async def test_an_upgrade_that_the_upstream_refuses_is_a_reply_like_another(status: int) -> None:
    def refuse(peer: ServerConnection, _: Request) -> Response:
        response = peer.respond(status, "no\n")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    with pytest.raises(InvalidStatus) as refused:
        async with websocket(process_request=refuse):
            pass
    assert refused.value.response.status_code == status
    assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
    assert refused.value.response.body == b"no\n"


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_a_side_that_breaks_off_ends_the_other(first: str, caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def upstream(peer: ServerConnection) -> None:
        if first == "upstream":
            peer.transport.abort()
        with pytest.raises(ConnectionClosedError):
            await peer.recv()
        ended.set()

    async with websocket(upstream) as (client, running):
        if first == "client":
            client.transport.abort()
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert client.close_code == 1006
        await asyncio.wait_for(ended.wait(), PATIENCE)
        await running.disconnected()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# Below WebSocket: bytes.


async def switched(peer: Peer) -> None:
    await peer.head()
    await peer.send(SWITCHING)


@asynccontextmanager
async def tunnel(
    script: Callable[[Peer], Awaitable[None]], **limits: Any
) -> AsyncIterator[tuple[Client, RawUpstream, Running]]:
    async with proxied(script, answering(OK), limits=limits) as (upstream, running, client):
        yield client, upstream, running


async def test_a_tunnel_that_is_silent_ends_and_one_that_is_not_goes_on() -> None:
    async def upstream(peer: Peer) -> None:
        await switched(peer)
        while data := await peer.read():
            await peer.send(data)

    async with tunnel(upstream, tunnel_idle="500ms") as (client, _, running):
        await client.send(UPGRADE)
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 0.8:
            await client.send(b"!")
            assert await client.exactly(1) == b"!"
            await asyncio.sleep(0.02)
        quiet_since = loop.time()
        assert await client.rest() == b""
        assert 0.4 < loop.time() - quiet_since < 4
        await running.disconnected()


async def test_a_tunnel_in_which_nobody_ever_speaks_ends() -> None:
    async def upstream(peer: Peer) -> None:
        await switched(peer)
        await peer.gone()

    async with tunnel(upstream, tunnel_idle="100ms") as (client, _, running):
        await client.send(UPGRADE)
        await client.head()
        assert await client.rest() == b""
        await running.disconnected()


async def test_bytes_sent_before_the_101_are_the_tunnels() -> None:
    """A client may send before it has the 101: if the upstream agrees, those bytes belong to the tunnel."""

    async def upstream(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCHING + b"early")
        await peer.gone()

    async with tunnel(upstream) as (client, upstream_, running):
        await client.send(UPGRADE + b"GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.head()
        assert await client.exactly(5) == b"early"
        client.end()
        assert await client.rest() == b""
        assert upstream_.peers[0].received.endswith(b"\r\n\r\nGET /hidden HTTP/1.1\r\nHost: h\r\n\r\n")
        assert len(upstream_.peers) == 1
        await running.disconnected()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_slow_side_slows_the_other_and_every_byte_arrives(direction: str) -> None:
    piece, count = bytes(range(256)) * 256, 512  # 32 MiB, more than any kernel buffers on the way
    whole = hashlib.sha256(piece * count).digest()
    go_on = asyncio.Event()
    arrived = hashlib.sha256()
    written = 0

    async def write_all(send: Callable[[bytes], Awaitable[None]]) -> None:
        nonlocal written
        for _ in range(count):
            await send(piece)
            written += len(piece)

    async def stuck() -> int:
        """How much went in when nothing more does."""
        seen = -1
        while written != seen:
            seen = written
            await asyncio.sleep(0.1)
        return seen

    async def upstream(peer: Peer) -> None:
        await switched(peer)
        if direction == "up":
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await go_on.wait()
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            left = len(piece) * count
            while left:
                data = await peer.read()
                peer.received.clear()
                left -= len(data)
                arrived.update(data)
            await peer.send(b"done")
        else:
            await write_all(peer.send)

    async with tunnel(upstream) as (client, _, running):
        await client.send(UPGRADE)
        await client.head()
        if direction == "up":
            sending = asyncio.create_task(write_all(client.send))
            assert await stuck() < 24 * 2**20
            go_on.set()
            assert await client.exactly(4) == b"done"
            await sending
        else:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            assert await stuck() < 24 * 2**20
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]
            while data := await client.reader.read(2**20):
                arrived.update(data)
        assert arrived.digest() == whole
        if direction == "up":
            client.end()
        await client.rest()
        await running.disconnected()


@pytest.mark.parametrize(
    "line",
    [f"PATCH {PARTICIPANT}", f"POST {CONVERSATION}/participants", f"GET {CONVERSATION}", "POST /x"],
)
async def test_an_upgrade_is_not_offered_where_the_gateway_has_to_see_what_is_said(line: str) -> None:
    """A call that a rule matches, a write, a GET that may prime the cache, and a request that has a body."""
    async with tunnel(answering(OK)) as (client, upstream, _):
        await client.send(
            b"%b HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: a\r\nContent-Length: 2\r\n\r\n{}"
            % line.encode()
        )
        await client.reply()
        for request in upstream.requests:
            assert request.header(b"upgrade") is None
            assert request.header(b"connection") is None


@pytest.mark.parametrize(
    ("offered", "passed"),
    [
        (b"h2c", None),
        (b"HTTP/2.0", None),
        (b"TLS/1.2", None),
        (b"h2c, websocket", b"websocket"),
        (b"websocket, h2c", b"websocket"),
    ],
)
async def test_a_second_http_is_never_offered(offered: bytes, passed: bytes | None) -> None:
    async with tunnel(answering(OK)) as (client, upstream, _):
        await client.send(
            b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAM\r\n"
            b"Upgrade: %b\r\n\r\n" % offered
        )
        assert (await client.reply())[0] == 200
        [request] = upstream.requests
        assert request.header(b"upgrade") == passed
        assert request.header(b"http2-settings") is None


async def test_after_a_refused_upgrade_the_connection_serves_on() -> None:
    async with tunnel(answering(OK)) as (client, upstream, _):
        await client.send(UPGRADE + b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n")
        assert [(await client.reply())[0] for _ in range(2)] == [200, 200]
        assert [request.target for request in upstream.requests] == [b"/ws", b"/second"]


async def test_a_client_that_ends_its_side_still_hears_the_upstream(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def upstream(peer: Peer) -> None:
        await switched(peer)
        said = b""
        while data := await peer.read():
            said += data
        await peer.send(b"you said " + said)

    async with tunnel(upstream) as (client, _, running):
        await client.send(UPGRADE)
        await client.head()
        await client.send(b"bye")
        client.end()
        assert await client.rest() == b"you said bye"
        await running.disconnected()
    assert caplog.records == []


async def test_writing_into_a_tunnel_whose_upstream_has_gone_is_no_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client does not read, so the gateway can't end the tunnel yet. What the client sends is dropped."""

    async def upstream(peer: Peer) -> None:
        await switched(peer)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await peer.send(*[b"x" * 65_536] * 1_000)
        peer.reset()

    async with tunnel(upstream) as (client, upstream_, running):
        await client.send(UPGRADE)
        await client.head()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await upstream_.peers[0].writer.wait_closed()
        for _ in range(10):
            await client.send(b"y")
            await asyncio.sleep(0.01)
        client.reset()
        await running.disconnected()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def accepting(peer: Peer) -> None:
    while (await peer.request()).header(b"upgrade") is None:
        await peer.send(OK)
    await peer.send(SWITCHING)
    await peer.gone()


async def opened(stack: contextlib.AsyncExitStack, port: int, who: int, count: int) -> list[bytes]:
    """The status lines that this many clients with this credential get, who stay."""
    lines = []
    for _ in range(count):
        client = await stack.enter_async_context(connect(port))
        await client.send(UPGRADE[:-2] + b"Authorization: Bearer %d\r\n\r\n" % who)
        head = await client.head()
        lines.append(head[9:12])
        if head[9:12] != b"101":
            assert b"retry-after" in head.lower()
    return lines


async def test_idle_tunnels_of_one_client_leave_the_service_whole() -> None:
    async with (
        proxied(accepting, to={"max_connections": 16, "pool_timeout": "200ms"}) as chain,
        contextlib.AsyncExitStack() as stack,
    ):
        port = chain.running.port
        assert await opened(stack, port, 1, 20) == [b"101"] + [b"503"] * 19
        assert await opened(stack, port, 2, 1) == [b"101"], "another client has its own share"
        for _ in range(10):
            await chain.client.send(GET)
            assert (await chain.client.reply())[0] == 200


async def test_tunnels_hold_their_share_of_the_connections_and_no_more() -> None:
    async with proxied(accepting, to={"max_connections": 16}) as chain:
        async with contextlib.AsyncExitStack() as stack:
            lines = [await opened(stack, chain.running.port, who, 1) for who in range(6)]
            assert lines == [[b"101"]] * 4 + [[b"503"]] * 2
            sent = sum(request.target == b"/ws" for request in chain.requests)
            assert sent == 4, "nothing was sent of those that were refused"
        await chain.running.disconnected()
        async with contextlib.AsyncExitStack() as stack:
            assert await opened(stack, chain.running.port, 1, 1) == [b"101"], "a place is free again"
