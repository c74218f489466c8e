"""
The checklist of an intermediary, held by the assembled gateway: bytes in, bytes upstream, bytes out.

Each case has the number of its line: A is RFC 9110, L is RFC 9112, D what the gateway says of itself, F what
its libraries get wrong by themselves. Here are those that concern several requests or connections; the others
are in test_requests_passed_on.py, test_requests_refused.py and test_replies_passed_on.py. What does not hold
to the letter, or is shown in another file:

| line | what holds |
|---|---|
| A5 | an upgrade that the upstream accepts is a tunnel: proxy/test_tunnel.py |
| A12 | an upstream's 1xx is dropped: ASGI has no message for it; the gateway sends a 100 of its own |
| A14 | the upstream's Server passes; the gateway has none |
| A17, L17 | values and targets keep every byte; names arrive in lower case |
| A21 | a name with an underscore passes as it is, but one that imitates a field with a meaning is dropped |
| A23 | `patch` is matched as PATCH, and goes on as `patch` |
| L3 | 501: no transfer coding but chunked is known, none is ever decoded away |
| L8 | a bare LF is refused, though it MAY be accepted |
| L18 | HTTP/1.2 is read as HTTP/1.1; HTTP/2.0, HTTP/0.9 and HTTP/9.9 are refused |
| D4 | the token for each fault: test_faults.py |
| D6 | Cache-Status is not sent: Gateway-Rewrite tells of a fill |
| F6, F7, F9 | = A22, the deadlines of test_overload.py, L21 |
| F10, F14, F15 | test_drain.py, test_lookups.py |
| F8, F16 | speed and audits of packages are nothing that one request could show |
"""

from __future__ import annotations

import asyncio

import pytest

from tests.support.calls import GET, GET_HEAD, OK_HEAD, POST_HEAD
from tests.support.gateways import gateway, proxied
from tests.support.judging import Refusal, refusal
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.serving import connect, exchange


async def test_a7_a_request_that_comes_back_is_a_loop() -> None:
    port = 0

    async def back(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(
            await exchange(port, request.raw.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        )

    async with proxied(back) as (upstream, running, client):
        port = running.port
        await client.send(GET)
        assert refusal(await client.reply()) == Refusal(502, "loop-detected", "proxy_loop_detected")
        assert len(upstream.requests) == 1
        assert running.counts("gateway_refusals_total", "loop-detected") == 1


async def test_a10_a_body_that_is_wanted_is_asked_for() -> None:
    async with proxied() as (upstream, _, client):
        await client.send(POST_HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].body == b"abc"
        assert upstream.requests[0].header(b"expect") is None


@pytest.mark.parametrize("method", [b"PATCH", b"POST", b"patch", b"FOO"])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2"], ids=["before the head", "in the head"])
@pytest.mark.parametrize("warm", [False, True], ids=["new", "used before"])
async def test_a24_what_is_not_safe_is_sent_once(method: bytes, said: bytes, warm: bool) -> None:
    async def cut(peer: Peer) -> None:
        if warm:
            await peer.request()
            await peer.send(OK)
        await peer.request()
        await peer.send(said)
        peer.reset()

    async with proxied(cut, answering(OK)) as (upstream, _, client):
        if warm:
            await client.send(GET)
            await client.reply()
        await client.send(method + b" /once HTTP/1.1\r\nHost: h\r\n\r\n")
        status, headers, _ = await client.reply()
        assert (status, headers[b"proxy-status"]) == (502, b"gateway; error=connection_terminated")
        assert b"retry-after" not in headers
        assert [request.target for request in upstream.requests].count(b"/once") == 1
        assert len(upstream.peers) == 1


async def test_an_early_reply_reaches_a_client_that_still_sends() -> None:
    async def early(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with proxied(early, answering(OK)) as (_, running, client):
        await client.send(POST_HEAD + b"Content-Length: 10000000\r\n\r\n" + b"a" * 100_000)
        assert (await client.reply())[::2] == (413, b"no")
        await asyncio.sleep(0)
        assert running.pool.size == 0


async def test_close_is_honoured_both_ways() -> None:
    closing = OK_HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"
    async with proxied(answering(closing)) as (upstream, _, client):
        await client.send(GET)
        status, headers, _ = await client.reply()
        assert (status, b"connection" in headers) == (200, False)
        await client.send(GET_HEAD + b"Connection: close\r\n\r\n" + GET)
        _, headers, _ = await client.reply()
        assert headers[b"connection"] == b"close"
        assert await client.rest() == b""
        assert [len(upstream.peers), len(upstream.requests)] == [2, 2]


async def test_pipelined_requests_are_answered_in_order() -> None:
    held = asyncio.Event()

    async def slow_first(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/1":
                await held.wait()
            await peer.send(OK_HEAD + b"Content-Length: %d\r\n\r\n" % len(request.target) + request.target)

    async with proxied(slow_first) as (upstream, _, client):
        numbers = [b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in (1, 2, 3)]
        await client.send(b"".join(numbers) + b"BAD\r\n\r\n" + numbers[0])
        held.set()
        assert [(await client.reply())[2] for _ in range(3)] == [b"/1", b"/2", b"/3"]
        assert (await client.reply())[0] == 400
        assert await client.rest() == b""
        assert len(upstream.requests) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_d1_nothing_of_one_client_is_seen_by_another(host: str) -> None:
    """F1, C4. Also with a host name: some cookie jars ignore IP addresses."""
    number = 0

    async def personal(peer: Peer) -> None:
        nonlocal number
        while True:
            request = await peer.request()
            number += 1
            body = request.header(b"authorization") or b""
            await peer.send(
                OK_HEAD
                + b"Set-Cookie: s=%d\r\nX-Yours: %b\r\nContent-Length: %d\r\n\r\n" % (number, body, len(body))
                + body
            )

    async def one(port: int, n: int) -> None:
        async with connect(port) as client:
            for _ in range(3):
                await client.send(GET_HEAD + b"Authorization: secret-%d\r\n\r\n" % n)
                status, headers, body = await client.reply()
                assert (status, headers[b"x-yours"], body) == (200, b"secret-%d" % n, b"secret-%d" % n)

    async with (
        RawUpstream(personal) as upstream,
        gateway(f"http://{host}:{upstream.port}") as running,
    ):
        await asyncio.gather(*(one(running.port, n) for n in range(100)))
        assert all(request.header(b"cookie") is None for request in upstream.requests)
        assert len(upstream.requests) == 300
        assert len(upstream.peers) <= 100
