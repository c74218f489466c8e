"""
A YAML text as plain values, and where in it each of them stands. Knows no setting.

What would cost more than a configuration can need is refused before it is built: a long text, and one whose
aliases repeat its parts until they fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import yaml

MOST_BYTES = 2**20
MOST_VALUES = 250_000  # with what aliases repeat

# libyaml's parser, where PyYAML was built with it, takes a tenth of the time.
_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Fastest):  # type: ignore[misc]
    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, for 2026-99-99 or `!!bool x`
            kind = node.tag.rpartition(":")[2]
            raise Unreadable((Mark.of(node.start_mark), f"not YAML: no {kind}")) from error


class Mark(NamedTuple):
    """Both from 1, as editors count."""

    line: int
    column: int

    @classmethod
    def of(cls, mark: Any) -> Mark:
        return cls(mark.line + 1, mark.column + 1)


class Unreadable(Exception):
    """What keeps a text from being read: each with where it stands, where that is known."""

    def __init__(self, *errors: tuple[Mark | None, str]) -> None:
        super().__init__("\n".join(message for _, message in errors))
        self.errors = errors


class Document:
    """`data`: the values. Marks are looked for only once somebody asks: most files have no error."""

    def __init__(self, data: Any, root: Any) -> None:
        self.data = data
        self._root = root

    @cached_property
    def _marks(self) -> dict[str, tuple[Mark, Mark]]:
        return dict(_places(self._root, Mark(1, 1), "")) if self._root is not None else {}

    def mark(self, place: str, of_key: bool = False) -> Mark | None:
        """Of a place such as `rules[0].match.path`, or of the nearest around it that the text has."""
        while place:
            if place in self._marks:
                key, value = self._marks[place]
                return key if of_key else value
            place = re.sub(r"(?:^|\.)[^.\[\]]*$|\[[^\]]*\]$", "", place, count=1)
        return None


def read(text: str) -> Document:
    """Raises Unreadable."""
    if len(text) > MOST_BYTES or len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise Unreadable((None, f"expected {MOST_BYTES // 2**20} MiB at most"))
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, None)
        # Merging changes the nodes: before it, the keys are those of the text.
        if _size(root, {}) > MOST_VALUES:
            raise Unreadable((None, f"expected {MOST_VALUES} values at most, with what its aliases repeat"))
        twice = sorted(_given_twice(root, set()))
        if twice:
            raise Unreadable(*twice)
        return Document(loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in f"{error.problem}":  # libyaml's
            raise Unreadable((None, _TOO_DEEP)) from error
        mark = error.problem_mark or error.context_mark
        # The error's own text would quote the line, and so what may be a secret.
        raise Unreadable((Mark.of(mark) if mark else None, f"not YAML: {error.problem}")) from error
    except yaml.YAMLError as error:
        raise Unreadable((None, f"not YAML: {' '.join(str(error).split())}")) from error
    except RecursionError as error:
        raise Unreadable((None, _TOO_DEEP)) from error
    except (ValueError, OverflowError) as error:  # PyYAML's, for an escape that is no character
        raise Unreadable((None, "not YAML: a character that there is not")) from error


_TOO_DEEP = "nested too deeply, or an anchor that contains itself"


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _size(node: Any, known: dict[int, int]) -> int:
    """How many values there are once each alias is replaced by what it stands for."""
    if id(node) not in known:
        known[id(node)] = 0
        known[id(node)] = 1 + sum(_size(child, known) for child in _children(node))
    if not known[id(node)]:  # begun and not ended: the node is within itself
        raise Unreadable((Mark.of(node.start_mark), _TOO_DEEP))
    return known[id(node)]


def _given_twice(node: Any, walked: set[int]) -> Iterator[tuple[Mark, str]]:
    """PyYAML would let the last one win."""
    if id(node) in walked:
        return
    walked.add(id(node))
    seen: set[str] = set()
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield Mark.of(key.start_mark), f"the key {key.value!r} is given twice"
                seen.add(key.value)
    for child in _children(node):
        yield from _given_twice(child, walked)


def _places(node: Any, key: Mark, place: str) -> Iterator[tuple[str, tuple[Mark, Mark]]]:
    scalar = isinstance(node, yaml.ScalarNode)
    yield place, (key, Mark.of(node.start_mark) if scalar else key)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                inner = f"{place}.{name.value}" if place else name.value
                yield from _places(value, Mark.of(name.start_mark), inner)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _places(item, Mark.of(item.start_mark), f"{place}[{i}]")
