"""A member is inserted or replaced in the client's own text, and not another byte changes (C1)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.repairs import json_text
from gateway.repairs.json_text import NotAnObject
from tests.support import json_texts
from tests.support.json_texts import STATE, ObjectText, objects_with_state, objects_without_state

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# RFC 8259 as tokens that become one letter each: string, value, or a mark that stands for itself.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\n\r]+)
    |(?P<s>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")
    |(?P<v>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)
    |(?P<mark>[{}\[\]:,])""",
    re.VERBOSE,
)
_OBJECT = re.compile(r"\{(?:s:[svao](?:,s:[svao])*)?\}")
_ARRAY = re.compile(r"\[(?:[svao](?:,[svao])*)?\]")


def is_an_object(text: str) -> bool:
    """By the grammar, without recursion and without the product's scanner."""
    sentence, at = "", 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            return False
        kind = found.lastgroup or ""
        sentence += {"space": "", "mark": found[0]}.get(kind, kind)
        at = found.end()
    shorter = ""
    while shorter != sentence:
        shorter, sentence = sentence, _ARRAY.sub("a", _OBJECT.sub("o", sentence))
    return sentence == "o"


def reason(text: str) -> str | None:
    """Why it is refused; None where it is accepted."""
    try:
        json_text.read(text)
    except NotAnObject as error:
        return error.reason
    return None


def accepted(text: str) -> bool:
    return reason(text) is None


def exactly(text: str) -> Any:
    """The document with every number as it is written and every pair where it stands."""
    return json.loads(text, object_pairs_hook=list, parse_int=str, parse_float=str)


def in_a_deeper_stack(frames: int, act: Callable[[], Any]) -> Any:
    return act() if frames == 0 else in_a_deeper_stack(frames - 1, act)


# --- the edit


@patient
@given(objects_without_state)
def test_a_missing_member_is_inserted_after_the_brace_and_nothing_else_changes(written: ObjectText) -> None:
    document = json_text.read(written.text)

    comma = "," if written.inside.strip() else ""
    span = f'"state":"connected"{comma}'
    assert document.named("state") == []
    filled = document.with_member("state", "connected").text
    assert filled == written.head + span + written.inside + written.tail
    assert exactly(filled) == [("state", "connected"), *exactly(written.text)]


@patient
@given(objects_with_state(st.just("null")))
def test_a_null_is_replaced_in_its_place_and_nothing_else_changes(written: ObjectText) -> None:
    document = json_text.read(written.text)

    assert document.named("state") == [None]
    assert document.with_value("state", "connected").text == written.head + '"connected"' + written.tail


@patient
@given(objects_with_state())
def test_a_member_is_found_however_its_name_is_escaped_and_wherever_it_stands(written: ObjectText) -> None:
    (found,) = json_text.read(written.text).named("state")

    if written.inside[0] == '"':
        assert found == json.loads(written.inside)
    if written.inside in {"null", "true", "false"}:
        assert found is json.loads(written.inside)


@patient
@given(objects_without_state, st.sampled_from(["a", 'quo"te', "é", "\x00", "back\\slash", "😀"]))
def test_whatever_name_and_value_are_inserted_the_result_reads_back(written: ObjectText, odd: str) -> None:
    edited = json_text.read(written.text).with_member(odd, odd)

    assert json_text.read(edited.text).members == edited.members
    assert edited.named(odd)[0] == odd


@patient
@given(objects_with_state(st.just("null")))
def test_an_edited_text_knows_its_members_without_being_read_again(written: ObjectText) -> None:
    once = json_text.read(written.text).with_value("state", "connected")
    twice = once.with_member("other", "x")

    assert once.members == json_text.read(once.text).members
    assert twice.members == json_text.read(twice.text).members


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{}", '{"state":"connected"}'),
        (" {\n} ", ' {"state":"connected"\n} '),
        ('\r\n\t {"a":1}', '\r\n\t {"state":"connected","a":1}'),
        ('{ "a" : 1.10 }', '{"state":"connected", "a" : 1.10 }'),
        ('{"a":1e400,"a":-0,"a":1E400}', '{"state":"connected","a":1e400,"a":-0,"a":1E400}'),
        ('{"n":12345678901234567890}', '{"state":"connected","n":12345678901234567890}'),
        (r'{"t":"\u0000\ud800é😀\/"}', r'{"state":"connected","t":"\u0000\ud800é😀\/"}'),
        ('{"{":"}","[":"]"}', '{"state":"connected","{":"}","[":"]"}'),
        ('{"States":1,"STATE":2,"state ":3}', '{"state":"connected","States":1,"STATE":2,"state ":3}'),
    ],
)
def test_the_inserted_member_stands_first(before: str, after: str) -> None:
    assert json_text.read(before).with_member("state", "connected").text == after


