"""An upstream that plants a second reply behind each of its replies: whom the planted ones reach (O2)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.upstream.connect import tls_context
from gateway.upstream.connection import Timeouts, UpstreamConnection
from gateway.upstream.pool import Pool, PoolLimits
from tests.support.pools import HOST, fetch, rest, until
from tests.support.raw_upstream import OK


class PlantingUpstream:
    """Threads that answer, wait a moment, plant a reply, and note when it was in the socket."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.planted: dict[bytes, float] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while connection.recv(65_536):
                    connection.sendall(OK)
                    time.sleep(len(self.planted) % 5 * 0.0001)
                    name = b"planted-%d-%d" % (connection.fileno(), len(self.planted))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(name) + name)
                    self.planted[name] = time.monotonic()
            except OSError:
                return


class Noting(UpstreamConnection):
    """Knows when it was polled last before each request: since the one before, or never."""

    started: dict[bytes, float]
    polled = inf

    def silent(self) -> bool:
        self.polled = time.monotonic()
        return super().silent()

    def start(self, request: Any, reply: Any, headed: Any) -> None:
        self.started[request.head.split(b" ", 2)[1]] = self.polled
        self.polled = inf
        super().start(request, reply, headed)


class NotingPool(Pool):
    def _make(self) -> UpstreamConnection:
        made = super()._make()
        made.__class__ = Noting
        assert isinstance(made, Noting)
        made.started = self.started
        return made

    started: dict[bytes, float]


@pytest.mark.parametrize("recorded", [False, True], ids=["at once", "after a record was written"])
async def test_no_planted_reply_that_was_there_before_a_request_left_is_its_answer(recorded: bool) -> None:
    upstream = PlantingUpstream()
    limits = PoolLimits(max_connections=4)
    # Twenty-six wait for four connections, each of which ends with its reply: on a busy machine for seconds.
    pool = NotingPool("http", "127.0.0.1", upstream.port, limits=limits, timeouts=Timeouts(pool=60.0))
    pool.started = {}
    took: dict[bytes, bytes] = {}

    async def caller(name: str) -> None:
        for number in range(15):
            target = b"/%b/%d" % (name.encode(), number)
            headers = [HOST, (b"authorization", b"Bearer " + name[:1].encode())]
            before_send = (lambda: time.sleep(0.0003)) if recorded else None
            reply = await pool.send(b"PATCH", target, headers, b"{}", before_send=before_send)
            took[target] = await rest(reply)

    async with asyncio.timeout(60):
        await asyncio.gather(*(caller(f"{who}{number}") for who in "AB" for number in range(15)))
    pool.close()
    await pool.wait_closed()
    upstream.listener.close()

    assert len(took) == 450
    reached = {target: body for target, body in took.items() if body != b"ok"}
    # One that is not noted yet, its thread being late, will be noted after all that was polled.
    early = [t for t, body in reached.items() if upstream.planted.get(body, inf) < pool.started[t]]
    assert early == [], "planted before it left, and yet taken for the answer"
    # What no proxy can tell from an answer: for the threat model.
    print(
        f"{len(reached)} of {len(upstream.planted)} planted replies, all planted after the request had left"
    )


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with others"])
async def test_what_is_said_while_a_call_is_recorded_is_not_its_answer(
    together: bool, encrypted: bool, tmp_path: Path
) -> None:
    """The connection was silent when it was taken; the upstream speaks before the first byte goes out."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    heard: list[bytes] = []
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while said := connection.recv(4096):
                heard.append(said)
                if b"/held" in said:
                    held.wait(30)
                connection.sendall(OK)

    def accept() -> None:
        for _ in range(4):
            connection, _ = listener.accept()
            if encrypted and wanted:
                connection = context.wrap_socket(connection, server_side=True)
            accepted.append(connection)
            threading.Thread(target=answer, args=[connection], daemon=True).start()

    accepted: list[socket.socket] = []
    wanted = True
    held = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        port = listener.getsockname()[1]
        if encrypted:
            pool = Pool("https", "127.0.0.1", port, tls=tls_context(str(tmp_path / "ca.pem")))
        else:
            pool = Pool("http", "127.0.0.1", port)
        busy = [asyncio.ensure_future(fetch(pool, target=b"/held"))] if together else []
        if together:
            await until(lambda: heard)
        await fetch(pool)
        [idle] = pool._idle
        calls = 0

        def before_send() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                accepted[-1].sendall(evil)
                while idle.silent():
                    pass

        reply = await pool.send(b"PATCH", b"/", [HOST], b"{}", before_send=before_send)
        assert await rest(reply) == b"ok"
        assert calls == 2
        held.set()
        await asyncio.gather(*busy)
        pool.close()
        await pool.wait_closed()
        wanted = False
        for _ in range(4 - len(accepted)):
            socket.create_connection(listener.getsockname()).close()
        await until(lambda: len(accepted) == 4)
