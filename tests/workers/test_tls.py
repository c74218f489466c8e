"""TLS at the one port: every worker shows the certificate, and the one that SIGHUP has them load."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import trustme

from tests.support.certified import Pair
from tests.support.mocking import mock
from tests.support.serving import connect
from tests.support.waiting import until
from tests.support.workers import MANY, Workers, patch, workers, workers_of


async def shown(running: Workers, own: Pair) -> set[bytes]:
    found = set()
    trust = own.trust()
    for _ in range(MANY):
        async with connect(running.gateway.port, tls=trust) as client:
            assert (await patch(client)).status == 202
            tls = client.writer.get_extra_info("ssl_object")
            found.add(tls.getpeercert(binary_form=True))
    return found


async def test_on_sighup_all_show_the_new_certificate(tmp_path: Path) -> None:
    own = Pair(trustme.CA(), tmp_path)
    async with (
        mock() as upstream,
        workers(tmp_path, upstream.url, listen={"tls": own.settings()}) as running,
    ):
        before = ssl.PEM_cert_to_DER_cert(own.certificate.read_text())
        assert await shown(running, own) == {before}
        assert len(workers_of(upstream)) == 2
        own.renew()
        running.running.signal(signal.SIGHUP)
        await until(lambda: running.running.said.count("the certificate was loaded again") >= 2)
        assert await shown(running, own) == {ssl.PEM_cert_to_DER_cert(own.certificate.read_text())}
