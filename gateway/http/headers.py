"""
Header fields as ASGI and the wire give them: a sequence of (name, value) byte pairs.

Names are lower-case, order and repeats are kept, values are never decoded. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

from gateway.http.grammar import HOP_BY_HOP, METHOD_OVERRIDES

_is_token = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*").fullmatch

Header: TypeAlias = tuple[bytes, bytes]
Headers: TypeAlias = Sequence[Header]
Given = TypeVarTuple("Given")
Made = TypeVar("Made")


_OF_CONTENT = frozenset(
    {
        b"content-type", b"content-length", b"content-encoding", b"content-language", b"content-location",
        b"content-range", b"content-disposition", b"content-digest", b"repr-digest", b"digest",
        b"content-md5", b"etag", b"last-modified", b"accept-ranges",
    }
)  # fmt: skip
MAX_DERIVED = 64  # things that are remembered of one set of fields
SHOWN = 256  # bytes of a value, in logs and errors


class Fields(list[Header]):
    """
    Header fields that do not change any more, so that `derived` can remember what follows from them. Where
    the same fields come again, they are the same object again. `reason` stood before them in a reply.
    """

    __slots__ = ("_derived", "reason")

    def __init__(self, fields: Iterable[Header] = (), reason: bytes = b"") -> None:
        super().__init__(fields)
        self.reason = reason
        self._derived: dict[Any, Any] = {}

    def derived(self, make: Callable[[Fields, *Given], Made], *given: *Given) -> Made:
        """`make(fields, *given)`, remembered: for a few functions and a few values given, always the same."""
        try:
            return self._derived[make, given]  # type: ignore[no-any-return]
        except KeyError:
            made = make(self, *given)
        if len(self._derived) >= MAX_DERIVED:
            self._derived.clear()
        self._derived[make, given] = made
        return made


def reason_of(headers: Headers) -> bytes:
    return headers.reason if isinstance(headers, Fields) else b""


def without_length(headers: Headers) -> Fields:
    """Whoever writes the body says how long it is."""
    return without(headers, {b"content-length"})


def without_content(headers: Headers) -> Fields:
    """Without what says something of the content (RFC 9110 section 8), for a message that has none."""
    return without(headers, _OF_CONTENT)


def chunked(headers: Headers) -> Fields:
    return Fields([*headers, (b"transfer-encoding", b"chunked")])


def by_name(headers: Headers) -> dict[bytes, bytes]:
    """Name to value; of a repeated field only the last line: for fields of which there can't be several."""
    return dict(headers)


def first(headers: Headers, name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def every(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def without(headers: Headers, names: Iterable[bytes]) -> Fields:
    unwanted = names if isinstance(names, frozenset | set) else frozenset(names)
    return Fields([pair for pair in headers if pair[0] not in unwanted], reason_of(headers))


def replaced(headers: Headers, name: bytes, value: bytes) -> Fields:
    """The value at the place of the first such field, the others dropped; at the end where there was none."""
    result = Fields(headers, reason_of(headers))
    places = [index for index, pair in enumerate(result) if pair[0] == name]
    if not places:
        result.append((name, value))
        return result
    result[places[0]] = (name, value)
    for index in reversed(places[1:]):
        del result[index]
    return result


def method_overrides(headers: Headers) -> list[str]:
    """The methods, in upper case, that a call claims to be beside the one that it is."""
    return [
        value.decode("latin-1").strip().upper() for name, value in headers if name.lower() in METHOD_OVERRIDES
    ]


def members(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a comma-separated list field over all its lines, empty ones dropped."""
    return [
        member
        for value in every(headers, name)
        for member in (part.strip(b" \t") for part in value.split(b","))
        if member
    ]


def nominated(headers: Headers) -> set[bytes]:
    """The lower-case field names that Connection declares to be of this hop only."""
    return {name.lower() for name in members(headers, b"connection")}


def end_to_end(headers: Headers) -> Fields:
    """What goes on to the next hop: hop-by-hop fields and those that Connection names are dropped."""
    return without(headers, HOP_BY_HOP | (nominated(headers) - {b"close", b"keep-alive", b"upgrade", b"te"}))


def media_type(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """`Text/Plain; Charset="utf-8"` as (b"text/plain", {b"charset": b"utf-8"})."""
    kind, *rest = value.split(b";")
    parameters: dict[bytes, bytes] = {}
    for part in rest:
        name, separator, text = part.partition(b"=")
        if separator:
            parameters.setdefault(name.strip().lower(), text.strip().strip(b'"'))
    return kind.strip().lower(), parameters


def is_json(headers: Headers) -> bool:
    kind = first(headers, b"content-type")
    return kind is not None and media_type(kind)[0].endswith((b"/json", b"+json"))


def is_event_stream(headers: Headers) -> bool:
    kind = first(headers, b"content-type")
    return kind is not None and media_type(kind)[0] == b"text/event-stream"


def text(value: bytes, limit: int = SHOWN) -> str:
    """For logs and errors: printable ASCII whatever the bytes were, and of bounded length."""
    return value[:limit].decode("ascii", "backslashreplace")


@lru_cache(maxsize=256)
def bare_item(value: str) -> str:
    """RFC 9651 section 3.3: a token where it can be one, else a string."""
    if _is_token(value):
        return value
    plain = value.encode("ascii", "backslashreplace").decode()
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
