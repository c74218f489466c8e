"""What no rule matches is passed on as it was sent, and so is its reply, but for the fields of this hop."""

from __future__ import annotations

import re

import pytest

from tests.support.calls import DOCUMENT, GET, patch
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, gateway, proxied
from tests.support.mocking import mocked
from tests.support.raw_upstream import OK, RawUpstream, answering
from tests.support.serving import connect

pytestmark = pytest.mark.usefixtures("way")


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
    async with proxied(answering(OK if method != "HEAD" else OK[:-2])) as (upstream, _, client):
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
    async with proxied(answering(OK)) as (upstream, _, client):
        await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].target == target


async def test_options_of_the_server_as_a_whole_passes() -> None:
    async with proxied(answering(OK)) as (upstream, _, client):
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
    async with proxied(answering(OK)) as (upstream, _, client):
        await client.send(b"%b\r\nHost: %b\r\n\r\n" % (line, host))
        found, headers, _ = await client.reply()
        assert found == status
        assert b"proxy-status" in headers
        assert upstream.peers == []


@pytest.mark.parametrize("target", [b"http://evil.example/x?y", b"http://EVIL.example:80/x?y"])
async def test_an_absolute_target_goes_to_the_one_upstream_all_the_same(target: bytes) -> None:
    """RFC 9112 section 3.2.2: a server must accept the absolute form. It does not choose the upstream."""
    authority = target.split(b"/")[2]
    async with proxied(answering(OK)) as (upstream, _, client):
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
    async with proxied(answering(OK)) as (upstream, _, client):
        await client.send(f"GET /x HTTP/1.1\r\nHost: evil.example\r\n{header}\r\n\r\n".encode())
        assert (await client.reply())[0] == 200
        assert upstream.requests[0].target == b"/x"
        assert upstream.requests[0].header(b"host") == b"127.0.0.1:%d" % upstream.port


async def test_a_redirect_is_the_clients_to_follow() -> None:
    elsewhere = b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n"
    async with proxied(answering(elsewhere)) as (upstream, _, client):
        await client.send(GET)
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
    async with proxied(answering(OK)) as (upstream, _, client):
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


async def test_what_a_trusted_proxy_says_is_kept_and_added_to() -> None:
    trusting = {"listen": {"trusted_proxies": ["127.0.0.0/8"]}}
    async with proxied(answering(OK), **trusting) as (upstream, _, client):
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
    async with proxied(answering(OK)) as (upstream, _, client):
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
    async with proxied(answering(reply)) as (_, _, client):
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
    async with proxied(answering(OK)) as (upstream, _, client):
        await client.send(GET)
        status, headers, _ = await client.reply()
        names = [name for name, _ in upstream.requests[0].headers]
        assert sorted(names) == [
            b"forwarded", b"host", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
            b"x-request-id",
        ]  # fmt: skip
        assert status == 200
        assert headers.keys() == {b"content-length", b"date", b"x-request-id"}
        assert headers[b"x-request-id"] == upstream.requests[0].header(b"x-request-id")


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
    async with proxied(answering(reply, OK)) as (upstream, _, client):
        await client.send(b"%b HTTP/1.1\r\nHost: a\r\n\r\n" % request_line)
        head = await client.head()
        assert head.split(b" ")[1] == reply.split(b" ")[1]
        found = re.search(rb"content-length: (\d+)", head)
        assert (found[1] if found else None) == length
        await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        status, _, body = await client.reply()
        assert (status, body) == (200, b"ok")
        assert len(upstream.peers) == 1


async def test_another_gateway_in_the_row_is_no_loop() -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        gateway(upstream.url) as inner,
        gateway(inner.url) as outer,
        outer.client() as client,
    ):
        assert (await client.get("/x")).status_code == 200
        via = upstream.requests[0].header(b"via") or b""
        assert via.count(b"gateway") == 2


@pytest.mark.parametrize("method", [b"TRACE", b"trace"])
async def test_trace_is_not_served(method: bytes) -> None:
    async with proxied(answering(OK)) as (upstream, _, client):
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
    async with proxied(answering(OK)) as (upstream, _, client):
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


async def test_the_upstreams_path_prefix_stands_before_every_target() -> None:
    async with RawUpstream(answering(OK)) as upstream:
        async with gateway(f"{upstream.url}/base/v1/") as running, connect(running.port) as client:
            for target in (b"/x?y", b"//x", b"/../x"):
                await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
                await client.reply()
            await client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.reply()
            await client.send(patch(b"{}"))
            await client.reply()
        assert [request.target for request in upstream.requests] == [
            b"/base/v1/x?y", b"/base/v1//x", b"/base/v1/../x", b"*", b"/base/v1" + CONVERSATION.encode(),
        ]  # fmt: skip


async def test_the_clients_host_is_kept_where_that_is_set() -> None:
    async with proxied(to={"preserve_host": True}) as (upstream, _, client):
        await client.send(b"GET /x HTTP/1.1\r\nHost: legacy.example:81\r\n\r\n")
        await client.reply()
        assert upstream.requests[0].header(b"host") == b"legacy.example:81"


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
    async with proxied(answering(OK)) as (upstream, _, client):
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
    async with proxied(answering(DOCUMENT, OK)) as (upstream, _, client):
        await client.send(
            b"patch %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % PARTICIPANT.encode()
        )
        assert (await client.reply())[0] == 200
        assert [request.method for request in upstream.requests] == [b"GET", b"patch"]
        assert upstream.requests[1].body == b'{"state":"connected"}'


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_a_method_override_is_a_write_where_either_method_is_and_never_primes_the_cache(
    name: str,
) -> None:
    async with mocked() as (_, running, client):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await client.get(CONVERSATION, headers={**TOKEN, name: "delete"})
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert "source=lookup" in reply.headers["gateway-rewrite"]
        assert running.gateway.counts["gateway_lookups_total", "learned"] == 0

        overridden = await client.patch(PARTICIPANT, content=BODY, headers={**TOKEN, name: "DELETE"})
        assert overridden.headers["gateway-rewrite"].endswith("skipped=method-override")
        assert overridden.status_code == 415
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert "source=cache" in reply.headers["gateway-rewrite"]
