"""
A task that runs at once, and what it waits on that wakes it at once.

asyncio's own tasks begin in the next turn of the loop, and go on in the one after that in which they were
woken: what never waits needs neither turn. In all else a DirectTask is one of them: `asyncio.timeout` works
in it, it can wait for whatever they can, and they can wait for an Arrival (asyncio's documentation,
Extending).
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

from msgspec import Struct


class DirectTask(Struct, eq=False, weakref=True):
    """
    Nothing happens before `start`. `ended` is called once, when the coroutine has returned or raised: until
    it returns, it can be asked how.
    """

    _coro: Coroutine[Any, Any, None]
    _loop: asyncio.AbstractEventLoop
    _ended: Callable[[DirectTask], None]
    _awaited: Any = None
    failure: BaseException | None = None  # what the coroutine raised, whatever it is
    _over: bool = False
    _must_cancel: bool = False
    _cancelling: int = 0

    def start(self, error: BaseException | None = None) -> None:
        """To its next wait, where it is then; there with `error`."""
        loop = self._loop
        try:
            _enter_task(loop, self)  # type: ignore[arg-type]
        except RuntimeError:  # another task runs: that goes to its own next wait first
            loop.call_soon(self.start, error)
            return
        if self._must_cancel:
            self._must_cancel = False
            error = error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError()
        try:
            awaited = self._coro.send(None) if error is None else self._coro.throw(error)
        except StopIteration:
            self._over = True
        except (KeyboardInterrupt, SystemExit) as raised:
            self._over, self.failure = True, raised
            raise
        except BaseException as raised:  # noqa: BLE001  # it is the task's outcome, whatever it is (`exception`)
            self._over, self.failure = True, raised
        finally:
            _leave_task(loop, self)  # type: ignore[arg-type]
        if self._over:
            try:
                self._ended(self)
            except Exception as raised:  # noqa: BLE001  # told to the loop: it would hit who woke this task
                said = {"message": "a task could not be ended", "exception": raised, "task": self}
                loop.call_exception_handler(said)
            # It keeps the frames of the call, and these what they hold, until the collector comes.
            self.failure = error = None
            return
        self._awaited = awaited
        if type(awaited) is Arrival:
            awaited._waiter = self
        elif awaited is None:
            loop.call_soon(self.start)
        else:
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self._wake)
        if self._must_cancel and awaited is not None and awaited.cancel():
            self._must_cancel = False

    def _wake(self, awaited: asyncio.Future[Any]) -> None:
        self._awaited = None
        try:
            awaited.result()
        except BaseException as error:  # noqa: BLE001  # raised at the coroutine's await, as what it waited for
            self.start(error)
        else:
            self.start()

    # As asyncio.Task has them.

    def done(self) -> bool:
        return self._over

    def cancelled(self) -> bool:
        return isinstance(self.failure, asyncio.CancelledError)

    def exception(self) -> BaseException | None:
        if isinstance(self.failure, asyncio.CancelledError):
            raise self.failure
        return self.failure

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def cancelling(self) -> int:
        return self._cancelling

    def uncancel(self) -> int:
        self._cancelling = max(0, self._cancelling - 1)
        return self._cancelling

    def cancel(self, msg: object = None) -> bool:
        if self._over:
            return False
        self._cancelling += 1
        if self._awaited is None or not self._awaited.cancel():
            self._must_cancel = True
        return True


class Arrival(Struct, eq=False):
    """One task at a time waits for it. It has what asyncio wants of a future."""

    _loop: asyncio.AbstractEventLoop
    there: bool = False
    _waiter: DirectTask | None = None
    _callback: Callable[[Any], object] | None = None
    _context: Context | None = None
    _cancelled: bool = False
    _asyncio_future_blocking: bool = False

    def arrived(self) -> None:
        """Whoever waits goes on, before this returns if no other task runs."""
        if self.there:
            return
        self.there = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter._awaited = None
            waiter.start()
        elif self._callback is not None:
            self._call_back()

    def _call_back(self) -> None:
        context, callback, self._callback = self._context, self._callback, None
        assert context is not None
        assert callback is not None
        try:
            context.run(callback, self)
        except RuntimeError:  # another task runs
            self._loop.call_soon(callback, self, context=context)

    def __await__(self) -> Generator[Any, None, None]:
        if not self.there:
            self._asyncio_future_blocking = True
            yield self
            if self._cancelled:
                raise asyncio.CancelledError

    # What a task asks of the future that it waits on.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._callback, self._context = callback, context

    def cancel(self, msg: object = None) -> bool:
        """The waiter is cancelled in the loop's next turn."""
        if self.there:
            return False
        self.there = self._cancelled = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter._awaited = None
            self._loop.call_soon(waiter.start)
        elif self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
        return True

    def result(self) -> None:
        """Always there is nothing: the waiter itself sees what has come, or that it was cancelled."""
