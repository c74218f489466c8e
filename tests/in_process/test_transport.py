"""The transport of httpx: where it sends, what becomes of replies and bodies that end early, how it ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

import gateway
from gateway.mock.server import Fault
from tests.support.audit_lines import audit_lines
from tests.support.calls import answering_gets
from tests.support.gateways import BODY, FILLED, PARTICIPANT, TOKEN, settings
from tests.support.hosted import hosted
from tests.support.judging import refused_by_the_gateway
from tests.support.mocking import mock
from tests.support.ports import closed_port
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.waiting import until


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.example{path}",
        "https://127.0.0.1:{port}{path}",
        "http://127.0.0.1{path}",
        "http://localhost:{port}{path}",
        "http://127.0.0.1:{port}/else{path}",
        "http://127.0.0.1:{port}/apis{path}",
    ],
)
async def test_what_is_not_below_the_upstreams_url_is_refused_and_sent_nowhere(
    tmp_path: Any, url: str
) -> None:
    async with RawUpstream(answering(OK)) as upstream:
        transport = gateway.RepairingTransport(settings(f"{upstream.url}/api", str(tmp_path / "log")))
        async with httpx.AsyncClient(transport=transport) as client:
            reply = await client.patch(url.format(port=upstream.port, path=PARTICIPANT), content=BODY)

            assert reply.status_code == 421
            refused_by_the_gateway(reply.headers, reply.json(), 421)
            assert upstream.requests == []
            # What is below it goes to where its URL says.
            await client.get(f"{upstream.url}/api/x?y=%20")
            assert [request.target for request in upstream.requests] == [b"/api/x?y=%20"]


async def test_other_hosts_are_the_clients_where_it_mounts_the_transport_for_one(tmp_path: Any) -> None:
    async with mock() as upstream, RawUpstream(answering(OK)) as other:
        transport = gateway.RepairingTransport(settings(upstream.url, str(tmp_path / "log")))
        async with httpx.AsyncClient(mounts={upstream.url: transport}, trust_env=False) as client:
            assert (await client.get(f"{other.url}/x")).text == "ok"
            reply = await client.patch(upstream.url + PARTICIPANT, content=BODY, headers=TOKEN)

        assert reply.status_code == 202
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED]


async def test_it_begins_with_the_first_request_and_ends_with_its_log_written(tmp_path: Any) -> None:
    async with mock() as upstream:
        transport = gateway.RepairingTransport(settings(upstream.url, str(tmp_path / "log")))
        client = httpx.AsyncClient(transport=transport, base_url=upstream.url)
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        await client.aclose()

    assert [line["event"] for line in audit_lines(tmp_path / "log")] == ["rewrite", "outcome"]
    assert transport.within.gateway is None


async def test_aclose_waits_for_a_call_that_nobody_waits_for(tmp_path: Any) -> None:
    async with mock() as upstream:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        transport = gateway.RepairingTransport(settings(upstream.url, str(tmp_path / "log")))
        client = httpx.AsyncClient(transport=transport, base_url=upstream.url)
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await until(lambda: upstream.ledger.of("PATCH"))
        call.cancel()
        closing = asyncio.ensure_future(client.aclose())
        await asyncio.sleep(0)
        held.set()
        await closing

    assert [line["event"] for line in audit_lines(tmp_path / "log")] == ["rewrite", "outcome"]


async def test_what_is_not_done_within_the_drain_timeout_is_given_up(tmp_path: Any) -> None:
    async with mock() as upstream:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        chosen = settings(upstream.url, str(tmp_path / "log"), limits={"drain_timeout": "50ms"})
        client = httpx.AsyncClient(transport=gateway.RepairingTransport(chosen), base_url=upstream.url)
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await until(lambda: upstream.ledger.of("PATCH"))
        async with asyncio.timeout(5):
            await client.aclose()
        with pytest.raises(httpx.ReadError):
            await call
        held.set()

    assert [line["event"] for line in audit_lines(tmp_path / "log")] == ["rewrite", "outcome"]


async def test_a_reply_that_nobody_reads_to_its_end_lets_its_connection_go() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 70_000)
        await peer.gone()
        gone.set()

    async with RawUpstream(script) as upstream, client_of(upstream.url) as client:
        async with client.stream("GET", "/x") as reply:
            assert await anext(reply.aiter_raw())
        await until(gone.is_set)


def client_of(url: str) -> httpx.AsyncClient:
    transport = gateway.RepairingTransport(settings(url, "/dev/null"))
    return httpx.AsyncClient(transport=transport, base_url=url)


async def test_what_a_body_raises_is_raised_to_who_sent_it_and_nothing_is_patched() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield BODY[:5]
        raise LookupError("its own fault")

    async with RawUpstream(answering_gets()) as upstream, client_of(upstream.url) as client:
        with pytest.raises(LookupError):
            await client.patch(PARTICIPANT, content=pieces())

        assert upstream.requests == []


async def test_a_large_reply_waits_for_its_reader_and_comes_whole() -> None:
    pieces = 400
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (pieces * 100_000))
        for _ in range(pieces):
            await peer.send(b"x" * 100_000)
            sent += 1

    async with RawUpstream(script) as upstream:
        client = client_of(upstream.url)
        async with client.stream("GET", "/x") as reply:
            for _ in range(2_000):
                await asyncio.sleep(0)
            assert sent < pieces
            assert sum([len(piece) async for piece in reply.aiter_raw()]) == pieces * 100_000
        await client.aclose()


async def test_an_upstream_that_is_not_there_is_502() -> None:
    with closed_port() as port:
        async with client_of(f"http://127.0.0.1:{port}") as client:
            reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

    assert reply.status_code == 502
    assert refused_by_the_gateway(reply.headers, reply.json(), 502) == "connection_refused"


async def test_no_cookie_of_a_reply_is_kept_by_the_transport() -> None:
    """C4: the jar is the client's own, and two clients of one process share nothing."""
    async with hosted("transport") as run:
        cookie = (("set-cookie", "session=of-one"),)
        run.upstream.faults.append(Fault(method="GET", status=200, body=b"{}", headers=cookie))
        await run.client.get("/x")
        run.client.cookies.clear()
        await run.client.get("/x")

        assert all(b"cookie" not in dict(entry.headers) for entry in run.upstream.ledger.of("GET"))


def test_the_package_does_not_load_httpx_until_the_transport_is_asked_for() -> None:
    code = (
        "import sys, gateway; assert 'httpx' not in sys.modules; "
        "gateway.RepairingTransport; assert 'httpx' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
