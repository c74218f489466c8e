"""Who may import whom (DESIGN.md section 2): what decides is pure, and each thing has one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "gateway"

# What decides: values in, values out.
PURE = {
    "headers", "errors", "calls", "json_text", "templates", "select", "rules", "forwarding", "explain",
    "http1", "mock_api", "pace", "repairs", "repairs.content_type", "repairs.encoding", "repairs.fill",
    "repairs.findings",
}  # fmt: skip
# All that a pure module needs from elsewhere. None of it does I/O, reads a clock or logs.
HARMLESS = {
    "__future__", "abc", "codecs", "collections", "dataclasses", "encodings", "enum", "functools", "hashlib",
    "ipaddress", "itertools", "json", "math", "operator", "re", "string", "typing", "urllib.parse", "zlib",
    "jsonpath", "msgspec", "pydantic",
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
KNOW_HTTPX = {"upstream", "transport", "reply_reader", "http2", "app", "mock", "demo"}


class Import(NamedTuple):
    """`name` as in `from gateway.a import b`: `gateway.a.b`. `typed`: for the type checker only."""

    name: str
    typed: bool


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text("utf-8"))


def walk(node: ast.AST, typed: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, wherever it stands, and whether only the type checker sees it."""
    yield node, typed
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for statement in node.body:
            yield from walk(statement, typed=True)
        for statement in node.orelse:
            yield from walk(statement, typed)
    else:
        for child in ast.iter_child_nodes(node):
            yield from walk(child, typed)


@cache
def imports(name: str) -> tuple[Import, ...]:
    found: list[Import] = []
    for node, typed in walk(tree(name)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, typed) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found += [Import(f"{node.module}.{alias.name}", typed) for alias in node.names]
    return tuple(found)


def ours(name: str, *, typed: bool = False) -> set[str]:
    """The package's modules that one imports; with `typed` those for the type checker too."""
    found: set[str] = set()
    for one in imports(name):
        if one.typed and not typed:
            continue
        parts = one.name.split(".")
        if parts[0] == "gateway":
            longest = next(
                (
                    ".".join(parts[1:end])
                    for end in range(len(parts), 1, -1)
                    if ".".join(parts[1:end]) in MODULES
                ),
                "__init__",
            )
            found.add(longest)
    return found


def theirs(name: str) -> set[str]:
    """What one imports of the standard library and of others, in full."""
    return {one.name for one in imports(name) if not one.typed and one.name.split(".")[0] != "gateway"}


def importers(*wanted: str, typed: bool = False) -> set[str]:
    return {name for name in MODULES if ours(name, typed=typed) & set(wanted)}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def test_the_pure_modules_are_all_there() -> None:
    assert set(MODULES) >= PURE
    assert {name for name in MODULES if name.startswith("repairs")} <= PURE


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_imports_nothing_that_does_io_reads_a_clock_or_logs(name: str) -> None:
    assert [other for other in sorted(theirs(name)) if not within(other, HARMLESS)] == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_imports_nothing_of_ours_that_is_not_pure(name: str) -> None:
    assert ours(name) - PURE - {"__init__"} == set()


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_opens_and_prints_nothing(name: str) -> None:
    called = {
        node.func.id
        for node, _ in walk(tree(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert called & IMPURE_BUILTINS == set()


def test_only_the_upstream_s_side_knows_httpx() -> None:
    assert {
        name for name in MODULES if any(within(one.name, {"httpx"}) for one in imports(name))
    } <= KNOW_HTTPX


def test_nothing_but_the_demo_makes_an_httpx_client() -> None:
    """C4: a client has a cookie jar that all callers share; the transport has none."""
    clients = {
        "AsyncClient",
        "Client",
        "get",
        "post",
        "put",
        "patch",
        "delete",
        "head",
        "options",
        "request",
        "stream",
    }
    makers = {
        name
        for name in MODULES
        for node, _ in walk(tree(name))
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "httpx"
            and node.attr in clients
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "httpx")
    }

    assert makers <= {"demo"}


def test_only_upstream_translates_httpx_s_errors() -> None:
    """STYLE.md 5: foreign exceptions become ours at one border."""
    catching = {
        name
        for name in MODULES
        for node, _ in walk(tree(name))
        if isinstance(node, ast.ExceptHandler) and node.type is not None and "httpx" in ast.unparse(node.type)
    }

    assert catching <= {"upstream", "transport", "demo"}


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ("cli", {"__main__"}),
        ("app", {"cli"}),
        ("lifecycle", {"app"}),
        ("passage", {"app", "lifecycle"}),
        ("admin", {"app"}),
        ("config", {"app", "cli"}),
        ("explain", {"cli"}),
        ("demo", {"cli"}),
        ("mock", {"cli", "demo"}),
        ("mock_api", {"mock"}),
        ("transport", {"app"}),
        ("http2", {"app"}),
        ("protocol", {"app"}),
        ("http1", {"protocol", "exchange"}),
        ("exchange", {"protocol"}),
        ("reply_reader", {"transport"}),
        ("stores.memory", {"app"}),
    ],
)
def test_a_part_is_known_only_where_it_is_put_together(wanted: str, allowed: set[str]) -> None:
    assert importers(wanted) <= allowed


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("headers", set()),
        ("json_text", set()),
        ("templates", set()),
        ("select", set()),
        ("stores", set()),
        ("admin", set()),
        ("errors", {"headers"}),
        ("transport", {"headers", "reply_reader"}),
        ("reply_reader", {"headers"}),
        ("http2", {"headers"}),
        ("http1", {"headers", "errors"}),
        ("protocol", {"headers", "errors", "http1", "exchange", "pace"}),
        ("exchange", {"headers", "errors", "http1", "pace", "protocol"}),
        ("audit", {"errors"}),
        ("order", {"errors"}),
        ("config", {"select", "templates"}),
        ("upstream", {"headers", "errors"}),
        ("mock_api", {"headers"}),
        ("mock", {"headers", "mock_api"}),
    ],
)
def test_a_part_that_could_stand_alone_knows_little_of_the_rest(name: str, allowed: set[str]) -> None:
    assert ours(name, typed=True) - {"__init__"} <= allowed


def test_only_the_wiring_sees_the_settings() -> None:
    """STYLE.md 8: parts receive values, never the configuration. The rules are compiled from theirs."""
    assert importers("config", typed=True) <= {"app", "cli", "rules"}


def test_nobody_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(ours(name) - {"__init__", name}):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_says_first_what_it_is_for(name: str) -> None:
    docstring = ast.get_docstring(tree(name))

    assert docstring or name == "__main__" or not tree(name).body


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_error_is_caught_by_whoever_does_not_know_it(name: str) -> None:
    caught = [
        node.lineno
        for node, _ in walk(tree(name))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or {"Exception", "BaseException"} & set(ast.unparse(node.type).strip("()").split(", "))
        )
    ]

    assert caught == []


def test_the_walk_finds_what_it_looks_for() -> None:
    """Else the tests above would pass over an empty set."""
    assert ours("app") >= {"lifecycle", "config", "transport"}
    assert "repairs.fill" in ours("repairs")
    assert theirs("transport") >= {"httpx", "asyncio"}
    assert importers("headers") >= {"errors", "calls", "forwarding"}
    assert "config" in ours("rules", typed=True) - ours("rules")
    assert len(MODULES) > 30
