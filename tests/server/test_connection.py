"""
The downstream connection over real sockets: bytes in, bytes out. Names carry the numbers of the checklist.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast

import pytest
import trustme
import uvicorn

from gateway.errors import BodyTimeout, BodyTooLarge, GatewayError, ReadTimeout
from gateway.server.asgi import Message
from gateway.server.connection import MAX_LINGERING, App, build
from gateway.server.duplex_stream import DuplexStream
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.request_cycle import RequestCycle
from gateway.server.write_flow import ClientDisconnected
from tests.support.refused_heads import ANSWERS, HOPELESS_HEADS, REFUSED_HEADS, SECRET, each_of, with_secret
from tests.support.serving import Client, connect, exchange, on_both_loops, port_of, quiet, running, serve

DATE = (b"date", b"Sun, 22 Nov 2026 12:00:00 GMT")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def get(target: bytes, *fields: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in (b"GET %b HTTP/1.1" % target, b"Host: a", *fields)) + b"\r\n"


def post(body: bytes, *fields: bytes) -> bytes:
    lines = (b"POST / HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *fields)
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + coded
        + b"0\r\n"
        + trailers
        + b"\r\n"
    )


def of(scope: Message) -> RequestCycle:
    found: RequestCycle = scope["extensions"]["gateway"]
    return found


async def body_of(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        message: Message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return body


async def reply(send: Any, body: bytes = b"", status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    fields = [*headers, (b"content-length", b"%d" % len(body)), DATE]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class Echo:
    """Answers each request with its target and body, and remembers it."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body = await body_of(receive)
        self.bodies.append(body)
        await reply(send, of(scope).target + b" " + body)

    @property
    def targets(self) -> list[bytes]:
        return [of(scope).target for scope in self.scopes]


