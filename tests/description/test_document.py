"""Descriptions that are no good, and references that lead elsewhere."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli import cli
from gateway.description import document
from gateway.description.document import Description, NotADescription
from tests.support.described import openapi
from tests.support.gateways import SHIPPED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "neither JSON nor YAML"),
        ("a: [", "neither JSON nor YAML"),
        ("!!python/object:os.system {}", "neither JSON nor YAML"),
        ("[" * 100_000, "neither JSON nor YAML"),
        ('{"a":' * 100_000, "neither JSON nor YAML"),
        ("[]", "expected Swagger 2.0 or OpenAPI 3, with `paths`"),
        ("", "expected Swagger 2.0 or OpenAPI 3, with `paths`"),
        ("openapi: 3.0.0\npaths: []", "expected Swagger 2.0 or OpenAPI 3, with `paths`"),
        ("openapi: 4.0.0\npaths: {}", "expected Swagger 2.0 or OpenAPI 3.0 or 3.1, got 4.0.0"),
        ("swagger: 1.2\npaths: {}", "got 1.2"),
        ("paths: {}", "got None"),
    ],
)
def test_what_is_no_description_is_refused_with_what_was_expected(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "api"
    file.write_text(text)

    with pytest.raises(NotADescription, match=r"api: ") as refused:
        document.read(file)

    assert said in str(refused.value)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADescription, match="cannot be read"):
        document.read(tmp_path / "missing")
    with (tmp_path / "api").open("wb") as file:
        file.truncate(document.MOST_BYTES + 1)
    with pytest.raises(NotADescription, match="MiB at most"):
        document.read(tmp_path / "api")


def test_references_are_followed_within_the_file_and_nowhere_else() -> None:
    found = Description({"a/b": {"c%d": [{"$ref": "#/e"}]}, "e": {"f": 1}, "g": {"$ref": "#/g"}})

    assert found.resolved({"$ref": "#/a~1b/c%25d/0"}) == {"f": 1}
    for nowhere in ("#/missing", "#/e/f", "#/a~1b/c%25d/1", "#/g"):
        assert found.resolved({"$ref": nowhere}) == {}
    assert found.remote == set()
    for elsewhere in ("http://127.0.0.1:1/x", "other.yaml#/a", "file:///etc/passwd"):
        assert found.resolved({"$ref": elsewhere}) == {}
        assert elsewhere in found.remote


def large() -> dict[str, Any]:
    """10 MB: 1,200 operations more, each with schemas of its own."""
    described = openapi()
    body = described["components"]["schemas"]["MediaParticipantRequest"]
    for number in range(1_200):
        schema = copy.deepcopy(body)
        schema["properties"] |= {
            f"member{n}": {"type": "string", "description": "What it is for. " * 10} for n in range(20)
        }
        content = {"application/json": {"schema": schema}}
        described["paths"][f"/api/v2/other{number}/{{id}}"] = {
            "get": {"responses": {"200": {"description": "found", "content": content}}},
            "put": {"requestBody": {"content": copy.deepcopy(content)}, "responses": {}},
        }
    return described


@pytest.mark.soak
@pytest.mark.parametrize("written", [json.dumps, lambda large: yaml.dump(large, Dumper=yaml.CSafeDumper)])
def test_a_file_of_10_mb_takes_less_than_20_seconds(written: Callable[[Any], str], tmp_path: Path) -> None:
    file = tmp_path / "api"
    text = written(large())
    assert len(text) > 10_000_000
    file.write_text(text)
    against = ["check", "--config", str(SHIPPED), "--against", str(file)]
    for command in (["rules", "--from", str(file)], against):
        began = time.process_time()
        assert CliRunner().invoke(cli, command).exit_code == (1 if command is against else 0)

        assert time.process_time() - began < 20
