"""
More than there is room for: refused at once and harmless, and those within the limits do not notice.

No test waits for a limit longer than the limit: times are bounded from above by what a busy machine may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway import app
from gateway.errors import LookupFailed
from gateway.state.lookup import LookupRequest, LookupResults, Lookups
from tests.end_to_end.test_intermediary import DOCUMENT, HEAD, PATCH, Pair, pool
from tests.proxy.test_tunnel import nobody_holds
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, gateway
from tests.support.judging import until
from tests.support.raw_upstream import OK, Peer, RawUpstream, Script, silent
from tests.support.serving import Client, connect

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n"
THE_PATCH = PATCH + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
UPLOAD = b"Content-Length: 100000\r\n\r\n{"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\n"
WRITE = b"POST %b/participants HTTP/1.1\r\nHost: h\r\n" % CONVERSATION.encode()


class Gate:
    """An upstream's script: the conversation for a GET of it, OK for all else; /held waits to be opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.reached = asyncio.Semaphore(0)
        self.documents = [DOCUMENT]

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            self.reached.release()
            if request.target == b"/held":
                await self.opened.wait()
            if request.method == b"GET" and request.target == CONVERSATION.encode():
                await peer.send(self.documents.pop(0) if len(self.documents) > 1 else self.documents[0])
            else:
                await peer.send(OK)


@asynccontextmanager
async def behind(
    script: Script, limits: dict[str, Any] | None = None, to: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Pair]:
    """`to` are settings of the section upstream."""
    async with RawUpstream(script) as upstream:
        url = f"http://127.0.0.1:{upstream.port}"
        async with (
            gateway(url, upstream={"url": url, **(to or {})}, limits=limits or {}, **changes) as running,
            connect(running.port) as client,
        ):
            yield Pair(upstream, running, client)


async def asked(client: Client, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    await client.send(data)
    return await client.reply()


async def served(port: int, data: bytes = GET) -> int:
    async with connect(port) as client:
        return (await asked(client, data))[0]


def kind(body: bytes) -> str:
    name: str = json.loads(body)["type"]
    return name.rpartition(":")[2]


def said(reply: tuple[int, dict[bytes, bytes], bytes]) -> tuple[int, str, bytes, bytes | None]:
    """Status, problem type, Proxy-Status and Retry-After."""
    status, headers, body = reply
    return status, kind(body), headers[b"proxy-status"], headers.get(b"retry-after")


def events(exchanged: Pair) -> list[tuple[str, int | None, str | None]]:
    """Of the audit log: the event, the status, and what went wrong."""
    lines = exchanged.gateway.lines()
    return [(line["event"], line.get("status"), line.get("error", line.get("reason"))) for line in lines]


FULL = (503, "pool-exhausted", b"gateway; error=connection_limit_reached", None)
BUSY = (503, "overloaded", b"gateway; error=connection_limit_reached", b"1")


async def test_past_the_calls_in_flight_every_call_is_refused_at_once_and_served_afterwards() -> None:
    gate = Gate()
    async with contextlib.AsyncExitStack() as stack:
        exchanged = await stack.enter_async_context(behind(gate, limits={"max_in_flight": 3}))
        held = [await stack.enter_async_context(connect(exchanged.gateway.port)) for _ in range(3)]
        for client in held:
            await client.send(HELD)
            await gate.reached.acquire()
        began = asyncio.get_running_loop().time()
        for data in (GET, THE_PATCH, GET, WRITE + b"Content-Length: 2\r\n\r\n{}"):
            assert said(await asked(exchanged.client, data)) == BUSY
        assert asyncio.get_running_loop().time() - began < 2
        assert len(exchanged.requests) == 3
        assert not exchanged.gateway.audit.exists()
        gate.opened.set()
        assert [(await client.reply())[0] for client in held] == [200] * 3
        for data in (GET, THE_PATCH):
            assert (await asked(exchanged.client, data))[0] == 200
        assert exchanged.gateway.gateway.stats.refused["overloaded"] == 4


async def test_past_the_connections_a_client_is_turned_away_with_a_word_and_served_afterwards() -> None:
    async with contextlib.AsyncExitStack() as stack:
        exchanged = await stack.enter_async_context(behind(Gate(), limits={"max_connections": 3}))
        port = exchanged.gateway.port
        other = await stack.enter_async_context(connect(port))
        async with connect(port) as third:
            for client in (exchanged.client, other, third):
                assert (await asked(client, GET))[0] == 200
            for data in (GET, THE_PATCH):
                async with connect(port) as turned_away:
                    await turned_away.send(data)
                    assert said(await turned_away.reply()) == BUSY
                    assert await turned_away.rest() == b""
        assert len(exchanged.requests) == 3
        async with asyncio.timeout(5):
            while await served(port, LAST) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await asked(exchanged.client, THE_PATCH))[0] == 200


