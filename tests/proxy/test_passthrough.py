"""What no rule matches is carried through both ways as it comes: bytes, order, timing, where it breaks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway import app
from gateway.config import UpstreamSettings
from gateway.proxy.passthrough import AHEAD, PATIENCE
from tests.support.clients import bare_client
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, gateway, settings
from tests.support.judging import refused_by_the_gateway, until
from tests.support.mocking import mock
from tests.support.raw_upstream import OK, Peer, RawUpstream, Script, answering
from tests.support.serving import Client, connect, serve

LARGE = b"x" * (AHEAD + 1)  # what is sent on at once; less is waited for, two seconds at most


def url(upstream: RawUpstream) -> str:
    return f"http://127.0.0.1:{upstream.port}"


@asynccontextmanager
async def carried(*scripts: Script, **changes: Any) -> AsyncIterator[tuple[RawUpstream, Client]]:
    """A raw upstream, the gateway before it, and one raw connection to that."""
    async with (
        RawUpstream(*scripts) as upstream,
        gateway(url(upstream), **changes) as running,
        connect(running.port) as client,
    ):
        yield upstream, client


@asynccontextmanager
async def served(**upstream: Any) -> AsyncIterator[int]:
    """The port of a gateway with these settings of its upstream."""
    chosen = settings(upstream["url"], "/dev/null").model_copy(
        update={"upstream": UpstreamSettings(**upstream)}
    )
    built = app.build(chosen)
    limits = app.downstream_limits(chosen)
    try:
        async with serve(built.app, limits, built.stats) as port:
            yield port
    finally:
        await built.close()


# --- as it was sent


@pytest.mark.parametrize(
    "method",
    [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "PROPFIND",
        "patch",
        "get",
        "FOO",
        "M-SEARCH",
    ],
)
async def test_any_method_passes_as_it_was_sent(method: str) -> None:
    async with carried(answering(OK if method != "HEAD" else OK[:-2])) as (upstream, client):
        await client.send(f"{method} /some/where?x=1 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b" 200 " in await client.head()
        assert upstream.requests[0].method == method.encode()
        assert upstream.requests[0].target == b"/some/where?x=1"


@pytest.mark.parametrize(
    "target",
    [
        b"/", b"//", b"///a//b/", b"/a?", b"/?", b"/a?b?c", b"/a/../b", b"/./a/.", b"/%2e%2e/%2F%5c",
        b"/%zz%", b"/a;p=1;q?x=%zz|\"'`{}[]^\\<>", b"/a%00b", b"//evil.example/x", b"/@evil.example",
        b"/:80@evil.example/", b"/http://evil.example/", b"/a?u=http://evil.example/", b"/" + b"x" * 8000,
    ],
)  # fmt: skip
async def test_the_target_goes_on_byte_for_byte_and_never_chooses_the_upstream(target: bytes) -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].target == target


async def test_callers_who_take_turns_on_a_connection_are_never_mixed() -> None:
    """S6: their fields are equally long, and those of each are remembered from the second time on."""
    callers = [b"a", b"a", b"a", b"b", b"a", b"b", b"b", b"b", b"a"]
    async with carried(answering(OK)) as (upstream, client):
        for caller in callers:
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % caller)
            assert (await client.reply())[0] == 200

        said = [dict(request.headers)[b"authorization"] for request in upstream.requests]
        assert said == [b"Bearer " + caller for caller in callers]


async def test_options_of_the_server_as_a_whole_passes() -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].target == b"*"


@pytest.mark.parametrize(
    ("line", "host", "status"),
    [
        (b"GET @evil.example/x HTTP/1.1", b"a", 400),
        (b"GET :80@evil.example/x HTTP/1.1", b"a", 400),
        (b"GET evil.example/x HTTP/1.1", b"a", 400),
        (b"GET ?x HTTP/1.1", b"a", 400),
        (b"GET /a#b HTTP/1.1", b"a", 400),
        (b"GET * HTTP/1.1", b"a", 400),
        (b"GET http://evil.example/x HTTP/1.1", b"a", 421),
        (b"GET http://user@evil.example/x HTTP/1.1", b"evil.example", 400),
        (b"GET ftp://evil.example/x HTTP/1.1", b"evil.example", 400),
        (b"GET file:///etc/passwd HTTP/1.1", b"a", 400),
        (b"CONNECT evil.example:443 HTTP/1.1", b"evil.example:443", 405),
        (b"GET /x HTTP/1.1", b"evil.example/y", 400),
        (b"GET /x HTTP/1.1", b"a@evil.example", 400),
        (b"GET /x HTTP/1.1", b"a\r\nHost: evil.example", 400),
    ],
)
async def test_what_names_another_server_is_refused_and_nothing_is_sent(
    line: bytes, host: bytes, status: int
) -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"%b\r\nHost: %b\r\n\r\n" % (line, host))
        found, headers, _ = await client.reply()
        assert found == status
        assert b"proxy-status" in headers
        assert upstream.peers == []


@pytest.mark.parametrize("target", [b"http://evil.example/x?y", b"http://EVIL.example:80/x?y"])
async def test_an_absolute_target_goes_to_the_one_upstream_all_the_same(target: bytes) -> None:
    """RFC 9112 section 3.2.2: it must be accepted; that it chose the server is nowhere said."""
    authority = target.split(b"/")[2]
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, authority))
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].target == b"/x?y"
        assert upstream.requests[0].header(b"host") == b"127.0.0.1:%d" % upstream.port


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-Host: evil.example", "Forwarded: host=evil.example", "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin", "X-Host: evil.example", "X-HTTP-Host-Override: evil.example",
        "Destination: http://evil.example/", "Alt-Used: evil.example", "Origin: http://evil.example",
    ],
)  # fmt: skip
async def test_no_header_chooses_the_upstream_or_the_target(header: str) -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(f"GET /x HTTP/1.1\r\nHost: evil.example\r\n{header}\r\n\r\n".encode())
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].target == b"/x"
        assert upstream.requests[0].header(b"host") == b"127.0.0.1:%d" % upstream.port


async def test_a_redirect_is_the_clients_to_follow() -> None:
    elsewhere = b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n"
    async with carried(answering(elsewhere)) as (upstream, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, _ = await client.reply()
        assert (status, headers[b"location"]) == (302, b"http://evil.example/")
        assert len(upstream.requests) == 1


async def test_headers_arrive_as_sent_but_for_this_hops_and_the_forwarding_ones() -> None:
    sent = [
        (b"X-Twice", b"1"), (b"accept", b""), (b"X-Twice", b"2, 3"), (b"Cookie", b"a=1"), (b"Cookie", b"b=2"),
        (b"Authorization", b"Bearer  odd\xff"), (b"x_a", b"1"), (b"X-A", b"2"), (b"If-None-Match", b'W/"1"'),
        (b"Range", b"bytes=0-1"), (b"Cache-Control", b"no-store"), (b"Max-Forwards", b"7"),
    ]  # fmt: skip
    hop = [
        (b"Connection", b"x-hop ,, X-Other"), (b"Connection", b"keep-alive"), (b"X-Hop", b"1"),
        (b"x-other", b"2"), (b"Keep-Alive", b"timeout=5"), (b"Proxy-Connection", b"keep-alive"),
        (b"TE", b"trailers"), (b"Trailer", b"X-T"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAAA"),
        (b"Proxy-Authorization", b"Basic xyz"),
    ]  # fmt: skip
    lied = [
        (b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-Host", b"evil"), (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=6.6.6.6"), (b"X-Real-IP", b"6.6.6.6"), (b"X-Forwarded-Port", b"1"),
        (b"Via", b"1.0 old"), (b"X-Request-Id", b"mine-1"),
    ]  # fmt: skip
    head = b"".join(b"%b: %b\r\n" % pair for pair in [*sent, *hop, *lied])
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: legacy.example:81\r\n%b\r\n" % head)
        await client.reply()

        (request,) = upstream.requests
        expected = [(name.lower(), value) for name, value in sent]
        assert [pair for pair in request.headers if pair in expected] == expected
        added = dict(pair for pair in request.headers if pair not in expected)
        via = added.pop(b"via")
        assert re.fullmatch(rb"1\.0 old, 1\.1 gateway \([0-9a-f]{8}\)", via), via
        assert added == {
            b"host": b"127.0.0.1:%d" % upstream.port,
            b"forwarded": b'for=127.0.0.1;host="legacy.example:81";proto=http',
            b"x-forwarded-for": b"127.0.0.1",
            b"x-forwarded-proto": b"http",
            b"x-forwarded-host": b"legacy.example:81",
            b"x-request-id": b"mine-1",
        }
        assert len(request.headers) == len(expected) + 7


async def test_a_trusted_proxys_word_is_kept_and_added_to() -> None:
    trusting = {"listen": {"trusted_proxies": ["127.0.0.0/8"]}}
    async with carried(answering(OK), **trusting) as (upstream, client):
        await client.send(
            b"GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
            b"Forwarded: for=192.0.2.1;proto=https\r\nX-Forwarded-Host: public.example\r\n\r\n"
        )
        await client.reply()
        (request,) = upstream.requests
        assert request.header(b"x-forwarded-for") == b"192.0.2.1, 127.0.0.1"
        assert request.header(b"x-forwarded-proto") == b"https"
        assert request.header(b"x-forwarded-host") == b"public.example"
        assert request.header(b"forwarded") == (
            b'for=192.0.2.1;proto=https, for=127.0.0.1;host="a";proto=http'
        )


@pytest.mark.parametrize(
    "name", [b"Authorization", b"Cookie", b"Host", b"Content-Length", b"X-Forwarded-For"]
)
async def test_connection_can_not_strip_who_calls_or_what_is_said(name: bytes) -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: b\r\nConnection: %b\r\n\r\n" % name)
        assert (await client.reply())[0] == 400
        assert upstream.peers == []


async def test_the_reply_arrives_as_sent_but_for_this_hops_headers() -> None:
    sent = [
        (b"Set-Cookie", b"a=1; Path=/"), (b"Set-Cookie", b"b=2, 3"), (b"X-Odd", b"caf\xe9"), (b"ETag", b"1"),
        (b"Server", b"theirs"), (b"Date", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"Retry-After", b"7"),
        (b"Proxy-Status", b"other; error=dns_error"), (b"Via", b"1.1 other"), (b"X-Empty", b""),
        (b"ININ-RateLimit-Allowed", b"300"), (b"Cache-Control", b"no-store"),
    ]  # fmt: skip
    hop = [
        (b"Connection", b"x-hop"), (b"X-Hop", b"1"), (b"Keep-Alive", b"timeout=5"), (b"Upgrade", b"h2c"),
        (b"Gateway-Rewrite", b"forged; filled=state"), (b"Proxy-Authenticate", b"Basic"),
    ]  # fmt: skip
    head = b"".join(b"%b: %b\r\n" % pair for pair in [*sent, *hop])
    reply = b"HTTP/1.1 503 Own Words\r\n%bContent-Length: 3\r\n\r\nabc" % head
    async with carried(answering(reply)) as (_, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nX-Request-Id: it\r\n\r\n")
        head = await client.head()
        assert await client.exactly(3) == b"abc"
        line, *lines = head[:-4].split(b"\r\n")
        pairs = [(name, value.strip()) for name, _, value in (it.partition(b":") for it in lines)]
        assert line.startswith(b"HTTP/1.1 503 ")
        expected = [(name.lower(), value) for name, value in sent]
        assert [pair for pair in pairs if pair in expected] == expected
        assert [pair for pair in pairs if pair not in expected] == [
            (b"content-length", b"3"),
            (b"x-request-id", b"it"),
        ]


async def test_nothing_is_added_to_a_bare_request_but_what_an_intermediary_must() -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers, _ = await client.reply()
        names = [name for name, _ in upstream.requests[0].headers]
        assert sorted(names) == [
            b"forwarded", b"host", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
            b"x-request-id",
        ]  # fmt: skip
        assert status == 200
        assert headers.keys() == {b"content-length", b"date", b"x-request-id"}
        assert headers[b"x-request-id"] == upstream.requests[0].header(b"x-request-id")


# --- as it comes


async def test_the_first_byte_of_a_reply_arrives_before_the_last_is_sent() -> None:
    go = asyncio.Event()

    async def slowly(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        await peer.send(b"abc")
        await go.wait()
        await peer.send(b"def")
        await peer.gone()

    async with carried(slowly) as (_, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
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

    async with carried(slowly) as (_, client):
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
    async with RawUpstream(answering(OK)) as upstream, gateway(url(upstream)) as running:
        async with connect(running.port) as client, connect(running.port) as other:
            await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n%b" % (framing, first))
            for _ in range(3):
                await other.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
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
    async with carried(reading) as (_, client):
        await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % framing)
        await client.send(b"%x\r\n%b\r\n" % (len(first), first) if chunked else first)
        await asyncio.wait_for(arrived.wait(), 5)
        await client.send(b"3\r\ndef\r\n0\r\n\r\n" if chunked else b"def")
        assert (await client.reply())[0] == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_the_first_byte_of_an_upload_arrives_before_the_last_is_sent(chunked: bool) -> None:
    await upload(LARGE, chunked)


async def test_a_small_beginning_of_an_upload_is_sent_on_after_two_seconds() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(upload(b"abc", chunked=True), upload(b"abc", chunked=False))
    assert loop.time() - began > PATIENCE * 0.9


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

    async with RawUpstream(echo) as upstream, gateway(url(upstream)) as running, running.client() as client:
        answer = await client.post("/x", content=pieces() if chunked else body)
        assert answer.content == body
        assert len(upstream.requests[0].body) == len(body)


async def test_an_early_refusal_reaches_the_client_while_it_still_uploads() -> None:
    async def refusing(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await peer.gone()

    async with carried(refusing) as (_, client):
        await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + LARGE)
        assert (await client.reply())[0] == 413


# --- without a body


@pytest.mark.parametrize(
    ("request_line", "reply", "length"),
    [
        (b"HEAD /x", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"1000"),
        (b"HEAD /x", b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        (b"GET /x", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"DELETE /x", b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n", None),
        (b"GET /x", b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n', None),
        (b"GET /x", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n", None),
    ],
)
async def test_a_reply_without_a_body_ends_with_its_head_and_the_connections_go_on(
    request_line: bytes, reply: bytes, length: bytes | None
) -> None:
    async with carried(answering(reply, OK)) as (upstream, client):
        await client.send(b"%b HTTP/1.1\r\nHost: a\r\n\r\n" % request_line)
        head = await client.head()
        assert head.split(b" ")[1] == reply.split(b" ")[1]
        found = re.search(rb"content-length: (\d+)", head)
        assert (found[1] if found else None) == length
        await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        status, _, body = await client.reply()
        assert (status, body) == (200, b"ok")
        assert len(upstream.peers) == 1


# --- one user's cookie


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_one_users_cookie_never_reaches_another(host: str) -> None:
    """By name, too: some cookie jars leave IP addresses out, and are then only wrong in production."""
    seen: list[bytes | None] = []

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            seen.append(request.header(b"cookie"))
            body = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Set-Cookie: session=of-%d; Path=/\r\n\r\n%b" % (len(body), len(seen), body)
            )

    async with (
        RawUpstream(script) as upstream,
        gateway(f"http://{host}:{upstream.port}") as running,
        connect(running.port) as one,
        connect(running.port) as two,
    ):
        for client in (one, two, one, two):
            await client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"set-cookie" in (await client.reply())[1]
            await client.send(
                b"PATCH %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" % PARTICIPANT.encode()
            )
            assert b"set-cookie" in (await client.reply())[1]
        assert len(seen) >= 9
        assert set(seen) == {None}


async def test_a_look_ups_cookie_is_nobodys() -> None:
    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            body = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
            cookie = b"Set-Cookie: look=up\r\n" if request.method == b"GET" else b""
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
                % (cookie, len(body), body)
            )

    async with RawUpstream(script) as upstream, gateway(url(upstream)) as running, running.client() as client:
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert "set-cookie" not in answer.headers


async def test_many_users_at_once_each_get_their_own() -> None:
    async def echo(peer: Peer) -> None:
        while True:
            request = await peer.request()
            secret = request.header(b"authorization") or b""
            await peer.send(
                b"HTTP/1.1 200 OK\r\nX-Secret: %b\r\nSet-Cookie: s=%b\r\nContent-Length: %d\r\n\r\n%b"
                % (secret, secret, len(secret), secret)
            )

    async def user(port: int, number: int) -> None:
        async with connect(port) as client:
            mine = b"secret-%d" % number
            await client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\n\r\n" % (number, mine))
            status, headers, body = await client.reply()
            assert (status, body, headers[b"x-secret"]) == (200, mine, mine)
            assert headers[b"set-cookie"] == b"s=" + mine

    async with RawUpstream(echo) as upstream, gateway(url(upstream)) as running:
        await asyncio.gather(*(user(running.port, number) for number in range(300)))
        assert len(upstream.requests) == 300
        assert all(request.header(b"cookie") is None for request in upstream.requests)


# --- round and round


async def test_an_upstream_that_leads_back_to_the_gateway_is_a_loop_and_ends() -> None:
    async with RawUpstream() as upstream, gateway(url(upstream)) as running, running.client() as client:

        async def back(peer: Peer) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            try:
                while data := await peer.read():
                    writer.write(data)
                    await peer.send(await reader.read(65_536))
            finally:
                writer.close()

        upstream._scripts = (back,)
        answer = await client.get("/x")
        assert refused_by_the_gateway(answer.headers, answer.json(), 502) == "proxy_loop_detected"
        assert len(upstream.peers) == 1
        assert running.counts("refused_loop-detected") == 1


async def test_another_gateway_in_the_row_is_no_loop() -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        gateway(url(upstream)) as inner,
        gateway(inner.url) as outer,
        outer.client() as client,
    ):
        assert (await client.get("/x")).status_code == 200
        via = upstream.requests[0].header(b"via") or b""
        assert via.count(b"gateway") == 2


@pytest.mark.parametrize("method", [b"TRACE", b"trace"])
async def test_trace_is_not_served(method: bytes) -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"%b /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\n\r\n" % method)
        status, headers, body = await client.reply()
        assert status == 405
        assert b"GET" in headers[b"allow"]
        assert b"s3cret" not in body
        assert upstream.peers == []


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b"3", b"2"),
        (b"1", b"0"),
        (b"00", None),
        (b"0", None),
        (b"99999999999999999999", None),
        (b"abc", b"abc"),
    ],
)
async def test_options_with_max_forwards_goes_so_far_and_no_further(given: bytes, sent: bytes | None) -> None:
    """RFC 9110 section 7.6.2."""
    async with carried(answering(OK)) as (upstream, client):
        await client.send(b"OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: %b\r\n\r\n" % given)
        status, headers, _ = await client.reply()
        assert status == 200
        if int(given, 36) == 0:
            assert upstream.peers == []
            assert b"PATCH" in headers[b"allow"]
        elif sent is None:
            # "a value smaller than or equal to": the largest it supports.
            forwarded = upstream.requests[0].header(b"max-forwards") or b""
            assert forwarded.isdigit()
            assert int(forwarded) < int(given)
        else:
            assert upstream.requests[0].header(b"max-forwards") == sent


# --- settings of the upstream


async def test_the_upstreams_path_prefix_stands_before_every_target() -> None:
    async with RawUpstream(answering(OK)) as upstream:
        async with gateway(f"{url(upstream)}/base/v1/") as running, connect(running.port) as client:
            for target in (b"/x?y", b"//x", b"/../x"):
                await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
                await client.reply()
            await client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.reply()
            await client.send(
                b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % PARTICIPANT.encode()
            )
            await client.reply()
        assert [request.target for request in upstream.requests] == [
            b"/base/v1/x?y", b"/base/v1//x", b"/base/v1/../x", b"*", b"/base/v1" + CONVERSATION.encode(),
        ]  # fmt: skip


async def test_the_clients_host_is_kept_where_that_is_set() -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        served(url=url(upstream), preserve_host=True) as port,
        connect(port) as client,
    ):
        await client.send(b"GET /x HTTP/1.1\r\nHost: legacy.example:81\r\n\r\n")
        await client.reply()
        assert upstream.requests[0].header(b"host") == b"legacy.example:81"


# --- where it breaks

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


@pytest.mark.parametrize("target", ["/x", PARTICIPANT], ids=["passage", "matched"])
@pytest.mark.parametrize("resets", [False, True], ids=["ends", "resets"])
@pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())
async def test_a_reply_that_breaks_off_upstream_breaks_off_downstream(
    cut: bytes, resets: bool, target: str
) -> None:
    """C3: neither completed, nor answered with a second status."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(cut)
        await go.wait()
        if resets:
            peer.reset()

    method = "GET" if target == "/x" else "PATCH"
    body = b'{"state":"connected"}'
    async with RawUpstream(script) as upstream, gateway(url(upstream)) as running:
        async with connect(running.port) as client:
            await client.send(
                b"%b %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (method.encode(), target.encode(), len(body), body)
            )
            head = await client.head()
            go.set()
            try:
                rest = await client.rest()
            except ConnectionError:
                rest = b""
            assert head.startswith(b"HTTP/1.1 200")
            assert b"HTTP/1.1" not in rest
            assert not rest.endswith(b"0\r\n\r\n")
            if b"content-length" in head:
                assert len(rest) < 10
        if target != "/x":
            await until(lambda: running.counts("calls_matched"))
            assert running.lines("outcome")[0]["error"] in {"connection-terminated", "invalid-reply"}
        assert len(upstream.requests) == 1


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

    async with RawUpstream(script) as upstream, gateway(url(upstream)) as running, running.client() as client:
        answer = await client.post("/x", content=b"{}")
        error = refused_by_the_gateway(answer.headers, answer.json(), 502)
        assert error in {"connection_terminated", "http_protocol_error"}
        # C2: a POST goes out once, whatever came of it.
        assert len(upstream.requests) == 1


