"""
The required tests of the JSON Schema Test Suite (schema_suite/, its `tests/draft2020-12` as one file) through
`validate`'s own class.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gateway.repairs.json_schema import JsonSchema

SUITE = Path(__file__).parent / "schema_suite" / "draft2020-12.json.gz"
ELSEWHERE = "http://localhost:1234/"  # where the suite has the documents that others refer to
# Its metaschema is a document elsewhere, which is not fetched: 2020-12 with all vocabularies applies.
UNTRUE = (
    "vocabulary: schema that uses custom metaschema with with no validation vocabulary: "
    "no validation: invalid number, but it still validates"
)


@cache
def groups() -> list[tuple[str, dict[str, Any]]]:
    suite = json.loads(gzip.decompress(SUITE.read_bytes()))
    return [(f"{file}: {group['description']}", group) for file in suite for group in suite[file]]


def compiled() -> Iterator[tuple[str, dict[str, Any], JsonSchema | ValueError]]:
    for place, group in groups():
        try:
            yield place, group, JsonSchema(group["schema"])
        except ValueError as error:
            yield place, group, error


def test_the_required_tests_hold_but_for_one_that_is_known() -> None:
    held, failed = 0, set()
    for place, group, schema in compiled():
        if isinstance(schema, ValueError):
            continue
        for one in group["tests"]:
            if (not schema.violations(json.dumps(one["data"]))) is one["valid"]:
                held += 1
            else:
                failed.add(f"{place}: {one['description']}")

    assert failed == {UNTRUE}
    assert held == 1212


def test_only_schemas_that_refer_to_documents_elsewhere_are_refused() -> None:
    refused = {place: schema for place, _, schema in compiled() if isinstance(schema, ValueError)}

    assert len(refused) == 20
    assert all(f"Resource '{ELSEWHERE}" in str(error) for error in refused.values())