@asynccontextmanager
async def dripping(port: int, count: int, first: bytes, drop: bytes) -> AsyncIterator[list[Client]]:
    """Clients that send a beginning, and then a drop now and then."""

    async def drip(client: Client) -> None:
        with contextlib.suppress(ConnectionError):
            await client.send(first)
            while True:
                await client.send(drop)
                await asyncio.sleep(0.02)

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(port)) for _ in range(count)]
        tasks = [asyncio.create_task(drip(client)) for client in clients]
        try:
            await asyncio.sleep(0)
            yield clients
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_slow_heads_are_cut_off_and_disturb_nobody() -> None:
    limits = {"head_timeout": "500ms", "max_in_flight": 4}
    async with (
        behind(Gate(), limits=limits, to={"max_connections": 2}) as exchanged,
        dripping(exchanged.gateway.port, 60, b"GET / HTTP/1.1\r\nHost: h\r\n", b"X: y\r\n") as slow,
    ):
        for _ in range(20):
            assert await served(exchanged.gateway.port) == 200
            assert (await asked(exchanged.client, THE_PATCH))[0] == 200
        for client in slow:
            status, headers, body = await client.reply()
            assert (status, kind(body), headers[b"connection"]) == (408, "head-timeout", b"close")
        assert all(b"x: y" not in request.raw for request in exchanged.requests)


async def test_silent_connections_are_closed_and_disturb_nobody() -> None:
    limits = {"head_timeout": "1s", "keep_alive": "300ms"}
    async with behind(Gate(), limits=limits) as exchanged, contextlib.AsyncExitStack() as stack:
        port = exchanged.gateway.port
        clients = []
        for number in range(40):
            clients.append(await stack.enter_async_context(connect(port)))
            if number % 2:
                assert (await asked(clients[-1], GET))[0] == 200
        for _ in range(10):
            assert await served(port) == 200
        assert [await client.rest() for client in clients] == [b""] * 40


@pytest.mark.parametrize(
    "first",
    [
        PATCH + UPLOAD,
        POST + UPLOAD,
    ],
    ids=["matched", "passed through"],
)
async def test_bodies_that_stop_are_cut_off(first: bytes) -> None:
    async with (
        behind(Gate(), limits={"body_timeout": "200ms"}) as exchanged,
        contextlib.AsyncExitStack() as stack,
    ):
        port = exchanged.gateway.port
        slow = [await stack.enter_async_context(connect(port)) for _ in range(20)]
        for client in slow:
            await client.send(first)
        for _ in range(10):
            assert await served(port) == 200
        for client in slow:
            status, headers, body = await client.reply()
            assert (status, kind(body), headers[b"connection"]) == (408, "body-timeout", b"close")
        assert all(request.method == b"GET" for request in exchanged.requests)
        assert pool(exchanged.gateway).size == pool(exchanged.gateway).idle


async def test_slow_bodies_of_matched_calls_take_no_connection_to_the_upstream() -> None:
    async with (
        behind(Gate(), to={"max_connections": 2}) as exchanged,
        dripping(exchanged.gateway.port, 20, PATCH + UPLOAD, b" "),
    ):
        for _ in range(10):
            assert await served(exchanged.gateway.port) == 200
            assert (await asked(exchanged.client, THE_PATCH))[0] == 200


async def test_a_slow_body_does_not_hold_up_its_conversation() -> None:
    async with (
        behind(Gate(), limits={"lock_timeout": "300ms"}) as exchanged,
        dripping(exchanged.gateway.port, 3, WRITE + UPLOAD, b" "),
    ):
        for _ in range(10):
            assert (await asked(exchanged.client, THE_PATCH))[0] == 200


async def test_slow_bodies_that_are_passed_through_disturb_nobody() -> None:
    first = POST + UPLOAD
    async with (
        behind(Gate(), to={"max_connections": 2, "pool_timeout": "200ms"}) as exchanged,
        dripping(exchanged.gateway.port, 20, first, b" "),
    ):
        for _ in range(10):
            assert await served(exchanged.gateway.port) == 200


