"""The repairs, one by one and together: what is diagnosed, rewritten, and left alone (C1, C6)."""

from __future__ import annotations

import codecs
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import repairs
from gateway.errors import BodyTooLarge
from gateway.http.headers import Fields, Header
from gateway.paths import parse
from gateway.repairs import Diagnosis, Fill, diagnose, rewrite
from gateway.repairs.call import Call, Change
from gateway.repairs.fill import Fill as FillRepair
from gateway.repairs.findings import Unfilled
from tests.support.gateways import BODY, FILLED
from tests.support.gateways import settings as configured
from tests.support.json_texts import STATE, ObjectText, objects_with_state, objects_without_state

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LIMIT = 2**16
JSON = (b"content-type", b"application/json")
ENCODING = {"type": "encoding"}
CONTENT_TYPE = {"type": "content_type"}
TEXT = '{"attributes": {"note": "Gr\u00fc\u00dfe"}}'
JAPANESE = (
    '{"attributes": {"note": "\u6771\u4eac\u30bd\u8868"}}'  # with a backslash as second byte in Shift_JIS
)


def built(*chosen: Mapping[str, Any], fill: Mapping[str, Any] | None = None) -> tuple[repairs.Repair, ...]:
    """The seed rule's repairs; or those chosen."""
    rule = {"repairs": [dict(one) for one in chosen]} if chosen else None
    (one,) = configured("http://upstream", "-", fill=fill, rule=rule).rules
    return repairs.build(one.repairs, LIMIT, parse(one.match.path).names)


ALL = built()


def fill(**changes: Any) -> dict[str, Any]:
    return {
        "type": "fill",
        "field": "state",
        "from": "/api/v2/conversations/web/instances/{conversationId}",
        "select": "$.participants[?@.id == _.participantId].state",
        "allow": ["connected"],
        **changes,
    }


def called(body: bytes, *headers: Header) -> Call:
    return Call(b"PATCH", b"/p", Fields([*headers, (b"content-length", b"%d" % len(body))]), body)


def found(body: bytes, *headers: Header, by: tuple[repairs.Repair, ...] = ALL) -> Diagnosis:
    return diagnose(called(body, *headers), by)


def filled(diagnosis: Diagnosis, **values: str) -> tuple[Call, list[str]]:
    """The call with the values filled, and the names of the repairs made."""
    chosen = {name: (value, Change.of("fill", field=name, after=value)) for name, value in values.items()}
    call, changes = rewrite(diagnosis, chosen)
    return call, [change.repair for change in changes]


def sent(body: bytes, *headers: Header) -> Call:
    """What leaves when the look-up finds `connected`."""
    diagnosis = found(body, *headers)
    return filled(diagnosis, **{missing.field: "connected" for missing in diagnosis.missing})[0]


def untouched(body: bytes, *headers: Header) -> str:
    """The reason why nothing at all was done, which is asserted."""
    call = called(body, *headers)
    diagnosis = diagnose(call, ALL)
    assert diagnosis.nothing_to_repair
    assert diagnosis.call is call
    assert rewrite(diagnosis, {}) == (call, ())
    return diagnosis.reason


def kind(value: str) -> Header:
    return b"content-type", value.encode()


# --- the seed, and all repairs together


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
    "given_value", ['"connected"', "false", '""', "0", "null", "{}", "[]", '"disconnected"']
)
@pytest.mark.parametrize("name", STATE)
def test_a_call_that_gives_the_state_conforms(name: str, given_value: str) -> None:
    assert untouched(f"{{{name}: {given_value}}}".encode(), JSON) == "conforming"


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


# --- C6: what is never touched


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((b"cache-control", b"no-transform"), "no-transform"),
        ((b"cache-control", b"max-age=0, No-Transform"), "no-transform"),
        ((b"content-digest", b"sha-256=:AAAA:"), "signed-body"),
        ((b"repr-digest", b"sha-256=:AAAA:"), "signed-body"),
        ((b"digest", b"SHA-256=x"), "signed-body"),
        ((b"content-md5", b"x"), "signed-body"),
        ((b"signature", b"sig=:AAAA:"), "signed-body"),
        ((b"signature-input", b'sig=("@method")'), "signed-body"),
    ],
)
@pytest.mark.parametrize("body", [BODY, gzip.compress(BODY, mtime=0), BODY.decode().encode("utf-16"), b"[]"])
def test_a_signed_body_or_one_not_to_be_transformed_is_left_as_it_is(
    header: Header, reason: str, body: bytes
) -> None:
    assert untouched(body, kind("text/plain"), (b"cache-control", b"no-store"), header) == reason


