"""
What it costs to check a body by JSON Schema: the libraries beside each other, and `validate` as it is.

    python -m benchmarks.schemas
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from gateway.repairs.json_schema import JsonSchema
from gateway.repairs.json_text import read

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "state": {"enum": ["connected", "disconnected", "alerting"]},
        "attributes": {
            "type": "object",
            "maxProperties": 50,
            "additionalProperties": {"type": "string", "maxLength": 256, "pattern": "^[^\\u0000]*$"},
        },
        "wrapup": {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}}},
    },
}
BODIES = {
    "1 attribute": {"state": "connected", "attributes": {"supervisorNote": "test"}},
    "20 attributes": {"attributes": {f"name{i}": "a value of some length" for i in range(20)}},
    "a violation": {"state": "gone", "attributes": {"a": 1}},
}
ROUNDS = 2_000


def libraries() -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Those that are installed: each as a function of an instance, which has all errors."""
    rs = importlib.import_module("jsonschema_rs").Draft202012Validator(SCHEMA)
    yield "jsonschema-rs", lambda instance: rs.is_valid(instance) or list(rs.iter_errors(instance))
    try:
        plain = importlib.import_module("jsonschema").Draft202012Validator(SCHEMA)
        yield "jsonschema", lambda instance: list(plain.iter_errors(instance))
    except ImportError:
        pass
    try:
        fast = importlib.import_module("fastjsonschema")
    except ImportError:
        return
    compiled = fast.compile(SCHEMA)

    def first(instance: Any) -> object:
        try:
            return compiled(instance)
        except fast.JsonSchemaValueException as error:
            return error

    yield "fastjsonschema (draft 7, first error)", first


def microseconds(call: Callable[[Any], object], given: Any) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(ROUNDS):
            call(given)
        best = min(best, time.perf_counter() - began)
    return best / ROUNDS * 1e6


def measure() -> None:
    print(f"{'µs a call':40}" + "".join(f"{name:>16}" for name in BODIES))
    for name, call in libraries():
        print(f"{name:40}" + "".join(f"{microseconds(call, one):16.2f}" for one in BODIES.values()))
    texts = [json.dumps(one) for one in BODIES.values()]
    own = JsonSchema(SCHEMA)
    print(f"{'validate: the text, parsed and checked':40}" + "".join(
        f"{microseconds(own.violations, text):16.2f}" for text in texts
    ))  # fmt: skip
    print(
        f"{'(what reads the body anyway)':40}" + "".join(f"{microseconds(read, one):16.2f}" for one in texts)
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    measure()
