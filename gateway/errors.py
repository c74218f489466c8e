"""
Every way the gateway itself refuses a call, and what the client is told.

    GatewayError
    ├── RequestError                    the client's message, answered before anything is sent upstream
    │   ├── BadRequest 400              ├── MethodNotAllowed 405       ├── HeadTimeout, BodyTimeout 408
    │   ├── NotServed 404
    │   ├── BodyTooLarge 413            ├── TargetTooLong 414          ├── ExpectationFailed 417
    │   ├── MisdirectedRequest 421      ├── HeadTooLarge 431           ├── NotSupported 501
    │   ├── VersionNotSupported 505     ├── TlsOnPlainPort 400         ├── PlainHttpOnTlsPort 400
    │   ├── TlsHandshakeFailed 400      └── InvalidBody 400
    ├── NotSent                         nothing left the gateway, so a replay is safe: may carry Retry-After
    │   ├── Overloaded 503              ├── Unrecordable 503           ├── LockTimeout 503
    │   ├── LockBusy 503                ├── SpoolFailed 503            ├── StoreUnavailable 503
    │   └── UnnamedWritesLimited 503
    ├── UpstreamError                   no reply of the upstream that can be relayed
    │   ├── ConnectionRefused 502       ├── ConnectTimeout 504         ├── NameNotResolved 502
    │   ├── TlsFailed 502               ├── ConnectionTerminated 502   ├── InvalidReply 502
    │   ├── ReadTimeout 504             ├── PoolExhausted 503          ├── LoopDetected 502
    │   ├── UnwritableRequest 502       ├── NoDescriptor 503           └── RequestBrokenOff 502
    ├── LookupFailed 502                the state could not be read: the reply was no usable document
    └── DeadlineExceeded 504            the call's total time was used up

A class carries what the client will be told; http/problem.py writes it. Foreign exceptions become these in
one place each (upstream/http2.py for httpx).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Literal, TypeAlias

# Why a client's connection is cut off where a close could pass for the end of what was under way.
AbortCause: TypeAlias = Literal[
    "application-error",
    "body-rate",
    "body-timeout",
    "cancelled",
    "stalled",
    "tls-handshake",
    "tls-record",
    "tunnel",
    "write-rate",
    "write-timeout",
]


@cache
def _slug(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


class GatewayError(Exception):
    """Raised with the reason in words of our own; `status` and the rest say how it is answered."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "The gateway failed"
    proxy_error: ClassVar[str] = "proxy_internal_error"  # RFC 9209 section 2.3
    advice: ClassVar[str] = "Report the request id to whoever runs the gateway."
    retry_after: float | None = None  # seconds
    counted = False  # among the refusals, by the server, before whoever serves the call sees it
    # What the upstream sent, where that is what was wrong: for the log alone, since it may be another's (O2).
    evidence: bytes = b""

    # More members of the problem document.
    members: Mapping[str, object] = {}

    def __init__(self, *args: object, evidence: bytes = b"") -> None:
        super().__init__(*args)
        if evidence:
            self.evidence = evidence

    @property
    def detail(self) -> str:
        return str(self.args[0]) if self.args else self.title

    @classmethod
    def slug(cls) -> str:
        """`BodyTooLarge` as `body-too-large`: the stable name, at the end of `type` and of `code`."""
        return _slug(cls.__name__)


class RequestError(GatewayError):
    proxy_error = "http_request_error"


class BadRequest(RequestError):
    status = 400
    title = "The request is not valid HTTP"
    advice = "Correct the request; it was not forwarded."


class TlsOnPlainPort(RequestError):
    status = 400
    title = "TLS was spoken to a port that takes plain HTTP"
    advice = "Call it by http://, or give the gateway a certificate (listen.tls)."


class PlainHttpOnTlsPort(RequestError):
    status = 400
    title = "Plain HTTP was spoken to a port that takes TLS"
    advice = "Call it by https://."


class TlsHandshakeFailed(RequestError):
    """For the count and the log alone: who fails in the handshake gets TLS's own alert."""

    status = 400
    title = "The TLS handshake failed"
    advice = "Check the client's certificate, its TLS version, and which authorities it trusts."


class InvalidBody(RequestError):
    status = 400
    title = "The body does not fit its schema"
    advice = "Correct what `violations` names; the call was not forwarded."


class NotServed(RequestError):
    status = 404
    title = "The gateway serves nothing at this path"
    advice = "Call it by the path that the gateway is reached at; the request was not forwarded."


class MethodNotAllowed(RequestError):
    status = 405
    title = "The gateway does not serve this method"
    advice = "Send the request to the upstream itself, or use another method."


class HeadTimeout(RequestError):
    status = 408
    title = "The request's head did not arrive in time"
    advice = "Send the whole head at once."


class BodyTimeout(RequestError):
    status = 408
    title = "The request's body did not arrive in time"
    advice = "Send the body without long pauses; it was not forwarded."


class BodyTooLarge(RequestError):
    status = 413
    title = "The request's body is larger than the gateway reads for this call"
    advice = "Send a smaller body, or raise limits.max_body (or max_write) in the gateway's configuration."


class TargetTooLong(RequestError):
    status = 414
    title = "The request's target is too long"
    advice = "Shorten the URL, or raise limits.max_target in the gateway's configuration."


