"""TLS to the upstream: names, certificates, and what an end without an alert means."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from gateway.errors import (
    ConnectionRefused,
    ConnectionTerminated,
)
from gateway.upstream.connect import tls_context
from gateway.upstream.pool import Pool
from tests.support.pools import UPGRADE, fetch, pool_to
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.replies import SWITCH


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
