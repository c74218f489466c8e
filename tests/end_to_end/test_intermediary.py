"""
The checklist of an intermediary, held by the assembled gateway: bytes in, bytes upstream, bytes out.

Each case has the number of its line: A is RFC 9110, L is RFC 9112, D what the gateway says of itself, F what
its libraries get wrong by themselves. What does not hold to the letter, or is proved in another file:

| line | what holds |
|---|---|
| A5 | an upgrade that the upstream accepts is a tunnel: test_tunnel.py |
| A12 | an upstream's 1xx is dropped: ASGI has no message for it; the gateway sends a 100 of its own |
| A14 | the upstream's Server passes; the gateway has none |
| A17, L17 | values and targets keep every byte; names arrive in lower case, with the standard reason phrase |
| A21 | a name with an underscore passes as it is and shadows nothing |
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
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import http_sf
import pytest

from gateway.errors import GatewayError
from gateway.upstream.pool import Pool
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, Running, gateway
from tests.support.raw_upstream import OK, Peer, RawUpstream, Received, Script, answering, silent
from tests.support.refused_heads import ANSWERS, REFUSED_HEADS, each_of
from tests.support.serving import Client, connect, exchange

ID = b"X-Request-Id: r1\r\n"
PATCH = b"PATCH %b HTTP/1.1\r\nHost: h\r\n" % PARTICIPANT.encode() + ID
STATE = json.dumps({"id": "c1", "participants": [{"id": "p1", "state": "connected"}]}).encode()
DOCUMENT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(STATE),
    STATE,
)


class Pair(NamedTuple):
    upstream: RawUpstream
    gateway: Running
    client: Client

    @property
    def requests(self) -> list[Received]:
        return self.upstream.requests


@asynccontextmanager
async def pair(*scripts: Script, **changes: Any) -> AsyncIterator[Pair]:
    """A client of a gateway in front of an upstream that does what the scripts say, or answers OK."""
    async with (
        RawUpstream(*(scripts or (answering(OK),))) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}", **changes) as running,
        connect(running.port) as client,
    ):
        yield Pair(upstream, running, client)


def pool(running: Running) -> Pool:
    transport = running.gateway.transport
    assert isinstance(transport, Pool)
    return transport


def anonymous(raw: bytes) -> bytes:
    """Without what differs from run to run: this process's name in Via, and the upstream's port."""
    raw = re.sub(rb"gateway \([0-9a-f]{8}\)", b"gateway (x)", raw)
    return re.sub(rb"(?m)^host: 127\.0\.0\.1:[0-9]+", b"host: up", raw)


def expected(
    line: bytes, fields: bytes = b"", host: bytes = b"h", version: bytes = b"1.1", framing: bytes = b""
) -> bytes:
    """The head that the upstream receives: the client's end-to-end fields, and the gateway's own."""
    own = (
        b'forwarded: for=127.0.0.1;host="%b";proto=http\r\nx-forwarded-for: 127.0.0.1\r\n'
        b"x-forwarded-proto: http\r\nx-forwarded-host: %b\r\nvia: %b gateway (x)\r\n"
    ) % (host, host, version)
    return line + b" HTTP/1.1\r\nhost: up\r\n" + fields + own + framing + b"x-request-id: r1\r\n\r\n"


# What is passed on, byte for byte.

FIELDS = [
    ("A1", b"Connection: close, X-Foo\r\nX-Foo: 1\r\nBar: 2\r\n", b"bar: 2\r\n"),
    ("A1", b"Connection: X-Foo\r\nx-fOO: 1\r\nconnection: ,, x-baR ,\r\nX-BAR: 2\r\nX-Fo: 3\r\n",
     b"x-fo: 3\r\n"),
    ("A1", b"X-Foo: 1\r\nConnection: keep-alive,\tX-Foo\r\nX-Foo: 2\r\n", b""),
    ("A2", b"Proxy-Connection: close\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: x/1\r\n", b""),
    ("A2", b"Trailer: X\r\nHTTP2-Settings: AAMAAABk\r\nProxy-Authorization: Basic eA==\r\n", b""),
    ("A5", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n", b""),
    ("A8", b"Max-Forwards: 7\r\n", b"max-forwards: 7\r\n"),
    ("A10", b"Expect: 100-continue\r\n", b""),
    ("A15", b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(20)),
     b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(20))),
    ("A15", b"X-A: 1\r\nX-B: 2\r\nX-A: 3, 4\r\nx-a:\r\nX-A: 1\r\n",
     b"x-a: 1\r\nx-b: 2\r\nx-a: 3, 4\r\nx-a: \r\nx-a: 1\r\n"),
    ("A16", b"", b""),
    ("A17", b"Authorization:   bEARer  \xe9\t'\"=== \r\n", b"authorization: bEARer  \xe9\t'\"===\r\n"),
    ("A17", b"Authorization: Bearer %b\r\n" % (b"t" * 8192), b"authorization: Bearer %b\r\n" % (b"t" * 8192)),
    ("A20", b"X-A: caf\xe9 \x80\xff\r\n", b"x-a: caf\xe9 \x80\xff\r\n"),
    ("A21", b"X_Forwarded_For: 6.6.6.6\r\nContent_Length: 9\r\nTransfer_Encoding: chunked\r\n",
     b"x_forwarded_for: 6.6.6.6\r\ncontent_length: 9\r\ntransfer_encoding: chunked\r\n"),
    ("A25", b'If-Match: "a", W/"b"\r\nIf-None-Match: *\r\nIf-Modified-Since: x\r\nRange: bytes=0-1\r\n',
     b'if-match: "a", W/"b"\r\nif-none-match: *\r\nif-modified-since: x\r\nrange: bytes=0-1\r\n'),
    ("D2", b"Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n", b""),
    ("D2", b"X-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\n", b""),
    ("D7", b"X-Correlation-Id: 1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
     b"x-correlation-id: 1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"),
    ("F5", b"Accept:\r\nUser-Agent: \r\n", b"accept: \r\nuser-agent: \r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "given", "passed"), FIELDS)
async def test_a_requests_fields(number: str, given: bytes, passed: bytes) -> None:
    async with pair() as (upstream, _, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\n" + ID + given + b"\r\n")
        assert (await client.reply())[0] == 200
    assert anonymous(bytes(upstream.peers[0].received)) == expected(b"GET /x", passed)


LINES = [
    ("A23", b"patch /x", b"patch /x"),
    ("A23", b"Get /x", b"Get /x"),
    ("A23", b"BREW /x", b"BREW /x"),
    ("L14", b"GET http://h/x?y", b"GET /x?y"),
    ("L14", b"GET HTTP://H", b"GET /"),
    ("L14", b"GET http://h?y", b"GET /?y"),
    ("L15", b"OPTIONS *", b"OPTIONS *"),
    ("L15", b"OPTIONS http://h", b"OPTIONS *"),
    *(
        ("L17", b"GET " + target, b"GET " + target)
        for target in (
            b"/a/../b", b"/./a", b"/%2e%2e/", b"//x", b"/a//", b"/a?", b"/?", b"/a?b?c", b"/;p", b"/a;p=1/b",
            b"/%2F%2f%5c", b"/%00%0d%0a", b"/%zz%", b"/?x=%zz|\"'", b"/<>{}^`\\", b"/@evil", b"//evil/x",
            b"/:80@evil", b"/http://evil/", b"/a:b@c", b"/~!$&'()*+,=", b"/" + b"a" * 8_000,
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("number", "given", "passed"), LINES)
async def test_a_request_line(number: str, given: bytes, passed: bytes) -> None:
    async with pair() as (upstream, _, client):
        await client.send(given + b" HTTP/1.1\r\nHost: h\r\n" + ID + b"\r\n")
        assert (await client.reply())[0] == 200
    assert anonymous(bytes(upstream.peers[0].received)) == expected(passed)


@pytest.mark.parametrize(
    ("number", "given", "version"),
    [
        ("L12", b"\r\nGET / HTTP/1.1\r\nHost: h\r\n", b"1.1"),
        ("L12", b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n", b"1.1"),
        ("L18", b"GET / HTTP/1.2\r\nHost: h\r\n", b"1.1"),
        ("L18", b"GET / HTTP/1.0\r\nHost: h\r\n", b"1.0"),
        ("A11", b"GET / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\n", b"1.0"),
        ("A11", b"GET / HTTP/1.0\r\nHost: h\r\nExpect: the-unexpected\r\n", b"1.0"),
        ("A6", b"GET / HTTP/1.1\r\nHost: h\r\nVia: 1.0 x\r\nVia: 1.1 y (z)\r\n", b"1.0 x, 1.1 y (z), 1.1"),
    ],
)
async def test_a_head(number: str, given: bytes, version: bytes) -> None:
    async with pair() as (upstream, _, client):
        await client.send(given + ID + b"\r\n")
        head = await client.head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert anonymous(bytes(upstream.peers[0].received)) == expected(b"GET /", version=version)


TRAILERS = b"Authorization: Bearer evil\r\nContent-Type: evil/evil\r\nHost: evil\r\nContent-Length: 5\r\n"


@pytest.mark.parametrize(
    ("number", "given", "framing", "body"),
    [
        ("L5", b"Content-Length: 3\r\n\r\nabc", b"content-length: 3\r\n", b"abc"),
        ("L5", b"Content-Length: 003\r\n\r\nabc", b"content-length: 003\r\n", b"abc"),
        ("L5", b"Content-Length: 0\r\n\r\n", b"content-length: 0\r\n", b""),
        ("L7", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"", b"abc"),
        ("L7", b'Transfer-Encoding: Chunked\r\n\r\n1;a;c="d\\""\r\na\r\n02\r\nbc\r\n0\r\n\r\n', b"", b"abc"),
        ("A13", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + TRAILERS + b"\r\n", b"", b"abc"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "byte by byte"])
async def test_a_requests_body(number: str, given: bytes, framing: bytes, body: bytes, apart: bool) -> None:
    """F4: not even with a trailer in the same segment."""
    async with pair() as (upstream, _, client):
        data = b"POST /x HTTP/1.1\r\nHost: h\r\n" + ID + given
        for piece in [data[i : i + 1] for i in range(len(data))] if apart else [data]:
            await client.send(piece)
        assert (await client.reply())[0] == 200
        head = anonymous(bytes(upstream.peers[0].received)).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        if framing:
            assert head == expected(b"POST /x", framing)
        else:
            chunked = expected(b"POST /x", framing=b"transfer-encoding: chunked\r\n")
            assert head == chunked
        assert [request.body for request in upstream.requests] == [body]
        assert b"evil" not in upstream.peers[0].received


# What is refused: nothing of it reaches the upstream, and nothing after it on its connection is read.

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@each_of(*REFUSED_HEADS)
async def test_what_is_refused(data: bytes, error: type[GatewayError]) -> None:
    status, slug = ANSWERS[error]
    async with pair() as (upstream, running, client):
        await client.send(data + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
        answered, headers, body = await client.reply()
        assert await client.rest() == b""
        assert upstream.peers == []
        # D3, D4, D8: our own, said in three places.
        assert (answered, headers[b"content-type"]) == (status, b"application/problem+json")
        assert headers[b"connection"] == b"close"
        assert json.loads(body)["status"] == status
        parsed: Any = http_sf.parse(headers[b"proxy-status"], tltype="list")
        [(token, parameters)] = parsed
        assert (str(token), str(parameters["error"])) == ("gateway", "http_request_error")
        assert running.gateway.stats.refused == {slug: 1}


BAD_CHUNKS = [
    *(size + b"\r\na\r\n" for size in (
        b"0x1", b"+1", b"-1", b"1_0", b" 1", b"1 ", b"1;", b"1;a\rb", b"1;a=\x01", b"1;\n", b"1\r", b"g",
        b"\xb2", b"1" * 30, b"8000000000000000", b"10000000000000000", b"1;" + b"a" * 2_000,
    )),
    b"1\na\r\n", b"1\r\na\n", b"1\r\nab\r\n", b"1\r\na", b"\r\n1\r\na\r\n",
    *(b"0\r\n" + trailer + b"\r\n\r\n" for trailer in (b"X: a\n", b"X : a", b" X: a", b"no colon", b"X: \0")),
]  # fmt: skip


@pytest.mark.parametrize("chunks", BAD_CHUNKS)
async def test_l7_a_chunked_body_that_breaks_the_rules_is_never_complete_upstream(chunks: bytes) -> None:
    async with pair(answering(OK)) as (upstream, _, client):
        # A chunk before it, so that the head has gone when the body turns out to be wrong.
        await client.send(
            CHUNKED + b"1\r\n!\r\n" + chunks + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
        )
        status, headers, _ = await client.reply()
        assert await client.rest() == b""
        assert (status, headers[b"connection"]) == (400, b"close")
        assert upstream.requests == []
        assert all(b"0\r\n\r\n" not in peer.received for peer in upstream.peers)


# Replies: what the upstream sends, what the client gets.

HEAD = b"HTTP/1.1 200 OK\r\n"
NONE = b"Content-Length: 0\r\n\r\n"
LENGTH = b"content-length: 0\r\n"
REPLIES = [
    ("A4", HEAD + b"Connection: X-Secret, close\r\nX-Secret: 1\r\nContent-Length: 2\r\n\r\nok",
     HEAD + b"content-length: 2\r\n", b"ok"),
    ("A4", HEAD + b"Connection: X-A\r\nx-a: 1\r\nconnection: X-B\r\nX-B: 2\r\nX-C: 3\r\n" + NONE,
     HEAD + b"x-c: 3\r\n" + LENGTH, b""),
    ("A4", HEAD + b"Keep-Alive: timeout=5\r\nTrailer: X\r\nUpgrade: h2c\r\nProxy-Authenticate: a\r\n" + NONE,
     HEAD + LENGTH, b""),
    ("A12", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK,
     HEAD + b"content-length: 2\r\n", b"ok"),
    ("A13", HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nSet-Cookie: evil=1\r\n\r\n",
     HEAD, b"ok"),
    ("A14", HEAD + b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: s/1\r\n" + NONE,
     HEAD + b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: s/1\r\n" + LENGTH, b""),
    ("A15", HEAD + b"Set-Cookie: a=1, b\r\nX: 1\r\nSet-Cookie: c=2\r\nX: 2\r\nset-cookie: a=1, b\r\n" + NONE,
     HEAD + b"set-cookie: a=1, b\r\nx: 1\r\nset-cookie: c=2\r\nx: 2\r\nset-cookie: a=1, b\r\n" + LENGTH, b""),
    ("A17", b"HTTP/1.1 401 No\r\nWWW-Authenticate:  bEarer  realm=\"\xe9\", x=1 \r\n" + NONE,
     b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: bEarer  realm=\"\xe9\", x=1\r\n" + LENGTH, b""),
    ("A20", HEAD + b"X: caf\xe9 \x80\xff\r\n" + NONE,
     HEAD + b"x: caf\xe9 \x80\xff\r\n" + LENGTH, b""),
    ("A29", b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n", b"HTTP/1.1 204 No Content\r\nx: 1\r\n", b""),
    ("A29", b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
     b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n", b""),
    ("D5", b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: other; error=dns_error\r\n" + NONE,
     b"HTTP/1.1 502 Bad Gateway\r\nproxy-status: other; error=dns_error\r\n" + LENGTH, b""),
    ("D5", b"HTTP/1.1 504 x\r\n" + NONE,
     b"HTTP/1.1 504 Gateway Timeout\r\n" + LENGTH, b""),
    ("D7", b"HTTP/1.1 429 x\r\nRetry-After: 7\r\nRateLimit: x;r=0\r\n" + NONE,
     b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\nratelimit: x;r=0\r\n" + LENGTH, b""),
    ("D7", b"HTTP/1.1 503 x\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n" + NONE,
     b"HTTP/1.1 503 Service Unavailable\r\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n" + LENGTH, b""),
    ("F11", b"HTTP/1.1 999 Odd\r\n" + NONE, b"HTTP/1.1 999 \r\n" + LENGTH, b""),
    ("L10", HEAD + b"X:1\r\nY:\t2 \t\r\n" + NONE, HEAD + b"x: 1\r\ny: 2\r\n" + LENGTH, b""),
    ("L18", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", HEAD + b"content-length: 2\r\n", b"ok"),
    ("L21", HEAD + b"X: 1\r\n\r\nuntil close", HEAD + b"x: 1\r\n", b"until close"),
    ("D-1", HEAD + b"Gateway-Rewrite: forged\r\nX-Request-Id: theirs\r\n" + NONE,
     HEAD + b"x-request-id: theirs\r\n" + LENGTH, b""),
]  # fmt: skip


def once(reply: bytes) -> Script:
    """Answers one request, then ends."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply)

    return script


