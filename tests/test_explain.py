"""`gateway explain` and `gateway check`: what would be done and how it is understood, without any network."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gateway import __version__
from gateway.cli import cli
from gateway.errors import BodyTooLarge
from gateway.explain import Explanation, explain
from gateway.http.headers import Header
from gateway.rules import Rules
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, SHIPPED
from tests.support.gateways import settings as configured

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LIMIT = 4096


def told(
    body: bytes = BODY,
    *headers: Header,
    method: str = "PATCH",
    target: str = PARTICIPANT,
    state: str | None = "connected",
    **changes: Any,
) -> Explanation:
    loaded = configured("http://upstream", "-", **changes)
    return explain(Rules(loaded.rules, LIMIT), method, target, headers, body, state, LIMIT)


def gateway(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def explained(*arguments: str, path: str = PARTICIPANT) -> str:
    result = gateway("explain", path, "--config", str(SHIPPED), *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


# --- explain, as a function


def test_the_seed_call_is_explained_as_it_would_be_sent() -> None:
    found = told(state="connected")

    assert (found.rule, found.mode) == ("web-participant-state", "enforce")
    assert [change.repair for change in found.changes] == ["content_type", "fill"]
    assert found.looks_up == (CONVERSATION,)
    assert found.before.body == BODY
    assert found.after is not None
    assert found.after.body == FILLED
    assert dict(found.after.headers)[b"content-type"] == b"application/json"
    assert found.reason is None


def test_without_a_state_the_look_up_is_named_and_the_other_repairs_are_shown() -> None:
    found = told(state=None)

    assert [change.repair for change in found.changes] == ["content_type"]
    assert found.looks_up == (CONVERSATION,)
    assert found.reason is not None
    assert "--state" in found.reason


def test_a_state_that_may_not_be_filled_is_told() -> None:
    found = told(BODY, (b"content-type", b"application/json"), state="disconnected")

    assert found.reason == "state-not-allowed"
    assert found.after is None
    assert found.changes == ()


@pytest.mark.parametrize(
    ("method", "target"),
    [("PATCH", f"{PARTICIPANT}/attributes"), ("POST", PARTICIPANT), ("GET", PARTICIPANT), ("PATCH", "/"),
     ("PATCH", PARTICIPANT.replace("/c1/", "/../"))],
)  # fmt: skip
def test_what_no_rule_takes_is_passed_through(method: str, target: str) -> None:
    found = told(method=method, target=target)

    assert found.rule is None
    assert found.after is None
    assert found.reason == "no rule matches: passed through untouched"


def test_the_query_is_not_matched_and_a_method_in_small_letters_is() -> None:
    assert told(target=f"{PARTICIPANT}?a=/b/../c").rule == "web-participant-state"
    assert told(method="patch").rule == "web-participant-state"


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"[]", [], "not-an-object"),
        (b"", [], "empty-body"),
        (b"NaN", [], "not-json"),
        (BODY, [(b"content-type", b"application/json-patch+json")], "media-type"),
        (BODY, [(b"content-digest", b"x")], "signed-body"),
        (b'{"state":"x"}', [(b"content-type", b"application/json")], "conforming"),
        (b'{"state":1,"state":2}', [(b"content-type", b"application/json")], "duplicate-member"),
    ],
)
def test_what_is_left_as_it_is_has_its_reason(body: bytes, headers: list[Header], reason: str) -> None:
    found = told(body, *headers)

    assert (found.reason, found.after, found.changes, found.looks_up) == (reason, None, (), ())


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b" " * (LIMIT + 1), []),
        (gzip.compress(b" " * (LIMIT + 1), mtime=0), [(b"content-encoding", b"gzip")]),
    ],
)
def test_what_is_too_large_is_explained_as_refused(body: bytes, headers: list[Header]) -> None:
    found = told(body, *headers)

    assert isinstance(found.refused, BodyTooLarge)
    assert found.after is None


@patient
@given(
    st.binary(max_size=40), st.sampled_from(["PATCH", "patch", "GET"]), st.text("/.%;?acp12{}\\", max_size=12)
)
def test_any_call_has_an_explanation(body: bytes, method: str, more: str) -> None:
    for target in (f"/{more}", f"{PARTICIPANT}{more}", PARTICIPANT):
        found = told(body, (b"content-encoding", b"deflate"), method=method, target=target)
        assert (found.after is None) is (found.changes == ())


# --- explain, on the command line


def test_explain_shows_rule_repairs_look_up_before_and_after() -> None:
    shown = explained(
        "-X", "PATCH", "-d", BODY.decode(), "-H", "Content-Type: text/plain", "--state", "connected"
    )

    assert shown.splitlines() == [
        "rule:     web-participant-state (enforce)",
        "repair:   content_type: before 'text/plain', after 'application/json'",
        "repair:   fill: field 'state', after 'connected'",
        f"look-up:  GET {CONVERSATION}",
        "before:   Content-Type: text/plain",
        f"          {BODY.decode()}",
        "after:    Content-Type: application/json",
        f"          {FILLED.decode()}",
    ]


def test_explain_says_why_nothing_is_done() -> None:
    shown = explained("-d", "[1]")

    assert "because:  not-an-object" in shown
    assert "Content-Type: (none)" in shown
    assert "after:" not in shown
    assert "rule:     none" in explained(path="/api/v2/users/me")


def test_explain_reads_a_body_from_a_file(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(gzip.compress(BODY, mtime=0))

    shown = explained("-d", f"@{body}", "-H", "content-encoding:gzip", "--state", "connected")

    assert FILLED.decode() in shown
    assert "encoding: before 'gzip, utf-8', after 'utf-8'" in shown


def test_explain_tells_of_a_refusal(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(2**20 + 1))

    assert "refused:  413" in explained("-d", f"@{body}")


@pytest.mark.parametrize(
    ("data", "shown"),
    [("é😀", "é😀"), ("\udce9", "\\xe9"), ("a\udcffb", "a\\xffb")],
)
def test_explain_takes_the_body_s_bytes_as_the_shell_gives_them(data: str, shown: str) -> None:
    assert shown in explained("-d", data)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-H", "no colon"),
        ("-H", ": no name"),
        ("-H", ""),
        ("-d", "@/no/such/file"),
        ("-d", "@"),
        ("-X", ""),
        ("-X", "PÄTCH"),
        ("-X", "PATCH /"),
        ("-X", "\udce9"),
    ],
)
def test_explain_says_what_it_expected_and_exits_with_one(arguments: tuple[str, ...]) -> None:
    result = gateway("explain", PARTICIPANT, "--config", str(SHIPPED), *arguments)

    assert result.exit_code == 1
    assert result.stderr.startswith("gateway explain: ")
    assert result.stdout == ""


@pytest.mark.parametrize("path", ["", "api", "http://h/api", "/a b", "/é", "/a\n", "/\udce9", "*"])
def test_explain_wants_the_target_as_it_is_on_the_wire(path: str) -> None:
    result = gateway("explain", path, "--config", str(SHIPPED))

    assert result.exit_code == 1
    assert "expected a percent-encoded path that starts with '/'" in result.stderr


@pytest.mark.parametrize(
    "header", ["X-Odd: é東😀", "X-Odd: \udce9", "Ünïcode: x", "Content-Type: text/plain; x=é"]
)
def test_explain_takes_any_header(header: str) -> None:
    assert "rule:     web-participant-state" in explained("-H", header, "-d", "{}")


# --- check


def test_check_says_how_the_shipped_configuration_is_understood() -> None:
    result = gateway("check", "--config", str(SHIPPED))

    assert result.exit_code == 0
    assert "4 rules, forwarding to http://127.0.0.1:9000" in result.stdout
    for part in (
        "web-participant-state (enforce, a failed look-up: reject)",
        "PATCH /api/v2/conversations/web/instances/{conversationId}/participants/{participantId}",
        "encoding becomes UTF-8",
        "content_type becomes application/json",
        "fill state of participantId from GET /api/v2/conversations/web/instances/{conversationId}",
        "$.participants[?@.id == _.participantId",
        "only active, connected; at most 1s old",
        "refilled on [409, 412]",
        "written by POST /api/v2/conversations/callbacks/bulk/disconnect",
    ):
        assert part in result.stdout
    assert "warning" not in result.stdout


def test_check_prints_every_error_and_exits_with_one(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("upstream: {url: x}\nlisten: {port: 0x10000}\ncolour: red\n")

    result = gateway("check", "-c", str(path))

    assert result.exit_code == 1
    assert result.stdout == ""
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [
        ["wrong.yaml:2:16", "listen.port"],
        ["wrong.yaml:1:17", "upstream.url"],
        ["wrong.yaml:3:1", "colour"],
    ]


@pytest.mark.parametrize("command", [["check"], ["run"], ["explain", "/"]])
def test_a_configuration_that_cannot_be_read_is_told_and_exits_with_one(
    tmp_path: Path, command: list[str]
) -> None:
    missing = tmp_path / "missing.yaml"

    result = gateway(*command, "--config", str(missing))

    assert result.exit_code == 1
    assert "missing.yaml: cannot be read" in result.stderr
    assert "Traceback" not in result.output


def test_check_warns_of_a_state_that_may_be_old(tmp_path: Path) -> None:
    document = yaml.safe_load(Path(str(SHIPPED)).read_text().replace("${GATEWAY_PORT:-8080}", "1"))
    document["rules"][0]["repairs"][2]["max_age"] = "10s"
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(document))

    result = gateway("check", "--config", str(path))

    assert result.exit_code == 0
    assert "warning: rules.web-participant-state: max_age 10s" in result.stdout


# --- check --schema


def schema() -> dict[str, Any]:
    result = gateway("check", "--schema", "--config", "no-such-file.yaml")
    assert result.exit_code == 0
    loaded = json.loads(result.stdout)
    assert isinstance(loaded, dict)
    return loaded


def fits(value: Any, part: dict[str, Any], whole: dict[str, Any]) -> bool:
    """As much of JSON Schema as says whether a document's keys are known and its scalars have their type."""
    if "$ref" in part:
        return fits(value, whole["$defs"][part["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in part or "oneOf" in part:
        return any(fits(value, one, whole) for one in part.get("anyOf") or part["oneOf"])
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    allowed = part.get("type", list(kinds))
    if not isinstance(
        value, tuple(kinds[kind] for kind in ([allowed] if isinstance(allowed, str) else allowed))
    ):
        return False
    if isinstance(value, dict) and "properties" in part:
        known = part.get("properties", {})
        return set(part.get("required", ())) <= set(value) <= set(known) and all(
            fits(item, known[key], whole) for key, item in value.items()
        )
    if isinstance(value, list):
        return all(fits(item, part.get("items", {}), whole) for item in value)
    return value in part.get("enum", [value]) and value == part.get("const", value)


def test_the_schema_fits_what_is_understood_and_not_what_is_refused() -> None:
    whole = schema()
    document = yaml.safe_load(
        Path(str(SHIPPED))
        .read_text()
        .replace("${GATEWAY_PORT:-8080}", "1")
        .replace("${GATEWAY_ADMIN_PORT:-9901}", "2")
        .replace("${GATEWAY_MODE:-enforce}", "enforce")
    )

    assert fits(document, whole, whole)
    for wrong in (
        document | {"colour": "red"},
        {key: value for key, value in document.items() if key != "upstream"},
        document | {"listen": {"prot": 1}},
        document | {"rules": [document["rules"][0] | {"mode": "off"}]},
        document | {"rules": [document["rules"][0] | {"repairs": [{"type": "guess"}]}]},
    ):
        assert not fits(wrong, whole, whole)


# --- the command itself


def test_the_version_is_told() -> None:
    assert gateway("--version").stdout.strip() == __version__


def test_without_a_command_the_help_is_shown() -> None:
    shown = gateway().output

    assert all(command in shown for command in ("run", "check", "explain", "mock", "demo"))


def test_python_m_gateway_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--config", str(SHIPPED)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == gateway("check", "--config", str(SHIPPED)).stdout
