"""
The locks of this process before those elsewhere: order within it holds whatever becomes of the others.

Each call takes the near lock first, so only who has its turn here asks elsewhere. Where that cannot be asked
the call is `alone` with the near one: it may go on if it needs no more than order within this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from msgspec import Struct

from gateway.errors import LockBusy, StoreUnavailable
from gateway.state.locks import MemoryLock, MemoryLocks
from gateway.state.redis_cluster import ClusterLocks
from gateway.state.redis_locks import RedisLock, RedisLocks
from gateway.state.store import Key, View


class LayeredLock(Struct, eq=False):
    """A held lock (store.ConversationLock); `_far` None: there is none elsewhere."""

    _near: MemoryLock
    _far: RedisLock | None
    alone: bool

    @property
    def waited(self) -> bool:
        return self._near.waited or (self._far is not None and self._far.waited)

    def holds(self) -> bool:
        return self._far is None or self._far.holds()

    def release(self) -> None:
        if self._far is not None:
            self._far.release()
        self._near.release()

    def __enter__(self) -> LayeredLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class LayeredLocks:
    def __init__(self, near: MemoryLocks, far: RedisLocks | ClusterLocks) -> None:
        self._near = near
        self._far = far
        # Told of each lock for which the others could not be asked.
        self.on_alone: Callable[[], None] = lambda: None
        # Told the seconds that a call had to wait, whether or not it then had the lock.
        self.on_waited: Callable[[float], None] = lambda seconds: None

    def __len__(self) -> int:
        return len(self._near)

    def exclusive_pending(self, conversation: str | None) -> bool:
        return self._near.exclusive_pending(conversation)

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> LayeredLock | None:
        if conversation is not None:
            return None
        near = self._near.try_acquire(None, exclusive=exclusive)
        return None if near is None else LayeredLock(near, None, False)

    async def acquire(self, conversation: str | None, *, exclusive: bool, caller: str) -> LayeredLock:
        began, waited = asyncio.get_running_loop().time(), True
        try:
            lock = await self._acquired(conversation, exclusive, caller, began)
            waited = lock.waited
        except LockBusy:
            waited = False
            raise
        finally:
            if waited:
                self.on_waited(asyncio.get_running_loop().time() - began)
        return lock

    async def _acquired(
        self, conversation: str | None, exclusive: bool, caller: str, began: float
    ) -> LayeredLock:
        near = await self._near.acquire(conversation, exclusive=exclusive, caller=caller)
        if conversation is None:
            return LayeredLock(near, None, False)
        lock = None
        try:
            waited = asyncio.get_running_loop().time() - began
            far = await self._far.acquire(conversation, exclusive=exclusive, caller=caller, waited=waited)
            lock = LayeredLock(near, far, False)
        except StoreUnavailable:
            self.on_alone()
            lock = LayeredLock(near, None, True)
        finally:
            if lock is None:
                near.release()
        return lock

    async def enter(self, key: Key, subject: tuple[str, ...]) -> tuple[LayeredLock, View] | None:
        """As one step: a shared lock where it is free at once, and the view."""
        near = self._near.try_acquire(key.conversation, exclusive=False)
        if near is None:
            return None
        entered = None
        try:
            entered = await self._far.enter(key, subject)
        finally:
            if entered is None:
                near.release()
        if entered is None:
            return None
        far, view = entered
        return LayeredLock(near, far, False), view

    def after_writes(self, is_untold: Callable[[str], bool], make_up: Callable[[], Awaitable[None]]) -> None:
        """
        What `make_up` tells is to be told before a lock is given to others; `is_untold` says of which
        conversation it still has to.
        """
        for far in self._far.parts:
            far.is_untold, far.make_up = is_untold, make_up

    async def close(self) -> None:
        await self._far.close()
