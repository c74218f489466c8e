"""TLS on the listener: who is let in, what is said to who is not, and which certificate is shown."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme

from gateway.server.limits import ServerLimits, ServerStats
from tests.support.applications import Echo
from tests.support.certified import Pair
from tests.support.serving import connect, exchange, on_both_loops, serve
from tests.support.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture
def own(tmp_path: Path) -> Pair:
    return Pair(trustme.CA(), tmp_path)


async def shown(port: int, pair: Pair) -> bytes:
    """The certificate that the listener shows in a new handshake."""
    async with connect(port, tls=pair.trust()) as client:
        await client.send(LAST)
        assert (await client.rest()).startswith(b"HTTP/1.1 200")
        found = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert isinstance(found, bytes)
    return found


async def get(port: int, context: ssl.SSLContext) -> bytes:
    async with connect(port, tls=context) as client:
        await client.send(LAST)
        return await client.rest()


def in_file(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


@on_both_loops
async def test_http_1_1_is_agreed_on_and_the_version_is_the_least_at_least(own: Pair) -> None:
    old, new = own.trust(), own.trust()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    new.set_alpn_protocols(["h2", "http/1.1"])
    stats = ServerStats()
    async with serve(Echo(), stats=stats, shown=own.certificates(min_version="1.3")) as port:
        async with connect(port, tls=new) as client:
            assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            await client.send(LAST)
            assert (await client.rest()).startswith(b"HTTP/1.1 200")
        with pytest.raises(ssl.SSLError, match="alert protocol version"):
            async with connect(port, tls=old):
                pass
    assert stats.refused == {"tls-handshake-failed": 1}


@on_both_loops
async def test_plain_http_on_a_tls_port_is_told_so(own: Pair, caplog: pytest.LogCaptureFixture) -> None:
    stats = ServerStats()
    async with serve(Echo(), stats=stats, shown=own.certificates()) as port:
        said = await exchange(port, GET)
        assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Plain HTTP was spoken to a port that takes TLS" in said
        assert b"application/problem+json" in said
    assert stats.refused == {"plain-http-on-tls-port": 1}
    assert [line.getMessage().partition(":")[0] for line in caplog.records] == ["refused"]


@on_both_loops
async def test_tls_on_a_plain_port_is_told_so(own: Pair, caplog: pytest.LogCaptureFixture) -> None:
    stats = ServerStats()
    async with serve(Echo(), stats=stats) as port:
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number"):
            async with connect(port, tls=own.trust()):
                pass
        said = await exchange(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
        assert b"TLS was spoken to a port that takes plain HTTP" in said
    assert stats.refused == {"tls-on-plain-port": 2}
    assert len(caplog.records) == 1, "a line for each cause in ten seconds"


@on_both_loops
async def test_new_handshakes_get_the_new_pair_and_open_connections_go_on(own: Pair) -> None:
    certificates = own.certificates()
    before = in_file(own)
    async with serve(Echo(), shown=certificates) as port, connect(port, tls=own.trust()) as client:
        assert await shown(port, own) == before
        own.renew()
        assert certificates.reload() is None
        assert await shown(port, own) == in_file(own) != before
        await client.send(GET)
        assert (await client.reply()).status == 200


@on_both_loops
async def test_a_pair_that_does_not_match_or_is_gone_changes_nothing(
    own: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = own.certificates()
    before = in_file(own)
    async with serve(Echo(), shown=certificates) as port:
        own.renew(key=False)
        assert "listen.tls.key" in (certificates.reload() or "")
        assert await shown(port, own) == before
        own.certificate.unlink()
        assert "listen.tls.certificate: cannot read" in (certificates.reload() or "")
        assert await shown(port, own) == before
    assert [line.levelname for line in caplog.records] == ["ERROR", "ERROR"]


async def test_files_that_change_are_noticed(own: Pair) -> None:
    certificates = own.certificates()
    first = certificates.context
    watching = asyncio.create_task(certificates.watch(every=0.005))
    own.renew()
    await until(lambda: certificates.context is not first)
    watching.cancel()


@on_both_loops
async def test_certificates_swapped_under_load_fail_no_call(own: Pair) -> None:
    certificates = own.certificates()
    trust, over = own.trust(), False

    async def call() -> int:
        calls = 0
        while not over:
            assert (await get(port, trust)).startswith(b"HTTP/1.1 200")
            calls += 1
        return calls

    async with serve(Echo(), shown=certificates) as port:
        callers = [asyncio.create_task(call()) for _ in range(4)]
        for turn in range(20):
            own.renew(key=turn % 3 != 1)
            certificates.reload()
            await get(port, trust)
        over = True
        assert sum(await asyncio.gather(*callers)) > 4


@on_both_loops
async def test_who_must_show_a_certificate_and_has_none_is_not_let_in(own: Pair) -> None:
    stats = ServerStats()
    async with serve(Echo(), stats=stats, shown=own.certificates(client_ca=True)) as port:
        stranger = own.trust()
        trustme.CA().issue_cert("me").configure_cert(stranger)
        for context in (own.trust(), stranger):
            with pytest.raises(ssl.SSLError):
                await get(port, context)
        assert (await get(port, own.trust("me"))).startswith(b"HTTP/1.1 200")
    assert stats.refused == {"tls-handshake-failed": 2}


@on_both_loops
async def test_a_slow_handshake_is_ended_in_time_and_leaves_room_for_others(own: Pair) -> None:
    stats = ServerStats()
    limits = ServerLimits(max_connections=8, head_timeout=30.0)
    async with serve(Echo(), limits, stats, own.certificates()) as port, AsyncExitStack() as stack:
        silent = []
        for _ in range(12):
            client = await stack.enter_async_context(connect(port))
            await client.send(b"\x16\x03\x01")
            silent.append(client)
        await until(lambda: stats.aborted["tls-handshake"] == 8)
        assert await shown(port, own) == in_file(own)
        for client in silent[:8]:
            assert await client.rest() == b""
    async with serve(Echo(), ServerLimits(head_timeout=0.02), stats, own.certificates()) as port:
        assert await exchange(port, b"\x16\x03\x01") == b""


@on_both_loops
async def test_past_the_connections_there_may_be_the_503_comes_over_tls(own: Pair) -> None:
    limits = ServerLimits(max_connections=1)
    async with (
        serve(Echo(), limits, shown=own.certificates()) as port,
        connect(port, tls=own.trust()),
        connect(port, tls=own.trust()) as second,
    ):
        assert (await second.rest()).startswith(b"HTTP/1.1 503")


@on_both_loops
async def test_what_comes_in_many_records_and_goes_in_many_is_whole(own: Pair) -> None:
    large = bytes(range(256)) * 8_000
    async with serve(Echo(), shown=own.certificates()) as port, connect(port, tls=own.trust()) as client:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(large)
        await client.send(head + large)
        assert (await client.reply()).status == 200
