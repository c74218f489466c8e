"""
Whether the files that a configuration names can be used. What is wrong with its text is config.py's.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

Problem = tuple[str, str]  # the setting, and what is wrong with it


# By their sections, the files `certificate` and `key`, and of authorities by other names.
TlsFiles = Mapping[str, Mapping[str, str | None]]


def problems(tls: TlsFiles, audit: str, callers: str | None) -> Iterator[Problem]:
    """
    What would keep the gateway from running, from repairing any call, or from knowing who called. `audit`:
    the log's path; `callers`: their file's.
    """
    for place, files in tls.items():
        yield from _tls(place, files)
    if audit != "-":
        yield from _file("audit.path", audit)
    if callers is not None:
        yield from _file("callers.path", callers)


def warnings(tls: TlsFiles) -> Iterator[str]:
    """What can run, but that who connects will refuse. Of files in which `problems` finds nothing."""
    for place, files in tls.items():
        certificate = files["certificate"]
        if certificate is not None:
            told = _VALIDITY.get(_verified(certificate, files["key"]))
            if told is not None:
                yield f"{place}.certificate: {told}, got {certificate!r}"


# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED (openssl/x509_vfy.h).
_VALIDITY = {9: "is not valid yet", 10: "has expired"}


def _verified(certificate: str, key: str | None) -> int:
    """OpenSSL's word on a certificate that is trusted, in a handshake with itself in memory; 0 is good."""
    showing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    showing.load_cert_chain(certificate, key, _no_password)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    asking.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = asking.wrap_bio(back, there), showing.wrap_bio(there, back, server_side=True)
    for one in (client, server, client):
        try:
            one.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_code
    return 0


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    """Without it OpenSSL would ask for one on the terminal."""
    raise _Encrypted


def _tls(place: str, named: Mapping[str, str | None]) -> Iterator[Problem]:
    certificate, key = named["certificate"], named["key"]
    unread = {name: _unreadable(path) for name, path in named.items() if path is not None}
    for name, reason in unread.items():
        if reason is not None:
            yield (f"{place}.{name}", f"cannot be read: {reason}, got {named[name]!r}")
    for name, path in named.items():
        if name not in {"certificate", "key"} and path is not None and unread[name] is None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
            except (ssl.SSLError, OSError):
                yield (f"{place}.{name}", f"expected certificates in PEM, got {path!r}")
    if certificate is None or unread["certificate"] is not None or unread.get("key") is not None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, _no_password)
    except _Encrypted:
        yield (f"{place}.{'key' if key else 'certificate'}", "expected a key without a password")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield (f"{place}.key", f"expected the key of the certificate {certificate!r}, got another's")
        elif key is None or not _holds_a_certificate(certificate):
            wanted = "a certificate" if key else "a certificate and its key"
            yield (f"{place}.certificate", f"expected {wanted} in PEM, got {certificate!r}")
        else:
            yield (f"{place}.key", f"expected a key in PEM, got {key!r}")


def _unreadable(path: str) -> str | None:
    try:
        with Path(path).open("rb"):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _holds_a_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        return False
    return True


def _file(setting: str, path: str) -> Iterator[Problem]:
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        yield (setting, f"expected a file, got the directory {path!r}")
    elif not os.path.isdir(folder):
        yield (setting, f"expected a directory that is there, got {folder!r}")
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        yield (setting, f"cannot be written: no permission, got {path!r}")


def tracing(find: Callable[[str], object] = find_spec) -> Iterator[Problem]:
    """Whether what exports spans is installed."""
    try:
        there = find("opentelemetry.sdk") and find("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        there = None
    if there is None:
        yield ("tracing.exporter", "expected the extra otel to be installed: pip install 'gateway[otel]'")
