"""Stores that do what a store elsewhere does: take their time, and fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, Literal, TypeVar

from gateway.errors import StoreUnavailable
from gateway.state.store import Key, Reading, Refusal, Stamp, Store, Suspension, View

Done = TypeVar("Done")
# Whether a failed call was never done, or was done and only its reply lost.
Failure = Literal["not done", "done"]


class LateStore:
    """Each call is one step at the `store`, and takes its time going and coming."""

    def __init__(self, store: Store, rng: Random, longest: float) -> None:
        self._store = store
        self._rng = rng
        self._longest = longest

    async def _travel(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, self._longest))

    async def _there_and_back(self, call: Callable[[], Awaitable[Done]]) -> Done:
        await self._travel()
        done = await call()
        await self._travel()
        return done

    async def _for_certain(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Done also when the caller is cancelled."""

        async def there() -> None:
            await self._travel()
            await call()

        task = asyncio.ensure_future(there())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may be gone
        await asyncio.shield(task)
        await self._travel()

    def now(self) -> float:
        return self._store.now()

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View | None:
        return None

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        return await self._there_and_back(lambda: self._store.view(key, subject))

    async def stamp(self, conversation: str) -> Stamp:
        return await self._there_and_back(lambda: self._store.stamp(conversation))

    async def put(self, key: Key, reading: Reading) -> bool:
        return await self._there_and_back(lambda: self._store.put(key, reading))

    async def suspend(self, conversation: str) -> Suspension:
        return await self._there_and_back(lambda: self._store.suspend(conversation))

    async def reinstate(self, suspension: Suspension) -> None:
        await self._there_and_back(lambda: self._store.reinstate(suspension))

    async def invalidate(self, conversation: str | None) -> None:
        await self._for_certain(lambda: self._store.invalidate(conversation))

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        await self._for_certain(lambda: self._store.accept(subject, value, settle))

    async def pause(self, credential: str, refusal: Refusal, seconds: float) -> None:
        await self._there_and_back(lambda: self._store.pause(credential, refusal, seconds))

    async def close(self) -> None:
        await self._store.close()


class FailingStore:
    """Whatever of the `store` is awaited raises StoreUnavailable when `fails`, given its name, says so."""

    def __init__(self, store: Store, fails: Callable[[str], Failure | None]) -> None:
        self._store = store
        self._fails = fails

    async def _maybe(self, name: str, call: Callable[[], Awaitable[Done]]) -> Done:
        failure = self._fails(name)
        if failure is None:
            return await call()
        if failure == "done":
            await call()
        raise StoreUnavailable(f"{name} failed")

    def now(self) -> float:
        return self._store.now()

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View | None:
        return self._store.try_view(key, subject) if self._fails("try_view") is None else None

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        return await self._maybe("view", lambda: self._store.view(key, subject))

    async def stamp(self, conversation: str) -> Stamp:
        return await self._maybe("stamp", lambda: self._store.stamp(conversation))

    async def put(self, key: Key, reading: Reading) -> bool:
        return await self._maybe("put", lambda: self._store.put(key, reading))

    async def suspend(self, conversation: str) -> Suspension:
        return await self._maybe("suspend", lambda: self._store.suspend(conversation))

    async def reinstate(self, suspension: Suspension) -> None:
        await self._maybe("reinstate", lambda: self._store.reinstate(suspension))

    async def invalidate(self, conversation: str | None) -> None:
        await self._maybe("invalidate", lambda: self._store.invalidate(conversation))

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        await self._maybe("accept", lambda: self._store.accept(subject, value, settle))

    async def pause(self, credential: str, refusal: Refusal, seconds: float) -> None:
        await self._maybe("pause", lambda: self._store.pause(credential, refusal, seconds))

    async def close(self) -> None:
        await self._store.close()
