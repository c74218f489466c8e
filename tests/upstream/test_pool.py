"""The HTTP/1.1 transport over real sockets: what goes out, what comes in, and how connections are shared."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h11
import httpx
import pytest
import trustme
import uvloop
from aiohappyeyeballs import AddrInfoType, start_connection
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import (
    ConnectionRefused,
    ConnectionTerminated,
    InvalidReply,
    PoolExhausted,
    ReadTimeout,
    UpstreamError,
)
from gateway.http.headers import Fields, Header, Headers
from gateway.http.response_parser import ResponseParser
from gateway.http.writer import Unwritable
from gateway.upstream.connect import tls_context
from gateway.upstream.connection import Timeouts
from gateway.upstream.pool import Pool, PoolLimits
from gateway.upstream.reply import Reply
from tests.support.httpx_pool import HttpxPool
from tests.support.raw_upstream import OK, Peer, RawUpstream, Script, answering, deaf, silent

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")

Wire: TypeAlias = httpx.AsyncBaseTransport

HOST: Header = (b"host", b"upstream.test")
CHUNKED: Header = (b"transfer-encoding", b"chunked")


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Whatever is promised here is promised on both loops."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


TIMES = ("connect", "write", "read", "pool")


@contextlib.asynccontextmanager
async def pool_to(
    upstream: RawUpstream, *, tls: ssl.SSLContext | None = None, host: str | None = None, **options: Any
) -> AsyncIterator[Pool]:
    """A pool that must have let go of every socket at the end."""
    times = {name: options.pop(name) for name in TIMES if name in options}
    pool = Pool(
        "http" if tls is None else "https",
        host or upstream.host,
        upstream.port,
        tls=tls,
        timeouts=Timeouts(**times),
        limits=PoolLimits(**options),
    )
    yield pool
    pool.close()
    async with asyncio.timeout(5):
        await pool.wait_closed()
    assert (pool.size, pool.idle, pool.waiting) == (0, 0, 0)


async def fetch(
    pool: Pool, method: bytes = b"GET", target: bytes = b"/", headers: Headers = (), body: bytes | None = None
) -> tuple[Reply, bytes]:
    framing = [] if body is None else [(b"content-length", b"%d" % len(body))]
    reply = await pool.send(method, target, [HOST, *headers, *framing], body)
    return reply, await rest(reply)


async def rest(reply: Reply) -> bytes:
    pieces = []
    while piece := await reply.read():
        pieces.append(piece)
    assert reply.ended
    reply.close()
    return b"".join(pieces)


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


async def until(condition: Any) -> None:
    """Lets the loop go on until it is so."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never was so")


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# As httpx: the same requests and replies, through this transport and through httpx's own.


@pytest.fixture(params=["ours", "httpx"])
def transport(request: pytest.FixtureRequest) -> Wire:
    return HttpxPool() if request.param == "ours" else httpx.AsyncHTTPTransport(verify=False)


REPLIES: dict[str, tuple[bytes, int, bytes]] = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
    "length 0": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
    "chunked": (
        b"HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n",
        201,
        b"hello0123456789",
    ),
    "coding in capitals": (
        b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        200,
        b"a",
    ),
    "chunk extensions": (
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n',
        200,
        b"hello",
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\nSet-Cookie: \r\n\r\n",
        200,
        b"a",
    ),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nall of it", 200, b"all of it"),
    "until close, empty": (b"HTTP/1.1 200 OK\r\n\r\n", 200, b""),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old"),
    "HTTP/1.0, length": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold", 200, b"old"),
    "no reason": (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 200, b""),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
    "103 twice": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK, 200, b"ok"),
    "an error": (b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy", 503, b"busy"),
    "unknown status": (b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n", 799, b""),
    "obs-text": (b"HTTP/1.1 200 Sch\xf6n\r\nX: caf\xe9\r\nContent-Length: 0\r\n\r\n", 200, b""),
}


@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_is_what_httpx_takes_it_for(transport: Wire, name: str) -> None:
    raw, status, body = REPLIES[name]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)

    async with RawUpstream(script) as upstream, httpx.AsyncClient(transport=transport) as client:
        response = await client.get(f"http://127.0.0.1:{upstream.port}/")

        assert (response.status_code, response.content) == (status, body)
        assert "x-t" not in response.headers
        assert "link" not in response.headers
        assert "set-cookie" not in response.headers


async def test_repeated_fields_keep_their_order_and_are_not_joined(
    transport: Wire,
) -> None:
    raw = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: 1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
    async with RawUpstream(answering(raw)) as upstream, httpx.AsyncClient(transport=transport) as client:
        response = await client.get(f"http://127.0.0.1:{upstream.port}/")

        assert [(key.lower(), value) for key, value in response.headers.raw] == [
            (b"set-cookie", b"a=1"),
            (b"x", b"1"),
            (b"set-cookie", b"b=2"),
            (b"content-length", b"0"),
        ]


async def test_a_head_has_no_body_and_the_connection_is_kept(transport: Wire) -> None:
    heads = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    ]
    async with (
        RawUpstream(answering(*heads, OK)) as upstream,
        httpx.AsyncClient(transport=transport) as client,
    ):
        url = f"http://127.0.0.1:{upstream.port}/"
        replies = [await client.head(url) for _ in heads]
        last = await client.get(url)

        assert [reply.content for reply in replies] == [b""] * 4
        assert replies[0].headers["content-length"] == "500"
        assert last.content == b"ok"
        assert len(upstream.peers) == 1


