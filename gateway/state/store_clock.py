"""
A clock elsewhere, as it is told here: never less than a time that it gave, never younger than it may be.

Each exchange says of the other clock that it showed some time between the sending and the reply. So ages
count from when the request was sent, which is the least that is certain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

FAR = 1e11  # seconds
# Seconds by which what two exchanges say of the other clock may contradict each other: more, and it was set.
TOLERANCE = 0.005


def since_boot() -> float:
    """Seconds, also those in which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


LOCAL: Callable[[], float] = since_boot if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic


class StoreClock:
    def __init__(self, local: Callable[[], float] = LOCAL) -> None:
        self.local = local
        # Between what the other clock is ahead of the local one.
        self._least, self._most = -math.inf, FAR
        self._floor = -math.inf
        self.known = False  # whether it was ever read

    def now(self) -> float:
        """
        The most that the other clock may show. Until it has been read that is far in the future, so that no
        reading counts as one that began after a call which came before (S2).
        """
        now = self.local() + self._most
        if not self.known:
            return now
        if now < self._floor:
            return self._floor
        self._floor = now
        return now

    # --- of a time, the least or the most that it may be by the other clock

    def shown(self, local: float) -> float:
        """What the other one showed at a local time, at least."""
        return local + self._least

    def earliest(self, shown: float) -> float:
        """The local time at which it showed that, at least."""
        return shown - self._most

    def latest(self, shown: float) -> float:
        return shown - self._least

    def saw(self, sent: float, said: float, told: float) -> tuple[float, bool]:
        """
        `said` by the other clock to a request that was sent at `sent`, of the local clock, when `now` was
        `told`. Gives the time to go by, which is ahead of what it said where `now` was too; and whether the
        other clock was set back since it was last read.
        """
        least, most = said - self.local(), said - sent
        known = self.known
        back = known and most < self._least - TOLERANCE
        self._least, self._most = max(self._least, least), min(self._most, most)
        if self._least > self._most or not known:
            self._least, self._most = least, most
        self.known = True
        moment = said if said > told or not known else told
        if moment > self._floor:
            self._floor = moment
        return moment, back
