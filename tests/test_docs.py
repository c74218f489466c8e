"""What README.md and docs/ say of the code is so: names, tables, links, the tests that hold the promises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import pytest
import typer
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from gateway import errors
from gateway.audit import writer
from gateway.audit.configurations import ConfigurationInForce
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.writer import Line
from gateway.cli import cli
from gateway.config import FROM_ENVIRONMENT, Settings, parse
from gateway.errors import GatewayError
from gateway.proxy.call_record import Decision, Outcome
from gateway.repairs import REPAIRS, name_of
from tests.support import drawn
from tests.support.drawn import ROOT
from tests.support.house import MODULES, tree
from tests.support.settings_tables import section_of

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
PAGES = ["README.md", "CHANGELOG.md", "benchmarks/README.md", *sorted(
    page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")
)]  # fmt: skip
PROMISES = {f"{letter}{number}" for letter, count in zip("SCLO", (8, 8, 3, 3), strict=True)
            for number in range(1, count + 1)}  # fmt: skip


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading, to the next of its kind or above."""
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", text(page), re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"{page} has no {heading!r}"
    return found[1]


def tables(part: str) -> list[list[list[str]]]:
    """Each table's rows but the two of its head, each as its cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", part, re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in one.splitlines()[2:]]
        for one in found
    ]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- docs/promises.md


def promises() -> dict[str, str]:
    """By its name, what stands under a promise."""
    parts = re.split(r"^### ([A-Z]\d+)\b.*$", text("docs/promises.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named_tests(part: str) -> list[str]:
    return re.findall(r"`(tests/[^`\s]*::[^`\s]*)`", part)


@cache
def known_tests(file: str) -> frozenset[str]:
    """As pytest names them, those too that a class has from one of another file that it derives from."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    found: set[str] = set()
    origin: dict[str, str] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            origin |= {alias.name: f"{str(node.module).replace('.', '/')}.py" for alias in node.names}
        elif isinstance(node, FUNCTION):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, FUNCTION)}
            for base in map(ast.unparse, node.bases):
                inherited = [one.partition("::") for one in known_tests(origin.get(base, ""))]
                found |= {f"{node.name}::{name}" for kind, _, name in inherited if kind == base}
    return frozenset(found)


def test_the_tests_that_the_threats_name_are_there() -> None:
    named = named_tests(text("docs/threats.md"))
    assert len(named) > 20
    assert [one for one in named if one.partition("::")[2] not in known_tests(one.partition("::")[0])] == []


def test_every_promise_is_there_and_nothing_else() -> None:
    assert promises().keys() == PROMISES


@pytest.mark.parametrize("promise", sorted(PROMISES))
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    named = named_tests(promises()[promise])

    assert named, "it names no test"
    assert len(named) == len(set(named))
    assert [one for one in named if one.partition("::")[2] not in known_tests(one.partition("::")[0])] == []


def test_a_test_that_does_not_exist_would_be_seen() -> None:
    assert "test_a_test_that_does_not_exist_would_be_seen" in known_tests("tests/test_docs.py")
    assert "TestMemoryLocks::test_shared_locks_are_held_together" in known_tests("tests/state/test_locks.py")
    assert "test_that_nobody_has_written" not in known_tests("tests/test_docs.py")
    assert known_tests("tests/test_no_such_file.py") == frozenset()


def test_every_promise_that_the_code_cites_is_one() -> None:
    # Tests also cite checklists, in which an L5 or an A13 is a row.
    sources = [path.read_text("utf-8") for path in MODULES.values()]
    cited = {found for source in sources for found in re.findall(r"\b[A-Z]\d\b", source)}

    assert cited - PROMISES == set()
    assert len(cited) > 15


# --- what is made from the code


@pytest.mark.parametrize("page", drawn.PARTS)
def test_what_is_made_from_the_code_is_up_to_date(page: str) -> None:
    assert text(page) == drawn.up_to_date(page), "python -m tests.support.drawn puts it in place"


# --- docs/operations.md

