"""
A thread for what may hang, as a write to a pipe or the sync of a disk: one job after the other.

It is a daemon: a process whose disk hangs still ends when it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

from gateway.errors import Unrecordable

Job: TypeAlias = Callable[[], None]
Ended: TypeAlias = Callable[[Unrecordable | None], None]


class WriterThread:
    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, Job, Ended] | None]
        self._jobs = queue.SimpleQueue()
        self._runs = False

    def run(self, job: Job, ended: Ended) -> None:
        """`ended` is called by the running loop, with what the job raised."""
        if not self._runs:
            self._runs = True
            threading.Thread(target=self._work, name="audit", daemon=True).start()
        self._jobs.put((asyncio.get_running_loop(), job, ended))

    def stop(self) -> None:
        """Once its jobs are done."""
        if self._runs:
            self._runs = False
            self._jobs.put(None)

    def _work(self) -> None:
        while (one := self._jobs.get()) is not None:
            loop, job, ended = one
            problem = None
            try:
                job()
            except Unrecordable as error:
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop was closed while the job hung
                loop.call_soon_threadsafe(ended, problem)
