"""
What is a request and what is not, byte by byte; names carry the numbers of the intermediary checklist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import (
    BadRequest,
    ExpectationFailed,
    GatewayError,
    HeadTooLarge,
    MethodNotAllowed,
    MisdirectedRequest,
    NotSupported,
    RequestError,
    TargetTooLong,
    VersionNotSupported,
)
from gateway.http.chunked import InvalidChunk
from gateway.http.grammar import CHUNKED
from gateway.http.request_parser import (
    HeadLimits,
    RequestHead,
    blank_lines,
    parse_head,
    refuse_hopeless,
)
from tests.support.chunks import read_chunked

LIMITS = HeadLimits()


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes | None = b"Host: a") -> bytes:
    lines = [line, *([host] if host is not None else []), *fields]
    return b"".join(each + b"\r\n" for each in lines) + b"\r\n"


def parse(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes | None = b"Host: a") -> RequestHead:
    return parse_head(head(*fields, line=line, host=host), LIMITS)


# Heads that are refused: checklist number, why, the head, the refusal.
REFUSED: list[tuple[str, bytes, type[GatewayError]]] = [
    ("L1 length and chunked", head(b"Content-Length: 3", b"Transfer-Encoding: chunked"), BadRequest),
    ("L1 chunked and length", head(b"TRANSFER-ENCODING: chunked", b"CONTENT-LENGTH: 3"), BadRequest),
    ("L1 in lower case", head(b"content-length: 3", b"transfer-encoding: Chunked"), BadRequest),
    ("L1 length and unknown coding", head(b"Content-Length: 3", b"Transfer-Encoding: gzip"), BadRequest),
    ("L2 chunked not last", head(b"Transfer-Encoding: chunked, identity"), BadRequest),
    ("L2 no such coding", head(b"Transfer-Encoding: xchunked"), BadRequest),
    ("L2 parameter", head(b"Transfer-Encoding: chunked;q=1"), BadRequest),
    ("L2 twice in a line", head(b"Transfer-Encoding: chunked, chunked"), BadRequest),
    ("L2 twice in two lines", head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), BadRequest),
    ("L2 identity", head(b"Transfer-Encoding: identity"), BadRequest),
    ("L2 gzip alone", head(b"Transfer-Encoding: gzip"), BadRequest),
    ("L2 empty", head(b"Transfer-Encoding:"), BadRequest),
    ("L2 empty member first", head(b"Transfer-Encoding: , chunked"), BadRequest),
    ("L2 empty member last", head(b"Transfer-Encoding: chunked,"), BadRequest),
    ("L2 quoted", head(b'Transfer-Encoding: "chunked"'), BadRequest),
    ("L2 vertical tab", head(b"Transfer-Encoding: \x0bchunked"), BadRequest),
    ("L2 over two lines", head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), BadRequest),
    ("L2 obs-text", head(b"Transfer-Encoding: chunked\xff"), BadRequest),
    ("L3 unknown before chunked", head(b"Transfer-Encoding: gzip, chunked"), NotSupported),
    ("L3 in two lines", head(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), NotSupported),
    ("L4 chunked in HTTP/1.0", head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"), BadRequest),
    ("L5 negative", head(b"Content-Length: -1"), BadRequest),
    ("L5 plus", head(b"Content-Length: +1"), BadRequest),
    ("L5 hex", head(b"Content-Length: 0x5"), BadRequest),
    ("L5 underscore", head(b"Content-Length: 1_0"), BadRequest),
    ("L5 list", head(b"Content-Length: 1,2"), BadRequest),
    ("L5 list of the same", head(b"Content-Length: 1, 1"), BadRequest),
    ("L5 empty", head(b"Content-Length:"), BadRequest),
    ("L5 quotes", head(b'Content-Length: ""'), BadRequest),
    ("L5 fraction", head(b"Content-Length: 1.0"), BadRequest),
    ("L5 exponent", head(b"Content-Length: 1e1"), BadRequest),
    ("L5 two numbers", head(b"Content-Length: 1 2"), BadRequest),
    ("L5 arabic digits", head("Content-Length: \u0661".encode()), BadRequest),
    ("L5 two different", head(b"Content-Length: 1", b"Content-Length: 2"), BadRequest),
    ("L5 the same twice", head(b"Content-Length: 1", b"Content-Length: 1"), BadRequest),
    ("L5 in HTTP/1.0", head(b"Content-Length: x", line=b"POST / HTTP/1.0"), BadRequest),
    ("L6 2**63", head(b"Content-Length: 9223372036854775808"), BadRequest),
    ("L6 2**64", head(b"Content-Length: 18446744073709551616"), BadRequest),
    ("L6 300 digits", head(b"Content-Length: " + b"9" * 300), BadRequest),
    ("L8 bare CR in a value", head(b"X: a\rb"), BadRequest),
    ("L8 bare CR in a name", head(b"X\r: a"), BadRequest),
    ("L8 bare CR in the target", head(line=b"GET /a\rb HTTP/1.1"), BadRequest),
    ("L8 bare LF in a value", head(b"X: a\nY: b"), BadRequest),
    ("L8 bare LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", BadRequest),
    ("L8 CR CR LF", head(b"X: a\r"), BadRequest),
    ("L9 obs-fold", head(b"X: a", b" b"), BadRequest),
    ("L9 obs-fold with a tab", head(b"X: a", b"\tb"), BadRequest),
    ("L9 obs-fold in Transfer-Encoding", head(b"Transfer-Encoding:", b" chunked"), BadRequest),
    ("L10 space before the colon", head(b"X : a"), BadRequest),
    ("L10 tab before the colon", head(b"X\t: a"), BadRequest),
    ("L10 before a length", head(b"Content-Length : 5"), BadRequest),
    ("L11 space after the request line", head(host=b" Host: a"), BadRequest),
    ("L11 tab after the request line", head(host=b"\tHost: a"), BadRequest),
    ("L13 no Host", head(host=None), BadRequest),
    ("L13 the same Host twice", head(b"Host: a"), BadRequest),
    ("L13 two Hosts", head(b"host: b"), BadRequest),
    ("L13 two Hosts in HTTP/1.0", head(b"host: b", line=b"POST / HTTP/1.0"), BadRequest),
    ("L13 space and path", head(host=b"Host: a b/c@d"), BadRequest),
    ("L13 list", head(host=b"Host: a,b"), BadRequest),
    ("L13 userinfo", head(host=b"Host: u@a"), BadRequest),
    ("L13 userinfo with password", head(host=b"Host: u:p@a"), BadRequest),
    ("L13 path", head(host=b"Host: a/b"), BadRequest),
    ("L13 query", head(host=b"Host: a?b"), BadRequest),
    ("L13 fragment", head(host=b"Host: a#b"), BadRequest),
    ("L13 backslash", head(host=b"Host: a\\b"), BadRequest),
    ("L13 empty", head(host=b"Host:"), BadRequest),
    ("L13 port alone", head(host=b"Host: :80"), BadRequest),
    ("L13 port too high", head(host=b"Host: a:65536"), BadRequest),
    ("L13 port no number", head(host=b"Host: a:b"), BadRequest),
    ("L13 two ports", head(host=b"Host: a:1:2"), BadRequest),
    ("L13 IPv6 without brackets", head(host=b"Host: ::1"), BadRequest),
    ("L13 IPv6 wrong", head(host=b"Host: [:::1]"), BadRequest),
    ("L13 IPv6 zone", head(host=b"Host: [fe80::1%25eth0]"), BadRequest),
    ("L13 IPv6 open", head(host=b"Host: [::1"), BadRequest),
    ("L13 percent", head(host=b"Host: a%zz"), BadRequest),
    ("L13 obs-text", head(host=b"Host: caf\xe9"), BadRequest),
    ("L13 wrong Host in HTTP/1.0", head(line=b"GET / HTTP/1.0", host=b"Host: a b"), BadRequest),
    ("L14 another authority", head(line=b"GET http://evil/ HTTP/1.1"), MisdirectedRequest),
    ("L14 another port", head(line=b"GET http://a:81/ HTTP/1.1"), MisdirectedRequest),
    ("L14 userinfo", head(line=b"GET http://a@evil/ HTTP/1.1"), BadRequest),
    ("L14 no authority", head(line=b"GET http:///x HTTP/1.1"), BadRequest),
    ("L14 other scheme", head(line=b"GET ftp://a/x HTTP/1.1"), BadRequest),
    ("L14 no Host", head(line=b"GET http://a/ HTTP/1.1", host=None), BadRequest),
    ("L14 backslash", head(line=b"GET http:\\\\a/ HTTP/1.1"), BadRequest),
    ("L15 star with GET", head(line=b"GET * HTTP/1.1"), BadRequest),
    ("L15 star and more", head(line=b"OPTIONS *x HTTP/1.1"), BadRequest),
    ("L15 CONNECT", head(line=b"CONNECT a:443 HTTP/1.1"), MethodNotAllowed),
    ("L15 CONNECT in lower case", head(line=b"connect a:443 HTTP/1.1"), MethodNotAllowed),
    ("L15 CONNECT with a path", head(line=b"CONNECT / HTTP/1.1"), MethodNotAllowed),
    ("L15 authority form", head(line=b"GET a:443 HTTP/1.1"), BadRequest),
    ("L16 userinfo trick", head(line=b"GET @evil.example/x HTTP/1.1"), BadRequest),
    ("L16 port and userinfo trick", head(line=b"GET :80@evil/ HTTP/1.1"), BadRequest),
    ("L16 relative", head(line=b"GET a/b HTTP/1.1"), BadRequest),
    ("L16 query alone", head(line=b"GET ?a HTTP/1.1"), BadRequest),
    ("L16 fragment", head(line=b"GET /a#b HTTP/1.1"), BadRequest),
    ("L16 control character", head(line=b"GET /a\x01b HTTP/1.1"), BadRequest),
    ("L16 delete", head(line=b"GET /a\x7fb HTTP/1.1"), BadRequest),
    ("L16 tab", head(line=b"GET /a\tb HTTP/1.1"), BadRequest),
    ("L16 space", head(line=b"GET /a b HTTP/1.1"), BadRequest),
    ("L16 raw UTF-8", head(line="GET /caf\u00e9 HTTP/1.1".encode()), BadRequest),
    ("L16 empty", head(line=b"GET  HTTP/1.1"), BadRequest),
    ("L16 none", head(line=b"GET HTTP/1.1"), BadRequest),
    ("L18 HTTP/2.0", head(line=b"GET / HTTP/2.0"), VersionNotSupported),
    ("L18 HTTP/9.9", head(line=b"GET / HTTP/9.9"), VersionNotSupported),
    ("L18 HTTP/0.9", head(line=b"GET / HTTP/0.9"), VersionNotSupported),
    ("L18 HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\n", VersionNotSupported),
    ("L18 no version", b"GET /\r\n\r\n", BadRequest),
    ("L18 two digits", head(line=b"GET / HTTP/1.10"), BadRequest),
    ("L18 no minor", head(line=b"GET / HTTP/1"), BadRequest),
    ("L18 lower case", head(line=b"GET / http/1.1"), BadRequest),
    ("L18 comma", head(line=b"GET / HTTP/1,1"), BadRequest),
    ("L18 space after", head(line=b"GET / HTTP/1.1 "), BadRequest),
    ("A3 Authorization", head(b"Connection: Authorization"), BadRequest),
    ("A3 Cookie after close", head(b"Connection: close, cookie"), BadRequest),
    ("A3 in a second line", head(b"Connection: x-foo", b"Connection: HOST"), BadRequest),
    ("A3 Content-Length", head(b"Connection: Content-Length"), BadRequest),
    ("A3 Content-anything", head(b"Connection: Content-Language"), BadRequest),
    ("A3 Cache-Control", head(b"Connection: ,Cache-Control,"), BadRequest),
    ("A3 X-Forwarded-For", head(b"Connection: X-Forwarded-For"), BadRequest),
    ("A3 X-Real-IP", head(b"Connection: X-Real-IP"), BadRequest),
    ("A3 If-Match", head(b"Connection: If-Match"), BadRequest),
    ("A3 Signature", head(b"Connection: Signature"), BadRequest),
    ("A3 ours", head(b"Connection: Gateway-Rewrite"), BadRequest),
    ("A3 in HTTP/1.0", head(b"Connection: Authorization", line=b"GET / HTTP/1.0"), BadRequest),
    ("A9 TRACE", head(line=b"TRACE / HTTP/1.1"), MethodNotAllowed),
    ("A9 trace", head(line=b"trace / HTTP/1.1"), MethodNotAllowed),
    ("A10 unknown expectation", head(b"Expect: 200-ok"), ExpectationFailed),
    ("A10 one of two", head(b"Expect: 100-continue, x"), ExpectationFailed),
    ("A18 NUL", head(b"X: a\0b"), BadRequest),
    ("A18 NUL first", head(b"X:\0"), BadRequest),
    ("A18 NUL in a name", head(b"X\0: a"), BadRequest),
    ("A19 BEL", head(b"X: \x07"), BadRequest),
    ("A19 vertical tab at the end", head(b"X: a\x0b"), BadRequest),
    ("A19 form feed at the start", head(b"X: \x0ca"), BadRequest),
    ("A19 escape", head(b"X: \x1b[0m"), BadRequest),
    ("A19 delete", head(b"X: \x7f"), BadRequest),
    ("A22 101 fields", head(*[b"X: a"] * 100), HeadTooLarge),
    ("A22 a line of 33 KiB", head(b"X: " + b"a" * 33 * 1024), HeadTooLarge),
    ("A22 many lines of 1 KiB", head(*[b"X: " + b"a" * 1024] * 33), HeadTooLarge),
    ("A22 a long name", head(b"X" * 300 + b": a"), HeadTooLarge),
    ("A22 a target of 9 KiB", head(line=b"GET /" + b"a" * 9 * 1024 + b" HTTP/1.1"), TargetTooLong),
    ("A22 a target of 33 KiB", head(line=b"GET /" + b"a" * 33 * 1024 + b" HTTP/1.1"), TargetTooLong),
    (
        "A22 an absolute target of 9 KiB",
        head(line=b"GET http://a/" + b"a" * 9216 + b" HTTP/1.1"),
        TargetTooLong,
    ),
    ("name empty", head(b": a"), BadRequest),
    ("name with parentheses", head(b"X(: a"), BadRequest),
    ("name with obs-text", head(b"X\xe9: a"), BadRequest),
    ("name quoted", head(b'"X": a'), BadRequest),
    ("no colon", head(b"X"), BadRequest),
    ("method empty", head(line=b" / HTTP/1.1"), BadRequest),
    ("method no token", head(line=b"G@T / HTTP/1.1"), BadRequest),
    ("method too long", head(line=b"G" * 65 + b" / HTTP/1.1"), BadRequest),
    ("method with a space before", head(line=b" GET / HTTP/1.1"), BadRequest),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", BadRequest),
    ("nothing", b"\r\n\r\n", BadRequest),
]


@pytest.mark.parametrize(("data", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_head_that_is_refused(data: bytes, error: type[GatewayError]) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_head(data, LIMITS)
    assert type(caught.value) is error


@pytest.mark.parametrize("data", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_d8_a_refusal_quotes_no_value_and_is_short(data: bytes) -> None:
    secret = b"Zq7Secret"
    with pytest.raises(GatewayError) as caught:
        parse_head(data.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer " + secret + b"\r\n\r\n", 1), LIMITS)
    assert secret.decode() not in caught.value.detail
    assert len(caught.value.detail) < 120
    assert caught.value.detail.isprintable()


class TestFraming:
    def test_l1_a_length_is_the_bodys(self) -> None:
        assert parse(b"Content-Length: 42").length == 42

    def test_l2_chunked_in_any_case_and_with_any_white_space_around_it(self) -> None:
        for value in (b"chunked", b"Chunked", b"CHUNKED", b" \t chunked\t "):
            assert parse(b"Transfer-Encoding:" + value).length == CHUNKED

    def test_l5_leading_zeros_are_digits_too(self) -> None:
        assert parse(b"Content-Length: 007").length == 7

    def test_l6_the_longest_length(self) -> None:
        assert parse(b"Content-Length: " + b"9" * 18).length == 999_999_999_999_999_999

    def test_a_request_without_either_has_no_body(self) -> None:
        assert parse(line=b"PATCH / HTTP/1.1").length == 0

    def test_a21_an_underscore_is_no_dash(self) -> None:
        got = parse(b"Content_Length: 9", b"Transfer_Encoding: chunked", b"X_Forwarded_For: 1.2.3.4")
        assert got.length == 0
        assert got.headers == [
            (b"host", b"a"),
            (b"content_length", b"9"),
            (b"transfer_encoding", b"chunked"),
            (b"x_forwarded_for", b"1.2.3.4"),
        ]


class TestFields:
    def test_a15_order_and_repeats_are_kept_and_names_are_in_lower_case(self) -> None:
        got = parse(b"B: 1", b"a: 2", b"B: 3", b"X-Empty:", b"b:4")
        assert got.headers == [
            (b"host", b"a"), (b"b", b"1"), (b"a", b"2"), (b"b", b"3"), (b"x-empty", b""), (b"b", b"4"),
        ]  # fmt: skip

    def test_a20_obs_text_passes_in_values(self) -> None:
        every = bytes(range(0x80, 0x100))
        assert parse(b"X: caf\xe9", b"Y: " + every).headers[1:] == [(b"x", b"caf\xe9"), (b"y", every)]

    def test_a17_a_value_is_kept_but_for_the_white_space_around_it(self) -> None:
        value = b'a  b\tc "d" : e; ,, \\'
        assert parse(b"X: \t " + value + b" \t ").headers[1] == (b"x", value)

    def test_every_character_of_a_token_may_be_in_a_name(self) -> None:
        name = b"!#$%&'*+-.^_`|~09azAZ"
        assert parse(name + b": v").headers[1] == (name.lower(), b"v")

    def test_a22_as_many_fields_as_the_limit_says(self) -> None:
        assert len(parse(*[b"X: a"] * 99).headers) == 100

    def test_a22_the_limits_are_the_callers(self) -> None:
        limits = HeadLimits(max_target=10, max_head=60, max_headers=2)
        assert parse_head(head(b"X: y", line=b"GET /23456789 HTTP/1.1"), limits)
        with pytest.raises(TargetTooLong):
            parse_head(head(line=b"GET /23456789ab HTTP/1.1"), limits)
        with pytest.raises(HeadTooLarge):
            parse_head(head(b"X: y", b"Y: z"), limits)
        with pytest.raises(HeadTooLarge):
            parse_head(head(b"X: " + b"y" * 60), limits)


class TestTargets:
    @pytest.mark.parametrize(
        "target",
        [b"/", b"//x", b"/a/../b", b"/%2e%2e/", b"/a?", b"/?x=%zz|\"'", b"/;p", b"/%2F", b"/a//b/./c",
         b"/\\{}^`<>",
         b"/@evil", b"/http://evil/", b"/*"],
    )  # fmt: skip
    def test_l17_a_target_is_kept_byte_for_byte(self, target: bytes) -> None:
        assert parse(line=b"GET " + target + b" HTTP/1.1").target == target

    @pytest.mark.parametrize(
        ("line", "target"),
        [
            (b"GET http://a/x?y HTTP/1.1", b"/x?y"),
            (b"GET HTTP://A/x/../y HTTP/1.1", b"/x/../y"),
            (b"GET https://a/ HTTP/1.1", b"/"),
            (b"GET http://a HTTP/1.1", b"/"),
            (b"GET http://a?q HTTP/1.1", b"/?q"),
            (b"GET http://a//evil/x HTTP/1.1", b"//evil/x"),
            (b"OPTIONS http://a HTTP/1.1", b"*"),
            (b"OPTIONS http://a/ HTTP/1.1", b"/"),
            (b"OPTIONS * HTTP/1.1", b"*"),
        ],
    )
    def test_l14_l15_other_forms_become_origin_form(self, line: bytes, target: bytes) -> None:
        assert parse(line=line).target == target

    def test_l14_absolute_form_in_http_1_0_stands_for_a_missing_host(self) -> None:
        got = parse(line=b"GET http://A:80/x HTTP/1.0", host=None)
        assert (got.target, got.headers) == (b"/x", [(b"host", b"A:80")])

    def test_a22_a_target_as_long_as_the_limit(self) -> None:
        target = b"/" + b"a" * (8 * 1024 - 1)
        assert parse(line=b"GET " + target + b" HTTP/1.1").target == target

    @pytest.mark.parametrize(
        "host",
        [b"a", b"A.example", b"a:80", b"a:", b"127.0.0.1:8080", b"[::1]", b"[::1]:80", b"[::ffff:1.2.3.4]",
         b"a_b",
         b"a%41", b"a-b.c~d"],
    )  # fmt: skip
    def test_l13_a_host_that_is_valid(self, host: bytes) -> None:
        assert parse(host=b"Host: " + host).headers == [(b"host", host)]

    def test_l13_http_1_0_needs_no_host(self) -> None:
        assert parse(line=b"GET / HTTP/1.0", host=None).headers == []


class TestConnection:
    @pytest.mark.parametrize(
        ("fields", "version", "stays"),
        [
            ([], b"1.1", True),
            ([b"Connection: keep-alive"], b"1.1", True),
            ([b"Connection: close"], b"1.1", False),
            ([b"Connection: CLOSE"], b"1.1", False),
            ([b"Connection: keep-alive, close"], b"1.1", False),
            ([b"Connection: x-foo", b"Connection: ,, close ,"], b"1.1", False),
            ([b"Connection: x-close"], b"1.1", True),
            ([], b"1.0", False),
            ([b"Connection: keep-alive"], b"1.0", False),
            ([], b"1.2", True),
        ],
    )
    def test_l24_whether_the_client_stays(self, fields: list[bytes], version: bytes, stays: bool) -> None:
        assert parse(*fields, line=b"GET / HTTP/" + version).keep_alive is stays

    def test_l18_a_higher_minor_version_is_read_as_1_1(self) -> None:
        assert parse(line=b"GET / HTTP/1.2").minor == 1
        assert parse(line=b"GET / HTTP/1.9").minor == 1
        assert parse(line=b"GET / HTTP/1.0").minor == 0

    def test_a23_a_method_is_kept_as_it_was_sent(self) -> None:
        for method in (b"patch", b"Patch", b"PATCH", b"M-SEARCH", b"FOO", b"x" * 64):
            assert parse(line=method + b" / HTTP/1.1").method == method

    @pytest.mark.parametrize(
        ("fields", "line", "expects"),
        [
            ([b"Expect: 100-continue", b"Content-Length: 1"], b"POST / HTTP/1.1", True),
            ([b"expect: 100-Continue", b"Transfer-Encoding: chunked"], b"POST / HTTP/1.1", True),
            ([b"Expect: 100-continue, 100-continue", b"Content-Length: 1"], b"POST / HTTP/1.1", True),
            ([b"Expect: 100-continue"], b"POST / HTTP/1.1", False),
            ([b"Expect: 100-continue", b"Content-Length: 0"], b"POST / HTTP/1.1", False),
            ([b"Expect:", b"Content-Length: 1"], b"POST / HTTP/1.1", False),
            ([b"Content-Length: 1"], b"POST / HTTP/1.1", False),
            ([b"Expect: 100-continue", b"Content-Length: 1"], b"POST / HTTP/1.0", False),
            ([b"Expect: what", b"Content-Length: 1"], b"POST / HTTP/1.0", False),
        ],
    )
    def test_a10_a11_who_waits_for_100(self, fields: list[bytes], line: bytes, expects: bool) -> None:
        assert parse(*fields, line=line).expect_continue is expects

    @pytest.mark.parametrize(
        ("fields", "offered"),
        [
            ([b"Connection: Upgrade", b"Upgrade: WebSocket"], b"websocket"),
            ([b"Connection: keep-alive, upgrade", b"Upgrade: websocket"], b"websocket"),
            ([b"Connection: upgrade", b"Upgrade: h2c, websocket/13"], b"websocket/13"),
            ([b"Connection: upgrade", b"Upgrade: h2c"], None),
            ([b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: x"], None),
            ([b"Connection: upgrade", b"Upgrade: HTTP/2.0, TLS/1.0"], None),
            ([b"Connection: upgrade", b"Upgrade: a b"], None),
            ([b"Connection: upgrade"], None),
            ([b"Upgrade: websocket"], None),
            ([b"Connection: close", b"Upgrade: websocket"], None),
            ([b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 3"], None),
            ([b"Connection: upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked"], None),
        ],
    )
    def test_a5_the_upgrade_that_is_offered(self, fields: list[bytes], offered: bytes | None) -> None:
        assert parse(*fields, line=b"GET / HTTP/1.1").upgrade == offered

    def test_a5_http_1_0_cannot_upgrade(self) -> None:
        got = parse(b"Connection: upgrade", b"Upgrade: websocket", line=b"GET / HTTP/1.0")
        assert got.upgrade is None

    def test_a1_other_fields_may_be_nominated(self) -> None:
        assert parse(b"Connection: close, X-Foo, TE, Keep-Alive, Transfer-Encoding", b"X-Foo: 1")

    def test_l12_empty_lines_are_counted(self) -> None:
        assert [blank_lines(data) for data in (b"GET", b"\r\nGET", b"\r\n\r\n\r", b"\n\r\n")] == [0, 2, 4, 0]


class TestWhatIsNoHeadYet:
    @pytest.mark.parametrize(
        ("data", "error"),
        [
            (b"\x16\x03\x01", BadRequest),
            (b"GET / HTTP/1.1\nHost", BadRequest),
            (b"GET / HTTP/1.1\r\nHost: a\nX", BadRequest),
            (b"GET / HTTP/1.1\r\nX: a\rb", BadRequest),
            (b"GET / HTTP/1.1\r\nX: \0", BadRequest),
            (b"GET /\r\n", BadRequest),
            (b"GET / HTTP/2.0\r\n", VersionNotSupported),
            (b"SSH-2.0-x\r\n", BadRequest),
            (b"A" * 65, BadRequest),
            (b"GET /" + b"a" * 8300, TargetTooLong),
            (b"GET /" + b"a" * 8300 + b" HTTP/1.1\r\n", TargetTooLong),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 33 * 1024, HeadTooLarge),
        ],
    )
    def test_it_is_refused_as_soon_as_nothing_can_mend_it(
        self, data: bytes, error: type[GatewayError]
    ) -> None:
        with pytest.raises(GatewayError) as caught:
            refuse_hopeless(data, 0, LIMITS)
        assert type(caught.value) is error

    def test_it_is_refused_at_the_same_byte_when_it_comes_byte_by_byte(self) -> None:
        for data in (
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nX: a\rb",
            b"GET / HTTP/1.1\r\nX: a\n",
            b"GET /\r\n",
        ):
            for size in range(1, len(data)):
                refuse_hopeless(data[:size], size - 1, LIMITS)
            with pytest.raises(BadRequest):
                refuse_hopeless(data, len(data) - 1, LIMITS)

    def test_no_beginning_of_a_good_head_is_refused(self) -> None:
        data = head(b"X: a\tb\xff", b"Content-Length: 3", line=b"PATCH /" + b"a" * 8191 + b" HTTP/1.1")
        for size in (*range(1, 60), *range(8000, len(data) - 1)):
            refuse_hopeless(data[:size], size - 1, LIMITS)
            refuse_hopeless(data[:size], 0, LIMITS)


class Message(NamedTuple):
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def ours(data: bytes) -> list[Message]:
    """All requests of a connection. Raises what is refused, and EOFError where something is missing."""
    return read_all(data)[0]


def read_all(data: bytes) -> tuple[list[Message], bytes]:
    """With the bytes that they were read from, without the empty lines between them, which h11 refuses."""
    messages: list[Message] = []
    read = b""
    while True:
        data = data[blank_lines(data) :]
        if not data:
            return messages, read
        start = data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            raise EOFError
        got = parse_head(data[:end], LIMITS)
        data = data[end:]
        if got.length == CHUNKED:
            body, data = read_chunked(data)
        else:
            if len(data) < got.length:
                raise EOFError
            body, data = data[: got.length], data[got.length :]
        messages.append(Message(got.method, got.target, got.headers, body))
        read += start[: len(start) - len(data)]
        if not got.keep_alive:
            return messages, read


def of_h11(data: bytes) -> list[Message]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    messages: list[Message] = []
    request: Any = None
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            messages.append(Message(request.method, request.target, list(request.headers), body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return messages
            connection.start_next_cycle()
        else:
            return messages


class OfHttptools:
    def __init__(self, data: bytes) -> None:
        self.messages: list[Message] = []
        self.parser: Any = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.in_head = True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # the trailers of F4
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages.append(Message(self.parser.get_method(), self.url, self.headers, self.body))


FIELD = st.sampled_from(
    [
        b"X: a", b"X-Y:b", b"x_y: caf\xe9", b"Empty:", b"Accept: */*", b"Cookie: a=1; b=2", b"X: \t a \t ",
        b"X: a:b",
        b"Connection: keep-alive", b"Connection: x", b"Content-Length: 5", b"Content-Length: 05",
        b"Content-Length: 5 ",
        b"Content-Length:\t5", b"Content-Length: +5", b"Content-Length: 5,5", b"Content-Length: 4",
        b"Content-Length : 5",
        b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding:", b" chunked", b"X:\rTransfer-Encoding: chunked", b"X:\nContent-Length: 9",
        b"Host: b",
        b"Content_Length: 3", b"Content-Length:", b"X\0: a", b"\xffTransfer-Encoding: chunked", b"Foo", b"",
    ]
)  # fmt: skip
METHODS = {b"GET", b"POST", b"PATCH", b"DELETE"}
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = st.sampled_from(
    [
        b"", b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\nT: u\r\n\r\n",
        HIDDEN,
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN), b"0\r\n\r\n" + HIDDEN, b"5\nhello\r\n0\r\n\r\n",
        b"\r\n",
        b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"05\r\nhello\r\n00\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n",
    ]
)  # fmt: skip
FRAMED = st.sampled_from(
    [
        ((), b""),
        ((b"Content-Length: %d" % len(HIDDEN),), HIDDEN),
        ((b"Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
        ((b"Transfer-Encoding: chunked",), b"1;a=b\r\nx\r\n00\r\nHost: b\r\n\r\n"),
    ]
)
LINE = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /a?b HTTP/1.1",
        b"PATCH /%2e/.. HTTP/1.1",
        b"GET / HTTP/1.0",
        b"DELETE //x HTTP/1.1",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests in a row, good and bad, the bytes of some of them damaged."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        fields = draw(st.lists(FIELD, max_size=2))
        framing, body = draw(FRAMED) if draw(st.booleans()) else ((), draw(BODY))
        data += head(*fields, *framing, line=draw(LINE)) + body
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 2))
        data = (
            data[:at]
            + draw(st.sampled_from([b"", b" ", b"\r", b"\n", b"\0", b"\t", b"a", b":"]))
            + data[at + cut :]
        )
    return data


@settings(max_examples=1500, deadline=None)
@given(requests())
def test_what_we_accept_others_read_as_the_same_messages(data: bytes) -> None:
    try:
        messages, read = read_all(data)
    except (RequestError, InvalidChunk, EOFError):
        return
    assert of_h11(read) == messages
    # llhttp has a list of methods, and takes no tab after a transfer coding.
    if messages and b"\t" not in read and all(message.method in METHODS for message in messages):
        assert OfHttptools(read).messages == messages


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([HIDDEN, b"\r\n", b"0\r\n\r\n", b"x", b"\0"]), max_size=5), st.integers(1, 50)
)
def test_l20_a_request_hidden_in_a_body_is_never_seen(parts: list[bytes], size: int) -> None:
    """Where the framing says body, the next request is the one after the body."""
    body = b"".join(parts)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size])
        for at in range(0, len(body), size)
    )
    for framed in (
        head(b"Content-Length: %d" % len(body)) + body,
        head(b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n",
    ):
        messages = ours(framed + head(line=b"GET /next HTTP/1.1"))
        assert [(message.target, message.body) for message in messages] == [(b"/", body), (b"/next", b"")]


@settings(max_examples=600, deadline=None)
@given(requests())
def test_what_is_refused_before_its_end_is_refused_at_its_end(data: bytes) -> None:
    data = data[blank_lines(data) :]
    for cut in range(1, min(len(data), 150)):
        if b"\r\n\r\n" in data[:cut]:
            break
        try:
            refuse_hopeless(data[:cut], 0, LIMITS)
        except RequestError:
            with pytest.raises((RequestError, EOFError)):
                ours(data)
            break


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_are_a_head_or_a_refusal(line: bytes, fields: bytes) -> None:
    for data in (line + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n"):
        try:
            got = parse_head(data, LIMITS)
        except RequestError:
            continue
        assert got.target.startswith((b"/", b"*"))
        assert all(name == name.lower() and value == value.strip(b" \t") for name, value in got.headers)


LINES = [
    b"GET / HTTP/1.1", b"PATCH /a?b HTTP/1.1", b"GET /x HTTP/1.0", b"GET http://h/x HTTP/1.0",
    b"GET http://h/x HTTP/1.1", b"OPTIONS * HTTP/1.1", b"TRACE / HTTP/1.1", b"GET /x HTTP/1.7",
    b"BREW / HTTP/1.1", b"GET x HTTP/1.1", b"GET / HTTP/2.0", b"GET /%b HTTP/1.1" % (b"x" * 9000),
]  # fmt: skip
BLOCKS = [
    b"Host: h\r\n", b"", b"Host: h\r\nContent-Length: 3\r\n", b"Host: h\r\nTransfer-Encoding: chunked\r\n",
    b"Host: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n", b"Host: h\r\nConnection: close\r\n",
    b"Host: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", b"Host: h\r\nHost: h\r\n", b"Host : h\r\n",
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(BLOCKS)), min_size=2, max_size=6))
def test_a_head_means_the_same_whatever_the_connection_said_before(heads: list[tuple[bytes, bytes]]) -> None:
    last: RequestHead | None = None
    for line, block in heads:
        data = line + b"\r\n" + block + b"\r\n"
        try:
            fresh = parse_head(data, HeadLimits())
        except RequestError as error:
            with pytest.raises(type(error)):
                parse_head(data, HeadLimits(), last)
            continue
        again = parse_head(data, HeadLimits(), last)
        assert again == fresh
        last = again
