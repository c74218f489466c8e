"""
The client's side of one call: its request read, its reply relayed, over ASGI as `protocol.py` offers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from starlette.types import Message, Receive, Send

from gateway.errors import BodyTooLarge, GatewayError, InvalidReply
from gateway.http.forwarding import Hop, sane_id, upstream_request_headers
from gateway.http.headers import Fields, Header, Headers, by_name
from gateway.http.problem import problem
from gateway.proxy.tunnel import Down


class ClientRequest(Protocol):
    """
    The request as protocol.py has read it, the task that serves it, word of a client that left, and shortcuts
    past ASGI where a message is whole.
    """

    method: str
    target: bytes
    version: str
    headers: Fields
    address: str
    task: asyncio.Task[None]
    abandon: Any
    disconnected: bool
    upgrade: bytes | None

    async def receive(self) -> Message: ...

    async def send(self, message: Message) -> None: ...

    def whole_body(self) -> bytes | None: ...

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool: ...

    def switch(self, headers: Headers) -> Down: ...


class ClientGone(Exception):
    """The client left before anything was sent upstream: the call ends without a trace."""


class Body(Protocol):
    """A reply's body: what upstream.Reply offers."""

    @property
    def ended(self) -> bool: ...

    def whole(self) -> bytes | None: ...

    async def read(self) -> bytes: ...


# Enough of an id to tell the calls of all gateways apart: what is random is drawn once.
_ids = (f"{_start}{number:016x}" for _start in [secrets.token_hex(8)] for number in itertools.count(1))


class Client:
    """`fields` holds of each header field one line, for those of which there can't be several."""

    started = False
    _ahead = b""
    _whole = False

    def __init__(
        self, exchange: ClientRequest, receive: Receive | None = None, send: Send | None = None
    ) -> None:
        """`receive` and `send` where something stands between the gateway and its protocol."""
        self.exchange = exchange
        self._direct = send is None
        self._receive = receive or exchange.receive
        self._send = send or exchange.send
        self.method = exchange.method
        self.target = exchange.target
        self.path = exchange.target.partition(b"?")[0]
        self.headers = exchange.headers
        self.fields = exchange.headers.derived(by_name)
        self.address = exchange.address
        explicit = self.fields.get(b"x-request-id")
        self.id = explicit.decode() if explicit is not None and sane_id(explicit) else next(_ids)
        self.extra_headers: list[Header] = [(b"x-request-id", self.id.encode())]  # goes with what goes onward

    @property
    def has_body(self) -> bool:
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", b"0") != b"0"

    def upstream_request_headers(self, hop: Hop) -> Fields:
        """The fields for the upstream, as forwarding.onward says."""
        return self.headers.derived(upstream_request_headers, hop, self.address, self.exchange.version)

    def cancel_on_disconnect(self) -> None:
        """From here on the call is cancelled when the client leaves."""
        self.exchange.abandon = self.exchange.task.cancel

    def run_to_the_end(self) -> None:
        """
        From here on the call runs to its end, whether or not somebody waits for the reply. Raises
        ClientGone when the client has left already: nothing is sent for nobody.
        """
        self.exchange.abandon = None
        if self.exchange.disconnected:
            raise ClientGone

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that the client offers to switch to."""
        return self.exchange.upgrade

    def switch(self, headers: Headers) -> Down:
        """Answers 101 with these fields; what follows is raw."""
        with _fields_that_can_be_sent():
            down = self.exchange.switch(headers)
        self.started = True
        return down

    @property
    def gone(self) -> bool:
        return self.exchange.disconnected

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge from the head alone where it says so."""
        length = self.fields.get(b"content-length")
        if length is not None and int(length) > limit:
            raise BodyTooLarge(f"the body has {length.decode()} bytes, limits.max_body is {limit}")
        whole = self.exchange.whole_body()
        if whole is not None:
            if len(whole) > limit:
                raise BodyTooLarge(f"the body is longer than limits.max_body, {limit} bytes")
            return whole
        if length is None and not self.has_body:
            return b""
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            body = body + piece if body else piece
            if len(body) > limit:
                raise BodyTooLarge(f"the body is longer than limits.max_body, {limit} bytes")
            if not message.get("more_body", False):
                return bytes(body)

    async def read_ahead(self, limit: int, patience: float | None = None) -> bool:
        """
        To the body's end, past `limit` bytes, or until `patience` seconds are over. Whether the end was seen;
        if not, body() begins with what was read.
        """
        whole = self.exchange.whole_body()
        if whole is not None:
            self._ahead, self._whole = whole, True
            return True
        pieces = []
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not self._whole and size <= limit:
                    pieces.append(await self._piece())
                    size += len(pieces[-1])
        self._ahead = b"".join(pieces)
        return self._whole

    def body(self) -> bytes | AsyncIterator[bytes]:
        """In one piece where read_ahead() saw its end."""
        return self._ahead if self._whole else self.pieces()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ClientGone where it breaks off, so that it never looks whole."""
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            yield ahead
        while not self._whole:
            piece = await self._piece()
            if piece:
                yield piece

    async def _piece(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._whole = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    async def relay(
        self, status: int, headers: Headers, extra_headers: Headers, body: Body, keep: int = 0
    ) -> bytes | None:
        """
        Head and body as they come, `own` behind the headers. An error in the body is raised: the client's
        reply stays cut off. A client that leaves while something is waited for ends the call. Returns the
        body if it is no longer than `keep` bytes.
        """
        whole = body.whole()
        if whole is not None:
            await self.answer(status, headers, whole, extra_headers)
            return whole if len(whole) <= keep else None
        self.cancel_on_disconnect()
        await self._start(status, headers, extra_headers)
        kept = b""
        while True:
            piece = b"" if body.ended else await body.read()
            if len(kept) <= keep:
                kept += piece[: keep + 1]
            ended = body.ended
            if piece or ended:
                await self._send({"type": "http.response.body", "body": piece, "more_body": not ended})
            if ended:
                return kept if len(kept) <= keep else None

    async def answer(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> None:
        if self._direct:
            try:
                self.started = self.exchange.respond(status, headers, body, extra_headers)
            except ValueError as error:
                raise InvalidReply(str(error)) from error
            if self.started:
                return
        self.cancel_on_disconnect()
        await self._start(status, headers, extra_headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: Headers, extra_headers: Headers) -> None:
        with _fields_that_can_be_sent():
            await self._send(
                {"type": "http.response.start", "status": status, "headers": [*headers, *extra_headers]}
            )
        self.started = True

    async def refuse(self, error: GatewayError, headers: Headers = ()) -> None:
        status, extra_headers, body = problem(error, self.id)
        await self.answer(status, extra_headers, body, headers)


@contextlib.contextmanager
def _fields_that_can_be_sent() -> Iterator[None]:
    """What the upstream said is sound in itself, but protocol.py refuses to say it: nothing was written."""
    try:
        yield
    except ValueError as error:
        raise InvalidReply(str(error)) from error