async def test_the_same_bytes_go_out_as_from_httpx() -> None:
    async def sent_by(transport: Wire) -> list[bytes]:
        async with RawUpstream(answering(OK)) as upstream, httpx.AsyncClient(transport=transport) as client:
            url = f"http://127.0.0.1:{upstream.port}"
            await client.get(url + "/a%20b?c=d")
            await client.get(url + "/x", extensions={"target": b"/a/../b//c?"})
            await client.patch(url + "/p", json={"state": "connected"}, headers={b"X-Odd": b"caf\xe9"})
            await client.put(url + "/q", content=pieces_of(b"one", b"", b"three"))
            await client.put(url + "/r", content=pieces_of(b"one", b"two"), headers={"Content-Length": "6"})
            assert len(upstream.peers) == 1
            return [request.raw.replace(b":%d" % upstream.port, b"") for request in upstream.requests]

    ours = await sent_by(HttpxPool())

    assert ours == await sent_by(httpx.AsyncHTTPTransport(verify=False))
    assert ours[1].startswith(b"GET /a/../b//c? HTTP/1.1\r\n")
    assert ours[3].endswith(b"\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n")


async def test_a_closed_connection_is_not_used_again(transport: Wire) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with RawUpstream(answering(closing)) as upstream, httpx.AsyncClient(transport=transport) as client:
        for _ in range(3):
            await client.get(f"http://127.0.0.1:{upstream.port}/")

        assert len(upstream.peers) == 3


BROKEN: dict[str, bytes] = {
    "not HTTP": b"220 smtp.example ESMTP\r\n\r\n",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "lengths differ": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length signed": b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
    "length negative": b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "bare CR in a value": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
    "bad field name": b"HTTP/1.1 200 OK\r\nX(: a\r\nContent-Length: 0\r\n\r\n",
    "chunk size 0x": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size signed": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "chunk size missing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
    "chunk too long": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_httpx_refuses_is_refused(transport: Wire, name: str) -> None:
    async with (
        RawUpstream(answering(BROKEN[name])) as upstream,
        httpx.AsyncClient(transport=transport) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{upstream.port}/")


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
    ],
)
async def test_a_reply_that_breaks_off_is_an_error(transport: Wire, cut: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(cut)

    async with RawUpstream(script) as upstream, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.get(f"http://127.0.0.1:{upstream.port}/")


async def test_a_read_timeout_of_the_request_is_honoured(transport: Wire) -> None:
    async with RawUpstream(silent) as upstream, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"http://127.0.0.1:{upstream.port}/", timeout=httpx.Timeout(5, read=0.05))


async def test_a_timeout_of_none_is_none(transport: Wire) -> None:
    async with RawUpstream(answering(OK)) as upstream, httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(f"http://127.0.0.1:{upstream.port}/", timeout=None)).content == b"ok"


@pytest.mark.parametrize(
    "header", [("X", "a\r\nY: b"), ("X", "a\nb"), ("X", "a\0b"), ("X Y", "a"), ("X:", "a")]
)
async def test_a_header_that_would_split_the_request_is_not_sent(
    transport: Wire, header: tuple[str, str]
) -> None:
    async with RawUpstream(answering(OK)) as upstream, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.get(f"http://127.0.0.1:{upstream.port}/", headers=[header])
        assert b"".join(bytes(peer.received) for peer in upstream.peers) == b""


async def test_a_response_is_streamed(transport: Wire) -> None:
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        await more.wait()
        await peer.send(b"two")

    async with (
        RawUpstream(script) as upstream,
        httpx.AsyncClient(transport=transport) as client,
        client.stream("GET", f"http://127.0.0.1:{upstream.port}/") as response,
    ):
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"one"
        more.set()
        assert await anext(pieces) == b"two"


# The reply's reader: no input is read otherwise in pieces than at once.


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


