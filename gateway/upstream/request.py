"""
A request as it goes out on an HTTP/1.1 connection: its bytes, and whether the connection is kept after it.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from gateway.errors import UnwritableRequest
from gateway.http.chunked import LAST_CHUNK, chunk
from gateway.http.grammar import CHUNKED, METHODS, SAFE_METHODS, match_token
from gateway.http.headers import Fields, Headers, method_overrides, text
from gateway.http.writer import FieldLines, Unwritable, field_lines

SEPARATE_BODY: Final = 16_384  # bytes from which on a body is not copied behind the head

Made = TypeVar("Made")

_match_target = re.compile(rb"[\x21-\x7e]+").fullmatch


class OutgoingRequest:
    """
    `head` has the body with it, unless that is large (`large_body`) or a `stream`. `replayable`: it is safe
    (RFC 9110 section 9.2.1) and whole, so that it may go out once more on another connection.
    """

    __slots__ = (
        "head",
        "head_only",
        "keep_alive",
        "large_body",
        "length",
        "replayable",
        "stream",
        "upgrade",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        extra_headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
        upgrade: bool,
    ) -> None:
        """
        Raises UnwritableRequest: what a client can send was checked before, so this is a bug of the
        gateway's.
        """
        if _match_target(target) is None or (method not in METHODS and not _may_be_sent(method)):
            raise UnwritableRequest(f"not a request to send: {text(method)} {text(target)}")
        self.head_only = method == b"HEAD"
        self.upgrade = upgrade
        lines, more = _lines(headers, extra_headers)
        fields, length, closes = lines.text, lines.length, lines.closes
        if more is not None:
            if more.length is not None:
                if length is not None:
                    raise UnwritableRequest("the request's framing is given twice")
                length = more.length
            fields += more.text
            closes = closes or more.closes
        self.keep_alive = not closes
        self.large_body = b""
        self.stream: AsyncIterator[bytes] | None = None
        self.replayable = False
        if body is None or isinstance(body, bytes):
            self.replayable = method in SAFE_METHODS and not (
                _remembered(headers, method_overrides) or method_overrides(extra_headers)
            )
            if body is None:
                body = b""
            elif length is None:
                length = len(body)
                fields += b"content-length: %d\r\n" % length
            if length == CHUNKED:
                body = chunk(body) + LAST_CHUNK
            elif len(body) != (length or 0):
                raise UnwritableRequest(f"Content-Length is {length}, the body has {len(body)} bytes")
            if len(body) >= SEPARATE_BODY:
                self.large_body, body = body, b""
        else:
            self.stream, body = body, b""
        self.length = length or 0
        self.head = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, fields, body)


def _lines(headers: Headers, extra_headers: Headers) -> tuple[FieldLines, FieldLines | None]:
    try:
        lines = _remembered(headers, field_lines)
        return lines, field_lines(extra_headers) if extra_headers else None
    except Unwritable as error:
        raise UnwritableRequest(str(error)) from error


def _remembered(headers: Headers, make: Callable[[Headers], Made]) -> Made:
    return headers.derived(make) if isinstance(headers, Fields) else make(headers)


def _may_be_sent(method: bytes) -> bool:
    return match_token(method) is not None and method != b"CONNECT"


async def streamed(request: OutgoingRequest, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """
    The body's stream as it is written. Raises UnwritableRequest where it is not as long as its
    Content-Length.
    """
    left = request.length
    async for piece in stream:
        if not piece:
            continue
        if request.length == CHUNKED:
            yield chunk(piece)
        else:
            left -= len(piece)
            if left < 0:
                raise UnwritableRequest(f"the body is longer than its Content-Length of {request.length}")
            yield piece
    if request.length == CHUNKED:
        yield LAST_CHUNK
    elif left:
        raise UnwritableRequest(f"the body is {left} bytes shorter than its Content-Length")
