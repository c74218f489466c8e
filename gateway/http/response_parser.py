"""
Replies from the bytes of an upstream's connection, strictly: what llhttp lets pass is checked here. No I/O.
"""

from __future__ import annotations

import re
from typing import Protocol

import httptools
import httpx

from gateway.http.headers import Fields, text

LENGTH = re.compile(rb"[0-9]{1,18}")  # below 2**63 in every implementation

# How a message's end is found, where it is no count of bytes.
CHUNKED = -1
UNTIL_CLOSE = -2

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + TEXT + rb"))?\r\n")
FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
# Only for what FIELDS has accepted: there a CR ends a line, and the first colon ends a name.
split_fields = re.compile(rb"([^:\r]++):([^\r]*+)\r\n").findall
BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
# Where a chunked message stops: an empty line that follows a line, and nothing behind it.
CLEAN_END = re.compile(rb"[^\r\n]\r\n\r\n\Z")
BODILESS = frozenset({204, 304})
HEAD_KEPT = 4096  # bytes of a head that is compared with the next
FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


def options(value: bytes) -> list[bytes]:
    return [token.strip(b" \t") for token in value.lower().split(b",")]


class ReplyReader:
    """
    One reply after the other: `sink` is told of the head, of each piece, of the end. `expect` comes before
    each. `max_head` in bytes.
    """

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
        self._chunks: httptools.HttpResponseParser | None = None
        self._complete = False
        self._surplus = False
        self._overhead = 0
        self._tail = b""
        self._last_head = b""
        self._last: tuple[int, bytes, Fields, int, bool] = (0, b"", Fields(), 0, False)

    def expect(self, head_only: bool, upgrade: bool) -> None:
        self._head_only = head_only
        self._upgrade = upgrade
        self.headed = self.switched = False

    def feed(self, data: bytes) -> None:
        """Raises RemoteProtocolError. After that, or an end that does not `keep`, the reader is of no use."""
        try:
            if not self.headed:
                self._feed_head(data)
            elif self._left == CHUNKED:
                self._feed_chunks(data)
            else:
                self._feed_body(data)
        except httptools.HttpParserError as error:
            raise httpx.RemoteProtocolError(f"the reply breaks the rules: {error}") from error

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
            end = data.find(b"\r\n\r\n", start) + 4
            if end > largest or (end < 4 and len(data) > largest):
                raise httpx.RemoteProtocolError(f"the reply's head is larger than {largest} bytes")
            if end < 4:
                if BARE_LINE_END.search(data, start) or not data.startswith(b"HTTP/1."[: len(data)]):
                    raise httpx.RemoteProtocolError("the reply does not begin as HTTP/1.1 does")
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
        line = STATUS_LINE.match(head)
        if line is None:
            raise httpx.RemoteProtocolError(f"not a status line: {text(head[:80])}")
        if FIELDS.fullmatch(head, line.end()) is None:
            raise httpx.RemoteProtocolError("the reply's head is not made of header fields")
        status = int(line[2])
        # A trailer is not a header (RFC 9110 section 6.5.1): these are all there will be.
        headers = Fields((name.lower(), value.strip()) for name, value in split_fields(head, line.end()))
        if len(headers) > self._max_headers:
            raise httpx.RemoteProtocolError(f"the reply has more than {self._max_headers} fields")

        left = UNTIL_CLOSE
        keep = line[1] == b"1"
        closing = False
        for name, value in headers:
            if name not in FRAMING:
                continue
            if name == b"content-length":
                if left != UNTIL_CLOSE or LENGTH.fullmatch(value) is None:
                    raise httpx.RemoteProtocolError("the reply's Content-Length is no single sane number")
                left = int(value)
            elif name == b"connection":
                named = options(value)
                closing = closing or b"close" in named
                keep = keep or b"keep-alive" in named
            elif value.lower() == b"chunked" and left == UNTIL_CLOSE and line[1] == b"1":
                left = CHUNKED
            else:
                # RFC 9112 section 6.1: a coding that is not chunked alone has no end one could trust.
                raise httpx.RemoteProtocolError(f"the reply's Transfer-Encoding is {text(value)}")
        if left == CHUNKED or status < 200:
            # llhttp can't be set back; a new one costs next to nothing.
            parser = httptools.HttpResponseParser(self)
            try:
                parser.feed_data(head)
            except httptools.HttpParserUpgrade:
                self.switched = True
        if status < 200:
            if left != UNTIL_CLOSE:
                raise httpx.RemoteProtocolError(f"a {status} with a body")
            if not self.switched:
                return
            if not self._upgrade:
                raise httpx.RemoteProtocolError("the upstream switched protocols unasked")
        elif left == CHUNKED and not (self._head_only or status in BODILESS):
            self._chunks = parser
            self._complete = self._surplus = False
            self._overhead = 0
            self._tail = b""
        elif left != CHUNKED and len(head) <= HEAD_KEPT:
            # Most upstreams say the same until the second is over: Date changes then.
            self._last_head, self._last = head, (status, line[3] or b"", headers, left, keep and not closing)
        self._begin(status, line[3] or b"", headers, left, keep and not closing)

    def _begin(self, status: int, reason: bytes, headers: Fields, left: int, keep: bool) -> None:
        self.headed = True
        self._left = 0 if self._head_only or status in BODILESS else left
        self._keep = keep
        self._sink.replied(status, reason, headers)

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
        assert self._chunks is not None
        self._overhead += len(data)
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        try:
            self._chunks.feed_data(data)
        except httptools.HttpParserError:
            if not self._complete:
                raise
            self._surplus = True
        if self._complete:
            self._chunks = None
            # llhttp skips empty lines between messages; nobody has asked for a next one, so they are surplus.
            self._sink.ended(self._keep and not self._surplus and CLEAN_END.match(self._tail) is not None)
        elif self._overhead > self._max_head:
            raise httpx.RemoteProtocolError("the reply's chunk extensions or trailers have no end")

    # What llhttp calls.

    def on_message_begin(self) -> None:
        self._surplus = self._complete

    def on_body(self, piece: bytes) -> None:
        self._overhead = 0
        if not self._complete:
            self._sink.received(piece)

    def on_message_complete(self) -> None:
        if self._chunks is not None:
            self._complete = True


class Sink(Protocol):
    def replied(self, status: int, reason: bytes, headers: Fields) -> None: ...
    def received(self, piece: bytes) -> None: ...
    def ended(self, keep: bool) -> None: ...
