"""
So many in each second, and how many more there were: for what is only shown. Pure: the time is an argument.
"""

from __future__ import annotations

import math


class PerSecond:
    """`most` of them are admitted in a second; `left_out` counts the others of this one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._began = -math.inf
        self._admitted = 0
        self.left_out = 0

    def begin(self, now: float) -> int:
        """How many were left out of the second that is over, 0 while it is not. A clock may be set back."""
        if 0 <= now - self._began < 1:
            return 0
        left_out, self._began, self._admitted, self.left_out = self.left_out, now, 0, 0
        return left_out

    def admits(self) -> bool:
        """Of the second that `begin` was asked about last."""
        if self._admitted >= self._most:
            self.left_out += 1
            return False
        self._admitted += 1
        return True
