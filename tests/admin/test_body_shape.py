"""A body's shape has names and types, as many as an eye takes in, and no value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.admin.body_shape import DEPTH, LINES, NAME, shape

OBJECT = b"""{"state": "on", "n": 1.50, "yes": true, "no": null, "in": {"a": {}},
    "all": [[{"x": 1}, {"y": 2}], 2], "none": []}"""


def test_names_and_types_in_their_order_each_below_what_it_is_in() -> None:
    assert shape(OBJECT) == {
        "type": "object",
        "more": 0,
        "lines": [
            (0, "state", "string"), (0, "n", "number"), (0, "yes", "boolean"), (0, "no", "null"),
            (0, "in", "object"), (1, "a", "object"), (0, "all", "array of array and number"),
            (1, None, "array of object"), (2, None, "object"), (3, "x", "number"), (0, "none", "array"),
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no body"),
        (b"state=connected", "not JSON"),
        (b"{", "not JSON"),
        (b"[NaN]", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a": "\xe4"}', "not UTF-8"),
        (b"[" * 100_000, "too deep"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_has_no_shape_is_told_why(body: bytes, why: str) -> None:
    assert shape(body) == {"why": why}


def test_a_name_given_twice_is_seen_twice() -> None:
    assert shape(b'{"a": 1, "\\u0061": "x"}')["lines"] == [(0, "a", "number"), (0, "a", "string")]


@pytest.mark.parametrize("value", ['"secret"', "4711", "[4711]", '{"a": "secret"}'])
def test_no_value_is_told(value: str) -> None:
    told = json.dumps(shape(b'{"name": %b}' % value.encode()))
    assert "secret" not in told
    assert "4711" not in told


def test_it_is_bounded() -> None:
    deep: Any = 1
    for _ in range(3 * DEPTH):
        deep = {"in": deep}
    assert [line[0] for line in shape(json.dumps(deep).encode())["lines"]] == list(range(DEPTH))
    many = shape(json.dumps({str(number): 1 for number in range(LINES + 7)}).encode())
    assert (len(many["lines"]), many["more"]) == (LINES, 7)
    (line,) = shape(json.dumps({"n" * 5000: 1}).encode())["lines"]
    assert len(line[1]) == NAME


def test_a_name_that_no_text_can_hold_is_told() -> None:
    (line,) = shape(b'{"\\ud800": 1}')["lines"]
    assert line[1] == "?"
