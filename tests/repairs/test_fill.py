"""The `fill` repair: where a value is missing, which one may be filled, and what contradicts it (S1, S7)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.repairs import Fill, Unfilled
from tests.support.json_texts import STATE, ObjectText, objects_with_state, objects_without_state
from tests.support.repairing import JSON, built, fill, filled, found, kind, patient, sent, untouched


@patient
@given(objects_without_state)
def test_any_object_leaves_with_one_member_more_and_not_a_byte_else(written: ObjectText) -> None:
    comma = "," if written.inside.strip() else ""

    assert sent(written.text.encode()).body == (
        f'{written.head}"state":"connected"{comma}{written.inside}{written.tail}'.encode()
    )


@patient
@given(objects_with_state(), st.sampled_from([None, "text/plain", "application/json"]))
def test_a_state_that_was_given_is_never_altered(written: ObjectText, was: str | None) -> None:
    diagnosis = found(written.text.encode(), *([kind(was)] if was else []))

    assert not diagnosis.missing
    assert diagnosis.may_change_state
    assert filled(diagnosis, state="connected")[0].body == written.text.encode()


@pytest.mark.parametrize(
    ("given_value", "reason"),
    [
        *((one, "conforming") for one in ('"connected"', "false", '""', "0", "{}", "[]", '"disconnected"')),
        ("null", "explicit-null"),
    ],
)
@pytest.mark.parametrize("name", STATE)
def test_a_call_that_gives_the_state_is_left_as_it_is(name: str, given_value: str, reason: str) -> None:
    assert untouched(f"{{{name}: {given_value}}}".encode(), JSON) == reason


@pytest.mark.parametrize(
    "body",
    [b'{"state":"a","state":"b"}', rb'{"state":null,"st\u0061te":null}', rb'{"state":1,"a":0,"state":1}'],
)
def test_a_state_given_twice_is_not_filled_and_its_text_not_touched(body: bytes) -> None:
    assert untouched(body, JSON) == "duplicate-member"
    diagnosis = found(body, by=built(fill={"null_is_missing": True}))
    call, made = filled(diagnosis, state="connected")
    assert (call.body, made) == (body, ["content_type"])
    assert diagnosis.unfilled == "duplicate-member"


def test_null_is_filled_in_its_place_where_the_rule_says_so() -> None:
    body = rb' { "attributes":{"state":null}, "st\u0061te" : null }'
    diagnosis = found(body, JSON, by=built(fill={"null_is_missing": True}))

    call, made = filled(diagnosis, state="connected")

    assert call.body == rb' { "attributes":{"state":null}, "st\u0061te" : "connected" }'
    assert made == ["fill"]
    assert not diagnosis.may_change_state


@patient
@given(objects_with_state(st.just("null")))
def test_a_null_in_any_place_is_replaced_and_not_a_byte_else(written: ObjectText) -> None:
    diagnosis = found(written.text.encode(), JSON, by=built(fill={"null_is_missing": True}))

    assert filled(diagnosis, state="x")[0].body == f'{written.head}"x"{written.tail}'.encode()


def test_several_fields_are_filled_in_one_call() -> None:
    by = built(fill(), fill(field="note", allow=["a"]), fill(field="state2", null_is_missing=True))
    diagnosis = found(b'{"state2": null, "x":1e400}', JSON, by=by)

    call, made = filled(diagnosis, state="connected", note='a"\u00e9', state2="b")

    assert call.body == b'{"note":"a\\"\\u00e9","state":"connected","state2": "b", "x":1e400}'
    assert made == ["fill", "fill", "fill"]
    only = filled(diagnosis, state2="b")
    assert only[0].body == b'{"state2": "b", "x":1e400}'


def the_fill(**changes: Any) -> Fill:
    (one,) = [
        repair for repair in built(fill={"allow": ["connected"], **changes}) if isinstance(repair, Fill)
    ]
    return one


def participants(*states: Any) -> dict[str, Any]:
    return {"participants": [{"id": "p1", "state": state} for state in states]}


@pytest.mark.parametrize(
    ("document", "chosen"),
    [
        (participants("connected"), "connected"),
        (participants("connected", "connected"), "connected"),
        (participants("disconnected"), "disconnected"),
        (participants(), "state-not-found"),
        ({}, "state-not-found"),
        ({"participants": None}, "state-not-found"),
        ({"participants": "p1"}, "state-not-found"),
        ({"participants": [None, "p1", 1, [], {}]}, "state-not-found"),
        ({"participants": [{"id": "p2", "state": "connected"}]}, "state-not-found"),
        ({"participants": [{"id": "P1", "state": "connected"}]}, "state-not-found"),
        ({"participants": [{"id": "p1"}]}, "state-not-found"),
        ({"state": "connected"}, "state-not-found"),
        (participants("connected", "alerting"), "state-ambiguous"),
        (participants("connected", None), "state-ambiguous"),
        (participants(None), "state-not-allowed"),
        (participants(True), "state-not-allowed"),
        (participants(1), "state-not-allowed"),
        (participants({"state": "connected"}), "state-not-allowed"),
        (participants(["connected"]), "state-not-allowed"),
    ],
)
def test_one_value_is_chosen_or_the_reason_why_none(document: dict[str, Any], chosen: str) -> None:
    value = the_fill().chosen(document, {"conversationId": "c1", "participantId": "p1"})

    assert value == (chosen if chosen.endswith("connected") else Unfilled(chosen))


@pytest.mark.parametrize("value", ["disconnected", "terminated", "alerting", "Connected", "connected ", ""])
def test_only_what_is_in_allow_may_be_filled(value: str) -> None:
    assert the_fill().allowed("connected")
    assert not the_fill().allowed(value)


@pytest.mark.parametrize(
    ("reply", "conflict"),
    [
        ({"state": "alerting"}, True),
        ({"state": "connected"}, False),
        ({"state": 7}, False),
        ({}, False),
        ([], False),
        (None, False),
        ("alerting", False),
        (participants("alerting"), True),
        (participants("connected"), False),
        (participants(None), False),
        (participants("alerting", "connected"), False),
    ],
)
def test_a_reply_contradicts_only_by_naming_another_state(reply: Any, conflict: bool) -> None:
    data = {"conversationId": "c1", "participantId": "p1"}

    assert the_fill().contradicted(reply, "connected", data) is conflict
    if conflict:
        for separators in ((",", ":"), (", ", ": "), (" , ", " : ")):
            assert not the_fill().agrees(json.dumps(reply, separators=separators).encode(), "connected")


states = st.sampled_from(["connected", "alerting", 'connected"', "state", "", None, 7])
said = st.dictionaries(st.sampled_from(["state", "id", "x", 'state"']), states | st.just("p1"), max_size=3)


@given(
    said | st.builds(lambda people, rest: {**rest, "participants": people}, st.lists(said, max_size=3), said),
    st.sampled_from([(",", ":"), (", ", ": "), (",", " :")]),
    st.booleans(),
)
def test_a_glance_at_a_reply_never_overlooks_a_contradiction(
    reply: dict[str, Any], separators: tuple[str, str], escaped: bool
) -> None:
    text = json.dumps(reply, separators=separators)
    body = (text.replace("sta", "st\\u0061") if escaped else text).encode()
    data = {"conversationId": "c1", "participantId": "p1"}

    fill = the_fill()
    assert not (fill.agrees(body, "connected") and fill.contradicted(json.loads(body), "connected", data))


def test_a_glance_is_not_enough_where_another_member_is_chosen() -> None:
    other = the_fill(select="$.participants[?@.id == _.participantId].status")
    body = b'{"participants": [{"id": "p1", "status": "alerting"}]}'

    assert not other.agrees(body, "connected")
    for query in ("$.a[?@.b == _.participantId].x | $.c[?@.id == _.participantId].state", "$.state"):
        assert the_fill(select=query).named is None
    assert other.contradicted(json.loads(body), "connected", {"conversationId": "c1", "participantId": "p1"})
