"""
A request out of the scope, receive and send of any ASGI server.

Law: a reply that began and can't be finished is never completed: the exception goes to the server, which cuts
the connection (C3).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from gateway.errors import GatewayError
from gateway.http.grammar import BODILESS
from gateway.http.headers import Header, Headers
from gateway.http.request_parser import RequestHead
from gateway.in_process.requests import NO_ADDRESS, ToldRequest
from gateway.in_process.running import InProcess
from gateway.in_process.told_head import FRAMING, target_of, told_head, with_one_cookie
from gateway.server.asgi import Message, Receive, Send
from gateway.server.request_cycle import refusal
from gateway.server.write_flow import ClientDisconnected


class ReceivedBody:
    """
    A request's body as `receive` gives it. `on_end` is called once, when its last byte was received, and
    `on_gone` when there is to be none.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._piece = b""
        self._here = False
        self.on_end: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        return self._here and not self._piece

    @property
    def here(self) -> bool:
        return self._here

    def whole(self) -> bytes | None:
        return self._taken() if self._here else None

    async def read(self) -> bytes:
        while not (self._piece or self._here):
            await self.receive()
        return self._taken()

    async def receive(self) -> None:
        """One message. Raises ClientDisconnected."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if self.on_gone is not None:
                self.on_gone()
            raise ClientDisconnected("the client has gone")
        self._piece += message.get("body", b"")
        self._here = not message.get("more_body", False)
        if self._here and self.on_end is not None:
            self.on_end()

    def _taken(self) -> bytes:
        piece, self._piece = self._piece, b""
        return piece

    @property
    def size(self) -> int:
        return len(self._piece)


class ScopeRequest(ToldRequest):
    def __init__(self, head: RequestHead, scope: Message, body: ReceivedBody, send: Send) -> None:
        super().__init__(head, version_of(scope), _address(scope))
        self.body = body
        self.certificate = certificate_of(scope)
        self._send = send
        body.on_gone = self._left

    def _left(self) -> None:
        # The task that reads the body is told by an exception: it need not be cancelled.
        self.gone = True

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """Never in one step: `send` has to be awaited."""
        return False

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        self.check_client()
        fields: list[Header] = [*headers, *extra_headers]
        if status in BODILESS:  # RFC 9110 section 8.6: a 204 has no length, a 304's is another reply's
            fields = [field for field in fields if field[0] not in FRAMING]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, piece: bytes, more: bool) -> None:
        self.check_client()
        self.complete = not more
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})


def _address(scope: Message) -> str:
    client = scope.get("client")
    return str(client[0]) if client else NO_ADDRESS


def version_of(scope: Message) -> str:
    """Granian says "1" for HTTP/1.0."""
    version: str = scope["http_version"]
    return "1.0" if version == "1" else version


def certificate_of(scope: Message) -> bytes:
    """A fingerprint of the client's, where the server has ASGI's extension for TLS."""
    chain = (scope.get("extensions") or {}).get("tls", {}).get("client_cert_chain") or ()
    return hashlib.sha256(chain[0].encode()).digest() if chain else b""


async def serve(within: InProcess, scope: Message, receive: Receive, send: Send) -> None:
    """One request, to its reply's end."""
    within.running  # noqa: B018  # raises where nobody has begun it
    body = ReceivedBody(receive)
    try:
        head = await _head(within, scope, body)
        request = ScopeRequest(head, scope, body, send)
        task = within.serve(request)
    except GatewayError as error:
        within.refused(error, _address(scope))
        await _refuse(error, send)
        return
    except ClientDisconnected:
        return
    watching: list[asyncio.Task[None]] = []

    def watch() -> None:
        # Only now: one alone may wait for the server's messages.
        watching.append(asyncio.create_task(_watched(request, receive)))

    if body.here:
        watch()
    else:
        body.on_end = watch
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        request.lost()
        raise
    finally:
        body.on_end = None
        for one in watching:
            one.cancel()
    failure = request.outcome()
    if failure is not None:
        raise failure


async def _head(within: InProcess, scope: Message, body: ReceivedBody) -> RequestHead:
    """
    With the first piece of the body, which usually is all of it. Where no field says how long that is, as
    HTTP/2 need not, it gets one that does.
    """
    headers: list[Header] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    version = version_of(scope)
    if not version.startswith("1"):
        headers = with_one_cookie(headers)
    elif version == "1.0":  # which needs no Host: Granian then tells of an empty one
        headers = [field for field in headers if field != (b"host", b"")]
    target = target_of(scope.get("raw_path"), scope.get("query_string", b""), scope["path"])
    names = {name for name, _ in headers}
    framed = not FRAMING.isdisjoint(names)
    if not framed or b"expect" not in names:  # with it the client may be told that its body is too large
        await body.receive()
    if not framed and not (body.here and not body.size):
        headers.append(
            (b"content-length", b"%d" % body.size) if body.here else (b"transfer-encoding", b"chunked")
        )
    method = scope["method"].encode()
    return told_head(method, target, headers, version, within.limits, within.shapes)


async def _watched(request: ScopeRequest, receive: Receive) -> None:
    """After the last piece of the body there is one message more, when the client has gone."""
    message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
    if not request.complete:
        request.lost()


async def _refuse(error: GatewayError, send: Send) -> None:
    status, headers, body = refusal(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
