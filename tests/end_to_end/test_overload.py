"""
Calls, connections and bodies past a limit are refused at once or cut off, and disturb no other call.

No test waits for a limit longer than the limit: times are bounded from above by what a busy machine may take.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway import backend
from gateway.errors import LookupFailed
from gateway.state.lookup import Lookups
from gateway.state.lookup_results import LookupRequest, LookupResults
from gateway.state.store import View
from tests.support.calls import DOCUMENT, GET, OK_HEAD, PATCH, PATCH_HEAD, POST_HEAD
from tests.support.gateways import CONVERSATION, FILLED, PARTICIPANT, Proxied, proxied
from tests.support.judging import Refusal, refusal
from tests.support.raw_upstream import OK, Peer, silent
from tests.support.serving import Client, Reply, connect
from tests.support.waiting import PATIENCE, until

LAST = b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n"
UPLOAD = b"Content-Length: 100000\r\n\r\n{"
WRITE = b"POST %b/participants HTTP/1.1\r\nHost: h\r\n" % CONVERSATION.encode()


class Gate:
    """A script: the document for a GET of the conversation, OK for all else. /held waits for `opened`."""

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


async def asked(client: Client, data: bytes) -> Reply:
    await client.send(data)
    return await client.reply()


async def served(port: int, data: bytes = GET) -> int:
    async with connect(port) as client:
        return (await asked(client, data))[0]


def assert_timed_out(reply: Reply, kind: str) -> None:
    assert refusal(reply)[:2] == (408, kind)
    assert reply.headers[b"connection"] == b"close"


def events(chain: Proxied) -> list[tuple[str, int | None, str | None]]:
    """Of the audit log: the event, the status, and what went wrong."""
    lines = chain.running.lines()
    return [(line["event"], line.get("status"), line.get("error", line.get("reason"))) for line in lines]


FULL = Refusal(503, "pool-exhausted", "connection_limit_reached", "1")
BUSY = Refusal(503, "overloaded", "connection_limit_reached", "1")


async def test_past_the_calls_in_flight_every_call_is_refused_at_once_and_served_afterwards() -> None:
    gate = Gate()
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(proxied(gate, limits={"max_in_flight": 3}))
        held = [await stack.enter_async_context(connect(chain.running.port)) for _ in range(3)]
        for client in held:
            await client.send(HELD)
            await gate.reached.acquire()
        began = asyncio.get_running_loop().time()
        for data in (GET, PATCH, GET, WRITE + b"Content-Length: 2\r\n\r\n{}"):
            assert refusal(await asked(chain.client, data)) == BUSY
        assert asyncio.get_running_loop().time() - began < 2
        assert len(chain.requests) == 3
        assert not chain.running.audit.exists()
        gate.opened.set()
        assert [(await client.reply())[0] for client in held] == [200] * 3
        for data in (GET, PATCH):
            assert (await asked(chain.client, data))[0] == 200
        assert chain.running.gateway.stats.refused["overloaded"] == 4


async def test_past_the_connections_a_client_is_turned_away_with_a_word_and_served_afterwards() -> None:
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(proxied(Gate(), limits={"max_connections": 3}))
        port = chain.running.port
        other = await stack.enter_async_context(connect(port))
        async with connect(port) as third:
            for client in (chain.client, other, third):
                assert (await asked(client, GET))[0] == 200
            for data in (GET, PATCH):
                async with connect(port) as turned_away:
                    await turned_away.send(data)
                    assert refusal(await turned_away.reply()) == BUSY
                    assert await turned_away.rest() == b""
        assert len(chain.requests) == 3
        async with asyncio.timeout(PATIENCE):
            while await served(port, LAST) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await asked(chain.client, PATCH))[0] == 200


@asynccontextmanager
async def dripping(port: int, count: int, first: bytes, drop: bytes) -> AsyncIterator[list[Client]]:
    """Clients that send `first`, and then `drop` fifty times a second."""

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
        proxied(Gate(), limits=limits, to={"max_connections": 2}) as chain,
        dripping(chain.running.port, 60, b"GET / HTTP/1.1\r\nHost: h\r\n", b"X: y\r\n") as slow,
    ):
        for _ in range(20):
            assert await served(chain.running.port) == 200
            assert (await asked(chain.client, PATCH))[0] == 200
        for client in slow:
            assert_timed_out(await client.reply(), "head-timeout")
        assert all(b"x: y" not in request.raw for request in chain.requests)


async def test_silent_connections_are_closed_and_disturb_nobody() -> None:
    limits = {"head_timeout": "1s", "keep_alive": "300ms"}
    async with proxied(Gate(), limits=limits) as chain, contextlib.AsyncExitStack() as stack:
        port = chain.running.port
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
        PATCH_HEAD + UPLOAD,
        POST_HEAD + UPLOAD,
    ],
    ids=["matched", "passed through"],
)
async def test_bodies_that_stop_are_cut_off(first: bytes) -> None:
    async with (
        proxied(Gate(), limits={"body_timeout": "200ms"}) as chain,
        contextlib.AsyncExitStack() as stack,
    ):
        port = chain.running.port
        slow = [await stack.enter_async_context(connect(port)) for _ in range(20)]
        for client in slow:
            await client.send(first)
        for _ in range(10):
            assert await served(port) == 200
        for client in slow:
            assert_timed_out(await client.reply(), "body-timeout")
        assert all(request.method == b"GET" for request in chain.requests)
        assert chain.running.pool.size == chain.running.pool.idle


async def test_slow_bodies_of_matched_calls_take_no_connection_to_the_upstream() -> None:
    async with (
        proxied(Gate(), to={"max_connections": 2}) as chain,
        dripping(chain.running.port, 20, PATCH_HEAD + UPLOAD, b" "),
    ):
        for _ in range(10):
            assert await served(chain.running.port) == 200
            assert (await asked(chain.client, PATCH))[0] == 200


async def test_a_slow_body_does_not_hold_up_its_conversation() -> None:
    async with (
        proxied(Gate(), limits={"lock_timeout": "300ms"}) as chain,
        dripping(chain.running.port, 3, WRITE + UPLOAD, b" "),
    ):
        for _ in range(10):
            assert (await asked(chain.client, PATCH))[0] == 200


async def test_slow_bodies_that_are_passed_through_disturb_nobody() -> None:
    first = POST_HEAD + UPLOAD
    async with (
        proxied(Gate(), to={"max_connections": 2, "pool_timeout": "200ms"}) as chain,
        dripping(chain.running.port, 20, first, b" "),
    ):
        for _ in range(10):
            assert await served(chain.running.port) == 200


async def test_slow_bodies_leave_room_in_flight() -> None:
    async with (
        proxied(Gate(), limits={"max_in_flight": 10}) as chain,
        dripping(chain.running.port, 20, PATCH_HEAD + UPLOAD, b" "),
    ):
        for _ in range(10):
            assert await served(chain.running.port) == 200


LARGE = b"Content-Length: 1000000\r\n\r\n" + b"x" * 70_000
READ = b"GET %b HTTP/1.1\r\nHost: h\r\n" % CONVERSATION.encode()


@pytest.mark.parametrize("head", [POST_HEAD, READ], ids=["a call", "a reading"])
async def test_streamed_bodies_hold_half_the_connections_and_no_more(head: bytes) -> None:
    async with (
        proxied(
            Gate(),
            limits={"max_body": "64KiB"},
            to={"max_connections": 4, "pool_timeout": "200ms"},
        ) as chain,
        dripping(chain.running.port, 5, head + LARGE, b"x") as slow,
        dripping(chain.running.port, 5, head + b"Authorization: other\r\n" + LARGE, b"x") as others,
    ):
        port = chain.running.port
        replies = [asyncio.create_task(client.reply()) for client in [*slow, *others]]
        while sum(reply.done() for reply in replies) < 8:
            assert await served(port) == 200
        assert [refusal(reply.result()) for reply in replies if reply.done()] == [FULL] * 8
        for _ in range(10):
            assert await served(port) == 200
        assert {(request.method, request.target) for request in chain.requests} == {(b"GET", b"/x")}
        for reply in replies:
            reply.cancel()
        await asyncio.wait(replies)


async def test_one_caller_streams_a_share_of_the_bodies_and_another_is_served_beside_it() -> None:
    to = {"max_connections": 8, "pool_timeout": "200ms"}
    async with (
        proxied(Gate(), to=to) as chain,
        dripping(chain.running.port, 3, POST_HEAD + b"Authorization: one\r\n" + LARGE, b"x") as slow,
    ):
        replies = [asyncio.create_task(client.reply()) for client in slow]
        await until(lambda: sum(reply.done() for reply in replies) == 2)
        assert [refusal(reply.result()) for reply in replies if reply.done()] == [FULL] * 2
        for _ in range(3):
            assert (await asked(chain.client, POST_HEAD + LARGE + b"x" * 930_000))[0] == 200
        for reply in replies:
            reply.cancel()
        await asyncio.wait(replies)


async def test_a_streamed_body_takes_the_place_of_one_that_ended() -> None:
    async with (
        proxied(Gate(), to={"max_connections": 2, "pool_timeout": "5s"}) as chain,
        connect(chain.running.port) as first,
    ):
        for client in (first, chain.client):
            await client.send(POST_HEAD + LARGE)
        assert await served(chain.running.port) == 200
        await first.send(b"x" * 930_000)
        assert (await first.reply())[0] == 200
        await first.send(POST_HEAD + LARGE)
        first.reset()
        await chain.client.send(b"x" * 930_000)
        assert (await chain.client.reply())[0] == 200
        assert (await asked(chain.client, POST_HEAD + LARGE + b"x" * 930_000))[0] == 200
        await until(lambda: chain.running.pool.size == chain.running.pool.idle)


@pytest.mark.parametrize(
    ("head", "opened"), [(PATCH_HEAD, 0), (POST_HEAD, 0), (WRITE, 0), (POST_HEAD + b"X-Large: 1\r\n", 2)]
)
async def test_bodies_below_the_least_rate_are_cut_off(head: bytes, opened: int) -> None:
    first = head + (LARGE if opened else UPLOAD)
    async with (
        proxied(
            Gate(),
            limits={"min_rate": 5000},
            to={"max_connections": 16, "pool_timeout": "50ms"},
            rate_window=0.3,
        ) as chain,
        dripping(chain.running.port, 6, first, b"x") as slow,
    ):
        found = [await client.reply() for client in slow]
        too_slow = opened or 6
        kinds = ["body-timeout"] * too_slow + ["pool-exhausted"] * (6 - too_slow)
        assert sorted(refusal(reply).kind for reply in found) == kinds
        assert any(b"limits.min_rate" in body for _, _, body in found)
        assert chain.running.gateway.stats.refused["body-timeout"] >= too_slow
        await until(lambda: chain.running.pool.size == chain.running.pool.idle)
        assert chain.running.gateway.stats.awaiting == 0


READ_LARGE = b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n"
LARGE_REPLY = OK_HEAD + b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000


async def large_replies(peer: Peer) -> None:
    while True:
        request = await peer.request()
        await peer.send(LARGE_REPLY if request.target == b"/large" else OK)


async def test_readers_below_the_least_rate_are_cut_off_and_free_their_connections() -> None:
    async def sip(client: Client) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await client.exactly(100)
                await asyncio.sleep(0.02)

    async with (
        proxied(
            large_replies, limits={"min_rate": "1MB"}, to={"max_connections": 12}, rate_window=0.3
        ) as chain,
        contextlib.AsyncExitStack() as stack,
    ):
        port = chain.running.port
        tasks = []
        for _ in range(6):
            client = await stack.enter_async_context(connect(port, buffer=4096, limit=4096))
            await client.send(READ_LARGE)
            tasks.append(asyncio.create_task(sip(client)))
        while chain.running.gateway.stats.aborted["write-rate"] < 6:
            assert await served(port) == 200
        await until(lambda: chain.running.pool.size == chain.running.pool.idle)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_readers_that_take_nothing_are_cut_off_and_disturb_nobody() -> None:
    limits = {"write_timeout": "300ms"}
    async with (
        proxied(large_replies, limits=limits, to={"max_connections": 20}) as chain,
        contextlib.AsyncExitStack() as stack,
    ):
        port = chain.running.port
        slow = [await stack.enter_async_context(connect(port, buffer=4096)) for _ in range(10)]
        for client in slow:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(READ_LARGE)
        for _ in range(20):
            assert await served(port) == 200
        await until(lambda: chain.running.gateway.stats.aborted["write-timeout"] == 10)
        assert await served(port) == 200
        await until(lambda: chain.running.pool.size == chain.running.pool.idle)


# The times of one call.

LATE = Refusal(504, "deadline-exceeded", "http_response_timeout")


@pytest.mark.parametrize(("stuck", "error"), [(b"GET", "read-timeout"), (b"PATCH", "deadline-exceeded")])
async def test_a_call_past_its_deadline_is_504_never_to_be_replayed_and_recorded(
    stuck: bytes, error: str
) -> None:
    """A look-up may take half of the deadline."""

    async def upstream(peer: Peer) -> None:
        while (await peer.request()).method != stuck:
            await peer.send(DOCUMENT)
        await peer.gone()

    limits, to = {"deadline": "800ms"}, {"read_timeout": "1s"}
    async with proxied(upstream, limits=limits, to=to) as chain:
        assert refusal(await asked(chain.client, PATCH)) == LATE._replace(kind=error)
        sent = stuck == b"PATCH"
        before = ("rewrite", None, None) if sent else ("reject", None, error)
        assert events(chain) == [before, ("outcome", 504, error)]
        methods = [request.method for request in chain.requests]
        assert methods == ([b"GET", b"PATCH"] if sent else [b"GET"])
        # A look-up is shared: it goes on after the call that began it, until the upstream's read timeout.
        await chain.running.disconnected()


async def test_a_body_that_takes_too_long_ends_at_the_deadline_too() -> None:
    async with (
        proxied(Gate(), limits={"deadline": "200ms"}) as chain,
        dripping(chain.running.port, 3, PATCH_HEAD + UPLOAD, b" ") as slow,
    ):
        for client in slow:
            assert refusal(await client.reply()) == LATE
        assert chain.requests == []


async def test_a_call_that_waits_too_long_for_its_conversation_lock_is_503_and_nothing_was_sent() -> None:
    gate = Gate()
    held = PARTICIPANT.encode() + b"/held"

    async def upstream(peer: Peer) -> None:
        request = await peer.request()
        gate.reached.release()
        if request.target == held:
            await gate.opened.wait()
        await peer.send(DOCUMENT if request.method == b"GET" else OK)

    async with (
        proxied(upstream, limits={"lock_timeout": "150ms"}) as chain,
        connect(chain.running.port) as first,
    ):
        await first.send(b"DELETE %b HTTP/1.1\r\nHost: h\r\n\r\n" % held)
        await gate.reached.acquire()
        assert refusal(await asked(chain.client, PATCH))[:2] == (503, "lock-timeout")
        assert [request.method for request in chain.requests] == [b"DELETE"]
        assert events(chain) == [("reject", None, "lock-timeout"), ("outcome", 503, "lock-timeout")]
        # A write that is passed through waits for the conversation lock as well.
        write = await asked(chain.client, WRITE + b"Content-Length: 2\r\n\r\n{}")
        assert refusal(write)[:2] == (503, "lock-timeout")
        gate.opened.set()
        assert (await first.reply())[0] == 200
        assert (await asked(chain.client, PATCH))[0] == 200


async def test_a_call_that_finds_no_connection_in_time_is_503_and_nothing_was_sent() -> None:
    gate = Gate()
    to = {"max_connections": 1, "pool_timeout": "150ms"}
    async with (
        proxied(gate, to=to, fill={"max_age": "60s"}) as chain,
        connect(chain.running.port) as holding,
    ):
        assert (await asked(chain.client, PATCH))[0] == 200
        await holding.send(HELD)
        for _ in range(3):
            await gate.reached.acquire()
        for data in (GET, PATCH):  # the PATCH is filled from the cache, so it is itself what waits
            assert refusal(await asked(chain.client, data))[:3] == FULL[:3]
        assert [request.method for request in chain.requests] == [b"GET", b"PATCH", b"GET"]
        assert [line["event"] for line in chain.running.lines()] == [
            "rewrite",
            "outcome",
            "reject",
            "outcome",
        ]
        gate.opened.set()
        assert (await holding.reply())[0] == 200
        assert (await asked(chain.client, PATCH))[0] == 200


async def test_a_value_that_got_too_old_in_the_queue_for_a_connection_is_looked_up_again() -> None:
    gate = Gate()
    alerting = DOCUMENT.replace(b'"connected"', b'"active"   ')
    gate.documents = [DOCUMENT, alerting]
    now = 100.0
    async with (
        proxied(gate, to={"max_connections": 1}, fill={"max_age": "1s"}, clock=lambda: now) as chain,
        connect(chain.running.port) as holding,
    ):
        assert (await asked(chain.client, PATCH))[0] == 200
        await holding.send(HELD)
        for _ in range(3):
            await gate.reached.acquire()
        now += 0.5
        await chain.client.send(PATCH)
        await until(lambda: chain.running.pool.waiting)
        now += 0.6
        gate.opened.set()
        assert (await chain.client.reply())[0] == 200
        seen = [(request.method, request.target.rpartition(b"/")[2]) for request in chain.requests]
        assert seen == [
            (b"GET", b"c1"),
            (b"PATCH", b"p1"),
            (b"GET", b"held"),
            (b"GET", b"c1"),
            (b"PATCH", b"p1"),
        ]
        assert chain.requests[1].body == FILLED
        assert chain.requests[4].body == FILLED.replace(b"connected", b"active")
        rewrites = chain.running.lines("rewrite")
        assert len(rewrites) == 2
        assert [
            change["age_ms"] for line in rewrites for change in line["changes"] if change["repair"] == "fill"
        ] == [0, 0]


async def test_an_upstream_that_says_nothing_costs_a_call_its_read_timeout() -> None:
    async with proxied(silent, to={"read_timeout": "150ms"}) as chain:
        status, headers, _ = await asked(chain.client, GET)
        assert (status, b"retry-after" in headers) == (504, False)
        assert chain.running.pool.size == 0


async def test_readers_that_stall_make_room_for_those_who_wait() -> None:
    async with (
        proxied(large_replies, to={"max_connections": 4, "pool_timeout": "5s"}) as chain,
        contextlib.AsyncExitStack() as stack,
    ):
        stats, clients = chain.running.gateway.stats, []
        for number in range(6):
            client = await stack.enter_async_context(connect(chain.running.port, buffer=4096, limit=4096))
            clients.append(client)
            await client.send(READ_LARGE)
            while stats.aborted.total() + len(stats.stalled) <= number:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            assert await served(chain.running.port) == 200
        assert chain.running.pool.size <= 4
        cut = [await is_cut(client) for client in clients]
        # No more than the connections but one are left, and those who have stalled longest were cut.
        assert 3 <= cut.count(True) < 6
        assert cut == sorted(cut, reverse=True)


async def is_cut(client: Client) -> bool:
    try:
        await client.head()
        await client.exactly(8_000_000)
    except (ConnectionError, asyncio.IncompleteReadError):
        return True
    return False


async def test_calls_that_wait_for_their_bodies_are_bounded_too() -> None:
    async with (
        proxied(Gate(), limits={"max_in_flight": 2}) as chain,
        dripping(chain.running.port, 12, PATCH_HEAD + UPLOAD, b" ") as slow,
    ):
        replies = [asyncio.create_task(client.reply()) for client in slow]
        done, others = await asyncio.wait(replies, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert {refusal(reply.result()) for reply in done} == {BUSY}
        for reply in others:
            reply.cancel()
        await asyncio.wait(replies)


async def test_a_chunked_body_over_the_limit_is_413_also_when_it_comes_at_once() -> None:
    async with proxied(Gate(), limits={"max_body": "1KiB"}) as chain:
        body = b"7d0\r\n" + b" " * 2000 + b"\r\n0\r\n\r\n"
        found = await asked(chain.client, PATCH_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        assert refusal(found)[:2] == (413, "body-too-large")


class Failing(Lookups):
    def try_cached(self, requests: Sequence[LookupRequest], seen: View | None = None) -> LookupResults | None:
        raise LookupFailed("it cannot be read")


async def test_a_look_up_that_fails_at_once_holds_no_conversation_lock() -> None:
    async with proxied(Gate(), parts=replace(backend.PARTS, lookups=Failing)) as chain:
        assert (await asked(chain.client, PATCH))[0] == 502
        assert len(chain.running.gateway.main.locks) == 0


async def test_a_refusal_is_counted_and_said_once_whoever_finds_its_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with proxied(closing, limits={"body_timeout": "100ms"}) as chain:
        for _ in range(3):
            assert await served(chain.running.port) == 502
        async with connect(chain.running.port) as late:
            await late.send(PATCH_HEAD + UPLOAD)
            assert (await late.reply())[0] == 408
        samples = {sample.name: sample.value for sample in chain.running.gateway.metrics.samples()}
        assert samples['gateway_refusals_total{cause="connection-terminated"}'] == 3
        assert samples['gateway_refusals_total{cause="body-timeout"}'] == 1
    refusals = [text for text in caplog.messages if text.startswith("refused: ")]
    said = [text.split(":")[1].strip() for text in refusals]
    assert sorted(said) == ["body-timeout", "connection-terminated"]


async def closing(peer: Peer) -> None:
    await peer.request()


async def test_readers_at_a_fair_rate_all_get_their_replies_while_others_wait() -> None:
    """More of them than half the connections, each woken less often than twice a second."""
    size = 8_000_000

    async def sip(client: Client) -> int:
        got = 0
        while got < size:
            got += len(await client.reader.read(200_000))
            await asyncio.sleep(0.02)
        return got

    async with (
        proxied(large_replies, to={"max_connections": 5, "pool_timeout": "5s"}) as chain,
        contextlib.AsyncExitStack() as stack,
    ):
        port = chain.running.port
        readers = []
        for _ in range(4):
            client = await stack.enter_async_context(connect(port, buffer=131_072, limit=131_072))
            await client.send(READ_LARGE)
            readers.append(asyncio.create_task(sip(client)))
        normal = [asyncio.create_task(served(port)) for _ in range(40)]
        assert [await one >= size for one in readers] == [True] * 4, "head and all"
        assert [await one for one in normal] == [200] * 40
        assert not chain.running.gateway.stats.aborted


@pytest.mark.parametrize(
    ("request_line", "field"),
    [
        (b"GET %b?x=1", b"Authorization: %b"),
        (b"GET %b", b"X-Api-Key: %b"),
        (b"GET %b", b"Cookie: session=%b"),
        (b"GET %b?key=%%b", b"X-Any: 1"),
    ],
)
async def test_callers_who_wait_for_a_connection_are_told_apart_by_whatever_authorises_them(
    request_line: bytes, field: bytes
) -> None:
    gate = Gate()
    credentials = {"headers": ["X-Api-Key"], "query": ["key"]}

    def call(target: bytes, caller: bytes) -> bytes:
        head = request_line % target + b" HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n\r\n"
        return head.replace(b"%b", caller)

    to = {"max_connections": 1, "pool_timeout": "9s"}
    async with proxied(gate, to=to, credentials=credentials) as chain, contextlib.AsyncExitStack() as stack:
        await chain.client.send(HELD)
        await gate.reached.acquire()
        waiting = []
        for _ in range(8):
            waiting.append(await stack.enter_async_context(connect(chain.running.port)))
            await waiting[-1].send(call(b"/many", b"one"))
        await until(lambda: chain.running.pool.waiting == 8)
        waiting.append(await stack.enter_async_context(connect(chain.running.port)))
        await waiting[-1].send(call(b"/few", b"two"))
        await until(lambda: chain.running.pool.waiting == 9)
        gate.opened.set()
        for client in waiting:
            assert (await client.reply())[0] == 200
        targets = [request.target.partition(b"?")[0] for request in chain.requests]
        assert targets.index(b"/few") <= 2
