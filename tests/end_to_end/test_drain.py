"""
The graceful stop under load: every request that was accepted is answered, and the process ends in time.

test_kill.py has the stop of one call, and what the second signal does.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway import app
from gateway.process import lifetime
from gateway.proxy.passthrough import MAX_READ_AHEAD
from gateway.server.connection import GRACE
from tests.support.audit_lines import audit_lines
from tests.support.calls import DOCUMENT, GET, OK_HEAD, PATCH, SWITCHING, UPGRADE
from tests.support.gateways import settings
from tests.support.processes import gateway_process
from tests.support.raw_upstream import OK, Peer, RawUpstream, Script, answering
from tests.support.serving import connect
from tests.support.waiting import until


async def test_a_stop_under_load_fails_no_request_that_was_let_in(tmp_path: Path) -> None:
    """F10, X19. Twenty clients keep their connections, and send nothing more after `Connection: close`."""

    async def upstream(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await asyncio.sleep(0.005)
            await peer.send(DOCUMENT if request.method == b"GET" else OK)

    outcomes: Counter[str] = Counter()

    async def client(port: int, number: int) -> None:
        clock = asyncio.get_running_loop().time
        sent = clock()
        async with connect(port, patience=20) as connection:
            for turn in range(100_000):
                before, sent = sent, clock()
                await connection.send(GET if (number + turn) % 3 else PATCH)
                try:
                    status, headers, _ = await connection.reply()
                except (OSError, asyncio.IncompleteReadError):
                    # On a busy machine a client may send after the grace: its connection is closed by then.
                    outcomes["late" if sent - before > GRACE / 2 else "lost"] += 1
                    return
                outcomes[f"{status}"] += 1
                if headers.get(b"connection") == b"close":
                    outcomes["told"] += 1
                    return

    async with RawUpstream(upstream) as served, gateway_process(tmp_path, served.url) as gateway:
        clients = [asyncio.create_task(client(gateway.port, number)) for number in range(20)]
        await until(lambda: outcomes["200"] > 200, 20)
        loop = asyncio.get_running_loop()
        began = loop.time()
        gateway.process.signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await asyncio.gather(*clients)
        assert await gateway.process.exit() == 0
        assert loop.time() - began < 20  # and the drain timeout is 30
    assert outcomes["told"] + outcomes["late"] == 20
    assert outcomes["told"] > 0
    assert set(outcomes) <= {"200", "told", "late"}
    events = Counter(line["event"] for line in audit_lines(gateway.audit))
    patches = [request for request in served.requests if request.method == b"PATCH"]
    assert events["rewrite"] == events["outcome"] == len(patches)
    assert "Traceback" not in gateway.process.said


async def test_readiness_turns_before_the_first_client_is_refused(tmp_path: Path) -> None:
    held = asyncio.Event()

    async def upstream(peer: Peer) -> None:
        await peer.request()
        await held.wait()
        await peer.send(OK)

    async with (
        RawUpstream(upstream) as served,
        gateway_process(tmp_path, served.url) as gateway,
        gateway.admin() as admin,
        connect(gateway.port) as client,
    ):
        await client.send(GET)
        await until(lambda: served.requests)
        gateway.process.signal(signal.SIGTERM)
        seen: list[tuple[int, bool]] = []
        async with asyncio.timeout(20):
            while not seen or seen[-1] != (503, False):
                accepting = True
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                    writer.close()
                except (ConnectionRefusedError, ConnectionResetError):
                    accepting = False
                seen.append(((await admin.get("/readyz")).status_code, accepting))
        assert (200, False) not in seen
        assert (await admin.get("/healthz")).status_code == 200
        held.set()
        assert (await client.reply())[0] == 200
        client.writer.close()
        assert await gateway.process.exit() == 0


@pytest.mark.parametrize("what", ["a call", "a tunnel", "a download"])
async def test_what_does_not_end_is_cut_off_at_the_drain_timeout(tmp_path: Path, what: str) -> None:
    async def upstream(peer: Peer) -> None:
        request = await peer.request()
        if request.method == b"GET" and request.target.endswith(b"/c1"):
            await peer.send(DOCUMENT)
            await peer.request()
        elif what == "a tunnel":
            await peer.send(SWITCHING)
        elif what == "a download":
            await peer.send(OK_HEAD + b"Content-Length: 100\r\n\r\nabc")
        await peer.gone()

    async with (
        RawUpstream(upstream) as served,
        gateway_process(tmp_path, served.url, limits={"drain_timeout": "1s"}) as gateway,
        connect(gateway.port) as client,
    ):
        await client.send({"a call": PATCH, "a tunnel": UPGRADE, "a download": GET}[what])
        await until(lambda: len(served.requests) == (2 if what == "a call" else 1))
        loop = asyncio.get_running_loop()
        began = loop.time()
        gateway.process.signal(signal.SIGTERM)
        try:
            raw = await client.rest()
        except ConnectionResetError:
            raw = b""
        assert await gateway.process.exit() == 0
        assert 0.9 < loop.time() - began < 10
        # Never a reply that looks whole.
        assert raw == b"" or b"\r\n\r\nabc" in raw or raw.startswith(b"HTTP/1.1 101 ")
        assert b"connection: close\r\ncontent-length" not in raw
        assert "Traceback" not in gateway.process.said
    if what == "a call":
        lines = audit_lines(gateway.audit)
        assert [(line["event"], line.get("status"), line.get("error")) for line in lines] == [
            ("config", None, None),
            ("rewrite", None, None),
            ("outcome", None, "cancelled"),
        ]


Stop = Callable[[], asyncio.Task[None]]


@asynccontextmanager
async def stopping(tmp_path: Path, script: Script) -> AsyncIterator[tuple[int, RawUpstream, Stop]]:
    """A gateway in the test's own loop: its port, and what begins the stop, a task that ends with it."""
    async with RawUpstream(script) as upstream:
        audit = str(tmp_path / "rewrites.jsonl")
        chosen = settings(upstream.url, audit, listen={"port": 0}, admin={"port": 0})
        context = lifetime.running(chosen, app.build(chosen))
        listening = await context.__aenter__()

        async def stop() -> None:
            await context.__aexit__(None, None, None)

        tasks: list[asyncio.Task[None]] = []

        def begin() -> asyncio.Task[None]:
            tasks.append(asyncio.create_task(stop()))
            return tasks[0]

        # The listener is bound at once, and served a moment later.
        async with connect(listening.port) as client:
            await client.send(b"*\r\n\r\n")
            await client.rest()
        yield listening.port, upstream, begin
        await (tasks[0] if tasks else begin())


