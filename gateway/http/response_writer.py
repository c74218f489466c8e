"""
A response as bytes: status line, fields, and a body framed as the head says. Pure.

Law: a head is checked as a whole before a byte of it is given out, so that no field can add a line to it. A
body that is not as long as its Content-Length is an error, and never looks whole.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from msgspec import Struct

from gateway.http.chunked import LAST_CHUNK, chunk
from gateway.http.grammar import BODILESS, CHUNKED, NO_BODY, UNTIL_CLOSE
from gateway.http.headers import Fields, Header, Headers, first
from gateway.http.writer import OF_A_REPLY_WITHOUT_LENGTH, OF_THE_CONNECTION, checked, field_lines

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode("ascii")) for status in HTTPStatus
}
_CLOSE: Final = b"connection: close\r\n\r\n"  # the end of a head; RFC 9112 section 9.6


class _Head(Struct, frozen=True):
    """
    What status, request and shared fields say of a head: `text` comes first, `ending` after the fields of
    this response alone. `framing` is the body's length, or how it ends.
    """

    text: bytes
    ending: bytes
    framing: int
    dated: bool
    closes: bool


def _head(headers: Headers, status: int, head_only: bool, minor: int, reason: bytes = b"") -> _Head:
    if not 200 <= status <= 999:
        raise ValueError(f"{status} is not the status of a final reply")
    # RFC 9110 section 8.6: a 204 has no length, and a 304's would be that of the reply it stands for.
    sizeless = status in BODILESS
    lines = field_lines(headers, OF_A_REPLY_WITHOUT_LENGTH if sizeless else OF_THE_CONNECTION)
    ending = b""
    # How the body ends (RFC 9112 section 6.3).
    if sizeless or head_only:
        framing = NO_BODY
    elif isinstance(lines.length, int):
        framing = lines.length
    elif minor:
        framing = CHUNKED
        ending = b"transfer-encoding: chunked\r\n"
    else:
        framing = UNTIL_CLOSE
    # RFC 9112 section 4: it is for people, who have what the upstream wrote for them, in whatever language.
    line = b"" if reason else _STATUS_LINES.get(status)
    text = (line or b"HTTP/1.1 %d %b\r\n" % (status, reason)) + lines.text
    return _Head(text, ending, framing, lines.dated, lines.closes)


def _begun(
    status: int,
    headers: Headers,
    extra_headers: Headers,
    method: bytes,
    minor: int,
    date: Callable[[], bytes],
) -> tuple[bytes, _Head]:
    if isinstance(headers, Fields):
        head = headers.derived(_head, status, method == b"HEAD", minor, headers.reason)
    else:
        head = _head(headers, status, method == b"HEAD", minor)
    text = head.text
    if extra_headers:
        text += checked(b"\r\n".join([*map(b": ".join, extra_headers), b""]), len(extra_headers))
    if not head.dated:
        text += b"date: %b\r\n" % date()  # RFC 9110 section 6.6.1
    return text + head.ending, head


def whole_response(
    status: int,
    headers: Headers,
    body: bytes,
    extra_headers: Headers,
    method: bytes,
    minor: int,
    close: bool,
    date: Callable[[], bytes],
) -> tuple[bytes, bool]:
    """
    A response in one piece, and whether the connection ends with it: where `close`, or where the fields say
    so. Otherwise as ResponseWriter.
    """
    text, head = _begun(status, headers, extra_headers, method, minor, date)
    framing, close = head.framing, close or head.closes
    if framing >= 0:
        if len(body) != framing:
            raise RuntimeError("the body is not as long as the reply's Content-Length")
    elif framing == CHUNKED:
        body = chunk(body) + LAST_CHUNK
    elif framing == NO_BODY:
        body = b""
    return text + (_CLOSE if close else b"\r\n") + body, close or framing == UNTIL_CLOSE


class ResponseWriter:
    """One response: its head was checked, and waits to go out with the first bytes of the body."""

    __slots__ = ("_framing", "closes", "complete", "head")

    def __init__(
        self,
        status: int,
        headers: Headers,
        extra_headers: Headers,
        method: bytes,
        minor: int,
        date: Callable[[], bytes],
    ) -> None:
        """
        To a request with this method, in HTTP/1.`minor`. `headers` may say how long the body is,
        `extra_headers` may not. `date` is asked for the value of Date where `headers` has none. Raises
        ValueError for a head that can't be written.
        """
        text, head = _begun(status, headers, extra_headers, method, minor, date)
        self.head: bytes | None = text  # None once it was given out
        self._framing = head.framing
        self.closes = head.closes  # the fields say that the connection ends with this response
        self.complete = False

    @property
    def ends_by_close(self) -> bool:
        """Whether only the end of the connection tells the client that the body has ended."""
        return self._framing == UNTIL_CLOSE

    def write(self, body: bytes, more: bool, close: bool) -> bytes:
        """
        The bytes for a piece of the body, the last unless there is `more`; before the first of them the head,
        which says that the connection ends if `close`. Raises RuntimeError where the body is not as long as
        the head said.
        """
        if self.complete:
            raise RuntimeError("a body after the reply was complete")
        framing = self._framing
        if framing >= 0:
            framing -= len(body)
            if framing < 0 or (framing and not more):
                raise RuntimeError("the body is not as long as the reply's Content-Length")
            self._framing = framing
        elif framing == CHUNKED:
            body = chunk(body)
            if not more:
                body += LAST_CHUNK
        elif framing == NO_BODY:
            body = b""
        self.complete = not more
        head = self.head
        if head is None:
            return body
        self.head = None
        return head + (_CLOSE if close else b"\r\n") + body

    def write_head(self, close: bool) -> bytes:
        """The head alone, before anything of the body is there. Once."""
        head, self.head = self.head, None
        assert head is not None
        return head + (_CLOSE if close else b"\r\n")


def switching(headers: Headers, protocol: bytes) -> bytes:
    """The head of a 101 that accepts `protocol`, with these fields. Raises ValueError."""
    fields: list[Header] = list(headers)
    if first(fields, b"upgrade") is None:
        fields.append((b"upgrade", protocol))
    if first(fields, b"connection") is None:
        fields.append((b"connection", b"upgrade"))
    return _STATUS_LINES[101] + field_lines(fields).text + b"\r\n"
