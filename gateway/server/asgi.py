"""
ASGI, for what stands between the server and the gateway: a request cycle as scope, receive and send, and
these as a request again. Used only for `cors`, and by tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from gateway.http.headers import Fields, Headers, reason_of
from gateway.http.slots import Values, filled
from gateway.server.duplex_stream import DuplexStream
from gateway.server.request_cycle import RequestCycle
from gateway.server.write_flow import ClientDisconnected

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

EXTENSION: Final = "gateway"  # where a scope has its request cycle
REASON: Final = "gateway.reason"  # where the message that starts a reply has the upstream's reason phrase
_VERSION: Final = {"version": "3.0", "spec_version": "2.4"}


def serving(app: AsgiApp, state: dict[str, Any]) -> Callable[[RequestCycle], Coroutine[Any, Any, None]]:
    """How an ASGI application serves request cycles. `state` is what its lifespan left for all of them."""

    async def serve(cycle: RequestCycle) -> None:
        channel = AsgiChannel(cycle)
        await app(scope_of(cycle, state), channel.receive, channel.send)

    return serve


def application(serve: Callable[[AsgiRequest], Awaitable[None]]) -> AsgiApp:
    """The ASGI application whose requests `serve` serves."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await serve(AsgiRequest(scope, receive, send))

    return app


def scope_of(cycle: RequestCycle, state: dict[str, Any]) -> Message:
    transport = cycle.transport
    raw_path, _, query = cycle.target.partition(b"?")
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": _VERSION,
        "http_version": cycle.version,
        "server": endpoint(transport, "sockname"),
        "client": endpoint(transport, "peername"),
        "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        "root_path": "",
        "method": cycle.method,
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": filled(cycle.headers, cycle.values),
        "state": state.copy(),
        "extensions": {EXTENSION: cycle},
    }


def endpoint(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    """The address and port of one end of a connection: its "peername" or its "sockname"."""
    address = transport.get_extra_info(which)
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None


class AsgiChannel:
    """A request cycle's receive and send."""

    def __init__(self, cycle: RequestCycle) -> None:
        self._cycle = cycle
        self._delivered = False

    async def receive(self) -> Message:
        cycle, body = self._cycle, self._cycle.body
        if self._delivered or cycle.complete:
            await cycle.wait_over()
            return {"type": "http.disconnect"}
        try:
            piece = await body.read()
        except ClientDisconnected:
            return {"type": "http.disconnect"}
        self._delivered = body.ended
        return {"type": "http.request", "body": piece, "more_body": not self._delivered}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            await self._cycle.write(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            fields = Fields(message.get("headers", ()), message.get(REASON, b""))
            await self._cycle.start(message["status"], fields)
        else:
            raise RuntimeError(f"an ASGI message of type {kind!r}")


class AsgiBody:
    """A request's body as `receive` gives it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    def whole(self) -> bytes | None:
        """Never at once: `receive` has to be awaited."""
        return None

    async def read(self) -> bytes:
        piece = b""
        while not (piece or self.ended):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client has gone")
            piece = message.get("body", b"")
            self.ended = not message.get("more_body", False)
        return piece


class AsgiRequest:
    """
    A request out of scope, receive and send: what stands between sees its body and its reply. What ASGI has
    no word for is the request cycle's behind it.
    """

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._cycle: RequestCycle = scope["extensions"][EXTENSION]
        self._send = send
        self.body = AsgiBody(receive)
        self.method: str = scope["method"]
        self.target = self._cycle.target
        self.version: str = scope["http_version"]
        self.values: Values = ()
        headers = scope["headers"]
        self.headers = headers if isinstance(headers, Fields) else Fields(headers)
        self.address = self._cycle.address
        self.certificate = self._cycle.certificate
        self.upgrade = self._cycle.upgrade

    @property
    def gone(self) -> bool:
        return self._cycle.gone

    @property
    def task(self) -> Any:
        return self._cycle.task

    @property
    def cancel_on_disconnect(self) -> bool:
        return self._cycle.cancel_on_disconnect

    @cancel_on_disconnect.setter
    def cancel_on_disconnect(self, on: bool) -> None:
        self._cycle.cancel_on_disconnect = on

    @property
    def holds_connection(self) -> Callable[[], bool]:
        holds: Callable[[], bool] = self._cycle.holds_connection
        return holds

    @holds_connection.setter
    def holds_connection(self, holds: Callable[[], bool]) -> None:
        self._cycle.holds_connection = holds

    @property
    def trace_id(self) -> str:
        return self._cycle.trace_id

    @trace_id.setter
    def trace_id(self, given: str) -> None:
        self._cycle.trace_id = given

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """Never in one step: `send` has to be awaited."""
        return False

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        fields = [*headers, *extra_headers]
        begins = {"type": "http.response.start", "status": status, "headers": fields}
        await self._send(begins | {REASON: reason_of(headers)})

    async def write(self, piece: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    def switch(self, headers: Headers) -> DuplexStream:
        return self._cycle.switch(headers)