class Held:
    """An application whose reply waits until the test says so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.exchange: RequestCycle

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.exchange = of(scope)
        self.begun.set()
        await self.go.wait()
        await reply(send, b"held")


def without_date(data: bytes) -> bytes:
    return b"\r\n".join(line for line in data.split(b"\r\n") if not line.lower().startswith(b"date:"))


# What the application is given.


@on_both_loops
async def test_l17_the_scope_has_the_request_as_it_was_sent() -> None:
    echo = Echo()
    async with serve(echo) as port:
        await exchange(
            port,
            b"PATCH /a%2Fb/../%C3%A9//c?x=%zz|\"'&y HTTP/1.1\r\n"
            b"hOST: a:80\r\nX-B: 1\r\nx-a:\t2 \r\nX-B:  3\r\nConnection: close\r\n\r\n",
        )
    (scope,) = echo.scopes
    assert of(scope).target == b"/a%2Fb/../%C3%A9//c?x=%zz|\"'&y"
    assert (scope["raw_path"], scope["query_string"]) == (b"/a%2Fb/../%C3%A9//c", b"x=%zz|\"'&y")
    assert scope["path"] == "/a/b/../\u00e9//c"
    assert scope["headers"] == [
        (b"host", b"a:80"), (b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), (b"connection", b"close"),
    ]  # fmt: skip
    assert (scope["type"], scope["http_version"], scope["scheme"], scope["root_path"]) == (
        "http",
        "1.1",
        "http",
        "",
    )
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"
    assert scope["asgi"]["spec_version"] == "2.4"


@pytest.mark.parametrize(
    ("line", "method", "target"),
    [
        (b"patch /a? HTTP/1.1", "patch", b"/a?"),
        (b"GET http://A/x?y HTTP/1.1", "GET", b"/x?y"),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", b"*"),
        (b"M-SEARCH //x HTTP/1.2", "M-SEARCH", b"//x"),
    ],
)
@on_both_loops
async def test_a23_l14_l15_l17_l18_method_and_target(line: bytes, method: str, target: bytes) -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (echo.scopes[0]["method"], of(echo.scopes[0]).target) == (method, target)
    assert echo.scopes[0]["http_version"] == "1.1"


@pytest.mark.parametrize("pieces", [1, 2])
@on_both_loops
async def test_a13_trailers_are_never_fields(pieces: int) -> None:
    echo = Echo()
    trailers = b"Authorization: Bearer evil\r\nHost: evil\r\nContent-Type: x\r\n"
    data = chunked(b"hello", trailers=trailers) + LAST
    async with serve(echo) as port, connect(port) as client:
        await client.send(data[: len(data) // pieces])
        await client.send(data[len(data) // pieces :])
        assert (await client.rest()).count(b"HTTP/1.1 200") == 2
    assert echo.bodies == [b"hello", b""]
    assert [name for name, _ in echo.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


@on_both_loops
async def test_l12_empty_lines_before_a_request_are_ignored_up_to_a_bound() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, b"\r\n" + GET + b"\r\n\r\n" + GET + b"\r\n" + LAST)
        assert got.count(b"HTTP/1.1 200") == 3
        got = await exchange(port, b"\r\n" * 9 + GET)
        assert got.startswith(b"HTTP/1.1 400")
    assert echo.targets == [b"/", b"/", b"/last"]


@on_both_loops
async def test_a_request_is_the_same_wherever_it_is_cut() -> None:
    data = (
        b"\r\npatch /1?x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        + chunked(b"chunk", b"ed\r\n", trailers=b"X: y\r\n")
        + b"\r\n"
        + LAST
    )
    want: list[bytes] = []
    for cuts in ([], *([cut] for cut in range(1, len(data))), range(1, len(data))):
        echo = Echo()
        async with directly(echo) as (protocol, client):
            start = 0
            for cut in (*cuts, len(data)):
                protocol.data_received(data[start:cut])
                start = cut
            got = await client.rest()
        want = want or [got]
        assert got == want[0], cuts
        assert echo.bodies == [b"hello", b"chunked\r\n", b""]
    assert want[0].count(b"HTTP/1.1 200 OK") == 3


@asynccontextmanager
async def directly(app: App) -> AsyncIterator[tuple[Any, Client]]:
    """A protocol whose input the test hands over by itself, on a socket that its output goes to."""
    config = uvicorn.Config(
        cast(Any, app),
        http=build(ServerLimits(), ServerStats()),
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
    )
    config.load()
    server = uvicorn.Server(config)
    ours, theirs = socket.socketpair()
    factory: Any = config.http_protocol_class
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_accepted_socket(
        lambda: factory(config=config, server_state=server.server_state, app_state={}, _loop=loop), ours
    )
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield protocol, Client(reader, writer, 5.0)
    finally:
        writer.close()
        transport.abort()
        await asyncio.sleep(0)


# What is refused.


@each_of(*REFUSED_HEADS, *HOPELESS_HEADS)
@on_both_loops
async def test_d3_d4_d8_a_refusal_is_problem_json_and_counted_and_logged_and_closes(
    data: bytes, error: type[GatewayError], caplog: pytest.LogCaptureFixture
) -> None:
    echo, stats = Echo(), ServerStats()
    status, slug = ANSWERS[error]
    async with serve(echo, stats=stats) as port:
        follows = b"0\r\n\r\n" + GET if data.endswith(b"\r\n\r\n") else b""
        got = await exchange(port, with_secret(data) + follows)
    head, _, body = got.partition(b"\r\n\r\n")
    fields = head.lower().split(b"\r\n")
    assert fields[0].startswith(b"http/1.1 %d " % status)
    assert b"connection: close" in fields
    assert b"content-type: application/problem+json" in fields
    assert b"proxy-status: gateway; error=http_request_error" in fields
    assert sum(field.startswith(b"date:") for field in fields) == 1
    assert (b"allow: get, head, post, put, patch, delete, options" in fields) is (status == 405)
    document = json.loads(body)
    assert (document["status"], document["code"]) == (status, f"gateway.{slug}")
    assert b"x-request-id: " + document["contextId"].encode() in fields
    assert echo.scopes == []
    assert stats.refused == {slug: 1}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert slug in record.getMessage()
    assert SECRET not in got
    assert SECRET.decode() not in record.getMessage()
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 250


@on_both_loops
async def test_l25_an_invalid_second_request_does_not_disturb_the_first() -> None:
    held = Held()
    async with serve(held) as port, connect(port) as client:
        await client.send(GET + b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n" + GET)
        await held.begun.wait()
        held.go.set()
        assert (await client.reply())[::2] == (200, b"held")
        status, headers, _ = await client.reply()
        assert (status, headers[b"connection"]) == (400, b"close")
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "body", [b"5\r\nhelloX", b"5;\x01\r\nhello", b"zz\r\n", b"1\r\nx\r\n0\r\nbad\r\n\r\n"]
)
@on_both_loops
async def test_l7_a_bad_chunk_ends_the_body_with_an_error_and_the_connection(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[Exception] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        try:
            await body_of(receive)
        except GatewayError as error:
            raised.append(error)
            raise

    stats = ServerStats()
    async with serve(app, stats=stats) as port:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        for first in (head + body, head + b"3\r\nabc\r\n"):
            async with connect(port) as client:
                await client.send(first)
                await client.send(body + GET)
                status, headers, _ = await client.reply()
                assert (status, headers[b"connection"]) == (400, b"close")
                assert await client.rest() == b""
    assert [type(error).__name__ for error in raised] == ["BadRequest", "BadRequest"]
    assert stats.refused == {"bad-request": 2}
    assert len(caplog.records) == 2


@on_both_loops
async def test_l7_a_bad_chunk_after_the_reply_began_lets_the_reply_end_and_then_closes() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        with pytest.raises(GatewayError):
            await body_of(receive)
        failed.set()
        await go.wait()
        await send({"type": "http.response.body", "body": b"ended"})

    failed, go, stats = asyncio.Event(), asyncio.Event(), ServerStats()
    async with serve(app, stats=stats) as port, connect(port) as client:
        await client.send(chunked(b"hello")[:-5] + b"zz\r\n" + GET)
        await failed.wait()
        await client.send(b"zz\r\n" + GET)
        await asyncio.sleep(0.02)
        go.set()
        got = await client.rest()
    assert got.endswith(b"5\r\nbegun\r\n5\r\nended\r\n0\r\n\r\n")
    assert got.count(b"HTTP/1.1") == 1
    assert stats.refused == {"bad-request": 1}


# Replies.


@on_both_loops
async def test_a14_one_date_and_no_server() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        own = [(b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT")] if scope["path"] == "/own" else []
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body"})

    async with serve(app) as port, connect(port) as client:
        await client.send(GET + get(b"/own"))
        first = (await client.head()).lower()
        await client.exactly(5)
        second = (await client.head()).lower()
    assert first.count(b"\r\ndate: ") == second.count(b"\r\ndate: ") == 1
    assert b"date: thu, 01 jan 1970 00:00:00 gmt" in second
    assert b"server:" not in first + second


@pytest.mark.parametrize(
    ("request_head", "status", "headers", "body", "want"),
    [
        (GET, 200, [(b"content-length", b"5")], b"hello", b"content-length: 5\r\n\r\nhello"),
        (GET, 200, [], b"hello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (GET, 200, [(b"transfer-encoding", b"gzip")], b"", b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        (GET, 200, [(b"content-length", b"0")], b"", b"content-length: 0\r\n\r\n"),
        (GET, 204, [], b"", b"\r\n\r\n"),
        (GET, 204, [(b"content-length", b"0")], b"", b"\r\n\r\n"),
        (GET, 304, [(b"content-length", b"5"), (b"etag", b'"x"')], b"", b'etag: "x"\r\n\r\n'),
        (GET, 304, [], b"ignored", b"\r\n\r\n"),
        (b"HEAD" + GET[3:], 200, [(b"content-length", b"5")], b"", b"content-length: 5\r\n\r\n"),
        (b"HEAD" + GET[3:], 200, [(b"content-length", b"5")], b"hello", b"content-length: 5\r\n\r\n"),
        (b"HEAD" + GET[3:], 200, [], b"hello", b"\r\n\r\n"),
        (b"HEAD" + GET[3:], 304, [(b"content-length", b"5")], b"", b"\r\n\r\n"),
    ],
)
@on_both_loops
async def test_a29_how_a_reply_is_framed_and_that_the_connection_stays(
    request_head: bytes, status: int, headers: list[tuple[bytes, bytes]], body: bytes, want: bytes
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        if scope["path"] == "/last":
            await reply(send, b"last")
            return
        await send({"type": "http.response.start", "status": status, "headers": [DATE, *headers]})
        await send({"type": "http.response.body", "body": body})

    async with serve(app) as port:
        got = await exchange(port, request_head + LAST)
    _, first, second = got.split(b"HTTP/1.1 ")
    assert first.startswith(b"%d " % status)
    assert first.endswith(want)
    assert without_date(first).count(b"\r\n") == without_date(first[: -len(want)] + want).count(b"\r\n")
    assert (b"content-length" in first) is (b"content-length" in want)
    assert (b"transfer-encoding" in first) is (b"transfer-encoding" in want)
    assert second.endswith(b"connection: close\r\n\r\nlast")


@on_both_loops
async def test_l24_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [DATE]})
        for piece in (b"one", b"two", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})

    async with serve(app) as port:
        got = await exchange(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET)
    assert got == b"HTTP/1.1 200 OK\r\ndate: %b\r\nconnection: close\r\n\r\nonetwo" % DATE[1]


@on_both_loops
async def test_l24_close_is_honoured_both_ways_and_nothing_after_it_is_served() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, get(b"/1", b"Connection: x, CLOSE") + GET)
        assert got.count(b"HTTP/1.1") == got.count(b"connection: close\r\n") == 1
    assert echo.targets == [b"/1"]

    async def closing(scope: Message, receive: Any, send: Any) -> None:
        echo.scopes.append(scope)
        await reply(send, b"bye", 200, (b"connection", b"Close"))

    async with serve(closing) as port:
        got = await exchange(port, get(b"/2") + GET)
    assert got.count(b"HTTP/1.1") == got.lower().count(b"connection: close\r\n") == 1
    assert echo.targets == [b"/1", b"/2"]


@pytest.mark.parametrize("status", [200, 299, 404, 451, 599, 600, 777, 999])
@on_both_loops
async def test_f11_any_final_status_is_sent(status: int) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"x", status)

    async with serve(app) as port:
        got = await exchange(port, LAST)
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert got.endswith(b"\r\n\r\nx")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, [(b"x", b"a\r\nSet-Cookie: b=c")]),
        (200, [(b"x", b"a\nb")]),
        (200, [(b"x", b"a\rb")]),
        (200, [(b"x", b"a\0b")]),
        (200, [(b"x", b"\x7f")]),
        (200, [(b"x\r\ny", b"a")]),
        (200, [(b"x: y", b"a")]),
        (200, [(b"x ", b"a")]),
        (200, [(b"", b"a")]),
        (200, [(b"x\xe9", b"a")]),
        (200, [(b"content-length", b"+1")]),
        (200, [(b"content-length", b"1"), (b"content-length", b"1")]),
        (100, []),
        (101, []),
        (1000, []),
        (0, []),
    ],
)
@on_both_loops
async def test_a18_a_reply_that_could_be_split_is_a_500(
    status: int, headers: list[tuple[bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async with serve(app) as port:
        got = await exchange(port, LAST)
    assert got.startswith(b"HTTP/1.1 500 ")
    assert got.count(b"\r\n\r\n") == 1
    assert b"et-cookie" not in got
    (record,) = caplog.records
    assert record.exc_info is not None


@on_both_loops
async def test_a20_obs_text_and_order_and_repeats_pass_in_a_reply() -> None:
    fields = [(b"Set-Cookie", b"a=\xe9"), (b"x", b"\t"), (b"set-cookie", b"b"), (b"X", b"")]

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*fields, DATE]})
        await send({"type": "http.response.body"})

    async with serve(app) as port, connect(port) as client:
        await client.send(GET)
        got = await client.head()
    assert got.startswith(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=\xe9\r\nx: \t\r\nset-cookie: b\r\nX: \r\n")


@on_both_loops
async def test_l24_a_connection_field_of_the_application_is_kept_beside_ours() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        option = b"upgrade" if scope["path"] == "/" else b"x, close"
        await reply(send, b"", 426, (b"connection", option), (b"upgrade", b"x"))

    async with serve(app) as port:
        got = await exchange(port, GET + get(b"/close"))
    first, second = got.split(b"HTTP/1.1 426 Upgrade Required\r\n")[1:]
    assert first.startswith(b"connection: upgrade\r\nupgrade: x\r\n")
    assert b"close" not in first
    assert second.startswith(b"connection: x, close\r\n")
    assert second.endswith(b"connection: close\r\n\r\n")


@on_both_loops
async def test_a_head_does_not_wait_for_a_body_that_has_not_come() -> None:
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await go.wait()
        await send({"type": "http.response.body", "body": b"body"})

    async with serve(app) as port, connect(port) as client:
        await client.send(GET)
        assert b"content-length: 4" in await client.head()
        go.set()
        assert await client.exactly(4) == b"body"


@on_both_loops
async def test_respond_is_both_messages_at_once() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert of(scope).respond(201, [(b"content-length", b"2"), DATE], b"ok")

    async with serve(app) as port, connect(port) as client:
        await client.send(GET + get(b"/more"))
        assert (await client.reply())[::2] == (201, b"ok")
        assert (await client.reply())[::2] == (201, b"ok")


@pytest.mark.parametrize(
    ("headers", "pieces", "end"),
    [
        ([(b"content-length", b"9")], [b"short"], b"short"),
        ([(b"content-length", b"9")], [b"sho", b"rt", None], b"short"),
        ([(b"content-length", b"3")], [b"too", b"long"], b"too"),
        ([], [b"cut", None], b"3\r\ncut\r\n"),
        ([], [None], b"\r\n\r\n"),
        ([], [b"cut"], b"3\r\ncut\r\n"),
    ],
)
@on_both_loops
async def test_l21_a_reply_that_breaks_off_is_cut_and_never_completed(
    headers: list[tuple[bytes, bytes]],
    pieces: list[bytes | None],
    end: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None stands for an exception; without one the application returns too early."""
    arrived = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            if piece is None:
                await arrived.wait()
                raise LookupError("upstream broke off")
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await arrived.wait()

    stats = ServerStats()
    async with serve(app, stats=stats) as port, connect(port) as client:
        await client.send(GET + GET)
        got = await client.until(end)
        arrived.set()
        with suppress(ConnectionResetError):
            got += await client.rest()
    assert got.endswith(end)
    assert got.count(b"HTTP/1.1") == 1
    assert stats.aborted == {"application-error": 1}
    assert len(caplog.records) == 2


