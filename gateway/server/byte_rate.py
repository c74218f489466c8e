"""
How fast a client gives or takes, over the time in which it is waited for. Pure: the time is an argument.
"""

from __future__ import annotations


class ByteRate:
    """
    Bytes, and the time waited for them. Judged window by window: a burst counts for its own window only.
    """

    __slots__ = ("_since", "_waited", "moved")

    def __init__(self) -> None:
        self.moved = 0  # bytes in this window
        self._waited = 0.0
        self._since = 0.0  # now, less the seconds waited in this window so far

    def start(self, now: float) -> None:
        self._since = now - self._waited

    def stop(self, now: float) -> None:
        self._waited = now - self._since

    def ends(self, window: float) -> float:
        """When the window is over if the waiting goes on."""
        return self._since + window

    def too_slow(self, now: float, rate: float, window: float) -> bool:
        """Whether a window is over in which less than `rate` bytes a second moved. Then the next begins."""
        waited = now - self._since
        if waited < window:
            return False
        moved, self.moved, self._since = self.moved, 0, now
        return moved < rate * waited
