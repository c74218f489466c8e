"""
Every request head that is refused, and what each is refused for.

One table for three tests: the parser refuses it (tests/http), the server answers it over a socket without
calling the application (tests/server), and the gateway sends nothing of it upstream (tests/end_to_end).
A name begins with the number of its line in the intermediary checklist, where it has one: A is RFC 9110,
L is RFC 9112.
"""

from __future__ import annotations

from typing import TypeAlias

import pytest

from gateway.errors import (
    BadRequest,
    ExpectationFailed,
    GatewayError,
    HeadTooLarge,
    MethodNotAllowed,
    MisdirectedRequest,
    NotSupported,
    TargetTooLong,
    VersionNotSupported,
)

RefusedHead: TypeAlias = tuple[str, bytes, type[GatewayError]]

# What the client is told, as status and as the end of the problem's type.
ANSWERS: dict[type[GatewayError], tuple[int, str]] = {
    BadRequest: (400, "bad-request"),
    MethodNotAllowed: (405, "method-not-allowed"),
    TargetTooLong: (414, "target-too-long"),
    ExpectationFailed: (417, "expectation-failed"),
    MisdirectedRequest: (421, "misdirected-request"),
    HeadTooLarge: (431, "head-too-large"),
    NotSupported: (501, "not-supported"),
    VersionNotSupported: (505, "version-not-supported"),
}
SECRET = b"Zq7Secret"
# Fields that Connection may not name: they are for the upstream, whatever a client says of them.
PROTECTED = (
    b"Authorization", b"Cookie", b"Content-Type", b"Content-Digest", b"Via", b"Cache-Control",
    b"X-Forwarded-For", b"Forwarded", b"X-Request-Id", b"Gateway-Rewrite", b"If-Match", b"Origin",
)  # fmt: skip


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes | None = b"Host: a") -> bytes:
    lines = [line, *([host] if host is not None else []), *fields]
    return b"".join(each + b"\r\n" for each in lines) + b"\r\n"


def each_of(*heads: RefusedHead) -> pytest.MarkDecorator:
    """Gives a test `data` and `error`, and its runs the names."""
    rows = [(data, error) for _, data, error in heads]
    return pytest.mark.parametrize(("data", "error"), rows, ids=[name for name, _, _ in heads])


def with_secret(data: bytes) -> bytes:
    """The same head with a credential that no refusal may repeat."""
    return data.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer " + SECRET + b"\r\n\r\n", 1)


