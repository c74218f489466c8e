"""
What an upstream, a network or a name service can do to a call, over real sockets and the whole gateway.

Each fault has one answer: status, problem type, Proxy-Status token, never a Retry-After, an outcome on the
audit log, and no connection left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway import backend
from gateway.config import UpstreamSettings
from tests.support.calls import DOCUMENT, GET, OK_HEAD, PATCH, POST_HEAD
from tests.support.gateways import CONVERSATION, FILLED, Running, gateway
from tests.support.judging import Refusal, refusal
from tests.support.ports import closed_port, full_port
from tests.support.raw_upstream import OK, Peer, RawUpstream, Script, answering, deaf, silent
from tests.support.serving import Reply, connect
from tests.support.waiting import until

POST = POST_HEAD + b"Content-Length: 2\r\n\r\nab"

REFUSED = Refusal(502, "connection-refused", "connection_refused")
TERMINATED = Refusal(502, "connection-terminated", "connection_terminated")
INVALID = Refusal(502, "invalid-reply", "http_protocol_error")
NO_CONNECTION = Refusal(504, "connect-timeout", "connection_timeout")
NO_ANSWER = Refusal(504, "read-timeout", "http_response_timeout")
NO_NAME = Refusal(502, "name-not-resolved", "dns_error")
NO_TRUST = Refusal(502, "tls-failed", "tls_certificate_error")
CUT_OFF = Refusal(200, "", "")


@asynccontextmanager
async def in_front_of(url: str, **to: Any) -> AsyncIterator[Running]:
    settings = UpstreamSettings.model_validate(
        {"url": url, "connect_timeout": "600ms", "read_timeout": "150ms", "write_timeout": "300ms", **to}
    )
    async with gateway(url, transport=backend.connect(settings)) as running:
        yield running


async def told(running: Running, data: bytes) -> Refusal:
    """The refusal that the client reads; CUT_OFF for the upstream's reply, which must not look complete."""
    async with connect(running.port) as client:
        await client.send(data)
        status, headers = await client.status_and_headers()
        if status == 200:
            body = b""
            with contextlib.suppress(ConnectionResetError):
                body = await client.rest()
            # Neither as long as it should be nor with the chunk that would end it.
            assert len(body) < int(headers.get(b"content-length", b"1000"))
            assert not body.endswith(b"0\r\n\r\n")
            assert b"content-length" in headers or b"transfer-encoding" in headers
            return CUT_OFF
        body = await client.exactly(int(headers[b"content-length"]))
        return refusal(Reply(status, headers, body))


def outcomes(running: Running) -> list[tuple[int | None, str | None]]:
    return [(line["status"], line.get("error")) for line in running.lines("outcome")]


# Once connected.


def cut(said: bytes = b"", reset: bool = True) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        if reset:
            peer.reset()

    return script


def stalled(said: bytes = b"") -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        await peer.gone()

    return script


