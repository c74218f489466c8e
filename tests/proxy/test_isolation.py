"""Nothing of one user reaches another: no cookie, no credential, no reply."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.calls import patch
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, gateway, proxied
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.serving import connect


async def test_callers_who_share_a_connection_are_never_mixed() -> None:
    """S6: fields are remembered from their second time on. Those of these two callers are equally long."""
    callers = [b"a", b"a", b"a", b"b", b"a", b"b", b"b", b"b", b"a"]
    async with proxied(answering(OK)) as (upstream, _, client):
        for caller in callers:
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % caller)
            assert (await client.reply())[0] == 200

        said = [dict(request.headers)[b"authorization"] for request in upstream.requests]
        assert said == [b"Bearer " + caller for caller in callers]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_one_users_cookie_never_reaches_another(host: str) -> None:
    """Also with a host name: some cookie jars ignore IP addresses."""
    seen: list[bytes | None] = []

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            seen.append(request.header(b"cookie"))
            body = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Set-Cookie: session=of-%d; Path=/\r\n\r\n%b" % (len(body), len(seen), body)
            )

    async with (
        RawUpstream(script) as upstream,
        gateway(f"http://{host}:{upstream.port}") as running,
        connect(running.port) as one,
        connect(running.port) as two,
    ):
        for client in (one, two, one, two):
            await client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"set-cookie" in (await client.reply())[1]
            await client.send(patch(b"{}"))
            assert b"set-cookie" in (await client.reply())[1]
        assert len(seen) >= 9
        assert set(seen) == {None}


async def test_a_cookie_of_a_look_up_reaches_no_client() -> None:
    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            body = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
            cookie = b"Set-Cookie: look=up\r\n" if request.method == b"GET" else b""
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
                % (cookie, len(body), body)
            )

    async with RawUpstream(script) as upstream, gateway(upstream.url) as running, running.client() as client:
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert "set-cookie" not in answer.headers


async def test_many_users_at_once_each_get_their_own() -> None:
    async def echo(peer: Peer) -> None:
        while True:
            request = await peer.request()
            secret = request.header(b"authorization") or b""
            await peer.send(
                b"HTTP/1.1 200 OK\r\nX-Secret: %b\r\nSet-Cookie: s=%b\r\nContent-Length: %d\r\n\r\n%b"
                % (secret, secret, len(secret), secret)
            )

    async def user(port: int, number: int) -> None:
        async with connect(port) as client:
            mine = b"secret-%d" % number
            await client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\n\r\n" % (number, mine))
            status, headers, body = await client.reply()
            assert (status, body, headers[b"x-secret"]) == (200, mine, mine)
            assert headers[b"set-cookie"] == b"s=" + mine

    # They are three for each connection to the upstream, and it is not the wait for one that is tried here.
    async with proxied(echo, to={"pool_timeout": "10s"}) as (upstream, running, _):
        await asyncio.gather(*(user(running.port, number) for number in range(300)))
        assert len(upstream.requests) == 300
        assert all(request.header(b"cookie") is None for request in upstream.requests)
