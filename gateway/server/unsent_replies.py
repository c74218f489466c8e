"""
What waits in memory for clients that do not take their replies: where it is too much, those who have not
taken theirs for longest are cut off.

Only a client of which the transport says that it does not keep up is counted: nothing is done for any other.
"""

from __future__ import annotations

from typing import Final, Protocol

from gateway.errors import AbortCause
from gateway.server.client_watch import CLOCK_SLACK

PATIENCE: Final = 0.5  # seconds for which any client may leave its reply, however much there is


class UnsentReply(Protocol):
    def cut_off(self, cause: AbortCause) -> None: ...


class UnsentReplies:
    """
    `held`: bytes that wait. Past `most` there is room made as more comes to wait; so it is passed by what
    comes within PATIENCE.
    """

    def __init__(self, most: int = 128 * 2**20) -> None:
        self._most = most
        self._waiting: dict[UnsentReply, tuple[float, int]] = {}  # since when, and bytes; the longest first
        self.held = 0

    def add(self, reply: UnsentReply, size: int, now: float) -> None:
        self._waiting[reply] = now, size
        self.held += size
        while self.held > self._most:
            longest, (since, _) = next(iter(self._waiting.items()))
            if now - since < PATIENCE - CLOCK_SLACK:
                break
            self.discard(longest)
            longest.cut_off("stalled")

    def discard(self, reply: UnsentReply) -> None:
        _, size = self._waiting.pop(reply, (0.0, 0))
        self.held -= size