@pytest.mark.parametrize(
    "header",
    [(b"cache-control", b"no-cache, no-store"), (b"want-content-digest", b"sha-256=1"), (b"etag", b"x")],
)
def test_other_headers_keep_no_body_from_being_repaired(header: Header) -> None:
    assert sent(BODY, header).body == FILLED


NO_OBJECTS = {
    b"": "empty-body",
    b" \n": "empty-body",
    codecs.BOM_UTF8: "empty-body",
    b"null": "not-an-object",
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
    b"{" * 10**6: "not-json",
    b'{"a":' * 10**5 + b"1" + b"}" * 10**5: "too-deep",
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


# --- content_type

MISTAKEN = [
    "",
    "text/plain",
    "TEXT/Plain",
    "text/plain;charset=UTF-8",
    "text/plain; charset=utf-8",
    'text/plain; charset="utf-8"',
    "text/html",
    "text/xml",
    "text/json",
    "text/csv; header=present",
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=UTF-8",
    "application/x-www-form-urlencoded;charset=utf-8;",
    "application/octet-stream",
    "Application/Octet-Stream",
    "application/json;charset=utf-8",
    "application/json; charset=utf-8",
    "application/json; charset=nonsense",
    "application/json; charset=us-ascii",
    "application/json;",
    "application/json; odata=verbose",
    "application/json ; version=2",
]
OTHERS = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/vnd.api+json",
    "application/problem+json; charset=utf-8",
    "application/ld+json",
    "multipart/form-data; boundary=x",
    "multipart/mixed; boundary=x",
    "application/xml",
    "application/soap+xml",
    "application/x-json",
    "application/x-ndjson",
    "application/jsonp",
    "application/javascript",
    "application/msgpack",
    "application/*",
    "*/*",
    "image/png",
    "json",
    "text",
    "application",
    "application/json, application/json",
    "application/json,text/plain",
    "null",
    "undefined",
]


@pytest.mark.parametrize("was", MISTAKEN)
def test_a_json_object_that_is_called_something_else_is_called_json(was: str) -> None:
    diagnosis = found(BODY, kind(was))

    (change,) = diagnosis.changes
    assert change.record == {"repair": "content_type", "before": was, "after": "application/json"}
    assert [pair for pair in diagnosis.call.headers if pair[0] == b"content-type"] == [JSON]


@pytest.mark.parametrize("was", OTHERS)
def test_a_type_that_says_something_of_its_own_is_left_with_everything_else(was: str) -> None:
    assert untouched(BODY, kind(was)) == "media-type"


@pytest.mark.parametrize("was", [None, "text/plain", "application/json", "application/vnd.x+json; a=b"])
def test_a_rule_may_want_another_json_type_and_what_has_it_already_is_filled_too(was: str | None) -> None:
    by = built({"type": "content_type", "value": "application/vnd.x+json"}, fill())
    call, made = filled(found(BODY, *([kind(was)] if was else []), by=by), state="connected")

    assert (call.body, made) == (FILLED, ["content_type", "fill"])
    assert dict(call.headers)[b"content-type"] == b"application/vnd.x+json"
    again = found(BODY, kind("application/vnd.x+json"), by=by)
    assert filled(again, state="connected")[1] == ["fill"]
    assert found(BODY, kind("application/vnd.y+json"), by=by).not_applicable == "media-type"


@pytest.mark.parametrize("repair", [CONTENT_TYPE, fill(), ENCODING])
def test_each_repair_alone_leaves_what_is_no_json_object(repair: dict[str, Any]) -> None:
    diagnosis = found(b"[1]", by=built(repair))

    assert (diagnosis.not_applicable, diagnosis.nothing_to_repair) == ("not-an-object", True)


@pytest.mark.parametrize("was", ["application/json", "Application/JSON"])
def test_what_is_called_json_already_is_not_changed(was: str) -> None:
    assert not found(BODY, kind(was)).changes