@on_both_loops
async def test_l21_a_reply_that_ends_before_its_length_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"sho", "more_body": True})
        await send({"type": "http.response.body", "body": b"rt"})

    stats = ServerStats()
    async with serve(app, stats=stats) as port:
        got = await exchange(port, GET + GET)
    assert not got.endswith(b"short")
    assert stats.aborted == {"application-error": 1}


@on_both_loops
async def test_l21_a_reply_that_only_the_close_would_end_is_reset_when_it_breaks_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"cut", "more_body": True})
        await go.wait()
        raise ReadTimeout("upstream broke off")

    async with serve(app) as port, connect(port) as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.until(b"cut")
        go.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()
    (record,) = caplog.records
    assert record.exc_info is None, "what was foreseen needs no traceback"


# Bodies, expectations, early replies.


@on_both_loops
async def test_a10_100_is_sent_once_and_only_when_the_application_asks_for_the_body() -> None:
    ask = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await ask.wait()
        await reply(send, await body_of(receive))

    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.reader.read(1)
        ask.set()
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert (await client.reply())[::2] == (200, b"hello")
        await client.send(post(b"again", b"Expect: 100-continue"))
        assert (await client.reply())[::2] == (200, b"again")


@on_both_loops
async def test_a10_no_100_is_sent_once_the_body_or_the_reply_has_begun() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await send({"type": "http.response.body", "body": await body_of(receive)})
        else:
            await reply(send, await body_of(receive))

    async with serve(app) as port, connect(port) as client:
        data = post(b"hello", b"Expect: 100-continue")
        await client.send(data[:-2])
        await asyncio.sleep(0.02)
        await client.send(data[-2:])
        assert (await client.reply())[::2] == (200, b"hello")
        await client.send(data[:-5].replace(b" / ", b" /early "))
        assert b"connection: close" in await client.head()
        await client.until(b"begun\r\n")
        await client.send(b"hello")
        assert await client.rest() == b"5\r\nhello\r\n0\r\n\r\n"


@on_both_loops
async def test_l22_an_expectation_whose_body_is_here_already_does_not_close_the_connection() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    async with serve(app) as port, connect(port) as client:
        for _ in range(2):
            await client.send(post(b"hello", b"Expect: 100-continue"))
            status, headers, _ = await client.reply()
            assert status == 401
            assert b"connection" not in headers


