"""
Header fields as they are written, and what they say of their message: for requests and replies alike. Pure.

Law: what is written has just the lines that the fields are; no value can add one.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from gateway.http.grammar import (
    CHUNKED,
    FIELD_BYTES,
    list_members,
    match_length,
    match_name,
)
from gateway.http.headers import Headers
from gateway.http.slots import Slot

_LENGTH, _CODING, _OPTIONS, _DATE = range(1, 5)
_NAMES_KEPT: Final = 1024

NOTHING: Final[frozenset[bytes]] = frozenset()
# The fields of a reply that its writer decides itself: how it is framed, and whether the connection stays.
OF_THE_CONNECTION: Final = frozenset({b"transfer-encoding", b"connection"})
OF_A_REPLY_WITHOUT_LENGTH: Final = OF_THE_CONNECTION | {b"content-length"}


class Unwritable(ValueError):
    """These fields cannot be written; nothing was."""


class _Kinds(dict[bytes, int]):
    """
    By a field's name in any case, whether it decides how the message is framed, and how: 0 for most. Each
    name is checked once: raises Unwritable for one that is no token.
    """

    def __missing__(self, name: bytes) -> int:
        if match_name(name) is None:
            raise Unwritable("a field name is not a token")
        lower = name.lower()
        kind = self[lower] if lower != name and lower in self else 0
        if len(self) < _NAMES_KEPT:
            self[name] = kind
        return kind


_KINDS: Final = _Kinds(
    {b"content-length": _LENGTH, b"transfer-encoding": _CODING, b"connection": _OPTIONS, b"date": _DATE}
)


class FieldLines(Struct, frozen=True):
    """
    `text` is the lines; `length` the body's, or CHUNKED, where the fields say it, or the slot where each call
    says it; `closes` whether Connection says that this message is the last.
    """

    text: bytes
    length: int | Slot | None = None
    dated: bool = False
    closes: bool = False


def field_lines(headers: Headers, unwritten: frozenset[bytes] = NOTHING) -> FieldLines:
    """
    Fields in `unwritten` are read, but left out of the text; of Connection only a lone `close`, since other
    options are the application's to say. Raises Unwritable.
    """
    if len(headers) == 1 and not _KINDS[headers[0][0]]:
        return FieldLines(checked(b"%b: %b\r\n" % headers[0], 1))
    lines: list[bytes] = []
    count = 0
    length: int | Slot | None = None
    dated = closes = False
    for name, value in headers:
        kind = _KINDS[name]
        if kind:
            lower = name.lower()
            if kind == _LENGTH:
                if length is not None or (type(value) is not Slot and match_length(value) is None):
                    raise Unwritable("Content-Length is repeated or not a number")
                length = value if isinstance(value, Slot) else int(value)
            elif kind == _DATE:
                dated = True
            elif kind == _OPTIONS:
                closes = closes or b"close" in list_members(value)
            elif lower not in unwritten:
                # RFC 9112 section 6.1: no other coding has an end that one could trust.
                if length is not None or value.lower() != b"chunked":
                    raise Unwritable("Transfer-Encoding is not chunked alone")
                length = CHUNKED
            if lower in unwritten and (kind != _OPTIONS or value.lower() == b"close"):
                continue
        lines += (name, b": ", value, b"\r\n")
        count += 1
    return FieldLines(checked(b"".join(lines), count), length, dated, closes)


def checked(text: bytes, lines: int) -> bytes:
    """The text itself. Raises Unwritable if it has other line ends than those of its `lines`, or controls."""
    if text.translate(None, FIELD_BYTES) != b"\r\n" * lines:
        raise Unwritable("a control character in a header field")
    return text
