"""
A request's head as somebody else has read it, read once more by the gateway's own parser. Pure.

Law: what that refuses on the wire is refused here too, and nothing that is in a part can become another part.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from gateway.errors import BadRequest, GatewayError
from gateway.http.head_shapes import HeadShapes
from gateway.http.headers import Header, Headers, every, replaced
from gateway.http.request_parser import HeadLimits, RequestHead, parse_head

FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


def told_head(
    method: bytes, target: bytes, headers: Headers, version: str, limits: HeadLimits, shapes: HeadShapes
) -> RequestHead:
    """`version` is HTTP's: of one above 1.1 the head is read as if it were 1.1. Raises a RequestError."""
    fields = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    minor = 0 if version == "1.0" else 1
    head = b"%b %b HTTP/1.%d\r\n%b\r\n" % (method, target, minor, fields)
    if head.count(b"\r\n") != len(headers) + 2 or any(b":" in name for name, _ in headers):
        raise BadRequest("a line break or a colon where there can be none")
    return parse_head(head, limits, shapes)


def with_one_cookie(headers: list[Header]) -> list[Header]:
    """Of HTTP/2's several lines the one that HTTP/1.1 has to get (RFC 9113 section 8.2.3)."""
    crumbs = every(headers, b"cookie")
    return list(replaced(headers, b"cookie", b"; ".join(crumbs))) if len(crumbs) > 1 else headers


def target_of(raw_path: bytes | None, query: bytes, path: str) -> bytes:
    """
    The target as it was sent, of ASGI's raw_path and query_string; `path` is what raw_path says, decoded.
    Raises GatewayError where it can't be known: an encoded slash would be taken for a slash.
    """
    if raw_path is None:
        raise GatewayError("the ASGI server does not tell the path as it was sent (raw_path)")
    if not raw_path.isascii():
        raise BadRequest("the target has a character that must be percent-encoded")
    decoded = raw_path.decode("ascii")
    if b"?" in raw_path or (unquote(decoded) if "%" in decoded else decoded) != path:
        raise GatewayError("path and raw_path differ: something before the gateway has changed one of them")
    return raw_path + b"?" + query if query else raw_path
