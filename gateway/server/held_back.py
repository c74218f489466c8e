"""
The clients that were just refused for overload: none of their connections is read for a moment, so that those
who call again at once can't take the loop's time from those who are served.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Final, Protocol

TICK: Final = 0.01  # seconds between two lots that are read again
LOT: Final = 10  # clients in it: what refusals may cost of each tick


class HeldClient(Protocol):
    def read_again(self) -> None: ...


class HeldBack:
    """First come, first read again; one timer for all of them."""

    def __init__(self) -> None:
        self._due: dict[HeldClient, float] = {}  # in the order they came
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def add(self, client: HeldClient, pause: float, loop: asyncio.AbstractEventLoop) -> None:
        """For `pause` seconds at least; longer where more wait than may be read in that time."""
        due = self._due[client] = loop.time() + pause
        if self._timer is None:
            self._timer = loop.call_at(due, self._next_lot, loop)

    def discard(self, client: HeldClient) -> None:
        """It has gone."""
        self._due.pop(client, None)

    def _next_lot(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for client, due in list(itertools.islice(self._due.items(), LOT)):
            if due > now + TICK:
                break
            del self._due[client]
            client.read_again()
        if self._due and self._timer is None:
            first = next(iter(self._due.values()))
            self._timer = loop.call_at(max(first, now + TICK), self._next_lot, loop)
