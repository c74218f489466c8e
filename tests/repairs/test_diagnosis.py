"""The repairs together: what is diagnosed and rewritten, what is left alone, what is remembered (C1, C6)."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.http.headers import Fields, Header
from gateway.repairs import Unfilled, diagnose, rewrite
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft, Explicit, Finding, Missing, NotApplicable, Repaired
from gateway.repairs.repair import Repair, Stage
from tests.support.gateways import BODY, FILLED
from tests.support.json_texts import ObjectText, objects_with_state, objects_without_state
from tests.support.repairing import (
    ALL,
    JSON,
    MISTAKEN,
    built,
    called,
    filled,
    found,
    kind,
    patient,
    sent,
    untouched,
)

ENCODING = {"type": "encoding"}
CONTENT_TYPE = {"type": "content_type"}


@pytest.mark.parametrize(
    ("headers", "body", "made"),
    [
        ([], BODY, ["content_type", "fill"]),
        ([kind("text/plain")], BODY, ["content_type", "fill"]),
        ([kind("application/x-www-form-urlencoded")], BODY, ["content_type", "fill"]),
        ([JSON], BODY, ["fill"]),
        ([kind("application/json; charset=utf-16")], BODY.decode().encode("utf-16-le"),
         ["encoding", "content_type", "fill"]),
        ([JSON], codecs.BOM_UTF8 + BODY, ["encoding", "fill"]),
        ([JSON, (b"content-encoding", b"gzip")], gzip.compress(BODY, mtime=0), ["encoding", "fill"]),
        ([kind("text/plain;charset=UTF-16BE"), (b"content-encoding", b"deflate")],
         zlib.compress(BODY.decode().encode("utf-16-be")), ["encoding", "content_type", "fill"]),
    ],
)  # fmt: skip
def test_the_seed_call_leaves_repaired_whatever_it_came_as(
    headers: list[Header], body: bytes, made: list[str]
) -> None:
    call, changes = filled(found(body, *headers), state="connected")

    assert call.body == FILLED
    assert changes == made
    assert call.headers == [JSON]


tokens = st.sampled_from([b"x-a", b"x-b", b"cookie", b"accept", b"authorization", b"etag", b"x-content-type"])
values = st.binary(max_size=8)
pairs = st.lists(st.tuples(tokens, values), max_size=6)


@patient
@given(pairs, pairs, objects_without_state, st.sampled_from([None, "text/plain", "application/json"]))
def test_every_other_header_keeps_its_place_its_repeats_and_its_value(
    before: list[Header], after: list[Header], written: ObjectText, was: str | None
) -> None:
    body = written.text.encode()
    types = [kind(was)] if was else []
    length = (b"content-length", b"%d" % len(body))
    call = Call(b"PATCH", b"/p?q=%zz", Fields([*before, *types, *after, length]), body)

    left, _ = filled(diagnose(call, ALL), state="connected")

    ours = {b"content-type", b"content-length"}
    assert [pair for pair in left.headers if pair[0] not in ours] == [*before, *after]
    assert [pair for pair in left.headers if pair[0] in ours] == [JSON]
    if was:
        assert left.headers[len(before)] == JSON
    assert (left.method, left.target) == (b"PATCH", b"/p?q=%zz")


def test_what_was_not_found_is_not_filled_and_the_rest_is_repaired() -> None:
    call, made = filled(found(BODY))

    assert (call.body, made) == (BODY, ["content_type"])


def test_a_repair_is_recorded_by_name_and_never_with_a_value_of_the_body() -> None:
    diagnosis = found(
        gzip.compress(b'{"secret":"hush"}', mtime=0), kind("text/plain"), (b"content-encoding", b"gzip")
    )

    assert [change.record for change in diagnosis.changes] == [
        {"repair": "encoding", "before": "gzip, utf-8", "after": "utf-8"},
        {"repair": "content_type", "before": "text/plain", "after": "application/json"},
    ]
    assert diagnosis.needs == ["encoding", "content_type", "fill state"]


@pytest.mark.parametrize(("mine", "tag"), [([], b'"2"'), ([(b"if-match", b'"1"')], b'"1"')])
def test_a_guard_is_sent_unless_the_client_has_its_own(mine: list[Header], tag: bytes) -> None:
    value = {"state": ("connected", Change.of("fill", field="state"))}
    call, changes = rewrite(found(BODY, JSON, *mine), value, b'"2"')

    assert [value for name, value in call.headers if name == b"if-match"] == [tag]
    assert [change.repair for change in changes] == ["fill", *([] if mine else ["guard"])]


def test_a_guard_is_not_sent_with_a_call_that_is_not_filled() -> None:
    call, changes = rewrite(found(BODY), {}, b'"2"')

    assert b"if-match" not in dict(call.headers)
    assert [change.repair for change in changes] == ["content_type"]


@patient
@given(
    st.binary(max_size=40),
    st.sampled_from([None, *MISTAKEN, "text/plain; charset=utf-16", "text/plain; charset=shift_jis"]),
    st.sampled_from([None, b"gzip", b"deflate", b"br"]),
)
def test_any_bytes_are_repaired_or_left_exactly_as_they_came(
    body: bytes, was: str | None, coding: bytes | None
) -> None:
    headers = [
        *([kind(was)] if was is not None else []),
        *([(b"content-encoding", coding)] if coding else []),
    ]
    diagnosis = found(body, *headers)

    if diagnosis.not_applicable is not None:
        assert diagnosis.call == called(body, *headers)
    else:
        assert diagnosis.document is not None
        assert diagnosis.call.body == diagnosis.document.text.encode()


@patient
@given(objects_without_state | objects_with_state())
@example(ObjectText('{"state":', "null", "}"))
def test_a_call_that_was_repaired_once_needs_no_repair_again(written: ObjectText) -> None:
    once = sent(written.text.encode("utf-16"), kind("text/plain; charset=utf-16"))

    assert diagnose(once, ALL).reason in {"conforming", "duplicate-member", "explicit-null"}
    assert rewrite(diagnose(once, ALL), {})[0] is once


NO_OBJECTS = {
    b"": "empty-body",
    b" \n": "empty-body",
    codecs.BOM_UTF8: "empty-body",
    b"null": "null-body",
    b"[]": "not-an-object",
    b'[{"op":"add"}]': "not-an-object",
    b"[object Object]": "not-json",
    b"state=connected&a=%7B%7D": "not-json",
    b'{"a":NaN}': "not-json",
    b'{"a":1,}': "not-json",
    b'{"a":"\x00"}': "not-json",
    b'{"a":"\xe9"}': "not-utf-8",
    b'{"a":"\xed\xa0\x80"}': "not-utf-8",
    b'{"a":"\xc0\xaf"}': "not-utf-8",
    b"\xff\xfe": "empty-body",
    b"\xff": "not-utf-8",
    b"{" * 10**6: "too-many-values",
    b'{"a":' * 10**5 + b"1" + b"}" * 10**5: "too-many-values",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n{}\r\n--x--": "not-json",
    codecs.BOM_UTF8 * 2 + b"{}": "not-json",
    "[1]".encode("utf-16"): "not-an-object",
    "[12]".encode("utf-16-be"): "not-an-object",
    b'{"a":1} {"b":2}': "not-json",
    gzip.compress(b"{}", mtime=0): "not-utf-8",
}


@pytest.mark.parametrize("was", [None, "text/plain", "application/json", "application/octet-stream"])
@pytest.mark.parametrize("body", NO_OBJECTS, ids=lambda body: repr(body[:20]))
def test_what_is_no_json_object_is_left_with_the_reason(body: bytes, was: str | None) -> None:
    assert untouched(body, *([kind(was)] if was else [])) == NO_OBJECTS[body]


@pytest.mark.parametrize(
    ("body", "fields", "named"),
    [
        (b'{"a": 1}', {"a"}, True),
        (rb'{"\u0061": null}', {"b", "a"}, True),
        (b'{"a": 1}', {"b"}, False),
        (b'{"a": 1}', set(), False),
        (b'["a"]', {"a"}, False),
    ],
)
def test_it_is_known_whether_a_call_names_a_member(body: bytes, fields: set[str], named: bool) -> None:
    assert found(body).names(fields) is named


# --- what is remembered of the header fields


class Counting(Repair):
    """It finds the same in each body, and counts how often it is asked."""

    stage = Stage.FIELDS
    reads_body = False

    def __init__(self, finding: Callable[[Draft], Finding] = lambda draft: None) -> None:
        self.asked = 0
        self._finding = finding

    @classmethod
    def of(cls, settings: Any, limit: int, parameters: tuple[str, ...]) -> Counting:
        return cls()

    def diagnose(self, draft: Draft) -> Finding:
        self.asked += 1
        return self._finding(draft)


class ReadsTheBody(Counting):
    stage = Stage.MEMBERS
    reads_body = True


def labelled(draft: Draft) -> Finding:
    """The body's `label` becomes a header field."""
    assert draft.document is not None
    (label,) = draft.document.named("label")
    headers = Fields([*draft.call.headers, (b"x-label", label.encode())])
    call = Call(draft.call.method, draft.call.target, headers, draft.call.body)
    return Repaired(call, draft.document, Change.of("labelled", label=label))


