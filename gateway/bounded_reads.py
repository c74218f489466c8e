"""
Files that may lie on a file system that hangs: read on a thread of their own, and waited for only so long.

The thread is a daemon, so that a process whose disk hangs still ends when it is told to; while it hangs, no
second one is begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeVar, cast

PATIENCE: Final = 10.0  # seconds

T = TypeVar("T")


class Hangs(Exception):
    """The file system did not answer in time, or has not yet answered an earlier read."""


class BoundedReads:
    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._over = threading.Event()
        self._over.set()

    def idle(self) -> bool:
        return self._over.is_set()

    async def read(self, read: Callable[[], T]) -> T:
        """What `read` gives or raises. Raises Hangs; what comes after that is dropped."""
        if not self.idle():
            raise Hangs("the file system hangs: a read that began before is not over")
        self._over.clear()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def tell(found: T | None, problem: Exception | None) -> None:
            if done.done():
                return
            if problem is not None:
                done.set_exception(problem)
            else:
                done.set_result(cast(T, found))

        def work() -> None:
            found, problem = None, None
            try:
                found = read()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised to who waits
                problem = error
            self._over.set()
            # The loop may be over by the time that a disk answers.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, found, problem)

        threading.Thread(target=work, name="files", daemon=True).start()
        try:
            async with asyncio.timeout(self._patience):
                return await done
        except TimeoutError:
            if not done.cancelled():
                raise  # of `read` itself
            raise Hangs(f"the file system did not answer within {self._patience:g} s") from None
