"""
The replies that wait for their clients to read: where there are too many, who has waited longest is cut off.

Each of them holds a connection to the upstream, which the clients that do read need.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from gateway.server.client_watch import CLOCK_SLACK

STALL: Final = 0.5  # seconds for which any client may keep a reply waiting, however many do


class StalledReply(Protocol):
    def cut_off(self, cause: str) -> None: ...


class StalledReplies:
    def __init__(self) -> None:
        self._since: dict[StalledReply, float] = {}  # the longest first

    def __len__(self) -> int:
        return len(self._since)

    def add(self, reply: StalledReply, most: int, loop: asyncio.AbstractEventLoop) -> None:
        """Past `most` of them those that have waited longest are cut off, once they have waited for STALL."""
        self._since[reply] = loop.time()
        if len(self._since) > most:
            loop.call_later(STALL, self._cut_off_longest, most, loop)

    def discard(self, reply: StalledReply) -> None:
        self._since.pop(reply, None)

    def _cut_off_longest(self, most: int, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while len(self._since) > most:
            longest, since = next(iter(self._since.items()))
            if now - since < STALL - CLOCK_SLACK:
                break
            del self._since[longest]
            longest.cut_off("stalled")
