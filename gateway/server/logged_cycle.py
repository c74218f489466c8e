"""
A request cycle that tells of itself when it is over. The server makes these where there is an access log, so
that nobody pays for it elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.http.headers import Headers, first
from gateway.http.slots import SlottedText
from gateway.http.trace_context import TRACE_ID, is_valid, only_traceparent
from gateway.server.access_log import Access
from gateway.server.duplex_stream import DuplexStream
from gateway.server.request_cycle import RequestCycle


class LoggedCycle(RequestCycle, eq=False):
    told: Callable[[Access], None] | None = None  # None once it has been
    begun: float = 0.0
    status: int = 0
    sent: int = 0  # bytes of the reply's body
    answered_as: bytes = b""  # the request id that the reply has

    def __post_init__(self) -> None:
        self.begun = time.monotonic()

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        self._note(status, headers, extra_headers)
        self.sent = 0 if self.method == "HEAD" else len(body)
        responded = super().respond(status, headers, body, extra_headers)
        if not responded:
            self.status = self.sent = 0
        return responded

    def switch(self, headers: Headers) -> DuplexStream:
        self._note(101, headers, ())
        return super().switch(headers)

    def lost(self) -> None:
        super().lost()
        self._tell()

    def _start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        super()._start(status, headers, extra_headers)
        self._note(status, headers, extra_headers)

    def _write(self, piece: bytes, more: bool) -> None:
        if self.method != "HEAD":
            self.sent += len(piece)
        super()._write(piece, more)

    def _complete(self) -> None:
        self.complete = True
        self._tell()  # on to the next request it goes in the step after this
        super()._complete()

    def _note(self, status: int, headers: Headers, extra_headers: Headers) -> None:
        self.status = status
        found = first(extra_headers, b"x-request-id") or first(headers, b"x-request-id")
        self.answered_as = found or self.answered_as

    def _tell(self) -> None:
        told, self.told = self.told, None
        if told is None:
            return
        told(
            Access(
                self.address,
                self.method,
                self.head.target,  # as the client sent it, whatever prefix was taken off
                self.version,
                self.status,
                self.sent,
                time.monotonic() - self.begun,
                self.complete,
                self.answered_as,
                self._field(b"user-agent"),
                self._field(b"referer"),
                self.trace_id or self._said_trace(),
            )
        )

    def _said_trace(self) -> str:
        """The trace that the client says the request is a part of."""
        if self.headers.derived(only_traceparent) is None:
            return ""
        said = self._field(b"traceparent")
        return said[TRACE_ID].decode() if is_valid(said) else ""

    def _field(self, name: bytes) -> bytes:
        value = first(self.headers, name)
        return b"" if value is None else SlottedText.of(value).filled(self.values)
