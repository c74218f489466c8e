"""What goes wrong between transport and upstream, over real sockets: it ends in the right error, and once."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from gateway.errors import (
    ConnectionRefused,
    ConnectionTerminated,
    ConnectTimeout,
    InvalidReply,
    NameNotResolved,
    ReadTimeout,
    TlsFailed,
    UpstreamError,
)
from gateway.upstream.connect import tls_context
from gateway.upstream.connection import Timeouts
from gateway.upstream.pool import Pool, PoolLimits
from tests.support import ports
from tests.support.pools import BLOCK, CHUNKED, HOST, fetch, pieces_of, pool_to, rest, until
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, deaf, silent
from tests.support.replies import EVIL


@pytest.fixture
def closed_port() -> Iterator[int]:
    with ports.closed_port() as port:
        yield port


@pytest.fixture
def full_port() -> Iterator[int]:
    with ports.full_port() as port:
        yield port


def chain(error: BaseException) -> list[type[BaseException]]:
    kinds = []
    current: BaseException | None = error
    while current is not None:
        kinds.append(type(current))
        current = current.__cause__
    return kinds


# No connection.


async def test_an_upstream_that_refuses_is_a_connect_error(closed_port: int) -> None:
    pool = Pool("http", "127.0.0.1", closed_port)
    for _ in range(3):
        with pytest.raises(ConnectionRefused) as caught:
            await fetch(pool, b"PATCH", body=b"{}")
        assert ConnectionRefusedError in chain(caught.value)
        assert pool.size == 0


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 64 + ".invalid"])
async def test_a_name_that_cannot_be_resolved_is_a_connect_error(name: str) -> None:
    pool = Pool("http", name, 80)
    with pytest.raises(NameNotResolved) as caught:
        await fetch(pool)
    assert issubclass(chain(caught.value)[1], (socket.gaierror, UnicodeError))
    assert pool.size == 0


async def test_an_upstream_that_does_not_accept_in_time_is_a_connect_timeout(full_port: int) -> None:
    pool = Pool("http", "127.0.0.1", full_port, timeouts=Timeouts(connect=0.1))
    with pytest.raises(ConnectTimeout):
        await fetch(pool)
    assert pool.size == 0


async def test_a_tls_handshake_that_stalls_is_a_connect_timeout() -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream, tls=tls_context(), connect=0.1) as pool:
        with pytest.raises(ConnectTimeout):
            await fetch(pool)
        assert pool.size == 0


async def test_cancelling_while_it_connects_leaves_nothing(full_port: int) -> None:
    pool = Pool("http", "127.0.0.1", full_port, limits=PoolLimits(max_connections=1))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await fetch(pool)
        assert pool.size == 0
    await pool.wait_closed()


async def test_who_waits_for_a_connection_tries_when_another_has_failed(full_port: int) -> None:
    limits = PoolLimits(max_connections=1)
    pool = Pool("http", "127.0.0.1", full_port, timeouts=Timeouts(connect=0.05), limits=limits)
    results = await asyncio.gather(*(fetch(pool) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectTimeout] * 3
    assert (pool.size, pool.waiting) == (0, 0)


# Ends, of both kinds, in each place.

PLACES = {
    "before the head": b"",
    "in the status line": b"HTTP/1.",
    "in the head": b"HTTP/1.1 200 OK\r\nContent-",
    "after an interim head": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "before the body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
    "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    "between chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "before the last line": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    "in the trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n",
}


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
@pytest.mark.parametrize("place", PLACES)
async def test_an_end_before_the_reply_is_complete_is_a_read_error(place: str, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(PLACES[place])
        if reset:
            await asyncio.sleep(0.01)
            peer.reset()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated):
            await fetch(pool, b"PATCH", body=b"{}")
        assert [request.body for request in upstream.requests] == [b"{}"]
        assert pool.size == 0


async def test_a_reset_is_an_error_even_where_the_end_would_be_the_end_of_the_body() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await asyncio.sleep(0.01)
        peer.reset()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated) as caught:
            await fetch(pool)
        assert ConnectionResetError in chain(caught.value)


async def test_what_arrived_before_the_end_is_handed_out_first() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(PLACES["in the body"])

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        assert await reply.read() == b"abc"
        for _ in range(2):
            with pytest.raises(ConnectionTerminated):
                await reply.read()
        assert not reply.ended
        reply.close()


async def test_an_upstream_that_goes_while_it_is_sent_a_stream_is_an_error() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield BLOCK

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.reset()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], endless())
        assert pool.size == 0


async def test_a_stream_that_never_waits_still_notices_that_the_upstream_has_gone() -> None:
    async def restless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"

    def reset(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=reset, args=(listener,))
        thread.start()
        pool = Pool("http", "127.0.0.1", listener.getsockname()[1])
        with pytest.raises(ConnectionTerminated):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], restless())
        thread.join()
        assert pool.size == 0
        await pool.wait_closed()


async def test_an_upstream_that_speaks_first_is_not_listened_to() -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"220 smtp.test ESMTP\r\n")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        with pytest.raises((ConnectionRefused, InvalidReply)):
            await fetch(pool, b"PATCH", body=b"{}")
        assert pool.size == 0


# Stalls.


@pytest.mark.parametrize("place", PLACES)
async def test_a_stall_is_a_read_timeout(place: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(PLACES[place])
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.05) as pool:
        with pytest.raises(ReadTimeout):
            await fetch(pool, b"PATCH", body=b"{}")
        # Where the machine stood still meanwhile, it is read only now.
        await until(lambda: len(upstream.requests) == 1)
        assert pool.size == 0


async def test_interim_heads_do_not_put_off_the_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(0.01)

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.1) as pool:
        with pytest.raises(ReadTimeout):
            await fetch(pool)


async def test_pieces_put_off_the_read_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n")
        for _ in range(40):
            await peer.send(b"x")
            await asyncio.sleep(0.02)

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.5) as pool:
        assert len((await fetch(pool))[1]) == 40


async def test_a_reader_that_takes_its_time_is_no_stall_of_the_upstream() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await asyncio.sleep(0.15)
        await peer.send(b"b")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.1) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        await asyncio.sleep(0.2)
        assert await rest(reply) == b"ab"


async def test_a_timeout_of_one_exchange_does_not_reach_into_the_next() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(8):
            await peer.request()
            await asyncio.sleep(0.1)
            await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.5) as pool:
        for _ in range(8):
            await fetch(pool)
        assert len(upstream.peers) == 1


async def test_an_upstream_that_does_not_read_is_a_write_timeout() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield BLOCK

    async with RawUpstream(deaf) as upstream, pool_to(upstream, write=0.1, read=60) as pool:
        with pytest.raises(ReadTimeout):
            await fetch(pool, b"PUT", body=BLOCK * 200)
        with pytest.raises(ReadTimeout):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], endless())
        assert pool.size == 0


async def test_an_upstream_that_reads_slowly_is_neither_stuck_nor_late() -> None:
    size = 40_000_000

    async def script(peer: Peer) -> None:
        head = await peer.head()
        while len(peer.received) < len(head) + size:
            before = len(peer.received)
            while len(peer.received) < min(before + 1_000_000, len(head) + size):
                await peer.read()
            await asyncio.sleep(0.02)
        await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, write=0.4, read=2) as pool:
        assert (await fetch(pool, b"PUT", body=b"x" * size))[1] == b"ok"


async def test_a_client_that_sends_slowly_is_no_stall_of_the_upstream() -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.06)
            yield b"x"

    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, read=0.05, write=0.05) as pool:
        assert await rest(await pool.send(b"PUT", b"/", [HOST, CHUNKED], slow())) == b"ok"


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("fault", ["wrong name", "expired", "unknown authority", "not TLS"])
async def test_a_certificate_that_does_not_hold_is_a_connect_error_and_nothing_is_sent(
    authority: trustme.CA, tmp_path: Path, fault: str
) -> None:
    issuer = trustme.CA() if fault == "unknown authority" else authority
    past = datetime.datetime(2020, 1, 1) if fault == "expired" else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(
        "other.test" if fault == "wrong name" else "localhost", not_before=past, not_after=past
    ).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async with RawUpstream(answering(OK), tls=None if fault == "not TLS" else context) as upstream:
        trusted = tls_context(str(tmp_path / "ca.pem"))
        async with pool_to(upstream, tls=trusted, host="localhost", connect=0.3) as pool:
            refused = (TlsFailed, ConnectTimeout) if fault == "not TLS" else TlsFailed
            with pytest.raises(refused) as caught:
                await fetch(pool, b"PATCH", body=b"secret")
            if fault != "not TLS":
                assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
            assert pool.size == 0
        assert upstream.requests == []


async def test_cancelling_a_handshake_at_any_point_leaves_nothing(
    authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async with (
        RawUpstream(answering(OK), tls=context) as upstream,
        pool_to(upstream, tls=tls_context(str(tmp_path / "ca.pem")), max_connections=1) as pool,
    ):
        for steps in range(25):
            call = asyncio.create_task(fetch(pool))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert pool.size == pool.idle
        assert (await fetch(pool))[1] == b"ok"


# Everything at once.


async def misbehaving(peer: Peer) -> None:
    """Answers with the target it was asked for, unless chance has it otherwise."""
    chance = random.Random(len(peer.upstream.peers))
    while True:
        request = await peer.request()
        body = request.target * chance.choice([1, 1, 1, 40, 5000])
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        if chance.random() < 0.3:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        reply = head + body
        for _ in range(chance.choice([0, 0, 1, 3])):
            await asyncio.sleep(0)
        match chance.randrange(12):
            case 0:
                await peer.send(reply[: chance.randrange(len(reply))])
                return
            case 1:
                await peer.send(reply[: chance.randrange(len(reply))])
                peer.reset()
                return
            case 2:
                await peer.send(reply + EVIL)
            case 3:
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n", reply[:40], reply[40:])
            case 4:
                await peer.send(reply)
                return
            case 5:
                await peer.gone()
                return
            case _:
                await peer.send(reply)


@pytest.mark.parametrize("seed", range(2))
async def test_no_reply_is_ever_that_of_another_request(seed: int) -> None:
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()

    async def call(pool: Pool, target: bytes) -> None:
        body = pieces_of(b"a", b"b") if chance.random() < 0.2 else b"ab"
        headers = [HOST, (b"content-length", b"2")]
        reply = await pool.send(chance.choice([b"GET", b"PATCH"]), target, headers, body)
        got = b""
        try:
            while chance.random() < 0.98 and (piece := await reply.read()):
                got += piece
            if reply.ended:
                assert got == target * (len(got) // len(target)), "another request's reply"
                outcomes["complete"] += 1
        finally:
            reply.close()

    async def work(pool: Pool, worker: int) -> None:
        for number in range(50):
            task = asyncio.create_task(call(pool, b"/%d-%d/" % (worker, number)))
            if chance.random() < 0.2:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                await task
            except (UpstreamError, asyncio.CancelledError) as error:
                outcomes[type(error).__name__] += 1
            assert pool.size <= 8

    async with (
        RawUpstream(misbehaving) as upstream,
        pool_to(upstream, max_connections=8, read=0.05, pool=0.5) as pool,
    ):
        await asyncio.gather(*(work(pool, worker) for worker in range(16)))
        assert (pool.size, pool.waiting) == (pool.idle, 0)
    assert outcomes["complete"] > 250
    assert outcomes["ConnectionTerminated"] > 30
    assert outcomes["ReadTimeout"] > 10


# The race that cannot be won: the upstream closes an idle connection just as it is used.


class FickleUpstream:
    """
    Applies PATCHes, and closes each connection about when the next one arrives: before it, or having
    applied it without an answer, or having answered. In its own threads, so that the race is a real one.
    """

    def __init__(self, seed: int) -> None:
        self.applied: Counter[bytes] = Counter()
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> FickleUpstream:
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        # close() alone does not wake who is in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            thread = threading.Thread(target=self._serve, args=(connection, self._random.random()))
            thread.start()
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]

    def _serve(self, connection: socket.socket, chance: float) -> None:
        with connection, contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(1 + int(chance * 4)):
                if not self._apply(connection):
                    return
                connection.sendall(OK)
            if chance < 0.3:
                self._apply(connection)
            elif chance < 0.9:
                time.sleep(chance * 0.003)
            if chance > 0.6:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def _apply(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(4096)
            if not piece:
                return False
            data += piece
        self.applied[data.split(b" ")[1]] += 1
        return True


async def patch_a_fickle_upstream(count: int, workers: int, seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    succeeded: set[bytes] = set()
    failed: set[bytes] = set()
    chance = random.Random(seed)

    async def work(numbers: Iterator[int], pool: Pool) -> None:
        for number in numbers:
            target = b"/%d" % number
            try:
                reply, body = await fetch(pool, b"PATCH", target, body=b"")
            except ConnectionTerminated as error:
                outcomes[type(error).__name__] += 1
                failed.add(target)
            else:
                assert (reply.status, body) == (200, b"ok")
                outcomes["ok"] += 1
                succeeded.add(target)
            await asyncio.sleep(chance.random() * 0.003)

    with FickleUpstream(seed) as upstream:
        pool = Pool("http", "127.0.0.1", upstream.port)
        numbers = iter(range(count))
        await asyncio.gather(*(work(numbers, pool) for _ in range(workers)))
        pool.close()
        await pool.wait_closed()

    assert len(succeeded) + len(failed) == count
    assert set(upstream.applied.values()) == {1}, "a PATCH was applied twice"
    assert succeeded <= set(upstream.applied), "a PATCH that succeeded was not applied"
    return outcomes


async def test_a_patch_into_a_closing_connection_is_applied_once_or_an_error() -> None:
    outcomes = await patch_a_fickle_upstream(400, workers=8, seed=1)
    assert outcomes["ok"] > 200
    assert outcomes["ok"] < 400


@pytest.mark.soak
async def test_ten_thousand_patches_into_closing_connections_are_applied_once_or_an_error() -> None:
    outcomes = await patch_a_fickle_upstream(10_000, workers=16, seed=2)
    print(dict(outcomes))
