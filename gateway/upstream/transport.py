"""
What carries requests to the one configured origin, and each reply back: the seam between a call and the
network.

Offered by pool.py (HTTP/1.1, our own connections) and by http2.py (httpx's transport). Nothing is ever sent
to another address than the configured one, and the target is the client's bytes after the configured prefix
(C7).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeAlias

from gateway.http.headers import Headers
from gateway.http.slots import Values
from gateway.upstream.reply import Reply

Commit: TypeAlias = Callable[[], None]
BeforeSend: TypeAlias = Callable[[], Commit | None]


def nobody() -> str:
    """The caller of what has none."""
    return ""


class Transport(Protocol):
    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        values: Values = (),
        before_send: BeforeSend | None = None,
        caller: Callable[[], str] = nobody,
    ) -> Reply:
        """
        Sends one request, once; returns when the reply's head is there. Raises an UpstreamError.

        `headers`, then `extra_headers` (which no other request shares), are sent as they are; a body in one
        piece whose length no field says gets its Content-Length. A body that is a stream is read while the
        reply is waited for; what it raises is raised here. With `upgrade` a 101 is a reply like another, and
        its connection then a tunnel.

        `before_send` is called when a connection is had, right before the first byte is written; after it the
        commit that it returned, once for all requests that are sent together and returned the same one. What
        either raises is raised here, and nothing was sent. It is asked again where that connection turns out
        to be closed.

        `caller` names those who share a turn where requests wait for a connection; it is asked only then.
        """

    def close(self) -> None:
        """No more requests; what is in flight is finished."""

    async def wait_closed(self) -> None: ...
