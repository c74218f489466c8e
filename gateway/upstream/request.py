"""
A request as it goes out on an HTTP/1.1 connection: its bytes, and whether the connection is kept after it.
Pure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from msgspec import Struct

from gateway.errors import UnwritableRequest
from gateway.http.chunked import LAST_CHUNK, chunk
from gateway.http.grammar import CHUNKED, METHODS, SAFE_METHODS, match_token
from gateway.http.headers import Fields, Headers, method_overrides, text
from gateway.http.slots import Slot, SlottedText, Values
from gateway.http.writer import Unwritable, field_lines

SEPARATE_BODY: Final = 16_384  # bytes from which on a body is not copied behind the head

_TARGET: Final = bytes(range(0x21, 0x7F))


class OutgoingRequest(Struct, eq=False):
    """
    `head` has the body with it, unless that is large (`large_body`) or a `stream`, of so many bytes as
    `length` says. `replayable`: it is safe (RFC 9110 section 9.2.1) and whole, so that it may go out once
    more on another connection.
    """

    head: bytes
    keep_alive: bool
    head_only: bool
    upgrade: bool
    replayable: bool = False
    length: int = 0
    large_body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


def outgoing(
    method: bytes,
    target: bytes,
    headers: Headers,
    extra_headers: Headers,
    body: bytes | AsyncIterator[bytes] | None,
    upgrade: bool = False,
    values: Values = (),
) -> OutgoingRequest:
    """
    `values` are for the slots in `headers`. Raises UnwritableRequest: what a client can send was checked
    before, so this is a bug of the gateway's.
    """
    if target.translate(None, _TARGET) or not target or not (method in METHODS or _may_be_sent(method)):
        raise UnwritableRequest(f"not a request to send: {text(method)} {text(target)}")
    try:
        shared = headers.derived(_prepared) if isinstance(headers, Fields) else _prepared(headers)
        fields, length, keep_alive = shared.text.filled(values), shared.length, shared.keep_alive
        if extra_headers:
            more = field_lines(extra_headers)
            fields += more.text
            if isinstance(more.length, int):
                if length is not None:
                    raise UnwritableRequest("the request's framing is given twice")
                length = more.length
            keep_alive = keep_alive and not more.closes
    except Unwritable as error:
        raise UnwritableRequest(str(error)) from error
    if isinstance(length, Slot):
        length = int(values[length.number])
    if isinstance(body, bytes):
        if length is None:
            length = len(body)
            fields = b"%bcontent-length: %d\r\n" % (fields, length)
    elif body is None:
        body = b""
    else:
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, fields)
        return OutgoingRequest(head, keep_alive, method == b"HEAD", upgrade, length=length or 0, stream=body)
    if length == CHUNKED:
        body = chunk(body) + LAST_CHUNK
    elif len(body) != (length or 0):
        raise UnwritableRequest(f"Content-Length is {length}, the body has {len(body)} bytes")
    replayable = method in SAFE_METHODS and shared.replayable and not method_overrides(extra_headers)
    if len(body) >= SEPARATE_BODY:
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, fields)
        return OutgoingRequest(head, keep_alive, method == b"HEAD", upgrade, replayable, large_body=body)
    head = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, fields, body)
    return OutgoingRequest(head, keep_alive, method == b"HEAD", upgrade, replayable)


class _Prepared(Struct, frozen=True):
    """What fields say of each request that has them."""

    text: SlottedText
    length: int | Slot | None
    keep_alive: bool
    replayable: bool


def _prepared(headers: Headers) -> _Prepared:
    lines = field_lines(headers)
    return _Prepared(
        SlottedText.of(lines.text), lines.length, not lines.closes, not method_overrides(headers)
    )


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