REFUSED = {
    400: b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    405: b"TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n",
    408: b"GET /x HTTP/1.1\r\nHost: a",
    414: b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 9000),
    417: b"GET /x HTTP/1.1\r\nHost: a\r\nExpect: the-unexpected\r\n\r\n",
    421: b"GET http://elsewhere/ HTTP/1.1\r\nHost: a\r\n\r\n",
    431: b"GET /x HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 40_000),
    501: b"GET /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    505: b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize(("status", "request_"), REFUSED.items(), ids=REFUSED.keys())
async def test_every_error_names_who_refused_why_and_what_to_do(status: int, request_: bytes) -> None:
    async with carried(answering(OK), limits={"head_timeout": "150ms"}) as (upstream, client):
        await client.send(request_)
        found, headers, body = await client.reply()
        assert found == status
        named = {name.decode(): value.decode() for name, value in headers.items()}
        assert refused_by_the_gateway(named, json.loads(body), status) == "http_request_error"
        assert upstream.peers == []


async def test_an_upstream_that_never_answers_is_504() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with (
        RawUpstream(script) as upstream,
        served(url=url(upstream), read_timeout="100ms") as port,
        bare_client() as client,
    ):
        answer = await client.post(f"http://127.0.0.1:{port}/x", content=b"{}")
        assert refused_by_the_gateway(answer.headers, answer.json(), 504) == "http_response_timeout"


