"""
How many bytes of bodies and replies may wait in memory, for all calls together and for one caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

from gateway.errors import Overloaded

MUCH = 32 * 2**20
SHARE = 4  # one caller may hold a quarter


class BufferBudget:
    def __init__(
        self,
        most: int,
        largest: int,
        emptied: Callable[[], None] = lambda: None,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        In bytes. One body of `largest` always has room in its caller's share. `emptied` is called when
        nothing is held any more and much was. `beside` tells what waits elsewhere, and leaves so much less.
        """
        self._emptied = emptied
        self._beside = beside
        self._peak = 0
        self._most = max(most, largest)
        self._share = max(self._most // SHARE, largest)
        self._of: Counter[Hashable] = Counter()
        self.held = 0

    def take(self, caller: Hashable, size: int) -> None:
        """Raises Overloaded, and nothing is taken, where that is more than there is."""
        if self._of[caller] + size > self._share:
            detail = f"what waits for one caller takes {self._share} bytes (a share of limits.max_buffered)"
            raise Overloaded(detail)
        if self.held + self._beside() + size > self._most:
            raise Overloaded(f"bodies and replies that wait take {self._most} bytes (limits.max_buffered)")
        if not size:
            return  # nobody would give it back
        self._of[caller] += size
        self.held += size
        self._peak = max(self._peak, self.held)

    @property
    def callers(self) -> int:
        """That hold something."""
        return len(self._of)

    def give_back(self, caller: Hashable, size: int) -> None:
        self.held -= size
        self._of[caller] -= size
        if not self._of[caller]:
            del self._of[caller]
        if not self.held:
            peak, self._peak = self._peak, 0
            if peak > MUCH:
                self._emptied()
