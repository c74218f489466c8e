"""Certificates for the listener and its clients, of an authority of the test's own, in files."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from gateway.server.tls import Certificates


class Pair:
    """Certificate and key of `localhost`, in files that can be written anew."""

    def __init__(self, authority: trustme.CA, folder: Path) -> None:
        self.authority = authority
        self.certificate, self.key, self.ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        authority.cert_pem.write_to_path(self.ca)
        self.renew()

    def renew(self, key: bool = True) -> None:
        """Without the `key` they no longer match."""
        issued = self.authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        if key:
            issued.private_key_pem.write_to_path(self.key)

    def settings(self, **more: str) -> dict[str, str]:
        """For listen.tls."""
        return {"certificate": str(self.certificate), "key": str(self.key), **more}

    def certificates(self, client_ca: bool = False, min_version: str = "1.2") -> Certificates:
        ca = str(self.ca) if client_ca else None
        return Certificates(str(self.certificate), str(self.key), ca, min_version)

    def trust(self, name: str | None = None) -> ssl.SSLContext:
        """Of a client that shows a certificate with this `name`."""
        context = ssl.create_default_context(cadata=self.authority.cert_pem.bytes().decode())
        if name is not None:
            self.authority.issue_cert(name).configure_cert(context)
        return context
