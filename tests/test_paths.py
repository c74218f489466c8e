"""Path templates: what one is, which of several a path matches, and what a match costs."""

from __future__ import annotations

import gc
import re
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.paths import Routes, parse, parse_write, plain

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/a", ()),
        ("/a/{x}", ("x",)),
        ("/{x}/b/{y_1}", ("x", "y_1")),
        ("/{media:calls|chats|e-mails}/{id}", ("media", "id")),
        ("/a/**", ()),
        ("/**", ()),
        ("/a-b/c.d/e~f/g:h/i@j/k,l/m=n/o+p/q$r/s!t/u'v/w(x)/y*z/&", ()),
        ("/.well-known/a", ()),
        ("/...", ()),
    ],
)
def test_a_template_names_its_parameters(path: str, names: tuple[str, ...]) -> None:
    assert parse(path).names == names


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("", "'/'"),
        ("a/b", "'/'"),
        ("/", "''"),
        ("/a/", "''"),
        ("/a//b", "''"),
        ("/a/./b", "'.'"),
        ("/a/../b", "'..'"),
        ("/a/%41", "'%41'"),
        ("/a/b c", "'b c'"),
        ("/a/b?c", "'b?c'"),
        ("/a/b#c", "'b#c'"),
        ("/a/b;c", "'b;c'"),
        ("/a\\b", "b"),
        ("/é", "'é'"),
        ("/a/**/b", "'**'"),
        ("/a/*/b", "'*'"),
        ("/a/***", "'***'"),
        ("/a/{}", "'{}'"),
        ("/a/{1x}", "'{1x}'"),
        ("/a/x{y}", "'x{y}'"),
        ("/a/{y}x", "'{y}x'"),
        ("/a/{x:}", "'{x:}'"),
        ("/a/{x:a|}", "'{x:a|}'"),
        ("/a/{x:a b}", "'{x:a b}'"),
        ("/a/{x:é}", "'{x:é}'"),
        ("/a/{x:\ud800}", None),
        ("/{x}/{x}", "twice"),
        ("/a\n", None),
        ("/{x\n}", None),
    ],
)
def test_what_is_no_template_is_refused_and_quoted(path: str, quoted: str | None) -> None:
    with pytest.raises(ValueError, match=re.escape(quoted) if quoted else None):
        parse(path)


@pytest.mark.parametrize(
    ("text", "method", "excepted"),
    [("/a/**", None, False), ("POST /a", "POST", False), ("except /a/{x}", None, True),
     ("except DELETE /a", "DELETE", True)],
)  # fmt: skip
def test_a_write_may_name_a_method_or_be_excepted(text: str, method: str | None, excepted: bool) -> None:
    found = parse_write(text)

    assert (found.method, found.excepted) == (method, excepted)


