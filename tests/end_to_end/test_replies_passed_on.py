"""
What of the upstream's reply reaches the client, and what becomes of one that breaks the rules or breaks off.
The numbers are those of the checklist in test_intermediary.py.
"""

from __future__ import annotations

import gzip
import re
import zlib
from typing import Any

import pytest

from tests.support.calls import GET, GET_HEAD, ID, OK_HEAD, PATCH_HEAD
from tests.support.gateways import BODY, CONVERSATION, proxied
from tests.support.raw_upstream import OK, Peer, Script, answering
from tests.support.serving import connect

NONE = b"Content-Length: 0\r\n\r\n"


LENGTH = b"content-length: 0\r\n"


REPLIES = [
    ("A4", OK_HEAD + b"Connection: X-Secret, close\r\nX-Secret: 1\r\nContent-Length: 2\r\n\r\nok",
     OK_HEAD + b"content-length: 2\r\n", b"ok"),
    ("A4", OK_HEAD + b"Connection: X-A\r\nx-a: 1\r\nconnection: X-B\r\nX-B: 2\r\nX-C: 3\r\n" + NONE,
     OK_HEAD + b"x-c: 3\r\n" + LENGTH, b""),
    ("A4",
     OK_HEAD + b"Keep-Alive: timeout=5\r\nTrailer: X\r\nUpgrade: h2c\r\nProxy-Authenticate: a\r\n" + NONE,
     OK_HEAD + LENGTH, b""),
    ("A12", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK,
     OK_HEAD + b"content-length: 2\r\n", b"ok"),
    ("A13", OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: evil=1\r\n\r\n",
     OK_HEAD, b"ok"),
    ("A14", OK_HEAD + b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: s/1\r\n" + NONE,
     OK_HEAD + b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: s/1\r\n" + LENGTH, b""),
    ("A15",
     OK_HEAD + b"Set-Cookie: a=1, b\r\nX: 1\r\nSet-Cookie: c=2\r\nX: 2\r\nset-cookie: a=1, b\r\n" + NONE,
     OK_HEAD + b"set-cookie: a=1, b\r\nx: 1\r\nset-cookie: c=2\r\nx: 2\r\nset-cookie: a=1, b\r\n" + LENGTH,
     b""),
    ("A17", b"HTTP/1.1 401 No\r\nWWW-Authenticate:  bEarer  realm=\"\xe9\", x=1 \r\n" + NONE,
     b"HTTP/1.1 401 No\r\nwww-authenticate: bEarer  realm=\"\xe9\", x=1\r\n" + LENGTH, b""),
    ("A20", OK_HEAD + b"X: caf\xe9 \x80\xff\r\n" + NONE,
     OK_HEAD + b"x: caf\xe9 \x80\xff\r\n" + LENGTH, b""),
    ("A29", b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n", b"HTTP/1.1 204 No Content\r\nx: 1\r\n", b""),
    ("A29", b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
     b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n", b""),
    ("D5", b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: other; error=dns_error\r\n" + NONE,
     b"HTTP/1.1 502 Bad Gateway\r\nproxy-status: other; error=dns_error\r\n" + LENGTH, b""),
    ("D5", b"HTTP/1.1 504 x\r\n" + NONE,
     b"HTTP/1.1 504 x\r\n" + LENGTH, b""),
    ("D7", b"HTTP/1.1 429 x\r\nRetry-After: 7\r\nRateLimit: x;r=0\r\n" + NONE,
     b"HTTP/1.1 429 x\r\nretry-after: 7\r\nratelimit: x;r=0\r\n" + LENGTH, b""),
    ("D7", b"HTTP/1.1 503 x\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n" + NONE,
     b"HTTP/1.1 503 x\r\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n" + LENGTH, b""),
    ("F11", b"HTTP/1.1 999 \r\n" + NONE, b"HTTP/1.1 999 \r\n" + LENGTH, b""),
    ("L17", b"HTTP/1.1 999 Odd\r\n" + NONE, b"HTTP/1.1 999 Odd\r\n" + LENGTH, b""),
    ("L17", b"HTTP/1.1 422 Kein Zustand: caf\xe9 \r\n" + NONE,
     b"HTTP/1.1 422 Kein Zustand: caf\xe9 \r\n" + LENGTH, b""),
    ("L17", b"HTTP/1.1 404\r\n" + NONE, b"HTTP/1.1 404 Not Found\r\n" + LENGTH, b""),
    ("L10", OK_HEAD + b"X:1\r\nY:\t2 \t\r\n" + NONE, OK_HEAD + b"x: 1\r\ny: 2\r\n" + LENGTH, b""),
    ("L18", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", OK_HEAD + b"content-length: 2\r\n", b"ok"),
    ("L21", OK_HEAD + b"X: 1\r\n\r\nuntil close", OK_HEAD + b"x: 1\r\n", b"until close"),
    ("D-1", OK_HEAD + b"Gateway-Rewrite: forged\r\nX-Request-Id: theirs\r\n" + NONE,
     OK_HEAD + b"x-request-id: theirs\r\n" + LENGTH, b""),
]  # fmt: skip


def once(reply: bytes) -> Script:
    """Answers one request, then ends."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply)

    return script


@pytest.mark.parametrize(("number", "sent", "head", "body"), REPLIES)
async def test_a_reply(number: str, sent: bytes, head: bytes, body: bytes) -> None:
    async with proxied(once(sent), answering(OK)) as (upstream, _, client):
        await client.send(GET_HEAD + ID + b"\r\n")
        raw = await client.head()
        assert len(re.findall(rb"(?m)^date: ", raw)) == 1
        if b"date: Thu" not in head:
            raw = re.sub(rb"(?m)^date: .*\r\n", b"", raw)
        own = b"" if b"x-request-id" in head else b"x-request-id: r1\r\n"
        chunked = b"content-length" not in head and b" 204 " not in head and b" 304 " not in head
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        assert raw == head + own + framing + b"\r\n"
        if chunked:
            assert await client.exactly(len(body) + 10) == b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            assert await client.exactly(len(body)) == body
        # And the connection is used again.
        await client.send(GET)
        assert (await client.reply())[::2] == (200, b"ok")
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("changes", [{}, {"cors": {"origins": ["*"]}}], ids=["plain", "with cors"])
@pytest.mark.parametrize("patched", [False, True], ids=["passed through", "of a look-up"])
async def test_the_upstreams_own_reason_is_each_time_that_of_its_reply(
    patched: bool, changes: dict[str, Any]
) -> None:
    """Two heads that are alike but for it, one after the other, on one connection."""
    replies = [b"HTTP/1.1 403 %b\r\n" % reason + NONE for reason in (b"Not you", b"Not now", b"Not you")]

    async def script(peer: Peer) -> None:
        for reply in replies:
            await peer.request()
            await peer.send(reply)

    async with proxied(script, **changes) as (_, _, client):
        asked = PATCH_HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY if patched else GET
        for reply in replies:
            await client.send(asked)
            head = await client.head()
            assert head.startswith(reply.partition(b"\r\n")[0] + b"\r\n")


BAD_LENGTHS = (
    b"-1", b"+1", b"0x5", b"1_0", b"1,2", b"1, 1", b"", b"1 1", b"1.0", b"1e1", b"\xb2", b"\xd9\xa1", b"five",
    b"9223372036854775808", b"18446744073709551616", b"1" * 30,
)  # fmt: skip


BROKEN = [
    ("L9", OK_HEAD + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    ("L9", OK_HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("L10", OK_HEAD + b"X : a\r\nContent-Length: 0\r\n\r\n"),
    ("L8", OK_HEAD + b"X: a\nY: b\r\nContent-Length: 0\r\n\r\n"),
    ("L8", OK_HEAD + b"X: a\rY: b\r\nContent-Length: 0\r\n\r\n"),
    ("A18", OK_HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n"),
    ("A18", OK_HEAD + b"X\xe9: a\r\nContent-Length: 0\r\n\r\n"),
    ("A19", OK_HEAD + b"X: a\x07b\r\nContent-Length: 0\r\n\r\n"),
    ("A19", OK_HEAD + b"X: a\x7fb\r\nContent-Length: 0\r\n\r\n"),
    ("A12", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
    *(("L19", OK_HEAD + b"Content-Length: %b\r\n\r\n0123" % length) for length in BAD_LENGTHS),
    ("L19", OK_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("L19", OK_HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
    ("L19", OK_HEAD + b"Content-Length: 0000000000000000000000002\r\n\r\nok"),
    ("L20", OK_HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("L20", OK_HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    ("L20", OK_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("L20", OK_HEAD + b"Transfer-Encoding: identity\r\n\r\nabc"),
    ("L20", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("L18", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("L18", b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n"),
    ("L18", b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n"),
    ("L18", b"ICY 200 OK\r\n\r\n"),
    ("L18", b"<html>"),
    ("A22", OK_HEAD + b"X: %b\r\n\r\n" % (b"a" * 70_000)),
    ("A22", OK_HEAD + b"X: a\r\n" * 300 + b"\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "sent"), BROKEN)
async def test_a_reply_that_breaks_the_rules_is_502_and_its_connection_closed(
    number: str, sent: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.gone()

    async with proxied(script, answering(OK)) as (upstream, _, client):
        await client.send(GET)
        status, headers, body = await client.reply()
        assert (status, headers[b"content-type"]) == (502, b"application/problem+json"), body
        assert headers[b"proxy-status"] == b"gateway; error=http_protocol_error"
        # The next client gets its own, on another connection.
        await client.send(GET)
        assert (await client.reply())[::2] == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_a22_a_reply_that_cannot_be_passed_on_is_502_too() -> None:
    """The pool accepts a field name this long, the server does not send it: the client gets a 502, no 500."""
    long = b"x" * 300 + b": a\r\n"
    switching = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n" + long + b"\r\n"
    async with proxied(once(OK_HEAD + long + b"\r\n"), once(switching)) as (_, _, client):
        for fields in (b"", b"Connection: upgrade\r\nUpgrade: websocket\r\n"):
            await client.send(GET_HEAD + fields + b"\r\n")
            status, headers, _ = await client.reply()
            assert (status, headers[b"proxy-status"]) == (502, b"gateway; error=http_protocol_error")


@pytest.mark.parametrize(
    ("sent", "framing"),
    [
        (OK_HEAD + b"Content-Length: 10\r\n\r\n", "length"),
        (OK_HEAD + b"Content-Length: 10\r\n\r\n0", "length"),
        (OK_HEAD + b"Content-Length: 10\r\n\r\n012345678", "length"),
        (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", "chunked"),
        (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n01", "chunked"),
        (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n01\r\n", "chunked"),
        (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n01\r\n0\r\n", "chunked"),
        (OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n01\r\nnonsense", "chunked"),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_reply_that_breaks_off_is_never_complete(sent: bytes, framing: str, version: bytes) -> None:
    """F9. An HTTP/1.0 client, for whom the end of the connection is the end of the reply, sees a reset."""
    async with proxied(once(sent)) as (_, _, client):
        close = b"Connection: close\r\n" if sent.endswith(b"nonsense") else b""
        await client.send(b"GET /x HTTP/%b\r\nHost: h\r\n%b\r\n" % (version, close))
        try:
            raw = await client.rest()
        except ConnectionResetError:
            return
        if not raw:
            return
        head, _, body = raw.partition(b"\r\n\r\n")
        if close:  # it came with the head, before anything was sent
            assert head.startswith(b"HTTP/1.1 502 ")
            return
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-length: 10" in head or version == b"1.1"
        assert len(body) < 10 if framing == "length" else not body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "surplus", [b"!", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"0\r\n\r\n", OK]
)
@pytest.mark.parametrize("first", [OK, OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"])
async def test_what_follows_a_reply_is_nobodys(surplus: bytes, first: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(first + surplus)
        await peer.gone()

    async with proxied(script, answering(OK_HEAD + b"Content-Length: 4\r\n\r\nmine")) as (
        upstream,
        running,
        client,
    ):
        await client.send(GET)
        assert (await client.reply())[2] == b"ok"
        async with connect(running.port) as other:
            await other.send(GET)
            assert (await other.reply())[2] == b"mine"
        assert len(upstream.peers) == 2


async def test_a29_a_reply_to_head_keeps_its_length_and_has_no_body() -> None:
    async with proxied(answering(OK_HEAD + b"Content-Length: 9\r\n\r\n", OK)) as (upstream, _, client):
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"\r\ncontent-length: 9\r\n" in await client.head()
        await client.send(GET)
        assert (await client.reply())[2] == b"ok"
        assert len(upstream.peers) == 1


async def test_f13_a_bomb_in_a_look_up_is_not_inflated() -> None:
    bomb = gzip.compress(zlib.compress(b" " * 10_000_000), mtime=0)
    reply = (
        OK_HEAD
        + b"Content-Type: application/json\r\nContent-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n"
        % len(bomb)
        + bomb
    )
    async with proxied(answering(reply)) as (upstream, _, client):
        await client.send(PATCH_HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        status, headers, _ = await client.reply()
        assert (status, headers[b"content-type"]) == (502, b"application/problem+json")
        [look_up] = upstream.requests
        assert (look_up.target, look_up.header(b"accept-encoding")) == (CONVERSATION.encode(), b"identity")
