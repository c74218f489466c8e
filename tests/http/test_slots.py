"""Fields with slots: what is made of them is what would be made of the call's own."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from gateway.http.forwarding import Hop, upstream_request_headers
from gateway.http.headers import Fields, Header
from gateway.http.slots import FIXED, SLOTS, SlottedText, filled, peer
from gateway.upstream.request import outgoing

NAMES = st.sampled_from(
    [b"host", b"x", b"accept", b"authorization", b"date", b"x-forwarded-for", b"x-request-id", b"forwarded"]
)
VALUES = st.sampled_from([b"", b"a", b"%b", b"%(x)s", b"100%", b"<0>", b"\xff", b'"a"'])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


def slotted(fields: list[Header]) -> tuple[Fields, tuple[bytes, ...]]:
    values = tuple(value for name, value in fields if name not in FIXED)
    slots = iter(SLOTS)
    return Fields((name, next(slots) if name not in FIXED else value) for name, value in fields), values


@given(FIELDS, st.sampled_from([(), ("192.0.2.0/24",)]))
def test_what_goes_upstream_is_what_would_go_without_slots(
    fields: list[Header], trusted: tuple[str, ...]
) -> None:
    hop = Hop(None, b"gateway (x)", tuple(ipaddress.ip_network(one) for one in trusted))
    made, values = slotted(fields)
    plain = filled(upstream_request_headers(Fields(fields), hop, bool(trusted), "1.1"), peer("192.0.2.7"))
    values += peer("192.0.2.7")
    with_slots = upstream_request_headers(made, hop, bool(trusted), "1.1")
    assert filled(with_slots, values) == plain
    for _ in range(2):
        assert (
            outgoing(b"PUT", b"/", with_slots, (), b"x", values=values).head
            == outgoing(b"PUT", b"/", plain, (), b"x").head
        )


def test_a_length_in_a_slot_is_each_calls_own() -> None:
    fields = Fields([(b"host", b"h"), (b"content-length", SLOTS[0])])
    for body in (b"", b"x", b"xy"):
        sent = outgoing(b"PUT", b"/", fields, (), body, values=(b"%d" % len(body),))
        assert sent.head == b"PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@given(st.binary(max_size=40))
def test_a_text_without_slots_is_itself(text: bytes) -> None:
    assert SlottedText.of(text).filled(()) == text
    assert SlottedText.of(text + SLOTS[3] + text).filled((b"", b"", b"", b"%b")) == text + b"%b" + text
