"""What is refused: nothing of it reaches the upstream, and nothing after it on its connection is read."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError
from tests.support.calls import PATCH_HEAD, POST_HEAD
from tests.support.gateways import proxied
from tests.support.judging import Refusal, refusal
from tests.support.raw_upstream import OK, answering, silent
from tests.support.refused_heads import ANSWERS, REFUSED_HEADS, each_of


@each_of(*REFUSED_HEADS)
async def test_what_is_refused(data: bytes, error: type[GatewayError]) -> None:
    status, slug = ANSWERS[error]
    async with proxied() as (upstream, running, client):
        await client.send(data + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
        reply = await client.reply()
        assert await client.rest() == b""
        assert upstream.peers == []
        # D3, D4, D8: status, problem document and Proxy-Status say that the gateway refused, and why.
        assert refusal(reply) == Refusal(status, slug, "http_request_error")
        assert reply.headers[b"connection"] == b"close"
        assert running.gateway.stats.refused == {slug: 1}


CHUNKED = POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = [
    *(size + b"\r\na\r\n" for size in (
        b"0x1", b"+1", b"-1", b"1_0", b" 1", b"1 ", b"1;", b"1;a\rb", b"1;a=\x01", b"1;\n", b"1\r", b"g",
        b"\xb2", b"1" * 30, b"8000000000000000", b"10000000000000000", b"1;" + b"a" * 2_000,
    )),
    b"1\na\r\n", b"1\r\na\n", b"1\r\nab\r\n", b"1\r\na", b"\r\n1\r\na\r\n",
    *(b"0\r\n" + trailer + b"\r\n\r\n" for trailer in (b"X: a\n", b"X : a", b" X: a", b"no colon", b"X: \0")),
]  # fmt: skip


@pytest.mark.parametrize("chunks", BAD_CHUNKS)
async def test_a_chunked_body_that_breaks_the_rules_is_never_complete_upstream(chunks: bytes) -> None:
    async with proxied(answering(OK)) as (upstream, _, client):
        # A good chunk comes first: the head has been read when the body turns out to be wrong.
        await client.send(
            CHUNKED + b"1\r\n!\r\n" + chunks + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
        )
        status, headers, _ = await client.reply()
        assert await client.rest() == b""
        assert (status, headers[b"connection"]) == (400, b"close")
        assert upstream.requests == []
        assert all(b"0\r\n\r\n" not in peer.received for peer in upstream.peers)


async def test_a_huge_length_is_bounded_by_the_deadline() -> None:
    async with proxied(silent, limits={"body_timeout": "100ms"}) as (upstream, running, client):
        await client.send(POST_HEAD + b"Content-Length: 999999999999999999\r\n\r\na")
        status, headers, _ = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert upstream.requests == []
        assert running.pool.size == 0


async def test_a10_no_100_where_the_head_alone_decides() -> None:
    big = PATCH_HEAD + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
    async with proxied() as (upstream, _, client):
        await client.send(big)
        assert (await client.reply())[0] == 413
        assert await client.rest() == b""
        assert upstream.requests == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_follows_a_refused_call_is_its_body_and_no_request(chunked: bool) -> None:
    inside = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    framing = (
        b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % (len(inside) + 1000)
    )
    async with proxied(limits={"max_body": 10}) as (upstream, _, client):
        data = (
            b"400\r\n" + inside + b" " * (1024 - len(inside)) + b"\r\n" if chunked else inside + b" " * 1000
        )
        await client.send(PATCH_HEAD + framing + b"\r\n" + data)
        assert (await client.reply())[0] == 413
        if chunked:
            await client.send(b"0\r\n\r\n")
        await client.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.reply())[0] == 200
        assert [request.target for request in upstream.requests] == [b"/next"]


async def test_a_head_that_does_not_come_is_408() -> None:
    async with proxied(limits={"head_timeout": "150ms"}) as (upstream, _, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a")
        assert refusal(await client.reply()) == Refusal(408, "head-timeout", "http_request_error")
        assert upstream.peers == []