STRICT: dict[str, bytes] = {
    "same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "empty length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
    "length of 2**64": b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nok",
    "coding and length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0",
    "identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "tab fold": b"HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\nContent-Length: 0\r\n\r\n",
    "fold at once": b"HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 0\r\n\r\n",
    "bare LF everywhere": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF at the end": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
    "bare CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
    "BEL in the reason": b"HTTP/1.1 200 O\7K\r\nContent-Length: 0\r\n\r\n",
    "BEL in a value": b"HTTP/1.1 200 OK\r\nX: \7\r\nContent-Length: 0\r\n\r\n",
    "DEL in a value": b"HTTP/1.1 200 OK\r\nX: \x7f\r\nContent-Length: 0\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n",
    "name not ASCII": b"HTTP/1.1 200 OK\r\nX\xe9: x\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "http/1.1": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status and reason in one": b"HTTP/1.1 200OK\r\nContent-Length: 0\r\n\r\n",
    "two spaces": b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    "an empty line first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "interim with a length": b"HTTP/1.1 103 Hi\r\nContent-Length: 2\r\n\r\n" + OK,
    "interim with a coding": b"HTTP/1.1 100 Hi\r\nTransfer-Encoding: chunked\r\n\r\n" + OK,
    "101 unasked": b"HTTP/1.1 101 Switch\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "101 without Upgrade": b"HTTP/1.1 101 Switch\r\n\r\n",
} | {
    f"chunk: {name}": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    for name, chunks in {
        "space after the size": b"2 \r\nok\r\n0\r\n\r\n",
        "space before the size": b" 2\r\nok\r\n0\r\n\r\n",
        "underscore": b"0_2\r\nok\r\n0\r\n\r\n",
        "bare LF after the size": b"2\nok\r\n0\r\n\r\n",
        "bare CR after the size": b"2\rok\r\n0\r\n\r\n",
        "bare LF after the data": b"2\r\nok\n0\r\n\r\n",
        "nothing after the data": b"2\r\nok0\r\n\r\n",
        "size of 17 digits": b"fffffffffffffffff\r\nok",
        "CR in an extension": b"2;a\rb\r\nok\r\n0\r\n\r\n",
        "LF in an extension": b"2;a\nb\r\nok\r\n0\r\n\r\n",
        "CTL in an extension": b"2;a\7\r\nok\r\n0\r\n\r\n",
        "NUL in an extension": b"2;a=\0\r\nok\r\n0\r\n\r\n",
        "bare LF at the end": b"0\r\n\n",
        "length in the trailers": b"0\r\nContent-Length: 4\r\n\r\n",
        "fold in the trailers": b"0\r\nX: a\r\n b\r\n\r\n",
        "NUL in the trailers": b"0\r\nX: \0\r\n\r\n",
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", STRICT)
def test_a_reply_that_breaks_the_rules_is_refused_however_it_is_split(name: str) -> None:
    raw = STRICT[name]
    for pieces in ([raw], *([raw[:at], raw[at:]] for at in range(1, len(raw)))):
        assert read(pieces)[2] is InvalidReply, pieces


async def test_a_refused_reply_closes_its_connection() -> None:
    async with RawUpstream(answering(STRICT["fold"]), answering(OK)) as upstream, pool_to(upstream) as pool:
        with pytest.raises(InvalidReply):
            await fetch(pool)
        assert pool.size == 0
        assert (await fetch(pool))[1] == b"ok"


@pytest.mark.parametrize("spare", [0, 1])
async def test_head_size_and_number_of_fields_are_limited(spare: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-0: a\r\nX-1: b\r\nContent-Length: 0\r\n\r\n"
    tight: list[dict[str, Any]] = [{"max_head": len(head) - 1 + spare}, {"max_headers": 2 + spare}]
    for limits in tight:
        script = answering(head, [head[:9], head[9:]])
        async with RawUpstream(script) as upstream, pool_to(upstream, **limits) as pool:
            for _ in range(2):
                if spare:
                    assert (await fetch(pool))[0].status == 200
                else:
                    with pytest.raises(InvalidReply, match=r"fields|larger"):
                        await fetch(pool)


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"a" * 1_000_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 1_000_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 200_000,
    ],
)
async def test_heads_extensions_and_trailers_without_end_are_refused(endless: bytes) -> None:
    async with RawUpstream(answering(endless)) as upstream, pool_to(upstream) as pool:
        with pytest.raises(InvalidReply):
            await fetch(pool)


async def test_a_reply_split_at_any_byte_arrives_over_a_socket() -> None:
    raw = b"HTTP/1.1 103 Hi\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"2;a\r\nok\r\n0\r\nT: t\r\n\r\n"
    splits = [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    async with RawUpstream(answering(*splits)) as upstream, pool_to(upstream) as pool:
        for _ in splits:
            reply, body = await fetch(pool)
            assert (reply.status, reply.headers, body) == (200, [CHUNKED], b"ok")
        assert len(upstream.peers) == 1


# Junk: what the upstream says unasked is never an answer.

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize(
    ("reply", "junk"),
    [
        (OK, EVIL),
        (OK, b"\r\n"),
        (OK, b"x"),
        (REPLIES["chunked"][0], EVIL),
        (REPLIES["chunked"][0], b"HTTP/1.1 200 OK\r\n\r\nevil"),
        (REPLIES["chunked"][0], b"HTTP/1.1 204 No Content\r\n\r\n"),
        (REPLIES["chunked"][0], b"\r\n"),
        (REPLIES["chunked"][0], b"x"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", EVIL),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 44\r\n\r\n", EVIL),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_bytes_behind_a_reply_close_the_connection(reply: bytes, junk: bytes, at_once: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*([reply + junk] if at_once else [reply, junk]))
        await peer.gone()

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream) as pool:
        _, body = await fetch(pool)
        assert b"evil" not in body
        await until(lambda: pool.size == 0)
        assert (await fetch(pool))[1] == b"ok"
        assert len(upstream.peers) == 2


@pytest.mark.parametrize("junk", [EVIL, b"\r\n", b""], ids=["a reply", "a line", "its end"])
async def test_what_waits_in_an_idle_socket_is_neither_the_next_reply_nor_missed(junk: bytes) -> None:
    """It has arrived, the loop has not yet seen it, and the next request is about to go out."""
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> socket.socket:
        connection, _ = listener.accept()
        heard.append(connection.recv(4096))
        connection.sendall(OK)
        return connection

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        pool = Pool("http", "127.0.0.1", listener.getsockname()[1])
        answered = loop.run_in_executor(None, answer, listener)
        await fetch(pool)
        first = await answered
        answered = loop.run_in_executor(None, answer, listener)
        await ticks(5)
        assert pool.idle == 1

        if junk:
            first.sendall(junk)
        else:
            first.shutdown(socket.SHUT_WR)
        _, body = await fetch(pool, b"PATCH", body=b"{}")

        assert body == b"ok"
        assert heard[1].startswith(b"PATCH")
        first.close()
        (await answered).close()
        pool.close()
        await pool.wait_closed()


async def test_a_reply_to_head_that_has_a_body_is_cut_off() -> None:
    wrong = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with RawUpstream(answering(wrong), answering(OK)) as upstream, pool_to(upstream) as pool:
        reply, body = await fetch(pool, b"HEAD")
        assert (reply.status, body, pool.size) == (200, b"", 0)
        assert (await fetch(pool))[1] == b"ok"


# Requests.


async def test_head_and_small_body_leave_as_one_segment() -> None:
    async def script(peer: Peer) -> None:
        assert (
            await peer.read() == b"PATCH /a?b HTTP/1.1\r\nhost: upstream.test\r\ncontent-length: 2\r\n\r\n{}"
        )
        await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        await fetch(pool, b"PATCH", b"/a?b", body=b"{}")


async def test_a_body_of_bytes_is_sent_in_either_framing() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        for body in (b"", b"small", b"x" * 1_000_000):
            await fetch(pool, b"PUT", body=body)
            await rest(await pool.send(b"PUT", b"/", [HOST, CHUNKED], body))
            await rest(await pool.send(b"PUT", b"/", [HOST], body))
            assert [request.body for request in upstream.requests[-3:]] == [body, body, body]
            assert (b"content-length", b"%d" % len(body)) in upstream.requests[-1].headers
        assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        (b"GET", b"/a b", [HOST], None),
        (b"GET", b"/a\r\nX: y", [HOST], None),
        (b"GET", b"", [HOST], None),
        (b"GET", b"/caf\xe9", [HOST], None),
        (b"GE T", b"/", [HOST], None),
        (b"", b"/", [HOST], None),
        (b"CONNECT", b"a:1", [HOST], None),
        (b"GET", b"/", [HOST, (b"x", b"a\nb")], None),
        (b"GET", b"/", [HOST, (b"x", b"a\r\ny: b")], None),
        (b"GET", b"/", [HOST, (b"x: y\r\nz", b"")], None),
        (b"GET", b"/", [HOST, (b"x: y", b"z")], None),
        (b"GET", b"/", [HOST, (b"", b"z")], None),
        (b"PUT", b"/", [HOST, (b"content-length", b"3")], b"four"),
        (b"PUT", b"/", [HOST, (b"content-length", b"3")], None),
        (b"PUT", b"/", [HOST, (b"content-length", b"+4")], b"four"),
        (b"PUT", b"/", [HOST, (b"Content-Length", b"4"), (b"content-length", b"4")], b"four"),
        (b"PUT", b"/", [HOST, (b"content-length", b"4"), (b"Transfer-encoding", b"chunked")], b"four"),
        (b"PUT", b"/", [HOST, CHUNKED, (b"content-length", b"4")], b"four"),
        (b"PUT", b"/", [HOST, (b"transfer-encoding", b"gzip, chunked")], b"four"),
    ],
)
async def test_a_request_that_breaks_the_rules_is_not_sent(
    method: bytes, target: bytes, headers: list[Header], body: bytes | None
) -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        with pytest.raises(Unwritable):
            await pool.send(method, target, headers, body)
        assert upstream.peers == []


async def test_a_calls_own_fields_follow_those_that_it_shares() -> None:
    shared = Fields([HOST, (b"x-shared", b"1")])
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        for own in ([(b"x-own", b"2")], [(b"x-own", b"3"), (b"content-length", b"4")], []):
            await rest(await pool.send(b"PUT", b"/", shared, b"four", extra_headers=own))
            length = b"" if own[1:] else b"content-length: 4\r\n"
            lines = b"".join(b"%b: %b\r\n" % pair for pair in (*shared, *own))
            assert upstream.requests[-1].raw == b"PUT / HTTP/1.1\r\n" + lines + length + b"\r\nfour"


@pytest.mark.parametrize(
    "own",
    [
        [(b"x", b"a\r\nb: c")],
        [(b"x: y", b"z")],
        [(b"content-length", b"4")],
        [(b"transfer-encoding", b"chunked")],
    ],
)
async def test_own_fields_that_break_the_rules_are_not_sent(own: list[Header]) -> None:
    shared = Fields([HOST, (b"content-length", b"4")])
    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        for _ in range(2):
            with pytest.raises(Unwritable):
                await pool.send(b"PUT", b"/", shared, b"four", extra_headers=own)
        assert upstream.peers == []


async def test_a_request_that_says_close_leaves_no_connection() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool, headers=[(b"connection", b"x, Close")])
        assert pool.size == 0


