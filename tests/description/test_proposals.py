"""The rules that a description proposes: those of the shipped configuration, from the API's own shape."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway import config
from gateway.cli import cli
from gateway.description.document import Description
from gateway.description.operations import Api
from gateway.description.proposals import DECIDE, configuration, proposals
from gateway.repairs.fill import FillSettings
from gateway.rules import Rules
from tests.support.described import openapi, openapi_3_1, swagger
from tests.support.shipped import API, MEDIA, C, P, shipped

FORMS = {"openapi 3.0": openapi(), "openapi 3.1": openapi_3_1(openapi()), "swagger 2.0": swagger(openapi())}


def proposed(described: dict[str, Any], *also: str) -> config.Settings:
    api = Api(Description(described))
    return config.parse("\n".join(configuration(api, proposals(api, also), "api.json")), {})


@cache
def rules_from(form: str) -> Rules:
    settings = proposed(FORMS[form])
    return Rules(settings.rules, settings.limits.max_body)


CALLS = [
    f"PATCH {API}/c1{P}",
    f"PATCH {API}/web/instances/c1{P}",
    *(f"PATCH {API}/{media}/c1{P}{end}" for media in MEDIA for end in ("", "/attributes", C, "/replace")),
    f"PATCH {API}/calls/c1{P}/user/u1",
    f"PATCH {API}/c1{P}/attributes",
    "PATCH /api/v2/users/u1",
    f"PUT {API}/calls/c1{P}",
]
WRITES = [
    *CALLS,
    f"POST {API}/c1/disconnect",
    f"POST {API}/c1{P}/replace",
    f"DELETE {API}/c1",
    f"DELETE {API}/web/instances/c1",
    *(f"POST {API}/{media}" for media in MEDIA),
    *(f"POST {API}/{media}/c1{P}/replace" for media in MEDIA),
    f"POST {API}/calls/user/u1",
    f"PATCH {API}/callbacks",
    f"POST {API}/callbacks/bulk/disconnect",
    f"POST {API}/callbacks/bulk/update",
    f"POST {API}/participants/attributes/search",
    f"POST {API}/messaging/integrations/open",
    f"POST {API}/messages/inbound/open",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_the_proposed_rules_match_and_look_up_what_the_shipped_ones_do(form: str, call: str) -> None:
    method, path = call.split()
    mine, theirs = (one.match(method, path.encode()) for one in (rules_from(form), shipped()))

    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert mine.conversation == theirs.conversation
        assert {field: (one.target, one.subject) for field, one in mine.targets.items()} == {
            field: (one.target, one.subject) for field, one in theirs.targets.items()
        }
        # Differences are a person's decisions: what may be filled, and which communications count.
        assert mine.targets["state"].fill.allow >= theirs.targets["state"].fill.allow - {"active"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", WRITES)
def test_what_they_hold_for_writes_the_shipped_ones_do(form: str, call: str) -> None:
    method, path = call.split()
    found = [one.writes(path.encode(), method) for one in (rules_from(form), shipped())]

    told = [None if one is None else (one.value.conversation(one.parameters),) for one in found]
    assert told[0] == told[1]


@pytest.mark.parametrize("form", FORMS)
def test_the_queries_are_those_of_the_shipped_rules_but_for_what_is_over(form: str) -> None:
    found = {rule.match.path: rule.fills[0].select for rule in proposed(FORMS[form]).rules}
    ours = {
        fill.source: fill.select for rule in config.load(Path("config.yaml"), {}).rules for fill in rule.fills
    }
    generic = f"{API}/{{conversationId}}"

    assert found[f"{API}/web/instances/{{conversationId}}/participants/{{participantId}}"] in ours.values()
    assert found[f"{API}/chats/{{conversationId}}/participants/{{participantId}}"] in ours.values()
    over = "[?@.state != 'disconnected' && @.state != 'terminated']"
    assert found[f"{generic}/participants/{{participantId}}"] == ours[generic].replace(
        over, "[?@.state != '']"
    )


def test_what_a_person_must_decide_is_marked_and_nothing_is_repaired_before() -> None:
    api = Api(Description(openapi()))
    text = "\n".join(configuration(api, proposals(api), "api.json"))
    settings = config.parse(text, {})

    assert text.count(f"{DECIDE} keep those that do nothing") == len(settings.rules) == 9
    assert {rule.mode for rule in settings.rules} == {"observe"}
    assert settings.upstream.url == "https://api.example.test"


def test_a_member_that_is_not_demanded_is_proposed_where_it_is_asked_for() -> None:
    described = openapi()
    for name in ("MediaParticipantRequest", "WebParticipantRequest"):
        del described["components"]["schemas"][name]["required"]

    assert not proposed(described).rules
    api = Api(Description(described))
    text = "\n".join(configuration(api, proposals(api, ["state"]), "api.json"))
    # The communications' too: that filling one would hang up is a person's to know.
    assert {rule.match.path for rule in config.parse(text, {}).rules} >= {
        f"{API}/{media}/{{conversationId}}/participants/{{participantId}}" for media in MEDIA
    }
    assert f"{DECIDE} the description does not demand state" in text


def described_put(member: dict[str, Any], **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": ["version"], "properties": {"version": member}}
    content = {"application/json": {"schema": schema}}
    item = {
        "get": {"responses": {"200": {"content": content}}},
        "put": {"requestBody": {"content": content}, "responses": {}, **more},
    }
    return {"openapi": "3.0.0", "paths": {"/orders/{id}": item}}


@pytest.mark.parametrize(
    ("member", "allow"),
    [
        ({"type": "string"}, ("CHANGE-ME",)),
        ({"enum": ["a", "b"]}, ("a", "b")),
        ({"type": ["string", "null"], "const": "a"}, ("a",)),
        ({"anyOf": [{"const": "a"}, {"enum": ["b"]}, {"type": "null"}]}, ("a", "b")),
        ({"type": "integer"}, None),
        ({"type": "array", "items": {"type": "string"}}, None),
        ({"$ref": "https://elsewhere.example/schema.json#/Version"}, None),
        ({"$ref": "#/paths"}, None),
    ],
)
def test_a_member_of_the_same_resource_is_read_there(
    member: dict[str, Any], allow: tuple[str, ...] | None
) -> None:
    rules = proposed(described_put(member)).rules

    if allow is None:
        assert not rules
    else:
        (rule,) = rules
        (fill,) = [one for one in rule.repairs if isinstance(one, FillSettings)]
        assert (fill.source, fill.select, fill.allow) == ("/orders/{id}", "$.version", allow)
        assert rule.writes == ("/orders/{id}/**",)


def test_a_deprecated_operation_is_not_proposed() -> None:
    assert not proposed(described_put({"type": "string"}, deprecated=True)).rules


def test_a_schema_that_contains_itself_has_an_end() -> None:
    loop: dict[str, Any] = {"type": "object", "allOf": [{"$ref": "#/components/schemas/Loop"}]}
    described = openapi()
    described["components"]["schemas"]["Loop"] = loop
    described["components"]["schemas"]["Round"] = {"$ref": "#/components/schemas/Round"}
    for name in ("Loop", "Round"):
        body = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
        described["paths"][f"{API}/{name}/{{conversationId}}"] = {
            "put": {"requestBody": body, "responses": {}}
        }

    assert len(proposed(described).rules) == 9


def test_the_command_prints_a_configuration_that_can_be_checked(tmp_path: Path) -> None:
    for name, described in (("api.json", openapi()), ("api.yaml", swagger(openapi()))):
        file = tmp_path / name
        file.write_text(json.dumps(described) if name.endswith("json") else yaml.safe_dump(described))
        made = CliRunner().invoke(cli, ["rules", "--from", str(file)])
        (tmp_path / "config.yaml").write_text(made.stdout)
        checked = CliRunner().invoke(
            cli, ["check", "-c", str(tmp_path / "config.yaml"), "--against", str(file)]
        )

        assert (made.exit_code, checked.exit_code) == (0, 0), checked.output
        assert "9 rules" in checked.stdout


def test_where_there_is_nothing_to_propose_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "api.json"
    file.write_text(json.dumps({"openapi": "3.0.0", "paths": {"/a;b": {"get": {}}, "/c": {"patch": {}}}}))

    result = CliRunner().invoke(cli, ["rules", "--from", str(file)])

    assert result.exit_code == 1
    assert "no PATCH or PUT demands" in result.stderr
    assert "1 paths are such that no rule could name them" in result.stderr
