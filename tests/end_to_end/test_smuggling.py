"""
No message hides another: what the gateway accepts is one message, the same one on either side of it.

Law: the oracle is never the gateway's own parser. What a client sent, and what the upstream received, is read
by h11 and by llhttp; where they see a message, the gateway may refuse it, but not see another.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import NamedTuple

import h11
import httptools
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.gateways import proxied
from tests.support.raw_upstream import Peer, RawUpstream, Script
from tests.support.serving import Client, connect

# A mutated message may lack its end: the gateway gives up soon after the last byte.
SHORT = {"head_timeout": "30ms", "body_timeout": "30ms", "keep_alive": "30ms"}
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
fuzzed = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


class Message(NamedTuple):
    method: bytes
    target: bytes
    body: bytes


def as_h11_reads(data: bytes) -> list[Message]:
    """The complete requests in `data`, up to the first that is wrong or incomplete."""
    found: list[Message] = []
    while True:
        data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2: an empty line before a request is nothing
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(data)
        body = b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return found
        except h11.RemoteProtocolError:
            return found
        found.append(Message(request.method, request.target, body))
        # A new connection for each request: h11 would wait for a reply first, or end after `close`.
        data = connection.trailing_data[0]


def as_llhttp_reads(data: bytes) -> list[Message] | None:
    """The complete requests in `data`. None where llhttp does not know a method."""
    found: list[Message] = []

    class Reader:
        target = body = b""

        def on_message_begin(self) -> None:
            self.target = self.body = b""

        def on_url(self, piece: bytes) -> None:
            self.target += piece

        def on_body(self, piece: bytes) -> None:
            self.body += piece

        def on_message_complete(self) -> None:
            found.append(Message(parser.get_method(), self.target, self.body))

    parser = httptools.HttpRequestParser(Reader())
    try:
        parser.feed_data(data)
    except httptools.HttpParserInvalidMethodError:
        return None
    except httptools.HttpParserError:
        pass
    return found


async def in_pieces(client: Client, data: bytes, cuts: list[int]) -> None:
    """Each piece is read before the next is sent: client and gateway share the loop."""
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    start = 0
    for end in ends:
        if start < end:
            await client.send(data[start:end])
            for _ in range(3):
                await asyncio.sleep(0)
        start = end


def sent_upstream(upstream: RawUpstream) -> list[Message]:
    """Since the last time: what both parsers agree that the upstream was asked for."""
    found: list[Message] = []
    for peer in upstream.peers:
        data = bytes(peer.received)
        peer.received.clear()
        seen = as_h11_reads(data)
        assert as_llhttp_reads(data) in (seen, None)
        found += seen
    return found


# Towards the upstream.

WITH_LENGTH = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN)
WITH_CHUNKS = (
    b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x;a=b\r\n%b\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n"
) % (len(HIDDEN), HIDDEN)
PIPELINE = WITH_LENGTH + WITH_CHUNKS + b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n"
MESSAGES = [
    Message(b"POST", b"/a", HIDDEN),
    Message(b"POST", b"/b", HIDDEN + b"!"),
    Message(b"GET", b"/c", b""),
]


async def test_requests_cut_at_every_byte_are_the_same_requests_upstream() -> None:
    async with proxied() as chain:
        for cut in range(1, len(PIPELINE)):
            await in_pieces(chain.client, PIPELINE, [cut])
            assert [(await chain.client.reply())[0] for _ in MESSAGES] == [200] * 3
            assert sent_upstream(chain.upstream) == MESSAGES
        assert len(chain.upstream.requests) == 3 * (len(PIPELINE) - 1)


async def test_requests_that_come_byte_by_byte_are_the_same_requests_upstream() -> None:
    async with proxied() as chain:
        await in_pieces(chain.client, PIPELINE, list(range(len(PIPELINE))))
        assert [(await chain.client.reply())[0] for _ in MESSAGES] == [200] * 3
        assert sent_upstream(chain.upstream) == MESSAGES


TOKENS = st.text("ABCdef-_.!", min_size=1, max_size=8).map(str.encode)
VALUES = st.text([chr(code) for code in (9, *range(32, 127), *range(128, 256))], max_size=12)
NAMES = TOKENS.map(lambda name: b"X-" + name)
FIELDS = st.lists(
    st.tuples(NAMES, VALUES.map(lambda value: value.encode("latin-1").strip(b"\t "))), max_size=4
)
TARGETS = st.text("/a.%2eF?&=;@:~|", max_size=12).map(lambda target: b"/" + target.encode())
BODIES = st.one_of(st.binary(max_size=64), st.just(HIDDEN), st.just(b"0\r\n\r\n" + HIDDEN))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Message, list[tuple[bytes, bytes]]]:
    method = draw(st.sampled_from([b"POST", b"PUT", b"DELETE", b"FOO"]))
    target, fields, body = draw(TARGETS), draw(FIELDS), draw(BODIES)
    head = b"%b %b HTTP/1.1\r\nHost: h\r\n" % (method, target) + b"".join(
        b"%b:%b\r\n" % pair for pair in fields
    )
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, Message(method, target, body), fields
    chunks, rest = b"", body
    while rest:
        size = draw(st.integers(1, len(rest)))
        chunks += b"%x\r\n%b\r\n" % (size, rest[:size])
        rest = rest[size:]
    return (
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        Message(method, target, body),
        fields,
    )


@fuzzed
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=12))
async def test_any_requests_in_any_pieces_are_the_same_requests_upstream(
    sent: list[tuple[bytes, Message, list[tuple[bytes, bytes]]]], cuts: list[int]
) -> None:
    async with proxied() as chain:
        await in_pieces(chain.client, b"".join(data for data, _, _ in sent), cuts)
        for _ in sent:
            assert (await chain.client.reply())[0] == 200
        assert sent_upstream(chain.upstream) == [message for _, message, _ in sent]
        for request, (_, _, fields) in zip(chain.upstream.requests, sent, strict=True):
            mine = [(name.lower(), value) for name, value in fields]
            assert [pair for pair in request.headers if pair[0] in dict(mine)] == mine


NASTY = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b":", b",", b";", b"=", b'"', b"0", b"1",
    b"+", b"-", b"_", b"0x", b"chunked", b"identity", b"\xff", b"/", b"?", b"#", b"@", b"HTTP/1.0",
    b"0\r\n\r\n", HIDDEN, *(b"\r\n" + line for line in (
        b"Content-Length: 5", b"Content-Length: 0", b"content-length : 9", b"Content-Encoding: gzip",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding:\r\n chunked",
        b"Transfer_Encoding: chunked", b"Trailer: Content-Length", b"Connection: close", b"Upgrade: h2c",
        b"Connection: content-length", b"Expect: 100-continue",
    )),
]  # fmt: skip


class Edit(NamedTuple):
    place: float  # of the message: 0 its beginning, 1 its end
    removed: int
    added: bytes

    def of(self, data: bytes) -> bytes:
        at = round(self.place * len(data))
        return data[:at] + self.added + data[at + self.removed :]


EDITS = st.lists(
    st.builds(Edit, st.floats(0, 1), st.integers(0, 3), st.one_of(st.sampled_from(NASTY), st.just(b""))),
    min_size=1,
    max_size=4,
)
CUTS = st.lists(st.integers(0, 300), max_size=3)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        data = edit.of(data)
    return data


@fuzzed
@given(st.sampled_from([WITH_LENGTH, WITH_CHUNKS, PIPELINE]), EDITS, CUTS)
@example(WITH_CHUNKS, [Edit(0.3, 0, b"\r\nContent-Length: 5")], [])
@example(PIPELINE, [Edit(0.859375, 0, b"\r\nTransfer-Encoding: identity")], [])
async def test_what_is_accepted_of_mangled_requests_is_what_others_read_in_them(
    data: bytes, edits: list[Edit], cuts: list[int]
) -> None:
    data = edited(data, edits)
    async with proxied(limits=SHORT) as chain:
        try:
            await in_pieces(chain.client, data, cuts)
            await chain.client.rest()
        except ConnectionError:
            pass  # the gateway has refused it, and is not listening any more
        accepted = sent_upstream(chain.upstream)
        assert accepted in [
            [reduced(message) for message in (read(seen) or [])[: len(accepted)]]
            for read in (as_h11_reads, as_llhttp_reads)
            for seen in (data, without_trailers(data))
        ]


def without_trailers(data: bytes) -> bytes:
    """
    Both parsers refuse some trailers for the names they have. The gateway drops them all, as a recipient may
    (RFC 9110 section 6.5.1): with them gone, what is left must be the same messages to everybody.
    """
    return re.sub(rb"(\r\n0+(?:;[^\r\n]*)?\r\n)(?:[^\r\n]+\r\n)+(?=\r\n)", rb"\1", data)


def reduced(message: Message) -> Message:
    """An absolute form is one request with its origin form (RFC 9112 section 3.2.2)."""
    scheme, separator, rest = message.target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        return message._replace(target=b"/" + rest.partition(b"/")[2])
    return message


# Towards the client.


REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX: y\r\n\r\n%b" % (len(EVIL), EVIL)
CHUNKED_REPLY = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n2;a=b\r\nok\r\n0\r\nX: y\r\n\r\n"
) % (len(EVIL), EVIL)


def reply_h11_reads(data: bytes) -> tuple[int, bytes] | None:
    """Status and body of the first reply, if it is complete without an end of the connection."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif event in (h11.NEED_DATA, h11.PAUSED):
                return None
    except h11.RemoteProtocolError:
        return None
    return status, body


