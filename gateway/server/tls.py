"""
TLS on the listener: between a client's socket and its ClientConnection, and the certificates it shows.

Law: what is written is encrypted and handed on at once, so that back pressure, lingering and resets are those
of the socket, as without TLS. A connection that is cut off ends without close_notify: no reply that broke off
looks whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
from typing import TYPE_CHECKING, Any, Final

from gateway.bounded_reads import BoundedReads, Hangs
from gateway.errors import PlainHttpOnTlsPort, TlsHandshakeFailed

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from gateway.server.connection import ClientConnection

HANDSHAKE: Final = 0x16  # the first byte of a ClientHello's record (RFC 8446 section 5.1)
WATCHED: Final = 2.0  # seconds between two looks at the files

_RECORD: Final = 65_536  # bytes asked of the decoder at a time
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# Nobody has said anything; hands are being shaken; open; one that speaks no TLS; nothing is read any more.
_NEW, _SHAKING, _OPEN, _PLAIN, _ENDED = range(5)

log = logging.getLogger("gateway")


class TlsUnusable(Exception):
    """A file of listen.tls that is no good, with the setting that names it."""


def server_context(certificate: str, key: str, client_ca: str | None, min_version: str) -> ssl.SSLContext:
    """Raises TlsUnusable."""
    named = {"certificate": certificate, "key": key, "client_ca": client_ca}
    for name, path in named.items():
        if path is not None:
            _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key under a passphrase is refused: else the process would ask a terminal for it.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsUnusable(
                f"listen.tls.key: {key} does not match the certificate in {certificate} "
                f"(listen.tls.certificate)"
            ) from error
        raise TlsUnusable(
            f"listen.tls: no certificate in PEM in {certificate} (listen.tls.certificate), or no key without "
            f"a passphrase in {key} (listen.tls.key): {error.reason or error}"
        ) from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise TlsUnusable(
                f"listen.tls.client_ca: no certificates in PEM in {client_ca}: {error.reason or error}"
            ) from error
    return context


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsUnusable(f"listen.tls.{name}: cannot read {path}: {error.strerror or error}") from error


class Certificates:
    """`context` is for the handshakes that begin now; those that are open keep theirs."""

    def __init__(self, certificate: str, key: str, client_ca: str | None, min_version: str) -> None:
        """Raises TlsUnusable."""
        self._files = (certificate, key, client_ca, min_version)
        self._reads = BoundedReads()
        self._seen = self._identity()
        self.context = server_context(*self._files)

    def reload(self) -> str | None:
        """What is wrong with the files, where they are no good: then nothing changes."""
        self._seen = self._identity()
        try:
            self.context = server_context(*self._files)
        except TlsUnusable as error:
            log.error("%s: the certificate that was loaded before is shown on", error)
            return str(error)
        log.info("listen.tls: the certificate was loaded again")
        return None

    async def watch(self, every: float = WATCHED) -> None:
        """Loads the files whenever they are others: also where a link in their place was exchanged."""
        while True:
            await asyncio.sleep(every)
            with contextlib.suppress(Hangs):
                await self._reads.read(self._reload_if_changed)

    async def reload_bounded(self) -> None:
        """As `reload`, where the files may hang."""
        try:
            await self._reads.read(self.reload)
        except Hangs as error:
            log.error("listen.tls: %s: the certificate that was loaded before is shown on", error)

    def _reload_if_changed(self) -> None:
        if self._identity() != self._seen:
            self.reload()

    def _identity(self) -> list[tuple[int, int, int, int] | None]:
        return [_identity(path) for path in self._files[:3] if path is not None]


def _identity(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """
    The socket's protocol, and the transport of the client's connection, which exists from the connect on: so
    its deadlines and bounds are also those of the handshake.
    """

    __slots__ = (
        "_client",
        "_closing",
        "_context",
        "_ended",
        "_incoming",
        "_others",
        "_outgoing",
        "_paused",
        "_raw",
        "_state",
        "_tls",
        "_waiting",
    )

    def __init__(
        self, client: ClientConnection, context: ssl.SSLContext, others: dict[TlsConnection, None]
    ) -> None:
        """`others` are those whose handshake is not done, the oldest first."""
        self._client = client
        self._context = context
        self._others = others
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = _NEW
        self._waiting = b""  # to be written when the handshake is done
        self._ended = False  # write_eof() was called
        self._paused = False
        self._closing = False

    # The socket's protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw: Any = transport
        most = max(1, self._client.limits.max_connections // 2)
        if len(self._others) >= most:
            next(iter(self._others)).crowded_out()
        self._others[self] = None
        self._client.connection_made(self)

    def crowded_out(self) -> None:
        self._others.pop(self, None)
        self._client.abort("tls-handshake")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._state = _ENDED
        self._others.pop(self, None)
        self._client.connection_lost(exc)

    def pause_writing(self) -> None:
        self._client.pause_writing()

    def resume_writing(self) -> None:
        self._client.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._state == _NEW:
            if data[0] != HANDSHAKE:
                self._speak_plainly()
                return
            self._state = _SHAKING
        if self._state not in (_SHAKING, _OPEN):
            return
        self._incoming.write(data)
        if self._state == _SHAKING:
            self._shake_hands()
        self._read()

    def eof_received(self) -> bool:
        if self._state == _ENDED:
            return False
        if self._state == _OPEN:
            return self._client.eof_received()
        self._raw.close()
        return False

    def _speak_plainly(self) -> None:
        self._others.pop(self, None)
        self._state = _PLAIN
        if self._ended:  # it was turned away before it said anything
            self._raw.write(self._waiting)
            self._raw.write_eof()
        else:
            self._client.refuse(
                PlainHttpOnTlsPort("plain HTTP, or no HTTP, came to a port where TLS is spoken (listen.tls)")
            )

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError as error:
            self._others.pop(self, None)
            self._send()  # the alert that says why
            self._state = _ENDED
            said = getattr(error, "verify_message", "") or error.reason or "not TLS"
            self._client.end_unanswered(TlsHandshakeFailed(said.replace("_", " ").lower()))
            return
        self._others.pop(self, None)
        self._state = _OPEN
        shown = self._tls.getpeercert(binary_form=True)
        if shown is not None:
            self._client.certificate = hashlib.sha256(shown).digest()
        self._send()
        if self._waiting:  # it was turned away
            ended, self._ended = self._ended, False
            self.write(self._waiting)
            self._waiting = b""
            if ended:
                self.write_eof()

    def _read(self) -> None:
        """What was decrypted goes to the client's connection, for as long as that reads."""
        while (
            self._state == _OPEN
            and not (self._paused or self._closing or self._ended)
            and (self._incoming.pending or self._tls.pending())
        ):
            try:
                data = self._tls.read(_RECORD)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                self._client.cut_off("tls-record")
                return
            if not data:  # close_notify
                self._state = _ENDED if not self._client.eof_received() else self._state
                return
            self._client.data_received(data)
        self._send()  # a new key, where the client asked for one

    def _send(self) -> None:
        if self._outgoing.pending and not self._raw.is_closing():
            self._raw.write(self._outgoing.read())

    # The client connection's transport.

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._state == _PLAIN:
            self._raw.write(data)
        elif self._state in (_NEW, _SHAKING):
            self._waiting += data
        elif not (self._closing or self._ended):
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[self._tls.write(rest) :]
            except ssl.SSLError:
                self._client.cut_off("tls-record")
                return
            self._send()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """What comes after it is read for nothing."""
        self._ended = True
        if self._state in (_NEW, _SHAKING):
            return
        self._notify()
        self._raw.write_eof()

    def _notify(self) -> None:
        """close_notify: what was sent is all there is."""
        if self._state == _OPEN:
            with contextlib.suppress(ssl.SSLError):  # the other's close_notify is not waited for
                self._tls.unwrap()
            self._send()

    def close(self) -> None:
        if not self._closing:
            if not self._ended:
                self._notify()
            self._closing = True
            self._raw.close()

    def abort(self) -> None:
        self._closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._raw.resume_reading()
            # What is here already must not come in the midst of what resumed the reading.
            asyncio.get_running_loop().call_soon(self._read)

    def get_write_buffer_size(self) -> int:
        size: int = self._raw.get_write_buffer_size()
        return size + len(self._waiting)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        return self._tls if name == "ssl_object" else self._raw.get_extra_info(name, default)


class TlsListener:
    """For `uvicorn.Config(http=...)`: TLS before each of these client connections."""

    def __init__(self, plain: type[ClientConnection], certificates: Certificates) -> None:
        self._plain = plain
        self._certificates = certificates
        self._handshakes: dict[TlsConnection, None] = {}

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> TlsConnection:
        client = self._plain(config, server_state, app_state, _loop)
        return TlsConnection(client, self._certificates.context, self._handshakes)
