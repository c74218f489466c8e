"""
A client that costs little: one keep-alive connection, one call at a time, every byte as it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.rig import quantile
from gateway.http.headers import Header

PER_ADDRESS = 10_000  # connections that one source address makes: well under the ephemeral ports it has
RESET = struct.pack("ii", 1, 0)


class Broken(Exception):
    """The connection ended, or what came is no reply."""


class Reply(NamedTuple):
    status: int
    headers: list[Header]
    body: bytes


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float) -> None:
        self.reader = reader
        self.writer = writer
        self._patience = patience

    async def call(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> Reply:
        """Raises Broken, or TimeoutError when there is no whole reply within `patience` seconds."""
        async with asyncio.timeout(self._patience):
            self.send(method, target, headers, body)
            return await self.reply()

    def send(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: gateway.test"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    async def head(self) -> Reply:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Broken("no reply") from error
        line, *fields = head[:-4].split(b"\r\n")
        pairs = [(name.lower(), value.strip()) for name, _, value in (f.partition(b":") for f in fields)]
        return Reply(int(line.split(b" ")[1]), pairs, b"")

    async def reply(self) -> Reply:
        reply = await self.head()
        headers = dict(reply.headers)
        try:
            if b"chunked" in headers.get(b"transfer-encoding", b""):
                body = bytearray()
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
                return reply._replace(body=bytes(body))
            length = int(headers.get(b"content-length", b"0"))
            return reply._replace(body=await self.reader.readexactly(length)) if length else reply
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Broken("half a reply") from error

    def reset(self) -> None:
        """Gone without a word: the peer sees a RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def opened(
    port: int, *, number: int = 0, patience: float = 20.0, buffer: int | None = None
) -> Connection:
    """`number`: which of many it is, for its source address; `buffer`: the kernel's, for a slow reader."""
    sock = socket.socket()
    sock.setblocking(False)
    if number >= PER_ADDRESS:
        sock.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        async with asyncio.timeout(patience):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except (OSError, TimeoutError) as error:
        sock.close()
        raise Broken(f"cannot connect: {error}") from error
    limit = 2**16 if buffer is None else buffer
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    return Connection(reader, writer, patience)


@contextlib.asynccontextmanager
async def connection(
    port: int, *, patience: float = 20.0, buffer: int | None = None
) -> AsyncIterator[Connection]:
    one = await opened(port, patience=patience, buffer=buffer)
    try:
        yield one
    finally:
        await one.close()


@dataclass(slots=True)
class Tally:
    """What became of calls: seconds of those answered, how many of each status, and of each failure."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    async def call(
        self,
        one: Connection,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> Reply | None:
        """None where there was no reply: the connection is of no more use then."""
        began = time.perf_counter()
        try:
            reply = await one.call(method, target, headers, body)
        except (Broken, TimeoutError) as error:
            self.failures[str(error) or type(error).__name__] += 1
            return None
        self.seconds.append(time.perf_counter() - began)
        self.statuses[reply.status] += 1
        return reply

    @property
    def good(self) -> int:
        return sum(count for status, count in self.statuses.items() if 200 <= status < 400)

    @property
    def bad(self) -> int:
        return sum(self.statuses.values()) - self.good + sum(self.failures.values())

    def ms(self, share: float) -> str:
        return f"{quantile(self.seconds, share) * 1000:.1f}"

    def wrong(self) -> str:
        """Each other outcome with its number."""
        bad = [f"{count}x {status}" for status, count in sorted(self.statuses.items()) if status >= 400]
        return ", ".join(bad + [f"{count}x {what}" for what, count in self.failures.items()]) or "none"