async def test_the_upstreams_own_errors_stay_its_own() -> None:
    """D5, D7: Proxy-Status is on the gateway's own errors and on no other."""
    for status in (400, 401, 404, 429, 500, 502, 503, 504):
        reply = b"HTTP/1.1 %d X\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nsaid" % status
        async with carried(answering(reply)) as (_, client):
            await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            found, headers, body = await client.reply()
            assert (found, body) == (status, b"said")
            assert headers[b"retry-after"] == b"3"
            assert b"proxy-status" not in headers


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
    async with RawUpstream(endless) as upstream, gateway(url(upstream)) as running:
        async with connect(running.port) as client:
            await client.send(
                b"%b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (line, len(body), body)
            )
            await client.head()
            await client.exactly(2000)
            client.reset()
        await asyncio.wait_for(gone.wait(), 1)
        assert len(upstream.requests) == 1


async def test_a_client_that_vanishes_before_the_reply_is_waited_for_no_longer() -> None:
    ended: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        ended.append(bytes(peer.received))

    async with RawUpstream(script) as upstream, gateway(url(upstream)) as running:
        async with connect(running.port) as client:
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: upstream.requests)
            client.reset()
        await until(lambda: ended, 1)


async def test_a_client_that_vanishes_amid_its_upload_never_makes_it_look_whole() -> None:
    ended: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()
        ended.append(bytes(peer.received))

    async with RawUpstream(script) as upstream, gateway(url(upstream)) as running:
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
        gateway(url(upstream)) as running,
        connect(running.port, buffer=4096) as client,
    ):
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.head()
        # It has stalled once nothing moves any more: the kernel's buffers and ours are full.
        last = -1
        while sent[0] != last:
            last = sent[0]
            await asyncio.sleep(0.1)
        assert 0 < last < 32 * 2**20