def with_a_member(draft: Draft) -> Finding:
    assert draft.document is not None
    document = draft.document.with_member("new", "x")
    call = Call(draft.call.method, draft.call.target, draft.call.headers, document.text.encode())
    return Repaired(call, document, Change.of("new"))


def of_the_label_s_field(draft: Draft) -> Finding:
    label = dict(draft.call.headers).get(b"x-label", b"none").decode()
    assert draft.document is not None
    return Repaired(draft.call, draft.document, Change.of("seen", label=label))


def test_one_that_reads_the_body_is_asked_for_each_call_whatever_its_fields_are() -> None:
    fields = Fields([JSON])
    by = (*built(ENCODING, CONTENT_TYPE), ReadsTheBody(labelled))

    for label in ("a", "b", "a"):
        diagnosis = diagnose(Call(b"PATCH", b"/p", fields, b'{"label": "%b"}' % label.encode()), by)
        assert [change.record for change in diagnosis.changes] == [{"repair": "labelled", "label": label}]
        assert diagnosis.call.headers == [JSON, (b"x-label", label.encode())]


def test_one_that_reads_no_body_is_asked_once_for_all_calls_with_the_same_fields() -> None:
    one = Counting(of_the_label_s_field)
    fields = Fields([JSON])

    for body in (b"{}", b'{"a": 1}', b"{}"):
        assert len(diagnose(Call(b"PATCH", b"/p", fields, body), (one,)).changes) == 1
    assert one.asked == 1
    diagnose(Call(b"PATCH", b"/p", Fields([JSON]), b"{}"), (one,))
    assert one.asked == 2


