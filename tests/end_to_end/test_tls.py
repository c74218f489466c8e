"""TLS on both sides of the gateway: what the upstream is told of it, and whose value a certificate gets."""

from __future__ import annotations

import re
import signal
import ssl
from pathlib import Path

import pytest
import trustme

from tests.support.calls import DOCUMENT, PATCH, answering_gets
from tests.support.certified import Pair
from tests.support.gateways import FILLED, gateway
from tests.support.processes import gateway_process, process, write_configuration
from tests.support.raw_upstream import OK, RawUpstream, answering
from tests.support.serving import connect
from tests.support.waiting import until

GET = b"GET /other HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n"


@pytest.fixture
def own(tmp_path: Path) -> Pair:
    return Pair(trustme.CA(), tmp_path)


@pytest.mark.parametrize("mutual", [False, True])
async def test_the_upstream_is_told_that_the_client_spoke_tls(own: Pair, mutual: bool) -> None:
    """With a certificate shown on both sides too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.authority.issue_cert("127.0.0.1").configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        own.authority.configure_trust(context)
    shows = own.settings() if mutual else {}
    async with RawUpstream(answering(OK), tls=context) as upstream:
        url = upstream.url.replace("http://", "https://")
        async with (
            gateway(
                url,
                upstream={"url": url, "tls": {"ca": str(own.ca), **shows}},
                listen={"tls": own.settings(**({"client_ca": str(own.ca)} if mutual else {}))},
            ) as running,
            connect(running.port, tls=own.trust("me" if mutual else None)) as client,
        ):
            await client.send(GET)
            assert (await client.rest()).startswith(b"HTTP/1.1 200")
        request = upstream.requests[0]
    assert request.header(b"x-forwarded-proto") == b"https"
    assert (request.header(b"forwarded") or b"").endswith(b";proto=https")


async def test_a_value_read_for_one_certificate_fills_no_call_of_another(own: Pair) -> None:
    one, two = own.trust("one"), own.trust("two")
    names = []
    async with (
        RawUpstream(answering_gets(DOCUMENT)) as upstream,
        gateway(upstream.url, listen={"tls": own.settings(client_ca=str(own.ca))}) as running,
    ):
        for context in (one, one, two):
            async with connect(running.port, tls=context) as client:
                await client.send(PATCH)
                assert (await client.reply()).status == 202
        names = [line["client"]["credential"] for line in running.lines("rewrite")]
    assert [request.method for request in upstream.requests] == [b"GET", b"PATCH", b"PATCH", b"GET", b"PATCH"]
    assert upstream.requests[-1].body == FILLED
    assert names[0] == names[1] != names[2]


async def test_what_is_wrong_with_the_files_is_said_at_the_start(own: Pair, tmp_path: Path) -> None:
    own.renew(key=False)
    missing = str(tmp_path / "missing.pem")
    for tls, said in (
        (own.settings(), r"listen\.tls\.key: expected the key of the certificate \S+, got another's"),
        ({**own.settings(), "certificate": missing}, r"listen\.tls\.certificate: cannot be read: No such"),
        ({**own.settings(), "key": str(own.ca)}, r"listen\.tls\.key: expected a key in PEM"),
        ({**own.settings(), "client_ca": missing}, r"listen\.tls\.client_ca: cannot be read: No such"),
    ):
        write_configuration(tmp_path, "http://127.0.0.1:9", 0, 0, listen={"tls": tls})
        async with process("run", folder=tmp_path) as running:
            assert await running.exit() == 1
        assert re.search(said, running.said), running.said
        assert "Traceback" not in running.said


async def test_sighup_loads_the_pair_again(own: Pair, tmp_path: Path) -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        gateway_process(tmp_path, upstream.url, listen={"tls": own.settings()}) as running,
    ):
        # With files that nothing has changed: only the signal has them loaded.
        running.process.signal(signal.SIGHUP)
        await until(lambda: "the certificate was loaded again" in running.process.said)
        own.renew()
        running.process.signal(signal.SIGHUP)
        await until(lambda: running.process.said.count("the certificate was loaded again") > 1)
        async with connect(running.port, tls=own.trust()) as client:
            await client.send(GET)
            assert (await client.rest()).startswith(b"HTTP/1.1 200")
            found = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert found == ssl.PEM_cert_to_DER_cert(own.certificate.read_text())