@pytest.mark.parametrize(("number", "sent", "head", "body"), REPLIES)
async def test_a_reply(number: str, sent: bytes, head: bytes, body: bytes) -> None:
    async with pair(once(sent), answering(OK)) as (upstream, _, client):
        await client.send(GET + ID + b"\r\n")
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
        # And the connection is of use.
        await client.send(GET + b"\r\n")
        assert (await client.reply())[::2] == (200, b"ok")
        assert len(upstream.requests) == 2


BAD_LENGTHS = (
    b"-1", b"+1", b"0x5", b"1_0", b"1,2", b"1, 1", b"", b"1 1", b"1.0", b"1e1", b"\xb2", b"\xd9\xa1", b"five",
    b"9223372036854775808", b"18446744073709551616", b"1" * 30,
)  # fmt: skip
BROKEN = [
    ("L9", HEAD + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    ("L9", HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("L10", HEAD + b"X : a\r\nContent-Length: 0\r\n\r\n"),
    ("L8", HEAD + b"X: a\nY: b\r\nContent-Length: 0\r\n\r\n"),
    ("L8", HEAD + b"X: a\rY: b\r\nContent-Length: 0\r\n\r\n"),
    ("A18", HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n"),
    ("A18", HEAD + b"X\xe9: a\r\nContent-Length: 0\r\n\r\n"),
    ("A19", HEAD + b"X: a\x07b\r\nContent-Length: 0\r\n\r\n"),
    ("A19", HEAD + b"X: a\x7fb\r\nContent-Length: 0\r\n\r\n"),
    ("A12", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
    *(("L19", HEAD + b"Content-Length: %b\r\n\r\n0123" % length) for length in BAD_LENGTHS),
    ("L19", HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("L19", HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
    ("L19", HEAD + b"Content-Length: 0000000000000000000000002\r\n\r\nok"),
    ("L20", HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("L20", HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    ("L20", HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("L20", HEAD + b"Transfer-Encoding: identity\r\n\r\nabc"),
    ("L20", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("L18", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("L18", b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n"),
    ("L18", b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n"),
    ("L18", b"ICY 200 OK\r\n\r\n"),
    ("L18", b"<html>"),
    ("A22", HEAD + b"X: %b\r\n\r\n" % (b"a" * 70_000)),
    ("A22", HEAD + b"X: a\r\n" * 300 + b"\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "sent"), BROKEN)
async def test_a_reply_that_breaks_the_rules_is_502_and_its_connection_closed(
    number: str, sent: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.gone()

    async with pair(script, answering(OK)) as (upstream, _, client):
        await client.send(GET + b"\r\n")
        status, headers, body = await client.reply()
        assert (status, headers[b"content-type"]) == (502, b"application/problem+json"), body
        assert headers[b"proxy-status"] == b"gateway; error=http_protocol_error"
        # The next client gets its own, on another connection.
        await client.send(GET + b"\r\n")
        assert (await client.reply())[::2] == (200, b"ok")
        assert len(upstream.peers) == 2


async def test_a22_a_reply_that_cannot_be_passed_on_is_502_too() -> None:
    """The protocol below refuses what the transport above lets through: the client must not see a 500."""
    long = b"x" * 300 + b": a\r\n"
    switching = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n" + long + b"\r\n"
    async with pair(once(HEAD + long + b"\r\n"), once(switching)) as (_, _, client):
        for fields in (b"", b"Connection: upgrade\r\nUpgrade: websocket\r\n"):
            await client.send(GET + fields + b"\r\n")
            status, headers, _ = await client.reply()
            assert (status, headers[b"proxy-status"]) == (502, b"gateway; error=http_protocol_error")


@pytest.mark.parametrize(
    ("sent", "framing"),
    [
        (HEAD + b"Content-Length: 10\r\n\r\n", "length"),
        (HEAD + b"Content-Length: 10\r\n\r\n0", "length"),
        (HEAD + b"Content-Length: 10\r\n\r\n012345678", "length"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", "chunked"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n01", "chunked"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n01\r\n", "chunked"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n01\r\n0\r\n", "chunked"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n01\r\nnonsense", "chunked"),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_l21_a_reply_that_breaks_off_is_never_complete(
    sent: bytes, framing: str, version: bytes
) -> None:
    """F9. An HTTP/1.0 client, for whom the end of the connection is the end of the reply, sees a reset."""
    async with pair(once(sent)) as (_, _, client):
        await client.send(b"GET /x HTTP/%b\r\nHost: h\r\n\r\n" % version)
        try:
            raw = await client.rest()
        except ConnectionResetError:
            return
        if not raw:
            return
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-length: 10" in head or version == b"1.1"
        assert len(body) < 10 if framing == "length" else not body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "surplus", [b"!", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"0\r\n\r\n", OK]
)
@pytest.mark.parametrize("first", [OK, HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"])
async def test_l20_what_follows_a_reply_is_nobodys(surplus: bytes, first: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(first + surplus)
        await peer.gone()

    async with pair(script, answering(HEAD + b"Content-Length: 4\r\n\r\nmine")) as (
        upstream,
        running,
        client,
    ):
        await client.send(GET + b"\r\n")
        assert (await client.reply())[2] == b"ok"
        async with connect(running.port) as other:
            await other.send(GET + b"\r\n")
            assert (await other.reply())[2] == b"mine"
        assert len(upstream.peers) == 2


async def test_a29_a_reply_to_head_keeps_its_length_and_has_no_body() -> None:
    async with pair(answering(HEAD + b"Content-Length: 9\r\n\r\n", OK)) as (upstream, _, client):
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"\r\ncontent-length: 9\r\n" in await client.head()
        await client.send(GET + b"\r\n")
        assert (await client.reply())[2] == b"ok"
        assert len(upstream.peers) == 1


# One at a time.


async def test_a5_an_upgrade_is_no_tunnel_before_a_101() -> None:
    second = b"GET /second HTTP/1.1\r\nHost: h\r\n" + ID + b"\r\n"
    async with pair() as (upstream, _, client):
        await client.send(
            b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            + ID
            + b"\r\n"
            + second
        )
        assert [(await client.reply())[0] for _ in range(2)] == [200, 200]
        upgrade = expected(b"GET /x")[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
        assert [anonymous(request.raw) for request in upstream.requests] == [
            upgrade,
            expected(b"GET /second"),
        ]


async def test_a7_a_request_that_comes_back_is_a_loop() -> None:
    port = 0

    async def back(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(
            await exchange(port, request.raw.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        )

    async with pair(back) as (upstream, running, client):
        port = running.port
        await client.send(GET + b"\r\n")
        status, headers, _ = await client.reply()
        assert (status, headers[b"proxy-status"]) == (502, b"gateway; error=proxy_loop_detected")
        assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("given", "passed"),
    [(b"0", None), (b"00", None), (b"1", b"0"), (b"10", b"9"), (b"99999999999", b"999999998"),
     (b"abc", b"abc"), (b"9" * 5_000, b"999999998"), (b"-1", b"-1")],
)  # fmt: skip
async def test_a8_max_forwards_is_counted_down_for_options(given: bytes, passed: bytes | None) -> None:
    async with pair() as (upstream, _, client):
        await client.send(b"OPTIONS /x HTTP/1.1\r\nHost: h\r\nMax-Forwards: %b\r\n" % given + ID + b"\r\n")
        status, headers, _ = await client.reply()
        assert status == 200
        if passed is None:
            assert (upstream.requests, b"PATCH" in headers[b"allow"]) == ([], True)
        else:
            line = b"max-forwards: %b\r\n" % passed
            assert anonymous(upstream.requests[0].raw) == expected(b"OPTIONS /x", line)


async def test_a10_no_100_where_the_head_alone_decides() -> None:
    big = PATCH + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n"
    async with pair() as (upstream, _, client):
        await client.send(big)
        assert (await client.reply())[0] == 413
        assert await client.rest() == b""
        assert upstream.requests == []


async def test_a10_a_body_that_is_wanted_is_asked_for() -> None:
    async with pair() as (upstream, _, client):
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
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

    async with pair(cut, answering(OK)) as (upstream, _, client):
        if warm:
            await client.send(GET + b"\r\n")
            await client.reply()
        await client.send(method + b" /once HTTP/1.1\r\nHost: h\r\n\r\n")
        status, headers, _ = await client.reply()
        assert (status, headers[b"proxy-status"]) == (502, b"gateway; error=connection_terminated")
        assert b"retry-after" not in headers
        assert [request.target for request in upstream.requests].count(b"/once") == 1
        assert len(upstream.peers) == 1


def conversation(*answers: bytes) -> Script:
    """Answers a GET with the conversation's document, anything else with the next answer, or OK."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(DOCUMENT if request.method == b"GET" else left.pop(0) if left else OK)

    return script


@pytest.mark.parametrize(
    ("number", "fields", "body", "passed"),
    [
        ("A26", b"Cache-Control: no-transform\r\n", BODY, BODY),
        ("A27", b"Content-Digest: sha-256=:x:\r\n", BODY, BODY),
        ("A27", b"Signature: a=:x:\r\n", BODY, BODY),
        ("A28", b"Content-Type: application/json\r\nContent-Encoding: br\r\n", BODY, BODY),
        ("A28", b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", BODY, BODY),
        ("F12", b"Content-Type: application/json\r\n", b'{"a":1E400,"b":1.10,"a":-0}',
         b'{"state":"connected","a":1E400,"b":1.10,"a":-0}'),
        ("F12", b"Content-Type: application/json\r\n", b'{"a":NaN}', b'{"a":NaN}'),
        ("A27", b"Content-Type: text/plain\r\n", BODY, FILLED),
        ("A30", b"Content-Type: application/json-patch+json\r\n", b"[]", b"[]"),
    ],
)  # fmt: skip
async def test_a_call_that_a_rule_matches(number: str, fields: bytes, body: bytes, passed: bytes) -> None:
    async with pair(conversation()) as (upstream, _, client):
        await client.send(PATCH + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await client.reply()
        [patch] = [request for request in upstream.requests if request.method == b"PATCH"]
        assert patch.body == passed
        assert [value for name, value in patch.headers if name == b"content-length"] == [b"%d" % len(passed)]
        kept = [line.partition(b": ") for line in fields.split(b"\r\n") if line]
        if body == passed:
            assert all(patch.header(name.lower()) == value for name, _, value in kept)
        else:
            assert patch.header(b"content-type") == b"application/json"


@pytest.mark.parametrize("path", ["/x/../", "//", "/%2e/", "/;p/"])
async def test_l17_a_target_that_would_only_match_when_normalised_is_passed_on(path: str) -> None:
    target = PARTICIPANT.replace("/participants", path + "participants").encode()
    async with pair(conversation()) as (upstream, _, client):
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (target, len(BODY)) + BODY
        )
        _, headers, _ = await client.reply()
        assert [(request.method, request.target, request.body) for request in upstream.requests] == [
            (b"PATCH", target, BODY)
        ]
        assert b"gateway-rewrite" not in headers


async def test_l6_a_huge_length_is_bounded_by_the_deadline() -> None:
    async with pair(silent, limits={"body_timeout": "100ms"}) as (upstream, running, client):
        await client.send(POST + b"Content-Length: 999999999999999999\r\n\r\na")
        status, headers, _ = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert upstream.requests == []
        assert pool(running).size == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_l22_what_follows_a_refused_call_is_its_body_and_no_request(chunked: bool) -> None:
    inside = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    framing = (
        b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % (len(inside) + 1000)
    )
    async with pair(limits={"max_body": 10}) as (upstream, _, client):
        data = (
            b"400\r\n" + inside + b" " * (1024 - len(inside)) + b"\r\n" if chunked else inside + b" " * 1000
        )
        await client.send(PATCH + framing + b"\r\n" + data)
        assert (await client.reply())[0] == 413
        if chunked:
            await client.send(b"0\r\n\r\n")
        await client.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.reply())[0] == 200
        assert [request.target for request in upstream.requests] == [b"/next"]


async def test_l23_an_early_reply_reaches_a_client_that_still_sends() -> None:
    async def early(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with pair(early, answering(OK)) as (_, running, client):
        await client.send(POST + b"Content-Length: 10000000\r\n\r\n" + b"a" * 100_000)
        assert (await client.reply())[::2] == (413, b"no")
        await asyncio.sleep(0)
        assert pool(running).size == 0


async def test_l24_close_is_honoured_both_ways() -> None:
    closing = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"
    async with pair(answering(closing)) as (upstream, _, client):
        await client.send(GET + b"\r\n")
        status, headers, _ = await client.reply()
        assert (status, b"connection" in headers) == (200, False)
        await client.send(GET + b"Connection: close\r\n\r\n" + GET + b"\r\n")
        _, headers, _ = await client.reply()
        assert headers[b"connection"] == b"close"
        assert await client.rest() == b""
        assert [len(upstream.peers), len(upstream.requests)] == [2, 2]


async def test_l25_pipelined_requests_are_answered_in_order() -> None:
    held = asyncio.Event()

    async def slow_first(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/1":
                await held.wait()
            await peer.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(request.target) + request.target)

    async with pair(slow_first) as (upstream, _, client):
        numbers = [b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in (1, 2, 3)]
        await client.send(b"".join(numbers) + b"BAD\r\n\r\n" + numbers[0])
        held.set()
        assert [(await client.reply())[2] for _ in range(3)] == [b"/1", b"/2", b"/3"]
        assert (await client.reply())[0] == 400
        assert await client.rest() == b""
        assert len(upstream.requests) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_d1_nothing_of_one_client_is_seen_by_another(host: str) -> None:
    """F1, C4. Under a name too: cookie jars tend to leave addresses alone."""
    number = 0

    async def personal(peer: Peer) -> None:
        nonlocal number
        while True:
            request = await peer.request()
            number += 1
            body = request.header(b"authorization") or b""
            await peer.send(
                HEAD
                + b"Set-Cookie: s=%d\r\nX-Yours: %b\r\nContent-Length: %d\r\n\r\n" % (number, body, len(body))
                + body
            )

    async def one(port: int, n: int) -> None:
        async with connect(port) as client:
            for _ in range(3):
                await client.send(GET + b"Authorization: secret-%d\r\n\r\n" % n)
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


@pytest.mark.parametrize("trusted", [False, True])
async def test_d2_the_hops_before_are_believed_of_a_trusted_peer_alone(trusted: bool) -> None:
    listen = {"trusted_proxies": ["127.0.0.0/8"]} if trusted else {}
    async with pair(listen=listen) as (upstream, _, client):
        await client.send(
            GET
            + b'Forwarded: for="[::1]:4711"\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n\r\n'
        )
        await client.reply()
        request = upstream.requests[0]
        before = b'for="[::1]:4711", ' if trusted else b""
        assert request.header(b"forwarded") == before + b'for=127.0.0.1;host="h";proto=http'
        assert (
            request.header(b"x-forwarded-for") == (b"6.6.6.6, 7.7.7.7, " if trusted else b"") + b"127.0.0.1"
        )


async def test_f13_a_bomb_in_a_look_up_is_not_inflated() -> None:
    bomb = gzip.compress(zlib.compress(b" " * 10_000_000), mtime=0)
    reply = (
        HEAD
        + b"Content-Type: application/json\r\nContent-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n"
        % len(bomb)
        + bomb
    )
    async with pair(answering(reply)) as (upstream, _, client):
        await client.send(PATCH + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        status, headers, _ = await client.reply()
        assert (status, headers[b"content-type"]) == (502, b"application/problem+json")
        [look_up] = upstream.requests
        assert (look_up.target, look_up.header(b"accept-encoding")) == (CONVERSATION.encode(), b"identity")


async def test_f2_no_target_leads_anywhere_but_to_the_upstream() -> None:
    async with RawUpstream(answering(OK)) as evil, pair() as (upstream, _, client):
        address = b"127.0.0.1:%d" % evil.port
        for target in (
            b"/@" + address,
            b"//" + address + b"/x",
            b"/http://" + address,
            b"/x?http://" + address,
        ):
            await client.send(
                b"GET %b HTTP/1.1\r\nHost: %b\r\nX-Forwarded-Host: %b\r\n\r\n" % (target, address, address)
            )
            assert (await client.reply())[0] == 200
        assert [request.header(b"host") for request in upstream.requests] == [
            b"127.0.0.1:%d" % upstream.port
        ] * 4
        assert evil.peers == []
