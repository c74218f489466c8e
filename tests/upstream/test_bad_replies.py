"""What breaks the rules is refused, and what the upstream says unasked is never an answer."""

from __future__ import annotations

import asyncio
import socket
from math import inf
from typing import Any

import pytest

from gateway.errors import ConnectionRefused, InvalidReply
from gateway.upstream.connection import UpstreamConnection
from gateway.upstream.pool import Pool, PoolLimits
from tests.support.pools import CHUNKED, fetch, pool_to, ticks, until
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.replies import EVIL, REPLIES, STRICT


async def test_a_refused_reply_closes_its_connection() -> None:
    async with RawUpstream(answering(STRICT["fold"]), answering(OK)) as upstream, pool_to(upstream) as pool:
        with pytest.raises(InvalidReply):
            await fetch(pool)
        assert pool.size == 0
        assert (await fetch(pool))[1] == b"ok"


@pytest.mark.parametrize("spare", [0, 1])
async def test_head_size_and_number_of_fields_are_limited(spare: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-0: a\r\nX-1: b\r\nContent-Length: 0\r\n\r\n"
    tight: list[dict[str, Any]] = [{"max_head": len(head) - 1 + spare}, {"max_headers": 2 + spare}]
    for limits in tight:
        script = answering(head, [head[:9], head[9:]])
        async with RawUpstream(script) as upstream, pool_to(upstream, **limits) as pool:
            for _ in range(2):
                if spare:
                    assert (await fetch(pool))[0].status == 200
                else:
                    with pytest.raises(InvalidReply, match=r"fields|larger"):
                        await fetch(pool)


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"a" * 1_000_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 1_000_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 200_000,
    ],
)
async def test_heads_extensions_and_trailers_without_end_are_refused(endless: bytes) -> None:
    async with RawUpstream(answering(endless)) as upstream, pool_to(upstream) as pool:
        with pytest.raises(InvalidReply):
            await fetch(pool)


async def test_a_reply_split_at_any_byte_arrives_over_a_socket() -> None:
    raw = b"HTTP/1.1 103 Hi\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"2;a\r\nok\r\n0\r\nT: t\r\n\r\n"
    splits = [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    async with RawUpstream(answering(*splits)) as upstream, pool_to(upstream) as pool:
        for _ in splits:
            reply, body = await fetch(pool)
            assert (reply.status, reply.headers, body) == (200, [CHUNKED], b"ok")
        assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    ("reply", "junk"),
    [
        (OK, EVIL),
        (OK, b"\r\n"),
        (OK, b"x"),
        (REPLIES["chunked"][0], EVIL),
        (REPLIES["chunked"][0], b"HTTP/1.1 200 OK\r\n\r\nevil"),
        (REPLIES["chunked"][0], b"HTTP/1.1 204 No Content\r\n\r\n"),
        (REPLIES["chunked"][0], b"\r\n"),
        (REPLIES["chunked"][0], b"x"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", EVIL),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n", EVIL),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_bytes_behind_a_reply_close_the_connection(reply: bytes, junk: bytes, at_once: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*([reply + junk] if at_once else [reply, junk]))
        await peer.gone()

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream) as pool:
        _, body = await fetch(pool)
        assert b"evil" not in body
        await until(lambda: pool.size == 0)
        assert (await fetch(pool))[1] == b"ok"
        assert len(upstream.peers) == 2


@pytest.mark.parametrize("junk", [EVIL, b"\r\n", b""], ids=["a reply", "a line", "its end"])
async def test_what_waits_in_an_idle_socket_is_neither_the_next_reply_nor_missed(junk: bytes) -> None:
    """It has arrived, the loop has not yet seen it, and the next request is about to go out."""
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> socket.socket:
        connection, _ = listener.accept()
        heard.append(connection.recv(4096))
        connection.sendall(OK)
        return connection

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        pool = Pool("http", "127.0.0.1", listener.getsockname()[1])
        answered = loop.run_in_executor(None, answer, listener)
        await fetch(pool)
        first = await answered
        answered = loop.run_in_executor(None, answer, listener)
        await ticks(5)
        assert pool.idle == 1

        if junk:
            first.sendall(junk)
        else:
            first.shutdown(socket.SHUT_WR)
        _, body = await fetch(pool, b"PATCH", body=b"{}")

        assert body == b"ok"
        assert heard[1].startswith(b"PATCH")
        first.close()
        (await answered).close()
        pool.close()
        await pool.wait_closed()


async def test_what_is_said_unasked_is_no_answer_to_the_request_that_waits_for_the_connection() -> None:
    """The connection is handed from one request to the next with something unseen in its socket."""
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> socket.socket:
        connection, _ = listener.accept()
        heard.append(connection.recv(4096))
        connection.sendall(OK)
        return connection

    class Busy(Pool):
        """Whose loop does something else for a moment when the first reply ends."""

        def released(self, connection: UpstreamConnection) -> None:
            super().released(connection)
            if not heard:
                accepted.sendall(EVIL)
                while connection.silent():
                    pass

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        limits = PoolLimits(max_connections=1)
        pool = Busy("http", "127.0.0.1", listener.getsockname()[1], limits=limits)
        holding = asyncio.ensure_future(fetch(pool))
        accepted, _ = await loop.run_in_executor(None, listener.accept)
        await loop.run_in_executor(None, accepted.recv, 4096)
        waiting = asyncio.ensure_future(fetch(pool, b"PATCH", body=b"{}"))
        await until(lambda: pool.waiting == 1)
        accepted.sendall(OK)
        assert (await holding)[1] == b"ok"
        answered = loop.run_in_executor(None, answer, listener)

        assert (await waiting)[1] == b"ok"
        assert heard[0].startswith(b"PATCH")
        accepted.close()
        (await answered).close()
        pool.close()
        await pool.wait_closed()


async def test_what_an_upstream_says_first_is_no_answer() -> None:
    class Patient(UpstreamConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            while self.silent():
                pass

    class Waiting(Pool):
        """That sends its request only when the upstream has spoken."""

        def _make(self) -> UpstreamConnection:
            return Patient(self, self.timeouts, expires=inf, max_head=4096, max_headers=10)

    def greet(listener: socket.socket) -> bytes:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(EVIL)
            try:
                return connection.recv(4096)
            except ConnectionResetError:  # what was sent was never read
                return b""

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        pool = Waiting("http", "127.0.0.1", listener.getsockname()[1])
        greeted = loop.run_in_executor(None, greet, listener)
        with pytest.raises(ConnectionRefused, match="spoke"):
            await fetch(pool)

        assert await greeted == b""
        assert pool.size == 0
        await pool.wait_closed()


async def test_a_reply_to_head_that_has_a_body_is_cut_off() -> None:
    wrong = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with RawUpstream(answering(wrong), answering(OK)) as upstream, pool_to(upstream) as pool:
        reply, body = await fetch(pool, b"HEAD")
        assert (reply.status, body, pool.size) == (200, b"", 0)
        assert (await fetch(pool))[1] == b"ok"
