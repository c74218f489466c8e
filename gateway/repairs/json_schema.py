"""
A JSON Schema (2020-12), compiled once, and what in a JSON text differs from it. Needs the extra `validate`.

What it costs to check a text is bounded: patterns are matched in linear time, no reference leaves the file,
and a text with too many values for the schema is not checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from msgspec import Struct

from gateway.repairs import json_pointer
from gateway.repairs.json_text import too_many_values

MOST_IN_PLACE: Final = 1_000  # schemas that apply to one value
MOST_APPLIED: Final = 200_000  # to all values of a text, at about 50 ns each
MOST_FOR_ALL: Final = 1_000  # with more than that only the first violation is looked for, at 12 µs each
MOST_TOLD: Final = 20
SHOWN: Final = 200  # characters of what was expected, and of a pointer

# Of these each applies to the very value that the schema is for.
_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SINGLE: Final = ("not", "if", "then", "else", "contains", "propertyNames")


class Violation(Struct, frozen=True):
    """`pointer`: a JSON Pointer (RFC 6901) into the text. Neither has a value of the text."""

    pointer: str
    expected: str


UNREADABLE: Final = (Violation("", "JSON without a name given twice, and with numbers that can be told"),)
TOO_LARGE: Final = (Violation("", "a body that is small enough to be checked"),)


class JsonSchema:
    """Raises ValueError for what is no schema."""

    def __init__(self, schema: Any) -> None:
        self._validator = _compiled(schema)
        try:
            self._in_place = _in_place(schema)
        except RecursionError as error:
            raise ValueError("its references lead to references too often") from error
        if self._in_place > MOST_IN_PLACE:
            raise ValueError(f"more than {MOST_IN_PLACE} schemas apply to one value")

    def violations(self, text: str) -> tuple[Violation, ...]:
        """Of a JSON text: where it differs, and what was expected there."""
        if too_many_values(text, MOST_APPLIED // self._in_place):
            return TOO_LARGE
        try:
            instance = json.loads(text, object_pairs_hook=_distinct)
            if self._validator.is_valid(instance):
                return ()
        except (ValueError, RecursionError, OverflowError):
            return UNREADABLE
        if too_many_values(text, MOST_FOR_ALL // self._in_place):
            return tuple(islice(_told(self._first(instance)), MOST_TOLD))
        return tuple(
            islice(
                (one for error in self._validator.iter_errors(instance) for one in _told(error)), MOST_TOLD
            )
        )

    def _first(self, instance: Any) -> Any:
        try:
            self._validator.validate(instance)
        except ValueError as error:
            return error
        raise AssertionError("it was not valid")


def _compiled(schema: Any) -> Any:
    try:
        import jsonschema_rs
    except ImportError as error:
        raise ValueError("it needs the extra: pip install 'gateway[validate]'") from error
    try:
        return jsonschema_rs.Draft202012Validator(
            schema,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=10 * 2**20, dfa_size_limit=10 * 2**20),
            validate_formats=False,
            offline=True,
            mask="it",
        )
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        place = _pointer(getattr(error, "instance_path", []))
        said = str(error).partition("\n")[0][:SHOWN]
        raise ValueError(f"no JSON Schema{f', at {place}' if place else ''}: {said}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name is given twice")
    return made


def _pointer(path: list[str | int]) -> str:
    whole = json_pointer.written(path)
    return whole if len(whole) <= SHOWN else whole[: SHOWN - 1] + "…"


def pointed_at(name: str) -> str:
    """A member of the outermost object."""
    return _pointer([name])


def _told(error: Any) -> Iterator[Violation]:
    name, path = error.kind.name, list(error.instance_path)
    if name in {"additionalProperties", "unevaluatedProperties"}:
        for unexpected in error.kind.value:
            yield Violation(_pointer([*path, unexpected]), "no such member")
        return
    yield Violation(_pointer(path), EXPECTED.get(name, _by_name(name))(error.kind.value)[:SHOWN])


def _by_name(name: str) -> Callable[[Any], str]:
    return lambda _: f"what the schema's {name} asks for"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# What is expected, from the schema's own keyword and its value.
EXPECTED: Final[dict[str, Callable[[Any], str]]] = {
    "type": lambda types: f"type {' or '.join(types)}",
    "enum": lambda options: f"one of {', '.join(map(_json, options))}",
    "const": lambda value: _json(value),
    "required": lambda name: f"a member {_json(name)}",
    "falseSchema": lambda _: "nothing here",
    "pattern": lambda pattern: f"text that matches {pattern}",
    "minLength": lambda limit: f"{limit} characters at least",
    "maxLength": lambda limit: f"{limit} characters at most",
    "minimum": lambda limit: f"{limit} at least",
    "maximum": lambda limit: f"{limit} at most",
    "exclusiveMinimum": lambda limit: f"more than {limit}",
    "exclusiveMaximum": lambda limit: f"less than {limit}",
    "multipleOf": lambda of: f"a multiple of {of}",
    "minItems": lambda limit: f"{limit} items at least",
    "maxItems": lambda limit: f"{limit} items at most",
    "minProperties": lambda limit: f"{limit} members at least",
    "maxProperties": lambda limit: f"{limit} members at most",
    "uniqueItems": lambda _: "items that differ",
}


def _in_place(schema: Any) -> int:
    """How many schemas may apply to one value, at the place of the schema where these are most."""
    known: dict[int, int] = {}
    most, waiting, seen = 1, [schema], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, dict | list):
            continue
        seen.add(id(node))
        waiting += node.values() if isinstance(node, dict) else node
        if isinstance(node, dict):
            most = max(most, _applied(node, schema, known))
    return most


def _applied(node: Any, root: Any, known: dict[int, int]) -> int:
    if not isinstance(node, dict):
        return 1
    if id(node) not in known:
        known[id(node)] = 1  # for one that comes back to itself
        parts = [node[name] for name in _SINGLE if name in node]
        for name in _LISTS:
            parts += node[name] if isinstance(node.get(name), list) else []
        dependent = node.get("dependentSchemas")
        parts += dependent.values() if isinstance(dependent, dict) else []
        reference = node.get("$ref")
        if isinstance(reference, str):
            parts.append(json_pointer.at(root, reference.removeprefix("#")))
        known[id(node)] = 1 + sum(_applied(part, root, known) for part in parts)
    return known[id(node)]