# Refused at their end.
REFUSED_HEADS: list[RefusedHead] = [
    ("L1 length and chunked", head(b"Content-Length: 3", b"Transfer-Encoding: chunked"), BadRequest),
    ("L1 chunked and length", head(b"TRANSFER-ENCODING: chunked", b"CONTENT-LENGTH: 3"), BadRequest),
    ("L1 in lower case", head(b"content-length: 3", b"transfer-encoding: Chunked"), BadRequest),
    ("L1 length and unknown coding", head(b"Content-Length: 3", b"Transfer-Encoding: gzip"), BadRequest),
    ("L1 in upper case", head(b"CONTENT-LENGTH: 3", b"TRANSFER-ENCODING: CHUNKED"), BadRequest),
    ("L1 length 0 and chunked", head(b"Content-Length: 0", b"Transfer-Encoding: chunked"), BadRequest),
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
    ("L2 empty member first, no space", head(b"Transfer-Encoding: ,chunked"), BadRequest),
    ("L2 unknown coding and length 0", head(b"Content-Length: 0", b"Transfer-Encoding: x"), BadRequest),
    ("L3 unknown before chunked", head(b"Transfer-Encoding: gzip, chunked"), NotSupported),
    ("L3 in two lines", head(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), NotSupported),
    ("L4 chunked in HTTP/1.0", head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"), BadRequest),
    (
        "L4 in HTTP/1.0 without Host",
        head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0", host=None),
        BadRequest,
    ),
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
    ("L5 word", head(b"Content-Length: five"), BadRequest),
    ("L5 superscript digit", head(b"Content-Length: \xb2"), BadRequest),
    ("L5 zero twice", head(b"Content-Length: 0", b"Content-Length: 0"), BadRequest),
    ("L6 2**63", head(b"Content-Length: 9223372036854775808"), BadRequest),
    ("L6 2**64", head(b"Content-Length: 18446744073709551616"), BadRequest),
    ("L6 300 digits", head(b"Content-Length: " + b"9" * 300), BadRequest),
    ("L6 30 digits", head(b"Content-Length: " + b"1" * 30), BadRequest),
    ("L8 bare CR in a value", head(b"X: a\rb"), BadRequest),
    ("L8 bare CR in a name", head(b"X\r: a"), BadRequest),
    ("L8 bare CR in the target", head(line=b"GET /a\rb HTTP/1.1"), BadRequest),
    ("L8 bare LF in a value", head(b"X: a\nY: b"), BadRequest),
    ("L8 bare LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", BadRequest),
    ("L8 CR CR LF", head(b"X: a\r"), BadRequest),
    ("L8 CR CR LF in a value", head(b"X: a\r\r\nb"), BadRequest),
    ("L8 bare LFs in a value", head(b"X: a\n\nb"), BadRequest),
    ("L8 bare LF in a name", head(b"X\n: a"), BadRequest),
    ("L8 bare LF in the target", head(line=b"GET /a\nb HTTP/1.1"), BadRequest),
    ("L9 obs-fold", head(b"X: a", b" b"), BadRequest),
    ("L9 obs-fold with a tab", head(b"X: a", b"\tb"), BadRequest),
    ("L9 obs-fold in Transfer-Encoding", head(b"Transfer-Encoding:", b" chunked"), BadRequest),
    ("L10 space before the colon", head(b"X : a"), BadRequest),
    ("L10 tab before the colon", head(b"X\t: a"), BadRequest),
    ("L10 before a length", head(b"Content-Length : 5"), BadRequest),
    ("L10 tab before a coding", head(b"Transfer-Encoding\t: chunked"), BadRequest),
    ("L11 space after the request line", head(host=b" Host: a"), BadRequest),
    ("L11 tab after the request line", head(host=b"\tHost: a"), BadRequest),
    ("L11 tab before another field", head(b"Host: a", line=b"POST / HTTP/1.1", host=b"\tX: a"), BadRequest),
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
    ("L13 space", head(host=b"Host: a b"), BadRequest),
    ("L13 list with a space", head(host=b"Host: a, a"), BadRequest),
    ("L13 brackets without an address", head(host=b"Host: [zz]"), BadRequest),
    ("L13 obs-text alone", head(host=b"Host: \xe9"), BadRequest),
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
    ("L15 CONNECT to the Host", head(line=b"CONNECT a:443 HTTP/1.1", host=b"Host: a:443"), MethodNotAllowed),
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
    ("L16 one letter", head(line=b"GET x HTTP/1.1"), BadRequest),
    ("L16 backslash", head(line=b"GET \\x HTTP/1.1"), BadRequest),
    ("L16 NUL", head(line=b"GET /\0x HTTP/1.1"), BadRequest),
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
    *(
        (f"A3 {name.decode()} that is there", head(b"Connection: " + name, name + b": 1"), BadRequest)
        for name in PROTECTED
    ),
    *(
        (f"A3 {name.decode()} in other letters", head(b"Connection: close,\t" + name.swapcase()), BadRequest)
        for name in (*PROTECTED, b"Host", b"Content-Length", b"Expect")
    ),
    ("A9 TRACE", head(line=b"TRACE / HTTP/1.1"), MethodNotAllowed),
    ("A9 trace", head(line=b"trace / HTTP/1.1"), MethodNotAllowed),
    ("A9 TRACE with a path", head(line=b"TRACE /x HTTP/1.1"), MethodNotAllowed),
    ("A10 unknown expectation", head(b"Expect: 200-ok"), ExpectationFailed),
    ("A10 one of two", head(b"Expect: 100-continue, x"), ExpectationFailed),
    (
        "A10 one of two, with a body",
        head(b"Expect: 100-continue, x", b"Content-Length: 5"),
        ExpectationFailed,
    ),
    ("A10 unknown, with a body", head(b"Content-Length: 1", b"Expect: tea"), ExpectationFailed),
    ("A18 NUL", head(b"X: a\0b"), BadRequest),
    ("A18 NUL first", head(b"X:\0"), BadRequest),
    ("A18 NUL in a name", head(b"X\0: a"), BadRequest),
    ("A18 NUL after a space", head(b"X: \0"), BadRequest),
    ("A19 BEL", head(b"X: \x07"), BadRequest),
    ("A19 vertical tab at the end", head(b"X: a\x0b"), BadRequest),
    ("A19 form feed at the start", head(b"X: \x0ca"), BadRequest),
    ("A19 escape", head(b"X: \x1b[0m"), BadRequest),
    ("A19 delete", head(b"X: \x7f"), BadRequest),
    *(
        (f"A19 {code:#04x} in a value", head(b"X: a%cb" % code), BadRequest)
        for code in (1, 7, 8, 11, 12, 27, 31, 127)
    ),
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
    ("A22 101 different fields", head(*[b"X-%d: a" % number for number in range(100)]), HeadTooLarge),
    ("A22 4,000 short fields", head(*[b"A: b"] * 4_000), HeadTooLarge),
    ("name empty", head(b": a"), BadRequest),
    ("name with parentheses", head(b"X(: a"), BadRequest),
    ("name with obs-text", head(b"X\xe9: a"), BadRequest),
    ("name quoted", head(b'"X": a'), BadRequest),
    ("name with delete", head(b"X\x7f: a"), BadRequest),
    ("no colon", head(b"X"), BadRequest),
    ("method empty", head(line=b" / HTTP/1.1"), BadRequest),
    ("method no token", head(line=b"G@T / HTTP/1.1"), BadRequest),
    ("method too long", head(line=b"G" * 65 + b" / HTTP/1.1"), BadRequest),
    ("method with a space before", head(line=b" GET / HTTP/1.1"), BadRequest),
    ("nothing", b"\r\n\r\n", BadRequest),
]
# Refused before their end: nothing that may follow would mend them.
HOPELESS_HEADS: list[RefusedHead] = [
    ("L8 bare LF after the request line", b"GET / HTTP/1.1\nHost: a\n\n", BadRequest),
    ("L8 bare LF before its line ends", b"GET / HTTP/1.1\nHost", BadRequest),
    ("L8 bare CR for a line's end", b"GET / HTTP/1.1\rHost: a\r\r", BadRequest),
    ("L8 bare LF after a field", b"GET / HTTP/1.1\r\nHost: a\nX", BadRequest),
    ("L8 bare CR in a value", b"GET / HTTP/1.1\r\nX: a\rb", BadRequest),
    ("A18 NUL", b"GET / HTTP/1.1\r\nX: \0", BadRequest),
    ("A22 a line of 33 KiB", b"GET / HTTP/1.1\r\nX: " + b"a" * 33 * 1024, HeadTooLarge),
    ("A22 a target of 8,300 bytes", b"GET /" + b"a" * 8300, TargetTooLong),
    ("A22 a target of 9 KiB", b"GET /" + b"a" * 9 * 1024, TargetTooLong),
    ("A22 a line with such a target", b"GET /" + b"a" * 8300 + b" HTTP/1.1\r\n", TargetTooLong),
    ("L18 no version", b"GET /\r\n", BadRequest),
    ("L18 HTTP/2.0", b"GET / HTTP/2.0\r\n", VersionNotSupported),
    ("method too long", b"A" * 65, BadRequest),
    ("SSH", b"SSH-2.0-x\r\n", BadRequest),
    ("TLS", b"\x16\x03\x01", BadRequest),
    ("TLS with a length", b"\x16\x03\x01\x02\x00\x01\x00", BadRequest),
]