@pytest.mark.parametrize("name", STATE)
def test_a_name_counts_for_what_it_means_not_how_it_is_escaped(name: str) -> None:
    assert json_text.read(f'{{"a":0,{name}:"x"}}').named("state") == ["x"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"state":1,"state":2.5}', [1, 3]),  # how long they are
        (r'{"state":null,"st\u0061te":"x"}', [None, "x"]),
        ('{"a":{"state":1},"b":[{"state":2}],"c":"state"}', []),
        ('{"state":{"state":1}}', [[("state", 1)]]),
    ],
)
def test_duplicates_are_seen_and_nested_members_of_the_name_are_not(text: str, values: list[Any]) -> None:
    assert json_text.read(text).named("state") == values


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '{"a":{"state":null,"b":[null,{}]},"t":"}]\\"\\\\", "state" : null }',
            '{"a":{"state":null,"b":[null,{}]},"t":"}]\\"\\\\", "state" : "x" }',
        ),
        ('{"state":null}', '{"state":"x"}'),
        ('{"a":[],"b":{},"c":[[]],"state":null,"d":null}', '{"a":[],"b":{},"c":[[]],"state":"x","d":null}'),
    ],
)
def test_the_null_that_is_replaced_is_that_of_the_member(before: str, after: str) -> None:
    assert json_text.read(before).with_value("state", "x").text == after


def test_a_member_that_is_not_there_cannot_be_replaced() -> None:
    with pytest.raises(KeyError, match="state"):
        json_text.read('{"a":{"state":null}}').with_value("state", "x")


# --- what is accepted

NOT_OBJECTS = {
    "": "empty-body",
    " \t\r\n": "empty-body",
    "[]": "not-an-object",
    '[{"state":1}]': "not-an-object",
    "null": "null-body",
    "true": "not-an-object",
    " 12 ": "not-an-object",
    '"{}"': "not-an-object",
    "[object Object]": "not-json",
    "state=connected&a=1": "not-json",
    "undefined": "not-json",
    "NaN": "not-json",
    "Infinity": "not-json",
    '{"a":NaN}': "not-json",
    '{"a":Infinity}': "not-json",
    '{"a":-Infinity}': "not-json",
    '{"a":[1,{"b":NaN}]}': "not-json",
    '{"a":1,}': "not-json",
    '{"a":[1,]}': "not-json",
    '{"a":{"b":1,}}': "not-json",
    "{,}": "not-json",
    '{"a" 1}': "not-json",
    '{"a":}': "not-json",
    '{"a"}': "not-json",
    '{"a":1': "not-json",
    '{"a":1 "b":2}': "not-json",
    "{": "not-json",
    "}": "not-json",
    "{}}": "not-json",
    "{}{}": "not-json",
    "{} x": "not-json",
    "{}\x00": "not-json",
    "{}\x0b": "not-json",
    "\xa0{}": "not-json",
    "\ufeff{}": "not-json",
    '{"a":"\x00"}': "not-json",
    '{"a":"\n"}': "not-json",
    '{"a\t":1}': "not-json",
    '{"a":"\\x41"}': "not-json",
    '{"a":"\\u00g0"}': "not-json",
    '{"a":"\\u 123"}': "not-json",
    '{"a":"\\u+123"}': "not-json",
    '{"a":"\\ud83d\\u12"}': "not-json",
    '{"a":"\\': "not-json",
    "{'a':1}": "not-json",
    "{a:1}": "not-json",
    '{"a":01}': "not-json",
    '{"a":+1}': "not-json",
    '{"a":.5}': "not-json",
    '{"a":1.}': "not-json",
    '{"a":1e}': "not-json",
    '{"a":0x10}': "not-json",
    '{"a":1_0}': "not-json",
    '{"a":--1}': "not-json",
    '{"a":-}': "not-json",
    '{"a":٣}': "not-json",
    '{"a":True}': "not-json",
    '{"a":nul}': "not-json",
    '{"a":1/**/}': "not-json",
    '// x\n{"a":1}': "not-json",
    "{1:2}": "not-json",
    "{null:2}": "not-json",
    "[1": "not-json",
    "[NaN]": "not-json",
    '"open': "not-json",
}


@pytest.mark.parametrize("text", NOT_OBJECTS)
def test_what_is_no_json_object_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(NotAnObject) as refused:
        json_text.read(text)

    assert refused.value.reason == NOT_OBJECTS[text]
    assert not is_an_object(text)


@patient
@given(objects_without_state | objects_with_state())
def test_every_object_is_accepted(written: ObjectText) -> None:
    assert is_an_object(written.text)
    assert accepted(written.text)


@patient
@given(st.data())
def test_one_character_more_or_less_is_judged_as_the_grammar_judges_it(data: st.DataObject) -> None:
    text = data.draw(objects_without_state | objects_with_state()).text
    at = data.draw(st.integers(0, len(text)))
    character = data.draw(
        st.sampled_from('{}[]:,"\\ \t\n0123456789-+.eEnulltrue\x00\x1f\x7f\xa0é') | st.characters()
    )
    broken = data.draw(
        st.sampled_from([text[:at], text[:at] + text[at + 1 :], text[:at] + character + text[at:]])
    )

    assert accepted(broken) is is_an_object(broken)


