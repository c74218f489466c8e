"""
The client's side of one call: what the lifecycle needs of a request and its reply, and what it makes of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Protocol

from gateway.errors import BodyTooLarge, GatewayError, InvalidReply
from gateway.http.forwarding import sane_id
from gateway.http.headers import Fields, Header, Headers
from gateway.http.problem import problem
from gateway.http.slots import Slot, Values, peer
from gateway.http.trace_context import TRACE_ID, is_valid
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.call_head import CallHead
from gateway.proxy.kept_reply import KeptReply
from gateway.proxy.tunnel import ByteStream
from gateway.upstream.reply import Reply

UNWRITABLE: Final = "the reply's head cannot be sent on as HTTP/1.1"


class Body(Protocol):
    """The body of a request or of a reply, as it comes."""

    @property
    def ended(self) -> bool:
        """Whether read() has nothing more to give."""

    def whole(self) -> bytes | None:
        """What is left of it, if all that is here by now; then there is nothing to read any more."""

    async def read(self) -> bytes:
        """
        What has come, as soon as there is any; b"" at the end. A request's raises OSError when the client has
        left, and either's a GatewayError where it breaks off.
        """


class ClientRequest(Protocol):
    """
    One request, and the way back to the client that sent it. One task serves it, and calls all of these.
    """

    method: str
    target: bytes  # as it was sent
    headers: Fields
    values: Values  # for the slots in `headers`
    address: str  # the peer's
    cancel_on_disconnect: bool  # whether the task is cancelled when the client leaves before it has its reply
    holds_connection: Callable[[], bool]  # whether the reply still holds a connection to the upstream
    trace_id: str  # that whoever traces the call gave it

    @property
    def version(self) -> str:
        """Of HTTP: "1.1"."""

    @property
    def certificate(self) -> bytes:
        """A fingerprint of the one that the client has shown in TLS; empty without."""

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that the client offers to switch to."""

    @property
    def body(self) -> Body: ...

    @property
    def task(self) -> Any:
        """That serves it."""

    @property
    def gone(self) -> bool:
        """Whether the client has left."""

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """
        The whole reply in one step; none of `extra_headers` says how long it is. False, and nothing is done,
        where that would have to wait: then it takes start() and write(). Raises like these.
        """

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        """Raises ValueError for a head that can't be written, and OSError when the client has left."""

    async def write(self, piece: bytes, more: bool) -> None:
        """A piece of the reply's body, the last unless there is `more`. Raises OSError."""

    def switch(self, headers: Headers) -> ByteStream:
        """Answers 101 with these fields; what follows is raw. Raises like start()."""


class ClientGone(Exception):
    """The client left before its call was sent, or in the middle of its body: there is nobody to answer."""


# A prefix that is drawn once, then a counter: enough to tell the calls of all gateways apart.
_PREFIX: Final = secrets.token_hex(8)
_numbers = itertools.count(1)