@pytest.mark.parametrize("answers", ["send", "respond", "error"])
@on_both_loops
async def test_a10_l22_a_final_status_from_the_head_alone_closes_the_connection(answers: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        if answers == "error":
            raise BodyTooLarge("no")
        if answers == "respond":
            of(scope).respond(413, [(b"content-length", b"0")], b"")
        else:
            await reply(send, b"", 413)

    async with serve(app) as port, connect(port) as client:
        await client.send(post(GET, b"Expect: 100-continue")[: -len(GET)])
        status, headers, _ = await client.reply()
        assert (status, headers[b"connection"]) == (413, b"close")
        await client.send(GET)
        assert await client.rest() == b""


@on_both_loops
async def test_a11_expect_in_http_1_0_is_ignored() -> None:
    echo = Echo()
    async with serve(echo) as port, connect(port) as client:
        await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        await client.send(b"ok")
        assert (await client.rest()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [0, 10, 200_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@on_both_loops
async def test_l22_after_an_early_reply_the_body_is_read_to_its_end_and_never_as_a_request(
    size: int, framing: str
) -> None:
    seen: list[str] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await reply(send, b"early", 401)

    body = get(b"/hidden") * 3 + b"x" * size
    data = post(body) if framing == "length" else chunked(body)
    async with serve(app) as port, connect(port) as client:
        await client.send(data[:100])
        assert (await client.reply())[0] == 401
        await client.send(data[100:] + LAST)
        assert (await client.reply())[0] == 401
        assert await client.rest() == b""
    assert seen == ["/", "/last"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@on_both_loops
async def test_l22_after_an_early_reply_a_large_body_ends_the_connection_but_not_the_reply(
    framing: str,
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early" * 1000, 413)

    body = (GET + b"x" * 1000) * 2000
    data = post(body) if framing == "length" else chunked(body)
    async with serve(app) as port, connect(port) as client:
        await client.send(data)
        status, headers, got = await client.reply()
        assert (status, got) == (413, b"early" * 1000)
        if framing == "length":
            assert headers[b"connection"] == b"close"
        assert await client.rest() == b""


@on_both_loops
async def test_l22_a_bad_chunk_after_an_early_reply_ends_the_connection() -> None:
    stats = ServerStats()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    async with serve(app, stats=stats) as port, connect(port) as client:
        await client.send(chunked(b"hello")[:-5])
        assert (await client.reply())[0] == 401
        await client.send(b"zz\r\n" + GET)
        assert await client.rest() == b""
    assert stats.refused == {"bad-request": 1}


@on_both_loops
async def test_a_body_waits_for_the_application_and_is_not_piled_up() -> None:
    taken: list[int] = []
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await go.wait()
        while True:
            message = await receive()
            taken.append(len(message["body"]))
            if not message["more_body"]:
                break
        await reply(send, b"%d" % sum(taken))

    body = b"x" * (24 << 20)
    async with serve(app) as port, connect(port) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.send(post(body))
        go.set()
        assert (await client.reply())[2] == b"%d" % len(body)
    assert max(taken) < 600_000


@on_both_loops
async def test_what_follows_a_request_waits_and_is_not_piled_up() -> None:
    held = Held()
    async with serve(held) as port, connect(port) as client:
        await client.send(GET)
        await held.begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.send(get(b"/", b"X: " + b"a" * 20000) * 1000)
        held.go.set()
        for _ in range(1001):
            assert (await client.reply())[0] == 200


@on_both_loops
async def test_a_reply_waits_for_a_client_that_does_not_read() -> None:
    sent = 0
    piece = b"x" * 65536

    async def app(scope: Message, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while sent < 1000:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    async with serve(app) as port, connect(port, buffer=8192) as client:
        await client.send(get(b"/", b"Connection: close"))
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        assert sent < 200
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = await client.rest()
    assert got.endswith(b"\r\n0\r\n\r\n")
    assert len(got) > 1000 * len(piece)


# Order.


@on_both_loops
async def test_l25_pipelined_requests_are_answered_in_order() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, b"".join(get(b"/%d" % n) for n in range(500)) + post(b"x") + LAST)
    bodies = [part.partition(b"\r\n\r\n")[2].strip() for part in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(b"/%d" % n for n in range(500)), b"/ x", b"/last"]


@on_both_loops
async def test_two_requests_of_one_connection_are_never_served_at_once() -> None:
    try_acquire = most = 0

    async def app(scope: Message, receive: Any, send: Any) -> None:
        nonlocal try_acquire, most
        try_acquire += 1
        most = max(most, try_acquire)
        await asyncio.sleep(0)
        try_acquire -= 1
        await reply(send)

    async with serve(app) as port:
        await exchange(port, GET * 50 + LAST)
    assert most == 1


# Deadlines.


@on_both_loops
async def test_f7_a_head_has_to_be_there_in_time_however_busily_it_drips() -> None:
    echo, stats = Echo(), ServerStats()
    async with serve(echo, ServerLimits(head_timeout=0.15), stats) as port, connect(port) as client:
        start = asyncio.get_running_loop().time()

        async def drip() -> None:
            for byte in get(b"/", *[b"X: y"] * 90):
                client.writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        status, headers, body = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert json.loads(body)["code"] == "gateway.head-timeout"
        assert 0.1 < asyncio.get_running_loop().time() - start < 2
        assert await client.rest() == b""
        dripping.cancel()
    assert stats.refused == {"head-timeout": 1}
    assert echo.scopes == []


@on_both_loops
async def test_f7_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serve(Echo(), ServerLimits(head_timeout=0.05)) as port:
        assert await exchange(port, b"") == b""


@on_both_loops
async def test_f7_an_idle_connection_is_closed_without_a_word_and_a_busy_one_is_not() -> None:
    async with (
        serve(Echo(), ServerLimits(keep_alive=0.1, head_timeout=0.05)) as port,
        connect(port) as client,
    ):
        for _ in range(20):
            await client.send(GET)
            assert (await client.reply())[0] == 200
            await asyncio.sleep(0.01)
        assert await client.rest() == b""


@on_both_loops
async def test_f7_an_application_that_waits_for_the_disconnect_does_not_keep_an_idle_connection() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await reply(send, b"x")
        assert await waiting == {"type": "http.disconnect"}

    async with serve(app, ServerLimits(keep_alive=0.05)) as port, connect(port) as client:
        await client.send(GET)
        await client.reply()
        assert await client.rest() == b""


@on_both_loops
async def test_f7_a_slow_application_is_not_the_clients_fault() -> None:
    held = Held()
    limits = ServerLimits(keep_alive=0.03, head_timeout=0.03, body_timeout=0.03, write_timeout=0.03)
    async with serve(held, limits) as port, connect(port) as client:
        await client.send(post(b"x"))
        await asyncio.sleep(0.15)
        held.go.set()
        assert (await client.reply())[::2] == (200, b"held")


@on_both_loops
async def test_f7_a_body_that_stops_coming_is_408() -> None:
    raised: list[Exception] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        try:
            await body_of(receive)
        except BodyTimeout as error:
            raised.append(error)
            raise

    stats = ServerStats()
    async with serve(app, ServerLimits(body_timeout=0.1), stats) as port, connect(port) as client:
        await client.send(post(b"hello")[:-3])
        status, headers, body = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert json.loads(body)["code"] == "gateway.body-timeout"
        await client.send(b"llo" + GET)
        assert await client.rest() == b""
    assert len(raised) == 1
    assert stats.refused == {"body-timeout": 1}


@on_both_loops
async def test_f7_a_body_that_keeps_coming_is_waited_for() -> None:
    echo = Echo()
    async with serve(echo, ServerLimits(body_timeout=0.12)) as port, connect(port) as client:
        data = post(b"0123456789")
        await client.send(data[:-10])
        for at in range(len(data) - 10, len(data)):
            await client.send(data[at : at + 1])
            await asyncio.sleep(0.03)
        assert (await client.reply())[::2] == (200, b"/ 0123456789")


@on_both_loops
async def test_f7_a_body_that_stops_coming_after_the_reply_began_cuts_it() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue

    stats = ServerStats()
    async with serve(app, ServerLimits(body_timeout=0.1), stats) as port, connect(port) as client:
        await client.send(post(b"hello")[:-3])
        await client.until(b"5\r\nbegun\r\n")
        with pytest.raises(ConnectionResetError):
            await client.rest()
    assert stats.aborted == {"body-timeout": 1}


@on_both_loops
async def test_f7_an_early_reply_does_not_wait_long_for_the_rest_of_the_body() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, b"early", 401)

    async with serve(app, ServerLimits(body_timeout=0.1)) as port, connect(port) as client:
        await client.send(post(b"hello")[:-3])
        assert (await client.reply())[0] == 401
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("request_head", "whole"),
    [(GET, True), (GET, False), (LAST, True)],
    ids=["whole", "in pieces", "the last"],
)
@on_both_loops
async def test_a_client_that_reads_nothing_is_cut_off(request_head: bytes, whole: bool) -> None:
    ended: list[BaseException | None] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            if whole:
                await send({"type": "http.response.body", "body": b"x" * (24 << 20)})
            while not whole:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            ended.append(error)
            raise

    stats = ServerStats()
    async with (
        running(app, ServerLimits(write_timeout=0.15), stats) as server,
        connect(port_of(server), buffer=8192) as client,
    ):
        await client.send(request_head)
        await client.head()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await quiet(server)
    assert stats.aborted == {"write-timeout": 1}
    assert [type(error) for error in ended] == ([] if whole else [ClientDisconnected])


@on_both_loops
async def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    body = b"x" * 8_000_000

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await reply(send, body, 200, (b"connection", b"close"))

    async with serve(app, ServerLimits(write_timeout=0.15)) as port:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, GET)
            size = 0
            # Slower than the kernel's buffers are deep: for a while only the peer's window moves.
            while piece := await loop.sock_recv(sock, 50_000 if size < 800_000 else 1 << 20):
                size += len(piece)
                if size < 800_000:
                    await asyncio.sleep(0.03)
    assert size > len(body)


async def drip(client: Client, piece: bytes, every: float) -> None:
    with suppress(ConnectionError):
        while True:
            await client.send(piece)
            await asyncio.sleep(every)


UPLOAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"


@on_both_loops
async def test_a_body_below_the_least_rate_is_408_however_steadily_it_drips() -> None:
    stats = ServerStats()
    limits = ServerLimits(min_rate=5000, rate_window=0.2)
    async with serve(Echo(), limits, stats) as port, connect(port) as client:
        await client.send(UPLOAD)
        dripping = asyncio.create_task(drip(client, b"x", 0.01))
        status, headers, body = await client.reply()
        assert (status, headers[b"connection"]) == (408, b"close")
        assert json.loads(body)["code"] == "gateway.body-timeout"
        assert "limits.min_rate" in json.loads(body)["detail"]
        dripping.cancel()
    assert stats.refused == {"body-timeout": 1}
    assert stats.awaiting == 0


@on_both_loops
async def test_a_body_below_the_least_rate_is_cut_off_after_the_reply_began() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue

    stats = ServerStats()
    limits = ServerLimits(min_rate=5000, rate_window=0.2)
    async with serve(app, limits, stats) as port, connect(port) as client:
        await client.send(UPLOAD)
        await client.until(b"5\r\nbegun\r\n")
        dripping = asyncio.create_task(drip(client, b"x", 0.01))
        with pytest.raises(ConnectionResetError):
            await client.rest()
        dripping.cancel()
    assert stats.aborted == {"body-rate": 1}


@pytest.mark.parametrize(
    ("rate", "piece"), [(100, b"x" * 100), (0, b"x")], ids=["fast enough", "any will do"]
)
@on_both_loops
async def test_a_body_that_is_fast_enough_is_waited_for(rate: int, piece: bytes) -> None:
    echo = Echo()
    async with serve(echo, ServerLimits(min_rate=rate, rate_window=0.05)) as port, connect(port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (30 * len(piece)))
        for _ in range(30):
            await client.send(piece)
            await asyncio.sleep(0.01)
        assert (await client.reply())[::2] == (200, b"/ " + 30 * piece)


@on_both_loops
async def test_only_the_time_in_which_a_body_is_waited_for_counts() -> None:
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["more_body"]
        await go.wait()
        await reply(send, await body_of(receive))

    limits = ServerLimits(min_rate=1000, rate_window=0.05)
    async with serve(app, limits) as port, connect(port) as client:
        data = post(b"x" * 10)
        await client.send(data[:-9])
        await asyncio.sleep(0.2)
        await client.send(data[-9:])
        go.set()
        assert (await client.reply())[::2] == (200, b"x" * 9)


@on_both_loops
async def test_a_reader_below_the_least_rate_is_cut_off_though_it_takes_something() -> None:
    ended: list[BaseException] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            ended.append(error)
            raise

    stats = ServerStats()
    async with (
        running(app, ServerLimits(min_rate=10_000_000, rate_window=0.2), stats) as server,
        connect(port_of(server), buffer=4096, limit=4096) as client,
    ):
        await client.send(GET)

        async def sip() -> None:
            with suppress(ConnectionError):
                while await client.reader.read(1000):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        sipping = asyncio.create_task(sip())
        await quiet(server)
        sipping.cancel()
    assert stats.aborted == {"write-rate": 1}
    assert [type(error) for error in ended] == [ClientDisconnected]


@on_both_loops
async def test_a_reply_that_the_application_makes_slowly_is_not_the_clients_fault() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for left in reversed(range(10)):
            await asyncio.sleep(0.03)
            await send({"type": "http.response.body", "body": b"x", "more_body": left > 0})

    stats = ServerStats()
    limits = ServerLimits(min_rate=1_000_000, rate_window=0.05)
    async with serve(app, limits, stats) as port, connect(port) as client:
        await client.send(GET)
        assert (await client.reply())[::2] == (200, b"x" * 10)
    assert not stats.aborted


# Overload.


@on_both_loops
async def test_a_call_whose_body_is_waited_for_leaves_room_in_flight() -> None:
    echo, stats = Echo(), ServerStats()
    async with serve(echo, ServerLimits(max_in_flight=4), stats) as port, AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(10))
        clients = [await stack.enter_async_context(connect(port)) for _ in range(8)]
        for number, client in enumerate(clients, 1):
            await client.send(post(b"hello")[:-3])
            while stats.awaiting < number:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        async with connect(port) as other:
            await other.send(GET)
            assert (await other.reply())[0] == 200
        clients[0].reset()
        clients[1].end()
        for rest in (b"llo", post(b"hello")):
            await clients[2].send(rest)
            assert (await clients[2].reply())[::2] == (200, b"/ hello")
        while stats.awaiting > 5:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        for client in clients[3:]:
            await client.send(b"llo")
            assert (await client.reply())[0] == 200
    assert stats.awaiting == 0
    assert not stats.refused


@on_both_loops
async def test_one_that_gives_up_waiting_for_the_body_or_waits_twice_counts_again() -> None:
    held, done, stats = asyncio.Event(), asyncio.Event(), ServerStats()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        assert stats.awaiting == 1
        with pytest.raises(RuntimeError):
            await receive()
        assert stats.awaiting == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        held.set()
        await done.wait()
        await reply(send)

    async with serve(app, ServerLimits(max_in_flight=1), stats) as port, connect(port) as client:
        await client.send(post(b"hello")[:-5])
        await asyncio.wait_for(held.wait(), 5)
        assert stats.awaiting == 0
        async with connect(port) as other:
            await other.send(GET)
            assert (await other.reply())[0] == 503
        done.set()
        assert (await client.reply())[0] == 200


@on_both_loops
async def test_past_max_connections_a_client_is_told_at_once_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stats = ServerStats()
    async with running(Echo(), ServerLimits(max_connections=2), stats) as server:
        port = port_of(server)
        async with connect(port) as first, connect(port) as second:
            for client in (first, second):
                await client.send(GET)
                assert (await client.reply())[0] == 200
            for _ in range(3):
                async with connect(port) as third:
                    status, headers, body = await third.reply()
                    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
                    assert headers[b"proxy-status"] == b"gateway; error=connection_limit_reached"
                    assert json.loads(body)["code"] == "gateway.overloaded"
                    assert await third.rest() == b""
            await first.send(GET)
            assert (await first.reply())[0] == 200
        await quiet(server)
        async with connect(port) as fourth:
            await fourth.send(GET)
            assert (await fourth.reply())[0] == 200
    assert stats.refused == {"overloaded": 3}
    assert stats.turned_away == 0
    assert len(caplog.records) == 1, "a flood of refusals is one line a second"


@on_both_loops
async def test_a_flood_past_max_connections_is_not_even_answered() -> None:
    stats = ServerStats()
    async with running(Echo(), ServerLimits(max_connections=1), stats) as server, AsyncExitStack() as stack:
        port = port_of(server)
        first = await stack.enter_async_context(connect(port))
        flood = [await stack.enter_async_context(connect(port)) for _ in range(MAX_LINGERING + 20)]
        assert (await flood[0].reply())[0] == 503
        last = b"?"
        with suppress(ConnectionResetError):
            last = await flood[-1].rest()
        assert last in (b"", b"?")
        await first.send(GET)
        assert (await first.reply())[0] == 200
    assert stats.refused == {"overloaded": MAX_LINGERING + 20}


@on_both_loops
async def test_past_max_in_flight_a_request_is_refused_at_once_and_its_connection_stays() -> None:
    held, stats = Held(), ServerStats()
    async with (
        serve(held, ServerLimits(max_in_flight=1), stats) as port,
        connect(port) as first,
        connect(port) as second,
    ):
        await first.send(GET)
        await held.begun.wait()
        for data in (GET, post(b"x" * 1000), chunked(b"x")[:-3]):
            await second.send(data)
            status, headers, _ = await second.reply()
            assert (status, headers[b"retry-after"]) == (503, b"1")
        await second.send(b"\r\n")
        held.go.set()
        assert (await first.reply())[0] == 200
        await second.send(b"" if b"connection" in headers else GET)
        async with asyncio.timeout(5):
            if b"connection" not in headers:
                assert (await second.reply())[0] == 200
            else:
                assert await second.rest() == b""
    assert stats.refused == {"overloaded": 3}


@on_both_loops
async def test_past_max_in_flight_a_pipeline_ends_with_its_first_refusal() -> None:
    held, stats = Held(), ServerStats()
    async with serve(held, ServerLimits(max_in_flight=1), stats) as port, connect(port) as first:
        await first.send(GET)
        await held.begun.wait()
        got = await exchange(port, GET * 9000)
        assert got.count(b"HTTP/1.1 503") == 1
        assert b"connection: close\r\n" in got
        held.go.set()
        assert (await first.reply())[0] == 200
    assert stats.refused == {"overloaded": 1}


# TLS, which cannot end one direction alone.


@on_both_loops
async def test_over_tls_requests_and_refusals_and_tunnels_are_the_same() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    tunnel = Tunnel()
    config = uvicorn.Config(
        tunnel, http=build(ServerLimits(), ServerStats()), ws="none", log_config=None, proxy_headers=False
    )
    config.load()
    server, factory, loop = uvicorn.Server(config), config.http_protocol_class, asyncio.get_running_loop()

    def make() -> Any:
        make_any: Any = factory
        return make_any(config=config, server_state=server.server_state, app_state={}, _loop=loop)

    listener = await loop.create_server(make, "127.0.0.1", 0, ssl=ours)
    port = listener.sockets[0].getsockname()[1]
    for data, missing in (
        (GET + LAST, [b"HTTP/1.1 200 OK", b"plainHTTP/1.1 200 OK", b"plain"]),
        (
            GET + b"GET / HTTP/1.1\r\n\r\n",
            [b"HTTP/1.1 200 OK", b"plainHTTP/1.1 400 Bad Request", b"Host is missing"],
        ),
        (UPGRADE + b"early", [SWITCHED, b"<early>"]),
    ):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=theirs, server_hostname="localhost"
        )
        client = Client(reader, writer, 5.0)
        await client.send(data)
        for want in missing:
            await client.until(want)
        if data.startswith(UPGRADE):
            writer.close()
        else:
            await client.rest()
            writer.close()
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
    listener.close()
    await quiet(server)
    assert {scope["scheme"] for scope in tunnel.scopes} == {"https"}