def test_a_content_type_that_comes_twice_is_left_for_the_upstream_to_judge() -> None:
    assert untouched(BODY, JSON, JSON) == "media-type"
    assert untouched(BODY, kind("text/plain"), JSON) == "media-type"


def test_a_missing_type_is_added_and_recorded_as_missing() -> None:
    (change,) = found(BODY).changes

    assert change.record == {"repair": "content_type", "before": None, "after": "application/json"}


@pytest.mark.parametrize("was", [None, "text/plain", *OTHERS, *MISTAKEN])
def test_real_form_data_keeps_its_type_whatever_that_is(was: str | None) -> None:
    assert untouched(b"state=connected", *([kind(was)] if was is not None else [])) in {
        "not-json",
        "media-type",
    }


# --- encoding

CODECS = {
    "utf-8": ("utf-8", TEXT),
    "UTF8": ("utf-8", TEXT),
    "utf-16": ("utf-16-le", TEXT),
    "utf-16le": ("utf-16-le", TEXT),
    "UTF-16BE": ("utf-16-be", TEXT),
    "utf-32": ("utf-32-le", TEXT),
    "utf-32be": ("utf-32-be", TEXT),
    "ISO-8859-1": ("latin-1", TEXT),
    "latin1": ("latin-1", TEXT),
    "iso-8859-15": ("iso-8859-15", TEXT.replace("\u00fc", "\u20ac")),
    "windows-1252": ("cp1252", TEXT.replace("\u00fc", "\u20ac\u201c")),
    "cp1252": ("cp1252", TEXT),
    "windows-1251": ("cp1251", TEXT.replace("Gr\u00fc\u00dfe", "\u041f\u0440\u0438")),
    "koi8-r": ("koi8-r", TEXT.replace("Gr\u00fc\u00dfe", "\u041f\u0440\u0438")),
    "koi8-u": ("koi8-u", TEXT.replace("Gr\u00fc\u00dfe", "\u0457")),
    "ibm850": ("cp850", TEXT),
    "windows-874": ("cp874", TEXT.replace("Gr\u00fc\u00dfe", "\u0e01")),
    "shift_jis": ("shift_jis", JAPANESE),
    "Shift-JIS": ("shift_jis", JAPANESE),
    "windows-31j": ("cp932", JAPANESE),
    "cp932": ("cp932", JAPANESE.replace("\u6771", "\u2460")),
    "euc-jp": ("euc_jp", JAPANESE),
    "iso-2022-jp": ("iso2022_jp", JAPANESE),
    "euc-kr": ("euc_kr", TEXT.replace("Gr\u00fc\u00dfe", "\ud55c")),
    "gb2312": ("gb2312", JAPANESE.replace("\u6771\u4eac\u30bd\u8868", "\u4e2d")),
    "gbk": ("gbk", JAPANESE),
    "gb18030": ("gb18030", JAPANESE.replace("\u6771", "\U0001f600")),
    "big5": ("big5", JAPANESE.replace("\u30bd", "")),
    "us-ascii": ("ascii", BODY.decode()),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("quoted", ["{}", '"{}"'])
def test_a_declared_charset_becomes_utf_8(name: str, quoted: str) -> None:
    codec, text = CODECS[name]
    body = text.encode(codec)

    call = sent(body, kind(f"application/json; charset={quoted.format(name)}"))

    assert call.body == text.replace("{", '{"state":"connected",', 1).encode()
    assert [pair for pair in call.headers if pair[0] == b"content-type"] == [JSON]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_charset_under_a_compression_becomes_utf_8_too(name: str, coding: str) -> None:
    codec, text = CODECS[name]
    body = (gzip.compress if coding == "gzip" else zlib.compress)(text.encode(codec))

    diagnosis = found(
        body, kind(f"text/plain; charset={name}"), (b"content-encoding", coding.encode()), by=built(ENCODING)
    )

    assert diagnosis.call.body == text.encode()
    (change,) = diagnosis.changes
    assert change.record["before"].startswith(f"{coding}, ")
    assert dict(diagnosis.call.headers) == {
        b"content-type": b"text/plain; charset=utf-8"
        if not codec.startswith(("utf-8", "ascii")) or codec == "ascii"
        else f"text/plain; charset={name}".encode(),
        b"content-length": b"%d" % len(body),
    }


UNICODE = ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
MARKS = dict(
    zip(
        UNICODE,
        [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE],
        strict=True,
    )
)


@patient
@given(
    objects_without_state,
    st.sampled_from(UNICODE),
    st.booleans(),
    st.sampled_from(
        [None, "utf-8", "utf-16", "utf-16le", "utf-16be", "utf-32", "latin-1", "shift_jis", "nonsense"]
    ),
)
def test_what_a_mark_says_counts_before_what_is_declared(
    written: ObjectText, codec: str, zipped: bool, declared: str | None
) -> None:
    body = MARKS[codec] + written.text.encode(codec)
    headers = [kind(f"application/json; charset={declared}" if declared else "application/json")]
    if zipped:
        body, headers = gzip.compress(body, mtime=0), [*headers, (b"content-encoding", b"gzip")]

    diagnosis = found(body, *headers)

    assert diagnosis.call.body == written.text.encode()
    assert diagnosis.changes[0].record == {
        "repair": "encoding",
        "before": ("gzip, " if zipped else "") + f"{codec}-bom",
        "after": "utf-8",
    }


@patient
@given(objects_without_state, st.sampled_from(UNICODE), st.sampled_from([None, "utf-8", "nonsense"]))
def test_without_a_mark_and_a_declaration_the_null_bytes_tell(
    written: ObjectText, codec: str, declared: str | None
) -> None:
    """RFC 4627 section 3: a JSON text begins with two characters of ASCII."""
    body = written.text.encode(codec)
    headers = [kind(f"application/json; charset={declared}")] if declared else []

    assert found(body, *headers).call.body == written.text.encode()


@patient
@given(objects_without_state, st.sampled_from(["utf-16-be", "utf-32-le", "utf-32-be", "utf-8"]))
def test_a_wrongly_declared_utf_16_is_read_for_what_it_is(written: ObjectText, codec: str) -> None:
    diagnosis = found(written.text.encode(codec), kind("application/json; charset=utf-16"))

    assert diagnosis.call.body == written.text.encode()


@patient
@given(objects_without_state, st.sampled_from(["utf-8", "ascii", "us-ascii", "nonsense", "utf-7", "rot13"]))
def test_plain_utf_8_is_not_recoded_for_a_declaration_that_cannot_be_meant(
    written: ObjectText, declared: str
) -> None:
    diagnosis = found(written.text.encode(), kind(f"application/json; charset={declared}"))

    assert [change.repair for change in diagnosis.changes] == ["content_type"]
    assert diagnosis.call.body == written.text.encode()


def test_a_declared_charset_is_believed_where_the_bytes_would_be_utf_8_too() -> None:
    """RFC 9110 section 8.3.2: the sender says what it is."""
    body = '{"a":"\u00e9"}'.encode()

    assert found(body, kind("text/plain; charset=latin-1")).call.body == '{"a":"\u00c3\u00a9"}'.encode()


NO_CHARSETS = [
    "rot13", "rot_13", "zip", "zlib", "bz2", "hex", "base64", "base64_codec", "uu", "quopri",
    "unicode_escape", "unicode-escape", "raw_unicode_escape", "idna", "punycode", "undefined", "utf-7",
    "utf-8-sig", "mbcs", "oem", "palmos", "charmap", "shift_jisx0213", "shift_jis_2004", "cp864", "cp875",
    "cp037", "hz", "nonsense", "", "..", "../x", "encodings.rot_13", "utf-8\0", "\xff", "iso8859-12",
    "iso8859-999", "x" * 30000,
]  # fmt: skip
PLAIN = '{"a":true}'
ENCODED = [
    codecs.encode(PLAIN, "rot13").encode(),
    codecs.encode(PLAIN.encode(), "hex"),
    codecs.encode(PLAIN.encode(), "base64"),
    codecs.encode(PLAIN.encode(), "zip"),
    codecs.encode(PLAIN.encode(), "bz2"),
    PLAIN.encode("cp037"),
    b"+AHsAIgBhACIAOgAxAH0-",
    rb"\x7b\x22a\x22:1}",
]


@pytest.mark.parametrize("name", NO_CHARSETS, ids=lambda name: repr(name[:20]))
def test_what_is_no_charset_is_never_used_as_one(name: str) -> None:
    declared = (b"content-type", b"text/plain; charset=" + name.encode("latin-1"))
    escaped = rb'{"a":"\u0041\\n~%"}'

    assert sent(BODY, declared).body == FILLED
    assert found(escaped, declared).call.body == escaped
    for body in ENCODED:
        assert untouched(body, declared) in {"not-json", "not-utf-8"}


def test_a_name_that_is_no_charset_is_not_even_looked_up() -> None:
    """Python keeps each name that it is asked for, and imports a module by it: both forever."""
    asked: list[str] = []

    def search(name: str) -> None:
        asked.append(name)

    codecs.register(search)
    try:
        for n in range(100):
            found(BODY, kind(f"text/plain; charset=made-up-{n}"))
    finally:
        codecs.unregister(search)
    assert asked == []


def test_every_charset_that_is_known_can_be_read_and_has_ascii_where_json_needs_it() -> None:
    ascii_text = "".join(map(chr, range(0x20, 0x7F)))
    for name in CODECS:
        codec = CODECS[name][0]
        encoded = ascii_text.encode(codec)
        assert encoded.decode(codec) == ascii_text
        if not codec.startswith("utf-"):
            assert encoded == ascii_text.encode()


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("application/json; charset=utf-16", "application/json; charset=utf-8"),
        (
            "application/json; Charset = 'x'; charset=utf-16",
            "application/json; Charset = utf-8; charset=utf-8",
        ),
        ('text/plain; a=b;charset="utf-16";c=d', "text/plain; a=b;charset=utf-8;c=d"),
        ("text/plain", "text/plain"),
        (None, None),
    ],
)
def test_without_the_other_repair_only_the_charset_of_the_type_follows(
    was: str | None, becomes: str | None
) -> None:
    diagnosis = found(
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), *([kind(was)] if was else []), by=built(ENCODING)
    )

    assert diagnosis.call.body == TEXT.encode()
    assert dict(diagnosis.call.headers).get(b"content-type") == (becomes.encode() if becomes else None)