class Client:
    """One call's client."""

    started = False
    status: int | None = None  # that the client got
    trace_id: str | None = None  # of the trace that the client says the call is a part of
    _ahead = b""
    _whole = False
    _spooled: Callable[[], AsyncIterator[bytes]] | None = None
    _caller: str | None = None
    held = 0  # bytes of the budget: of a body that was not whole when its head was read

    def __init__(
        self,
        request: ClientRequest,
        head: CallHead,
        budget: BufferBudget,
        caller_of: Callable[[Fields, Values, str, bytes, bytes], str],
    ) -> None:
        """`caller_of` names who calls, from fields, their values, address, target and certificate."""
        self._request = request
        self.upgrade = request.upgrade  # the protocol that the client offers to switch to
        self._budget = budget
        self._caller_of = caller_of
        self.head = head
        self.method = request.method
        self.target = request.target
        self.path = request.target.partition(b"?")[0]
        self.headers = request.headers
        self.values = request.values + peer(request.address)
        self.address = request.address
        self.certificate = request.certificate
        explicit = self.field(b"x-request-id") if b"x-request-id" in head.fields else None
        self.id = f"{_PREFIX}{next(_numbers):016x}"
        # The client's own name for the call, which it may have given to others too.
        self.request_id = explicit.decode() if explicit is not None and sane_id(explicit) else None
        self.told_id = self.request_id or self.id  # what client and upstream know the call by
        said = head.traceparent
        if said is not None:
            said = self.values[said.number] if isinstance(said, Slot) else said
            if is_valid(said):
                self.trace_id = said[TRACE_ID].decode()
        # For whatever goes upstream.
        self.extra_headers: list[Header] = [(b"x-request-id", self.told_id.encode())]

    def caller(self) -> str:
        """Whose share of what is scarce the call takes. A call that asks for nothing scarce is not named."""
        if self._caller is None:
            self._caller = self._caller_of(
                self.headers, self.values, self.address, self.target, self.certificate
            )
        return self._caller

    def field(self, name: bytes) -> bytes | None:
        """The value, of a repeated field the last line's."""
        value = self.head.fields.get(name)
        return self.values[value.number] if isinstance(value, Slot) else value

    @property
    def has_body(self) -> bool:
        if self.head.bodiless:
            return False
        return b"transfer-encoding" in self.head.fields or (self.field(b"content-length") or b"0") != b"0"

    def cancel_on_disconnect(self) -> None:
        """From here on the call is cancelled when the client leaves."""
        self._request.cancel_on_disconnect = True

    def shield_from_disconnect(self) -> None:
        """
        From here on the call runs to its end, whether or not somebody waits for the reply. Raises
        ClientGone when the client has left already: nothing is sent for nobody.
        """
        self._request.cancel_on_disconnect = False
        if self._request.gone:
            raise ClientGone

    def switch(self, headers: Headers) -> ByteStream:
        """Answers 101 with these fields; what follows is raw."""
        with _fields_that_can_be_sent():
            stream = self._request.switch(headers)
        self.started = True
        self.status = 101
        return stream

    @property
    def task(self) -> Any:
        """That serves the call."""
        return self._request.task

    @property
    def gone(self) -> bool:
        return self._request.gone

    def read_now(self, limit: int) -> bytes | None:
        """The whole body if it is here. Raises BodyTooLarge. From here on as `cancel_on_disconnect`."""
        self._request.cancel_on_disconnect = True
        whole = self._request.body.whole()
        if whole is not None and len(whole) > limit:
            raise BodyTooLarge(f"the body has {len(whole)} bytes, limits.max_body is {limit}")
        return whole

    async def read(self, limit: int) -> bytes:
        """The whole body, which is not here yet. Raises BodyTooLarge from the head alone where it says so."""
        length = self.field(b"content-length")
        if length is not None and int(length) > limit:
            raise BodyTooLarge(f"the body has {length.decode()} bytes, limits.max_body is {limit}")
        if length is None and not self.has_body:
            return b""
        body = bytearray()  # which grows in place, however small the pieces are
        while not self._whole:
            piece = await self._piece()
            if len(body) + len(piece) > limit:
                raise BodyTooLarge(f"the body is longer than limits.max_body, {limit} bytes")
            self._hold(len(piece))
            body += piece
        return bytes(body)

    def read_at_once(self) -> bool:
        """Whether the whole body is here: then body() is that."""
        whole = self._request.body.whole()
        if whole is not None:
            self._ahead, self._whole = whole, True
        return self._whole

    def spooled(self, pieces: Callable[[], AsyncIterator[bytes]]) -> None:
        """The whole body has been read, and is there."""
        self._spooled = pieces

    async def read_ahead(self, limit: int, patience: float | None = None) -> bool:
        """
        To the body's end, past `limit` bytes, or until `patience` seconds are over. Whether the end was seen;
        if not, body() begins with what was read.
        """
        if self.read_at_once():
            return True
        ahead = bytearray()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not self._whole and len(ahead) <= limit:
                    piece = await self._piece()
                    self._hold(min(len(piece), limit - len(ahead)))  # the one past it goes on at once
                    ahead += piece
        self._ahead = bytes(ahead)
        return self._whole

    def body(self) -> bytes | AsyncIterator[bytes]:
        """In one piece where read_ahead() saw its end."""
        if self._spooled is not None:
            return self._spooled()
        return self._ahead if self._whole else self.pieces()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ClientGone where it breaks off, so that it never looks whole."""
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            yield ahead
            self.release()
        while not self._whole:
            piece = await self._piece()
            if piece:
                yield piece

    def _hold(self, size: int) -> None:
        self._budget.take(self.caller(), size)
        self.held += size

    def release(self) -> None:
        """The call is over, and with it what was read of its body."""
        if self.held:
            held, self.held = self.held, 0
            self._budget.give_back(self.caller(), held)

    async def _piece(self) -> bytes:
        body = self._request.body
        try:
            piece = await body.read()
        except OSError as error:
            raise ClientGone from error
        self._whole = body.ended
        return piece

    async def relay(
        self, status: int, headers: Headers, extra_headers: Headers, body: Reply, keep: int = 0
    ) -> bytes | None:
        """
        Head and body as they come. An error in the body is raised: the client's reply stays cut off. A client
        that leaves while something is waited for ends the call. Returns the body if it is no longer than
        `keep` bytes and there was room to keep it.
        """
        whole = body.whole()
        if whole is not None:
            if not self._answer_at_once(status, headers, whole, extra_headers):
                await self._answer_when_it_can(status, headers, whole, extra_headers)
            return whole if len(whole) <= keep else None
        self.cancel_on_disconnect()
        self._request.holds_connection = lambda: not body.over
        await self._start(status, headers, extra_headers)
        kept = KeptReply(self._budget, self.caller(), keep) if keep else None
        ended = False
        try:
            while not ended:
                piece = b"" if body.ended else await body.read()
                if kept is not None:
                    kept.add(piece)
                ended = body.ended
                if piece or ended:
                    await self._request.write(piece, not ended)
            return None if kept is None else kept.whole()
        finally:
            if kept is not None:
                kept.drop()

    async def answer(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> None:
        if not self._answer_at_once(status, headers, body, extra_headers):
            await self._answer_when_it_can(status, headers, body, extra_headers)

    def _answer_at_once(self, status: int, headers: Headers, body: bytes, extra_headers: Headers) -> bool:
        try:
            self.started = self._request.respond(status, headers, body, extra_headers)
        except ValueError as error:
            raise InvalidReply(UNWRITABLE, evidence=str(error).encode()) from error
        if self.started:
            self.status = status
        return self.started

    async def _answer_when_it_can(
        self, status: int, headers: Headers, body: bytes, extra_headers: Headers
    ) -> None:
        self.cancel_on_disconnect()
        await self._start(status, headers, extra_headers)
        await self._request.write(body, False)

    async def _start(self, status: int, headers: Headers, extra_headers: Headers) -> None:
        with _fields_that_can_be_sent():
            await self._request.start(status, headers, extra_headers)
        self.started = True
        self.status = status

    async def refuse(self, error: GatewayError, headers: Headers = ()) -> None:
        status, extra_headers, body = problem(error, self.told_id)
        await self.answer(status, extra_headers, body, headers)


@contextlib.contextmanager
def _fields_that_can_be_sent() -> Iterator[None]:
    """What the upstream said is sound in itself, but the server refuses to write it: nothing was written."""
    try:
        yield
    except ValueError as error:
        raise InvalidReply(UNWRITABLE, evidence=str(error).encode()) from error
