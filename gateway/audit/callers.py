"""
Who still needs the gateway: each caller's calls and what they needed, added up and written beside the calls.

An observer adds to what is pending; once a second that goes to callers_file.py, in a thread. A disk that
fails or hangs keeps it pending: bounded, and no call waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from gateway.audit.callers_file import OTHERS, CallersFile, Seen, Tally
from gateway.audit.finished_call import FinishedCall
from gateway.audit.writer_thread import WriterThread
from gateway.errors import Unrecordable

EVERY = 1.0  # seconds between two writes
AGENT_KEPT = 200  # characters
LAST_WRITE = 2.0  # seconds that the end waits for
# What a skip says where nothing is amiss.
PLAIN = frozenset({None, "conforming", "not-rejected", "observe", "shadow"})

Pending: TypeAlias = dict[Seen, Tally]

log = logging.getLogger("gateway")


class Callers:
    def __init__(
        self,
        file: CallersFile,
        wall: Callable[[], float],
        counts: Counter[tuple[str, ...]],
        every: float = EVERY,
    ) -> None:
        """`wall` gives Unix seconds. `every`: seconds between two writes."""
        self._file = file
        self._wall = wall
        self._counts = counts
        self._every = every
        self._pending: Pending = {}
        self._timer: asyncio.TimerHandle | None = None
        self._written: asyncio.Future[None] | None = None  # while the thread writes
        self._thread = WriterThread()
        self._failing = False

    def saw(self, call: FinishedCall) -> None:
        agent = call.user_agent
        seen = (
            call.credential,
            "" if agent is None else agent[:AGENT_KEPT],
            call.rule,
            call.mode,
            call.needs or tuple([named(change) for change in call.changes or call.would_change]),
            None if call.skipped in PLAIN else call.skipped,
            call.shadow,
            call.application,
        )
        tally = self._pending.get(seen)
        if tally is None:
            tally = self._first(seen)
        tally.calls += 1
        tally.last = self._wall()
        if call.status is not None and call.status < 300:
            tally.accepted += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._write)

    def _first(self, seen: Seen) -> Tally:
        if len(self._pending) >= self._file.maximum:
            seen = (OTHERS, "", *seen[2:7], None)
        tally = self._pending.get(seen)
        if tally is None:
            tally = self._pending[seen] = Tally(self._wall())
        return tally

    def _write(self) -> None:
        self._timer = None
        if self._written is not None or not self._pending:
            return
        batch, self._pending = self._pending, {}
        self._written = asyncio.get_running_loop().create_future()
        self._thread.run(partial(self._file.add, batch), partial(self._ended, batch))

    def _ended(self, batch: Pending, problem: Unrecordable | None) -> None:
        if problem is not None:
            self._counts["gateway_callers_failures_total",] += 1
            self._take_back(batch)
        if problem is not None and not self._failing:
            log.warning("%s: calls go on, the report waits", problem)
        elif problem is None and self._failing:
            log.info("%s is written again", self._file.path)
        self._failing = problem is not None
        written, self._written = self._written, None
        if written is not None and not written.done():
            written.set_result(None)
        if self._pending and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._write)

    def _take_back(self, batch: Pending) -> None:
        """It came before what is pending now: that is added to it."""
        later, self._pending = self._pending, batch
        for seen, tally in later.items():
            (self._pending.get(seen) or self._first(seen)).add(tally)

    async def end(self) -> None:
        """Writes what is left, if the disk lets it."""
        try:
            async with asyncio.timeout(LAST_WRITE):
                if self._written is not None:
                    await self._written
                self._write()
                if self._written is not None:
                    await self._written
            self._file.close()
        except TimeoutError:
            log.warning("%s: the last second of callers is not written", self._file.path)
        if self._timer is not None:
            self._timer.cancel()
        self._thread.stop()


def named(change: dict[str, Any]) -> str:
    """As `needs` names it."""
    repair: str = change["repair"]
    return f"fill {change['field']}" if repair == "fill" else repair