def test_after_one_that_reads_the_body_the_fields_are_those_that_it_left() -> None:
    fields = Fields([JSON])
    by = (ReadsTheBody(labelled), Counting(of_the_label_s_field))

    for label in ("a", "b"):
        diagnosis = diagnose(Call(b"PATCH", b"/p", fields, b'{"label": "%b"}' % label.encode()), by)
        assert diagnosis.changes[1].record == {"repair": "seen", "label": label}


@pytest.mark.parametrize(
    "finding",
    [
        lambda draft: NotApplicable("not-today"),
        lambda draft: Unfilled("not-this-one"),
        lambda draft: Missing("state"),
        lambda draft: Explicit("state", "x"),
        with_a_member,
    ],
)
def test_what_is_found_beside_other_fields_is_found_in_each_call(finding: Callable[[Draft], Finding]) -> None:
    """Even by one that broke its promise, or finds by the fields that nothing is applicable."""
    fields = Fields([(b"content-type", b"text/plain")])
    for body in (b"{}", b'{"a": 1}', b'{"a": 1}'):
        call = Call(b"PATCH", b"/p", fields, body)
        remembered = diagnose(call, (*built(CONTENT_TYPE), Counting(finding)))
        assert remembered == diagnose(call, (*built(CONTENT_TYPE), ReadsTheBody(finding)))
        if remembered.document is not None:
            assert remembered.call.body == remembered.document.text.encode()


def test_fields_are_remembered_for_each_rule_s_repairs() -> None:
    fields = Fields([(b"content-type", b"text/plain")])
    call = Call(b"PATCH", b"/p", fields, BODY)
    one, other = built(CONTENT_TYPE), built({"type": "content_type", "value": "application/vnd.x+json"})

    for _ in range(2):
        assert diagnose(call, one).changes[0].record["after"] == "application/json"
        assert diagnose(call, other).changes[0].record["after"] == "application/vnd.x+json"
        assert diagnose(call, built(ENCODING)).changes == ()
