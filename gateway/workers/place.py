"""
The place of one worker, which one process after the other has: started, watched, and started anew when it
ended by itself, at once if it had been well and else after a pause that doubles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import msgspec

from gateway.workers import listeners
from gateway.workers.channel import Channel, NoAnswerFromThere
from gateway.workers.merged import Figures, summed
from gateway.workers.start import Start

WELL: Final = 3.0  # seconds after which the end of a worker is not taken for a fault in its start
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
KEPT: Final = 1.0  # a pause that is longer is too long for the connections that wait at its listener
ATTEMPTS: Final = 3  # starts that may fail while no worker runs
STARTED_IN: Final = 30.0  # seconds
LOOKED_AT: Final = 5.0  # seconds between two looks whether it still answers
HANGS: Final = 10.0  # seconds without an answer

log = logging.getLogger("gateway")
_ordinals = count(1)


class CannotStart(Exception):
    """No worker runs, and none can be started."""


def pause(failed: int) -> float:
    """Before the next start, after so many that failed in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failed - 1, 16)) if failed else 0.0


class Place:
    """
    `start` gives what a worker is told. `alone`: whether no other worker serves. `ready` is told of each
    process and its id, `ended` of each that ended by itself.
    """

    def __init__(
        self,
        number: int,
        listener: socket.socket,
        start: Callable[[int], Start],
        *,
        alone: Callable[[], bool],
        ready: Callable[[Place, int], None],
        ended: Callable[[], None],
    ) -> None:
        self.number = number
        self.ordinal = 0  # of its process, among all that there were
        self.channel: Channel | None = None  # while its worker is ready
        self.killed = False  # at the end, as it did not end in time
        self._listener: socket.socket | None = listener
        self._address: tuple[str, int] = listener.getsockname()[:2]
        self._start = start
        self._alone = alone
        self._ready = ready
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._since = 0.0  # when its worker was ready
        self._gone = Figures([], [])
        self._last = Figures([], [])

    # --- its processes

    async def keep(self) -> None:
        """Until `stop`. Raises CannotStart."""
        failed = 0
        while not self._stopping.is_set():
            try:
                lasted, how = await self._run_one()
            except OSError as error:  # no process, or no descriptor, is left
                lasted, how = 0.0, f"before it began: {error.strerror or error}"
            if self._stopping.is_set():
                return
            self._ended()
            failed = 0 if lasted >= WELL else failed + 1
            seconds = pause(failed)
            if failed >= ATTEMPTS and self._alone():
                raise CannotStart(f"worker {self.number} ended {failed} times in a row, at last {how}")
            log.error("worker %d ended %s: the next begins in %g s", self.number, how, seconds)
            if seconds > KEPT and not self._alone():
                self.close_listener()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    async def _run_one(self) -> tuple[float, str]:
        """How long its worker was ready, and how it ended."""
        if self._listener is None:
            self._listener = listeners.another(self._address)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            files = theirs.fileno(), self._listener.fileno()
            # Not in the terminal's group, whose Ctrl-C is for the supervisor to pass on.
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "gateway.workers",
                *map(str, files),
                pass_fds=files,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        if self._stopping.is_set():
            process.terminate()
        self.ordinal = next(_ordinals)
        started, clock = asyncio.Event(), asyncio.get_running_loop().time
        reader, writer = await asyncio.open_unix_connection(sock=ours)

        async def ready(_: Any) -> None:
            self._since = clock()
            started.set()

        async def figures(said: Any) -> None:
            self._last = msgspec.convert(said, Figures)

        channel = Channel(reader, writer, {"ready": ready, "figures": figures})
        channel.begin(msgspec.to_builtins(self._start(self.number)))
        serving = asyncio.create_task(channel.serve())
        watching = asyncio.create_task(self._watch(process, channel, started))
        try:
            code = await process.wait()
            await serving  # what it said last counts
            return (clock() - self._since if started.is_set() else 0.0), said(code)
        finally:
            watching.cancel()
            self.channel = self._process = None
            channel.close()
            self._gone = summed([self._gone, self._last.counted()])
            self._last = Figures([], [])

    async def _watch(
        self, process: asyncio.subprocess.Process, channel: Channel, started: asyncio.Event
    ) -> None:
        """Whether it begins, and then answers: one that hangs would keep its share of the connections."""
        try:
            async with asyncio.timeout(STARTED_IN):
                await started.wait()
        except TimeoutError:
            log.error("worker %d has not begun in %g s: it is killed", self.number, STARTED_IN)
            process.kill()
            return
        self.channel = channel
        self._ready(self, process.pid)
        with contextlib.suppress(NoAnswerFromThere):
            while True:
                await asyncio.sleep(LOOKED_AT)
                await channel.ask("ready", seconds=HANGS)
        if not channel.closed:
            log.error("worker %d has not answered for %g s: it is killed", self.number, HANGS)
            process.kill()

    def close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def stop(self) -> None:
        """It finishes what is in flight; no other follows it."""
        self._stopping.set()
        self.close_listener()
        self._signal(signal.SIGTERM)

    def replace(self) -> None:
        """By another process, at once."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        self.killed = self._process is not None
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    # --- what its worker says

    async def ask(self, what: str, asked: Any = None, seconds: float = 2.0) -> Any:
        """Raises NoAnswerFromThere."""
        if self.channel is None:
            raise NoAnswerFromThere("it is being started")
        return await self.channel.ask(what, asked, seconds)

    async def figures(self) -> list[Figures]:
        """Of its process, and what those before it had counted when they were last asked."""
        with contextlib.suppress(NoAnswerFromThere):
            self._last = msgspec.convert(await self.ask("figures"), Figures)
        return [self._gone, self._last]


def said(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