async def test_a_stream_is_sent_as_it_comes() -> None:
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(peer: Peer) -> None:
        await peer.head()
        while (piece := await peer.read()) != b"5\r\nthree\r\n0\r\n\r\n":
            seen.put_nowait(piece)
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        assert await seen.get() == b"3\r\none\r\n"
        yield b""
        yield b"two"
        assert await seen.get() == b"3\r\ntwo\r\n"
        yield b"three"

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        assert await rest(await pool.send(b"PUT", b"/", [HOST, CHUNKED], body())) == b"ok"
        assert pool.idle == 1


@pytest.mark.parametrize("body", [(), (b"abc",), (b"abc", b"def", b"g"), (b"abcdefg",)])
async def test_a_stream_that_belies_its_length_is_broken_off(body: tuple[bytes, ...]) -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        with pytest.raises(Unwritable):
            await pool.send(b"PUT", b"/", [HOST, (b"content-length", b"6")], pieces_of(*body))
        assert pool.size == 0
        assert b"g" not in bytes(upstream.peers[0].received).partition(b"\r\n\r\n")[2]


async def test_what_a_stream_raises_is_raised_and_the_request_broken_off() -> None:
    class ClientGoneError(OSError):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise ClientGoneError

    broken_off = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.gone()
        broken_off.set()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ClientGoneError):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], body())
        await broken_off.wait()
        assert not upstream.peers[0].received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("complete", [True, False])
async def test_an_early_refusal_is_delivered_at_once_and_stops_the_upload(complete: bool) -> None:
    stopped = asyncio.Event()
    finish = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(
            b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\n" + b"nono"[: 4 if complete else 2]
        )
        await finish.wait()
        if not complete:
            await peer.send(b"no")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"PUT", b"/", [HOST, (b"content-length", b"1000")], body())
        assert reply.status == 413
        await stopped.wait()
        finish.set()
        assert await rest(reply) == b"nono"
        assert pool.size == 0


async def test_an_early_success_goes_on_with_the_upload_until_it_is_complete() -> None:
    """An upstream may answer while it reads: an echo does."""
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        yield b"two"

    async def echo(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (piece := await peer.read()) and not piece.endswith(b"0\r\n\r\n"):
            await peer.send(piece)
        await peer.send(piece)
        await peer.gone()

    async with RawUpstream(echo) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"POST", b"/", [HOST, CHUNKED], body())
        assert await reply.read() == b"one"
        go_on.set()
        assert await rest(reply) == b"two"
        assert pool.idle == 1


async def test_a_complete_early_success_ends_the_upload_and_the_connection() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        assert await rest(await pool.send(b"POST", b"/", [HOST, CHUNKED], body())) == b"ok"
        assert pool.size == 0


