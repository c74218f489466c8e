"""
The shape of a body: member names and types, as lines of an outline; never a value (L3). Pure.

Bounded in lines, in depth and in the length of a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

LINES: Final = 60
DEPTH: Final = 6
NAME: Final = 60  # characters

# Depth, name (that of an array's elements is None), type.
Line: TypeAlias = tuple[int, str | None, str]


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


# Numbers are never made: only that they are some counts. Objects become tuples of pairs, so that a name given
# twice is seen twice; arrays stay lists.
_decoder = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refused, object_pairs_hook=tuple)


def shape(body: bytes) -> dict[str, Any]:
    """`lines`, and how many there were more; or why there are none."""
    if not body:
        return {"why": "no body"}
    try:
        value = _decoder.decode(body.decode())
    except UnicodeDecodeError:
        return {"why": "not UTF-8"}
    except RecursionError:
        return {"why": "too deep"}
    except ValueError:
        return {"why": "not JSON"}
    lines: list[Line] = []
    more = 0
    for line in _outline(value):
        if len(lines) < LINES:
            lines.append(line)
        else:
            more += 1
    return {"type": _type(value), "lines": lines, "more": more}


def _outline(value: Any) -> Iterator[Line]:
    """Without recursion. Of an array the first element stands for all; below DEPTH nothing is told."""
    waiting = [_inner(value, 0)]
    while waiting:
        for line, inner in waiting[-1]:
            yield line
            if line[0] + 1 < DEPTH:
                waiting.append(_inner(inner, line[0] + 1))
                break
        else:
            waiting.pop()


def _inner(value: Any, depth: int) -> Iterator[tuple[Line, Any]]:
    if isinstance(value, tuple):
        for name, member in value:
            yield (depth, _cut(name), _type(member)), member
    elif isinstance(value, list) and value:
        for one in value[:1]:
            if isinstance(one, list | tuple):
                yield (depth, None, _type(one)), one


def _type(value: Any) -> str:
    if isinstance(value, tuple):
        return "object"
    if isinstance(value, list):
        kinds = sorted({_type(one).partition(" ")[0] for one in value})
        return f"array of {' and '.join(kinds)}" if kinds else "array"
    return {str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _cut(name: str) -> str:
    # A lone surrogate can't be encoded for the page.
    name = name.encode("utf-8", "replace").decode()
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"
