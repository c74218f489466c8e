"""
Replies from the bytes of an upstream's connection, strictly: what could end in two places is refused. Pure.
"""

from __future__ import annotations

import re
from math import inf
from typing import Final, Protocol

from gateway.errors import InvalidReply
from gateway.http.chunked import ChunkedDecoder, InvalidChunk
from gateway.http.grammar import (
    BODILESS,
    CHUNKED,
    FIELD_TEXT,
    HEAD_END,
    UNTIL_CLOSE,
    list_members,
    match_field_lines,
    match_length,
    parse_field_lines,
    search_unfit,
)
from gateway.http.headers import Fields, Header, first, nominated

QUOTED: Final = 200  # bytes of what was no reply that an error carries, for the log
_HEAD_KEPT: Final = 4096  # bytes of a head that is compared with the next
_match_status_line = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (%b*))?\r\n" % FIELD_TEXT).match
# What no trailer may say (RFC 9110 section 6.5.1); it would be dropped, but who says it is not to be trusted.
_search_framing = re.compile(rb"(?:\A|\n)(?:content-length|transfer-encoding):", re.IGNORECASE).search
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})


class Sink(Protocol):
    """
    Is told of the head, of the body's pieces, of the end; or of all of them at once. `keep`: the connection
    may be used again.
    """

    def replied(self, status: int, headers: Fields) -> None: ...
    def received(self, piece: bytes) -> None: ...
    def ended(self, keep: bool) -> None: ...
    def replied_whole(self, status: int, headers: Fields, body: bytes, keep: bool) -> None: ...


