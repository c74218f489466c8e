"""
The gateway with one guard taken out, by a part of its own that is handed in: what must be found.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from gateway.backend import PARTS, Parts
from gateway.config import Settings
from gateway.errors import ConnectionTerminated, ReadTimeout
from gateway.http.headers import Fields, Headers
from gateway.http.slots import Values
from gateway.rules import FillTarget
from gateway.state.credentials import CredentialFingerprints
from gateway.state.locks import MemoryLock, MemoryLocks
from gateway.state.lookup import Lookups, OpenWrite
from gateway.state.lookup_results import LookupRequest
from gateway.state.memory import MemoryStore
from gateway.state.store import Key, Reading, Stamp, Store, Suspension, View
from gateway.upstream.reply import Reply
from gateway.upstream.transport import BeforeSend, Transport, nobody
from tests.simulation.schedule import PREFIX, Schedule, Terms
from tests.simulation.upstream import SimulatedUpstream
from tests.simulation.world import Clock, World, settings


class NoGenerations(MemoryStore):
    """A write deletes what was read, but not what is being read."""

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View:
        return structs.replace(super().try_view(key, subject), generation=0)

    async def stamp(self, conversation: str) -> Stamp:
        return Stamp(self.now(), 0)

    async def put(self, key: Key, reading: Reading) -> bool:
        self._generations[key.conversation] = 0
        return await super().put(key, reading)

    async def invalidate(self, conversation: str | None) -> None:
        _delete(self, conversation)


class NoLocks(MemoryLocks):
    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> MemoryLock | None:
        return super().try_acquire(None, exclusive=exclusive)

    async def acquire(self, conversation: str | None, *, exclusive: bool, caller: str) -> MemoryLock:
        return await super().acquire(None, exclusive=exclusive, caller=caller)


class NoAccepted(Lookups):
    async def accept(self, conversation: str | None, target: FillTarget, value: str) -> None:
        """An accepted value is not remembered."""


class OwnBody(Lookups):
    """An accepted value is kept as if it had been read."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._own: dict[tuple[str, ...], str] = {}

    async def accept(self, conversation: str | None, target: FillTarget, value: str) -> None:
        await super().accept(conversation, target, value)
        self._own[target.subject] = value

    async def _view(self, request: LookupRequest) -> View:
        target = request.target
        value = self._own.pop(target.subject, None)
        if value is not None:
            person = {"id": target.data["participantId"], target.fill.field: value}
            body = json.dumps({"id": target.data["conversationId"], "participants": [person]}).encode()
            stamp = await self._store.stamp(request.key.conversation)
            await self._store.put(request.key, Reading(body, stamp.time, stamp.generation))
        return await super()._view(request)


class NoCredential(CredentialFingerprints):
    def of(self, headers: Headers, query: bytes = b"", certificate: bytes = b"") -> str:
        return "anybody"


class NoApiKey(CredentialFingerprints):
    """The fields that were thought of, and not all that the look-up carries."""

    def of(self, headers: Headers, query: bytes = b"", certificate: bytes = b"") -> str:
        return super().of([pair for pair in headers if pair[0] == b"authorization"], query, certificate)


class AgeFromTheEnd(Lookups):
    """The age counts from when the GET was answered."""

    async def _read(self, *rest: Any) -> Reading:
        return structs.replace(await super()._read(*rest), started=self.now())


class Trusting(MemoryStore):
    """What is there is current, since a write deletes it: right as long as `put` is one step."""

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View:
        view = super().try_view(key, subject)
        if view.reading is None:
            return view
        current = structs.replace(view.reading, generation=view.generation)
        return structs.replace(view, reading=current)

    async def invalidate(self, conversation: str | None) -> None:
        await super().invalidate(conversation)
        _delete(self, conversation)


class TwoSteps(Trusting):
    async def put(self, key: Key, reading: Reading) -> bool:
        if self._generations.get(key.conversation, math.inf) > reading.generation:
            return False
        await asyncio.sleep(0.01)
        self._readings[key] = reading
        return True


