"""
A server that refuses as the gateway does, or cuts the connection, and how often each client sends a PATCH to
it. docs/clients.md has it as a table.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ENDED = b"Access-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n"  # a browser asks who may read it
REFUSALS = {
    "502": b"HTTP/1.1 502 Bad Gateway\r\n" + ENDED,
    "503": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n" + ENDED,
    "504": b"HTTP/1.1 504 Gateway Timeout\r\n" + ENDED,
    "cut": b"",
}
PREFLIGHT = (
    b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Methods: *\r\nAccess-Control-Allow-Headers: *\r\n" + ENDED
)
ONCE = dict.fromkeys(REFUSALS, 1)
# Every other client sends it once, whatever comes back.
AGAIN: dict[str, dict[str, int]] = {
    "apache5": {"503": 2},
    "chromium": {"cut": 2},  # on a connection that it has used before
    "wget": {"504": 2, "cut": 2},  # as often as its --tries say, which are 20 by default and 2 here
}


@asynccontextmanager
async def refusing() -> AsyncIterator[tuple[str, Counter[str]]]:
    """A server that answers by what the conversation is called, and counts."""
    counts: Counter[str] = Counter()
    open_ones: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (
                        int(line.partition(b":")[2])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                await reader.readexactly(length)
                if head.startswith(b"OPTIONS "):
                    writer.write(PREFLIGHT)
                    continue
                kind = head.split(b" ")[1].split(b"/")[-3].rpartition(b"-")[2].decode()
                counts[kind] += 1
                writer.write(REFUSALS[kind])
                if kind == "cut" or b"\r\nconnection: close" in head.lower():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has what it wanted
        finally:
            writer.close()
            open_ones.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", counts
    finally:
        server.close()
        for writer in tuple(open_ones):
            writer.close()
        await server.wait_closed()
