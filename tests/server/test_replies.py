"""
Replies over a socket: their fields, how they are framed, and what is cut off.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from gateway.errors import ReadTimeout
from gateway.server.asgi import Message
from gateway.server.limits import ServerStats
from gateway.server.request_cycle import RequestCycle
from tests.support.applications import DATE, cycle_of, reply
from tests.support.raw_requests import GET, LAST, UPGRADE, get
from tests.support.serving import (
    connect,
    exchange,
    on_both_loops,
    serve,
)
from tests.support.virtual import VirtualClient, in_virtual_time


def without_date(data: bytes) -> bytes:
    return b"\r\n".join(line for line in data.split(b"\r\n") if not line.lower().startswith(b"date:"))


@pytest.mark.usefixtures("over_tls")
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
@pytest.mark.usefixtures("over_tls")
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


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [DATE]})
        for piece in (b"one", b"two", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})

    async with serve(app) as port:
        got = await exchange(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET)
    assert got == b"HTTP/1.1 200 OK\r\ndate: %b\r\nconnection: close\r\n\r\nonetwo" % DATE[1]


@pytest.mark.parametrize("status", [200, 299, 404, 451, 599, 600, 777, 999])
@pytest.mark.usefixtures("over_tls")
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
@pytest.mark.usefixtures("over_tls")
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


@pytest.mark.usefixtures("over_tls")
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


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_connection_field_of_the_application_is_kept_beside_ours() -> None:
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


@pytest.mark.usefixtures("over_tls")
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


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_respond_is_both_messages_at_once() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert cycle_of(scope).respond(201, [(b"content-length", b"2"), DATE], b"ok")

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
@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_reply_that_breaks_off_is_cut_and_never_completed(
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


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_reply_that_ends_before_its_length_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"sho", "more_body": True})
        await send({"type": "http.response.body", "body": b"rt"})

    stats = ServerStats()
    async with serve(app, stats=stats) as port:
        got = await exchange(port, GET + GET)
    assert not got.endswith(b"short")
    assert stats.aborted == {"application-error": 1}


@pytest.mark.usefixtures("over_tls")
@on_both_loops
async def test_a_reply_that_only_the_close_would_end_is_reset_when_it_breaks_off(
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


@pytest.mark.usefixtures("over_tls")
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


@in_virtual_time
async def test_a_reply_behind_one_that_is_not_read_waits_for_it() -> None:
    at_once: list[bool] = []

    class App:
        direct = True

        async def serve(self, cycle: RequestCycle) -> None:
            body = b"x" * 100_000
            fields = [(b"content-length", b"100000")]
            at_once.append(cycle.respond(200, fields, body))
            if not at_once[-1]:
                await cycle.start(200, fields)
                await cycle.write(body, False)

    client = VirtualClient(App())
    client.reading = False
    client.send(GET + GET)
    await asyncio.sleep(5)
    assert at_once == [True, False]
    client.take(100_000)
    await asyncio.sleep(5)
    client.take(1_000_000)
    assert client.got.count(b"HTTP/1.1 200 OK") == 2
    assert client.got.count(b"x") == 200_000


@in_virtual_time
async def test_a_tunnel_behind_a_reply_that_is_not_read_is_not_cut_off_for_it() -> None:
    class App:
        direct = True

        async def serve(self, cycle: RequestCycle) -> None:
            if cycle.upgrade is None:
                cycle.respond(200, [], b"x" * 100_000)
            else:
                stream = cycle.switch([])
                await stream.write(await stream.read())
                stream.close()

    stats = ServerStats()
    client = VirtualClient(App(), stats=stats)
    client.reading = False
    client.send(GET + UPGRADE)
    await asyncio.sleep(0.001)
    client.send(b"raw")
    await asyncio.sleep(59)
    client.take(1_000_000)
    await asyncio.sleep(0.001)
    client.take(1_000)
    assert client.got.endswith(b"raw")
    assert not stats.aborted
