"""A pool to an upstream under test, and what tests of it read and wait for."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

from gateway.http.headers import Header, Headers
from gateway.upstream.connection import Timeouts
from gateway.upstream.pool import Pool, PoolLimits
from gateway.upstream.reply import Reply
from tests.support.raw_upstream import RawUpstream

HOST: Header = (b"host", b"upstream.test")
UPGRADE: list[Header] = [HOST, (b"connection", b"upgrade"), (b"upgrade", b"echo")]
BLOCK = b"x" * 262_144
CHUNKED: Header = (b"transfer-encoding", b"chunked")
TIMES = ("connect", "write", "read", "pool")


@contextlib.asynccontextmanager
async def pool_to(
    upstream: RawUpstream, *, tls: ssl.SSLContext | None = None, host: str | None = None, **options: Any
) -> AsyncIterator[Pool]:
    """A pool that must have let go of every socket at the end."""
    times = {name: options.pop(name) for name in TIMES if name in options}
    pool = Pool(
        "http" if tls is None else "https",
        host or upstream.host,
        upstream.port,
        tls=tls,
        timeouts=Timeouts(**times),
        limits=PoolLimits(**options),
    )
    yield pool
    pool.close()
    async with asyncio.timeout(5):
        await pool.wait_closed()
    assert (pool.size, pool.idle, pool.waiting) == (0, 0, 0)


async def fetch(
    pool: Pool,
    method: bytes = b"GET",
    target: bytes = b"/",
    headers: Headers = (),
    body: bytes | None = None,
    caller: str = "",
) -> tuple[Reply, bytes]:
    framing = [] if body is None else [(b"content-length", b"%d" % len(body))]
    reply = await pool.send(method, target, [HOST, *headers, *framing], body, caller=lambda: caller)
    return reply, await rest(reply)


async def rest(reply: Reply) -> bytes:
    pieces = []
    while piece := await reply.read():
        pieces.append(piece)
    assert reply.ended
    reply.close()
    return b"".join(pieces)


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


async def until(condition: Any) -> None:
    """Lets the loop go on until it is so."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never was so")


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
