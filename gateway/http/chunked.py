"""
The chunked transfer coding (RFC 9112 section 7.1), strictly: bytes in, the body's bytes out. For requests and
replies alike. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.http.grammar import FIELD_TEXT, TCHAR, match_field_lines, search_unfit

MAX_CHUNK_LINE: Final = 1024  # bytes of one chunk's line
MAX_EXTENSIONS: Final = 16 * 1024  # bytes of a request's chunk extensions together
MAX_TRAILERS: Final = 8 * 1024  # bytes of a request's trailer section

# The CRLF that ends a chunk's bytes is read with the next chunk's line. Sizes stay below 2**60. The "bad
# white space" that RFC 9112 section 7.1.1 lets extensions have is refused: parsers differ over it.
# No group with a choice in it is possessive: CPython before 3.11.5 reads more than fits then (gh-106052).
# Nothing here can be read in two ways, so going back costs no more than a line is long.
_QUOTED: Final = rb"\"%b*+(?:\\[\t\x20-\x7e\x80-\xff]%b*+)*\"" % (
    (rb"[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]",) * 2
)
_EXTENSION: Final = rb";%b++(?:=(?:%b++|%b))?" % (TCHAR, TCHAR, _QUOTED)
_CHUNK_LINE: Final = rb"(0[0-9A-Fa-f]{15}|[0-9A-Fa-f]{1,15}+)((?:%b)*)\r\n" % _EXTENSION
_LINE_PREFIX: Final = rb"[0-9A-Fa-f]{1,16}+(?:;%b*+)?+\r?" % FIELD_TEXT
_match_first = re.compile(_CHUNK_LINE).match
_match_next = re.compile(rb"\r\n%b" % _CHUNK_LINE).match
# Whether an incomplete line can still become one: laxer, since the whole line is matched when it is there.
_prefix_of_first = re.compile(_LINE_PREFIX).fullmatch
_prefix_of_next = re.compile(rb"\r(?:\n(?:%b)?)?" % _LINE_PREFIX).fullmatch


class InvalidChunk(ValueError):
    """The bytes are not chunks as RFC 9112 has them; the message says where, and quotes none (O2)."""


class TrailersTooLarge(InvalidChunk):
    """The trailer section is larger than it may be."""


class ChunkedDecoder:
    """
    One body, in pieces as they come. Extensions are checked and ignored; trailers are checked and kept
    apart, to be dropped: they are never merged into the head (RFC 9110 section 6.5.1).
    """

    __slots__ = (
        "_extensions",
        "_held",
        "_in_trailers",
        "_match",
        "_max_extensions",
        "_max_trailers",
        "_remaining",
        "ended",
        "trailers",
    )

    def __init__(self, max_extensions: float = MAX_EXTENSIONS, max_trailers: int = MAX_TRAILERS) -> None:
        self.ended = False
        self.trailers = b""  # the trailer section as it came
        self._max_extensions = max_extensions
        self._max_trailers = max_trailers
        self._match = _match_first
        self._remaining = 0
        self._in_trailers = False
        self._extensions = 0
        self._held = b""  # an incomplete line, or the trailers so far

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """
        What `data` has of the body, and how many of its bytes are this message's: all, until `ended`. Raises
        InvalidChunk.
        """
        held = len(self._held)
        if held:
            data = self._held + data
            self._held = b""
        size = len(data)
        position = 0
        pieces: list[bytes] = []
        while position < size:
            if self._remaining:
                piece = data[position : position + self._remaining]
                pieces.append(piece)
                position += len(piece)
                self._remaining -= len(piece)
            elif self._in_trailers:
                position = self._read_trailers(data, position, held)
                break
            else:
                match = self._match(data, position)
                if match is None:
                    self._hold_line(data[position:])
                    position = size
                    break
                position = match.end()
                self._remaining = int(match[1], 16)
                self._in_trailers = not self._remaining
                self._match = _match_next
                if match[2]:
                    self._count_extensions(len(match[2]))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), position - held

    def _count_extensions(self, size: int) -> None:
        self._extensions += size
        if size > MAX_CHUNK_LINE or self._extensions > self._max_extensions:
            raise InvalidChunk("the chunk extensions are too large")

    def _hold_line(self, line: bytes) -> None:
        prefix = _prefix_of_first if self._match is _match_first else _prefix_of_next
        if prefix(line) is None:
            raise InvalidChunk("a chunk does not begin or end as chunks do")
        if len(line) > MAX_CHUNK_LINE:
            raise InvalidChunk("the chunk extensions are too large")
        self._held = line

    def _read_trailers(self, data: bytes, position: int, seen: int) -> int:
        if data.startswith(b"\r\n", position):
            self.ended = True
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if (len(data) if end < 0 else end) - position > self._max_trailers:
            raise TrailersTooLarge("the trailer section is too large")
        if end < 0:
            if search_unfit(data, max(seen - 1, position)):
                raise InvalidChunk("the trailer section is not made of header fields")
            self._held = data[position:]
            return len(data)
        if match_field_lines(data, position, end + 2) is None:
            raise InvalidChunk("the trailer section is not made of header fields")
        self.trailers = data[position : end + 2]
        self.ended = True
        return end + 4


def chunk(piece: bytes) -> bytes:
    """A piece as one chunk; nothing for an empty one, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


LAST_CHUNK: Final = b"0\r\n\r\n"
