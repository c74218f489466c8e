"""
How often one caller may make the gateway forget every conversation.

A write that names no conversation may have changed any, so all that was read is forgotten when it is
answered (S3). That costs every other caller a look-up, so the writes of one credential that may do it have a
rate. Beyond it they wait, before anything is sent, in the order in which they came; and where the wait would
be too long they are refused. So nobody else pays, and no promise depends on it. Those that the upstream
refused made nothing forgotten, and do not count.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from gateway.errors import UnnamedWritesLimited

CREDENTIALS_KEPT = 10_000


class SweepRate:
    def __init__(self, rate: int, patience: float, clock: Callable[[], float]) -> None:
        """`rate`: of each credential in a second, and at once; `patience`: seconds that one may wait."""
        self._interval = 1 / rate
        self._at_once = (rate - 1) * self._interval
        self._rate = rate
        self._patience = patience
        self._clock = clock
        # By credential, when it will have its whole rate again (the generic cell rate algorithm).
        self._full_at: OrderedDict[str, float] = OrderedDict()

    async def take(self, credential: str) -> None:
        """Raises UnnamedWritesLimited."""
        now = self._clock()
        full_at = max(now, self._full_at.get(credential, now))
        wait = full_at - now - self._at_once
        if wait > self._patience:
            error = UnnamedWritesLimited(
                f"this credential has sent more than {self._rate} a second (limits.unnamed_write_rate)"
            )
            error.retry_after = math.ceil(wait - self._patience)
            raise error
        self._full_at[credential] = full_at + self._interval
        self._full_at.move_to_end(credential)
        self._drop_what_is_over(now)
        if wait > 0:
            try:
                await asyncio.sleep(wait)
            except asyncio.CancelledError:
                self.give_back(credential)
                raise

    def give_back(self, credential: str) -> None:
        """It was not sent, or made nothing forgotten."""
        if credential in self._full_at:
            self._full_at[credential] -= self._interval

    def _drop_what_is_over(self, now: float) -> None:
        first = next(iter(self._full_at))
        while self._full_at[first] <= now or len(self._full_at) > CREDENTIALS_KEPT:
            del self._full_at[first]
            first = next(iter(self._full_at))
