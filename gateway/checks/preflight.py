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


def problems(tls: Mapping[str, Mapping[str, str | None]], audit: str) -> Iterator[Problem]:
    """
    What would keep the gateway from running, or from repairing any call. `tls`: by their sections, the files
    `certificate` and `key`, and of authorities by other names. `audit`: the log's path.
    """
    for place, files in tls.items():
        yield from _tls(place, files)
    yield from _audit(audit)


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


def _audit(path: str) -> Iterator[Problem]:
    if path == "-":
        return
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        yield ("audit.path", f"expected a file, got the directory {path!r}")
    elif not os.path.isdir(folder):
        yield ("audit.path", f"expected a directory that is there, got {folder!r}")
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        yield ("audit.path", f"cannot be written: no permission, got {path!r}")


def tracing(find: Callable[[str], object] = find_spec) -> Iterator[Problem]:
    """Whether what exports spans is installed."""
    try:
        there = find("opentelemetry.sdk") and find("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        there = None
    if there is None:
        yield ("tracing.exporter", "expected the extra otel to be installed: pip install 'gateway[otel]'")
