"""
A JSON object as text: which members it has, and one of them inserted or replaced. Pure.

Nothing is ever re-encoded. The standard library's scanner reads the text only to decide, so numbers
no float can hold, duplicate names, escapes and white space survive.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

from msgspec import Struct

MAX_VALUES = 20_000  # at 0.3 µs each; a body with more is not read
UNCOUNTED = 80 * 1024  # characters, which hold few enough values whatever they are

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_MARK = re.compile(rf"[{{}}\[\]]|{_STRING}", re.DOTALL)
_NAME = re.compile(rf"[ \t\n\r]*{_STRING}[ \t\n\r]*:[ \t\n\r]*", re.DOTALL)
_SIMPLE = re.compile(rf'{_STRING}|[^",}}]++', re.DOTALL)  # a value that is no list or object


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


# No number is used, so only its length is taken: int() refuses more than 4,300 digits, and float() takes ten
# times as long for some as for others. Objects are read as lists of pairs, so that a name given twice is seen
# twice.
_decoder: Any = json.JSONDecoder(
    parse_int=len, parse_float=len, parse_constant=_refused, object_pairs_hook=list
)
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _after_space(text: str, at: int) -> int:
    return _end(_SPACE, text, at)


@lru_cache(maxsize=256)
def _quoted(text: str) -> str:
    return json.dumps(text)


def quoted(text: str) -> bytes:
    return _quoted(text).encode()


Reason = Literal["empty-body", "null-body", "not-json", "not-an-object", "too-deep", "too-many-values"]


class NotAnObject(ValueError):
    """Raised with why the text is not one JSON object, or not read as one."""

    reason: Reason

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class ObjectText(Struct, frozen=True):
    """`opened` is where the brace stands, `members` the names and values at the top level, in order."""

    text: str
    opened: int
    members: list[tuple[str, Any]]

    def named(self, name: str) -> list[Any]:
        """The values of all members of that name, however it is escaped; of a number, how long it is."""
        return [value for member, value in self.members if member == name]

    def text_of(self, name: str) -> str:
        """The value of the only member of that name, as it stands there."""
        start, end = self._place(name)
        return self.text[start:end]

    def with_member(self, name: str, value: str) -> ObjectText:
        """Inserted right after the opening brace."""
        at = self.opened + 1
        comma = "," if self.members else ""
        text = f"{self.text[:at]}{_quoted(name)}:{_quoted(value)}{comma}{self.text[at:]}"
        return ObjectText(text, self.opened, [(name, value), *self.members])

    def with_value(self, name: str, value: str) -> ObjectText:
        """Instead of the value of the only member of that name."""
        start, end = self._place(name)
        text = f"{self.text[:start]}{_quoted(value)}{self.text[end:]}"
        members = [(member, value if member == name else old) for member, old in self.members]
        return ObjectText(text, self.opened, members)

    def _place(self, name: str) -> tuple[int, int]:
        text, at = self.text, self.opened + 1
        for member, _ in self.members:
            start = _end(_NAME, text, at)
            if member == name:
                return start, _past(text, start)
            end = _past(text, start) if text[start] in "{[" else _end(_SIMPLE, text, start)
            at = _after_space(text, end) + 1  # past the comma
        raise KeyError(name)


def _past(text: str, at: int) -> int:
    """Where a value ends. Without recursion, since the stack may be deeper here than it was in `read`."""
    depth = 0
    for found in _MARK.finditer(text, at) if text[at] in "{[" else ():
        mark = text[found.start()]
        depth += (mark in "{[") - (mark in "]}")
        if not depth:
            return found.end()
    return _scan(text, at)[1]


def too_many_values(text: str, limit: int) -> bool:
    """Whether a JSON text has more than `limit` values or strings, told without reading it as JSON."""
    if len(text) <= limit or _marks(text) <= limit:
        return False
    # What is in strings does not count: a text may have as many commas as it likes.
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    if unescaped.count('"') > 2 * limit:
        return True
    return _marks("".join(unescaped.split('"')[::2])) > limit


def _marks(text: str) -> int:
    """Every value but the outermost follows one of these."""
    return text.count(",") + text.count("[") + text.count("{")


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """
    While many values are made at once: none of them is garbage yet, and the collector, which would look at
    all of them again and again, takes several times as long as the making.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read(text: str) -> ObjectText:
    """Raises NotAnObject unless the whole text is one JSON object (RFC 8259) with at most MAX_VALUES."""
    if len(text) <= MAX_VALUES:
        return _read(text)
    if len(text) > UNCOUNTED and too_many_values(text, MAX_VALUES):
        raise NotAnObject("too-many-values")
    with collector_at_rest():
        return _read(text)


def _read(text: str) -> ObjectText:
    opened = 0 if text.startswith("{") else _after_space(text, 0)
    if opened == len(text):
        raise NotAnObject("empty-body")
    try:
        members, end = _scan(text, opened)
    except RecursionError as error:
        raise NotAnObject("too-deep") from error
    except (StopIteration, ValueError) as error:
        raise NotAnObject("not-json") from error
    if end != len(text) and _after_space(text, end) != len(text):
        raise NotAnObject("not-json")
    if text[opened] != "{":
        raise NotAnObject("null-body" if members is None else "not-an-object")
    return ObjectText(text, opened, members)