async def test_a_reply_before_a_large_body_was_taken_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        assert (await fetch(pool, b"PUT", body=b"x" * 50_000_000))[1] == b"ok"
        assert pool.size == 0


async def test_leaving_is_told_right_before_the_first_byte_and_may_forbid_it() -> None:
    class TooLateError(Exception):
        pass

    def forbid() -> None:
        raise TooLateError

    left: list[int] = []
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        for _ in range(2):
            with pytest.raises(TooLateError):
                await pool.send(b"PATCH", b"/", [HOST], before_send=forbid)
            await rest(await pool.send(b"GET", b"/", [HOST], before_send=lambda: left.append(pool.idle)))
        assert left == [0, 0]
        assert [request.method for request in upstream.requests] == [b"GET", b"GET"]
        assert len(upstream.peers) == 1


class Party:
    """Requests that are to leave in one turn of the loop: what was called, and what has been sent by then."""

    def __init__(self, pool: Pool, upstream: RawUpstream) -> None:
        self.pool = pool
        self.upstream = upstream
        self.called: list[str] = []
        self.fails: Exception | None = None
        self.sent_before: list[bytes] = []

    def commit(self) -> None:
        self.called.append("commit")
        self.sent_before = self.sent
        if self.fails is not None:
            raise self.fails

    async def send(self, name: str, error: Exception | None = None, *, commits: bool = True) -> bytes:
        def before_send() -> Callable[[], None] | None:
            self.called.append(name)
            if error is not None:
                raise error
            return self.commit if commits else None

        return await rest(
            await self.pool.send(b"PATCH", b"/" + name.encode(), [HOST], before_send=before_send)
        )

    @property
    def sent(self) -> list[bytes]:
        return sorted(one.target for one in self.upstream.requests if one.method == b"PATCH")


@contextlib.asynccontextmanager
async def party(connections: int, **options: Any) -> AsyncIterator[Party]:
    """A pool of which one connection is busy, the others idle."""
    held = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if (await peer.request()).target == b"/held":
                await held.wait()
            await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, **options) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(fetch(pool))
        busy = asyncio.ensure_future(fetch(pool, target=b"/held"))
        await ticks(3)
        assert pool.idle == connections - 1
        yield Party(pool, upstream)
        held.set()
        await busy
        assert pool.idle == pool.size


async def test_requests_that_leave_together_are_committed_once_before_a_byte_of_any_goes_out() -> None:
    async with party(5) as them:
        await asyncio.gather(*(them.send(name) for name in "abcd"))

        assert them.called == ["a", "b", "c", "d", "commit"]
        assert them.sent_before == []
        assert them.sent == [b"/a", b"/b", b"/c", b"/d"]


async def test_who_is_alone_leaves_at_once() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        them = Party(pool, upstream)
        call = asyncio.ensure_future(them.send("a"))
        await asyncio.sleep(0)
        assert them.called == ["a", "commit"]
        await call


async def test_a_commit_that_fails_keeps_all_back_that_asked_for_it_and_nobody_else() -> None:
    async with party(5) as them:
        them.fails = OSError("the disk is full")
        calls = [them.send("a"), them.send("b"), them.send("c", commits=False)]
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [*results] == [them.fails, them.fails, b"ok"]
        assert them.sent == [b"/c"]
        them.fails = None
        assert [*await asyncio.gather(*map(them.send, "de"))] == [b"ok", b"ok"]


async def test_who_may_not_leave_keeps_nobody_else_back() -> None:
    error = ValueError("too old")
    async with party(5) as them:
        gone = asyncio.ensure_future(them.send("gone"))
        results = asyncio.gather(
            them.send("a"), them.send("b", error), them.send("c"), return_exceptions=True
        )
        await asyncio.sleep(0)
        gone.cancel()

        assert [*await results] == [b"ok", error, b"ok"]
        assert gone.cancelled()
        assert them.called == ["a", "b", "c", "commit"]
        assert them.sent == [b"/a", b"/c"]


async def test_who_finds_no_connection_idle_goes_on_alone() -> None:
    async with party(3, max_connections=3) as them:
        assert await asyncio.gather(*(them.send(name) for name in "abcd")) == [b"ok"] * 4

        assert them.called[:3] == ["a", "b", "commit"]
        assert sorted(them.called[3:]) == ["c", "commit", "commit", "d"]
        assert them.sent == [b"/a", b"/b", b"/c", b"/d"]


async def test_a_connection_that_dies_while_they_are_about_to_leave_is_not_used() -> None:
    async with party(3) as them:
        call = asyncio.ensure_future(them.send("a"))
        await asyncio.sleep(0)
        for connection in list(them.pool._idle):
            connection.close()

        assert await call == b"ok"
        assert them.sent == [b"/a"]


async def test_a_stream_that_is_cancelled_from_within_is_a_write_error() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise asyncio.CancelledError

    async with RawUpstream(silent) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated):
            await pool.send(b"PUT", b"/", [HOST, CHUNKED], body())
        assert pool.size == 0


# Replies as they come.


async def test_ended_is_known_with_the_head_when_the_body_came_with_it() -> None:
    async with RawUpstream(answering(OK, b"HTTP/1.1 204 No\r\n\r\n")) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        assert not reply.ended
        assert await reply.read() == b"ok"
        assert reply.ended
        assert await reply.read() == b""

        assert (await pool.send(b"GET", b"/", [HOST])).ended


async def test_the_connection_is_free_once_the_body_has_arrived() -> None:
    """Not only when it was read: a slow client holds no connection for a small reply."""
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        first = await pool.send(b"GET", b"/1", [HOST])
        second = await pool.send(b"GET", b"/2", [HOST])
        first.close()

        assert await rest(second) == b"ok"
        assert await first.read() == b"ok"
        assert len(upstream.peers) == 1


