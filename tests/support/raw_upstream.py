"""
An upstream on a raw socket: it records the bytes that come in, and does what a script says, right or wrong.

A script is a coroutine function of one `Peer`, the connection it runs for, which is closed when it returns:

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nab")
        peer.reset()

    async with RawUpstream(cut, answering(OK)) as upstream:  # first connection, all others
        ...
    assert upstream.requests[0].body == b"..."
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came: `raw` is every byte of it, `headers` have lower-case names."""

    raw: bytes
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


class Peer:
    """One accepted connection."""

    def __init__(
        self, upstream: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.upstream = upstream
        self.received = bytearray()
        self.writer = writer
        self._reader = reader

    async def read(self) -> bytes:
        """Some bytes; empty when the other side has ended."""
        return self._record(await self._reader.read(65_536))

    async def head(self) -> bytes:
        return self._record(await self._reader.readuntil(b"\r\n\r\n"))

    async def request(self) -> Received:
        """The next request, its body as its framing says. IncompleteReadError when there is none."""
        head = await self.head()
        line, *fields = head[:-4].split(b"\r\n")
        method, target, _ = line.split(b" ")
        pairs = [field.partition(b":") for field in fields]
        headers = [(name.lower(), value.strip()) for name, _, value in pairs]
        raw, body = head, b""
        length = dict(headers).get(b"content-length")
        if (b"transfer-encoding", b"chunked") in headers:
            while True:
                size = self._record(await self._reader.readuntil(b"\r\n"))
                chunk = self._record(await self._reader.readexactly(int(size, 16) + 2))
                raw += size + chunk
                if chunk == b"\r\n":
                    break
                body += chunk[:-2]
        elif length is not None:
            body = self._record(await self._reader.readexactly(int(length)))
            raw += body
        request = Received(raw, method, target, headers, body)
        self.upstream.requests.append(request)
        return request

    async def gone(self) -> None:
        """Returns when the other side has ended or reset; what it still sends is recorded."""
        with contextlib.suppress(ConnectionError):
            while await self.read():
                pass

    async def send(self, *pieces: bytes) -> None:
        """Each piece on its own, with a chance for the other side to read it alone."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)

    def end(self) -> None:
        """Ends this side; the other may go on."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST, not FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    def _record(self, data: bytes) -> bytes:
        self.received += data
        return data


Script: TypeAlias = Callable[[Peer], Awaitable[None]]


def answering(*replies: bytes | Iterable[bytes]) -> Script:
    """Reads a request, sends the next reply (its pieces one by one); the last is for all further requests."""

    async def script(peer: Peer) -> None:
        for number in range(1_000_000):
            await peer.request()
            reply = replies[min(number, len(replies) - 1)]
            await peer.send(*((reply,) if isinstance(reply, bytes) else reply))

    return script


async def silent(peer: Peer) -> None:
    """Reads everything, says nothing."""
    await peer.gone()


async def deaf(peer: Peer) -> None:
    """Does not even read."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


class RawUpstream:
    """Runs the n-th script for the n-th connection, the last one for all further ones."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.peers: list[Peer] = []
        self.requests: list[Received] = []
        self.host = host
        self.port = 0
        self._scripts = scripts
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def bodies(self, method: bytes) -> list[bytes]:
        return [request.body for request in self.requests if request.method == method]

    async def __aenter__(self) -> RawUpstream:
        # When the queue is full, the kernel drops a client's SYN, and it tries again a second later.
        self._server = await asyncio.start_server(self._accepted, self.host, 0, ssl=self._tls, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for peer in self.peers:
            if not peer.writer.is_closing():
                peer.writer.transport.abort()
            with contextlib.suppress(OSError):
                await peer.writer.wait_closed()
        if error is None and self._failures:
            raise self._failures[0]

    def stop_listening(self) -> None:
        """New connections are refused; those that there are go on."""
        self._server.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(self, reader, writer)
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        self.peers.append(peer)
        task = asyncio.ensure_future(self._run(script, peer))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _run(self, script: Script, peer: Peer) -> None:
        # The other side may leave at any time; only a failed assertion in the script fails the test.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(peer)
        peer.writer.close()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)