# --- compression


def raw_deflate(plain: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(plain) + stream.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(BODY, mtime=0)),
        (b"GZip", gzip.compress(BODY, mtime=0)),
        (b"x-gzip", gzip.compress(BODY, mtime=0)),
        (b"identity, gzip", gzip.compress(BODY, mtime=0)),
        (b" gzip ,", gzip.compress(BODY, mtime=0)),
        (b"deflate", zlib.compress(BODY)),
        (b"deflate", raw_deflate(BODY)),
        (b"gzip", gzip.compress(codecs.BOM_UTF8 + BODY, mtime=0)),
    ],
)
def test_a_compressed_body_leaves_plain_with_its_length_and_without_its_coding(
    coding: bytes, body: bytes
) -> None:
    call = sent(body, JSON, (b"content-encoding", coding))

    assert call.body == FILLED
    assert call.headers == [JSON]


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw": raw_deflate,
}
ZIPPED = gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize(
    ("coding", "body", "reason"),
    [
        (b"gzip", BODY, "content-encoding-damaged"),
        (b"gzip", b"", "content-encoding-damaged"),
        (b"gzip", ZIPPED[:-1], "content-encoding-damaged"),
        (b"gzip", ZIPPED[:12], "content-encoding-damaged"),
        (b"gzip", ZIPPED + b"\0", "content-encoding-damaged"),
        (b"gzip", ZIPPED * 2, "content-encoding-damaged"),
        (b"gzip", ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "content-encoding-damaged"),
        (b"gzip", zlib.compress(BODY), "content-encoding-damaged"),
        (b"deflate", ZIPPED, "content-encoding-damaged"),
        (b"deflate", zlib.compress(BODY)[:-1], "content-encoding-damaged"),
        (b"deflate", zlib.compress(BODY) + b"x", "content-encoding-damaged"),
        (b"deflate", raw_deflate(BODY)[:-1], "content-encoding-damaged"),
        (b"deflate", raw_deflate(BODY) + b"x", "content-encoding-damaged"),
        (b"deflate", BODY, "content-encoding-damaged"),
        (b"gzip, gzip", gzip.compress(ZIPPED, mtime=0), "content-encoding"),
        (b"deflate, gzip", gzip.compress(zlib.compress(BODY), mtime=0), "content-encoding"),
        (b"br", b"\x0b\x02\x80{}\x03", "content-encoding"),
        (b"br", BODY, "content-encoding"),
        (b"zstd", BODY, "content-encoding"),
        (b"compress", BODY, "content-encoding"),
        (b"aes128gcm", BODY, "content-encoding"),
        (b"gzip;q=1", ZIPPED, "content-encoding"),
        (b"gzip", gzip.compress(b"[1]", mtime=0), "not-an-object"),
        (b"gzip", gzip.compress(b"state=connected", mtime=0), "not-json"),
        (b"gzip", gzip.compress(b"", mtime=0), "empty-body"),
        (b"gzip", gzip.compress(b'{"a":"\xe9"}', mtime=0), "not-utf-8"),
        (b"gzip", gzip.compress(ZIPPED, mtime=0), "not-utf-8"),
    ],
)
def test_a_compressed_body_that_cannot_be_read_is_left_as_it_is(
    coding: bytes, body: bytes, reason: str
) -> None:
    assert untouched(body, JSON, (b"content-encoding", coding)) == reason