async def test_a_reply_closed_before_its_end_closes_the_connection() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await peer.gone()
        left.set()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        reply.close()
        reply.close()
        assert pool.size == 0
        assert not reply.ended
        assert await reply.read() == b"hel"
        with pytest.raises(ConnectionTerminated):
            await reply.read()
        await left.wait()


async def test_a_forgotten_reply_is_closed_with_a_warning() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        forgotten = [await pool.send(b"GET", b"/", [HOST])]
        with pytest.warns(ResourceWarning, match="neither read nor closed"):
            forgotten.clear()
        await ticks(2)
        gc.collect()
        assert pool.size == 0


async def test_only_one_may_wait_for_the_next_piece() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        first = asyncio.create_task(reply.read())
        await ticks(2)
        with pytest.raises(RuntimeError, match="another"):
            await reply.read()
        reply.close()
        with pytest.raises(ConnectionTerminated):
            await first


BIG = 96 * 1024 * 1024
BLOCK = b"x" * 262_144


@pytest.mark.parametrize(
    "framing", [b"Content-Length: %d" % BIG, b"Transfer-Encoding: chunked", b"X: until close"]
)
async def test_a_slow_reader_stops_the_upstream(framing: bytes) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        while sent < BIG:
            chunked = framing.endswith(b"chunked")
            await peer.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK)
            sent += len(BLOCK)
        if framing.endswith(b"chunked"):
            await peer.send(b"0\r\n\r\n")

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < BIG / 2
        first = await reply.read()
        assert len(first) < 1_000_000
        got = len(first)
        while piece := await reply.read():
            got += len(piece)
        assert got == BIG


async def test_a_slow_upstream_stops_the_stream_it_is_sent() -> None:
    given = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += len(BLOCK)
            yield BLOCK

    async with RawUpstream(deaf) as upstream, pool_to(upstream) as pool:
        sending = asyncio.create_task(pool.send(b"PUT", b"/", [HOST, CHUNKED], body()))
        before = -1
        while given != before or not given:
            before = given
            await asyncio.sleep(0.05)
        assert given < BIG / 2
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


# Upgrades.

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
UPGRADE: list[Header] = [HOST, (b"connection", b"upgrade"), (b"upgrade", b"echo")]


async def echo_tunnel(peer: Peer) -> None:
    await peer.request()
    await peer.send(SWITCH + b"hello ")
    while piece := await peer.read():
        await peer.send(piece)
    await peer.send(b"bye")


async def test_an_upgrade_that_was_asked_for_is_a_tunnel() -> None:
    async with RawUpstream(echo_tunnel) as upstream, pool_to(upstream) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        assert tunnel.status == 101
        assert (b"upgrade", b"echo") in tunnel.headers
        assert await tunnel.read() == b"hello "
        await tunnel.write(b"HTTP/1.1 200 OK\r\n\r\n")
        assert await tunnel.read() == b"HTTP/1.1 200 OK\r\n\r\n"
        tunnel.write_eof()
        assert await tunnel.read() == b"bye"
        assert await tunnel.read() == b""
        assert pool.size == 1
        tunnel.close()
        tunnel.close()
        assert pool.size == 0
        with pytest.raises(ConnectionTerminated):
            await tunnel.write(b"too late")


async def test_what_was_written_before_a_tunnel_is_closed_still_arrives() -> None:
    got = bytearray()
    over = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        while piece := await peer.read():
            got.extend(piece)
        over.set()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        await tunnel.write(b"the last words" * 1000)
        tunnel.close()
        await over.wait()
        assert got == b"the last words" * 1000


async def test_a_tunnel_outlives_the_deadlines_of_a_request() -> None:
    speak = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await speak.wait()
        await peer.send(b"late")
        await peer.gone()

    async with RawUpstream(script) as upstream, pool_to(upstream, read=0.05) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        reading = asyncio.create_task(tunnel.read())
        await asyncio.sleep(0.15)
        speak.set()
        assert await reading == b"late"
        tunnel.close()


async def test_a_tunnel_that_is_reset_raises() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await peer.read()
        peer.reset()

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        await tunnel.write(b"a")
        with pytest.raises(ConnectionTerminated, match="tunnel"):
            await tunnel.read()
        with pytest.raises(ConnectionTerminated):
            await tunnel.write(b"b")
        assert pool.size == 0


async def test_a_writer_into_a_tunnel_waits_for_a_slow_upstream_and_no_longer_than_allowed() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream, write=0.1) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        with pytest.raises(ConnectionTerminated):
            await tunnel.write(BLOCK * 300)


async def test_a_tunnel_closed_before_the_upstream_took_everything_does_not_linger_for_ever() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCH)
        await deaf(peer)

    async with RawUpstream(script) as upstream, pool_to(upstream, write=0.1) as pool:
        tunnel = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        writing = asyncio.create_task(tunnel.write(BLOCK * 300))
        await ticks(5)
        tunnel.close()
        with pytest.raises(ConnectionTerminated):
            await writing
        tunnel.write_eof()
        assert await tunnel.read() == b""


async def test_an_upgrade_may_be_declined() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        assert reply.status == 200
        assert await rest(reply) == b"ok"
        assert pool.idle == 1


# The pool.


async def test_the_connection_that_came_back_last_is_taken_first() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(3)))
        assert (pool.size, pool.idle) == (3, 3)
        for _ in range(5):
            await fetch(pool)
        assert sorted(peer.received.count(b"GET") for peer in upstream.peers) == [1, 1, 6]


async def test_connections_are_bounded() -> None:
    busy = most = 0

    async def script(peer: Peer) -> None:
        nonlocal busy, most
        while True:
            await peer.request()
            busy += 1
            most = max(most, busy)
            await ticks(3)
            busy -= 1
            await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream, max_connections=3) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(40)))
        assert most <= 3
        assert len(upstream.peers) == 3


async def test_who_waits_is_served_in_the_order_of_arrival() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        await asyncio.gather(*(fetch(pool, target=b"/%d" % number) for number in range(40)))
        assert [request.target for request in upstream.requests] == [b"/%d" % number for number in range(40)]