class ReusedGenerations(MemoryStore):
    """Each conversation counts its own generations, and begins anew once it was dropped: ABA."""

    def _next_generation(self, conversation: str) -> int:
        before = self._generations.get(conversation, 0)
        super()._next_generation(conversation)
        self._generations[conversation] = before + 1
        return before + 1


def _delete(store: MemoryStore, conversation: str | None) -> None:
    for key in list(store._readings):
        if conversation in {None, key.conversation}:
            del store._readings[key]


class NoSweeps(Lookups):
    """A write that names no conversation makes nothing forgotten."""

    async def invalidate_after(self, conversation: str | None) -> None:
        if conversation is not None:
            await super().invalidate_after(conversation)


class SweepsBefore(Lookups):
    """A write that names no conversation counts from when it left, and not from its answer."""

    async def begin_write(self, conversation: str | None, credential: str, *, exclusive: bool) -> OpenWrite:
        if conversation is None:
            await super().invalidate_after(None)
        return await super().begin_write(conversation, credential, exclusive=exclusive)

    async def invalidate_after(self, conversation: str | None) -> None:
        if conversation is not None:
            await super().invalidate_after(conversation)


class RefusedFillsKept(Lookups):
    """
    A filled call that was refused leaves what it was filled with: it is the only one over which nothing was
    begun.
    """

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._begun: Counter[str | None] = Counter()

    async def begin_write(self, conversation: str | None, credential: str, *, exclusive: bool) -> OpenWrite:
        begun = await super().begin_write(conversation, credential, exclusive=exclusive)
        self._begun[conversation] += 1
        return begun

    async def changed_nothing(self, write: OpenWrite) -> None:
        self._begun[write.conversation] -= 1
        await super().changed_nothing(write)

    async def invalidate_after(self, conversation: str | None) -> None:
        if self._begun[conversation]:
            self._begun[conversation] -= 1
            await super().invalidate_after(conversation)


class RefusedForgets(Lookups):
    """A call that was refused, and had nothing filled, makes forgotten what it was about."""

    async def changed_nothing(self, write: OpenWrite) -> None:
        await self.invalidate_after(write.conversation)


class NothingRefused(MemoryStore):
    """What a write suspended is given back, whatever came of it."""

    async def suspend(self, conversation: str) -> Suspension:
        generation = (await self.stamp(conversation)).generation
        return Suspension(conversation, generation, generation)

    async def invalidate(self, conversation: str | None) -> None:
        """Every write counts as refused."""


class Careless(Lookups):
    def _miss(
        self, conversation: str | None, subject: tuple[str, ...] | None = None, settle: float = 0.0
    ) -> None:
        """What the store could not be told is forgotten."""


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
        values: Values = (),
        before_send: BeforeSend | None = None,
        caller: Callable[[], str] = nobody,
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


