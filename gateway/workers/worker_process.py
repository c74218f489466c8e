"""
One worker's process, as the supervisor sees it: what it says, whether it hangs, when it has ended.

Before it listens it asks what holds by now, and from that answer on every change waits for it: no call goes
by what was changed while its worker began.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import msgspec

from gateway.workers.channel import Channel, NoAnswerFromThere
from gateway.workers.merged import Figures
from gateway.workers.start import Followed

STARTED_IN: Final = 30.0  # seconds
LOOKED_AT: Final = 5.0  # seconds between two looks whether it still answers
HANGS: Final = 10.0  # seconds without an answer

log = logging.getLogger("gateway")
_ordinals = count(1)


class WorkerProcess:
    """`holds` gives what all follow; `ready` is told when it serves."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        holds: Callable[[], Followed],
        ready: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = number
        self.ordinal = next(_ordinals)  # among all that there were
        self.pid = process.pid
        self.follows = False
        self.serves = False
        self.leaving = asyncio.Event()  # it finishes what is in flight
        self.figures = Figures([], [])  # what it said last
        self._process = process
        self._holds = holds
        self._ready = ready
        self._began = asyncio.Event()
        self._since = 0.0
        self.channel = Channel(
            *streams,
            {
                "holds": self._now_follows,
                "ready": self._now_serves,
                "leaving": self._now_leaves,
                "figures": self._has_counted,
            },
        )

    async def run(self) -> int:
        """Until it has ended: its exit code."""
        hearing = asyncio.create_task(self.channel.serve())
        watching = asyncio.create_task(self._watch())
        try:
            code = await self._process.wait()
            await hearing  # what it said last counts
            return code
        finally:
            watching.cancel()
            self.follows = self.serves = False
            self.channel.close()

    async def _watch(self) -> None:
        """Whether it begins, and then answers: one that hangs would keep its share of the connections."""
        try:
            async with asyncio.timeout(STARTED_IN):
                await self._began.wait()
        except TimeoutError:
            log.error("worker %d has not begun in %g s: it is killed", self.number, STARTED_IN)
            self.kill()
            return
        with contextlib.suppress(NoAnswerFromThere):
            while True:
                await asyncio.sleep(LOOKED_AT)
                await self.channel.ask("ready", seconds=HANGS)
        if self.channel.closed:  # so it leaves, if it did not end
            self.leaving.set()
        else:
            log.error("worker %d has not answered for %g s: it is killed", self.number, HANGS)
            self.kill()

    def lasted(self) -> float:
        """Seconds since it began to serve."""
        return asyncio.get_running_loop().time() - self._since if self._began.is_set() else 0.0

    async def ask_figures(self) -> None:
        with contextlib.suppress(NoAnswerFromThere):
            self.figures = msgspec.convert(await self.channel.ask("figures", seconds=2.0), Figures)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    # --- what it says

    async def _now_follows(self, _: Any) -> Any:
        self.follows = True
        return msgspec.to_builtins(self._holds())

    async def _now_serves(self, _: Any) -> None:
        self._since = asyncio.get_running_loop().time()
        self.serves = True
        self._began.set()
        self._ready(self)

    async def _now_leaves(self, _: Any) -> None:
        self.leaving.set()

    async def _has_counted(self, said: Any) -> None:
        self.figures = msgspec.convert(said, Figures)
