"""
A body as the JSON document that it is; refused where it would take too long to read. Pure.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from gateway.errors import LookupFailed
from gateway.repairs.json_text import collector_at_rest, too_many_values

MAX_READ = 12_288  # values of a document, at 1 µs each if they are numbers that are hard to read
LARGE = 16_384  # bytes: parsing more than that makes many values at once


def judged(body: bytes) -> tuple[dict[str, Any], bool]:
    """
    The document, and whether an object in it has two members of one name (RFC 8259 section 4: which of them
    counts is not known). Raises LookupFailed.
    """
    if len(body) > MAX_READ and too_many_values(body.decode("latin-1"), MAX_READ):
        raise LookupFailed(f"the look-up's reply has more than {MAX_READ} values")
    try:
        with _rest_for(body):
            try:
                document = msgspec.json.decode(body)
                twice = names_a_member_twice(body, document)
            except msgspec.DecodeError:
                document, twice = _read_slowly(body)
    except (ValueError, RecursionError) as error:
        raise LookupFailed("the look-up's reply is not valid JSON") from error
    if not isinstance(document, dict):
        raise LookupFailed("the look-up's reply is not a JSON object")
    return document, twice


def parsed(body: bytes) -> Any:
    """Raises ValueError or RecursionError."""
    with _rest_for(body):
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            return _read_slowly(body)[0]


def _rest_for(body: bytes) -> AbstractContextManager[None]:
    return nullcontext() if len(body) <= LARGE else collector_at_rest()


def _read_slowly(body: bytes) -> tuple[Any, bool]:
    """
    What msgspec refuses though it is JSON (half a surrogate pair, a number that no float holds) any client
    can put into a conversation: the standard library reads it. And whether a member is named twice.
    """
    twice = False

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        found = dict(pairs)
        twice = twice or len(found) < len(pairs)
        return found

    text = body.decode("utf-8")
    document = json.loads(text, parse_int=float, parse_constant=_refused, object_pairs_hook=members)
    return document, twice


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def names_a_member_twice(body: bytes, document: Any) -> bool:
    """
    If so, the text has more members than what was read from it. Counted without a look at each, both written
    without blanks.
    """
    return _members(msgspec.json.format(body, indent=-1)) != _members(msgspec.json.encode(document))


def _members(text: bytes) -> int:
    """Of a JSON text: between its strings, whatever is in them, a colon follows only a name."""
    if b'\\"' in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b'"'.join(text.split(b'"')[::2]).count(b'":')
