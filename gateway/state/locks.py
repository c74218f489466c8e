"""
The conversation locks in this process: shared and exclusive, fair between callers (S4).

A conversation has an entry only while somebody holds or waits for a lock on it, so entries are bounded by the
calls in flight.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from msgspec import Struct

from gateway.errors import LockBusy, LockTimeout

# One caller's calls that wait, in the order in which they came: for an exclusive lock or not.
_Queue: TypeAlias = deque[tuple[bool, asyncio.Future[None]]]


class _Entry(Struct, eq=False):
    """One conversation's holders, and the callers whose calls wait, in the order of their turns."""

    shared: int = 0
    exclusive: bool = False
    waiting: OrderedDict[str, _Queue] | tuple[()] = ()


class MemoryLock(Struct, eq=False):
    """A held lock (store.ConversationLock)."""

    _locks: MemoryLocks
    _conversation: str | None  # None: nothing to release, or not any more
    _exclusive: bool
    waited: bool

    @property
    def alone(self) -> bool:
        return False

    def holds(self) -> bool:
        return True

    def release(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            self._locks._release(conversation, self._exclusive)

    def __enter__(self) -> MemoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class MemoryLocks:
    def __init__(self, timeout: float, max_waiting: int = 32) -> None:
        """
        `timeout`: seconds that a call may wait for a lock. `max_waiting`: how many calls of one caller may
        wait for one conversation.
        """
        self._timeout = timeout
        self._max_waiting = max_waiting
        self._entries: dict[str, _Entry] = {}
        # Told the seconds that a call had to wait, whether or not it then had the lock.
        self.on_waited: Callable[[float], None] = lambda seconds: None

    def __len__(self) -> int:
        return len(self._entries)

    def exclusive_pending(self, conversation: str | None) -> bool:
        entry = self._entries.get(conversation) if conversation is not None else None
        # Somebody waits only where a lock is exclusive, the one that is held or one that is waited for.
        return entry is not None and (entry.exclusive or bool(entry.waiting))

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> MemoryLock | None:
        if conversation is not None:
            entry = self._entries.get(conversation)
            if entry is None:
                entry = self._entries[conversation] = _Entry()
            elif entry.waiting or entry.exclusive or (exclusive and entry.shared > 0):
                return None
            if exclusive:
                entry.exclusive = True
            else:
                entry.shared += 1
        return MemoryLock(self, conversation, exclusive, False)

    async def acquire(self, conversation: str | None, *, exclusive: bool, caller: str) -> MemoryLock:
        lock = self.try_acquire(conversation, exclusive=exclusive)
        if lock is None:
            assert conversation is not None
            await self._wait(conversation, self._entries[conversation], exclusive, caller)
            lock = MemoryLock(self, conversation, exclusive, True)
        return lock

    async def _wait(self, conversation: str, entry: _Entry, exclusive: bool, caller: str) -> None:
        """Until the lock is granted, which makes the call its holder."""
        waiting = entry.waiting
        if not isinstance(waiting, OrderedDict):
            waiting = entry.waiting = OrderedDict()  # most entries never need one
        queue = waiting.setdefault(caller, deque())
        if len(queue) >= self._max_waiting:
            raise LockBusy(f"{len(queue)} calls of this caller wait for the conversation's lock")
        loop = asyncio.get_running_loop()
        began = loop.time()
        granted: asyncio.Future[None] = loop.create_future()
        waiter = (exclusive, granted)
        queue.append(waiter)
        try:
            async with asyncio.timeout(self._timeout):
                await granted
        except (TimeoutError, asyncio.CancelledError) as error:
            if granted.done() and not granted.cancelled():
                # The lock was granted in the same moment, and nobody else will release it.
                self._release(conversation, exclusive)
            else:
                queue.remove(waiter)
                if not queue:
                    del waiting[caller]
                self._grant(conversation, entry)
            if isinstance(error, TimeoutError):
                raise LockTimeout(f"it waited {self._timeout:g} s for the conversation's lock") from error
            raise
        finally:
            self.on_waited(loop.time() - began)

    def _release(self, conversation: str, exclusive: bool) -> None:
        entry = self._entries[conversation]
        if exclusive:
            entry.exclusive = False
        else:
            entry.shared -= 1
        if entry.waiting:
            self._grant(conversation, entry)
        elif not entry.shared:
            del self._entries[conversation]

    def _grant(self, conversation: str, entry: _Entry) -> None:
        """To the callers that wait, one turn after the other, as long as those who hold locks allow it."""
        waiting = entry.waiting
        while isinstance(waiting, OrderedDict) and waiting and not entry.exclusive:
            caller, queue = next(iter(waiting.items()))
            exclusive, granted = queue[0]
            if granted.cancelled():
                # Its task has yet to run: then it removes itself and grants the lock to those behind it.
                break
            if exclusive and entry.shared:
                break
            self._take_turn(entry, queue)
            if queue:
                waiting.move_to_end(caller)
            else:
                del waiting[caller]
        if not entry.waiting and not entry.exclusive and not entry.shared:
            del self._entries[conversation]

    def _take_turn(self, entry: _Entry, queue: _Queue) -> None:
        """An exclusive lock, or all the shared ones up to the next that is not: they need no more time."""
        exclusive = queue[0][0]
        while queue and queue[0][0] == exclusive and not queue[0][1].cancelled() and not entry.exclusive:
            queue.popleft()[1].set_result(None)
            if exclusive:
                entry.exclusive = True
            else:
                entry.shared += 1
