"""
A JSON object as text: which members it has, and one of them inserted or replaced. Pure.

Nothing is ever re-encoded. The standard library's scanner reads the text only to decide, so numbers
no float can hold, duplicate names, escapes and white space survive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Literal

from msgspec import Struct

_SPACE = re.compile(r"[ \t\n\r]*")
_MARK = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


# int() refuses more than 4,300 digits; float() takes any number of them, and no number is used.
# Objects are read as lists of pairs, so that a name given twice is seen twice.
_decoder: Any = json.JSONDecoder(parse_int=float, parse_constant=_refused, object_pairs_hook=list)
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


@lru_cache(maxsize=256)
def _quoted(text: str) -> str:
    return json.dumps(text)


def quoted(text: str) -> bytes:
    return _quoted(text).encode()


class NotAnObject(ValueError):
    """Raised with why the text is not one JSON object."""

    reason: Literal["empty-body", "not-json", "not-an-object", "too-deep"]

    def __init__(self, reason: Literal["empty-body", "not-json", "not-an-object", "too-deep"]) -> None:
        super().__init__(reason)
        self.reason = reason


class ObjectText(Struct, frozen=True):
    """`opened` is where the brace stands, `members` the names and values at the top level, in order."""

    text: str
    opened: int
    members: list[tuple[str, Any]]

    def named(self, name: str) -> list[Any]:
        """The values of all members of that name, however it is escaped."""
        return [value for member, value in self.members if member == name]

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
        at = self.opened + 1
        for _ in self.members:
            member, at = scanstring(self.text, _after_space(self.text, at) + 1, True)
            start = _after_space(self.text, _after_space(self.text, at) + 1)  # past the colon
            end = _past(self.text, start)
            if member == name:
                return start, end
            at = _after_space(self.text, end) + 1  # past the comma
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


def read(text: str) -> ObjectText:
    """Raises NotAnObject unless the whole text is one JSON object (RFC 8259)."""
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
        raise NotAnObject("not-an-object")
    return ObjectText(text, opened, members)
