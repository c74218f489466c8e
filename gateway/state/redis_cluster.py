"""
The shared state on a Redis Cluster: the conversations in a fixed number of parts, each as on its own server.

The keys of a part have one hash tag, so each step is about one slot, at the node that has it. Each part has
its generations, its leases and its server's clock; so what is about all conversations is told to each part,
and times are of this process's clock here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from gateway.state.redis import RedisStore
from gateway.state.redis_locks import RedisLock, RedisLocks
from gateway.state.redis_primary import SLOTS, slot_of
from gateway.state.redis_server import RedisServer
from gateway.state.sealed import Sealed
from gateway.state.store import Key, Reading, Refusal, Stamp, Suspension, View

PARTS = 16  # the same for all who share a state


class Part(NamedTuple):
    server: RedisServer
    store: RedisStore
    locks: RedisLocks


def roots(root: str) -> list[str]:
    """What begins the keys of each part. Nodes that have as many slots as others have as many parts."""
    space, _, name = root.partition(":")
    width = SLOTS // PARTS
    found = []
    for part in range(PARTS):
        tagged = (f"{space}:{{{name}.{number}}}" for number in count())
        found.append(next(one for one in tagged if slot_of(one) // width == part))
    return found


class ClusterServer:
    """The parts' servers, as one that is there while all of them are."""

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        self.address = servers[0].address
        self.on_swept: list[Callable[[], None]] = []
        self.on_turn: Callable[[str | None], None] = lambda problem: None
        self._servers = servers
        self._failing: dict[int, str] = {}
        for number, server in enumerate(servers):
            server.on_turn = partial(self._turned, number)
            server.on_swept.append(partial(_call, self.on_swept))

    @property
    def problem(self) -> str | None:
        if self._failing:
            return f"{len(self._failing)} of {len(self._servers)} parts: {next(iter(self._failing.values()))}"
        problems = [server.problem for server in self._servers]
        return None if None in problems else problems[0]

    def _turned(self, number: int, problem: str | None) -> None:
        before = bool(self._failing)
        if problem is None:
            self._failing.pop(number, None)
        else:
            self._failing[number] = problem
        if before != bool(self._failing):
            self.on_turn(self.problem)

    def settles(self, seconds: float) -> None:
        for server in self._servers:
            server.settles(seconds)

    async def connected(self) -> None:
        """Raises StoreUnavailable."""
        await asyncio.gather(*(server.connected() for server in self._servers))


def _call(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


class ClusterStore:
    def __init__(self, parts: Sequence[Part], sealed: Sealed) -> None:
        self.now = parts[0].server.clock.local
        self._parts = parts
        self._sealed = sealed
        # How often all conversations were to be forgotten; and by part the time that it was not told of.
        self._sweeps = 0
        self._owed: dict[int, int] = {}
        self._telling: dict[int, asyncio.Task[None]] = {}
        for number, part in enumerate(parts):
            part.server.on_connected.append(partial(self._back, number))

    def number(self, conversation: str) -> int:
        return int(self._sealed.name("part", conversation), 16) % len(self._parts)

    def _part(self, conversation: str) -> RedisStore:
        return self._parts[self.number(conversation)].store

    # --- what is about one conversation

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View | None:
        return None

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        await self.swept(key.conversation)
        return await self._part(key.conversation).view(key, subject)

    async def stamp(self, conversation: str) -> Stamp:
        await self.swept(conversation)
        return await self._part(conversation).stamp(conversation)

    async def put(self, key: Key, reading: Reading) -> bool:
        return await self._part(key.conversation).put(key, reading)

    async def suspend(self, conversation: str) -> Suspension:
        return await self._part(conversation).suspend(conversation)

    async def reinstate(self, suspension: Suspension) -> None:
        await self._part(suspension.conversation).reinstate(suspension)

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        await self._part(subject[1]).accept(subject, value, settle)

    # --- what is about all

    async def invalidate(self, conversation: str | None) -> None:
        """
        A part that can't be told that all is to be forgotten is told before it is asked anything more from
        here: as it would be if it were the whole store.
        """
        if conversation is not None:
            await self._part(conversation).invalidate(conversation)
            return
        self._sweeps += 1
        self._owed = dict.fromkeys(range(len(self._parts)), self._sweeps)
        await asyncio.wait([self._told(number) for number in self._owed])

    async def swept(self, conversation: str) -> None:
        """Nothing that was to be forgotten is there any more. Raises StoreUnavailable."""
        if self._owed:
            number = self.number(conversation)
            if number in self._owed:
                await asyncio.shield(self._told(number))

    def _back(self, number: int) -> None:
        """A part's server is there again."""
        if number in self._owed:
            self._told(number)

    def _told(self, number: int) -> asyncio.Task[None]:
        task = self._telling.get(number)
        if task is None or task.done():
            task = self._telling[number] = asyncio.get_running_loop().create_task(self._tell(number))
            task.add_done_callback(_heard)
        return task

    async def _tell(self, number: int) -> None:
        while (sweep := self._owed.get(number)) is not None:
            await self._parts[number].store.invalidate(None)
            if self._owed.get(number) == sweep:
                del self._owed[number]

    async def pause(self, credential: str, refusal: Refusal, seconds: float) -> None:
        told = (part.store.pause(credential, refusal, seconds) for part in self._parts)
        for error in await asyncio.gather(*told, return_exceptions=True):
            if error is not None:
                raise error

    async def close(self) -> None:
        telling = list(self._telling.values())
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)
        await asyncio.gather(*(part.store.close() for part in self._parts))


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # each who waits raises it


class ClusterLocks:
    def __init__(self, parts: Sequence[Part], store: ClusterStore) -> None:
        self.parts = [part.locks for part in parts]
        self._store = store

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _part(self, conversation: str | None) -> RedisLocks:
        return self.parts[0 if conversation is None else self._store.number(conversation)]

    def exclusive_pending(self, conversation: str | None) -> bool:
        return self._part(conversation).exclusive_pending(conversation)

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> RedisLock | None:
        return self._part(conversation).try_acquire(conversation, exclusive=exclusive)

    async def acquire(
        self, conversation: str | None, *, exclusive: bool, caller: str, waited: float = 0.0
    ) -> RedisLock:
        part = self._part(conversation)
        return await part.acquire(conversation, exclusive=exclusive, caller=caller, waited=waited)

    async def enter(self, key: Key, subject: tuple[str, ...]) -> tuple[RedisLock, View] | None:
        await self._store.swept(key.conversation)
        return await self._part(key.conversation).enter(key, subject)

    async def close(self) -> None:
        await asyncio.gather(*(locks.close() for locks in self.parts))