def test_codings_on_several_lines_are_one_list() -> None:
    assert untouched(ZIPPED, JSON, (b"content-encoding", b"gzip"), (b"content-encoding", b"gzip")) == (
        "content-encoding"
    )


@pytest.mark.parametrize("coding", [b"identity", b"", b"identity, identity"])
def test_a_coding_that_is_none_stays_and_keeps_nothing_from_being_repaired(coding: bytes) -> None:
    call = sent(BODY, JSON, (b"content-encoding", coding))

    assert call.body == FILLED
    assert (b"content-encoding", coding) in call.headers


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
def test_a_body_may_be_as_large_as_the_limit_once_it_is_inflated(coding: str, size: int) -> None:
    plain = b'{"a":"' + b"x" * (size - 8) + b'"}'
    body = COMPRESSED[coding](plain)
    headers = [JSON, (b"content-encoding", b"gzip" if coding == "gzip" else b"deflate")]

    if size > LIMIT:
        with pytest.raises(BodyTooLarge, match=r"limits\.max_body"):
            found(body, *headers)
    else:
        assert found(body, *headers).call.body == plain


def test_a_body_that_grows_over_the_limit_as_utf_8_is_refused() -> None:
    body = ('{"a":"' + "\u6771" * (LIMIT // 3) + '"}').encode("utf-16-le")
    assert len(body) < LIMIT

    with pytest.raises(BodyTooLarge, match=r"limits\.max_body"):
        found(body, kind("application/json; charset=utf-16"))


@pytest.mark.parametrize("wbits", [16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS])
def test_a_bomb_is_refused_and_costs_no_more_memory_than_the_limit(wbits: int) -> None:
    stream = zlib.compressobj(wbits=wbits)
    bomb = b"".join(stream.compress(bytes(2**20)) for _ in range(64)) + stream.flush()
    coding = b"gzip" if wbits > zlib.MAX_WBITS else b"deflate"

    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            found(bomb, JSON, (b"content-encoding", coding))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT + len(bomb)


def test_a_bomb_within_a_bomb_is_not_even_opened() -> None:
    bomb = gzip.compress(gzip.compress(bytes(2**24), mtime=0))

    assert untouched(bomb, JSON, (b"content-encoding", b"gzip, gzip")) == "content-encoding"
    assert untouched(bomb, JSON, (b"content-encoding", b"gzip")) == "not-utf-8"


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
def test_a_call_that_was_repaired_once_needs_no_repair_again(written: ObjectText) -> None:
    once = sent(written.text.encode("utf-16"), kind("text/plain; charset=utf-16"))

    assert diagnose(once, ALL).reason in {"conforming", "duplicate-member"}
    assert rewrite(diagnose(once, ALL), {})[0] is once


# --- what may be filled


def the_fill(**changes: Any) -> FillRepair:
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
