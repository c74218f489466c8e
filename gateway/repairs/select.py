"""
Choosing the value to fill from a looked-up document, by RFC 9535 JSONPath. Pure.

The path's parameters are data (`_.name` in a filter), never part of the query's text. The library
decides what a query means; the shapes that nearly every rule has are also compiled to loops, which go through
a document once for all its participants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import jsonpath
from msgspec import Struct

_PARAMETER = re.compile(r"(?<![\w$@'\".])_\.([A-Za-z_]\w*)")
_EQUAL = re.compile(r"([@$])\.([A-Za-z]\w*) ?== ?_\.([A-Za-z_]\w*)", re.ASCII)
_IS = re.compile(r"@\.([A-Za-z]\w*) (==|!=) '([^'\\]*)'", re.ASCII)
# `$.list[?…]`, and the steps after it: `.name`, `['name', 'other']` and `[?…]` that compares with texts.
_LISTED = re.compile(r"\$\.(\w+)\[\?([^\[\]?']+)\](.+)", re.ASCII)
_STEP = re.compile(r"\.(\w+)|\[('\w+'(?:, ?'\w+')*)\]|\[\?([^\[\]?]+)\]", re.ASCII)

Step = Callable[[list[Any]], list[Any]]


class Index(Struct, frozen=True):
    """
    What a query chooses from one document, for all parameters. `of_root`: which of them must be what;
    `found`: the values by the others, two of them where they differ.
    """

    of_root: tuple[tuple[str, Any], ...]
    of_item: tuple[str, ...]
    found: dict[tuple[Any, ...], list[Any]]

    def values(self, data: Mapping[str, str]) -> list[Any]:
        if any(data[name] != value for name, value in self.of_root):
            return []
        return self.found.get(tuple([data[name] for name in self.of_item]), [])


class Listed(Struct, frozen=True):
    """`$.list[?@.id == _.a && $.id == _.b]` and steps: pairs of a member's name and a parameter's."""

    listed: str
    of_root: tuple[tuple[str, str], ...]
    of_item: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]

    def index(self, document: dict[str, Any], only: Mapping[str, str] | None = None) -> Index:
        """`only`: of the items that fit these parameters."""
        wanted = None if only is None else tuple([only[its] for _, its in self.of_item])
        found: dict[tuple[Any, ...], list[Any]] = {}
        for item in children(document.get(self.listed)):
            if not isinstance(item, dict):
                continue
            key = tuple([item.get(name) for name, _ in self.of_item])
            # A parameter is a text, and nothing else is equal to one.
            if (wanted is not None and key != wanted) or not all(isinstance(one, str) for one in key):
                continue
            kept = found.get(key)
            if kept is not None and len(kept) > 1:
                continue
            values = [item]
            for step in self.steps:
                values = step(values)
            if values:
                found[key] = distinct([*(kept or ()), *values])
        of_root = tuple([(its, document.get(name)) for name, its in self.of_root])
        return Index(of_root, tuple([its for _, its in self.of_item]), found)


@lru_cache(maxsize=256)
def compiled(query: str) -> Any:
    """The library's. Raises ValueError for what is no JSONPath."""
    if not query.startswith("$"):
        raise ValueError("expected a JSONPath that starts with '$' (RFC 9535)")
    try:
        return jsonpath.compile(query)
    except (jsonpath.JSONPathError, re.error, OverflowError) as error:
        raise ValueError(f"expected a JSONPath (RFC 9535): {error}") from error


@lru_cache(maxsize=256)
def listed(query: str) -> Listed | None:
    """None for any other shape."""
    shape = _LISTED.fullmatch(query)
    if shape is None:
        return None
    conditions = [_EQUAL.fullmatch(part.strip()) for part in shape[2].split("&&")]
    steps: list[Step] = []
    at = 0
    while at < len(shape[3]):
        part = _STEP.match(shape[3], at)
        step = _step(part) if part else None
        if part is None or step is None:
            return None
        steps.append(step)
        at = part.end()
    if not all(conditions):
        return None
    of_root = tuple((one[2], one[3]) for one in conditions if one and one[1] == "$")
    of_item = tuple((one[2], one[3]) for one in conditions if one and one[1] == "@")
    return Listed(shape[1], of_root, of_item, tuple(steps))


def _step(part: re.Match[str]) -> Step | None:
    if part[3] is None:
        names = [part[1]] if part[1] else re.findall(r"\w+", part[2])
        return lambda nodes: [
            node[name] for node in nodes if isinstance(node, dict) for name in names if name in node
        ]
    compared = [_IS.fullmatch(one.strip()) for one in part[3].split("&&")]
    if not all(compared):
        return None
    tests = [(one[1], one[2] == "==", one[3]) for one in compared if one]

    def fits(node: Any) -> bool:
        members = node if isinstance(node, dict) else {}
        return all((members.get(name) == text) is equal for name, equal, text in tests)

    return lambda nodes: [child for node in nodes for child in children(node) if fits(child)]


def children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def member(query: str) -> str | None:
    """The name of the member whose values are chosen, where the query's shape is a usual one."""
    last = re.search(r"\.(\w+)$", query, re.ASCII)
    return last[1] if last and listed(query) else None


def names(query: str) -> list[list[str]] | None:
    """
    The members on the query's way, step by step; the items of a list take no step. None for a query of an
    unusual shape.
    """
    if plain := re.fullmatch(r"\$\.(\w+)", query, re.ASCII):
        return [[plain[1]]]
    shape = _LISTED.fullmatch(query) if listed(query) else None
    if shape is None:
        return None
    steps = [
        [one[1]] if one[1] else re.findall(r"\w+", one[2]) for one in _STEP.finditer(shape[3]) if not one[3]
    ]
    return [[shape[1]], *steps]


def parameters(query: str) -> list[str]:
    """The names after `_.`, in order."""
    return _PARAMETER.findall(query)


def values(query: str, document: dict[str, Any], data: Mapping[str, str]) -> list[Any]:
    """The distinct values found, in the document's order: not more than two."""
    usual = listed(query)
    if usual is not None:
        return usual.index(document, data).values(data)
    try:
        return distinct(match.obj for match in compiled(query).finditer(document, filter_context=data))
    except jsonpath.JSONPathError:  # `..` in a document that is nested too deeply for it
        return []


def distinct(found: Iterable[Any]) -> list[Any]:
    """Not more than two: a second one makes the choice ambiguous, whatever follows."""
    kept: list[Any] = []
    for value in found:
        if not kept or not _same(value, kept[0]):
            kept.append(value)
            if len(kept) == 2:
                break
    return kept


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except RecursionError:  # lists in lists, as deep as they could just be read
        return False