# Clients that leave.


@pytest.mark.parametrize("how", ["close", "reset", "end"])
@on_both_loops
async def test_a_client_that_leaves_is_noticed(how: str, caplog: pytest.LogCaptureFixture) -> None:
    begun, done = asyncio.Event(), asyncio.Event()
    heard: list[Any] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        it = of(scope)
        await body_of(receive)
        assert not it.gone
        begun.set()
        heard.append(await receive())
        heard.append(it.gone)
        try:
            await reply(send, b"too late")
        except ClientDisconnected:
            heard.append("send raised")
            raise
        finally:
            done.set()

    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"x" * 300_000))
        await begun.wait()
        leave(client, how)
        async with asyncio.timeout(5):
            await done.wait()
    assert heard == [{"type": "http.disconnect"}, True, "send raised"]
    assert caplog.records == []


def leave(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    elif how == "end":
        client.end()
    else:
        client.writer.close()


@on_both_loops
async def test_a_client_that_leaves_in_its_body_ends_it_with_a_disconnect() -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            heard.put_nowait(message)
            if message["type"] == "http.disconnect":
                break

    async with serve(app) as port:
        async with connect(port) as client:
            await client.send(post(b"hello")[:-2])
            assert (await heard.get())["body"] == b"hel"
        async with asyncio.timeout(5):
            assert await heard.get() == {"type": "http.disconnect"}


@pytest.mark.parametrize("how", ["close", "reset", "end"])
@pytest.mark.parametrize("wanted", [True, False])
@on_both_loops
async def test_a_task_is_cancelled_when_its_client_leaves_if_it_wants_that_and_makes_no_noise(
    wanted: bool, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun, stats = asyncio.Event(), ServerStats()
    cancelled: list[bool] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        it = of(scope)
        it.cancel_on_disconnect = True
        it.cancel_on_disconnect = wanted
        assert (await receive())["type"] == "http.request"
        begun.set()
        try:
            assert await receive() == {"type": "http.disconnect"}
            await asyncio.sleep(0)
            cancelled.append(False)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async with running(app, stats=stats) as server, connect(port_of(server)) as client:
        await client.send(GET)
        await begun.wait()
        leave(client, how)
        await quiet(server)
    assert cancelled == [wanted]
    assert caplog.records == []
    assert stats.aborted == {}


@on_both_loops
async def test_no_task_is_cancelled_once_its_reply_is_complete() -> None:
    done, finished = asyncio.Event(), asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        of(scope).cancel_on_disconnect = True
        await reply(send, b"x")
        assert await receive() == {"type": "http.disconnect"}
        with pytest.raises(RuntimeError):
            await send({"type": "http.response.body", "body": b"more"})
        await done.wait()
        finished.set()

    async with serve(app) as port:
        async with connect(port) as client:
            await client.send(GET)
            await client.reply()
        done.set()
    assert finished.is_set()


@on_both_loops
async def test_a_client_that_left_behind_a_pipeline_is_noticed_when_it_is_answered() -> None:
    """Reading is paused there, so that only the reply meets the closed connection."""
    held, stats = Held(), ServerStats()
    async with running(held, stats=stats) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET + GET)
            await held.begun.wait()
        exchange = held.exchange
        exchange.respond(200, [(b"connection", b"close"), (b"content-length", b"1")], b"x")
        held.go.set()
        await quiet(server)
        assert exchange.complete


@on_both_loops
async def test_nothing_can_be_sent_to_a_client_that_left() -> None:
    raised: list[str] = []
    done = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        it = of(scope)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        for attempt in (lambda: it.respond(200, [], b""), lambda: it.switch([])):
            try:
                attempt()
            except ClientDisconnected as error:
                raised.append(str(error))
        done.set()

    async with serve(app) as port:
        async with connect(port) as client:
            await client.send(UPGRADE)
        async with asyncio.timeout(5):
            await done.wait()
    assert raised == ["the client has gone"] * 2


@on_both_loops
async def test_receive_can_be_waited_for_again_after_it_was_cancelled_but_not_twice_at_once() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        first = asyncio.create_task(receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await receive()
        first.cancel()
        await asyncio.wait([first])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": await body_of(receive)})

    async with serve(app, ServerLimits(body_timeout=0.2)) as port, connect(port) as client:
        data = post(b"hello")
        await client.send(data[:-5])
        await client.head()
        await client.send(data[-5:])
        assert await client.until(b"0\r\n\r\n") == b"5\r\nhello\r\n0\r\n\r\n"


# Applications that fail.


@on_both_loops
async def test_an_application_that_raises_is_a_500_with_its_cause_in_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        of(scope).request_id = "the-id"
        raise LookupError("secret cause")

    async with serve(app) as port, connect(port) as client:
        await client.send(GET)
        status, headers, body = await client.reply()
        assert (status, headers[b"x-request-id"]) == (500, b"the-id")
        assert headers[b"content-type"] == b"application/problem+json"
        assert b"secret" not in body
        assert b"connection" not in headers
        await client.send(GET)
        assert (await client.reply())[0] == 500
    assert "the-id" in caplog.records[0].getMessage()
    assert "secret cause" in caplog.text


@on_both_loops
async def test_an_application_that_does_not_answer_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        return

    async with serve(app) as port:
        assert (await exchange(port, LAST)).startswith(b"HTTP/1.1 500 ")
    assert len(caplog.records) == 1


@on_both_loops
async def test_a_gateway_error_is_answered_as_its_problem(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        of(scope).request_id = "id-7"
        raise BodyTooLarge("the limit is 3")

    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"hello"))
        status, headers, body = await client.reply()
        assert (status, headers[b"x-request-id"]) == (413, b"id-7")
        assert json.loads(body)["detail"] == "the limit is 3"
        await client.send(GET)
        assert (await client.reply())[0] == 413
    assert caplog.records == []


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.body", "body": b"x"}],
        [{"type": "http.response.trailers"}],
        [{"type": "websocket.accept"}],
    ],
)
@on_both_loops
async def test_messages_out_of_order_are_a_500(
    messages: list[Message], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async with serve(app) as port:
        assert (await exchange(port, LAST)).startswith(b"HTTP/1.1 500 ")
    assert len(caplog.records) == 1


@on_both_loops
async def test_an_application_that_starts_twice_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        for _ in range(2):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})

    async with serve(app) as port, connect(port) as client:
        await client.send(GET)
        try:
            got = await client.rest()
        except ConnectionResetError:
            got = b""
        assert got.count(b"HTTP/1.1") <= 1
        assert not got.endswith(b"yes")