async def test_who_waits_gets_the_place_of_a_connection_that_closed() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with RawUpstream(answering(closing)) as upstream, pool_to(upstream, max_connections=1) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(10)))
        assert len(upstream.peers) == 10


async def test_who_waits_too_long_for_a_connection_is_told_so() -> None:
    async with RawUpstream(silent) as upstream, pool_to(upstream, max_connections=1, pool=0.05) as pool:
        first = asyncio.create_task(pool.send(b"GET", b"/", [HOST]))
        await until(lambda: upstream.peers)
        with pytest.raises(PoolExhausted):
            await fetch(pool)
        assert (pool.waiting, pool.size) == (0, 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool.size == 0


async def test_a_connection_idle_for_long_is_closed() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.gone()
        left.set()

    async with RawUpstream(script) as upstream, pool_to(upstream, idle_timeout=0.05) as pool:
        await fetch(pool)
        assert pool.idle == 1
        async with asyncio.timeout(2):
            await left.wait()
        assert pool.size == 0


async def test_only_those_idle_for_long_are_closed() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, idle_timeout=0.3) as pool:
        await asyncio.gather(*(fetch(pool) for _ in range(3)))
        for _ in range(5):
            await asyncio.sleep(0.1)
            await fetch(pool)
        assert (pool.size, len(upstream.peers)) == (1, 3)


async def test_an_old_connection_is_replaced() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_lifetime=0.05) as pool:
        await fetch(pool)
        await asyncio.sleep(0.06)
        await fetch(pool)
        assert len(upstream.peers) == 2


async def test_a_connection_that_the_upstream_closed_while_idle_is_not_used() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with RawUpstream(script) as upstream, pool_to(upstream) as pool:
        for number in range(1, 4):
            await fetch(pool, b"PATCH", body=b"{}")
            await until(lambda: pool.idle == 0)
            assert len(upstream.requests) == number


async def test_close_ends_idle_connections_at_once_and_busy_ones_with_their_reply() -> None:
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await finish.wait()
        await peer.send(b"lo")
        await peer.gone()

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream) as pool:
        reply = await pool.send(b"GET", b"/", [HOST])
        await fetch(pool)
        assert (pool.size, pool.idle) == (2, 1)
        pool.close()
        assert (pool.size, pool.idle) == (1, 0)
        with pytest.raises(RuntimeError, match="closed"):
            await fetch(pool)
        finish.set()
        assert await rest(reply) == b"hello"
        await pool.wait_closed()


async def test_who_waits_when_the_pool_is_closed_is_still_served() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        waiting = [asyncio.create_task(fetch(pool)) for _ in range(5)]
        await until(lambda: upstream.requests)
        pool.close()
        assert [body for _, body in await asyncio.gather(*waiting)] == [b"ok"] * 5


CANCELLED_IN = {
    "the head": silent,
    "the body": answering([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"a", b"b", b"c", b"d", b"e"]),
    "a quick reply": answering(OK),
}


@pytest.mark.parametrize("where", CANCELLED_IN)
@pytest.mark.parametrize("streamed", [True, False])
async def test_cancelling_at_any_point_loses_no_connection(where: str, streamed: bool) -> None:
    async def call(pool: Pool) -> None:
        body = pieces_of(b"a", b"b", b"c") if streamed else b"3\r\nabc\r\n0\r\n\r\n"
        reply = await pool.send(b"PUT", b"/", [HOST, CHUNKED], body)
        try:
            while await reply.read():
                pass
        finally:
            reply.close()

    async with RawUpstream(CANCELLED_IN[where]) as upstream, pool_to(upstream, max_connections=2) as pool:
        for steps in range(30):
            calls = [asyncio.create_task(call(pool)) for _ in range(5)]
            await ticks(steps)
            for task in calls:
                task.cancel()
            await asyncio.wait(calls)
            assert pool.size == pool.idle
            assert pool.waiting == 0
        assert pool.size <= 2


async def test_a_place_in_the_queue_that_is_cancelled_as_it_is_served_is_passed_on() -> None:
    async with RawUpstream(answering(OK)) as upstream, pool_to(upstream, max_connections=1) as pool:
        for steps in range(25):
            first, second, third = (asyncio.create_task(fetch(pool)) for _ in range(3))
            await ticks(steps)
            second.cancel()
            await asyncio.wait([first, second, third])
            assert (await first)[1] == (await third)[1] == b"ok"
            assert (pool.size, pool.idle) == (1, 1)


# A dead connection is replaced only where that can do no harm.