class ResponseParser:
    """One reply after the other. `expect` comes before each; `max_head` is in bytes."""

    def __init__(self, sink: Sink, max_head: int, max_headers: int) -> None:
        self._sink = sink
        self._max_head = max_head
        self._max_headers = max_headers
        self._head_only = False
        self._upgrade = False
        self.headed = False  # the head is complete
        self.switched = False  # and what follows is no longer HTTP
        self._partial = b""
        self._left = 0
        self._keep = False
        self._chunks = ChunkedDecoder()
        self._last_head = b""
        self._last: tuple[int, Fields, int, bool] = (0, Fields(), 0, False)

    def expect(self, head_only: bool, upgrade: bool) -> None:
        self._head_only = head_only
        self._upgrade = upgrade
        self.headed = self.switched = False

    def feed(self, data: bytes) -> None:
        """Raises InvalidReply. After that, or an end that does not `keep`, the parser is of no use."""
        if not self.headed:
            last = self._last_head
            if last and data.startswith(last) and not self._partial and not self._head_only:
                status, headers, left, keep = self._last
                if len(data) == len(last) + left and status not in BODILESS:
                    self.headed = True
                    self._sink.replied_whole(status, headers, data[len(last) :], keep)
                    return
            self._feed_head(data)
        elif self._left == CHUNKED:
            self._feed_chunks(data)
        else:
            self._feed_body(data)

    def ends_here(self) -> bool:
        """Whether the end of the connection is the end of the reply."""
        return self.headed and self._left == UNTIL_CLOSE

    def _feed_head(self, data: bytes) -> None:
        largest = self._max_head
        start = 0
        if self._partial:
            start = max(0, len(self._partial) - 3)
            data = self._partial + data
            self._partial = b""
        while not self.headed:
            end = data.find(HEAD_END, start) + 4
            if end > largest or (end < 4 and len(data) > largest):
                raise InvalidReply(f"the reply's head is larger than {largest} bytes")
            if end < 4:
                if search_unfit(data, start) or not data.startswith(b"HTTP/1."[: len(data)]):
                    raise InvalidReply("the reply does not begin as HTTP/1.1 does", evidence=data[:QUOTED])
                self._partial = data
                return
            self._read_head(data[:end])
            data = data[end:]
            start = 0
        if self._left == CHUNKED:
            if data:
                self._feed_chunks(data)
        else:
            self._feed_body(data)

    def _read_head(self, head: bytes) -> None:
        if head == self._last_head:
            self._begin(*self._last)
            return
        line = _match_status_line(head)
        if line is None:
            raise InvalidReply("the reply does not begin with a status line", evidence=head[:QUOTED])
        end = len(head) - 2
        if match_field_lines(head, line.end(), end) is None:
            raise InvalidReply("the reply's head is not made of header fields", evidence=head[:QUOTED])
        # A trailer is not a header (RFC 9110 section 6.5.1): these are all there will be.
        headers = Fields(parse_field_lines(head, line.end(), end), line[3] or b"")
        if len(headers) > self._max_headers:
            raise InvalidReply(f"the reply has more than {self._max_headers} fields")
        status = int(line[2])
        try:
            left, keep = _framing(headers, line[1] == b"1")
        except ValueError as error:
            raise InvalidReply(str(error), evidence=head[:QUOTED]) from error
        if status < 200:
            self._inform(status, headers, left)
            return
        if left == CHUNKED:
            # The upstream's own: extensions are bounded line by line, trailers like a head.
            self._chunks = ChunkedDecoder(max_extensions=inf, max_trailers=self._max_head)
        elif len(head) <= _HEAD_KEPT:
            # Most upstreams say the same until the second is over: Date changes then.
            self._last_head, self._last = head, (status, headers, left, keep)
        self._begin(status, headers, left, keep)

    def _inform(self, status: int, headers: Fields, left: int) -> None:
        """An interim reply is dropped; a 101 is the last that is HTTP (RFC 9110 section 15.2)."""
        if left != UNTIL_CLOSE:
            raise InvalidReply("an interim reply has a body")
        if status != 101:
            return
        if not self._upgrade:
            raise InvalidReply("the upstream switched protocols unasked")
        # RFC 9110 section 7.8: without these nobody knows what is spoken from here on.
        if first(headers, b"upgrade") is None or b"upgrade" not in nominated(headers):
            raise InvalidReply("a 101 does not name the protocol that it switches to")
        self.switched = True
        self._begin(status, headers, left, False)

    def _begin(self, status: int, headers: Fields, left: int, keep: bool) -> None:
        self.headed = True
        self._left = 0 if self._head_only or status in BODILESS else left
        self._keep = keep
        self._sink.replied(status, headers)

    def _feed_body(self, data: bytes) -> None:
        left = self._left
        if left == UNTIL_CLOSE or len(data) < left:
            if data:
                if left > 0:
                    self._left = left - len(data)
                self._sink.received(data)
            return
        # RFC 9112 section 6.3: what comes behind the reply is never the beginning of another.
        keep = self._keep and len(data) == left
        if left:
            self._sink.received(data[:left])
        self._sink.ended(keep)

    def _feed_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        try:
            piece, taken = chunks.feed(data)
        except InvalidChunk as error:
            words = f"the reply breaks the rules: {error}"
            raise InvalidReply(words, evidence=data[:QUOTED]) from error
        if piece:
            self._sink.received(piece)
        if chunks.ended:
            if _search_framing(chunks.trailers):
                raise InvalidReply("the reply's trailers frame a message")
            self._sink.ended(self._keep and taken == len(data))


def _framing(headers: list[Header], persistent: bool) -> tuple[int, bool]:
    """
    Where the body ends (RFC 9112 section 6.3), and whether the connection stays open after it. Raises
    ValueError, with nothing of the fields in it.
    """
    left = UNTIL_CLOSE
    keep = persistent
    closing = False
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == b"content-length":
            if left != UNTIL_CLOSE or match_length(value) is None:
                raise ValueError("the reply's Content-Length is no single sane number")
            left = int(value)
        elif name == b"connection":
            named = list_members(value)
            closing = closing or b"close" in named
            keep = keep or b"keep-alive" in named
        elif value.lower() == b"chunked" and left == UNTIL_CLOSE and persistent:
            left = CHUNKED
        else:
            # RFC 9112 section 6.1: a coding that is not chunked alone has no end one could trust.
            raise ValueError("the reply's Transfer-Encoding is not chunked alone")
    return left, keep and not closing
