"""
Fields remember what was made of them, for what it was made of, and nothing else.
"""

from __future__ import annotations

from gateway.http.headers import Fields, Headers, replaced


def test_what_is_made_of_fields_is_made_once_for_each_of_what_else_is_given() -> None:
    fields = Fields([(b"a", b"1")])
    made: list[tuple[bytes, bytes]] = []

    def make(headers: Headers, name: bytes, value: bytes) -> Fields:
        made.append((name, value))
        return replaced(headers, name, value)

    for _ in range(2):
        assert fields.derived(make, b"a", b"2") == [(b"a", b"2")]
        assert fields.derived(make, b"b", b"2") == [(b"a", b"1"), (b"b", b"2")]
        assert fields.derived(make, b"a", b"3") == [(b"a", b"3")]
    assert made == [(b"a", b"2"), (b"b", b"2"), (b"a", b"3")]
    assert fields == [(b"a", b"1")]


def test_that_nothing_was_made_is_remembered_too() -> None:
    fields = Fields([(b"a", b"1")])
    asked: list[Headers] = []

    def nothing(headers: Headers) -> None:
        asked.append(headers)

    for _ in range(2):
        assert fields.derived(nothing) is None
    assert asked == [fields]


def test_fields_that_are_alike_remember_each_for_themselves() -> None:
    one, other = Fields([(b"a", b"1")]), Fields([(b"a", b"1")])

    assert one.derived(Fields.copy) is one.derived(Fields.copy)
    assert one.derived(Fields.copy) is not other.derived(Fields.copy)
