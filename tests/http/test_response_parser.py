"""Replies from bytes: read alike in pieces and at once; what breaks the rules is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import (
    InvalidReply,
)
from gateway.http.headers import Header
from gateway.http.response_parser import ResponseParser
from gateway.upstream.pool import PoolLimits
from tests.support.raw_upstream import OK
from tests.support.replies import BROKEN, REPLIES, STRICT


class Recorder:
    """What the reader tells: one tuple when the reply is over."""

    def __init__(self) -> None:
        self.head: tuple[int, list[Header]] | None = None
        self.body = b""
        self.kept: bool | None = None

    def replied(self, status: int, headers: list[Header]) -> None:
        assert self.head is None
        self.head = status, headers

    def received(self, piece: bytes) -> None:
        assert self.head is not None
        assert self.kept is None
        assert piece
        self.body += piece

    def ended(self, keep: bool) -> None:
        assert self.kept is None
        self.kept = keep

    def replied_whole(self, status: int, headers: list[Header], body: bytes, keep: bool) -> None:
        self.replied(status, headers)
        if body:
            self.received(body)
        self.ended(keep)


def read(pieces: Sequence[bytes], *, head_only: bool = False) -> tuple[Any, ...]:
    """Head, body, whether the connection is kept (None: the reply is not over); or the class of the error."""
    recorder = Recorder()
    reader = ResponseParser(recorder, PoolLimits().max_head, PoolLimits().max_headers)
    reader.expect(head_only, False)
    for piece in pieces:
        if recorder.kept is not None:
            # The connection closes here: what comes unasked is not read.
            recorder.kept = False
            break
        try:
            reader.feed(piece)
        except InvalidReply as error:
            # How much of a broken body comes before the error depends on the pieces.
            return recorder.head, b"", type(error)
    if recorder.kept is None and reader.ends_here():
        return recorder.head, recorder.body, "at the end of the connection"
    return recorder.head, recorder.body, recorder.kept


EVERYTHING = (
    {name: raw for name, (raw, _, _) in REPLIES.items()}
    | BROKEN
    | {
        "surplus": OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "surplus after chunks": REPLIES["chunked"][0] + OK,
        "surplus head after chunks": REPLIES["chunked"][0] + b"HTTP/1.1 204 No Content\r\n\r\n",
        "surplus line after chunks": REPLIES["chunked"][0] + b"\r\n",
        "surplus after trailers": REPLIES["trailers"][0] + b"\r\n\r\n",
    }
)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_reply_split_at_any_byte_is_the_same_reply(name: str) -> None:
    raw = EVERYTHING[name]
    whole = read([raw])
    for at in range(1, len(raw)):
        assert read([raw[:at], raw[at:]]) == whole, at
    assert read([raw[at : at + 1] for at in range(len(raw))]) == whole


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Replies that are right, in all framings."""
    names = st.sampled_from([b"X-A", b"x-b", b"Set-Cookie", b"Date", b"Keep-Alive", b"Trailer"])
    values = st.binary(max_size=12).map(lambda value: bytes(b for b in value if b >= 32 and b != 127))
    lines = [b"%b: %b\r\n" % pair for pair in draw(st.lists(st.tuples(names, values), max_size=4))]
    body = draw(st.binary(max_size=60))
    framing = draw(st.sampled_from(["length", "chunked", "close", "none"]))
    status = 204 if framing == "none" else draw(st.sampled_from([200, 201, 404, 500]))
    tail = body
    if framing == "length":
        lines.append(b"Content-Length: %d\r\n" % len(body))
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked\r\n")
        size = draw(st.integers(1, 20))
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"']))
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        trailer = draw(st.sampled_from([b"", b"X-T: t\r\n", b"Content-Type: evil\r\nX: y\r\n"]))
        tail = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        tail += b"0%b\r\n%b\r\n" % (extension, trailer)
    elif framing == "none":
        tail = b""
    if draw(st.booleans()):
        lines.append(
            b"Connection: %b\r\n" % draw(st.sampled_from([b"close", b"keep-alive", b"Close, x", b"x"]))
        )
    lines = draw(st.permutations(lines))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * draw(st.integers(0, 2))
    return interim + b"HTTP/1.1 %d Reason\r\n" % status + b"".join(lines) + b"\r\n" + tail


def cuts(data: st.DataObject, raw: bytes) -> list[bytes]:
    places = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=8)))
    edges = [0, *[place for place in places if place < len(raw)], len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(edges)]


def as_h11_reads(raw: bytes) -> tuple[int, list[Header], bytes] | None:
    """None: h11 refuses it, or waits for more."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    connection.receive_data(b"")
    head: h11.Response | None = None
    body = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return head.status_code, [(bytes(name), bytes(value)) for name, value in head.headers], body


@settings(max_examples=150, deadline=None)
@given(raw=messages(), data=st.data())
def test_what_is_right_is_read_as_h11_reads_it_however_it_is_split(raw: bytes, data: st.DataObject) -> None:
    head, body, end = read([raw])

    assert end in (True, False, "at the end of the connection")
    assert (head[0], head[1], body) == as_h11_reads(raw)
    assert read(cuts(data, raw)) == (head, body, end)


@settings(max_examples=400, deadline=None)
@given(raw=messages(), data=st.data())
def test_what_is_accepted_after_a_change_is_what_h11_takes_it_for(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw) - 1))
    put = data.draw(
        st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b";", b"0", b"1", b","])
    )
    raw = raw[:at] + put + raw[at + data.draw(st.integers(0, 2)) :]
    head, body, end = read([raw])

    assert read(cuts(data, raw)) == (head, body, end)
    if end is True or end == "at the end of the connection":
        assert (head[0], head[1], body) == as_h11_reads(raw)


@pytest.mark.parametrize("name", STRICT)
def test_a_reply_that_breaks_the_rules_is_refused_however_it_is_split(name: str) -> None:
    raw = STRICT[name]
    for pieces in ([raw], *([raw[:at], raw[at:]] for at in range(1, len(raw)))):
        assert read(pieces)[2] is InvalidReply, pieces