# --- near a rule, but not on it


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PARTICIPANT),
        ("PATCH", f"{PARTICIPANT}/"),
        ("PATCH", f"{PARTICIPANT}/attributes"),
        ("PATCH", f"{PARTICIPANT}/communications/x"),
        ("PATCH", f"{CONVERSATION}/participants/"),
        ("PATCH", PARTICIPANT.replace("/web/", "/WEB/")),
        ("PATCH", PARTICIPANT.replace("/web/", "/%77eb/")),
        ("PATCH", PARTICIPANT.replace("/web/", "/x/../web/")),
        ("PATCH", PARTICIPANT.replace("/web/", "//web/")),
        ("PATCH", PARTICIPANT.replace("/c1/", "/c1%2Fx/")),
        ("PATCH", PARTICIPANT.replace("/p1", "/..")),
        ("PATCH", PARTICIPANT.replace("/p1", "/%2e%2e")),
    ],
)
async def test_what_matches_no_rule_as_it_stands_is_not_touched(method: str, path: str) -> None:
    async with carried(answering(OK)) as (upstream, client):
        await client.send(
            f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n".encode()
            + BODY
        )
        _, headers, _ = await client.reply()
        (request,) = upstream.requests
        assert (request.method, request.target, request.body) == (method.encode(), path.encode(), BODY)
        assert request.header(b"content-type") == b"text/plain"
        assert b"gateway-rewrite" not in headers


async def test_a_lower_case_patch_is_taken_for_what_it_means_and_goes_on_as_it_was_sent() -> None:
    document = b'{"participants":[{"id":"p1","state":"connected"}]}'
    look_up = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        document
    )
    async with carried(answering(look_up + document, OK)) as (upstream, client):
        await client.send(
            b"patch %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % PARTICIPANT.encode()
        )
        assert (await client.reply())[0] == 200
        assert [request.method for request in upstream.requests] == [b"GET", b"patch"]
        assert upstream.requests[1].body == b'{"state":"connected"}'


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_a_call_in_disguise_is_a_write_where_either_method_is_and_is_never_learned_from(
    name: str,
) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await client.get(CONVERSATION, headers={**TOKEN, name: "delete"})
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert "source=lookup" in reply.headers["gateway-rewrite"]
        assert running.gateway.counts["lookups_learned"] == 0

        overridden = await client.patch(PARTICIPANT, content=BODY, headers={**TOKEN, name: "DELETE"})
        assert overridden.headers["gateway-rewrite"].endswith("skipped=method-override")
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert "source=lookup" in reply.headers["gateway-rewrite"]
