"""
The replies that wait for their clients to read: where there are too many and somebody needs what they hold,
those whose clients take too little are cut off, who has waited longest first.

Each of them holds a connection to the upstream, which the clients that do read need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.server.client_watch import CLOCK_SLACK

STALL: Final = 0.5  # seconds for which any client may keep a reply waiting, however many do
LOOK: Final = 0.05  # seconds until those that wait are looked at once more, while there are too many
LEAST_RATE: Final = 64 * 1024  # bytes a second: who takes as much while it is waited for is not cut off


class StalledReply(Protocol):
    def taken_since_waiting(self) -> int:
        """Bytes that the client has taken since its reply waits."""

    def cut_off(self, cause: str) -> None: ...


class StalledReplies:
    """`wanted` says whether anybody waits for what these replies hold."""

    def __init__(self, wanted: Callable[[], bool] = lambda: True) -> None:
        self._wanted = wanted
        self._since: dict[StalledReply, float] = {}  # the longest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def add(self, reply: StalledReply, most: int, loop: asyncio.AbstractEventLoop) -> None:
        """Past `most` of them those that take too little are cut off, once they have waited for STALL."""
        self._since[reply] = loop.time()
        if len(self._since) > most and self._timer is None:
            self._timer = loop.call_later(STALL, self._look, most, loop)

    def discard(self, reply: StalledReply) -> None:
        self._since.pop(reply, None)

    def _look(self, most: int, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if len(self._since) > most and self._wanted():
            self._cut_off_slow(len(self._since) - most, loop.time())
        if len(self._since) > most:
            self._timer = loop.call_later(LOOK, self._look, most, loop)

    def _cut_off_slow(self, surplus: int, now: float) -> None:
        for reply, since in list(self._since.items()):
            waited = now - since
            if waited < STALL - CLOCK_SLACK:
                break
            if reply.taken_since_waiting() < LEAST_RATE * waited:
                del self._since[reply]
                reply.cut_off("stalled")
                surplus -= 1
                if not surplus:
                    break
