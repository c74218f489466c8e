"""
The gateway with one guard taken out, by a part of its own that is handed in: what must be found.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from gateway.app import PARTS, Parts
from gateway.errors import ReadTimeout
from gateway.http.headers import Headers
from gateway.state.credentials import CredentialFingerprints
from gateway.state.locks import ConversationLock, ConversationLocks
from gateway.state.lookup import LookupRequest, Lookups
from gateway.state.memory import MemoryStore
from gateway.state.store import Key, Reading, Store
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, Transport
from tests.simulation.schedule import Schedule, Terms
from tests.simulation.upstream import SimulatedUpstream
from tests.simulation.world import World


class NoGenerations(MemoryStore):
    """A write deletes what was read, but not what is being read."""

    async def generation(self, conversation: str) -> int:
        return 0

    async def keep(self, key: Key, reading: Reading) -> bool:
        self._generations[key.conversation] = 0
        return await super().keep(key, reading)

    async def invalidate(self, conversation: str | None) -> None:
        _delete(self, conversation)


class NoOrder(ConversationLocks):
    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> ConversationLock | None:
        return super().try_acquire(None, exclusive=exclusive)

    async def acquire(self, conversation: str | None, *, exclusive: bool) -> ConversationLock:
        return await super().acquire(None, exclusive=exclusive)


class NoWitness(Lookups):
    def witness(self, ask: LookupRequest, value: str) -> None:
        """An accepted value is not remembered."""


class OwnBody(Lookups):
    """An accepted value is written into the cache as if it had been read."""

    _accepted: tuple[LookupRequest, str] | None = None

    def witness(self, ask: LookupRequest, value: str) -> None:
        super().witness(ask, value)
        self._accepted = (ask, value)

    async def invalidate(self, conversation: str | None) -> None:
        await super().invalidate(conversation)
        if self._accepted is not None:
            (ask, value), self._accepted = self._accepted, None
            fill, data = ask.target.fill, ask.target.data
            person = {"id": data["participantId"], fill.field: value}
            body = json.dumps({"id": data["conversationId"], "participants": [person]}).encode()
            generation = await self._store.generation(ask.key.conversation)
            await self._store.keep(ask.key, Reading(body, self._clock(), generation))


class NoCredential(CredentialFingerprints):
    def of(self, headers: Headers) -> str:
        return "anybody"


class AgeFromTheEnd(Lookups):
    """The age counts from when the GET was answered."""

    async def _get(self, key: Key, *rest: Any) -> Reading:
        reading = replace(await super()._get(key, *rest), started=self._clock())
        await self._store.keep(key, reading)
        return reading


class Trusting(MemoryStore):
    """What is there is current, since a write deletes it: right as long as `keep` is one step."""

    def try_get(self, key: Key) -> Reading | None:
        return None

    async def get(self, key: Key) -> Reading | None:
        reading = await super().get(key)
        return reading and replace(reading, generation=await self.generation(key.conversation))

    async def invalidate(self, conversation: str | None) -> None:
        await super().invalidate(conversation)
        _delete(self, conversation)


class TwoSteps(Trusting):
    async def keep(self, key: Key, reading: Reading) -> bool:
        if self._generations.get(key.conversation) != reading.generation:
            return False
        await asyncio.sleep(0.01)
        self._readings[key] = reading
        return True


def _delete(store: MemoryStore, conversation: str | None) -> None:
    for key in list(store._readings):
        if conversation in {None, key.conversation}:
            del store._readings[key]


@dataclass(frozen=True, slots=True)
class Retrying:
    """A call that was not answered in time is sent once more."""

    transport: SimulatedUpstream

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        extra_headers: Headers = (),
        upgrade: bool = False,
        before_send: BeforeSend | None = None,
    ) -> Reply:
        try:
            return await self.transport.send(
                method, target, headers, body, extra_headers=extra_headers, before_send=before_send
            )
        except ReadTimeout:
            if isinstance(body, AsyncIterator):
                raise
            return await self.transport.send(method, target, headers, body, extra_headers=extra_headers)

    def close(self) -> None:
        self.transport.close()

    async def wait_closed(self) -> None:
        await self.transport.wait_closed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`promise` is the one that it must be seen to break."""

    promise: str
    parts: Parts = PARTS
    store: Callable[[Terms], Store] | None = None
    transport: Callable[[SimulatedUpstream], Transport] | None = None

    def world(self, schedule: Schedule) -> World:
        return World(schedule, self.parts, self.store, self.transport)


def _store(kind: type[MemoryStore]) -> Callable[[Terms], Store]:
    return lambda terms: kind(terms.max_entries, 2**20)


MUTANTS: dict[str, Mutant] = {
    "no generations": Mutant(promise="S3", store=_store(NoGenerations)),
    "no order": Mutant(promise="S4", parts=Parts(locks=NoOrder)),
    "no witness after a write": Mutant(promise="S5", parts=Parts(lookups=NoWitness)),
    "filling from the request's own body": Mutant(promise="S5", parts=Parts(lookups=OwnBody)),
    "key without credential": Mutant(promise="S6", parts=Parts(credentials=NoCredential)),
    "age from the end of the GET": Mutant(promise="S2", parts=Parts(lookups=AgeFromTheEnd)),
    "check and store in two steps": Mutant(promise="S5", store=_store(TwoSteps)),
    "retry after a timeout": Mutant(promise="C2", transport=Retrying),
}
# Not the gateway's store, but one that is as right, and that the two steps would be taken in.
SOUND = Mutant(promise="none", store=_store(Trusting))
