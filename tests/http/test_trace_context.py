"""Which `traceparent` is valid, as the recommendation's own cases have it."""

from __future__ import annotations

import pytest

from gateway.http.trace_context import TraceParent, only_traceparent, parsed

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"cc-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-will-be", 1),
    ],
)
def test_a_valid_one_is_read(value: str, flags: int) -> None:
    assert parsed(value.encode()) == TraceParent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_an_invalid_one_is_not(value: str) -> None:
    assert parsed(value.encode()) is None


def test_what_is_written_is_read_again() -> None:
    said = TraceParent(TRACE, SPAN, 1)

    assert parsed(said.line()) == said


def test_of_several_none_is_believed() -> None:
    line = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())

    assert only_traceparent([(b"host", b"a"), line]) == line[1]
    assert only_traceparent([line, line]) is None