@dataclass(frozen=True, slots=True)
class Misread:
    """Of PATCHes to targets that end so, an unknown outcome is taken for a refusal."""

    transport: SimulatedUpstream
    ending: bytes
    refusal: int

    async def send(self, method: bytes, target: bytes, *rest: Any, **more: Any) -> Reply:
        about = method == b"PATCH" and target.endswith(self.ending)
        try:
            reply = await self.transport.send(method, target, *rest, **more)
        except (ReadTimeout, ConnectionTerminated):
            if not about:
                raise
        else:
            if not about or reply.status < 500:
                return reply
            reply.close()
        return Reply.of(self.refusal, Fields([(b"content-length", b"0")]), b"")

    def close(self) -> None:
        self.transport.close()

    async def wait_closed(self) -> None:
        await self.transport.wait_closed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`promise` is the one that it must be seen to break; `parts` are made anew for each world."""

    promise: str
    parts: Parts | Callable[[], Parts] = PARTS
    store: Callable[[Terms, Clock], Store] | None = None
    transport: Callable[[SimulatedUpstream], Transport] | None = None
    settings: Callable[[Terms, Terms | None], Settings] = settings

    def world(self, schedule: Schedule, second: Schedule | None = None) -> World:
        parts = self.parts if isinstance(self.parts, Parts) else self.parts()
        return World(schedule, parts, self.store, self.transport, self.settings, second)


def _store(kind: type[MemoryStore]) -> Callable[[Terms, Clock], Store]:
    return lambda terms, clock: kind(terms.max_entries, 2**20, clock)


MUTANTS: dict[str, Mutant] = {
    "no generations": Mutant(promise="S3", store=_store(NoGenerations)),
    "no locks": Mutant(promise="S4", parts=Parts(locks=NoLocks)),
    "no last accepted value": Mutant(promise="S5", parts=Parts(lookups=NoAccepted)),
    "filling from the request's own body": Mutant(promise="S5", parts=Parts(lookups=OwnBody)),
    "key without credential": Mutant(promise="S6", parts=Parts(credentials=NoCredential)),
    "key with the usual credential alone": Mutant(promise="S6", parts=Parts(credentials=NoApiKey)),
    "age from the end of the GET": Mutant(promise="S2", parts=Parts(lookups=AgeFromTheEnd)),
    "check and store in two steps": Mutant(promise="S5", store=_store(TwoSteps)),
    "retry after a timeout": Mutant(promise="C2", transport=Retrying),
    "writes that name no conversation do not sweep": Mutant(promise="S3", parts=Parts(lookups=NoSweeps)),
    "writes that name no conversation sweep before they are answered": Mutant(
        promise="S3", parts=Parts(lookups=SweepsBefore)
    ),
    "a refused fill is kept": Mutant(promise="S5", parts=Parts(lookups=RefusedFillsKept)),
    "every write counts as refused": Mutant(promise="S5", store=_store(NothingRefused)),
    "what the store missed is forgotten": Mutant(promise="S5", parts=Parts(lookups=Careless)),
}
# It breaks no promise, but costs look-ups.
WASTEFUL = Mutant(promise="none", parts=Parts(lookups=RefusedForgets))
# Not the gateway's store, but one that is as right, and that the two steps would be taken in.
SOUND = Mutant(promise="none", store=_store(Trusting))


# --- of the variants


ATTRIBUTES = PREFIX + "/web/instances/{conversationId}/participants/{participantId}/attributes"


def _instead(**changes: Any) -> Callable[[Terms, Terms | None], Settings]:
    """The gateway has other settings than it was given."""
    return lambda terms, others: settings(replace(terms, **changes), others)


class OneUpstream(CredentialFingerprints):
    """Whoever calls is the same at each upstream."""

    def __init__(self, upstream: str, *rest: Any, **more: Any) -> None:
        super().__init__("", *rest, **more)

    def of(self, headers: Headers, query: bytes = b"", certificate: bytes = b"") -> str:
        return super().of([pair for pair in headers if pair[0] != b"host"], query, certificate)


def one_cache() -> Parts:
    """What one upstream told is remembered of all."""
    kept: list[MemoryStore] = []

    def memory(*limits: Any) -> Store:
        kept.append(MemoryStore(*limits))
        return kept[0]

    return Parts(memory=memory, credentials=OneUpstream)


def one_table_of_locks() -> Parts:
    kept: list[MemoryLocks] = []

    def locks(timeout: float) -> MemoryLocks:
        kept.append(MemoryLocks(timeout))
        return kept[0]

    return Parts(locks=locks)


# By the variant of the schedules that find them out.
VARIANT_MUTANTS: dict[str, dict[str, Mutant]] = {
    "on_reject": {
        "an unknown outcome is taken for a refusal": Mutant(
            promise="C2", transport=lambda upstream: Misread(upstream, b"", 400)
        ),
    },
    "retarget": {
        "an unknown outcome is taken for no such operation": Mutant(
            promise="C2", transport=lambda upstream: Misread(upstream, b"/attributes", 404)
        ),
        "what goes elsewhere is no write": Mutant(
            promise="S4", settings=lambda terms, others: settings(terms, others, (f"except {ATTRIBUTES}",))
        ),
    },
    "validate": {
        "what does not fit is only recorded": Mutant(promise="checks", settings=_instead(checks=None)),
        "only what the client means is checked": Mutant(promise="checks", settings=_instead(checks="before")),
    },
    "two upstreams": {
        "one cache": Mutant(promise="apart", parts=one_cache),
        "one table of locks": Mutant(promise="apart", parts=one_table_of_locks),
    },
}
UNCHANGED = Mutant(promise="none")
