"""
Path templates and the table that finds the one a request target fits. Pure.

`{name}` is one non-empty segment, `{media:calls|chats}` lists what it may be, and a last `**` (in
writes) stands for the rest. Matching is on the raw path's segments: what would only match after
normalising (dot segments, encoded slashes, `;`, another spelling of a literal) does not match. Where it
does harm to miss one, plain() and folded() make the spellings one before. The table is a trie, so it costs
the same for 5 templates and 500.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from gateway.http.grammar import SAFE_METHODS

Value = TypeVar("Value")

_LITERAL = re.compile(r"[!$&'()*+,=:@\w.~-]+", re.ASCII)
_PARAMETER = re.compile(r"\{([A-Za-z_]\w*)(?::([^{}]+))?\}", re.ASCII)
# Dot segments, empty ones, parameters of segments, and what some upstreams decode into a dot or a slash.
_AMBIGUOUS = re.compile(rb"//|[;\\]|/\.\.?(?:/|\Z)|%(?:2[eEfF]|5[cC])")
# RFC 3986 section 6.2.2.2: letters, digits, "-", ".", "_" and "~" mean the same encoded and plain.
_UNRESERVED = re.compile(rb"%(2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])")
# Of the others those that may stand in a template's literals.
_LITERAL_ENCODED = re.compile(rb"%(2[14]|2[6-9a-cA-C]|3[aAdD]|40)")


@dataclass(frozen=True, slots=True)
class Segment:
    """What one segment may be: the texts listed, or anything (None)."""

    texts: tuple[bytes, ...] | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """`form` is the path with `%b` for each of `names`."""

    segments: tuple[Segment, ...]
    rest: bool
    names: tuple[str, ...]
    form: bytes

    @classmethod
    def of(cls, segments: tuple[Segment, ...], rest: bool) -> Template:
        names = tuple(segment.name for segment in segments if segment.name is not None)
        parts = [
            b"%b" if one.name or not one.texts else one.texts[0].replace(b"%", b"%%") for one in segments
        ]
        return cls(segments, rest, names, b"/" + b"/".join(parts))

    def folded(self) -> Template:
        """The one that fits what folded() makes of a path."""
        segments = [
            Segment(one.texts and tuple(text.lower() for text in one.texts), one.name)
            for one in self.segments
        ]
        return Template.of(tuple(segments), self.rest)

    def filled(self, parameters: dict[str, bytes]) -> bytes:
        """The path with the raw segments put in."""
        return self.form % tuple([parameters[name] for name in self.names])


@lru_cache(maxsize=1024)
def parse(path: str) -> Template:
    """Raises ValueError that quotes the part it refuses."""
    if not path.startswith("/"):
        raise ValueError("path must start with '/'")
    parts = path[1:].split("/")
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    segments: list[Segment] = []
    for part in parts:
        parameter = _PARAMETER.fullmatch(part)
        if parameter:
            name, choices = parameter.groups()
            texts = tuple(choice.encode() for choice in choices.split("|")) if choices else None
            if texts and not all(_LITERAL.fullmatch(choice.decode()) for choice in texts):
                raise ValueError(f"expected {{{name}:one|two}}, got {part!r}")
            segments.append(Segment(texts, name))
        elif _LITERAL.fullmatch(part) and part not in {".", ".."} and part.strip("*"):
            segments.append(Segment((part.encode(),)))
        else:
            raise ValueError(f"not a path segment: {part!r}")
    template = Template.of(tuple(segments), rest)
    if len(set(template.names)) < len(template.names):
        raise ValueError("a parameter stands twice")
    return template


def parse_whole(path: str) -> Template:
    """A template without `**`, which fits whole paths only. Raises ValueError."""
    template = parse(path)
    if template.rest:
        raise ValueError('"**" may only stand in writes')
    return template


@dataclass(frozen=True, slots=True)
class WriteTemplate:
    """`method` None is every unsafe one; `excepted` says that these calls are no writes after all."""

    method: str | None
    template: Template
    excepted: bool


_WRITE = re.compile(r"(except )?(?:([A-Z]+) )?(\S+)")


@lru_cache(maxsize=1024)
def parse_write(text: str) -> WriteTemplate:
    """`[except ][METHOD ]/path`. Raises ValueError."""
    found = _WRITE.fullmatch(text)
    if found is None or (found[2] or "").encode() in SAFE_METHODS:
        raise ValueError("expected '[except ][METHOD ]/path' with an unsafe method")
    return WriteTemplate(found[2], parse(found[3]), bool(found[1]))


@dataclass(slots=True)
class _Node(Generic[Value]):
    texts: dict[bytes, _Node[Value]] = field(default_factory=dict)
    anything: _Node[Value] | None = None
    here: dict[str | None, Value] = field(default_factory=dict)
    rest: dict[str | None, Value] = field(default_factory=dict)


class PathMatch(Struct, Generic[Value], frozen=True):
    """What was found, with the raw segments that the template names."""

    value: Value
    parameters: dict[str, bytes]


def decoded(segment: bytes) -> str:
    """A raw segment as the data it stands for: what an id in a JSON document is compared with."""
    if b"%" in segment:
        segment = unquote_to_bytes(segment)
    return segment.decode("utf-8", "surrogateescape")


def is_ambiguous(path: bytes) -> bool:
    """Whether an upstream may read it as another path than the one that it spells."""
    # Nearly every path has none of these, which is told faster than what they are part of.
    if not (b"/." in path or b"%" in path or b"//" in path or b";" in path or b"\\" in path):
        return False
    return _AMBIGUOUS.search(path) is not None


def plain(path: bytes) -> bytes:
    """The same path with nothing encoded that need not be."""
    return _UNRESERVED.sub(_decoded_byte, path) if b"%" in path else path


def folded(path: bytes) -> bytes:
    """
    A plain path as the most lenient of upstreams reads it: in lower case, without a slash at its end, and
    with nothing encoded that a literal may have. Two paths that are not the same may become one.
    """
    if b"%" in path:
        path = _LITERAL_ENCODED.sub(_decoded_byte, path)
    return path.lower().removesuffix(b"/")


def _decoded_byte(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode())


class Routes(Generic[Value]):
    """Method and path to a value; the most specific template wins: a literal, a parameter, `**`."""

    def __init__(self) -> None:
        self._root: _Node[tuple[Value, tuple[tuple[str, int], ...]]] = _Node()

    def add(self, method: str | None, template: Template, value: Value) -> bool:
        """Earlier templates keep their place; False when there was no place left."""
        positions = tuple(
            (segment.name, index)
            for index, segment in enumerate(template.segments, 1)
            if segment.name is not None
        )
        nodes = [self._root]
        for segment in template.segments:
            nodes = [after for node in nodes for after in _step(node, segment)]
        placed = False
        for node in nodes:
            table = node.rest if template.rest else node.here
            if method not in table:
                table[method] = (value, positions)
                placed = True
        return placed

    def match(self, method: str, path: bytes) -> PathMatch[Value] | None:
        """`path` is the raw path without its query."""
        segments = path.split(b"/")
        found = _find(self._root, segments, method)
        if found is None:
            return None
        if is_ambiguous(path):
            return None
        value, positions = found
        return PathMatch(value, {name: segments[index] for name, index in positions})


def _step(node: _Node[Value], segment: Segment) -> Iterator[_Node[Value]]:
    if segment.texts is None:
        if node.anything is None:
            node.anything = _Node()
        yield node.anything
    else:
        for text in segment.texts:
            yield node.texts.setdefault(text, _Node())


def _find(node: _Node[Value], segments: list[bytes], method: str) -> Value | None:
    """Depth first along the segments: the literal, then the parameter, then the node's own `**`."""
    index = 1
    later: list[tuple[_Node[Value], int]] = []  # where to go on, or with 0 whose `**` to take
    while True:
        if node.rest:
            later.append((node, 0))
        after: _Node[Value] | None = None
        if index == len(segments):
            found = node.here.get(method) or node.here.get(None)
            if found is not None:
                return found
        else:
            after = node.texts.get(segments[index])
            if node.anything is not None and segments[index]:
                if after is None:
                    after = node.anything
                else:
                    later.append((node.anything, index + 1))
        if after is not None:
            node, index = after, index + 1
            continue
        while True:
            if not later:
                return None
            node, index = later.pop()
            if index:
                break
            found = node.rest.get(method) or node.rest.get(None)
            if found is not None:
                return found