@patient
@given(st.text(alphabet='{}[]:,"\\u0129-+.eE ntrlfasNI\x00\x1fé', max_size=24))
@example('{"\\ud800":-0}')
def test_anything_is_judged_as_the_grammar_judges_it(text: str) -> None:
    assert accepted(text) is is_an_object(text)


@patient
@given(objects_without_state)
def test_what_is_accepted_is_read_alike_by_a_strict_parser_that_is_not_ours(written: ObjectText) -> None:
    """msgspec refuses lone surrogates and what no float holds, and keeps the last of a name given twice."""
    try:
        theirs = msgspec.json.decode(written.text)
    except msgspec.DecodeError:
        return
    ours = json_text.read(written.text)

    assert dict.fromkeys(name for name, _ in ours.members) == dict.fromkeys(theirs)
    assert all(theirs[name] == value for name, value in dict(ours.members).items() if isinstance(value, str))


# --- size and depth


@pytest.mark.parametrize("depth", [10**2, 10**3, 10**4, 10**5, 10**6])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_accepted_or_refused_and_never_an_error(depth: int, opening: str, closing: str) -> None:
    unclosed = '{"a":' + opening * depth
    closed = unclosed + "1" + closing * depth + "}"

    assert reason(unclosed) in {"too-deep", "not-json", "too-many-values"}
    assert reason(closed) in ({None} if depth == 10**2 else {None, "too-deep", "too-many-values"})
    if accepted(closed):
        assert json_text.read(closed).with_member("state", "x").text == '{"state":"x",' + closed[1:]


def test_a_mebibyte_of_brackets_is_refused() -> None:
    with pytest.raises(NotAnObject, match="too-many-values"):
        json_text.read("[" * 2**20)


def test_what_was_accepted_can_be_edited_in_a_deeper_stack_than_it_was_read_in() -> None:
    """The interpreter's recursion limit is met by the stack and the nesting together."""
    depth, refused = 1, 10**6
    while refused - depth > 1:
        middle = (depth + refused) // 2
        if accepted('{"a":' + "[" * middle + "]" * middle + ',"state":null}'):
            depth = middle
        else:
            refused = middle
    head = '{"a":' + "[" * depth + "]" * depth
    document = json_text.read(head + ',"state":null}')

    edited = in_a_deeper_stack(
        20, lambda: document.with_value("state", "x").with_member("b", "y").with_value("b", "z")
    )

    assert edited.text == '{"b":"z",' + head[1:] + ',"state":"x"}'


@pytest.mark.parametrize(
    "inside",
    [
        '"a":' + "9" * 2**20,
        '"a":0.' + "0" * 2**20 + "1",
        '"a":1e' + "9" * 2**20,
        '"a":"' + r"\u0041" * 2**17 + '"',
        ",".join(['"":0'] * (json_text.MAX_VALUES - 1)),
        " " * 2**20,
    ],
    ids=["digits", "fraction", "exponent", "escapes", "members", "spaces"],
)
def test_a_mebibyte_of_one_thing_is_edited_like_anything_else(inside: str) -> None:
    document = json_text.read("{" + inside + "}")

    comma = "," if inside.strip() else ""
    assert document.with_member("state", "x").text == '{"state":"x"' + comma + inside + "}"


def test_more_values_than_the_bound_are_not_read_but_marks_in_strings_are_no_values() -> None:
    """No body costs more of the loop than that many values do."""
    many = json_text.MAX_VALUES
    for one in ("{}", "[]", "0", '""', '{"":{}}', "[" * 100 + "]" * 100):
        with pytest.raises(NotAnObject, match="too-many-values"):
            json_text.read('{"a":[' + ",".join([one] * json_text.UNCOUNTED) + "]}")
    for text in (",", "[", "{", r"\",", r"\\,"):
        assert json_text.read('{"a":"' + text * (many + 1) + '"}').named("a")


def test_the_bound_on_values_is_met_to_the_value() -> None:
    def members(number: int) -> str:
        return "{" + ",".join(['"":0'] * number) + "}"

    assert len(json_text.read(members(json_text.MAX_VALUES)).members) == json_text.MAX_VALUES
    with pytest.raises(NotAnObject, match="too-many-values"):
        json_text.read(members(json_text.MAX_VALUES + 1))


def test_the_generator_writes_what_it_promises() -> None:
    """Else the tests above would prove less than they say."""
    assert is_an_object('{"a":[{},[],{"b":[1,2,{"c":null}]}],"d":{}}')
    for bad in ('{"a":]}', '{"a":[}', '{"a":{]}', '{"a":[1 2]}', '{"a",1}', '{"a"::1}', "{}[]", '{"a":[,]}'):
        assert not is_an_object(bad)
    assert all(is_an_object(f'{{"a":{number}}}') for number in json_texts.ODD_NUMBERS)
