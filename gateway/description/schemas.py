"""
What a schema says of an object: its members, which of them it demands, and which values one may have.

Of a choice (`oneOf`, `anyOf`) a member is there if any of them has it, and demanded if all do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from gateway.description.document import Description, Node

DEPTH: Final = 12  # schemas within each other; those of some descriptions contain themselves


class Values(Struct, frozen=True):
    """Those that are listed, in order, and of these the deprecated ones."""

    all: tuple[str, ...]
    deprecated: frozenset[str] = frozenset()


def members(document: Description, schema: Any, depth: int = DEPTH) -> dict[str, Node]:
    """By name, each member's schema with its references followed."""
    node = document.resolved(schema)
    found: dict[str, Node] = {}
    if depth:
        for part in _parts(node, "allOf", "oneOf", "anyOf"):
            found |= members(document, part, depth - 1)
    properties = node.get("properties")
    if isinstance(properties, dict):
        found |= {str(name): document.resolved(one) for name, one in properties.items()}
    return found


def demanded(document: Description, schema: Any, depth: int = DEPTH) -> set[str]:
    node = document.resolved(schema)
    required = node.get("required")
    found = {one for one in required if isinstance(one, str)} if isinstance(required, list) else set()
    if depth:
        for part in _parts(node, "allOf"):
            found |= demanded(document, part, depth - 1)
        for choice in ("oneOf", "anyOf"):
            each = [demanded(document, part, depth - 1) for part in _parts(node, choice)]
            found |= set.intersection(*each) if each else set()
    return found


def values(document: Description, schema: Any, depth: int = DEPTH) -> Values | None:
    """None where any value will do."""
    node = document.resolved(schema)
    listed = node.get("enum")
    if isinstance(listed, list):
        return Values(tuple(one for one in listed if isinstance(one, str)))
    if isinstance(node.get("const"), str):
        one = node["const"]
        return Values((one,), frozenset({one}) if node.get("deprecated") is True else frozenset())
    if not depth:
        return None
    for part in _parts(node, "allOf"):
        found = values(document, part, depth - 1)
        if found is not None:
            return found
    for choice in ("oneOf", "anyOf"):
        parts = [one for one in _parts(node, choice) if document.resolved(one).get("type") != "null"]
        each = [values(document, part, depth - 1) for part in parts]
        if each and all(one is not None for one in each):
            known = [one for one in each if one is not None]
            return Values(
                tuple(dict.fromkeys(value for one in known for value in one.all)),
                frozenset().union(*(one.deprecated for one in known)),
            )
    return None


def items(document: Description, schema: Any) -> Node | None:
    """The schema of a list's items; None where it is no list."""
    node = document.resolved(schema)
    return document.resolved(node["items"]) if isinstance(node.get("items"), dict) else None


def _parts(node: Node, *names: str) -> Iterator[Any]:
    for name in names:
        listed = node.get(name)
        if isinstance(listed, list):
            yield from listed
