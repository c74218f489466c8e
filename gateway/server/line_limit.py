"""
Which lines of the log are said, where anybody can cause as many as he likes: of each cause the first at once,
then how many there were. Pure: the time is an argument.
"""

from __future__ import annotations

from typing import Final

EVERY: Final = 10.0  # seconds from one line about a cause to the next


class LineLimit:
    """The causes are few: a refusal's slug, an abort's cause."""

    def __init__(self, every: float = EVERY) -> None:
        self.every = every
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def admits(self, cause: str, now: float) -> bool:
        """Whether this one is to be said. If not it is counted, and `unsaid` tells of it."""
        said = self._said.get(cause)
        if said is None or (now >= said + self.every and cause not in self._unsaid):
            self._said[cause] = now
            return True
        self._unsaid[cause] = self._unsaid.get(cause, 0) + 1
        return False

    def due(self, cause: str) -> float | None:
        """When those of this cause that were not said are to be told of; None if there are none."""
        return self._said[cause] + self.every if cause in self._unsaid else None

    def unsaid(self, cause: str, now: float) -> int:
        """How many there were that were not said. This tells of them: the next time is counted from here."""
        count = self._unsaid.pop(cause, 0)
        if count:
            self._said[cause] = now
        return count
