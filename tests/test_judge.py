"""
What benchmarks/judge.py finds in a run over real sockets, and what it has to let pass: it times what the
upstream saw, and a gateway may have given a call up before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.judge import Asked, Run, Seen, Terms, overlaps, sources

NOON = 1_800_000_000.0
Line = tuple[float, Mapping[str, Any]]


def outcome(id: str, status: int) -> Line:
    return NOON, {"event": "outcome", "request_id": id, "status": status}


def rewrite(id: str, at: float) -> Line:
    body = {"after": {"sha256": id}}
    return NOON + at, {"event": "rewrite", "request_id": id, "body": body}


def write(begun: float, ended: float) -> tuple[Asked, Seen]:
    body = b'{"state": "active"}'
    asked = Asked("w", "explicit", "c", "p", body, NOON + begun, 202)
    return asked, Seen("w", "PATCH", "c", "alice", NOON + begun, body, NOON + ended, 202)


def look_up(begun: float) -> Seen:
    return Seen("f", "GET", "c", "alice", NOON + begun, b"", NOON + begun, 200, {"p": "connected"})


def fill(begun: float) -> tuple[Asked, Seen]:
    body = json.dumps({"state": "connected", "attributes": {}}).encode()
    asked = Asked("f", "fill", "c", "p", b'{"attributes": {}}', NOON + begun - 0.2, 202)
    return asked, Seen("f", "PATCH", "c", "alice", NOON + begun, body, NOON + begun + 0.01, 202)


def judged(
    written: tuple[Asked, Seen], filled: tuple[Asked, Seen], get: Seen, log: list[Line], left: float
) -> set[str]:
    terms = Terms(1.0, 2.0, frozenset({"active", "connected"}))
    asked, seen = [written[0], filled[0]], [written[1], filled[1], get]
    run = Run(terms, asked, seen, [*log, rewrite("f", left)], lambda body: "f")
    return {violation.promise for rule in (sources, overlaps) for violation in rule(run)}


def test_a_fill_from_before_a_write_and_one_that_differs_from_what_was_accepted_are_found() -> None:
    found = judged(write(1.0, 1.2), fill(1.5), look_up(0.9), [outcome("w", 202), outcome("f", 202)], 1.5)

    assert found == {"S3", "S5"}


def test_a_fill_beside_a_write_is_found() -> None:
    found = judged(write(1.0, 1.6), fill(1.5), look_up(1.4), [outcome("w", 202), outcome("f", 202)], 1.5)

    assert "S4" in found


@pytest.mark.parametrize("told", [502, 504])
def test_what_the_gateway_had_given_up_was_over_and_not_accepted_for_it(told: int) -> None:
    """The upstream answered, but later: nobody here was told, and the fills behind it may go on."""
    asked, seen = write(1.0, 1.6)

    assert not judged((asked, seen), fill(1.5), look_up(1.4), [outcome("w", told)], 1.5)
    assert not judged((replace(asked, status=told), seen), fill(1.5), look_up(1.4), [], 1.5)


def test_a_fill_that_left_before_a_write_may_arrive_after_it() -> None:
    """Its gateway had given it up, and so the write's turn came."""
    assert not judged(write(1.0, 1.2), fill(1.5), look_up(0.9), [outcome("f", 504), outcome("w", 202)], 0.95)


def test_what_a_gateway_that_was_killed_had_accepted_is_not_known() -> None:
    asked, seen = write(1.0, 1.2)

    assert judged((replace(asked, status=None), seen), fill(1.5), look_up(1.4), [], 1.5) == set()