async def test_slow_bodies_leave_room_in_flight() -> None:
    async with (
        behind(Gate(), limits={"max_in_flight": 10}) as exchanged,
        dripping(exchanged.gateway.port, 20, PATCH + UPLOAD, b" "),
    ):
        for _ in range(10):
            assert await served(exchanged.gateway.port) == 200


LARGE = b"Content-Length: 1000000\r\n\r\n" + b"x" * 70_000
READ = b"GET %b HTTP/1.1\r\nHost: h\r\n" % CONVERSATION.encode()


@pytest.mark.parametrize("head", [POST, READ, WRITE], ids=["a call", "a reading", "a writing"])
async def test_streamed_bodies_hold_half_the_connections_and_no_more(head: bytes) -> None:
    async with (
        behind(
            Gate(),
            limits={"max_body": "64KiB"},
            to={"max_connections": 4, "pool_timeout": "200ms"},
        ) as exchanged,
        dripping(exchanged.gateway.port, 10, head + LARGE, b"x") as slow,
    ):
        port = exchanged.gateway.port
        replies = [asyncio.create_task(client.reply()) for client in slow]
        while sum(reply.done() for reply in replies) < 8:
            assert await served(port) == 200
        assert [said(reply.result()) for reply in replies if reply.done()] == [FULL] * 8
        for _ in range(10):
            assert await served(port) == 200
        assert {(request.method, request.target) for request in exchanged.requests} == {(b"GET", b"/x")}
        for reply in replies:
            reply.cancel()
        await asyncio.wait(replies)


async def test_a_streamed_body_takes_the_place_of_one_that_ended() -> None:
    async with (
        behind(Gate(), to={"max_connections": 2, "pool_timeout": "5s"}) as exchanged,
        connect(exchanged.gateway.port) as first,
    ):
        for client in (first, exchanged.client):
            await client.send(POST + LARGE)
        assert await served(exchanged.gateway.port) == 200
        await first.send(b"x" * 930_000)
        assert (await first.reply())[0] == 200
        await first.send(POST + LARGE)
        first.reset()
        await exchanged.client.send(b"x" * 930_000)
        assert (await exchanged.client.reply())[0] == 200
        assert (await asked(exchanged.client, POST + LARGE + b"x" * 930_000))[0] == 200
        await until(lambda: pool(exchanged.gateway).size == pool(exchanged.gateway).idle)


@pytest.mark.parametrize(
    ("head", "opened"), [(PATCH, 0), (POST, 0), (WRITE, 0), (POST + b"X-Large: 1\r\n", 2)]
)
async def test_bodies_below_the_least_rate_are_cut_off(head: bytes, opened: int) -> None:
    first = head + (LARGE if opened else UPLOAD)
    async with (
        behind(
            Gate(),
            limits={"min_rate": 5000},
            to={"max_connections": 4, "pool_timeout": "50ms"},
            rate_window=0.3,
        ) as exchanged,
        dripping(exchanged.gateway.port, 6, first, b"x") as slow,
    ):
        found = [await client.reply() for client in slow]
        kinds = [(status, kind(body)) for status, _, body in found]
        assert sorted(kinds) == [(408, "body-timeout")] * (opened or 6) + [(503, "pool-exhausted")] * (
            6 - (opened or 6)
        )
        assert any(b"limits.min_rate" in body for _, _, body in found)
        assert exchanged.gateway.gateway.stats.refused["body-timeout"] >= (opened or 6)
        await until(lambda: pool(exchanged.gateway).size == pool(exchanged.gateway).idle)
        assert exchanged.gateway.gateway.stats.awaiting == 0


