"""The same requests and replies through the pool and through httpx's own transport: they agree."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import httpx
import pytest

from tests.support.httpx_pool import HttpxPool
from tests.support.pools import pieces_of
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering, silent
from tests.support.replies import BROKEN, REPLIES

HttpxTransport: TypeAlias = httpx.AsyncBaseTransport


# As httpx: the same requests and replies, through this transport and through httpx's own.


@pytest.fixture(params=["ours", "httpx"])
def transport(request: pytest.FixtureRequest) -> HttpxTransport:
    return HttpxPool() if request.param == "ours" else httpx.AsyncHTTPTransport(verify=False)


@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_is_what_httpx_takes_it_for(transport: HttpxTransport, name: str) -> None:
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
    transport: HttpxTransport,
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


async def test_a_head_has_no_body_and_the_connection_is_kept(transport: HttpxTransport) -> None:
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
    async def sent_by(transport: HttpxTransport) -> list[bytes]:
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


async def test_a_closed_connection_is_not_used_again(transport: HttpxTransport) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with RawUpstream(answering(closing)) as upstream, httpx.AsyncClient(transport=transport) as client:
        for _ in range(3):
            await client.get(f"http://127.0.0.1:{upstream.port}/")

        assert len(upstream.peers) == 3


@pytest.mark.parametrize("name", BROKEN)
async def test_what_httpx_refuses_is_refused(transport: HttpxTransport, name: str) -> None:
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
async def test_a_reply_that_breaks_off_is_an_error(transport: HttpxTransport, cut: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(cut)

    async with RawUpstream(script) as upstream, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.get(f"http://127.0.0.1:{upstream.port}/")


async def test_a_read_timeout_of_the_request_is_honoured(transport: HttpxTransport) -> None:
    async with RawUpstream(silent) as upstream, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"http://127.0.0.1:{upstream.port}/", timeout=httpx.Timeout(5, read=0.05))


async def test_a_timeout_of_none_is_none(transport: HttpxTransport) -> None:
    async with RawUpstream(answering(OK)) as upstream, httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(f"http://127.0.0.1:{upstream.port}/", timeout=None)).content == b"ok"


@pytest.mark.parametrize(
    "header", [("X", "a\r\nY: b"), ("X", "a\nb"), ("X", "a\0b"), ("X Y", "a"), ("X:", "a")]
)
async def test_a_header_that_would_split_the_request_is_not_sent(
    transport: HttpxTransport, header: tuple[str, str]
) -> None:
    async with RawUpstream(answering(OK)) as upstream, httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.get(f"http://127.0.0.1:{upstream.port}/", headers=[header])
        assert b"".join(bytes(peer.received) for peer in upstream.peers) == b""


async def test_a_response_is_streamed(transport: HttpxTransport) -> None:
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
