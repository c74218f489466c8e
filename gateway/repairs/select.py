"""
Choosing the value to fill from a looked-up document, by RFC 9535 JSONPath. Pure.

The path's parameters are data (`_.name` in a filter), never part of the query's text. The library
decides what a query means; the one shape that nearly every rule has is also compiled to a loop, since
it is run for each reply and each participant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jsonpath

_PARAMETER = re.compile(r"(?<![\w$@'\".])_\.([A-Za-z_]\w*)")
_MEMBERS = re.compile(r"\$\.(\w+)\[\?(.+)\]\.(\w+)", re.ASCII)
_EQUAL = re.compile(r"([@$])\.([A-Za-z]\w*) ?== ?_\.([A-Za-z_]\w*)", re.ASCII)

Chooser = Callable[[Any, Mapping[str, str]], list[Any]]


@lru_cache(maxsize=256)
def compiled(query: str) -> Chooser:
    """Raises ValueError for what is no JSONPath."""
    if not query.startswith("$"):
        raise ValueError("expected a JSONPath that starts with '$' (RFC 9535)")
    try:
        path = jsonpath.compile(query)
    except (jsonpath.JSONPathError, re.error, OverflowError) as error:
        raise ValueError(f"expected a JSONPath (RFC 9535): {error}") from error
    return _loop(query) or (lambda document, data: _found(path, document, data))


def _found(path: Any, document: Any, data: Mapping[str, str]) -> list[Any]:
    try:
        found: list[Any] = path.findall(document, filter_context=data)
    except jsonpath.JSONPathError:  # `..` in a document that is nested too deeply for it
        return []
    return found


def _loop(query: str) -> Chooser | None:
    """`$.list[?@.id == _.a && $.id == _.b].wanted`, or None for any other shape."""
    shape = _MEMBERS.fullmatch(query)
    conditions = [_EQUAL.fullmatch(part.strip()) for part in shape[2].split("&&")] if shape else []
    if shape is None or not all(conditions):
        return None
    listed, wanted = shape[1], shape[3]
    of_root = [(found[2], found[3]) for found in conditions if found and found[1] == "$"]
    of_item = [(found[2], found[3]) for found in conditions if found and found[1] == "@"]

    def choose(document: Any, data: Mapping[str, str]) -> list[Any]:
        items = document.get(listed)
        if isinstance(items, dict):
            items = list(items.values())
        if not isinstance(items, list):
            return []
        for name, its in of_root:
            if document.get(name) != data[its]:
                return []
        for name, its in of_item:
            value = data[its]
            items = [item for item in items if isinstance(item, dict) and item.get(name) == value]
        return [item[wanted] for item in items if isinstance(item, dict) and wanted in item]

    return choose


def member(query: str) -> str | None:
    """The name of the member whose values are chosen, where the query's shape is the usual one."""
    shape = _MEMBERS.fullmatch(query) if _loop(query) else None
    return shape[3] if shape else None


def parameters(query: str) -> list[str]:
    """The names after `_.`, in order."""
    return _PARAMETER.findall(query)


def values(query: str, document: dict[str, Any], data: Mapping[str, str]) -> list[Any]:
    """The distinct values found, in the document's order."""
    found = compiled(query)(document, data)
    if len(found) < 2:
        return found
    distinct: list[Any] = []
    for value in found:
        if value not in distinct:
            distinct.append(value)
    return distinct
