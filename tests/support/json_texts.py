"""JSON as text, for hypothesis: every way to write an object that RFC 8259 allows, however odd."""

from __future__ import annotations

import re
from typing import NamedTuple

from hypothesis import strategies as st

ODD_NUMBERS = (
    "0",
    "-0",
    "-0.0",
    "1.10",
    "1e400",
    "1E400",
    "-1e+400",
    "1E-400",
    "0e0",
    "12345678901234567890",
    "123456789012345678901234567890.123456789012345678901234567890",
    "9" * 5000,
)
ESCAPES = (
    r"\"",
    r"\\",
    r"\/",
    r"\b",
    r"\f",
    r"\n",
    r"\r",
    r"\t",
    r"\u0000",
    r"\u00e9",
    r"\u2028",
    r"\ud83d\ude00",
    r"\uD800",
    r"\udfff",
    r"\u0022",
)
# One member's name, however it is escaped.
STATE = ('"state"', r'"st\u0061te"', r'"\u0073\u0074\u0061\u0074\u0065"', r'"stat\u0065"')

spaces = st.text(" \t\r\n", max_size=3)
plain_characters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\')
characters = plain_characters | st.sampled_from(ESCAPES) | st.sampled_from("😀\x7f\u2028\ufeff\U0010ffff")
strings = st.lists(characters, max_size=6).map(lambda parts: f'"{"".join(parts)}"')
numbers = st.sampled_from(ODD_NUMBERS) | st.from_regex(
    r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
    fullmatch=True,
    alphabet="0123456789-+.eE",
)
scalars = numbers | strings | st.sampled_from(["null", "true", "false"])


def _listed(opening: str, items: st.SearchStrategy[str], closing: str) -> st.SearchStrategy[str]:
    padded = st.tuples(spaces, items, spaces).map("".join)
    some = st.lists(padded, min_size=1, max_size=4).map(",".join)
    return (some | spaces).map(lambda inside: f"{opening}{inside}{closing}")


def _pairs(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(names, spaces, st.just(":"), spaces, values).map("".join)


def _nested(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    deep = st.tuples(st.integers(1, 100), values).map(
        lambda drawn: "[" * drawn[0] + drawn[1] + "]" * drawn[0]
    )
    return _listed("[", values, "]") | _listed("{", _pairs(strings, values), "}") | deep


values = st.recursive(scalars, _nested, max_leaves=8)


def _is_state(name: str) -> bool:
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), name)
    return plain == '"state"'


others = _pairs(strings.filter(lambda name: not _is_state(name)), values)


class ObjectText(NamedTuple):
    """An object's text in three parts: to its brace, between the braces, and the rest."""

    head: str
    inside: str
    tail: str

    @property
    def text(self) -> str:
        return self.head + self.inside + self.tail


_heads = spaces.map(lambda space: space + "{")
_tails = spaces.map(lambda space: "}" + space)


def _inside(members: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return _listed("", members, "")


objects_without_state = st.builds(ObjectText, _heads, _inside(others), _tails)


@st.composite
def objects_with_state(draw: st.DrawFn, given: st.SearchStrategy[str] = values) -> ObjectText:
    """`head` ends where the value of the only `state` begins, `inside` is that value."""
    before = [*draw(st.lists(others, max_size=2)), ""]
    after = ["", *draw(st.lists(others, max_size=2))]
    name = draw(st.sampled_from(STATE)) + draw(spaces) + ":" + draw(spaces)
    head = draw(spaces) + "{" + draw(spaces) + ("," + draw(spaces)).join(before) + name
    tail = draw(spaces) + (draw(spaces) + ",").join(after) + draw(spaces) + "}" + draw(spaces)
    return ObjectText(head, draw(given), tail)