def reply_llhttp_reads(data: bytes) -> tuple[int, bytes] | None:
    body: list[bytes] = []
    complete: list[int] = []

    class Reader:
        def on_body(self, piece: bytes) -> None:
            if not complete:
                body.append(piece)

        def on_message_complete(self) -> None:
            complete.append(parser.get_status_code())

    parser = httptools.HttpResponseParser(Reader())
    with contextlib.suppress(httptools.HttpParserError):
        parser.feed_data(data)
    return (complete[0], b"".join(body)) if complete else None


def saying(data: bytes, cuts: list[int]) -> Script:
    """Answers /first with `data` in pieces, and everything else with its target."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/first":
                start = 0
                for end in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
                    await peer.send(data[start:end])
                    start = end
                    for _ in range(3):
                        await asyncio.sleep(0)
            else:
                await peer.send(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.target) + request.target
                )

    return script


async def own(port: int) -> None:
    """The next client gets the replies to its own requests."""
    async with connect(port) as client:
        for target in (b"/mine/1", b"/mine/2"):
            await client.send(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)
            status, _, body = await client.reply()
            assert (status, body) == (200, target)


@pytest.mark.parametrize("data", [REPLY, CHUNKED_REPLY])
async def test_a_reply_cut_at_every_byte_is_the_same_reply(data: bytes) -> None:
    read = reply_h11_reads(data)
    cut = 0

    async def script(peer: Peer) -> None:
        nonlocal cut
        while True:
            await peer.request()
            cut += 1
            await peer.send(data[:cut])
            for _ in range(3):
                await asyncio.sleep(0)
            await peer.send(data[cut:])

    async with proxied(script) as chain:
        for _ in range(1, len(data)):
            await chain.client.send(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n")
            status, _, body = await chain.client.reply()
            assert (status, body) == read
        assert len(chain.upstream.peers) == 1


@fuzzed
@given(st.sampled_from([REPLY, CHUNKED_REPLY, REPLY + EVIL, CHUNKED_REPLY + EVIL]), EDITS, CUTS)
async def test_no_mangled_reply_is_read_otherwise_or_answers_another_request(
    data: bytes, edits: list[Edit], cuts: list[int]
) -> None:
    data = edited(data, edits)
    async with proxied(saying(data, cuts), to={"read_timeout": "100ms"}) as (_, running, client):
        await client.send(b"GET /first HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        raw = await client.rest()
        got = reply_h11_reads(raw)
        if got is not None and got[0] not in (502, 504):
            assert got in (reply_h11_reads(data), reply_llhttp_reads(data))
        await own(running.port)
