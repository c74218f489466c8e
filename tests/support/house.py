"""
The house as its imports draw it: which file imports which, counted from the source, imports for the type
checker too. `drawing` is what docs/design.md shows; drawn.py puts it there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "gateway"

# What every file may import.
GROUND = {"errors", "http/grammar"}
# Who may import whom beside it, by rooms and by files that stand alone: from the ground up.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "direct_task": set(),
    "bounded_reads": set(),
    "http/grammar": set(),
    "paths": set(),
    "units": set(),
    "state/address": set(),
    "sunset": {"units"},
    "http": set(),
    "description/document": {"repairs"},
    "description/schema_files": {"description/document"},
    "repairs": {"http", "paths", "units"},
    "cases/settings": {"units"},
    "rules": {"repairs", "paths", "units", "sunset", "cases/settings"},
    "checks": {"paths"},
    "config": {"repairs", "paths", "units", "rules", "checks", "state/address", "description/schema_files"},
    "explain": {"rules", "repairs", "http"},
    "description": {"rules", "repairs", "paths", "description/document"},
    "cases/replay": {"rules", "repairs", "paths", "audit"},
    "cases": {"cases/settings", "explain", "rules", "repairs", "http", "state"},
    "server": {"http", "direct_task", "bounded_reads"},
    "upstream": {"http", "direct_task"},
    "state": {"rules", "repairs", "http", "upstream", "paths", "state/address"},
    "audit": set(),
    "proxy": {"rules", "repairs", "paths", "http", "upstream", "state", "audit"},
    "tracing": {"audit", "http", "proxy", "rules", "upstream"},
    "admin": {"audit", "state"},
    "admin/client": set(),
    "promotion": {"config", "rules"},
    "mock": {"http"},
    "mock/demo": {"mock", "http"},
    "mock/cluster_demo": {"mock/demo"},
    "backend": {
        "config", "rules", "repairs", "http", "server", "upstream", "state", "audit", "proxy", "tracing",
        "admin",
    },
    "app": {
        "backend", "config", "rules", "repairs", "http", "server", "upstream", "state", "audit", "proxy",
        "tracing", "admin", "checks", "promotion",
    },
    "process": {"app", "config", "http", "server", "audit", "admin", "promotion", "rules", "bounded_reads"},
    "workers": {"app", "process", "config", "server", "audit", "admin", "promotion"},
    "in_process": {"app", "process", "config", "http", "server", "proxy", "upstream"},
    "asgi": {"in_process", "config", "server", "upstream"},
    "cli": {
        "app", "process", "workers", "config", "checks", "cases", "explain", "mock", "mock/demo",
        "mock/cluster_demo", "rules", "http", "admin/client", "audit", "cases/replay", "description",
        "description/document", "promotion",
    },
    "__main__": {"cli", "process"},
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


def below(room: str) -> set[str]:
    """The rooms that one imports."""
    return {place(other) for name in MODULES if place(name) == room for other in ours(name)} - {room}


def levels() -> list[list[str]]:
    """
    The rooms from the ground up: each imports only from those on levels before its own, and stands right
    below the lowest that imports it.
    """
    rooms = {place(name) for name in MODULES} - {"__init__"}
    depth: dict[str, int] = {}

    def visit(room: str) -> int:
        if room not in depth:
            depth[room] = 1 + max((visit(one) for one in rooms if room in below(one)), default=-1)
        return depth[room]

    lowest = max(visit(room) for room in rooms)
    return [sorted(room for room in rooms if depth[room] == lowest - level) for level in range(lowest + 1)]


def first_line(name: str) -> str:
    """The first sentence of a file."""
    text = (ast.get_docstring(tree(name)) or "").strip().partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.) ", text)[0]


def drawing() -> Iterator[str]:
    """What docs/design.md shows: the rooms as a picture, who imports whom, and what each file is for."""
    yield "```text"
    for level, rooms in reversed(list(enumerate(levels()))):
        yield f"{'   '.join(rooms):^72}".rstrip()
        if level:
            yield f"{'↓':^72}".rstrip()
    yield "```"
    yield ""
    yield "| room or file | imports, beside `errors` and `http/grammar` |"
    yield "|---|---|"
    for rooms in reversed(levels()):
        for room in rooms:
            used = sorted(below(room) - GROUND)
            yield f"| `{room}` | {', '.join(f'`{one}`' for one in used) or 'none'} |"
    yield ""
    yield "| file | what it is for |"
    yield "|---|---|"
    for name, path in MODULES.items():
        if name != "__init__":
            shown = path.relative_to(PACKAGE).as_posix().removesuffix("__init__.py")
            yield f"| `{shown}` | {first_line(name)} |"