# Stopping.


async def stop(server: uvicorn.Server) -> asyncio.Task[None]:
    """uvicorn's own shutdown, begun."""
    task = asyncio.create_task(server.shutdown())
    await asyncio.sleep(0)
    assert not server.servers[0].is_serving()
    return task


@on_both_loops
async def test_x19_what_is_in_flight_is_finished_and_its_reply_says_that_it_is_the_last() -> None:
    held = Held()
    async with running(held) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET)
            await held.begun.wait()
            stopping = await stop(server)
            held.go.set()
            status, headers, body = await client.reply()
            assert (status, headers[b"connection"], body) == (200, b"close", b"held")
            assert await client.rest() == b""
        await stopping


@on_both_loops
async def test_x19_a_reply_that_began_before_the_stop_is_finished() -> None:
    go = asyncio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with running(app) as server, connect(port_of(server)) as client:
        await client.send(GET)
        await client.until(b"3\r\none\r\n")
        stopping = await stop(server)
        go.set()
        assert await client.rest() == b"3\r\ntwo\r\n0\r\n\r\n"
        await stopping


@on_both_loops
async def test_x19_a_request_whose_head_had_begun_is_served() -> None:
    async with running(Echo()) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET)
            await client.reply()
            await client.send(GET[:10])
            await asyncio.sleep(0.02)
            stopping = await stop(server)
            await client.send(GET[10:])
            status, headers, _ = await client.reply()
            assert (status, headers[b"connection"]) == (200, b"close")
            assert await client.rest() == b""
        await stopping