@pytest.mark.parametrize(
    "text",
    ["", "a", "GET /a", "HEAD /a", "post /a", "POST  /a", "POST", "/a b", "except", "POST POST /a", "POST /"],
)
def test_a_write_is_an_unsafe_method_and_a_path(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|path"):
        parse_write(text)


@patient
@given(st.text(max_size=30) | st.text("/{}:|*ab.%", max_size=20))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    for read in (parse, parse_write):
        try:
            read(text)
        except ValueError:
            continue


def test_a_path_is_filled_with_the_raw_segments() -> None:
    template = parse("/a/{media:calls|chats}/{id}")

    assert template.filled({"media": b"chats", "id": b"%E9%2b"}) == b"/a/chats/%E9%2b"


literals = st.sampled_from(["a", "b"])


parameters = st.sampled_from(["{%s}", "{%s:a|b}", "{%s:c|b}"])


@st.composite
def paths(draw: st.DrawFn) -> str:
    parts = draw(st.lists(literals | parameters, min_size=1, max_size=4))
    named = [part % f"p{n}" if "%" in part else part for n, part in enumerate(parts)]
    return "/" + "/".join([*named, *(["**"] if draw(st.booleans()) else [])])


methods = st.sampled_from(["PATCH", "POST", None])


listed = st.lists(st.tuples(methods, paths()), max_size=9)


segments = st.sampled_from(
    ["a", "b", "c", "d", "A", "aa", "%61", "", ".", "..", "...", "a;b", "a%2fb", "%2E", "%5c", "a\\b"]
)


requests = st.lists(st.sampled_from("aaabbcd"), max_size=4) | st.lists(segments, max_size=5)


def expression(path: str) -> re.Pattern[bytes]:
    result = ""
    for part in path[1:].split("/"):
        named = re.fullmatch(r"\{(\w+)(?::(.+))?\}", part)
        if part == "**":
            result += r"(?:/.*)?"
        elif named:
            result += f"/(?P<{named[1]}>{named[2] or '[^/]+'})"
        else:
            result += f"/{part}"
    return re.compile(result.encode(), re.DOTALL)


def specificity(path: str) -> list[int]:
    return [
        2 if part == "**" else int(part.startswith("{") and ":" not in part) for part in path[1:].split("/")
    ]


def is_plain(path: bytes) -> bool:
    parts = path.split(b"/")[1:]
    return (
        not {b".", b".."} & set(parts)
        and b"" not in parts[:-1]
        and not any(mark in path.lower() for mark in (b"%2f", b"%2e", b"%5c", b"\\", b";"))
    )


@settings(patient, max_examples=200)
@example([(None, "/a/b"), (None, "/{p0}/c")], "POST", ["a", "c"])
@example([(None, "/a/**"), (None, "/{p0}/c"), (None, "/a/b/c")], "POST", ["a", "b", "d"])
@example([("PATCH", "/a/b"), ("POST", "/a/{p1}"), (None, "/**")], "POST", ["a", "b"])
@given(listed, st.sampled_from(["PATCH", "POST", "PUT"]), requests)
def test_the_most_specific_template_that_matches_wins_and_an_ambiguous_path_matches_none(
    routes: list[tuple[str | None, str]], method: str, parts: list[str]
) -> None:
    table: Routes[int] = Routes()
    for n, (wanted, path) in enumerate(routes):
        table.add(wanted, parse(path), n)
    target = ("/" + "/".join(parts)).encode()
    fitting = [
        (specificity(path), wanted is None, n, found.groupdict())
        for n, (wanted, path) in enumerate(routes)
        if wanted in {method, None} and (found := expression(path).fullmatch(target))
    ]

    matched = table.match(method, target)

    if not fitting or not is_plain(target):
        assert matched is None
    else:
        *_, value, named = min(fitting, key=lambda one: one[:3])
        assert matched is not None
        assert (matched.value, matched.parameters) == (
            value,
            {key: raw for key, raw in named.items() if raw is not None},
        )


@patient
@given(listed)
def test_a_template_is_shadowed_when_earlier_ones_take_every_path_of_it(
    routes: list[tuple[str | None, str]],
) -> None:
    table: Routes[int] = Routes()
    taken: set[tuple[Any, ...]] = set()
    for n, (method, path) in enumerate(routes):
        ways: list[tuple[str, ...]] = [()]
        for part in path[1:].split("/"):
            choices = part[1:-1].partition(":")[2].split("|") if part.startswith("{") else [part]
            ways = [(*way, choice or "{}") for way in ways for choice in choices]
        mine = {(method, way) for way in ways}
        assert table.add(method, parse(path), n) is not mine.issubset(taken)
        taken |= mine


def visits(table: Routes[int], method: str, path: bytes) -> int:
    """How many calls the interpreter makes for one match: a cost that does not depend on the machine."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    gc.disable()  # what it finalises would count
    sys.setprofile(counted)
    try:
        table.match(method, path)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("path", [b"/api/r3/x/things/y", b"/api/none/x/things/y", b"/api/r3/x/things", b"/"])
def test_a_match_costs_the_same_for_five_rules_and_five_hundred(path: bytes) -> None:
    costs = []
    for size in (5, 500):
        table: Routes[int] = Routes()
        for n in range(size):
            table.add("PATCH", parse(f"/api/r{n}/{{a}}/things/{{b}}"), n)
        costs.append(visits(table, "PATCH", path))

    assert costs[0] == costs[1] > 0


@patient
@given(st.lists(st.sampled_from([b"%41", b"%7e", b"%2D", b"%25", b"%2F", b"%e9", b"a", b"/", b"4", b"1"])))
def test_only_what_need_not_be_encoded_is_decoded(parts: list[bytes]) -> None:
    decoded = {b"%41": b"A", b"%7e": b"~", b"%2D": b"-"}

    assert plain(b"".join(parts)) == b"".join(decoded.get(part, part) for part in parts)
