"""
The time that each call has. All have the same, so who began first is due first: one timer serves them all.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from msgspec import Struct


class Deadline:
    """Of `seconds` for each call. `asyncio.timeout` does the same for one call, with a timer of its own."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[Timed, float] = {}  # who began first, first
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[Any]) -> Timed:
        """The call's time runs until the block that the result is the context of ends."""
        loop = task.get_loop()
        when = loop.time() + self.seconds
        timed = Timed(task, self._due, task.cancelling())
        self._due[timed] = when
        if self._timer is None:
            self._timer = loop.call_at(when, self._ring, loop)
        return timed

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = None
        for timed, when in list(self._due.items()):
            if when > now:
                self._timer = loop.call_at(when, self._ring, loop)
                break
            timed.expire()


class Timed(Struct, eq=False):
    """Raises TimeoutError at its end where the call's time was over before."""

    _task: asyncio.Task[Any]
    _due: dict[Timed, float]
    _cancelling: int
    _expired: bool = False

    def expire(self) -> None:
        self._due.pop(self, None)
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Timed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due.pop(self, None)
        # Somebody else may have cancelled the task as well: that is not to be taken for the time's end.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