class ExpectationFailed(RequestError):
    status = 417
    title = "The gateway knows no expectation but 100-continue"
    advice = "Leave the Expect header out."


class MisdirectedRequest(RequestError):
    status = 421
    title = "The request names another authority than the one this gateway serves"
    advice = "Send the request in origin form (a target that starts with '/')."


class HeadTooLarge(RequestError):
    status = 431
    title = "The request's head is too large"
    advice = "Send fewer or shorter header fields, or raise limits.max_head or limits.max_headers."


class NotSupported(RequestError):
    status = 501
    title = "The gateway does not know this transfer coding"
    advice = "Use Content-Length, or chunked as the only transfer coding."


class VersionNotSupported(RequestError):
    status = 505
    title = "The gateway speaks HTTP/1.1 and HTTP/1.0"
    advice = "Send the request as HTTP/1.1."


class NotSent(GatewayError):
    status = 503
    advice = "Nothing was sent upstream: the same call may be sent again."


class Overloaded(NotSent):
    title = "The gateway is at its limit"
    proxy_error = "connection_limit_reached"
    retry_after = 1.0


class Unrecordable(NotSent):
    title = "The rewrite could not be recorded, so the call was not sent"
    advice = "Nothing was sent upstream. The operator must make the audit log writable; see /readyz."


class LockTimeout(NotSent):
    title = "Another write to this conversation did not end in time"


class LockBusy(NotSent):
    title = "Too many calls of this caller wait for this conversation"
    retry_after = 1.0


class SpoolFailed(NotSent):
    title = "The body could not be put on disk, where it was to wait for its conversation"
    advice = "Nothing was sent upstream. The operator must make room where temporary files are (TMPDIR)."


class StoreUnavailable(NotSent):
    title = "The store of the gateway's shared state did not answer"
    retry_after = 1.0


class UnnamedWritesLimited(NotSent):
    title = "Too many writes that name no conversation: each makes the gateway forget all of them"
    retry_after = 1.0


class UpstreamError(GatewayError):
    status = 502
    title = "The upstream could not be reached"
    advice = "Look at the upstream; read the conversation before a call that writes is sent again."


class ConnectionRefused(UpstreamError):
    title = "The upstream refused the connection"
    proxy_error = "connection_refused"
    advice = "Nothing was sent upstream. Check that the upstream runs and that upstream.url is right."


class ConnectTimeout(UpstreamError):
    status = 504
    title = "No connection to the upstream could be made in time"
    proxy_error = "connection_timeout"
    advice = "Nothing was sent upstream. Check the network between gateway and upstream."


class NameNotResolved(UpstreamError):
    title = "The upstream's name could not be resolved"
    proxy_error = "dns_error"
    advice = "Nothing was sent upstream. Check upstream.url and the name service."


class TlsFailed(UpstreamError):
    title = "The upstream's certificate was not accepted"
    proxy_error = "tls_certificate_error"
    advice = "Nothing was sent upstream. Check the upstream's certificate and upstream.tls."


class PoolExhausted(UpstreamError):
    status = 503
    title = "No connection to the upstream came free in time"
    proxy_error = "connection_limit_reached"
    retry_after = 1.0
    advice = "Nothing was sent upstream. Raise upstream.max_connections, or send less at once."


class NoDescriptor(UpstreamError):
    status = 503
    title = "The gateway has no file descriptor left for the upstream"
    proxy_error = "connection_limit_reached"
    retry_after = 1.0
    advice = "Nothing was sent upstream. Raise the process's limit on open files (ulimit -n)."


class ConnectionTerminated(UpstreamError):
    title = "The upstream closed the connection before it answered"
    proxy_error = "connection_terminated"


class InvalidReply(UpstreamError):
    title = "The upstream's reply is not valid HTTP"
    proxy_error = "http_protocol_error"


class ReadTimeout(UpstreamError):
    status = 504
    title = "The upstream did not answer in time"
    proxy_error = "http_response_timeout"


class LoopDetected(UpstreamError):
    title = "The request has been through this gateway before"
    proxy_error = "proxy_loop_detected"
    advice = "upstream.url leads back to the gateway: correct it."


class UnwritableRequest(UpstreamError):
    title = "The request cannot be written as HTTP/1.1"
    proxy_error = "http_protocol_error"
    advice = "It was not sent, or broken off. Report the request id to whoever runs the gateway."


class RequestBrokenOff(UpstreamError):
    title = "The request broke off on its way to the upstream"
    proxy_error = "connection_terminated"
    advice = "Read the conversation before the call is sent again: the upstream has had a part of it."


# Raised before the first byte has left, and never after it.
UNSENT = (
    NotSent,
    ConnectionRefused,
    ConnectTimeout,
    NameNotResolved,
    TlsFailed,
    PoolExhausted,
    NoDescriptor,
)


class LookupFailed(GatewayError):
    status = 502
    title = "The participant's state could not be read"
    proxy_error = "http_response_incomplete"
    advice = "The PATCH was not sent. Look at the upstream's reply to a GET of the conversation."


class DeadlineExceeded(GatewayError):
    status = 504
    title = "The call was not done within the gateway's deadline"
    proxy_error = "http_response_timeout"
    advice = "Read the conversation before the call is sent again: it may have been applied."
