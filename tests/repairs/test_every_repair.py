"""What holds for each repair that REPAIRS lists, whichever these are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Settings
from gateway.http.headers import Header
from gateway.repairs import REPAIRS, Repair, name_of, out_of_order
from gateway.repairs.declared import Declared
from gateway.repairs.findings import Draft, Explicit, NotApplicable, Repaired
from gateway.repairs.json_text import read
from tests.support.json_texts import ObjectText, objects_with_state, objects_without_state
from tests.support.repairing import JSON, MISTAKEN, OTHERS, built, called, found, kind, patient

EVERY = pytest.mark.parametrize("repair", REPAIRS, ids=name_of)
NAMES = [name_of(repair) for repair in REPAIRS]


def example(repair: type[Repair]) -> dict[str, Any]:
    """Its settings in config.yaml, the required keys as their examples have them."""
    keys = {
        field.alias or name: (field.examples or [f"{name} has no example"])[0]
        for name, field in repair.settings.model_fields.items()
        if field.is_required() and name != "type"
    }
    return {"type": name_of(repair), **keys}


def test_each_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)
    # It is a key of Gateway-Rewrite too (RFC 9651 section 3.1.2), with hyphens for underscores.
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in NAMES)


@EVERY
def test_the_examples_of_its_keys_are_accepted(repair: type[Repair]) -> None:
    (one,) = built(example(repair))

    assert type(one) is repair


@EVERY
def test_the_schema_has_its_keys(repair: type[Repair]) -> None:
    schema = Settings.model_json_schema(by_alias=True)
    rule = schema["$defs"]["RuleSettings"]["properties"]["repairs"]["items"]
    reference = rule["discriminator"]["mapping"][name_of(repair)]

    assert {"$ref": reference} in rule["oneOf"]
    assert schema["$defs"][reference.rpartition("/")[2]] == {
        key: value
        for key, value in repair.settings.model_json_schema(by_alias=True).items()
        if key != "$defs"
    }
    assert schema["$defs"][reference.rpartition("/")[2]]["additionalProperties"] is False


@EVERY
def test_check_says_what_it_does_in_its_own_words(repair: type[Repair]) -> None:
    settings = repair.settings.model_validate(example(repair))

    first, *more = settings.describe(("conversationId", "participantId"))

    assert first.startswith(name_of(repair))
    assert all(line.startswith("  ") for line in more)


@pytest.mark.parametrize("first", REPAIRS, ids=name_of)
@pytest.mark.parametrize("then", REPAIRS, ids=name_of)
def test_a_rule_has_them_in_the_order_of_their_stages(first: type[Repair], then: type[Repair]) -> None:
    chosen = [one.settings.model_validate(example(one)) for one in (first, then)]
    right = first.stage <= then.stage and REPAIRS.index(first) <= REPAIRS.index(then)
    if first is then:
        right = not first.once

    assert (out_of_order(chosen) is None) is right


def test_the_order_is_told() -> None:
    assert [repair.stage for repair in REPAIRS] == sorted(repair.stage for repair in REPAIRS)
    told = out_of_order([one.settings.model_validate(example(one)) for one in reversed(REPAIRS)])
    assert told is not None
    places = [told.index(name) for name in NAMES]
    assert places == sorted(places)
    assert told.endswith("in this order")


@EVERY
def test_alone_it_leaves_what_is_no_json_object(repair: type[Repair]) -> None:
    diagnosis = found(b"[1]", by=built(example(repair)))

    assert (diagnosis.not_applicable, diagnosis.nothing_to_repair) == ("not-an-object", True)


types = st.sampled_from([None, "application/json", *MISTAKEN, *OTHERS])
others = st.lists(
    st.tuples(st.sampled_from([b"x-a", b"accept", b"if-match", b"cookie"]), st.binary(max_size=4)), max_size=3
)


@EVERY
@patient
@given(objects_with_state() | objects_without_state, types, others)
def test_one_that_reads_no_body_finds_the_same_whatever_the_body_is(
    repair: type[Repair], written: ObjectText, was: str | None, more: list[Header]
) -> None:
    if repair.reads_body:
        return
    headers = [*more, *([kind(was)] if was is not None else [])]
    call = called(written.text.encode(), *headers)
    if not call.headers.derived(Declared.of).plain:
        return
    (one,) = built(example(repair))

    seen = one.diagnose(Draft.of(call))
    unseen = one.diagnose(Draft.of(called(b"{}", *headers)))

    assert type(seen) is type(unseen)
    if isinstance(seen, Repaired) and isinstance(unseen, Repaired):
        assert seen.change == unseen.change
        assert (seen.call.body, seen.document) == (call.body, read(written.text))
        assert without_length(seen.call.headers) == without_length(unseen.call.headers)
    else:
        assert seen == unseen
        assert seen is None or isinstance(seen, NotApplicable)


def without_length(headers: list[Header]) -> list[Header]:
    return [pair for pair in headers if pair[0] != b"content-length"]


@EVERY
@pytest.mark.parametrize("body", [b"{}", b'{"state": 1}', b'{"state": 1, "state": 2}'])
def test_what_a_call_gives_itself_is_seen_though_the_call_may_not_be_touched(
    repair: type[Repair], body: bytes
) -> None:
    (one,) = built(example(repair))
    finding = one.diagnose(Draft.of(called(body, JSON)))
    explicit = (finding,) if isinstance(finding, Explicit) else ()

    assert found(body, JSON, (b"content-digest", b"x"), by=(one,)).explicit == explicit
    assert found(body, JSON, by=(one,)).explicit == explicit
