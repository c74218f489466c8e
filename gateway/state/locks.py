"""
The conversation locks in this process: shared and exclusive, first in, first out (S4).

A conversation has an entry only while somebody holds or waits for a lock on it, so entries are bounded by the
calls in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from msgspec import Struct

from gateway.errors import LockTimeout


class _Entry(Struct, eq=False):
    """One conversation's holders, and those who wait in their order: for an exclusive lock or not."""

    shared: int = 0
    exclusive: bool = False
    waiters: deque[tuple[bool, asyncio.Future[None]]] | tuple[()] = ()


class MemoryLock(Struct, eq=False):
    """A held lock (store.ConversationLock)."""

    _locks: MemoryLocks
    _conversation: str | None  # None: nothing to release, or not any more
    _exclusive: bool
    waited: bool

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
    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds that a call may wait for a lock."""
        self._timeout = timeout
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def exclusive_pending(self, conversation: str | None) -> bool:
        entry = self._entries.get(conversation) if conversation is not None else None
        # Somebody waits only where a lock is exclusive, the one that is held or one that is waited for.
        return entry is not None and (entry.exclusive or bool(entry.waiters))

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> MemoryLock | None:
        if conversation is not None:
            entry = self._entries.get(conversation)
            if entry is None:
                entry = self._entries[conversation] = _Entry()
            elif entry.waiters or entry.exclusive or (exclusive and entry.shared > 0):
                return None
            if exclusive:
                entry.exclusive = True
            else:
                entry.shared += 1
        return MemoryLock(self, conversation, exclusive, False)

    async def acquire(self, conversation: str | None, *, exclusive: bool) -> MemoryLock:
        lock = self.try_acquire(conversation, exclusive=exclusive)
        if lock is None:
            assert conversation is not None
            await self._wait(conversation, self._entries[conversation], exclusive)
            lock = MemoryLock(self, conversation, exclusive, True)
        return lock

    async def _wait(self, conversation: str, entry: _Entry, exclusive: bool) -> None:
        """Until the lock is granted, which makes the caller its holder."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (exclusive, granted)
        if not isinstance(entry.waiters, deque):
            entry.waiters = deque()  # most entries never need one
        entry.waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout):
                await granted
        except (TimeoutError, asyncio.CancelledError) as error:
            if granted.done() and not granted.cancelled():
                # The lock was granted in the same moment, and nobody else will release it.
                self._release(conversation, exclusive)
            else:
                entry.waiters.remove(waiter)
                self._grant(conversation, entry)
            if isinstance(error, TimeoutError):
                raise LockTimeout(f"it waited {self._timeout:g} s for the conversation's lock") from error
            raise

    def _release(self, conversation: str, exclusive: bool) -> None:
        entry = self._entries[conversation]
        if exclusive:
            entry.exclusive = False
        else:
            entry.shared -= 1
        if entry.waiters:
            self._grant(conversation, entry)
        elif not entry.shared:
            del self._entries[conversation]

    def _grant(self, conversation: str, entry: _Entry) -> None:
        """To those who wait, from the first on, as many as may hold locks together."""
        while entry.waiters and not entry.exclusive:
            exclusive, granted = entry.waiters[0]
            if granted.cancelled():
                # Its task has yet to run: then it removes itself and grants the lock to those behind it.
                break
            if exclusive and entry.shared:
                break
            entry.waiters.popleft()
            granted.set_result(None)
            if exclusive:
                entry.exclusive = True
            else:
                entry.shared += 1
        if not entry.waiters and not entry.exclusive and not entry.shared:
            del self._entries[conversation]
