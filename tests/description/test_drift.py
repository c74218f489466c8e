"""Where the shipped rules no longer fit the API's description: changes that matter, and some that do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway import config
from gateway.cli import cli
from gateway.description.document import Description
from gateway.description.drift import drifts
from gateway.description.operations import Api
from tests.support.described import Described, openapi, openapi_3_1, swagger
from tests.support.gateways import SHIPPED
from tests.support.shipped import API

CALL = f"{API}/calls/{{conversationId}}"
PATCH = f"{CALL}/participants/{{participantId}}"


def schema(described: Described, name: str) -> dict[str, Any]:
    found: dict[str, Any] = described["components"]["schemas"][name]
    return found


def without_call(described: Described) -> None:
    del described["paths"][PATCH]


def without_get(described: Described) -> None:
    del described["paths"][CALL]["get"]


def deprecated(described: Described) -> None:
    # A new one: many paths have the same.
    item = described["paths"][PATCH]
    described["paths"][PATCH] = {"patch": item["patch"] | {"deprecated": True}}


def without_field(described: Described) -> None:
    del schema(described, "WebParticipantRequest")["properties"]["state"]


def without_value(described: Described) -> None:
    schema(described, "MediaParticipantRequest")["properties"]["state"]["enum"].remove("connected")


def never_shown(described: Described) -> None:
    schema(described, "MediaParticipant")["properties"]["state"] = {"type": "string", "enum": ["open"]}


def moved(described: Described) -> None:
    properties = schema(described, "MediaConversation")["properties"]
    properties["parties"] = properties.pop("participants")


def renamed(described: Described) -> None:
    properties = schema(described, "MediaParticipant")["properties"]
    properties["status"] = properties.pop("state")


def another_type(described: Described) -> None:
    body = described["paths"][PATCH]["patch"]["requestBody"]["content"]
    body["application/merge-patch+json"] = body.pop("application/json")


def demands_more(described: Described) -> None:
    schema(described, "MediaParticipantRequest")["required"].append("wrapup")


def new_operation(described: Described) -> None:
    described["paths"][f"{API}/videos/{{conversationId}}"] = described["paths"][CALL]
    described["paths"][f"{API}/videos/{{conversationId}}/participants/{{participantId}}"] = described[
        "paths"
    ][PATCH]


DRIFTS: dict[Callable[[Described], None], tuple[str, str]] = {
    without_call: (
        "rules[1].match.path",
        "there is no PATCH /api/v2/conversations/calls/{conversationId}/part",
    ),
    without_get: ("rules[1].repairs[2].from", f"there is no GET {CALL}"),
    deprecated: ("rules[1].match.path", f"PATCH {PATCH} is deprecated"),
    without_field: ("rules[0].repairs[2].field", "has no member state"),
    without_value: ("rules[1].repairs[2].allow", "knows no state 'connected'"),
    never_shown: ("rules[1].repairs[2].allow", f"the reply to GET {CALL} knows no state 'connected'"),
    moved: ("rules[1].repairs[2].select", f"the reply to GET {CALL} has no participants"),
    renamed: ("rules[1].repairs[2].select", f"the reply to GET {CALL} has no state"),
    another_type: ("rules[1].repairs[1].value", "takes application/merge-patch+json, not application/json"),
    demands_more: ("rules[1].repairs", "demands wrapup, which the rule does not fill"),
    new_operation: (
        "rules",
        f"PATCH {API}/videos/{{conversationId}}/participants/{{participantId}} demands state",
    ),
}


RULES = config.load(SHIPPED, {}).rules


def found(described: Described) -> list[tuple[str, str]]:
    return drifts(Api(Description(described)), RULES)


# Swagger 2.0 has the types of a body in another place, and here for all of them.
FORMS = [
    (change, form)
    for form in (dict, swagger)
    for change in DRIFTS
    if (change, form) != (another_type, swagger)
]


@pytest.mark.parametrize(("change", "form"), FORMS, ids=lambda one: one.__name__)
def test_a_change_that_rules_do_not_fit_any_more_is_found(
    change: Callable[[Described], None], form: Callable[[Described], Described]
) -> None:
    described = openapi()
    change(described)
    place, said = DRIFTS[change]

    told = found(form(described))

    assert any(one == place and said in message for one, message in told), told


def test_a_value_that_is_deprecated_is_found() -> None:
    described = openapi_3_1(openapi())
    for one in schema(described, "MediaParticipantRequest")["properties"]["state"]["oneOf"]:
        one["deprecated"] = one["const"] == "connected"

    assert any("state 'connected' of PATCH" in message for _, message in found(described))


def more_members(described: Described) -> None:
    schema(described, "MediaParticipantRequest")["properties"]["resumeTime"] = {"type": "string"}
    schema(described, "MediaParticipant")["properties"]["since"] = {"type": "string"}


def more_values(described: Described) -> None:
    schema(described, "MediaParticipantRequest")["properties"]["state"]["enum"].append("resting")


def more_types(described: Described) -> None:
    content = described["paths"][PATCH]["patch"]["requestBody"]["content"]
    content["application/merge-patch+json"] = content["application/json"]


def more_operations(described: Described) -> None:
    required = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    content = {"application/json": {"schema": required}}
    described["paths"]["/api/v2/groups"] = {"post": {"requestBody": {"content": content}, "responses": {}}}


def other_words(described: Described) -> None:
    described["info"]["title"] = "Other"
    described["paths"][PATCH]["patch"]["summary"] = "Changes a participant"
    described["paths"] = dict(reversed(described["paths"].items()))


def not_demanded(described: Described) -> None:
    del schema(described, "MediaParticipantRequest")["required"]


HARMLESS = (more_members, more_values, more_types, more_operations, other_words, not_demanded)


@pytest.mark.parametrize("change", [lambda described: None, *HARMLESS])
@pytest.mark.parametrize("form", [dict, openapi_3_1, swagger])
def test_a_change_that_the_rules_still_fit_is_none(
    change: Callable[[Described], None], form: Callable[[Described], Described]
) -> None:
    described = openapi()
    change(described)

    assert found(form(described)) == []


def checked(tmp_path: Path, described: Described, *more: str) -> Any:
    file = tmp_path / "api.json"
    file.write_text(json.dumps(described))
    return CliRunner().invoke(cli, ["check", "-c", str(SHIPPED), "--against", str(file), *more])


@pytest.mark.parametrize("change", DRIFTS, ids=lambda one: one.__name__)
def test_check_says_where_in_the_configuration_and_exits_with_one(
    change: Callable[[Described], None], tmp_path: Path
) -> None:
    described = openapi()
    change(described)
    place, said = DRIFTS[change]
    result = checked(tmp_path, described)

    assert (result.exit_code, result.stdout) == (1, "")
    told = [line for line in result.stderr.splitlines() if f": {place}" in line and said in line]
    assert told
    for line in told:
        number = int(line.removeprefix("config.yaml:").partition(":")[0])
        assert place.rpartition(".")[2] in SHIPPED.read_text().splitlines()[number - 1]


def test_check_exits_with_zero_where_nothing_has_drifted(tmp_path: Path) -> None:
    assert checked(tmp_path, openapi()).exit_code == 0


def test_check_tells_machines_too(tmp_path: Path) -> None:
    described = openapi()
    demands_more(described)
    as_json = checked(tmp_path, described, "--format", "json")
    as_github = checked(tmp_path, described, "--format", "github")

    assert (as_json.exit_code, as_github.exit_code) == (1, 1)
    problems = json.loads(as_json.stdout)["problems"]
    assert {(one["file"], type(one["line"])) for one in problems} == {("config.yaml", int)}
    lines = as_github.stdout.splitlines()
    assert len(lines) == len(problems)
    assert all(line.startswith("::error file=config.yaml,line=") for line in lines)
    assert json.loads(checked(tmp_path, openapi(), "--format", "json").stdout) == {"problems": []}
    assert checked(tmp_path, openapi(), "--format", "github").stdout == ""


def test_a_description_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["check", "-c", str(SHIPPED), "--against", str(tmp_path / "none")])

    assert result.exit_code == 1
    assert "none: cannot be read" in result.stderr