@on_both_loops
async def test_x19_requests_that_were_there_are_all_served() -> None:
    held = Held()
    async with running(held) as server:
        async with connect(port_of(server)) as client:
            await client.send(GET * 5)
            await held.begun.wait()
            await asyncio.sleep(0.02)
            stopping = await stop(server)
            held.go.set()
            got = await client.rest()
            assert got.count(b"HTTP/1.1 200") == 5
            assert got.count(b"connection: close") == 1
            assert got.endswith(b"connection: close\r\n\r\nheld")
        await stopping


@on_both_loops
async def test_x19_a_request_that_crosses_the_stop_is_served_and_a_connection_long_idle_is_closed() -> None:
    async with running(Echo()) as server:
        port = port_of(server)
        async with connect(port) as idle, connect(port) as fresh, connect(port) as busy:
            await idle.send(GET)
            await idle.reply()
            await asyncio.sleep(0.6)
            await busy.send(GET)
            await busy.reply()
            start = asyncio.get_running_loop().time()
            stopping = await stop(server)
            assert await idle.rest() == b""
            assert asyncio.get_running_loop().time() - start < 0.3
            await busy.send(GET)
            status, headers, _ = await busy.reply()
            assert (status, headers[b"connection"]) == (200, b"close")
            assert await fresh.rest() == b""
        await stopping


