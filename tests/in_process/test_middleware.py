"""The gateway before an application that is the API: what that gets, and what becomes of its failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect as websocket

from gateway.asgi import GatewayMiddleware
from gateway.errors import UpstreamError
from gateway.server.asgi import AsgiApp, Message, Receive, Send
from gateway.upstream.application import ApplicationTransport
from tests.support.clients import bare_client
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, settings
from tests.support.hosted import under_uvicorn

Seen = list[tuple[str, Any]]


class Before:
    """A middleware before the gateway, which puts something of the caller's into each scope."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        scope["user"] = "somebody"
        await self._app(scope, receive, send)


def conversation(seen: Seen) -> list[Route]:
    async def shown(request: Request) -> Response:
        seen.append(("GET", request.scope.get("user")))
        assert request.state.began
        assert (await request.body()) == b""
        return JSONResponse({"id": "c1", "participants": [{"id": "p1", "state": "connected"}]})

    async def changed(request: Request) -> Response:
        seen.append(("PATCH", request.scope.get("user")))
        seen.append((await request.body(), str(request.url_for("changed"))))  # type: ignore[arg-type]
        return JSONResponse({"began": request.state.began, "id": "p1"}, status_code=202)

    return [Route(CONVERSATION, shown), Route(PARTICIPANT, changed, methods=["PATCH"], name="changed")]


@asynccontextmanager
async def began(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"began": True}


@asynccontextmanager
async def api(
    tmp_path: Any, routes: list[Any], **changes: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    chosen = settings("http://api.example", str(tmp_path / "log"), **changes)
    middleware = [Middleware(Before), Middleware(GatewayMiddleware, config=chosen)]
    app = Starlette(routes=routes, middleware=middleware, lifespan=began)
    async with under_uvicorn(app) as port, bare_client(f"http://127.0.0.1:{port}") as client:
        yield client, port


async def test_the_application_gets_the_repaired_call_and_the_look_up_with_nothing_of_a_callers(
    tmp_path: Any,
) -> None:
    seen: Seen = []
    async with api(tmp_path, conversation(seen)) as (client, port):
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert (reply.status_code, reply.json()) == (202, {"began": True, "id": "p1"})
        assert reply.headers["gateway-rewrite"].startswith(
            "web-participant-state; content-type; filled=state;"
        )
        url = f"http://127.0.0.1:{port}{PARTICIPANT}"
        assert seen == [("GET", None), ("PATCH", "somebody"), (FILLED, url)]


def streamed(body: Callable[[], AsyncIterator[bytes]], **fields: str) -> list[Route]:
    async def endpoint(_: Request) -> Response:
        return StreamingResponse(body(), headers=fields)

    return [Route("/x", endpoint)]


async def test_an_application_that_fails_before_its_reply_is_a_500_and_is_logged(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def endpoint(_: Request) -> Response:
        raise LookupError("its own fault")

    async with api(tmp_path, [Route("/x", endpoint)]) as (client, _):
        reply = await client.get("/x")

        assert (reply.status_code, reply.text) == (500, "Internal Server Error")
        assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["gateway"]


@pytest.mark.parametrize("length", [None, "400000"])
async def test_a_reply_that_the_application_does_not_finish_is_cut(tmp_path: Any, length: str | None) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100_000
        raise LookupError("its own fault")

    fields = {} if length is None else {"content-length": length}
    async with api(tmp_path, streamed(body, **fields)) as (client, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/x")


@pytest.mark.parametrize("length", ["3", "5"])
async def test_a_reply_that_is_not_as_long_as_it_says_is_never_whole(tmp_path: Any, length: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"xxxx"

    async with api(tmp_path, streamed(body, **{"content-length": length})) as (client, _):
        with suppress(httpx.RemoteProtocolError):
            assert (await client.get("/x")).status_code == 502


@pytest.mark.parametrize(("length", "more"), [(b"3", False), (b"3", True), (b"5", False)])
async def test_the_transport_itself_says_so(length: bytes, more: bool) -> None:
    async def inner(scope: Message, receive: Receive, send: Send) -> None:
        fields = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"xxxx", "more_body": more})

    transport = ApplicationTransport(inner, lambda method, target: {})
    reply = await transport.send(b"GET", b"/x", [])
    with pytest.raises(UpstreamError, match="than its Content-Length"):
        await reply.hold(100)
    await transport.wait_closed()


async def test_a_large_reply_waits_for_its_reader_and_comes_whole(tmp_path: Any) -> None:
    made = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(300):
            made += 1
            yield b"x" * 100_000

    async with api(tmp_path, streamed(body)) as (client, _), client.stream("GET", "/x") as reply:
        pieces = reply.aiter_raw()
        size = len(await anext(pieces))
        for _ in range(200):
            await asyncio.sleep(0)
        assert made < 200
        assert size + sum([len(piece) async for piece in pieces]) == 30_000_000


async def test_an_application_is_told_when_nobody_waits_for_its_reply(tmp_path: Any) -> None:
    told = asyncio.Event()

    async def endpoint(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    class Raw:
        async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
            await endpoint(scope, receive, send)

    async with api(tmp_path, [Route("/x", Raw())]) as (client, _):
        async with client.stream("GET", "/x") as reply:
            await anext(reply.aiter_raw())
        async with asyncio.timeout(5):
            await told.wait()


async def test_a_large_body_reaches_the_application_piece_by_piece(tmp_path: Any) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    async with api(tmp_path, [Route("/x", endpoint, methods=["POST"])]) as (client, _):
        assert (await client.post("/x", content=pieces())).text == "2000000"


async def test_a_websocket_is_the_applications(tmp_path: Any) -> None:
    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    async with (
        api(tmp_path, [WebSocketRoute("/ws", endpoint)]) as (_, port),
        websocket(f"ws://127.0.0.1:{port}/ws") as client,
    ):
        assert await client.recv() == "hello"
