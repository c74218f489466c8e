"""
What is a request and what is not, byte by byte; names carry the numbers of the intermediary checklist.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.errors import (
    BadRequest,
    GatewayError,
    HeadTooLarge,
    RequestError,
    TargetTooLong,
)
from gateway.http.chunked import InvalidChunk
from gateway.http.grammar import CHUNKED
from gateway.http.head_shapes import HeadShapes
from gateway.http.request_parser import (
    HeadLimits,
    RequestHead,
    blank_lines,
    parse_head,
    refuse_hopeless,
)
from gateway.http.slots import filled
from tests.support.chunks import read_chunked
from tests.support.refused_heads import HOPELESS_HEADS, REFUSED_HEADS, SECRET, each_of, head, with_secret

LIMITS = HeadLimits()


def parse(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes | None = b"Host: a") -> RequestHead:
    return parse_head(head(*fields, line=line, host=host), LIMITS)


@each_of(*REFUSED_HEADS)
def test_a_head_that_is_refused(data: bytes, error: type[GatewayError]) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_head(data, LIMITS)
    assert type(caught.value) is error


@each_of(*REFUSED_HEADS)
def test_d8_a_refusal_quotes_no_value_and_is_short(data: bytes, error: type[GatewayError]) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_head(with_secret(data), LIMITS)
    assert SECRET.decode() not in caught.value.detail
    assert len(caught.value.detail) < 120
    assert caught.value.detail.isprintable()


class TestFraming:
    def test_a_length_is_the_bodys(self) -> None:
        assert parse(b"Content-Length: 42").length == 42

    def test_chunked_in_any_case_and_with_any_white_space_around_it(self) -> None:
        for value in (b"chunked", b"Chunked", b"CHUNKED", b" \t chunked\t "):
            assert parse(b"Transfer-Encoding:" + value).length == CHUNKED

    def test_leading_zeros_are_digits_too(self) -> None:
        assert parse(b"Content-Length: 007").length == 7

    def test_the_longest_length(self) -> None:
        assert parse(b"Content-Length: " + b"9" * 18).length == 999_999_999_999_999_999

    def test_a_request_without_either_has_no_body(self) -> None:
        assert parse(line=b"PATCH / HTTP/1.1").length == 0

    def test_a21_an_underscore_is_no_dash(self) -> None:
        got = parse(b"Content_Length: 9", b"Transfer_Encoding: chunked", b"X_Forwarded_For: 1.2.3.4")
        assert got.length == 0
        assert got.headers == [
            (b"host", b"a"),
            (b"content_length", b"9"),
            (b"transfer_encoding", b"chunked"),
            (b"x_forwarded_for", b"1.2.3.4"),
        ]


class TestFields:
    def test_a15_order_and_repeats_are_kept_and_names_are_in_lower_case(self) -> None:
        got = parse(b"B: 1", b"a: 2", b"B: 3", b"X-Empty:", b"b:4")
        assert got.headers == [
            (b"host", b"a"), (b"b", b"1"), (b"a", b"2"), (b"b", b"3"), (b"x-empty", b""), (b"b", b"4"),
        ]  # fmt: skip

    def test_a20_obs_text_passes_in_values(self) -> None:
        every = bytes(range(0x80, 0x100))
        assert parse(b"X: caf\xe9", b"Y: " + every).headers[1:] == [(b"x", b"caf\xe9"), (b"y", every)]

    def test_a17_a_value_is_kept_but_for_the_white_space_around_it(self) -> None:
        value = b'a  b\tc "d" : e; ,, \\'
        assert parse(b"X: \t " + value + b" \t ").headers[1] == (b"x", value)

    def test_every_character_of_a_token_may_be_in_a_name(self) -> None:
        name = b"!#$%&'*+-.^_`|~09azAZ"
        assert parse(name + b": v").headers[1] == (name.lower(), b"v")

    def test_a22_as_many_fields_as_the_limit_says(self) -> None:
        assert len(parse(*[b"X: a"] * 99).headers) == 100

    def test_a22_the_limits_are_the_callers(self) -> None:
        limits = HeadLimits(max_target=10, max_head=60, max_headers=2)
        assert parse_head(head(b"X: y", line=b"GET /23456789 HTTP/1.1"), limits)
        with pytest.raises(TargetTooLong):
            parse_head(head(line=b"GET /23456789ab HTTP/1.1"), limits)
        with pytest.raises(HeadTooLarge):
            parse_head(head(b"X: y", b"Y: z"), limits)
        with pytest.raises(HeadTooLarge):
            parse_head(head(b"X: " + b"y" * 60), limits)


class TestTargets:
    @pytest.mark.parametrize(
        "target",
        [b"/", b"//x", b"/a/../b", b"/%2e%2e/", b"/a?", b"/?x=%zz|\"'", b"/;p", b"/%2F", b"/a//b/./c",
         b"/\\{}^`<>",
         b"/@evil", b"/http://evil/", b"/*"],
    )  # fmt: skip
    def test_a_target_is_kept_byte_for_byte(self, target: bytes) -> None:
        assert parse(line=b"GET " + target + b" HTTP/1.1").target == target

    @pytest.mark.parametrize(
        ("line", "target"),
        [
            (b"GET http://a/x?y HTTP/1.1", b"/x?y"),
            (b"GET HTTP://A/x/../y HTTP/1.1", b"/x/../y"),
            (b"GET https://a/ HTTP/1.1", b"/"),
            (b"GET http://a HTTP/1.1", b"/"),
            (b"GET http://a?q HTTP/1.1", b"/?q"),
            (b"GET http://a//evil/x HTTP/1.1", b"//evil/x"),
            (b"OPTIONS http://a HTTP/1.1", b"*"),
            (b"OPTIONS http://a/ HTTP/1.1", b"/"),
            (b"OPTIONS * HTTP/1.1", b"*"),
        ],
    )
    def test_l15_other_forms_become_origin_form(self, line: bytes, target: bytes) -> None:
        assert parse(line=line).target == target

    def test_absolute_form_in_http_1_0_stands_for_a_missing_host(self) -> None:
        got = parse(line=b"GET http://A:80/x HTTP/1.0", host=None)
        assert (got.target, got.headers) == (b"/x", [(b"host", b"A:80")])

    def test_a22_a_target_as_long_as_the_limit(self) -> None:
        target = b"/" + b"a" * (8 * 1024 - 1)
        assert parse(line=b"GET " + target + b" HTTP/1.1").target == target

    @pytest.mark.parametrize(
        "host",
        [b"a", b"A.example", b"a:80", b"a:", b"127.0.0.1:8080", b"[::1]", b"[::1]:80", b"[::ffff:1.2.3.4]",
         b"a_b",
         b"a%41", b"a-b.c~d"],
    )  # fmt: skip
    def test_a_host_that_is_valid(self, host: bytes) -> None:
        assert parse(host=b"Host: " + host).headers == [(b"host", host)]

    def test_http_1_0_needs_no_host(self) -> None:
        assert parse(line=b"GET / HTTP/1.0", host=None).headers == []


class TestConnection:
    @pytest.mark.parametrize(
        ("fields", "version", "stays"),
        [
            ([], b"1.1", True),
            ([b"Connection: keep-alive"], b"1.1", True),
            ([b"Connection: close"], b"1.1", False),
            ([b"Connection: CLOSE"], b"1.1", False),
            ([b"Connection: keep-alive, close"], b"1.1", False),
            ([b"Connection: x-foo", b"Connection: ,, close ,"], b"1.1", False),
            ([b"Connection: x-close"], b"1.1", True),
            ([], b"1.0", False),
            ([b"Connection: keep-alive"], b"1.0", False),
            ([], b"1.2", True),
        ],
    )
    def test_whether_the_client_stays(self, fields: list[bytes], version: bytes, stays: bool) -> None:
        assert parse(*fields, line=b"GET / HTTP/" + version).keep_alive is stays

    def test_a_higher_minor_version_is_read_as_1_1(self) -> None:
        assert parse(line=b"GET / HTTP/1.2").minor == 1
        assert parse(line=b"GET / HTTP/1.9").minor == 1
        assert parse(line=b"GET / HTTP/1.0").minor == 0

    @pytest.mark.parametrize("line", [b"G" * 100_000, b"G" * 100_000 + b" / HTTP/1.1", b"G" * 65])
    def test_a_method_that_never_ends_is_no_method_rather_than_a_large_head(self, line: bytes) -> None:
        with pytest.raises(BadRequest):
            refuse_hopeless(line, 0, HeadLimits())
        with pytest.raises(BadRequest):
            parse_head(line + b"\r\n\r\n", HeadLimits())

    def test_a23_a_method_is_kept_as_it_was_sent(self) -> None:
        for method in (b"patch", b"Patch", b"PATCH", b"M-SEARCH", b"FOO", b"x" * 64):
            assert parse(line=method + b" / HTTP/1.1").method == method

    @pytest.mark.parametrize(
        ("fields", "line", "expects"),
        [
            ([b"Expect: 100-continue", b"Content-Length: 1"], b"POST / HTTP/1.1", True),
            ([b"expect: 100-Continue", b"Transfer-Encoding: chunked"], b"POST / HTTP/1.1", True),
            ([b"Expect: 100-continue, 100-continue", b"Content-Length: 1"], b"POST / HTTP/1.1", True),
            ([b"Expect: 100-continue"], b"POST / HTTP/1.1", False),
            ([b"Expect: 100-continue", b"Content-Length: 0"], b"POST / HTTP/1.1", False),
            ([b"Expect:", b"Content-Length: 1"], b"POST / HTTP/1.1", False),
            ([b"Content-Length: 1"], b"POST / HTTP/1.1", False),
            ([b"Expect: 100-continue", b"Content-Length: 1"], b"POST / HTTP/1.0", False),
            ([b"Expect: what", b"Content-Length: 1"], b"POST / HTTP/1.0", False),
        ],
    )
    def test_a10_a11_who_waits_for_100(self, fields: list[bytes], line: bytes, expects: bool) -> None:
        assert parse(*fields, line=line).expect_continue is expects

    @pytest.mark.parametrize(
        ("fields", "offered"),
        [
            ([b"Connection: Upgrade", b"Upgrade: WebSocket"], b"websocket"),
            ([b"Connection: keep-alive, upgrade", b"Upgrade: websocket"], b"websocket"),
            ([b"Connection: upgrade", b"Upgrade: h2c, websocket/13"], b"websocket/13"),
            ([b"Connection: upgrade", b"Upgrade: h2c"], None),
            ([b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: x"], None),
            ([b"Connection: upgrade", b"Upgrade: HTTP/2.0, TLS/1.0"], None),
            ([b"Connection: upgrade", b"Upgrade: a b"], None),
            ([b"Connection: upgrade"], None),
            ([b"Upgrade: websocket"], None),
            ([b"Connection: close", b"Upgrade: websocket"], None),
            ([b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 3"], None),
            ([b"Connection: upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked"], None),
        ],
    )
    def test_a5_the_upgrade_that_is_offered(self, fields: list[bytes], offered: bytes | None) -> None:
        assert parse(*fields, line=b"GET / HTTP/1.1").upgrade == offered

    def test_a5_http_1_0_cannot_upgrade(self) -> None:
        got = parse(b"Connection: upgrade", b"Upgrade: websocket", line=b"GET / HTTP/1.0")
        assert got.upgrade is None

    def test_a1_other_fields_may_be_nominated(self) -> None:
        assert parse(b"Connection: close, X-Foo, TE, Keep-Alive, Transfer-Encoding", b"X-Foo: 1")

    def test_empty_lines_are_counted(self) -> None:
        assert [blank_lines(data) for data in (b"GET", b"\r\nGET", b"\r\n\r\n\r", b"\n\r\n")] == [0, 2, 4, 0]


class TestWhatIsNoHeadYet:
    @each_of(*HOPELESS_HEADS)
    def test_it_is_refused_as_soon_as_nothing_can_mend_it(
        self, data: bytes, error: type[GatewayError]
    ) -> None:
        with pytest.raises(GatewayError) as caught:
            refuse_hopeless(data, 0, LIMITS)
        assert type(caught.value) is error

    def test_it_is_refused_at_the_same_byte_when_it_comes_byte_by_byte(self) -> None:
        for data in (
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nX: a\rb",
            b"GET / HTTP/1.1\r\nX: a\n",
            b"GET /\r\n",
        ):
            for size in range(1, len(data)):
                refuse_hopeless(data[:size], size - 1, LIMITS)
            with pytest.raises(BadRequest):
                refuse_hopeless(data, len(data) - 1, LIMITS)

    def test_no_beginning_of_a_good_head_is_refused(self) -> None:
        data = head(b"X: a\tb\xff", b"Content-Length: 3", line=b"PATCH /" + b"a" * 8191 + b" HTTP/1.1")
        for size in (*range(1, 60), *range(8000, len(data) - 1)):
            refuse_hopeless(data[:size], size - 1, LIMITS)
            refuse_hopeless(data[:size], 0, LIMITS)


class Message(NamedTuple):
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def ours(data: bytes) -> list[Message]:
    """All requests of a connection. Raises what is refused, and EOFError where something is missing."""
    return read_all(data)[0]


def read_all(data: bytes) -> tuple[list[Message], bytes]:
    """With the bytes that they were read from, without the empty lines between them, which h11 refuses."""
    messages: list[Message] = []
    read = b""
    while True:
        data = data[blank_lines(data) :]
        if not data:
            return messages, read
        start = data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            raise EOFError
        got = parse_head(data[:end], LIMITS)
        data = data[end:]
        if got.length == CHUNKED:
            body, data = read_chunked(data)
        else:
            if len(data) < got.length:
                raise EOFError
            body, data = data[: got.length], data[got.length :]
        messages.append(Message(got.method, got.target, got.headers, body))
        read += start[: len(start) - len(data)]
        if not got.keep_alive:
            return messages, read


def of_h11(data: bytes) -> list[Message]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    messages: list[Message] = []
    request: Any = None
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            messages.append(Message(request.method, request.target, list(request.headers), body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return messages
            connection.start_next_cycle()
        else:
            return messages


class OfHttptools:
    def __init__(self, data: bytes) -> None:
        self.messages: list[Message] = []
        self.parser: Any = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.in_head = True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # the trailers of F4
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages.append(Message(self.parser.get_method(), self.url, self.headers, self.body))


FIELD = st.sampled_from(
    [
        b"X: a", b"X-Y:b", b"x_y: caf\xe9", b"Empty:", b"Accept: */*", b"Cookie: a=1; b=2", b"X: \t a \t ",
        b"X: a:b",
        b"Connection: keep-alive", b"Connection: x", b"Content-Length: 5", b"Content-Length: 05",
        b"Content-Length: 5 ",
        b"Content-Length:\t5", b"Content-Length: +5", b"Content-Length: 5,5", b"Content-Length: 4",
        b"Content-Length : 5",
        b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding:", b" chunked", b"X:\rTransfer-Encoding: chunked", b"X:\nContent-Length: 9",
        b"Host: b",
        b"Content_Length: 3", b"Content-Length:", b"X\0: a", b"\xffTransfer-Encoding: chunked", b"Foo", b"",
    ]
)  # fmt: skip
METHODS = {b"GET", b"POST", b"PATCH", b"DELETE"}
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = st.sampled_from(
    [
        b"", b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\nT: u\r\n\r\n",
        HIDDEN,
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN), b"0\r\n\r\n" + HIDDEN, b"5\nhello\r\n0\r\n\r\n",
        b"\r\n",
        b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"05\r\nhello\r\n00\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n",
    ]
)  # fmt: skip
FRAMED = st.sampled_from(
    [
        ((), b""),
        ((b"Content-Length: %d" % len(HIDDEN),), HIDDEN),
        ((b"Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
        ((b"Transfer-Encoding: chunked",), b"1;a=b\r\nx\r\n00\r\nHost: b\r\n\r\n"),
    ]
)
LINE = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /a?b HTTP/1.1",
        b"PATCH /%2e/.. HTTP/1.1",
        b"GET / HTTP/1.0",
        b"DELETE //x HTTP/1.1",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests in a row, good and bad, the bytes of some of them damaged."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        fields = draw(st.lists(FIELD, max_size=2))
        framing, body = draw(FRAMED) if draw(st.booleans()) else ((), draw(BODY))
        data += head(*fields, *framing, line=draw(LINE)) + body
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 2))
        data = (
            data[:at]
            + draw(st.sampled_from([b"", b" ", b"\r", b"\n", b"\0", b"\t", b"a", b":"]))
            + data[at + cut :]
        )
    return data


@settings(max_examples=1500, deadline=None)
@given(requests())
def test_what_we_accept_others_read_as_the_same_messages(data: bytes) -> None:
    try:
        messages, read = read_all(data)
    except (RequestError, InvalidChunk, EOFError):
        return
    assert of_h11(read) == messages
    # llhttp has a list of methods, and takes no tab after a transfer coding.
    if messages and b"\t" not in read and all(message.method in METHODS for message in messages):
        assert OfHttptools(read).messages == messages


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([HIDDEN, b"\r\n", b"0\r\n\r\n", b"x", b"\0"]), max_size=5), st.integers(1, 50)
)
def test_a_request_hidden_in_a_body_is_never_seen(parts: list[bytes], size: int) -> None:
    """Where the framing says body, the next request is the one after the body."""
    body = b"".join(parts)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size])
        for at in range(0, len(body), size)
    )
    for framed in (
        head(b"Content-Length: %d" % len(body)) + body,
        head(b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n",
    ):
        messages = ours(framed + head(line=b"GET /next HTTP/1.1"))
        assert [(message.target, message.body) for message in messages] == [(b"/", body), (b"/next", b"")]


@settings(max_examples=600, deadline=None)
@given(requests())
def test_what_is_refused_before_its_end_is_refused_at_its_end(data: bytes) -> None:
    data = data[blank_lines(data) :]
    for cut in range(1, min(len(data), 150)):
        if b"\r\n\r\n" in data[:cut]:
            break
        try:
            refuse_hopeless(data[:cut], 0, LIMITS)
        except RequestError:
            with pytest.raises((RequestError, EOFError)):
                ours(data)
            break


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_are_a_head_or_a_refusal(line: bytes, fields: bytes) -> None:
    for data in (line + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n"):
        try:
            got = parse_head(data, LIMITS)
        except RequestError:
            continue
        assert got.target.startswith((b"/", b"*"))
        assert all(name == name.lower() and value == value.strip(b" \t") for name, value in got.headers)


LINES = [
    b"GET / HTTP/1.1", b"PATCH /a?b HTTP/1.1", b"GET /x HTTP/1.0", b"GET http://h/x HTTP/1.0",
    b"GET http://h/x HTTP/1.1", b"OPTIONS * HTTP/1.1", b"TRACE / HTTP/1.1", b"GET /x HTTP/1.7",
    b"BREW / HTTP/1.1", b"GET x HTTP/1.1", b"GET / HTTP/2.0", b"GET /%b HTTP/1.1" % (b"x" * 9000),
]  # fmt: skip
FIELDS = [
    b"Host: h", b"Content-Length: 3", b"content-length:  14 ", b"Content-Length: x", b"Content-Length:",
    b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close", b"Connection: upgrade",
    b"Upgrade: websocket", b"User-Agent: a", b"User-Agent:\tb b ", b"user-agent:", b"traceparent: \x01",
    b"Traceparent: 00-1-2", b"X-Request-Id: 1", b"X-Request-Id: 2%b", b"Date: a\rb", b"Date : c", b"X: y",
    b"Authorization: a", b"User-Agent", b"User-Agent: \xff", b"user-agent", b"Request-Id: 1", b"request-id:",
]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(LINES), st.lists(st.sampled_from(FIELDS), max_size=5)),
        min_size=2,
        max_size=8,
    )
)
def test_a_head_means_the_same_whatever_came_before(heads: list[tuple[bytes, list[bytes]]]) -> None:
    shapes, last = HeadShapes(most=2), None
    for line, fields in [one for one in heads for _ in range(3)]:
        data = b"\r\n".join([line, b"Host: g", *fields, b"", b""])
        try:
            fresh = parse_head(data, HeadLimits())
        except RequestError as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                parse_head(data, HeadLimits(), shapes, last)
            continue
        again = last = parse_head(data, HeadLimits(), shapes, last)
        assert filled(again.headers, again.values) == fresh.headers
        assert replace(again, headers=fresh.headers, values=(), block=None) == fresh


def shaped(*fields: bytes, shapes: HeadShapes) -> RequestHead:
    return parse_head(head(*fields, line=b"PATCH /p HTTP/1.1"), LIMITS, shapes)


def test_heads_that_differ_in_what_differs_from_call_to_call_have_the_same_fields() -> None:
    shapes = HeadShapes()
    heads = [
        shaped(
            b"User-Agent: %d" % n, b"X: y", b"Content-Length: %d" % n, b"traceparent: %d" % n, shapes=shapes
        )
        for n in range(4)
    ]
    assert heads[0].values == ()
    assert heads[1].headers is heads[2].headers is heads[3].headers
    assert [one.length for one in heads] == [0, 1, 2, 3]
    assert heads[3].values == (b"3", b"y", b"3", b"3")


OTHERS = [b"Accept: z", b"accept: y", b"Accept : y", b"Accept:y", b"X-Api-Key: b", b"X"]


@pytest.mark.parametrize("other", OTHERS)
def test_any_other_line_makes_another_shape(other: bytes) -> None:
    shapes = HeadShapes()
    for _ in range(3):
        before = shaped(b"Accept: y", shapes=shapes)
    for _ in range(3):
        try:
            after = shaped(other, shapes=shapes)
        except RequestError:
            continue
        assert after.headers is not before.headers


def test_no_value_is_kept_but_those_of_fixed_fields() -> None:
    """S6: a credential is kept no longer than the connection on which it came."""
    shapes = HeadShapes()
    secret = [b"Authorization: secret", b"X-Api-Key: secret", b"Cookie: a=secret"]
    for n in range(4):
        shaped(*secret, b"Y: %d" % n, shapes=shapes)
    assert len(shapes) == 1
    kept = [line for key in shapes._shapes for line in key if isinstance(line, bytes)]
    assert not any(b"secret" in line for line in [*kept, *shapes._lines])


def test_a_shape_that_is_large_is_not_remembered() -> None:
    shapes = HeadShapes()
    for _ in range(3):
        assert shaped(b"Accept: " + b"x" * 1024, shapes=shapes).values == ()
        shaped(*[b"X-%d: y" % n for n in range(60)], shapes=shapes)
    assert len(shapes) == 0


def test_a_head_that_comes_once_is_not_remembered() -> None:
    shapes = HeadShapes(most=2)
    for n in range(100):
        shaped(b"X-%d: y" % n, shapes=shapes)
    assert len(shapes) == 0
    for n in range(100):
        shaped(b"X-%d: y" % n, shapes=shapes)
    assert len(shapes) == 2