@on_both_loops
async def test_x19_no_request_of_busy_clients_is_lost() -> None:
    """Each sends its next request as soon as it has a reply, until a reply says that it is the last."""
    async with running(Echo()) as server:
        port = port_of(server)
        answered, many = 0, asyncio.Event()

        async def busy() -> None:
            nonlocal answered
            async with connect(port) as client:
                while True:
                    await client.send(GET)
                    status, headers, _ = await client.reply()
                    assert status == 200
                    answered += 1
                    if answered == 200:
                        many.set()
                    if headers.get(b"connection") == b"close":
                        assert await client.rest() == b""
                        return

        clients = [asyncio.create_task(busy()) for _ in range(20)]
        await many.wait()
        stopping = await stop(server)
        await asyncio.gather(*clients)
        await stopping


@on_both_loops
async def test_x19_a_connection_accepted_after_the_stop_is_told_at_its_first_reply() -> None:
    async with serve(Echo(), stats=ServerStats(stopping=True)) as port:
        assert b"\r\nconnection: close\r\n" in await exchange(port, GET)


@on_both_loops
async def test_a_task_that_is_cancelled_for_the_stop_cuts_its_reply(caplog: pytest.LogCaptureFixture) -> None:
    held, stats = Held(), ServerStats()
    async with running(held, stats=stats) as server, connect(port_of(server)) as client:
        await client.send(GET)
        await held.begun.wait()
        for task in server.server_state.tasks:
            task.cancel()
        assert await client.rest() == b""
    assert stats.aborted == {"cancelled": 1}


# Upgrades.

UPGRADE = get(b"/ws", b"Connection: Upgrade", b"Upgrade: WebSocket")


class Tunnel:
    """Accepts every upgrade and echoes."""

    def __init__(
        self,
        after: Callable[[DuplexStream], Any] | None = None,
        fields: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.fields = fields or []
        self.scopes: list[Message] = []
        self.stream: DuplexStream
        self.switched = asyncio.Event()
        self.after = after

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        it = of(scope)
        if it.upgrade is None:
            await reply(send, b"plain")
            return
        self.stream = it.switch([(b"sec-websocket-accept", b"x"), *self.fields])
        self.switched.set()
        if self.after is not None:
            await self.after(self.stream)
            return
        while data := await self.stream.read():
            await self.stream.write(b"<" + data + b">")


SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: x\r\nupgrade: websocket\r\n"
    b"connection: upgrade\r\n\r\n"
)


@on_both_loops
async def test_an_upgrade_becomes_a_tunnel_and_early_bytes_are_kept() -> None:
    tunnel = Tunnel()
    async with serve(tunnel) as port, connect(port) as client:
        await client.send(UPGRADE + b"early")
        assert await client.head() == SWITCHED
        assert await client.until(b">") == b"<early>"
        await client.send(GET)
        assert await client.exactly(len(GET) + 2) == b"<" + GET + b">"
        client.end()
        assert await client.rest() == b""
    assert len(tunnel.scopes) == 1


@on_both_loops
async def test_a_101_has_the_fields_that_the_application_gives_it() -> None:
    fields = [(b"connection", b"Upgrade"), (b"upgrade", b"WebSocket")]
    async with serve(Tunnel(fields=fields)) as port, connect(port) as client:
        await client.send(UPGRADE)
        got = await client.head()
    assert got.endswith(b"x\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n")


@on_both_loops
async def test_a_tunnel_is_open_one_way_after_the_client_ended_the_other() -> None:
    async def after(stream: DuplexStream) -> None:
        assert await stream.read() == b""
        assert await stream.read() == b""
        await stream.write(b"still open")

    async with serve(Tunnel(after)) as port, connect(port) as client:
        await client.send(UPGRADE)
        assert await client.head() == SWITCHED
        client.end()
        assert await client.rest() == b"still open"


@on_both_loops
async def test_a5_without_a_101_what_follows_an_upgrade_is_the_next_request() -> None:
    echo = Echo()
    async with serve(echo) as port:
        got = await exchange(port, UPGRADE + get(b"/second") + LAST)
    assert got.count(b"HTTP/1.1 200") == 3
    assert echo.targets == [b"/ws", b"/second", b"/last"]
    assert [of(scope).upgrade for scope in echo.scopes] == [b"websocket", None, None]


@on_both_loops
async def test_a5_h2c_is_not_offered_to_the_application(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(Tunnel()) as port:
        got = await exchange(
            port,
            get(b"/", b"Connection: Upgrade, HTTP2-Settings, close", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
        )
    assert got.endswith(b"plain")

    async def forcing(scope: Message, receive: Any, send: Any) -> None:
        of(scope).switch([])

    async with serve(forcing) as port:
        assert (await exchange(port, LAST)).startswith(b"HTTP/1.1 500")


@on_both_loops
async def test_a18_a_101_cannot_be_split(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        of(scope).switch([(b"x", b"a\r\nb: c")])

    async with serve(app) as port, connect(port) as client:
        await client.send(UPGRADE)
        assert (await client.reply())[0] == 500


@on_both_loops
async def test_a_tunnel_has_back_pressure_both_ways() -> None:
    read: list[int] = []
    go = asyncio.Event()

    async def after(stream: DuplexStream) -> None:
        await go.wait()
        while sum(read) < 16 << 20:
            read.append(len(await stream.read()))
        for _ in range(256):
            await stream.write(b"y" * 65536)

    async with serve(Tunnel(after)) as port, connect(port) as client:
        await client.send(UPGRADE)
        await client.head()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.send(b"x" * (16 << 20))
        go.set()
        assert len(await client.rest()) == 16 << 20
    assert max(read) < 1 << 20


@pytest.mark.parametrize("how", ["close", "abort", "return", "raise", "client", "client, cancelled"])
@on_both_loops
async def test_how_a_tunnel_ends(how: str, caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[bool] = []
    ended = asyncio.Event()

    async def after(stream: DuplexStream) -> None:
        of(tunnel.scopes[0]).cancel_on_disconnect = how != "client"
        try:
            await whole_tunnel(stream)
            await asyncio.sleep(0)
            cancelled.append(False)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        finally:
            ended.set()

    async def whole_tunnel(stream: DuplexStream) -> None:
        await stream.write(b"last words")
        if how == "close":
            stream.close()
        elif how == "abort":
            stream.abort()
        elif how == "raise":
            raise LookupError
        elif how.startswith("client"):
            while await stream.read():
                continue
            with pytest.raises(ClientDisconnected):
                await stream.write(b"x")

    tunnel = Tunnel(after)
    stats = ServerStats()
    async with running(tunnel, stats=stats) as server:
        async with connect(port_of(server)) as client:
            await client.send(UPGRADE)
            await client.head()
            if how.startswith("client"):
                await client.until(b"words")
                client.reset()
                async with asyncio.timeout(5):
                    await ended.wait()
            elif how in ("close", "return"):
                assert await client.rest() == b"last words"
            else:
                with suppress(ConnectionResetError):
                    await client.rest()
        await quiet(server)
    assert cancelled == ([] if how == "raise" else [how == "client, cancelled"])
    assert stats.aborted == (
        {"tunnel": 1} if how == "abort" else {"application-error": 1} if how == "raise" else {}
    )
