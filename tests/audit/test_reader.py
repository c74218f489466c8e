"""What the log's readers make of lines: calls, whatever else stands between them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.audit.mode_changes import ModeChanged
from gateway.audit.reader import KEPT, CallTally, LoggedCall, Reader, Wanted

CALLER = {"address": "10.0.0.1", "user_agent": "legacy/1", "credential": "c0ffee"}
CHANGES = [{"repair": "fill", "field": "state", "after": "connected", "source": "cache", "age_ms": 4}]


def line(event: str, id: str, time: str = "2026-11-26T12:00:00.000Z", **more: Any) -> bytes:
    said = {"event": event, "time": time, "id": id, **more}
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def decision(event: str, id: str, **more: Any) -> bytes:
    rest = {"rule": "r", "mode": "enforce", "method": "PATCH", "path": "/c/1/p/2", "client": CALLER}
    return line(event, id, **rest | more)


def rewrite(id: str, **more: Any) -> bytes:
    return decision("rewrite", id, **{"changes": CHANGES} | more)


def outcome(id: str, status: int | None = 202, **more: Any) -> bytes:
    return line("outcome", id, status=status, total_ms=5.0, **more)


def read(*lines: bytes, **wanted: Any) -> tuple[list[LoggedCall], Reader]:
    reader = Reader(Wanted(**wanted))
    calls = [call for one in lines for call in reader.read(one)]
    return calls + list(reader.rest()), reader


def ids(calls: list[LoggedCall]) -> list[str]:
    return [call.decision.id for call in calls]


def test_a_call_is_its_decision_and_its_outcome_however_they_are_mixed() -> None:
    calls, reader = read(
        rewrite("a"), decision("skip", "b", reason="conforming"), outcome("b", 200), outcome("a")
    )
    assert ids(calls) == ["b", "a"]
    assert [call.outcome.status for call in calls if call.outcome] == [200, 202]
    assert [call.reason for call in calls] == ["conforming", None]
    assert (reader.damaged, reader.foreign, reader.lost) == (0, 0, 0)


def test_damaged_half_and_foreign_lines_are_counted_and_cost_no_call() -> None:
    whole = [rewrite("a"), outcome("a"), rewrite("z")]
    bad = [
        rewrite("b")[:40] + b"\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"event":"rewrite","time":7}\n',
        b'{"event":"restarted","time":"now"}\n',
        b"INFO a line of somebody else's\n",
        b"42\n",
        b'{"event":"rewrite","time":"\xff","id":"u"}\n',
        b"\n",
    ]
    calls, reader = read(
        *(one for pair in zip(bad, whole * 3, strict=True) for one in pair), rewrite("h")[:-9]
    )
    assert {"a", "z"} <= set(ids(calls)) <= {"a", "z", "u"}
    assert reader.foreign == 4
    assert reader.damaged + len({"u"} & set(ids(calls))) == 5


@pytest.mark.parametrize("wanted", [{}, {"rule": "other"}, {"call": "other"}])
def test_half_a_line_is_counted_even_where_nobody_asked_for_it(wanted: dict[str, str]) -> None:
    _, reader = read(outcome("a"), outcome("b")[:-5], **wanted)
    assert reader.damaged == 1


def test_a_change_of_modes_is_no_call_and_no_stranger() -> None:
    changed = msgspec.json.encode(ModeChanged.of("r", "observe", "enforce", "SIGHUP"))
    calls, reader = read(changed, rewrite("a"), outcome("a"))
    assert ids(calls) == ["a"]
    assert (reader.damaged, reader.foreign) == (0, 0)


def test_what_a_gap_lost_is_counted() -> None:
    _, reader = read(b'{"event":"gap","time":"2026-11-26T12:00:00.000Z","lost":7    }\n')
    assert (reader.lost, reader.damaged) == (7, 0)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"rule": "r"}, ["a", "b", "d"]),
        ({"rule": "r2"}, ["c"]),
        ({"caller": "legacy/2"}, ["b"]),
        ({"caller": "c0ffee"}, ["a", "b", "c", "d"]),
        ({"path": "/c/9"}, ["c"]),
        ({"path": 'quo"ted'}, ["d"]),
        ({"result": "409"}, ["b"]),
        ({"result": "4xx"}, ["b"]),
        ({"result": "skip"}, ["c"]),
        ({"result": "conforming"}, ["c"]),
        ({"result": "client-gone"}, ["d"]),
        ({"since": "2026-11-26T12:30:00.000Z"}, ["c", "d"]),
        ({"call": "same"}, ["a", "b"]),
        ({"call": "c"}, ["c"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spaced", [False, True])
def test_filters_choose_calls_whole(wanted: dict[str, str], found: list[str], spaced: bool) -> None:
    later = "2026-11-26T13:00:00.000Z"
    lines = [
        rewrite("a", request_id="same"),
        outcome("a", request_id="same"),
        rewrite("b", request_id="same", client=CALLER | {"user_agent": "legacy/2"}),
        outcome("b", 409, request_id="same"),
        decision("skip", "c", time=later, rule="r2", path="/c/9", reason="conforming"),
        outcome("c", 200, time=later),
        rewrite("d", time=later, path='/quo"ted'),
        outcome("d", None, time=later, error="client-gone"),
    ]
    if spaced:  # as jq writes them
        lines = [json.dumps(json.loads(one), sort_keys=True).encode() + b"\n" for one in lines]
    calls, _ = read(*lines, **wanted)
    assert ids(calls) == found
    assert all(call.outcome is not None for call in calls)


def test_what_shadow_would_not_have_filled_is_counted_by_why_and_found_by_either_word() -> None:
    lines = [
        decision("skip", "a", reason="shadow", unfilled="state-not-allowed"), outcome("a", 400),
        decision("skip", "b", reason="shadow"), outcome("b", 400),
    ]  # fmt: skip
    calls, _ = read(*lines)

    assert [call.reason for call in calls] == ["state-not-allowed", "shadow"]
    assert ids(read(*lines, result="state-not-allowed")[0]) == ["a"]
    assert ids(read(*lines, result="shadow")[0]) == ["a", "b"]


def test_a_refill_is_told_as_sent_last_and_one_that_did_not_leave_is_not() -> None:
    second = [CHANGES[0] | {"after": "active"}]
    calls, _ = read(rewrite("a"), rewrite("a", attempt=2, changes=second), outcome("a"))
    assert calls[0].decision.changes[0]["after"] == "active"
    calls, _ = read(
        rewrite("a"), rewrite("a", attempt=2, changes=second), line("unsent", "a", attempt=2), outcome("a")
    )
    assert calls[0].decision.changes[0]["after"] == "connected"
    calls, _ = read(rewrite("a"), line("unsent", "a"), outcome("a", 502))
    assert (calls[0].repaired, calls[0].reason) == (False, "unsent")


@pytest.mark.no_cover
def test_calls_whose_outcomes_are_missing_are_told_and_do_not_pile_up() -> None:
    reader = Reader(Wanted())
    calls = [call for number in range(KEPT + 2) for call in reader.read(rewrite(f"{number}"))]
    assert ids(calls) == ["0", "1"]
    assert len(list(reader.rest())) == KEPT


def test_a_tally_counts_what_became_of_calls() -> None:
    tally = CallTally()
    lines = [
        rewrite("a"), outcome("a", conflict=True),
        decision("skip", "b", reason="x"), outcome("b", 400),
        decision("reject", "c", reason="y"), outcome("c", 503),
        rewrite("d", time="2026-11-26T14:00:00.000Z"), outcome("d", None, error="client-gone"),
        rewrite("e"),
    ]  # fmt: skip
    for call in read(*lines)[0]:
        tally.add(call)
    assert tally == CallTally(5, 3, 1, 1, 1, 2, 1, "2026-11-26T14:00:00.000Z")


def test_a_line_behind_half_of_another_workers_is_read() -> None:
    """Whatever a client wrote into the half that stands before it."""
    text = 'says {"event":"outcome","id":"b"}'
    half = rewrite("a", path=text)[:-4]

    calls, reader = read(half + rewrite("b", path=text), outcome("b"), outcome("a"))

    assert [(call.decision.id, call.decision.path, call.outcome is not None) for call in calls] == [
        ("b", text, True)
    ]
    assert (reader.damaged, reader.foreign) == (1, 0)
