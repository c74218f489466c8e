"""
asyncio's loop in virtual time: a seed decides which of the ready callbacks runs next.

Its law: a run is a function of the seed. Time moves only when nothing is ready, and then to the next
timer. Ready callbacks run in any order, but for what asyncio promises: those of one future keep theirs.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Coroutine
from random import Random
from typing import Any

TICK = 1e-9  # seconds that pass with each look at the clock: no two events have one time
AT_ONCE = 1e-4  # timers closer than this go off in one instant, as with a real clock's resolution


class Deadlock(AssertionError):
    """Everybody waits, and no timer is set."""


class Endless(AssertionError):
    """More steps than any schedule needs."""


class Loop(asyncio.BaseEventLoop):
    """`rng` None: ready callbacks run first come, first served, as asyncio's own loop has it."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, rng: Random | None, steps: int = 200_000) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self._steps = steps
        self._numbers: dict[asyncio.TimerHandle, int] = {}  # in the order in which they were set
        self.failures: list[BaseException | str] = []
        self.set_exception_handler(lambda _, context: self._failed(context))

    def _failed(self, context: dict[str, Any]) -> None:
        self.failures.append(context.get("exception") or context["message"])

    def time(self) -> float:
        return self._now

    def call_at(self, *args: Any, **more: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        timer = super().call_at(*args, **more)
        self._numbers[timer] = len(self._numbers)
        return timer

    def clock(self) -> float:
        """The monotonic clock of all that is simulated: it never shows the same time twice."""
        self._now += TICK
        return self._now

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        try:
            self.run_until_complete(main)
        finally:
            self.close()

    def _run_once(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise Endless("the schedule has no end")
        self._wake()
        handle = self._chosen()
        if not handle.cancelled():
            handle._run()

    def _wake(self) -> None:
        timers = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        if not self._ready:
            if not timers:
                raise Deadlock("everybody waits for somebody else")
            self._now = max(self._now, timers[0].when())
        due: list[asyncio.TimerHandle] = []
        while timers and timers[0].when() <= self._now + AT_ONCE:
            due.append(heapq.heappop(timers))
            self._now = max(self._now, due[-1].when())
        if self._rng is None:
            # Of those for one moment nanoseconds would decide, which others' looks at the clock add.
            due.sort(key=self._numbers.__getitem__)
        self._ready.extend(due)

    def _chosen(self) -> asyncio.Handle:
        ready = self._ready
        if self._rng is None or len(ready) == 1:
            return ready.popleft()
        at = self._rng.randrange(len(ready))
        future = _future(ready[at])
        if future is not None:
            at = next(index for index, handle in enumerate(ready) if _future(handle) is future)
        handle = ready[at]
        del ready[at]
        return handle

    def _process_events(self, event_list: Any) -> None:
        """There are none: nothing here reads from or writes to the world."""

    def _write_to_self(self) -> None:
        """No thread ever wakes this loop."""


def _future(handle: asyncio.Handle) -> object:
    arguments: tuple[Any, ...] | None = handle._args  # type: ignore[assignment]
    if arguments and isinstance(arguments[0], asyncio.Future):
        return arguments[0]
    return None
