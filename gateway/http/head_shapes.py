"""
What request heads have in common: the lines that come again and again, whoever sends them.

Two heads have one shape if they have the same fields, and in those that are FIXED the same lines (slots.py).
A shape is remembered when it comes for the second time, and with it whatever was made of its fields; the
shapes that were used longest ago are dropped. No value of another field is kept. Nothing is read here:
request_parser.py makes each shape from a head that it has read in full.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, TypeAlias

from gateway.http.grammar import FIELD_BYTES, match_name
from gateway.http.slots import FIXED, SLOTS, Values

# Fixed lines, and of the others their names, as text, which no line is; at the end the minor version.
Key: TypeAlias = tuple[bytes | str | int, ...]

MAX_SHAPES: Final = 1024
MAX_KEY: Final = 1024  # bytes of the lines and names in a key: with all that is made of it about 15 KiB
MAX_BLOCK: Final = 16_384  # bytes of a head's fields
MAX_SEEN: Final = 16_384  # heads that came once
MAX_NAMES: Final = 1024


class HeadShapes:
    def __init__(self, most: int = MAX_SHAPES) -> None:
        self._most = most
        self._names: dict[bytes, str] = {}
        self._lines: set[bytes] = set()  # fixed ones of the shapes, so that each is looked at once
        self._shapes: OrderedDict[Key, Any] = OrderedDict()
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._shapes)

    def split(self, block: bytes, minor: int) -> tuple[Key, Values] | None:
        """
        The field lines of a head as the key of its shape and the values for its slots; None where these are
        not fit to be values.
        """
        known, names = self._lines, self._names
        lines: list[Any] = block.split(b"\r\n")
        values: list[bytes] = []
        for index, line in enumerate(lines):
            if line not in known:
                name, colon, value = line.partition(b":")
                if colon:
                    named = names.get(name) or self._named(name)
                    if named is not None:
                        lines[index] = named
                        values.append(value.strip(b" \t"))
        if values and (b"".join(values).translate(None, FIELD_BYTES) or len(values) > len(SLOTS)):
            return None
        lines.append(minor)
        return tuple(lines), tuple(values)

    def _named(self, name: bytes) -> str | None:
        """None where the whole line counts: that of a fixed field, or of a name that is none."""
        lower = name.lower()
        if lower in FIXED or match_name(name) is None:
            return None
        named = lower.decode("ascii")
        if len(self._names) < MAX_NAMES and len(name) <= 64:
            self._names[name] = named
        return named

    def get(self, key: Key) -> Any | None:
        shape = self._shapes.get(key)
        if shape is not None:
            self._shapes.move_to_end(key)
        return shape

    def is_worth_it(self, key: Key) -> bool:
        """Whether this shape is to be remembered: not a large one, nor that of a client that calls once."""
        number = hash(key)
        if number in self._seen:
            return sum(len(line) for line in key if not isinstance(line, int)) <= MAX_KEY
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen.add(number)
        return False

    def remember(self, key: Key, shape: Any) -> None:
        self._shapes[key] = shape
        if len(self._shapes) > self._most:
            self._shapes.popitem(last=False)
        if len(self._lines) > 16 * self._most:
            self._lines.clear()
        self._lines.update(line for line in key if isinstance(line, bytes))