FAULTS = {
    "reset before the head": (cut(), TERMINATED),
    "end before the head": (cut(reset=False), TERMINATED),
    "reset in the head": (cut(b"HTTP/1.1 200 OK\r\nX: "), TERMINATED),
    "end in the head": (cut(b"HTTP/1.1 2", reset=False), TERMINATED),
    "reset after an interim head": (cut(b"HTTP/1.1 103 x\r\nLink: </a>\r\n\r\n"), TERMINATED),
    "no HTTP": (cut(b"220 mail.example ESMTP\r\n", reset=False), INVALID),
    "no HTTP at all": (cut(b"\0\1\2\3" * 100, reset=False), INVALID),
    "stall before the head": (stalled(), NO_ANSWER),
    "stall in the head": (stalled(b"HTTP/1.1 200 OK\r\nX: "), NO_ANSWER),
    "stall after an interim head": (stalled(b"HTTP/1.1 100 Continue\r\n\r\n"), NO_ANSWER),
    "reset in the body": (cut(OK_HEAD + b"Content-Length: 100\r\n\r\nabc"), CUT_OFF),
    "end in the body": (cut(OK_HEAD + b"Content-Length: 100\r\n\r\nabc", reset=False), CUT_OFF),
    "reset in the chunks": (cut(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), CUT_OFF),
    "end in the chunks": (
        cut(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", reset=False),
        CUT_OFF,
    ),
    "stall in the body": (stalled(OK_HEAD + b"Content-Length: 100\r\n\r\nabc"), CUT_OFF),
    "reset of what only an end would end": (cut(OK_HEAD + b"\r\nabc"), CUT_OFF),
    "stall of what only an end would end": (stalled(OK_HEAD + b"\r\nabc"), CUT_OFF),
    "nonsense in the chunks": (
        stalled(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx"),
        CUT_OFF,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("data", [GET, POST], ids=["GET", "POST"])
async def test_a_fault_under_a_call_that_is_passed_through(fault: str, data: bytes) -> None:
    script, expected = FAULTS[fault]
    async with RawUpstream(script) as upstream, in_front_of(upstream.url) as running:
        found = await told(running, data)
        # What breaks off with its head, before anything of it was sent, is told like any other failure.
        assert found == expected or (fault == "nonsense in the chunks" and found == INVALID)
        await running.disconnected()
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_under_a_patch_is_told_recorded_and_never_sent_twice(fault: str) -> None:
    script, expected = FAULTS[fault]
    # The reply to the look-up closes its connection: the PATCH goes out on a new one.
    look_up = answering(DOCUMENT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    async with (
        RawUpstream(look_up, script) as upstream,
        in_front_of(upstream.url) as running,
    ):
        found = await told(running, PATCH)
        if expected == CUT_OFF:  # a small reply is waited for: it is whole or an error (C3)
            expected = INVALID if "nonsense" in fault else NO_ANSWER if "stall" in fault else TERMINATED
        assert found == expected
        await running.disconnected()
        assert [(request.method, request.body) for request in upstream.requests] == [
            (b"GET", b""),
            (b"PATCH", FILLED),
        ]
        await until(lambda: running.lines("outcome"))
        assert [line["event"] for line in running.lines()] == ["rewrite", "outcome"]
        [(status, error)] = outcomes(running)
        assert status == expected.status
        assert error == (expected.kind or error)
        assert error is not None


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_under_a_look_up_means_that_nothing_is_patched(fault: str) -> None:
    script, expected = FAULTS[fault]
    async with RawUpstream(script) as upstream, in_front_of(upstream.url) as running:
        found = await told(running, PATCH)
        if expected == CUT_OFF:
            assert found.status in (502, 504)
        else:
            assert found == expected
        await running.disconnected()
        # A GET is tried again only if its connection had been idle before; here none had.
        assert [(request.method, request.target) for request in upstream.requests] == [
            (b"GET", CONVERSATION.encode())
        ]
        assert [line["event"] for line in running.lines()] == ["reject", "outcome"]
        assert outcomes(running) == [(found.status, found.kind)]


async def test_an_upstream_that_does_not_take_the_request_is_504() -> None:
    async with (
        RawUpstream(deaf) as upstream,
        in_front_of(upstream.url) as running,
        connect(running.port) as client,
    ):
        await client.send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        sending = asyncio.create_task(client.send(b"x" * 50_000_000))
        status, headers, _ = await client.reply()
        assert (status, b"retry-after" in headers) == (504, False)
        client.reset()
        with contextlib.suppress(ConnectionError):
            await sending
        await running.disconnected()


# Before there is a connection: nothing was sent, and the log says so.


async def nothing_sent(running: Running, expected: Refusal) -> None:
    said = await asyncio.gather(*(told(running, data) for data in (GET, POST, PATCH)))
    assert said == [expected] * 3
    await running.disconnected()
    assert [line["event"] for line in running.lines()] == ["reject", "outcome"]
    assert outcomes(running) == [(expected.status, expected.kind)]


async def test_an_upstream_that_refuses_connections() -> None:
    with closed_port() as port:
        async with in_front_of(f"http://127.0.0.1:{port}") as running:
            await nothing_sent(running, REFUSED)


async def test_an_upstream_that_does_not_accept() -> None:
    with full_port() as port:
        async with in_front_of(f"http://127.0.0.1:{port}") as running:
            await nothing_sent(running, NO_CONNECTION)


@pytest.mark.parametrize("name", ["gateway.invalid", "a" * 64 + ".invalid"])
async def test_a_name_that_does_not_resolve(name: str) -> None:
    async with in_front_of(f"http://{name}", connect_timeout="5s") as running:
        await nothing_sent(running, NO_NAME)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def over_tls(
    authority: trustme.CA, tmp_path: Path, server: ssl.SSLContext
) -> AsyncIterator[tuple[RawUpstream, Running]]:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with RawUpstream(answering(DOCUMENT), tls=server) as upstream:
        url = f"https://localhost:{upstream.port}"
        async with in_front_of(url, tls={"ca": str(tmp_path / "ca.pem")}, connect_timeout="2s") as running:
            yield upstream, running


def certified(
    issuer: trustme.CA, name: str = "localhost", until: datetime.datetime | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(name, not_before=until, not_after=until).configure_cert(context)
    return context


async def test_a_certificate_that_holds(authority: trustme.CA, tmp_path: Path) -> None:
    async with (
        over_tls(authority, tmp_path, certified(authority)) as (upstream, running),
        connect(running.port) as client,
    ):
        await client.send(PATCH)
        assert (await client.reply())[0] == 200
        assert [request.method for request in upstream.requests] == [b"GET", b"PATCH"]
        assert upstream.requests[0].header(b"host") == b"localhost:%d" % upstream.port


@pytest.mark.parametrize("fault", ["wrong name", "expired", "unknown authority", "self-signed"])
async def test_a_certificate_that_does_not_hold(authority: trustme.CA, tmp_path: Path, fault: str) -> None:
    server = {
        "wrong name": lambda: certified(authority, "other.test"),
        "expired": lambda: certified(authority, until=datetime.datetime(2020, 1, 1)),
        "unknown authority": lambda: certified(trustme.CA()),
        "self-signed": lambda: certified(trustme.CA(organization_name="me")),
    }[fault]()
    async with over_tls(authority, tmp_path, server) as (upstream, running):
        await nothing_sent(running, NO_TRUST)
        assert upstream.requests == []


async def test_a_handshake_that_stalls(authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with RawUpstream(silent) as upstream:
        url = f"https://localhost:{upstream.port}"
        async with in_front_of(url, tls={"ca": str(tmp_path / "ca.pem")}) as running:
            await nothing_sent(running, NO_CONNECTION)
            assert all(b"PATCH" not in peer.received for peer in upstream.peers)


# The connection that is closed just as it is used.


async def test_a_patch_into_a_closing_connection_is_applied_once_or_an_error() -> None:
    """X6. The upstream closes each connection after a moment or a few requests: some calls meet the close."""
    chance = random.Random(7)
    applied: Counter[bytes] = Counter()

    async def fickle(peer: Peer) -> None:
        for _ in range(chance.randint(1, 4)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.0005, 0.004)):
                    applied[(await peer.request()).target] += 1
                    if chance.random() < 0.1:
                        break
                    await peer.send(OK)
        if chance.random() < 0.5:
            peer.reset()

    count = 600
    statuses: dict[bytes, int] = {}

    async def work(running: Running, numbers: Iterator[int]) -> None:
        async with connect(running.port) as client:
            for number in numbers:
                await client.send(b"PATCH /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
                status, headers, body = await client.reply()
                assert body == b"ok" or b"connection_terminated" in headers[b"proxy-status"]
                statuses[b"/%d" % number] = status
                await asyncio.sleep(chance.random() * 0.004)

    async with RawUpstream(fickle) as upstream, in_front_of(upstream.url) as running:
        numbers = iter(range(count))
        await asyncio.gather(*(work(running, numbers) for _ in range(6)))
        assert len(statuses) == count
        assert set(applied.values()) == {1}, "a PATCH was applied twice"
        assert {target for target, status in statuses.items() if status == 200} <= set(applied)
        assert Counter(statuses.values())[200] > count / 2
        assert len(upstream.peers) > 50


async def test_a_get_into_a_closing_connection_goes_again_on_a_new_one() -> None:
    async def once_more_then_reset(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        peer.reset()

    async with (
        RawUpstream(once_more_then_reset, answering(OK)) as upstream,
        in_front_of(upstream.url) as running,
        connect(running.port) as client,
    ):
        for _ in range(3):
            await client.send(GET)
            assert (await client.reply())[0] == 200
        assert len(upstream.peers) == 2
        assert running.pool.size == 1
