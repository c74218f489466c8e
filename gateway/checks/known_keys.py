"""
What was probably meant by a key or a word that is not known: the nearest that is. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


def meant(word: str, known: Iterable[str]) -> str:
    """A hint to add to a message, or nothing where no known word is near."""
    by_folded = {one.lower(): one for one in known}
    near = get_close_matches(word.lower()[:64], by_folded, 1, cutoff=0.7)
    return f"; did you mean {by_folded[near[0]]!r}?" if near else ""


def words(expected: str) -> list[str]:
    """Those that a message quotes: `'observe', 'shadow' or 'enforce'`."""
    return re.findall(r"'([^']*)'", expected)


def keys_at(schema: dict[str, Any], location: Sequence[str | int]) -> list[str]:
    """The keys that a section knows, by the JSON Schema of the whole and pydantic's location of it."""
    definitions = schema.get("$defs", {})

    def resolved(part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rpartition("/")[2]])
        for one in part.get("anyOf", ()):
            found = resolved(one)
            if "properties" in found or "items" in found:
                return found
        return part

    here = resolved(schema)
    for part in location:
        if isinstance(part, int):
            after = here.get("items")
        elif "discriminator" in here:  # pydantic's location names the type of the repair as if it were a key
            reference = here["discriminator"]["mapping"].get(part)
            after = {"$ref": reference} if reference else None
        else:
            after = here.get("properties", {}).get(part)
        if not isinstance(after, dict):
            return []
        here = resolved(after)
    return list(here.get("properties", ()))