async def refusing(port: int) -> None:
    """Returns when the server accepts no more connections: it looks ten times a second if it is to stop."""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await asyncio.sleep(0.01)


async def test_idle_connections_do_not_put_off_the_end(tmp_path: Path) -> None:
    async with stopping(tmp_path, answering(OK)) as (port, _, begin), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(port)) for _ in range(20)]
        for client in clients[:10]:
            await client.send(GET)
            await client.reply()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await begin()
        assert loop.time() - began < 10  # and the drain timeout is 30
        assert [await client.rest() for client in clients] == [b""] * 20


async def test_bodies_under_way_are_finished_in_both_directions(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def upstream(peer: Peer) -> None:
        if (await peer.head()).startswith(b"GET"):
            await peer.send(OK_HEAD + b"Content-Length: 6\r\n\r\nabc")
            await go_on.wait()
            await peer.send(b"def")
        else:
            while not peer.received.endswith(b"abcdef"):
                await peer.read()
            await peer.send(OK)

    async with (
        stopping(tmp_path, upstream) as (port, served, begin),
        connect(port) as down,
        connect(port) as up,
    ):
        await down.send(GET)
        assert b"content-length: 6\r\n" in await down.head()
        # So much that it is sent on at once.
        first = b"x" * MAX_READ_AHEAD + b"abc"
        await up.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (len(first) + 3) + first)
        await until(lambda: sum(peer.received.endswith(b"abc") for peer in served.peers) == 1, 10)
        stop = begin()
        await refusing(port)
        go_on.set()
        assert await down.exactly(6) == b"abcdef"
        await up.send(b"def")
        status, headers, _ = await up.reply()
        assert (status, headers[b"connection"]) == (200, b"close")
        down.writer.close()
        up.writer.close()
        await stop


async def test_a_request_that_comes_as_the_stop_begins_is_served_and_is_the_last(tmp_path: Path) -> None:
    async with stopping(tmp_path, answering(OK)) as (port, _, begin), connect(port) as client:
        await client.send(GET)
        await client.reply()
        stop = begin()
        for _ in range(1000):
            await client.send(GET)
            status, headers, _ = await client.reply()
            assert status == 200
            if b"connection" in headers:
                break
            await asyncio.sleep(0.005)
        assert headers[b"connection"] == b"close"
        assert await client.rest() == b""
        client.writer.close()
        await stop
