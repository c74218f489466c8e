"""
The replies that wait for their clients to read, and the whole rule of who of these is cut off for others.

A stalled reply holds a place in flight and, until the upstream has sent all of it, a connection there. Where
calls wait for a connection, as many of those who hold one are cut off; where calls are refused for want of a
place in flight, those past half of the places. Only who has waited for STALL and whose client has taken less
than LEAST_RATE since then, the longest first. Nobody wants anything: nobody is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.errors import AbortCause
from gateway.server.client_watch import CLOCK_SLACK

STALL: Final = 0.5  # seconds for which any client may keep a reply waiting
LOOK: Final = 0.02  # seconds until those that wait are looked at once more, while something is wanted
LEAST_RATE: Final = 64 * 1024  # bytes a second: who takes as much is not cut off


class StalledReply(Protocol):
    def taken_since_waiting(self) -> int:
        """Bytes that the client has taken since its reply waits."""

    def holds_connection(self) -> bool:
        """Whether the upstream is still to send some of it."""

    def cut_off(self, cause: AbortCause) -> None: ...


class StalledReplies:
    """`wanted`: for how many connections to the upstream somebody waits."""

    def __init__(self, wanted: Callable[[], int] = lambda: 0) -> None:
        self.wanted = wanted
        self._since: dict[StalledReply, float] = {}  # the longest first
        self._cut: set[StalledReply] = set()  # which still hold their connection for a moment
        self._most = 0  # of them, where a place in flight is wanted
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def add(self, reply: StalledReply, loop: asyncio.AbstractEventLoop) -> None:
        self._since[reply] = loop.time()
        self.look(loop)

    def discard(self, reply: StalledReply) -> None:
        self._since.pop(reply, None)
        self._cut.discard(reply)

    def want_place(self, places: int, loop: asyncio.AbstractEventLoop) -> None:
        """A call was refused since so many are in flight."""
        self._most = max(1, places // 2)
        self.look(loop)

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something may be wanted: now, or in a moment if those who hold it may still keep it."""
        if self._timer is None and self._since:
            self._look(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        connections = self.wanted() - len(self._cut)
        places = len(self._since) - self._most if self._most else 0
        self._most = 0
        if connections > 0 or places > 0:
            self._cut_off_slow(connections, places, loop.time())
            if self._since:
                self._timer = loop.call_later(LOOK, self._look, loop)

    def _cut_off_slow(self, connections: int, places: int, now: float) -> None:
        for reply, since in list(self._since.items()):
            waited = now - since
            if waited < STALL - CLOCK_SLACK or (connections <= 0 and places <= 0):
                break
            holds = reply.holds_connection()
            if (places > 0 or holds) and reply.taken_since_waiting() < LEAST_RATE * waited:
                del self._since[reply]
                if holds:
                    self._cut.add(reply)
                    connections -= 1
                places -= 1
                reply.cut_off("stalled")
