"""
What of a request reaches the upstream, byte for byte. The numbers are those of the checklist in
test_intermediary.py.
"""

from __future__ import annotations

import re

import pytest

from tests.support.calls import GET_HEAD, ID, PATCH_HEAD, conversation
from tests.support.gateways import BODY, FILLED, PARTICIPANT, proxied
from tests.support.raw_upstream import OK, RawUpstream, answering


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
    ("A21", b"X_Forwarded_For: 6.6.6.6\r\nContent_Length: 9\r\nTransfer_Encoding: chunked\r\nX_A: 1\r\n",
     b"x_a: 1\r\n"),
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
    async with proxied() as (upstream, _, client):
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
    async with proxied() as (upstream, _, client):
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
    async with proxied() as (upstream, _, client):
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
    async with proxied() as (upstream, _, client):
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


async def test_a5_an_upgrade_is_no_tunnel_before_a_101() -> None:
    second = b"GET /second HTTP/1.1\r\nHost: h\r\n" + ID + b"\r\n"
    async with proxied() as (upstream, _, client):
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


@pytest.mark.parametrize(
    ("given", "passed"),
    [(b"0", None), (b"00", None), (b"1", b"0"), (b"10", b"9"), (b"99999999999", b"999999998"),
     (b"abc", b"abc"), (b"9" * 5_000, b"999999998"), (b"-1", b"-1")],
)  # fmt: skip
async def test_a8_max_forwards_is_counted_down_for_options(given: bytes, passed: bytes | None) -> None:
    async with proxied() as (upstream, _, client):
        await client.send(b"OPTIONS /x HTTP/1.1\r\nHost: h\r\nMax-Forwards: %b\r\n" % given + ID + b"\r\n")
        status, headers, _ = await client.reply()
        assert status == 200
        if passed is None:
            assert (upstream.requests, b"PATCH" in headers[b"allow"]) == ([], True)
        else:
            line = b"max-forwards: %b\r\n" % passed
            assert anonymous(upstream.requests[0].raw) == expected(b"OPTIONS /x", line)


@pytest.mark.parametrize("trusted", [False, True])
async def test_d2_the_hops_before_are_believed_of_a_trusted_peer_alone(trusted: bool) -> None:
    listen = {"trusted_proxies": ["127.0.0.0/8"]} if trusted else {}
    async with proxied(listen=listen) as (upstream, _, client):
        await client.send(
            GET_HEAD
            + b'Forwarded: for="[::1]:4711"\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n\r\n'
        )
        await client.reply()
        request = upstream.requests[0]
        before = b'for="[::1]:4711", ' if trusted else b""
        assert request.header(b"forwarded") == before + b'for=127.0.0.1;host="h";proto=http'
        assert (
            request.header(b"x-forwarded-for") == (b"6.6.6.6, 7.7.7.7, " if trusted else b"") + b"127.0.0.1"
        )


@pytest.mark.parametrize("path", ["/x/../", "//", "/%2e/", "/;p/"])
async def test_a_target_that_would_only_match_when_normalised_is_passed_on(path: str) -> None:
    target = PARTICIPANT.replace("/participants", path + "participants").encode()
    async with proxied(conversation()) as (upstream, _, client):
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (target, len(BODY)) + BODY
        )
        _, headers, _ = await client.reply()
        assert [(request.method, request.target, request.body) for request in upstream.requests] == [
            (b"PATCH", target, BODY)
        ]
        assert b"gateway-rewrite" not in headers


async def test_f2_no_target_leads_anywhere_but_to_the_upstream() -> None:
    async with RawUpstream(answering(OK)) as evil, proxied() as (upstream, _, client):
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
    async with proxied(conversation()) as (upstream, _, client):
        await client.send(PATCH_HEAD + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await client.reply()
        [patch] = [request for request in upstream.requests if request.method == b"PATCH"]
        assert patch.body == passed
        assert [value for name, value in patch.headers if name == b"content-length"] == [b"%d" % len(passed)]
        kept = [line.partition(b": ") for line in fields.split(b"\r\n") if line]
        if body == passed:
            assert all(patch.header(name.lower()) == value for name, _, value in kept)
        else:
            assert patch.header(b"content-type") == b"application/json"
