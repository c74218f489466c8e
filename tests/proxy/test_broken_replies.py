"""A reply that breaks off breaks off for the client too; one that never comes or is no HTTP is 502 or 504."""

from __future__ import annotations

import asyncio

import pytest

from gateway.proxy import lifecycle
from gateway.proxy.phases import HELD
from tests.support.gateways import PARTICIPANT, gateway, proxied
from tests.support.judging import Refusal, refusal, refused_by_the_gateway
from tests.support.raw_upstream import Peer, RawUpstream, answering
from tests.support.serving import connect
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("way")

CUT = {
    "a length, nothing of it": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
    "a length, some of it": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "a length, all but one": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabcdefghi",
    "chunks, none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks, amid one": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    "chunks, between two": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "chunks, before the very end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
}


EXPLICIT = (
    b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n"
    b'{"state":"connected"}'
) % PARTICIPANT.encode()


@pytest.mark.parametrize("target", ["/x", PARTICIPANT], ids=["passed through", "matched"])
@pytest.mark.parametrize("resets", [False, True], ids=["ends", "resets"])
@pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())
async def test_a_reply_that_breaks_off_upstream_breaks_off_downstream(
    cut: bytes, resets: bool, target: str
) -> None:
    """C3: neither completed, nor answered with a second status once the first was sent."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(cut)
        await go.wait()
        if resets:
            peer.reset()

    method = "GET" if target == "/x" else "PATCH"
    body = b'{"state":"connected"}'
    async with RawUpstream(script) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client:
            await client.send(
                b"%b %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (method.encode(), target.encode(), len(body), body)
            )
            if target != "/x" or cut == CUT["a bad chunk"]:
                # A small reply to a matched call is waited for, and what broke off with its head is none.
                go.set()
            head = await client.head()
            if target != "/x" or not head.startswith(b"HTTP/1.1 200"):
                assert head.startswith(b"HTTP/1.1 502")
                assert b"retry-after" not in head
            else:
                go.set()
                try:
                    rest = await client.rest()
                except ConnectionError:
                    rest = b""
                assert b"HTTP/1.1" not in rest
                assert not rest.endswith(b"0\r\n\r\n")
                if b"content-length" in head:
                    assert len(rest) < 10
        if target != "/x":
            await until(lambda: running.counts("gateway_matched_calls_total"))
            assert running.lines("outcome")[0]["error"] in {"connection-terminated", "invalid-reply"}
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("size", [10, HELD + 2], ids=["slow", "large"])
async def test_a_reply_that_is_slow_or_large_goes_on_as_it_comes(size: int) -> None:
    """A reply to a matched call is waited for so long and so far, and no more."""
    patience = 0.05 if size == 10 else lifecycle.HOLD_PATIENCE
    end = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 202 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * (size - 1))
        await end.wait()
        await peer.send(b"y")

    async with (
        RawUpstream(script) as upstream,
        gateway(upstream.url, hold_patience=patience) as running,
        connect(running.port) as client,
    ):
        await client.send(EXPLICIT)
        assert (await client.head()).startswith(b"HTTP/1.1 202")
        assert await client.exactly(size - 1) == b"x" * (size - 1)
        end.set()
        assert await client.exactly(1) == b"y"


async def test_an_event_stream_is_not_waited_for() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await peer.gone()

    async with (
        RawUpstream(script) as upstream,
        gateway(upstream.url) as running,
        connect(running.port) as client,
    ):
        await client.send(EXPLICIT)
        async with asyncio.timeout(lifecycle.HOLD_PATIENCE / 2):
            assert (await client.head()).startswith(b"HTTP/1.1 200")


async def test_a_client_that_leaves_while_its_reply_is_waited_for_ends_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 202 OK\r\nContent-Length: 10\r\n\r\nx")
        await peer.gone()

    async with RawUpstream(script) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client:
            await client.send(EXPLICIT)
            await until(lambda: upstream.requests)
            await asyncio.sleep(0.02)
        await until(lambda: running.lines("outcome"))
        assert running.lines("outcome")[0]["error"] == "client-gone"


@pytest.mark.parametrize(
    "reply",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/2 200\r\n\r\n", b"<html>", b"HTTP/1.1 20 OK\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
     b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
)  # fmt: skip
async def test_what_is_no_reply_is_502_and_never_invites_a_replay(reply: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply)

    async with RawUpstream(script) as upstream, gateway(upstream.url) as running, running.client() as client:
        answer = await client.post("/x", content=b"{}")
        error = refused_by_the_gateway(answer.headers, answer.json(), 502)
        assert error in {"connection_terminated", "http_protocol_error"}
        # C2: a POST goes out once, whatever came of it.
        assert len(upstream.requests) == 1


async def test_an_upstream_that_never_answers_is_504() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with proxied(script, to={"read_timeout": "100ms"}) as (_, _, client):
        await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
        assert refusal(await client.reply()) == Refusal(504, "read-timeout", "http_response_timeout")


async def test_the_upstreams_own_errors_stay_its_own() -> None:
    """D5, D7: Proxy-Status is on the gateway's own errors and on no other."""
    for status in (400, 401, 404, 429, 500, 502, 503, 504):
        reply = b"HTTP/1.1 %d X\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nsaid" % status
        async with proxied(answering(reply)) as (_, _, client):
            await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            found, headers, body = await client.reply()
            assert (found, body) == (status, b"said")
            assert headers[b"retry-after"] == b"3"
            assert b"proxy-status" not in headers
