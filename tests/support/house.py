"""
The house as its imports draw it: which file imports which, counted from the source, imports for the type
checker too. `python -m tests.support.house` prints the tables that docs/design.md shows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "gateway"

# What every file may import.
GROUND = {"errors", "http/grammar"}
# Who may import whom beside it, by rooms and by files that stand alone: from the ground up.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "http/grammar": set(),
    "paths": set(),
    "units": set(),
    "http": set(),
    "repairs": {"http", "paths", "units"},
    "rules": {"repairs", "paths", "units"},
    "config": {"repairs", "paths", "units", "rules"},
    "explain": {"rules", "repairs", "http"},
    "server": {"http"},
    "upstream": {"http"},
    "state": {"rules", "repairs", "http", "upstream", "paths"},
    "audit": set(),
    "proxy": {"rules", "repairs", "paths", "http", "upstream", "state", "audit"},
    "admin": {"audit", "state"},
    "mock": {"http"},
    "mock/demo": {"mock", "http"},
    "app": {
        "config", "rules", "repairs", "paths", "units", "http", "server", "upstream", "state", "audit",
        "proxy", "admin",
    },
    "cli": {"app", "config", "explain", "mock", "mock/demo", "rules", "http"},
    "__main__": {"cli"},
}  # fmt: skip


def module(path: Path) -> str:
    """`repairs/fill` for repairs/fill.py, `repairs` for repairs/__init__.py."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text("utf-8"))


@cache
def imported(name: str) -> frozenset[str]:
    """Everything that is imported, wherever in the file: `gateway.a.b` for `from gateway.a import b`."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def ours(name: str) -> frozenset[str]:
    """The package's files that one imports; `__init__` (the version) is nobody's room."""
    found: set[str] = set()
    for one in imported(name):
        parts = one.split(".")
        if parts[0] == "gateway":
            ends = range(len(parts), 1, -1)
            found |= {next((p for p in ("/".join(parts[1:end]) for end in ends) if p in MODULES), "__init__")}
    return frozenset(found - {"__init__", name})


def theirs(name: str) -> set[str]:
    """What one imports of the standard library and of others, in full."""
    return {one for one in imported(name) if one.split(".")[0] != "gateway"}


def importers(*wanted: str) -> set[str]:
    return {name for name in MODULES if ours(name) & set(wanted)}


def place(name: str) -> str:
    """The entry of MAY_IMPORT that speaks for a file."""
    return name if name in MAY_IMPORT else name.partition("/")[0]


def forbidden() -> list[str]:
    """Imports against the direction."""
    return [
        f"{name} imports {other}"
        for name in sorted(MODULES)
        if name != "__init__"
        for other in sorted(ours(name))
        if place(other) != place(name) and place(other) not in MAY_IMPORT[place(name)] | GROUND
    ]


def circles() -> list[str]:
    """Each way that leads from a file back to itself, once."""
    found: dict[frozenset[str], str] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            found.setdefault(frozenset(circle), " -> ".join((*circle, name)))
        elif name not in done:
            for other in sorted(ours(name)):
                visit(other, (*path, name))
            done.add(name)

    done: set[str] = set()
    for name in MODULES:
        visit(name, ())
    return sorted(found.values())


def classes() -> dict[str, list[str]]:
    """Public classes by name, with the files that define one."""
    found: dict[str, list[str]] = {}
    for name in MODULES:
        for node in tree(name).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return found


def levels() -> list[list[str]]:
    """The rooms from the ground up: each imports only from those on levels before its own."""
    placed: dict[str, int] = {}

    def level(one: str) -> int:
        if one not in placed:
            below = {place(o) for name in MODULES if place(name) == one for o in ours(name)} - {one}
            placed[one] = 1 + max((level(other) for other in below), default=-1)
        return placed[one]

    for name in MODULES:
        if name != "__init__":
            level(place(name))
    return [sorted(p for p in placed if placed[p] == n) for n in range(max(placed.values()) + 1)]


def first_line(name: str) -> str:
    text = (ast.get_docstring(tree(name)) or "").strip()
    return text.partition("\n\n")[0].replace("\n", " ")


def drawing() -> Iterator[str]:
    """The tables of docs/design.md."""
    yield "| level | rooms and files | import (beside the ground) |"
    yield "|---|---|---|"
    ground = set(levels()[0])
    for number, rooms in enumerate(levels()):
        for room in rooms:
            used = {place(o) for name in MODULES if place(name) == room for o in ours(name)} - {room} - ground
            yield f"| {number} | `{room}` | {', '.join(f'`{one}`' for one in sorted(used)) or '-'} |"
    yield ""
    yield "| file | what it is for |"
    yield "|---|---|"
    for name in MODULES:
        if name != "__init__":
            yield f"| `{MODULES[name].relative_to(PACKAGE.parent)}` | {first_line(name)} |"


if __name__ == "__main__":
    for line in drawing():
        print(line)
