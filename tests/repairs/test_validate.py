"""The `validate` repair: what differs from a schema is recorded or refused, at a cost that is bounded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.cases import run as cases
from gateway.config import ConfigError, Settings, parse
from gateway.explain import explain
from gateway.repairs import build
from gateway.repairs.json_schema import MOST_TOLD, JsonSchema
from gateway.rules import Rules
from tests.support.gateways import BODY, FILLED, PARTICIPANT, TOKEN, settings
from tests.support.judging import refused_by_the_gateway
from tests.support.mocking import mocked
from tests.support.repairing import JSON, fill, found, patient

pytestmark = pytest.mark.usefixtures("way")

TEXTS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 5}}
SECRET = "hunter2-hunter2"


def rule(schema: Any, mode: str = "enforce", **keys: Any) -> dict[str, Any]:
    check = {"type": "validate", "schema": schema, **keys}
    repairs = [{"type": "encoding"}, {"type": "content_type"}, check, fill(max_age="5s")]
    return {"mode": mode, "repairs": repairs}


def violations(schema: Any, text: str) -> list[tuple[str, str]]:
    found = JsonSchema(schema).violations(text)
    return [(one.pointer, one.expected) for one in found]


async def test_a_body_that_fits_is_repaired_as_ever() -> None:
    schema = {"required": ["state"], "properties": {"attributes": TEXTS}}
    async with mocked(rule=rule(schema, on_violation="reject")) as (upstream, running, client):
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert reply.status_code == 202
        assert upstream.ledger.of("PATCH")[0].body == FILLED  # `after` sees what was filled
        assert "violations" not in reply.headers["gateway-rewrite"]
        assert "violations" not in running.lines("rewrite")[0]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("more", [{}, {"state": "connected"}])
async def test_one_that_does_not_is_refused_with_where_and_what_was_expected(
    when: str, more: dict[str, Any]
) -> None:
    check = rule(TEXTS, member="attributes", when=when, on_violation="reject")
    async with mocked(rule=check) as (upstream, running, client):
        body = {**more, "attributes": {"a/b~c": SECRET, "n": 17, "good": "x"}}
        reply = await client.patch(PARTICIPANT, json=body, headers=TOKEN)

        document = reply.json()
        assert refused_by_the_gateway(reply.headers, document, 400) == "http_request_error"
        expected = [
            {"pointer": "/attributes/a~1b~0c", "expected": "5 characters at most"},
            {"pointer": "/attributes/n", "expected": "type string"},
        ]
        assert sorted(document["violations"], key=lambda one: one["pointer"]) == expected
        assert document["code"] == "gateway.invalid-body"
        assert reply.headers["gateway-rewrite"].endswith("skipped=invalid-body; violations=2")
        assert upstream.ledger.of("PATCH") == []
        (line,) = running.lines("reject")
        assert sorted(line["violations"], key=lambda one: one["pointer"]) == expected
        assert SECRET not in reply.text + running.audit.read_text()
        assert "17" not in json.dumps(document["violations"])


@pytest.mark.parametrize("mode", ["enforce", "observe", "shadow", "on_reject"])
@pytest.mark.parametrize("what", ["record", "reject"])
async def test_recorded_it_goes_on_and_only_enforce_refuses(mode: str, what: str) -> None:
    if (mode, what) == ("enforce", "reject"):
        return
    async with mocked(rule=rule(TEXTS, mode, member="attributes", on_violation=what)) as staged:
        upstream, running, client = staged
        body = {"state": "connected", "attributes": {"a": 1}}
        reply = await client.patch(PARTICIPANT, json=body, headers=TOKEN)

        assert "violations=1" in reply.headers["gateway-rewrite"]
        assert len(upstream.ledger.of("PATCH")) == 1
        (line,) = [one for one in running.lines() if one["event"] in {"rewrite", "skip"}]
        assert line["violations"] == [{"pointer": "/attributes/a", "expected": "type string"}]


async def test_after_sees_that_nothing_was_filled() -> None:
    check = rule({"required": ["state"]}, on_violation="reject")
    check["repairs"][-1]["allow"] = ["parked"]
    async with mocked(rule=check) as (upstream, running, client):
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert reply.status_code == 400
        assert reply.json()["violations"] == [{"pointer": "", "expected": 'a member "state"'}]
        assert upstream.ledger.of("PATCH") == []
        assert [line["event"] for line in running.lines()] == ["reject", "outcome"]


def test_what_may_not_be_touched_or_is_no_object_is_not_checked() -> None:
    by = settings_of(rule({"required": ["x"]}, on_violation="reject"))

    assert not found(BODY, JSON, (b"content-digest", b"x"), by=by).violations
    assert found(b"[1]", JSON, by=by).reason == "not-an-object"
    assert found(b'{"state": "a"}', JSON, by=by).rejected


def settings_of(one: dict[str, Any]) -> Any:

    (chosen,) = settings("http://u", "-", rule=one).rules
    return build(chosen.repairs, 2**16, chosen.parameters)


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        (TEXTS, '{"a": 1, "a": "x"}', "JSON without a name given twice"),
        (TEXTS, '{"a": NaN}', "type string"),
        (TEXTS, '{"a": 1e999}', "type string"),
        (TEXTS, f'{{"a": {"9" * 5000}}}', "JSON without a name given twice"),
        (TEXTS, '{"a": "\\ud800"}', ""),
        ({"properties": {}, "additionalProperties": False}, '{"a~/b": 1}', "no such member"),
        ({"enum": ["a", 1]}, '"b"', 'one of "a", 1'),
        ({"anyOf": [{"type": "string"}]}, "1", "what the schema's anyOf asks for"),
        (False, "1", "nothing here"),
    ],
)
def test_what_is_expected_is_told(schema: Any, text: str, expected: str) -> None:
    told = violations(schema, text)

    assert told[0][1].startswith(expected) if expected else told == []


@patient
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner:
       st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))  # fmt: skip
def test_no_value_of_the_body_is_told(value: Any) -> None:
    """Values that differ from all that a schema could name."""
    text = json.dumps({"n": [value, {"v": SECRET}]})
    every = {"not": {}, "type": "null", "enum": [], "const": 0, "maxProperties": 0}

    told = JsonSchema(every).violations(text)

    assert told
    assert SECRET not in str(told)


def test_only_so_many_are_told() -> None:
    assert len(violations({"items": False}, json.dumps([1] * 900))) <= MOST_TOLD
    assert len(violations({"items": False}, json.dumps([1] * 9_000))) == 1


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(.*a){20}$", "^([a-zA-Z]+)*$"])
def test_a_pattern_takes_linear_time(pattern: str) -> None:
    schema = JsonSchema({"pattern": pattern})
    began = time.process_time()

    assert schema.violations(json.dumps("a" * 30_000 + "!"))

    assert time.process_time() - began < 1


@pytest.mark.parametrize("pattern", ["(?=a)", "(a)\\1", "(?:(?:a{1000}){1000}){1000}"])
def test_a_pattern_that_could_not_is_refused_when_it_is_read(pattern: str) -> None:
    with pytest.raises(ValueError, match="regex"):
        JsonSchema({"pattern": pattern})


def bomb(depth: int) -> dict[str, Any]:
    levels = {f"s{i}": {"allOf": [{"$ref": f"#/$defs/s{i + 1}"}] * 10} for i in range(depth)}
    return {"$defs": {**levels, f"s{depth}": {"type": "object"}}, "$ref": "#/$defs/s0"}


def test_a_schema_that_multiplies_itself_is_refused_and_a_large_body_is_not_checked() -> None:
    with pytest.raises(ValueError, match="more than 1000 schemas apply to one value"):
        JsonSchema(bomb(30))
    began = time.process_time()
    assert violations(bomb(2), json.dumps([1] * 5_000)) == [("", "a body that is small enough to be checked")]
    assert time.process_time() - began < 1


@pytest.mark.parametrize("reference", ["http://127.0.0.1:9/x", "file:///etc/hostname", "other.json", "//h/x"])
def test_no_other_file_or_host_is_asked(reference: str) -> None:
    with pytest.raises(ValueError, match=r"no JSON Schema.*(disabled|No base URI)"):
        JsonSchema({"properties": {"a": {"$ref": reference}}})


# --- where the schema stands

OPENAPI = """
openapi: 3.1.0
info: {title: t, version: "1"}
paths: {}
components:
  schemas:
    Body: {type: object, properties: {attributes: {$ref: "#/components/schemas/Texts"}}}
    Texts: {type: object, additionalProperties: {type: string}}
    Wrong: {type: objct}
