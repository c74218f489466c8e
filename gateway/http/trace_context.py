"""
W3C Trace Context: what `traceparent` says, read as strictly as the recommendation wants it. Pure.
"""

from __future__ import annotations

import re

from msgspec import Struct

from gateway.http.headers import Fields, Headers, every, without

FIELDS = frozenset({b"traceparent", b"tracestate"})
# A later version may have more parts (section 3.2.4), this one has none; ids of zeros alone are none.
_IDS = rb"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
is_valid = re.compile(rb"(?:00-%b|(?!00|ff)[0-9a-f]{2}-%b(?:-.*)?)" % (_IDS, _IDS)).fullmatch
# Where a valid one has it.
TRACE_ID = slice(3, 35)


class TraceParent(Struct, frozen=True):
    """The ids in hexadecimal digits."""

    trace_id: str
    span_id: str
    flags: int

    def line(self) -> bytes:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}".encode()


def parsed(value: bytes) -> TraceParent | None:
    """None where it is not valid."""
    if is_valid(value) is None:
        return None
    return TraceParent(value[TRACE_ID].decode(), value[36:52].decode(), int(value[53:55], 16))


def only_traceparent(headers: Headers) -> bytes | None:
    """Its value, or the slot for that; None without, or where there are several and none can be believed."""
    values = every(headers, b"traceparent")
    return values[0] if len(values) == 1 else None


def without_traceparent(headers: Headers) -> Fields:
    """For a request that gets one of its own."""
    return without(headers, {b"traceparent"})


def without_trace(headers: Headers) -> Fields:
    """Where no trace is continued, what was said of one is not passed on (section 3.3)."""
    return without(headers, FIELDS)
