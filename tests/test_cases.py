"""A rule's own tests: `gateway check` runs them, and shows where a call comes out differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway import config
from gateway.cases import run as cases
from gateway.cli import cli
from tests.support.gateways import SHIPPED

RULE: dict[str, Any] = {
    "name": "one",
    "match": {"path": "/c/{id}/p/{who}"},
    "repairs": [
        {"type": "content_type"},
        {"type": "fill", "field": "state", "from": "/c/{id}", "allow": ["connected"],
         "select": "$.participants[?@.id == _.who].state"},
    ],
}  # fmt: skip
PATH = "/c/1/p/2"
LEGACY = {"path": PATH, "body": '{"a": 1.10}'}
CONNECTED = {"body": {"participants": [{"id": "2", "state": "connected"}]}}
ALERTING = {"body": '{"participants": [{"id": "2", "state": "alerting"}]}'}
FILLED = '{"state":"connected","a": 1.10}'


def document(*tried: dict[str, Any], **rule: Any) -> str:
    return yaml.safe_dump({"upstream": {"url": "http://u"}, "rules": [RULE | rule | {"cases": list(tried)}]})


def failures(*tried: dict[str, Any], **rule: Any) -> list[str]:
    settings = config.parse(document(*tried, **rule), {})
    return [message for _, message in cases.failures(settings.rules, 1024, ())]


@pytest.mark.parametrize(
    "case",
    [
        {"call": LEGACY, "lookup": CONNECTED, "expect": {"body": FILLED}},
        {"call": LEGACY, "lookup": CONNECTED, "expect": {"body": {"a": 1.1, "state": "connected"}}},
        {"call": LEGACY, "lookup": CONNECTED, "expect": {"headers": {"Content-Type": "application/json"}}},
        {"call": LEGACY, "lookup": ALERTING, "reason": "state-not-allowed"},
        {"call": LEGACY, "lookup": {"body": {"participants": []}}, "reason": "state-not-found"},
        {"call": LEGACY, "lookup": {"status": 404}, "reason": "lookup-refused"},
        {"call": LEGACY, "lookup": {"status": 500}, "reason": "lookup-failed"},
        {"call": LEGACY, "lookup": {"body": "no JSON"}, "reason": "lookup-failed"},
        {"call": LEGACY | {"body": "x" * 1025}, "reason": "body-too-large"},
        {"call": {"path": PATH, "body": {"state": "x"}}, "expect": {"body": '{"state":"x"}'}},
        {"call": LEGACY | {"headers": {"Cache-Control": "no-transform"}}, "reason": "no-transform"},
    ],
)
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_call_that_comes_out_as_expected_is_fine_in_any_mode(case: dict[str, Any], mode: str) -> None:
    assert failures(case, mode=mode) == []


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ({"call": LEGACY, "lookup": CONNECTED, "expect": {"body": '{"state":"connected","a": 1.1}'}},
         ["body, expected: {\"state\":\"connected\",\"a\": 1.1}",
          "body, got:      {\"state\":\"connected\",\"a\": 1.10}",
          "                                             ^"]),
        ({"call": LEGACY, "lookup": CONNECTED, "expect": {"headers": {"X": "1"}}},
         ["X, expected: 1", "X, got:      (none)"]),
        ({"call": LEGACY, "lookup": ALERTING, "reason": "state-ambiguous"},
         ["reason, expected: state-ambiguous", "reason, got:      state-not-allowed"]),
        ({"call": LEGACY, "lookup": CONNECTED, "reason": "conforming"},
         ["reason, expected: conforming", "reason, got:      none, it is repaired"]),
        ({"call": LEGACY, "expect": {"body": FILLED}},
         ["it looks up GET /c/1, but the case has no lookup"]),
        ({"call": LEGACY | {"path": "/d/1"}, "expect": {"body": FILLED}},
         ["the call is matched by no rule"]),
        ({"call": LEGACY, "lookup": {"status": 404}, "expect": {"body": FILLED}},
         ["expected a call that goes on, got a refusal: lookup-refused"]),
    ],
)  # fmt: skip
def test_a_difference_is_shown_side_by_side(case: dict[str, Any], difference: list[str]) -> None:
    assert failures(case) == ["\n    ".join(["the case fails:", *difference])]


def test_a_rule_that_forwards_unfilled_goes_on_after_a_failed_look_up() -> None:
    case = {"call": LEGACY, "lookup": {"status": 404}, "expect": {"body": LEGACY["body"]}}

    assert failures(case, on_lookup_failure="forward") == []


def test_check_names_the_case_that_fails_with_its_line_and_exits_1(tmp_path: Path) -> None:
    broken = SHIPPED.read_text().replace("allow: [active, connected]", "allow: [active]")
    (tmp_path / "config.yaml").write_text(broken)

    said = CliRunner().invoke(cli, ["check", "--config", str(tmp_path / "config.yaml")])

    line = 1 + broken[: broken.index("name: a legacy call")].count("\n")
    assert said.exit_code == 1
    assert said.output.startswith(
        f"config.yaml:{line}:9: rules[0].cases[0] (rule 'web-participant-state'): "
        "the case 'a legacy call gets the state and its type' fails:\n    body, expected: "
    )


def test_each_shipped_rule_has_cases_and_check_says_how_many() -> None:
    rules = config.load(SHIPPED, {}).rules
    said = CliRunner().invoke(cli, ["check", "--config", str(SHIPPED)])

    assert all(rule.cases for rule in rules)
    assert f"{sum(len(rule.cases) for rule in rules)} cases come out as expected" in said.output


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"call": LEGACY}, "rules[0].cases[0].expect (rule 'one'): required"),
        ({"call": LEGACY, "expect": {}}, "rules[0].cases[0].expect (rule 'one'): required"),
        ({"reason": "x"}, "rules[0].cases[0].call (rule 'one'): required"),
        ({"call": LEGACY, "raeson": "x", "reason": "x"}, "did you mean 'reason'?"),
        ({"call": LEGACY | {"body": 5}, "reason": "x"}, "call.body (rule 'one'): expected a text, or a"),
        ({"call": LEGACY | {"body": [float("nan")]}, "reason": "x"}, "call.body (rule 'one'): expected a"),
        ({"call": LEGACY | {"headers": {"Authorization": ["hush"]}}, "reason": "x"}, "headers.Authorization"),
    ],
)
def test_a_case_that_cannot_be_run_is_an_error(case: dict[str, Any], expected: str) -> None:
    with pytest.raises(config.ConfigError) as found:
        config.parse(document(case), {})

    assert expected in str(found.value)
    assert "hush" not in str(found.value)
