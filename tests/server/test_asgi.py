"""
ASGI: what an application is given, and what becomes of one that fails or breaks the rules.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.errors import BodyTooLarge
from gateway.server.asgi import Message
from gateway.server.limits import ServerLimits
from tests.support.applications import Echo, body_of, cycle_of
from tests.support.raw_requests import GET, LAST, post
from tests.support.serving import (
    connect,
    exchange,
    on_both_loops,
    serve,
)


@on_both_loops
async def test_the_scope_has_the_request_as_it_was_sent() -> None:
    echo = Echo()
    async with serve(echo) as port:
        await exchange(
            port,
            b"PATCH /a%2Fb/../%C3%A9//c?x=%zz|\"'&y HTTP/1.1\r\n"
            b"hOST: a:80\r\nX-B: 1\r\nx-a:\t2 \r\nX-B:  3\r\nConnection: close\r\n\r\n",
        )
    (scope,) = echo.scopes
    assert cycle_of(scope).target == b"/a%2Fb/../%C3%A9//c?x=%zz|\"'&y"
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


@on_both_loops
async def test_an_application_that_raises_is_a_500_with_its_cause_in_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        cycle_of(scope).request_id = "the-id"
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
        cycle_of(scope).request_id = "id-7"
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
