"""
The time that each call has. All have the same, so the first to begin is the first to be due: one timer
serves them all.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Deadline:
    """Of `seconds` for each call. `asyncio.timeout` does the same for one call, with a timer of its own."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[Any, float] = {}  # in the order in which they began
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: Any) -> None:
        """The task is cancelled when its time is over before `end` is called."""
        loop = task.get_loop()
        when = self._due[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(when, self._ring, loop)

    def end(self, task: Any) -> bool:
        """Whether the task was cancelled for its time, and nobody else has cancelled it: that is undone."""
        return self._due.pop(task, None) is None and not task.uncancel()

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = None
        for task, when in list(self._due.items()):
            if when > now:
                self._timer = loop.call_at(when, self._ring, loop)
                break
            del self._due[task]
            task.cancel()
