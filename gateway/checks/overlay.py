"""
One document for several environments: what an environment says is laid over the rest. Pure.

Sections are merged key by key, `rules` by their names; any other list or value takes the place of the one
below it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.checks.document import Document, Mark
from gateway.checks.known_keys import meant

KEY: Final = "environments"


class NoSuchEnvironment(Exception):
    """`place`: where in the document it is wrong."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place, self.message = place, message


class Overlaid(Document):
    """The document as one environment has it. A place of it is marked where the text says it."""

    def __init__(self, read: Document, data: dict[Any, Any], origins: dict[str, str]) -> None:
        super().__init__(data, None)
        self._read = read
        self._origins = origins

    def mark(self, place: str, of_key: bool = False) -> Mark | None:
        around = place
        while around and around not in self._origins:
            around = re.sub(r"(?:^|\.)[^.\[\]]*$|\[[^\]]*\]$", "", around, count=1)
        if around:
            place = self._origins[around] + place[len(around) :]
        return self._read.mark(place, of_key)


def chosen(read: Document, name: str | None) -> Document:
    """The document for the environment of this name, or without any. Raises NoSuchEnvironment."""
    whole = read.data
    if not isinstance(whole, dict) or (name is None and KEY not in whole):
        return read
    known = whole.get(KEY, {})
    if not isinstance(known, dict):
        raise NoSuchEnvironment(KEY, "expected names, each with a part of such a document")
    for other, part in known.items():
        if not isinstance(other, str) or not isinstance(part, dict | type(None)):
            raise NoSuchEnvironment(f"{KEY}.{other}", "expected a name with a part of such a document")
        if KEY in (part or {}):
            raise NoSuchEnvironment(f"{KEY}.{other}.{KEY}", "expected no environments within one")
    rest = {key: value for key, value in whole.items() if key != KEY}
    if name is None:
        return Overlaid(read, rest, {})
    if name not in known:
        there = ", ".join(known) or "none"
        raise NoSuchEnvironment(KEY, f"there is no {name[:64]!r}{meant(name, known)} (there are: {there})")
    origins: dict[str, str] = {}
    data = _merged(rest, known[name] or {}, "", f"{KEY}.{name}", origins)
    return Overlaid(read, data, origins)


def _merged(below: Any, above: Any, place: str, source: str, origins: dict[str, str]) -> Any:
    """`origins` gets the places whose values the environment says, with where it says them."""
    if isinstance(below, dict) and isinstance(above, dict):
        merged = dict(below)
        for key, value in above.items():
            inner = f"{place}.{key}" if place else str(key)
            merged[key] = _merged(below.get(key), value, inner, f"{source}.{key}", origins)
        return merged
    if place == "rules" and isinstance(below, list) and isinstance(above, list):
        return _merged_rules(below, above, source, origins)
    origins[place] = source
    return above


def _merged_rules(below: list[Any], above: list[Any], source: str, origins: dict[str, str]) -> list[Any]:
    merged = list(below)
    places = {rule["name"]: i for i, rule in enumerate(below) if _named(rule)}
    for i, rule in enumerate(above):
        at = places.get(rule["name"], len(merged)) if _named(rule) else len(merged)
        known = at < len(merged)
        one = _merged(merged[at] if known else None, rule, f"rules[{at}]", f"{source}[{i}]", origins)
        merged[at : at + 1] = [one]
    return merged


def _named(rule: Any) -> bool:
    return isinstance(rule, dict) and isinstance(rule.get("name"), str)
