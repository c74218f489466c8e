"""
Errors in a configuration for a machine to read: as JSON, or as what a workflow on GitHub shows beside the
lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

# As config.py tells one, and as compilers do.
_LINE: Final = re.compile(r"(?P<file>.*?):(?:(?P<line>\d+):(?P<column>\d+):)? (?P<message>.*)", re.DOTALL)


def as_json(errors: Iterable[str]) -> Iterator[str]:
    """An object with the list of them; an empty one where there are none."""
    yield json.dumps({"problems": [_parts(one) for one in errors]}, indent=2, ensure_ascii=False)


def as_github(errors: Iterable[str]) -> Iterator[str]:
    """Workflow commands, which become annotations on the file's lines."""
    for error in errors:
        parts = _parts(error)
        at = "".join(
            f",{name}={parts[key]}" for name, key in (("line", "line"), ("col", "column")) if parts[key]
        )
        yield f"::error file={_escaped(parts['file'], also=',:')}{at}::{_escaped(parts['message'])}"


def _parts(error: str) -> dict[str, Any]:
    found = _LINE.fullmatch(error)
    if found is None:
        return {"file": "", "line": None, "column": None, "message": error}
    line, column = found["line"], found["column"]
    return {
        "file": found["file"],
        "line": int(line) if line else None,
        "column": int(column) if column else None,
        "message": found["message"],
    }


def _escaped(text: str, also: str = "") -> str:
    for one in ("%", "\r", "\n", *also):
        text = text.replace(one, f"%{ord(one):02X}")
    return text
