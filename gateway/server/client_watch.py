"""
How long a client is waited for: a byte within a time, and enough of them in each window. Pure: the time is an
argument.
"""

from __future__ import annotations

from typing import Final, Literal

from gateway.server.byte_rate import ByteRate

CLOCK_SLACK: Final = 0.002  # seconds that a loop's clock may run behind its timers


class ClientWatch:
    """
    For a body that is to come, or a reply that is to be taken. `timeout` in seconds without a byte;
    `min_rate` in bytes a second, on average over `window` seconds of waiting; 0 for any.
    """

    __slots__ = ("_min_rate", "_rate", "_timeout", "_until", "_window", "rated")

    def __init__(self, timeout: float, min_rate: int, window: float) -> None:
        self.rated = min_rate > 0  # whether the rate counts now
        self._rate = ByteRate()
        self._timeout = timeout
        self._min_rate = min_rate
        self._window = window
        self._until = 0.0

    def start(self, now: float) -> None:
        """The client is waited for."""
        self._until = now + self._timeout
        self._rate.start(now)

    def stop(self, now: float) -> None:
        self._rate.stop(now)

    def moved(self, size: int) -> None:
        self._rate.moved += size

    def extend(self, now: float) -> None:
        """Something has moved, or what is waited for has changed: the time without a byte begins anew."""
        self._until = now + self._timeout

    @property
    def deadline(self) -> float:
        """When to ask for a verdict if the waiting goes on."""
        return min(self._until, self._rate.ends(self._window)) if self.rated else self._until

    def verdict(self, now: float) -> Literal["timeout", "rate"] | None:
        """What the client has failed in. At the end of a window that was fast enough the next begins."""
        if self._until <= now:
            return "timeout"
        if self.rated and self._rate.too_slow(now, self._min_rate, self._window):
            return "rate"
        return None
