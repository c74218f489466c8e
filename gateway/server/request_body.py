"""
A request's body as it arrives: its pieces wait here until the application reads them.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from gateway.errors import BadRequest, GatewayError, HeadTooLarge
from gateway.http.chunked import ChunkedDecoder, InvalidChunk, TrailersTooLarge
from gateway.http.grammar import CHUNKED
from gateway.server.client_watch import ClientWatch
from gateway.server.write_flow import ClientDisconnected

HIGH_WATER: Final = 64 * 1024  # bytes that may wait for the application


class BodySource(Protocol):
    """What a body needs of the connection on which it comes."""

    def await_body(self, body: RequestBody) -> None:
        """The application waits for the next piece, which the client now has to send in time."""

    def stop_awaiting_body(self, body: RequestBody) -> None: ...

    def resume_reading(self) -> None: ...


class RequestBody:
    # Defaults stand on the class: most bodies leave them as they are.
    here = False  # its last byte has arrived
    closed = False  # nothing more is read: the client has gone, or had its reply before its body was here
    expects_continue = False  # the client waits for a 100, and has not begun without it
    remaining = 0  # bytes that are still to come, where its length is known
    drained = 0  # bytes that came when nothing more was read
    watch: ClientWatch | None = None  # over a client whose body the application has had to wait for
    _chunks: ChunkedDecoder | None = None
    _error: GatewayError | None = None
    _size = 0  # bytes that wait, while more are to come
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, source: BodySource, length: int, whole: bytes | None, expects_continue: bool) -> None:
        """`length` in bytes, or CHUNKED. `whole` is all of it, where that came together with the head."""
        self._pieces = [whole] if whole else []
        if whole is not None:
            self.here = True
            return
        self._source = source
        self.expects_continue = expects_continue
        if length == CHUNKED:
            self._chunks = ChunkedDecoder()
        else:
            self.remaining = length

    # For the application.

    @property
    def ended(self) -> bool:
        """Whether read() has nothing more to give."""
        return self.here and not self._pieces

    def whole(self) -> bytes | None:
        """What is left of it, if all that is here by now; then there is nothing to read any more."""
        if not self.here or self.closed:
            return None
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        """
        What has come, as soon as there is any; b"" at the end. Raises ClientDisconnected when nothing more is
        read, and what fail() was given.
        """
        while not self.closed:
            if self._error is not None:
                raise self._error
            if self._pieces or self.here:
                return self._take()
            if self._waiter is not None:
                raise RuntimeError("the body is waited for already")
            self._source.await_body(self)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._source.stop_awaiting_body(self)
        raise ClientDisconnected("the client has gone")

    # For the connection.

    @property
    def awaited(self) -> bool:
        """Whether somebody waits, with nothing there yet."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def full(self) -> bool:
        """Whether the client should wait before it sends more."""
        return self._size > HIGH_WATER

    def feed(self, data: bytes) -> int:
        """How many bytes of `data` are the body's: all, until it is here. Raises a RequestError."""
        chunks = self._chunks
        if chunks is None:
            taken = min(len(data), self.remaining)
            piece = data[:taken]
            self.remaining -= taken
            self.here = not self.remaining
        else:
            try:
                piece, taken = chunks.feed(data)
            except TrailersTooLarge as error:
                raise HeadTooLarge(str(error)) from error
            except InvalidChunk as error:
                raise BadRequest(str(error)) from error
            self.here = chunks.ended
        self.expects_continue = False
        if self.closed:
            self.drained += taken
            return taken
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
        if self._waiter is not None and (piece or self.here):
            self._wake()
        return taken

    def fail(self, error: GatewayError) -> None:
        """The rest will not be read."""
        self._error = error
        self._wake()

    def close(self) -> None:
        self.closed = True
        if self._waiter is not None:
            self._wake()

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        if not self.here:
            if self.watch is not None:
                self.watch.moved(self._size)
            self._size = 0
            self._source.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
