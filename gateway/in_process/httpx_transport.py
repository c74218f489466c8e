"""
The gateway as a transport of httpx, for a client that needs the repairs itself: `gateway.RepairingTransport`.

Law: nothing is sent to any address but upstream.url, whatever URL is asked for (C7).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gateway.config import Settings
from gateway.errors import GatewayError, MisdirectedRequest
from gateway.http.headers import Headers
from gateway.http.request_parser import RequestHead
from gateway.in_process.requests import NO_ADDRESS, ToldRequest
from gateway.in_process.running import InProcess, settings_of
from gateway.in_process.told_head import told_head
from gateway.server.request_cycle import refusal

HIGH_WATER: Final = 64 * 1024  # bytes of a reply that wait for its reader before the upstream has to
PORTS: Final = {"http": 80, "https": 443}


class RepairingTransport(httpx.AsyncBaseTransport):
    """
    For httpx.AsyncClient: it begins with the client's block or the first request, and ends with aclose(). A
    request to another origin than upstream.url's is refused with 421: for those the client has `mounts`.
    """

    def __init__(self, config: str | Path | Settings, **seams: Any) -> None:
        """`config` is a file's path, or settings. `seams`: app.build's."""
        self.within = InProcess(settings_of(config), **seams)
        url = urlsplit(self.within.settings.upstream.url)
        self._origin = url.scheme, (url.hostname or "").lower(), url.port or PORTS[url.scheme]
        self._prefix = url.path.rstrip("/").encode()

    async def __aenter__(self) -> RepairingTransport:
        await self.within.begin()
        return self

    async def aclose(self) -> None:
        """What is in flight is finished first, within limits.drain_timeout."""
        await self.within.end()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.within.begin()
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            target = self._target(request)
            headers = [(name.lower(), value) for name, value in request.headers.raw]
            method = request.method.encode("ascii", "replace")
            head = told_head(method, target, headers, "1.1", self.within.limits, self.within.shapes)
            call = ClientCall(head, StreamedBody(request.stream))
            task = self.within.serve(call)
        except GatewayError as error:
            self.within.refused(error, NO_ADDRESS)
            status, fields, body = refusal(error)
            return httpx.Response(status, headers=fields, content=body)
        task.add_done_callback(call.ended)
        try:
            return await call.answered
        except asyncio.CancelledError:
            call.lost()
            raise

    def _target(self, request: httpx.Request) -> bytes:
        """Without the prefix that upstream.url has, which is put before it again."""
        url = request.url
        if (url.scheme, url.host.lower(), url.port or PORTS.get(url.scheme, 0)) != self._origin:
            raise MisdirectedRequest("the URL is not of upstream.url's origin")
        target: bytes = request.extensions.get("target", url.raw_path)
        if not target.startswith(self._prefix + b"/"):
            raise MisdirectedRequest("the URL is not below upstream.url")
        return target[len(self._prefix) :]


class StreamedBody:
    """A request's body as httpx has it. What it raises ends the call, and is raised to whoever called."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._whole = b"".join(stream) if isinstance(stream, httpx.ByteStream) else None
        self._pieces = aiter(stream)
        self.ended = False

    def whole(self) -> bytes | None:
        if self._whole is not None:
            self.ended = True
        return self._whole

    async def read(self) -> bytes:
        piece = await anext(self._pieces, None)
        self.ended = piece is None
        return piece or b""


class ClientCall(ToldRequest):
    """A request of the client's, whose reply is `answered`: its body is read from there as it comes."""

    def __init__(self, head: RequestHead, body: StreamedBody) -> None:
        super().__init__(head, "1.1", NO_ADDRESS)
        self.body = body
        self.answered: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()
        self._pieces: list[bytes] = []
        self._held = 0  # bytes in them
        self._error: BaseException | None = None
        self._moved = asyncio.Event()
        self._taken = asyncio.Event()

    # For the lifecycle.

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        self.check_client()
        self.started = self.complete = True
        # A stream, though it is all there: httpx would give it a length that the reply to a HEAD has not.
        self._pieces = [body] if body and self.method != "HEAD" else []
        self._answer(status, headers, extra_headers)
        return True

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        self.check_client()
        self.started = True
        self._answer(status, headers, extra_headers)

    async def write(self, piece: bytes, more: bool) -> None:
        while self._held > HIGH_WATER and not self.gone:
            self._taken.clear()
            await self._taken.wait()
        self.check_client()
        if piece and self.method != "HEAD":
            self._pieces.append(piece)
            self._held += len(piece)
        self.complete = not more
        self._moved.set()

    def lost(self) -> None:
        super().lost()
        self._taken.set()

    def ended(self, task: asyncio.Task[None]) -> None:
        """The call is over: whoever still waits for its reply, or for the rest of it, is told why."""
        self._error = self.outcome()
        self._moved.set()
        if not self.answered.done():
            error = self._error
            if error is None or isinstance(error, OSError):
                error = httpx.ReadError("the call was given up")
            self.answered.set_exception(error)

    def _answer(self, status: int, headers: Headers, extra_headers: Headers) -> None:
        if not self.answered.done():
            fields = [*headers, *extra_headers]
            extensions = {"http_version": b"HTTP/1.1"}
            self.answered.set_result(
                httpx.Response(status, headers=fields, stream=RepliedStream(self), extensions=extensions)
            )

    # For the reader of the reply.

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises where the reply breaks off (C3)."""
        while True:
            pieces, self._pieces, self._held = self._pieces, [], 0
            self._taken.set()
            for piece in pieces:
                yield piece
            if self._pieces:
                continue
            if self.complete:
                return
            if self._error is not None:
                raise httpx.RemoteProtocolError(f"the reply broke off: {self._error}") from self._error
            await self._moved.wait()
            self._moved.clear()


class RepliedStream(httpx.AsyncByteStream):
    def __init__(self, call: ClientCall) -> None:
        self._call = call

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._call.pieces()

    async def aclose(self) -> None:
        if not self._call.complete:
            self._call.lost()
