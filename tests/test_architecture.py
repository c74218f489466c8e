"""Who may import whom (docs/design.md): what decides is pure, and each thing has one place."""

from __future__ import annotations

import ast

import pytest

from tests.support.house import (
    MAY_IMPORT,
    MODULES,
    circles,
    classes,
    first_line,
    forbidden,
    imported,
    importers,
    ours,
    place,
    theirs,
    tree,
)

# What decides: values in, values out.
PURE = {
    name
    for name in MODULES
    if place(name)
    in {"http", "http/grammar", "repairs", "errors", "paths", "units", "rules", "explain", "sunset"}
} | {
    "cases/settings",
    "checks/known_keys",
    "checks/overlaps",
    "mock/api",
    "audit/reader",
    "server/byte_rate",
    "server/client_watch",
    "server/line_limit",
    "state/store",
    "state/freshness",
    "state/documents",
    "state/lookup_results",
}
# All that a pure module needs from elsewhere. None of it does I/O, reads a clock or logs.
HARMLESS = {
    "__future__", "abc", "codecs", "collections", "contextlib", "dataclasses", "datetime", "difflib",
    "email.utils.format_datetime", "email.utils.parsedate_to_datetime", "encodings", "enum",
    "functools", "hashlib", "http.HTTPStatus", "ipaddress", "itertools", "json", "math", "operator", "re",
    "gc", "secrets",
    "string", "typing", "types.TracebackType", "urllib.parse", "zlib",
    "jsonpath", "jsonschema_rs", "msgspec", "pydantic",
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
# And what is a transport of it: there httpx is the interface.
KNOW_HTTPX = {"upstream/http2", "mock/demo", "mock/cluster_demo", "in_process/httpx_transport"}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def test_every_file_stands_in_a_room_of_the_design() -> None:
    assert {place(name) for name in MODULES} - {"__init__"} <= set(MAY_IMPORT)


def test_imports_follow_the_direction_of_the_design() -> None:
    assert forbidden() == []


def test_no_circle_between_files_not_even_a_typed_one() -> None:
    assert circles() == []


def test_one_name_is_one_class() -> None:
    assert [name for name, places in classes().items() if len(places) > 1] == []


def test_few_files_lie_outside_the_rooms() -> None:
    assert len([name for name in MODULES if "/" not in name and name in importable_files()]) <= 14


def importable_files() -> set[str]:
    return {name for name, path in MODULES.items() if path.name != "__init__.py"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_file_imports_nothing_that_does_io_reads_a_clock_or_logs(name: str) -> None:
    assert [other for other in sorted(theirs(name)) if not within(other, HARMLESS)] == []
    assert ours(name) <= PURE


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_file_opens_and_prints_nothing(name: str) -> None:
    called = {
        node.func.id
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert called & IMPURE_BUILTINS == set()


def test_only_http2_and_the_mock_know_httpx() -> None:
    assert {name for name in MODULES if any(within(one, {"httpx"}) for one in imported(name))} <= KNOW_HTTPX


def test_nothing_but_the_demos_make_an_httpx_client() -> None:
    """C4: a client has a cookie jar that all callers share; the transport has none."""
    clients = {"AsyncClient", "Client", "get", "post", "put", "patch", "delete", "head", "options", "request"}
    makers = {
        name
        for name in MODULES
        for node in ast.walk(tree(name))
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "httpx"
            and node.attr in clients | {"stream"}
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "httpx")
    }

    assert makers <= {"mock/demo", "mock/cluster_demo"}


def test_nothing_in_proxy_knows_asgi() -> None:
    """What the lifecycle needs of a client is one small protocol (proxy/client.py)."""
    proxy = [name for name in MODULES if place(name) == "proxy"]

    assert [name for name in proxy if within_any(name, {"starlette", "uvicorn"})] == []
    assert [name for name in proxy if asgi_words(name)] == []


def asgi_words(name: str) -> list[str]:
    """What whoever handles ASGI's scope and messages has to write down."""
    said = [node.value for node in ast.walk(tree(name)) if isinstance(node, ast.Constant)]
    words = {"extensions", "more_body", "raw_path"}
    return [word for word in said if isinstance(word, str) and (word.startswith("http.") or word in words)]


def within_any(name: str, wanted: set[str]) -> bool:
    return any(within(one, wanted) for one in imported(name))


def test_only_the_wiring_sees_the_settings() -> None:
    """Parts receive values, and not the configuration; but for those that read, divide or compare it."""
    of_workers = {f"workers/{name}" for name in ("listeners", "shares", "start", "supervisor", "worker")}
    in_process = {"asgi", "in_process/running", "in_process/httpx_transport"}
    compared = {"promotion/effect", "promotion/difference"}
    assert (
        importers("config")
        == {"app", "backend", "cli", "process/lifetime", "process/reloads"}
        | of_workers
        | in_process
        | compared
    )


def test_only_the_wiring_knows_where_the_shared_state_is_kept() -> None:
    """All others know the contract: another store needs no change of theirs."""
    kept = {"state/memory", "state/locks", "state/shared", "state/layered_locks"}
    kept |= {name for name in MODULES if name.startswith("state/redis")}
    assert importers(*kept) - kept == {"app", "backend"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_says_first_what_it_is_for(name: str) -> None:
    assert first_line(name)


# A task hands on whatever its coroutine raises.
@pytest.mark.parametrize("name", sorted(set(MODULES) - {"direct_task", "bounded_reads"}))
def test_no_error_is_caught_by_whoever_does_not_know_it(name: str) -> None:
    caught = [
        node.lineno
        for node in ast.walk(tree(name))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or {"Exception", "BaseException"} & set(ast.unparse(node.type).strip("()").split(", "))
        )
    ]

    assert caught == []


def test_the_walk_finds_what_it_looks_for() -> None:
    """Else the tests above would pass over an empty set."""
    assert ours("app") >= {"proxy/lifecycle", "config", "upstream/pool"}
    assert "repairs/fill" in ours("repairs")
    assert theirs("upstream/pool") >= {"asyncio"}
    assert asgi_words("server/asgi")
    assert len(MODULES) > 40