"""


def configured(schema: Any, **case: Any) -> str:
    one = {
        "name": "one",
        "match": {"path": "/c/{id}"},
        "repairs": [{"type": "validate", "schema": schema, "on_violation": "reject"}],
        "cases": [case] if case else [],
    }
    return yaml.safe_dump({"upstream": {"url": "http://u"}, "rules": [one]})


@pytest.fixture
def openapi(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.yaml"
    path.write_text(OPENAPI)
    return path


def test_a_place_in_an_openapi_document_is_a_schema_and_so_is_a_file(openapi: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    for schema, body, fits in (
        (f"{openapi}#/components/schemas/Body", {"attributes": {"a": "b"}}, True),
        (f"{openapi}#/components/schemas/Body", {"attributes": {"a": 1}}, False),
        (f"{tmp_path}/texts.json", {"a": "b"}, True),
        (f"{tmp_path}/texts.json", {"a": "longer"}, False),
    ):
        call = {"call": {"path": "/c/1", "body": body}}
        case = call | {"reason": "conforming" if fits else "invalid-body"}
        settings = parse(configured(schema, **case), {})
        assert list(cases.failures(settings.rules, 1024, ())) == []


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("missing.json", "the schema cannot be read: missing.json: "),
        ({"type": "objct"}, "no JSON Schema, at /type"),
        ("#/components/schemas/Wrong", "no JSON Schema, at /components/schemas/Wrong/type"),
        ("#/components/schemas/None", "Pointer '/components/schemas/None' does not exist"),
        (7, "expected a file, or a JSON Schema"),
    ],
)
def test_what_is_wrong_with_a_schema_is_told_with_its_place(openapi: Path, schema: Any, message: str) -> None:
    where = f"{openapi}{schema}" if isinstance(schema, str) and schema.startswith("#") else schema

    with pytest.raises(ConfigError, match=r"rules\[0\]\.repairs\[0\]\.schema") as error:
        parse(configured(where), {})

    assert message in str(error.value)


def test_explain_says_what_differs() -> None:
    settings: Settings = parse(configured(TEXTS), {})
    told = explain(Rules(settings.rules, 1024), "PATCH", "/c/1", [JSON], b'{"a": 1}', None, 1024)

    assert [one.pointer for one in told.violations] == ["/a"]
    assert told.refused is not None
