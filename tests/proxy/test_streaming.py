"""Bodies are passed on as they come, both ways, no faster than they are read, until one breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.http.headers import Fields
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.call_head import CallHead
from gateway.proxy.client import Client
from gateway.proxy.passthrough import MAX_READ_AHEAD, READ_AHEAD_PATIENCE
from gateway.server.limits import by_address
from gateway.server.request_cycle import RequestCycle
from tests.support import waiting
from tests.support.calls import GET
from tests.support.gateways import PARTICIPANT, gateway, proxied
from tests.support.pools import HOST, pool_to
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.serving import connect, serve
from tests.support.waiting import until

LARGE = b"x" * (MAX_READ_AHEAD + 1)  # what is sent on at once; less is waited for, two seconds at most


async def test_the_first_byte_of_a_reply_arrives_before_the_last_is_sent() -> None:
    go = asyncio.Event()

    async def slowly(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        await peer.send(b"abc")
        await go.wait()
        await peer.send(b"def")
        await peer.gone()

    async with proxied(slowly) as (_, _, client):
        await client.send(GET)
        await client.head()
        assert await client.exactly(3) == b"abc"
        go.set()
        assert await client.exactly(3) == b"def"


async def test_a_head_does_not_wait_for_its_body() -> None:
    go = asyncio.Event()

    async def slowly(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await go.wait()
        await peer.send(b"1\r\nx\r\n0\r\n\r\n")
        await peer.gone()

    async with proxied(slowly) as (_, _, client):
        await client.send(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"transfer-encoding: chunked" in await client.head()
        go.set()
        assert await client.until(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "first", "rest"),
    [
        (b"Content-Length: 6", b"abc", b"def"),
        (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"", b"0\r\n\r\n"),
    ],
)
async def test_a_small_body_takes_a_connection_only_once_it_is_whole_and_keeps_its_framing(
    framing: bytes, first: bytes, rest: bytes
) -> None:
    async with RawUpstream(answering(OK)) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client, connect(running.port) as other:
            await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n%b" % (framing, first))
            for _ in range(3):
                await other.send(GET)
                assert (await other.reply())[0] == 200
            assert len(upstream.peers) == 1
            await client.send(rest)
            assert (await client.reply())[0] == 200
        assert len(upstream.peers) == 1
        request = upstream.requests[-1]
        name, _, value = framing.partition(b": ")
        assert request.header(name.lower()) == value
        assert request.body == (b"abcdef" if first else b"")


async def upload(first: bytes, chunked: bool) -> None:
    """Sends `first`, and the rest once the upstream has some of it."""
    arrived = asyncio.Event()

    async def reading(peer: Peer) -> None:
        head = await peer.head()
        assert (b"transfer-encoding: chunked" in head) is chunked
        assert (b"content-length: %d" % (len(first) + 3) in head) is not chunked
        body = b""
        while b"def" not in body:
            body += await peer.read()
            arrived.set()
        assert body.find(first[:3]) < body.find(b"def")
        await peer.send(OK)
        await peer.gone()

    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (len(first) + 3)
    async with proxied(reading) as (_, _, client):
        await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % framing)
        await client.send(b"%x\r\n%b\r\n" % (len(first), first) if chunked else first)
        await asyncio.wait_for(arrived.wait(), waiting.PATIENCE)
        await client.send(b"3\r\ndef\r\n0\r\n\r\n" if chunked else b"def")
        assert (await client.reply())[0] == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_the_first_byte_of_an_upload_arrives_before_the_last_is_sent(chunked: bool) -> None:
    await upload(LARGE, chunked)


async def test_a_small_beginning_of_an_upload_is_sent_on_after_two_seconds() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(upload(b"abc", chunked=True), upload(b"abc", chunked=False))
    assert loop.time() - began > READ_AHEAD_PATIENCE * 0.9


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_large_body_arrives_whole_both_ways(chunked: bool) -> None:
    body = bytes(range(256)) * 16_384

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 70_001):
            yield body[at : at + 70_001]

    async def echo(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body), request.body)
        await peer.gone()

    async with RawUpstream(echo) as upstream, gateway(upstream.url) as running, running.client() as client:
        answer = await client.post("/x", content=pieces() if chunked else body)
        assert answer.content == body
        assert len(upstream.requests[0].body) == len(body)


async def test_an_early_refusal_reaches_the_client_while_it_still_uploads() -> None:
    async def refusing(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await peer.gone()

    async with proxied(refusing) as (_, _, client):
        await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + LARGE)
        assert (await client.reply())[0] == 413


@pytest.mark.parametrize("matched", [False, True])
async def test_a_client_that_vanishes_ends_the_download(matched: bool) -> None:
    gone = asyncio.Event()

    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await peer.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
                await asyncio.sleep(0)
        except ConnectionError:
            gone.set()

    line = b"PATCH " + PARTICIPANT.encode() if matched else b"GET /x"
    body = b'{"state":"connected"}' if matched else b""
    async with RawUpstream(endless) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client:
            await client.send(
                b"%b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (line, len(body), body)
            )
            await client.head()
            await client.exactly(2000)
            client.reset()
        await asyncio.wait_for(gone.wait(), waiting.PATIENCE)
        assert len(upstream.requests) == 1


async def test_a_client_that_vanishes_before_the_reply_is_waited_for_no_longer() -> None:
    ended: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        ended.append(bytes(peer.received))

    async with RawUpstream(script) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client:
            await client.send(GET)
            await until(lambda: upstream.requests)
            client.reset()
        await until(lambda: ended)


async def test_a_client_that_vanishes_amid_its_upload_never_makes_it_look_whole() -> None:
    ended: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()
        ended.append(bytes(peer.received))

    async with RawUpstream(script) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client:
            await client.send(
                b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n"
                % (len(LARGE), LARGE)
            )
            await until(lambda: upstream.peers and LARGE in upstream.peers[0].received)
            client.reset()
        await until(lambda: ended)
        assert LARGE in ended[0]
        assert not ended[0].endswith(b"0\r\n\r\n")


async def test_a_slow_reader_stops_the_upstream_and_costs_no_memory() -> None:
    sent = [0]

    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await peer.send(b"x" * 65_536)
            sent[0] += 65_536

    async with (
        RawUpstream(endless) as upstream,
        gateway(upstream.url) as running,
        connect(running.port, buffer=4096) as client,
    ):
        await client.send(GET)
        await client.head()
        # It has stalled once nothing moves any more: the kernel's buffers and ours are full.
        last = -1
        while sent[0] != last:
            last = sent[0]
            await asyncio.sleep(0.1)
        assert 0 < last < 32 * 2**20


async def test_a_reply_holds_a_connection_until_the_upstream_has_sent_it_all() -> None:
    finish = asyncio.Event()

    async def slowly(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await finish.wait()
        await peer.send(b"b")

    class Relaying:
        direct = True
        cycle: RequestCycle

        async def serve(self, cycle: RequestCycle) -> None:
            self.cycle = cycle
            with await pool.send(b"GET", b"/", [HOST]) as reply:
                head = CallHead({}, Fields(), 0, False, None, [], True)
                client = Client(cycle, head, BufferBudget(0, 0), by_address)
                await client.relay(200, reply.headers, [], reply)

    app = Relaying()
    async with (
        RawUpstream(slowly) as upstream,
        pool_to(upstream) as pool,
        serve(app) as port,
        connect(port) as client,
    ):
        await client.send(GET)
        await client.head()
        assert app.cycle.holds_connection()
        finish.set()
        assert await client.exactly(2) == b"ab"
        assert not app.cycle.holds_connection()