def dying() -> Script:
    """Answers once; reads the second request and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    return script


async def closing(peer: Peer) -> None:
    await peer.request()


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"TRACE"])
async def test_a_safe_request_goes_out_again_when_a_kept_connection_dies(method: bytes) -> None:
    async with RawUpstream(dying(), answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        reply, _ = await fetch(pool, method)
        assert reply.status == 200
        assert [request.method for request in upstream.requests] == [b"GET", method, method]


@pytest.mark.parametrize("method", [b"PATCH", b"POST", b"PUT", b"DELETE", b"get", b"PROPFIND"])
async def test_no_other_request_goes_out_again(method: bytes) -> None:
    async with RawUpstream(dying(), answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool, method, body=b"{}")
        assert [request.method for request in upstream.requests] == [b"GET", method]


async def test_a_safe_request_goes_out_again_only_once() -> None:
    async with RawUpstream(dying(), closing) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)
        assert len(upstream.requests) == 3


async def test_a_request_whose_reply_had_begun_does_not_go_out_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)
        assert len(upstream.requests) == 2


async def test_a_safe_request_with_a_stream_does_not_go_out_again() -> None:
    async with RawUpstream(dying(), answering(OK)) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(UpstreamError):
            await pool.send(b"GET", b"/", [HOST, CHUNKED], pieces_of(b"a"))
        assert len(upstream.requests) == 2


async def test_a_first_use_of_a_connection_that_dies_is_not_repeated() -> None:
    async with RawUpstream(closing) as upstream, pool_to(upstream) as pool:
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)
        assert len(upstream.requests) == 1


async def test_a_timeout_is_not_followed_by_a_second_try() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.gone()

    async with RawUpstream(script, answering(OK)) as upstream, pool_to(upstream, read=0.1) as pool:
        await fetch(pool)
        with pytest.raises(ReadTimeout):
            await fetch(pool)
        assert len(upstream.requests) == 2


async def test_a_second_try_makes_room_in_a_full_pool() -> None:
    scripts = dying(), dying(), answering(OK)
    async with RawUpstream(*scripts) as upstream, pool_to(upstream, max_connections=2) as pool:
        await asyncio.gather(fetch(pool), fetch(pool))
        assert pool.idle == 2
        await fetch(pool)
        assert len(upstream.peers) == 3


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_tls_names_the_host_and_speaks_http_1_1(authority: trustme.CA, ca_file: str) -> None:
    asked: list[str | None] = []
    chosen: list[str | None] = []
    context = serving(authority, "localhost")
    context.sni_callback = lambda _socket, name, _context: asked.append(name)

    async def script(peer: Peer) -> None:
        chosen.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answering(OK)(peer)

    async with (
        RawUpstream(script, tls=context) as upstream,
        pool_to(upstream, tls=tls_context(ca_file), host="localhost") as pool,
    ):
        assert (await fetch(pool))[1] == b"ok"
        assert (await fetch(pool, b"PATCH", body=b"x" * 1_000_000))[1] == b"ok"
        assert len(upstream.requests[-1].body) == 1_000_000
        assert len(upstream.peers) == 1
    assert (asked, chosen) == (["localhost"], ["http/1.1"])


async def test_a_client_certificate_is_shown(authority: trustme.CA, ca_file: str, tmp_path: Path) -> None:
    context = serving(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    own = authority.issue_cert("client.test")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))

    async with RawUpstream(answering(OK), tls=context) as upstream:
        async with pool_to(upstream, tls=tls_context(ca_file, str(tmp_path / "own.pem"))) as pool:
            assert (await fetch(pool))[1] == b"ok"
        async with pool_to(upstream, tls=tls_context(ca_file)) as pool:
            with pytest.raises((ConnectionTerminated, ConnectionTerminated, ConnectionRefused)):
                await fetch(pool)


async def test_a_tunnel_that_ends_as_it_opens_is_a_tunnel(authority: trustme.CA, ca_file: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(SWITCH)
        peer.writer.close()

    async with (
        RawUpstream(script, tls=serving(authority, "127.0.0.1")) as upstream,
        pool_to(upstream, tls=tls_context(ca_file)) as pool,
    ):
        reply = await pool.send(b"GET", b"/", UPGRADE, upgrade=True)
        assert await reply.read() == b""
        reply.close()


def test_verification_cannot_be_switched_off() -> None:
    careless = ssl.create_default_context()
    careless.check_hostname = False
    with pytest.raises(ValueError, match="verify"):
        Pool("https", "localhost", 443, tls=careless)
    careless.verify_mode = ssl.CERT_NONE
    with pytest.raises(ValueError, match="verify"):
        Pool("https", "localhost", 443, tls=careless)
    assert tls_context().verify_mode is ssl.CERT_REQUIRED
    assert tls_context().check_hostname


async def test_a_body_until_close_is_complete_over_tls_only_if_the_upstream_says_so(
    authority: trustme.CA, ca_file: str
) -> None:
    """RFC 9112 section 9.8: a TCP end without a closure alert is what an attacker can make."""
    cut = False

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if cut:
            await asyncio.sleep(0.05)
            peer.reset()

    async with (
        RawUpstream(script, tls=serving(authority, "127.0.0.1")) as upstream,
        pool_to(upstream, tls=tls_context(ca_file)) as pool,
    ):
        assert (await fetch(pool))[1] == b"hello"
        cut = True
        with pytest.raises(ConnectionTerminated):
            await fetch(pool)


# Addresses: the library that tries them, on both loops.


def info(address: Any) -> AddrInfoType:
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address


async def test_a_refused_address_is_followed_by_the_next() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = info(unused.getsockname())
        async with RawUpstream(silent) as upstream:
            good = info(("127.0.0.1", upstream.port))
            for addresses in ([refused, good], [good, refused], [refused, refused, good]):
                async with asyncio.timeout(2):
                    connected = await start_connection(addresses, happy_eyeballs_delay=60)
                assert connected.getpeername() == good[4]
                connected.close()
            with pytest.raises(ConnectionRefusedError):
                await start_connection([refused, refused], happy_eyeballs_delay=60)


async def test_a_silent_address_is_overtaken_by_the_next() -> None:
    # A listener that is full: further connections neither succeed nor fail.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with RawUpstream(silent) as upstream:
            slow = info(full.getsockname())
            good = info(("127.0.0.1", upstream.port))
            async with asyncio.timeout(2):
                connected = await start_connection([slow, good], happy_eyeballs_delay=0.01)
            assert connected.getpeername() == good[4]
            connected.close()
        for filler in fillers:
            filler.close()


async def test_a_safe_method_that_claims_to_be_another_is_not_sent_again() -> None:
    """Some upstreams take the claim for the method: what it did may not be done twice."""
    requests = 0

    async def closing(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        requests += 1
        await peer.send(OK)
        await peer.request()
        requests += 1
        peer.close()

    async with RawUpstream(closing) as upstream, pool_to(upstream) as pool:
        await fetch(pool)
        with pytest.raises(ConnectionTerminated):
            await fetch(pool, headers=[(b"X-HTTP-Method-Override", b"PATCH")])
        assert requests == 2
