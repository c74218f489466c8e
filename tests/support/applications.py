"""
ASGI applications for tests of the server: what they are given they remember, and they answer plainly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.server.asgi import Message
from gateway.server.duplex_stream import DuplexStream
from gateway.server.request_cycle import RequestCycle

DATE = (b"date", b"Sun, 22 Nov 2026 12:00:00 GMT")


def cycle_of(scope: Message) -> RequestCycle:
    found: RequestCycle = scope["extensions"]["gateway"]
    return found


async def body_of(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        message: Message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return body


async def reply(send: Any, body: bytes = b"", status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    fields = [*headers, (b"content-length", b"%d" % len(body)), DATE]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class Echo:
    """Answers each request with its target and body, and remembers it."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = await body_of(receive)
        self.bodies.append(body)
        await reply(send, cycle_of(scope).target + b" " + body)

    @property
    def targets(self) -> list[bytes]:
        return [cycle_of(scope).target for scope in self.scopes]


class Held:
    """An application whose reply waits until the test says so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cycle: RequestCycle

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.cycle = cycle_of(scope)
        self.begun.set()
        await self.go.wait()
        await reply(send, b"held")


class Tunnel:
    """Accepts every upgrade and echoes."""

    def __init__(
        self,
        after: Callable[[DuplexStream], Any] | None = None,
        fields: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.fields = fields or []
        self.scopes: list[Message] = []
        self.stream: DuplexStream
        self.switched = asyncio.Event()
        self.after = after

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        cycle = cycle_of(scope)
        if cycle.upgrade is None:
            await reply(send, b"plain")
            return
        self.stream = cycle.switch([(b"sec-websocket-accept", b"x"), *self.fields])
        self.switched.set()
        if self.after is not None:
            await self.after(self.stream)
            return
        while data := await self.stream.read():
            await self.stream.write(b"<" + data + b">")


# Its answer.
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: x\r\nupgrade: websocket\r\n"
    b"connection: upgrade\r\n\r\n"
)
