"""
How a connection is opened: name, addresses, TLS; and which error says that it was not.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final, TypeVar

from aiohappyeyeballs import start_connection

from gateway.errors import (
    ConnectionRefused,
    ConnectTimeout,
    NameNotResolved,
    NoDescriptor,
    TlsFailed,
    UpstreamError,
)

ATTEMPT_DELAY: Final = 0.25  # seconds until the next address is tried beside the last (RFC 8305 section 5)

SPOKE: Final = "the upstream closed the connection, or spoke, as it was opened"

_OUT_OF_FILES: Final = {errno.EMFILE, errno.ENFILE}

AnyProtocol = TypeVar("AnyProtocol", bound=asyncio.Protocol)


def tls_context(
    ca: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """
    A context that verifies chain and name: against the certificates in the file `ca` alone, or the system's.
    `certificate` and `key` are the files of a client certificate.
    """
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


async def open_connection(
    make: Callable[[], AnyProtocol], host: str, port: int, tls: ssl.SSLContext | None, timeout: float
) -> AnyProtocol:
    """`timeout` in seconds, for all of it. Raises an UpstreamError: nothing was sent."""
    try:
        async with asyncio.timeout(timeout):
            protocol = await _connected(make, host, port, tls)
    except TimeoutError as error:
        raise ConnectTimeout(f"no connection to {host}:{port} in time") from error
    except (OSError, UnicodeError) as error:
        raise not_connected(error, f"no connection to {host}:{port}: {error}") from error
    return protocol


async def _connected(
    make: Callable[[], AnyProtocol], host: str, port: int, tls: ssl.SSLContext | None
) -> AnyProtocol:
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    try:
        found = await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY, loop=loop)
    except RuntimeError as error:  # uvloop's, for some of what is an OSError elsewhere
        raise ConnectionError(str(error)) from error
    transport, protocol = await loop.create_connection(
        make,
        sock=found,
        ssl=tls,
        server_hostname=host if tls is not None else None,
        ssl_shutdown_timeout=1.0 if tls is not None else None,
    )
    if transport.is_closing():
        raise ConnectionResetError(SPOKE)
    return protocol


def not_connected(error: BaseException, detail: str) -> UpstreamError:
    """The error for a connection that was not made, by what is behind `error`."""
    causes = _causes(error)
    if any(isinstance(cause, OSError) and cause.errno in _OUT_OF_FILES for cause in causes):
        return NoDescriptor("no file descriptor is left for a connection to the upstream (ulimit -n)")
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return TlsFailed(detail)
    # A name with a label that is too long is a UnicodeError before anybody is asked for it.
    if any(isinstance(cause, socket.gaierror | UnicodeError) for cause in causes):
        return NameNotResolved(detail)
    return ConnectionRefused(detail)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(found) < 10:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found