async def test_readers_below_the_least_rate_are_cut_off_and_free_their_connections() -> None:
    large = HEAD + b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000

    async def upstream(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(large if request.target == b"/large" else OK)

    async def sip(client: Client) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await client.exactly(100)
                await asyncio.sleep(0.02)

    async with (
        behind(upstream, {"min_rate": "1MB"}, {"max_connections": 12}, rate_window=0.3) as exchanged,
        contextlib.AsyncExitStack() as stack,
    ):
        port = exchanged.gateway.port
        tasks = []
        for _ in range(6):
            client = await stack.enter_async_context(connect(port, buffer=4096, limit=4096))
            await client.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
            tasks.append(asyncio.create_task(sip(client)))
        while exchanged.gateway.gateway.stats.aborted["write-rate"] < 6:
            assert await served(port) == 200
        await until(lambda: pool(exchanged.gateway).size == pool(exchanged.gateway).idle)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_readers_that_take_nothing_are_cut_off_and_disturb_nobody() -> None:
    large = HEAD + b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000

    async def upstream(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(large if request.target == b"/large" else OK)

    limits = {"write_timeout": "300ms"}
    async with (
        behind(upstream, limits=limits, to={"max_connections": 20}) as exchanged,
        contextlib.AsyncExitStack() as stack,
    ):
        port = exchanged.gateway.port
        slow = [await stack.enter_async_context(connect(port, buffer=4096)) for _ in range(10)]
        for client in slow:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        for _ in range(20):
            assert await served(port) == 200
        await until(lambda: exchanged.gateway.gateway.stats.aborted["write-timeout"] == 10)
        assert await served(port) == 200
        await until(lambda: pool(exchanged.gateway).size == pool(exchanged.gateway).idle)


# The times of one call.

LATE = (504, "deadline-exceeded", b"gateway; error=http_response_timeout", None)


@pytest.mark.parametrize(("stuck", "error"), [(b"GET", "read-timeout"), (b"PATCH", "deadline-exceeded")])
async def test_a_call_past_its_deadline_is_504_never_to_be_replayed_and_recorded(
    stuck: bytes, error: str
) -> None:
    """A look-up may take half of it."""

    async def upstream(peer: Peer) -> None:
        while (await peer.request()).method != stuck:
            await peer.send(DOCUMENT)
        await peer.gone()

    limits, to = {"deadline": "800ms"}, {"read_timeout": "1s"}
    async with behind(upstream, limits, to) as exchanged:
        assert said(await asked(exchanged.client, THE_PATCH)) == (504, error, *LATE[2:])
        sent = stuck == b"PATCH"
        before = ("rewrite", None, None) if sent else ("reject", None, error)
        assert events(exchanged) == [before, ("outcome", 504, error)]
        methods = [request.method for request in exchanged.requests]
        assert methods == ([b"GET", b"PATCH"] if sent else [b"GET"])
        # A look-up belongs to no call: it ends with the upstream's read timeout, not with who asked first.
        await nobody_holds(exchanged.gateway)


async def test_a_body_that_takes_too_long_ends_at_the_deadline_too() -> None:
    async with (
        behind(Gate(), limits={"deadline": "200ms"}) as exchanged,
        dripping(exchanged.gateway.port, 3, PATCH + UPLOAD, b" ") as slow,
    ):
        for client in slow:
            assert said(await client.reply()) == LATE
        assert exchanged.requests == []


async def test_a_call_that_waits_too_long_for_its_turn_is_503_and_nothing_was_sent() -> None:
    gate = Gate()
    held = PARTICIPANT.encode() + b"/held"

    async def upstream(peer: Peer) -> None:
        request = await peer.request()
        gate.reached.release()
        if request.target == held:
            await gate.opened.wait()
        await peer.send(DOCUMENT if request.method == b"GET" else OK)

    async with (
        behind(upstream, limits={"lock_timeout": "150ms"}) as exchanged,
        connect(exchanged.gateway.port) as first,
    ):
        await first.send(b"DELETE %b HTTP/1.1\r\nHost: h\r\n\r\n" % held)
        await gate.reached.acquire()
        status, headers, body = await asked(exchanged.client, THE_PATCH)
        assert (status, kind(body)) == (503, "lock-timeout")
        assert b"proxy-status" in headers
        assert [request.method for request in exchanged.requests] == [b"DELETE"]
        assert events(exchanged) == [("reject", None, "lock-timeout"), ("outcome", 503, "lock-timeout")]
        # A write that is passed through waits its turn as well.
        status, _, body = await asked(exchanged.client, WRITE + b"Content-Length: 2\r\n\r\n{}")
        assert (status, kind(body)) == (503, "lock-timeout")
        gate.opened.set()
        assert (await first.reply())[0] == 200
        assert (await asked(exchanged.client, THE_PATCH))[0] == 200


async def test_a_call_that_finds_no_connection_in_time_is_503_and_nothing_was_sent() -> None:
    gate = Gate()
    to = {"max_connections": 1, "pool_timeout": "150ms"}
    async with (
        behind(gate, to=to, fill={"max_age": "60s"}) as exchanged,
        connect(exchanged.gateway.port) as holding,
    ):
        assert (await asked(exchanged.client, THE_PATCH))[0] == 200
        await holding.send(HELD)
        for _ in range(3):
            await gate.reached.acquire()
        for data in (GET, THE_PATCH):  # the PATCH is filled from the cache, so it is itself what waits
            assert said(await asked(exchanged.client, data))[:3] == FULL[:3]
        assert [request.method for request in exchanged.requests] == [b"GET", b"PATCH", b"GET"]
        assert [line["event"] for line in exchanged.gateway.lines()] == [
            "rewrite",
            "outcome",
            "reject",
            "outcome",
        ]
        gate.opened.set()
        assert (await holding.reply())[0] == 200
        assert (await asked(exchanged.client, THE_PATCH))[0] == 200


async def test_a_value_that_got_too_old_in_the_queue_for_a_connection_is_looked_up_again() -> None:
    gate = Gate()
    alerting = DOCUMENT.replace(b'"connected"', b'"active"   ')
    gate.documents = [DOCUMENT, alerting]
    now = 100.0
    async with (
        behind(gate, to={"max_connections": 1}, fill={"max_age": "1s"}, clock=lambda: now) as exchanged,
        connect(exchanged.gateway.port) as holding,
    ):
        assert (await asked(exchanged.client, THE_PATCH))[0] == 200
        await holding.send(HELD)
        for _ in range(3):
            await gate.reached.acquire()
        now += 0.5
        await exchanged.client.send(THE_PATCH)
        await until(lambda: pool(exchanged.gateway).waiting)
        now += 0.6
        gate.opened.set()
        assert (await exchanged.client.reply())[0] == 200
        seen = [(request.method, request.target.rpartition(b"/")[2]) for request in exchanged.requests]
        assert seen == [
            (b"GET", b"c1"),
            (b"PATCH", b"p1"),
            (b"GET", b"held"),
            (b"GET", b"c1"),
            (b"PATCH", b"p1"),
        ]
        assert exchanged.requests[1].body == FILLED
        assert exchanged.requests[4].body == FILLED.replace(b"connected", b"active")
        rewrites = exchanged.gateway.lines("rewrite")
        assert len(rewrites) == 2
        assert [
            change["age_ms"] for line in rewrites for change in line["changes"] if change["repair"] == "fill"
        ] == [0, 0]


async def test_an_upstream_that_says_nothing_costs_a_call_its_read_timeout() -> None:
    async with behind(silent, to={"read_timeout": "150ms"}) as exchanged:
        status, headers, _ = await asked(exchanged.client, GET)
        assert (status, b"retry-after" in headers) == (504, False)
        assert pool(exchanged.gateway).size == 0


async def test_readers_that_stall_hold_half_the_connections_and_the_longest_makes_room() -> None:
    large = HEAD + b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000

    async def upstream(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(large if request.target == b"/large" else OK)

    async with (
        behind(upstream, to={"max_connections": 4, "pool_timeout": "5s"}) as exchanged,
        contextlib.AsyncExitStack() as stack,
    ):
        stats = exchanged.gateway.gateway.stats
        for number in range(6):
            client = await stack.enter_async_context(connect(exchanged.gateway.port, buffer=4096, limit=4096))
            await client.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
            while stats.aborted["stalled"] + len(stats.stalled) <= number:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            assert await served(exchanged.gateway.port) == 200
        await until(lambda: (stats.aborted["stalled"], len(stats.stalled)) == (4, 2))


async def test_calls_that_wait_for_their_bodies_are_bounded_too() -> None:
    async with (
        behind(Gate(), limits={"max_in_flight": 2}) as exchanged,
        dripping(exchanged.gateway.port, 12, PATCH + UPLOAD, b" ") as slow,
    ):
        replies = [asyncio.create_task(client.reply()) for client in slow]
        done, others = await asyncio.wait(replies, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert {said(reply.result()) for reply in done} == {BUSY}
        for reply in others:
            reply.cancel()
        await asyncio.wait(replies)


async def test_a_chunked_body_over_the_limit_is_413_also_when_it_comes_at_once() -> None:
    async with behind(Gate(), limits={"max_body": "1KiB"}) as exchanged:
        body = b"7d0\r\n" + b" " * 2000 + b"\r\n0\r\n\r\n"
        found = await asked(exchanged.client, PATCH + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        assert (found[0], kind(found[2])) == (413, "body-too-large")


class Failing(Lookups):
    def try_cached(self, requests: Sequence[LookupRequest]) -> LookupResults | None:
        raise LookupFailed("it cannot be read")


async def test_a_look_up_that_fails_at_once_holds_no_turn() -> None:
    async with behind(Gate(), parts=replace(app.PARTS, lookups=Failing)) as exchanged:
        assert (await asked(exchanged.client, THE_PATCH))[0] == 502
        assert len(exchanged.gateway.gateway.locks) == 0