# Refused before a rule can match, so that the audit log never names them.
NEVER_RECORDED = {
    errors.HeadTimeout,
    errors.MethodNotAllowed,
    errors.NotServed,
    errors.TargetTooLong,
    errors.ExpectationFailed,
    errors.MisdirectedRequest,
    errors.NotSupported,
    errors.VersionNotSupported,
    errors.TlsOnPlainPort,
    errors.PlainHttpOnTlsPort,
    errors.TlsHandshakeFailed,
    errors.Overloaded,
    errors.LoopDetected,
}
# Who is given a reason, and as which argument.
GIVEN = {
    "NotApplicable": 0,
    "NotAnObject": 0,
    "Unfilled": 0,
    "LookupResults": 1,
    "left_as_it_is": 2,
    "untouched": 1,
    "record_skip": 1,
    "skip": 1,
    "record_reject": 1,
}
FIELD = "state"  # of which the documentation speaks


def texts(node: ast.AST) -> Iterator[str]:
    """The constants in an expression; one that begins with a dash goes behind the name of a field."""
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield FIELD + one.value if one.value.startswith("-") else one.value


def reasons_given(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        place = GIVEN.get(name)
        if place is not None and len(node.args) > place:
            yield from texts(node.args[place])
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr in {"skipped", "error"}:
                yield from texts(node.value)
    elif isinstance(node, ast.FunctionDef) and node.name in {"exemption", "reason"}:
        for one in ast.walk(node):
            if isinstance(one, ast.Return) and isinstance(one.value, ast.Constant | ast.IfExp):
                yield from texts(one.value)


def leaves(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    below = [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    if not below:
        yield kind
    for one in below:
        yield from leaves(one)


def test_every_reason_that_the_audit_log_can_give_is_explained() -> None:
    in_the_code = {
        reason for name in MODULES for node in ast.walk(tree(name)) for reason in reasons_given(node)
    }
    of_errors = {kind.slug() for kind in leaves(GatewayError) if kind not in NEVER_RECORDED}
    (rows,) = tables(section("docs/operations.md", "### Reasons"))
    explained = [reason for row in rows for reason in quoted(row[0])]

    assert sorted(explained) == sorted(in_the_code | of_errors)
    assert {"conforming", "unsettled", "state-not-found", "signed-body", "client-gone"} <= in_the_code


def test_every_event_and_field_of_the_audit_log_is_explained() -> None:
    line, gap = set(Line.__struct_fields__), set(writer._Gap.__struct_fields__)
    decision, outcome = set(Decision.__struct_fields__) - line, set(Outcome.__struct_fields__) - line
    mode = set(ModeChanged.__struct_fields__) - line
    config = set(ConfigurationInForce.__struct_fields__) - line
    events, fields = tables(section("docs/operations.md", "## The audit log"))[:2]
    said = {quoted(row[0])[0]: set(quoted(row[2])) for row in events}
    explained = [field for row in fields for field in quoted(row[0])]

    assert said.keys() == {"rewrite", "skip", "reject", "unsent", "outcome", "mode", "config", "gap"}
    assert said["rewrite"] | said["skip"] | said["reject"] == decision | {"observe", "shadow"}
    assert said["outcome"] == outcome
    assert said["unsent"] == {"attempt"}
    assert said["mode"] == mode
    assert said["config"] == config
    assert said["gap"] == (gap - line) | {"id"}
    assert sorted(explained) == sorted(decision | outcome | mode | config | gap | line)


# --- docs/configuration.md


@dataclass(frozen=True)
class Key:
    """A key as config.yaml has it, and the section that it stands in."""

    section: type[BaseModel]
    name: str

    @property
    def field(self) -> FieldInfo:
        return self.section.model_fields[self.name]

    def given(self, text: str) -> Any:
        """What it is where config.yaml says so."""
        checked: Any = Annotated[self.field.annotation, self.field]
        return TypeAdapter(checked).validate_python(yaml.safe_load(text))


def keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, Key]]:
    """Those that are no section. The keys of a repair are told by its name."""
    for name, field in model.model_fields.items():
        key = before + (field.alias or name)
        if name == "repairs":
            for repair in REPAIRS:
                of_repair = keys(repair.settings, f"{name_of(repair)}.")
                yield from (one for one in of_repair if not one[0].endswith(".type"))
            continue
        inner, listed = section_of(field.annotation)
        if inner is None:
            yield key, Key(model, name)
        else:
            yield from keys(inner, f"{key}{'[]' if listed else ''}.")


def told_settings() -> Iterator[list[str]]:
    """The rows of docs/configuration.md that are no section's: key, type, default, meaning."""
    for table in tables(text("docs/configuration.md").partition("<!-- settings -->")[2]):
        yield from ([quoted(row[0])[0], *row[1:]] for row in table if not row[1].startswith("section"))


def test_the_settings_page_has_every_key_and_no_other() -> None:
    told = [row[0] for row in told_settings()]

    assert sorted(told) == sorted(dict(keys(Settings)))
    assert {"upstream.tls.ca", "rules[].match.path", "fill.from", "cors.origins"} <= set(told)


@pytest.mark.parametrize("row", list(told_settings()), ids=lambda row: row[0])
def test_the_settings_page_tells_each_default_and_what_the_key_is_for(row: list[str]) -> None:
    key, _, told, sentence = row
    known = dict(keys(Settings))[key]
    told = re.sub(r"[,;] (or|else) `GATEWAY_\w+`$", "", told).replace("`", "")

    if known.field.is_required():
        assert told == "required"
    elif told == "none":
        assert known.field.default in [None, (), {}, "none"]
    else:
        assert known.given(re.sub(r"\*", "'*'", told)) == known.field.default
    assert sentence.endswith("."), "a text under the key says what it is for"


def test_the_settings_page_says_of_each_section_what_it_is_for() -> None:
    generated = text("docs/configuration.md").partition("<!-- settings -->")[2]
    told = dict(re.findall(r"^## (\w+)\n\n(.*)$", generated, re.MULTILINE))
    within = [row for table in tables(generated) for row in table if row[1].startswith("section")]

    assert sorted(told) == sorted(Settings.model_fields)
    assert [
        name
        for name, begins in told.items()
        if not begins.endswith(".") and name not in {"mode", "environments"}
    ] == []
    assert [row[0] for row in within if not row[3].endswith(".")] == []
    assert len(within) > 4


def test_the_settings_page_names_each_variable_that_stands_for_a_key() -> None:
    told = {row[0]: re.findall(r"GATEWAY_\w+", row[2]) for row in told_settings()}

    assert {key: names for key, names in told.items() if names} == {
        f"{section}.{key}": [name] for name, (section, key) in FROM_ENVIRONMENT.items()
    }


# --- README.md


def test_the_shortest_configuration_of_the_readme_is_one() -> None:
    """Ten lines or fewer, and each line of it as `gateway check` takes it."""
    part = section("README.md", "## In front of your own API")
    (shortest,) = [one for one in re.findall(r"(?:^    .*\n)+", part, re.MULTILINE) if "rules:" in one]
    lines = dedent(shortest)

    settings = parse(lines, {})

    assert len(lines.splitlines()) <= 10
    assert [rule.name for rule in settings.rules] == ["participant-state"]
    assert settings.warnings() == []


# --- commands


def commands() -> Iterator[tuple[str, str]]:
    """Each line of the pages that calls `gateway`, alone or in a sentence, and the page."""
    for page in PAGES:
        lines = text(page).replace("\\\n", " ").splitlines()
        indented = [line.strip().removeprefix("$ ") for line in lines if line.startswith("    ")]
        alone = [line.partition("|")[0] for line in indented if line.startswith("gateway ")]
        yield from ((page, line) for line in [*alone, *quoted(text(page))] if re.match("gateway [a-z]", line))


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_that_a_page_shows_is_one_with_the_options_it_has(page: str, line: str) -> None:
    command: Any = typer.main.get_command(cli)
    words = line.split()[1:]
    while words and hasattr(command, "commands") and re.fullmatch("[a-z]+", words[0]):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    options = {name for one in command.params for name in one.opts}
    asked = re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", re.sub(r"'[^']*'", "", " ".join(words)))

    assert [option for option in asked if option not in options | {"--help"}] == [], line


def test_the_commands_of_the_pages_are_found() -> None:
    found = {line.split()[1] for _, line in commands()}

    assert {"run", "check", "explain", "report", "audit", "mode", "reload", "mock"} <= found


# --- all pages


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one).strip().lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_project_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.is_file(), link
        if anchor:
            assert anchor in anchors(found.resolve().relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page: str) -> None:
    """By its path from the top, within gateway/, or beside the page."""
    places = ROOT, ROOT / "gateway", (ROOT / page).parent
    code = " ".join(quoted(text(page)))
    named = sorted(set(re.findall(r"(?<![\w./>-])[\w./-]+\.py\b", code)))

    assert [name for name in named if not any(Path(place, name).is_file() for place in places)] == []
