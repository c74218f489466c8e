"""
The place of one worker, which one process after the other has: started, and started anew when it ended by
itself, at once if it had been well and else after a pause that doubles. One that is told to stop by itself
finishes what is in flight beside the next: at its socket nobody would accept meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.workers import listeners
from gateway.workers.channel import NoAnswerFromThere
from gateway.workers.merged import Figures, summed
from gateway.workers.start import Followed, Start
from gateway.workers.worker_process import WorkerProcess

WELL: Final = 3.0  # seconds after which the end of a worker is not taken for a fault in its start
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
KEPT: Final = 1.0  # a pause that is longer is too long for the connections that wait at its listener
ATTEMPTS: Final = 3  # starts that may fail while no worker runs

log = logging.getLogger("gateway")


class CannotStart(Exception):
    """No worker runs, and none can be started."""


def pause(failed: int) -> float:
    """Before the next start, after so many that failed in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failed - 1, 16)) if failed else 0.0


class Place:
    """
    `start` gives what a worker is told at first, `holds` what it follows when it is about to listen.
    `leaves_in`: seconds for what is in flight, when one is told to stop by itself. `alone`: whether no other
    worker serves. `ready` is told of each process, `ended` of each that ended by itself, or is about to.
    """

    def __init__(
        self,
        number: int,
        listener: socket.socket,
        start: Callable[[int], Start],
        holds: Callable[[], Followed],
        leaves_in: float,
        *,
        alone: Callable[[], bool],
        ready: Callable[[WorkerProcess], None],
        ended: Callable[[], None],
    ) -> None:
        self.number = number
        self.killed = False  # at the end, as it did not end in time
        self.leaving: dict[WorkerProcess, asyncio.Task[None]] = {}
        self._worker: WorkerProcess | None = None
        self._listener: socket.socket | None = listener
        self._address: tuple[str, int] = listener.getsockname()[:2]
        self._start = start
        self._holds = holds
        self._leaves_in = leaves_in
        self._alone = alone
        self._ready = ready
        self._ended = ended
        self._stopping = asyncio.Event()
        self._gone = Figures([], [])

    # --- its processes

    @property
    def processes(self) -> list[WorkerProcess]:
        return [*([] if self._worker is None else [self._worker]), *self.leaving]

    @property
    def serves(self) -> bool:
        return self._worker is not None and self._worker.serves

    async def keep(self) -> None:
        """Until `stop`. Raises CannotStart."""
        failed = 0
        while not self._stopping.is_set():
            try:
                lasted, how = await self._run_one()
            except OSError as error:  # no process, or no descriptor, is left
                lasted, how = 0.0, f"ended before it began: {error.strerror or error}"
            if self._stopping.is_set():
                return
            self._ended()
            failed = 0 if lasted >= WELL else failed + 1
            seconds = pause(failed)
            if failed >= ATTEMPTS and self._alone():
                raise CannotStart(f"worker {self.number} failed {failed} times in a row: it {how}")
            log.error("worker %d %s: the next begins in %g s", self.number, how, seconds)
            if seconds > KEPT and not self._alone():
                self.close_listener()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    async def _run_one(self) -> tuple[float, str]:
        """Until it ended, or leaves: how long its worker served, and what became of it."""
        worker = self._worker = await self._spawned()
        ended = asyncio.create_task(worker.run())
        leaves = asyncio.create_task(worker.leaving.wait())
        if self._stopping.is_set():
            worker.stop()
        await asyncio.wait([ended, leaves], return_when=asyncio.FIRST_COMPLETED)
        leaves.cancel()
        if ended.done() or self._stopping.is_set():
            code = await ended
            self._worker = None
            self._count(worker)
            return worker.lasted(), said(code)
        self._worker = None
        self.leaving[worker] = asyncio.create_task(self._left(worker, ended))
        return worker.lasted(), "leaves, and finishes what is in flight"

    async def _spawned(self) -> WorkerProcess:
        if self._listener is None:
            self._listener = listeners.another(self._address)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            files = theirs.fileno(), self._listener.fileno()
            # Not in the terminal's group, whose Ctrl-C is for the supervisor to pass on.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "gateway.workers",
                *map(str, files),
                pass_fds=files,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        streams = await asyncio.open_unix_connection(sock=ours)
        worker = WorkerProcess(self.number, process, streams, self._holds, self._ready)
        worker.channel.begin(msgspec.to_builtins(self._start(self.number)))
        return worker

    async def _left(self, worker: WorkerProcess, ended: asyncio.Task[int]) -> None:
        await asyncio.wait([ended], timeout=self._leaves_in)
        if not ended.done():
            log.error("process %d of worker %d did not end in time: it is killed", worker.pid, self.number)
            self.killed = self.killed or self._stopping.is_set()
            worker.kill()
        code = await ended
        del self.leaving[worker]
        self._count(worker)
        log.info("process %d of worker %d %s", worker.pid, self.number, said(code))

    def close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def stop(self) -> None:
        """It finishes what is in flight; no other follows it."""
        self._stopping.set()
        self.close_listener()
        for worker in self.processes:
            worker.stop()

    def kill(self) -> None:
        self.killed = self.killed or bool(self.processes)
        for worker in self.processes:
            worker.kill()

    # --- what its worker says

    async def ask(self, what: str, asked: Any = None, seconds: float = 2.0) -> Any:
        """Raises NoAnswerFromThere."""
        if self._worker is None or not self._worker.serves:
            raise NoAnswerFromThere("it is being started")
        return await self._worker.channel.ask(what, asked, seconds)

    async def figures(self) -> list[Figures]:
        """Of its processes, and what those before them had counted when they were last asked."""
        await asyncio.gather(*[one.ask_figures() for one in self.processes if one.follows])
        return [self._gone, *[one.figures for one in self.processes]]

    def _count(self, worker: WorkerProcess) -> None:
        self._gone = summed([self._gone, worker.figures.counted()])


def said(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"
