"""Each trouble, caused for real over sockets: the line when it begins, and the line when it is over."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trustme

from gateway import backend
from gateway.admin.troubles import Troubles
from gateway.mock.server import Fault
from tests.support.calls import PATCH
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, Running, gateway
from tests.support.mocking import mock
from tests.support.ports import unused_ports
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.serving import connect
from tests.support.waiting import until

QUICK = replace(backend.PARTS, troubles=partial(Troubles, quiet=0.05))


async def get(running: Running) -> int:
    async with running.client() as client:
        return (await client.get(CONVERSATION, headers=TOKEN)).status_code


def told(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    return [message for message in caplog.messages if re.search(pattern, message)]


async def test_an_upstream_that_refuses_is_told_once_and_again_when_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port,) = unused_ports(1)
    async with gateway(f"http://127.0.0.1:{port}", parts=QUICK) as running:
        for _ in range(3):
            assert await get(running) == 502
        (begun,) = told(caplog, "fails: ")
        assert (
            f"upstream http://127.0.0.1:{port} fails: connections are refused (connection-refused)" in begun
        )
        assert "Check that the upstream runs" in begun
        assert told(caplog, "answers again") == []

        answering_again = await asyncio.start_server(replies, "127.0.0.1", port)
        async with answering_again:
            assert await get(running) == 200
            await until(lambda: told(caplog, "answers again"))
        (over,) = told(caplog, "answers again")
        assert "connections are refused (connection-refused) failed 3 calls" in over


async def replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    await writer.drain()
    writer.close()


async def test_a_look_up_that_finds_no_upstream_tells_it_too(caplog: pytest.LogCaptureFixture) -> None:
    (port,) = unused_ports(1)
    async with gateway(f"http://127.0.0.1:{port}", parts=QUICK) as running, running.client() as client:
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 502
    assert len(told(caplog, "fails: connections are refused")) == 1


async def test_a_name_that_is_not_resolved_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway("http://no-such-host.invalid", parts=QUICK) as running:
        assert await get(running) == 502
    (begun,) = told(caplog, "fails: ")
    assert "its name is not resolved (name-not-resolved)" in begun


async def test_a_certificate_that_is_not_accepted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with (
        RawUpstream(answering(OK), tls=context) as upstream,
        gateway(f"https://localhost:{upstream.port}", parts=QUICK) as running,
    ):
        assert await get(running) == 502
    (begun,) = told(caplog, "fails: ")
    assert "TLS fails (tls-failed)" in begun
    assert "Check the upstream's certificate" in begun


async def test_an_upstream_that_hangs_is_told_and_that_it_answers_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mock() as upstream:
        upstream.faults.append(Fault(delay=5.0))
        to = {"url": upstream.url, "read_timeout": "100ms"}
        async with gateway(upstream.url, upstream=to, parts=QUICK) as running:
            assert await get(running) == 504
            (begun,) = told(caplog, "fails: ")
            assert "no answer in time (read-timeout)" in begun
            assert await get(running) == 200
            await until(lambda: told(caplog, "answers again"))
    assert len(told(caplog, "answers again.*failed 1 calls")) == 1


async def test_an_upstream_that_hangs_past_the_deadline_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await asyncio.Event().wait()

    async with (
        RawUpstream(silent) as upstream,
        gateway(upstream.url, limits={"deadline": "200ms"}, parts=QUICK) as running,
        running.client() as client,
    ):
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 504
    assert len(told(caplog, "fails: .*in time")) == 1


async def test_look_ups_that_a_429_pauses_are_told_with_how_many_were_held_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mock() as upstream:
        refusal = Fault(method="GET", status=429, headers=(("retry-after", "1"),))
        upstream.faults.append(refusal)
        async with gateway(upstream.url, parts=QUICK) as running, running.client() as client:
            for _ in range(3):
                reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
                assert reply.status_code == 429
            assert len(told(caplog, "look-ups are paused for 1 s: the upstream answered one with 429")) == 1
            await until(lambda: told(caplog, "look-ups go on"))
    assert len(told(caplog, "look-ups go on: 2 were held back")) == 1


async def test_overload_is_told_when_it_begins_and_with_how_many_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = asyncio.Event()

    async def held(peer: Peer) -> None:
        await peer.request()
        await free.wait()
        await peer.send(OK)

    limits = {"max_in_flight": 1, "overload_pause": "0s"}
    # Longer than it takes a busy machine from one refusal to the next.
    parts = replace(backend.PARTS, troubles=partial(Troubles, quiet=1.0))
    async with (
        RawUpstream(held) as upstream,
        gateway(upstream.url, limits=limits, parts=parts) as running,
        connect(running.port) as first,
    ):
        await first.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: upstream.requests)
        for _ in range(4):
            assert await get(running) == 503
        assert len(told(caplog, "overload begins: 1 requests are being served")) == 1
        await until(lambda: told(caplog, "overload is over"))
        free.set()
        assert (await first.reply()).status == 200
    assert len(told(caplog, "overload is over: 4 were refused")) == 1


async def test_an_audit_log_that_fails_is_told_and_what_it_cost_when_it_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "rewrites.jsonl"
    async with (
        mock() as upstream,
        gateway(upstream.url, audit=str(path), parts=QUICK) as running,
        running.client() as client,
    ):
        for _ in range(3):
            assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 503
        (begun,) = told(caplog, "will be refused")
        assert str(path) in begun
        assert "No such file or directory" in begun
        os.mkdir(path.parent)
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
    assert len(told(caplog, "the audit log is written again: 3 calls were refused")) == 1


async def test_what_an_upstream_says_of_itself_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    nonsense = b"HTTP/1.1 200 \x1b[2J\nforged: yes\r\n\r\n"
    async with (
        RawUpstream(answering(nonsense)) as upstream,
        gateway(upstream.url, parts=QUICK) as running,
        connect(running.port) as client,
    ):
        await client.send(PATCH)
        assert (await client.reply()).status == 502
    assert all(message.isprintable() for message in caplog.messages)
    assert len(told(caplog, "fails: ")) == 1
