"""
A schedule run: the real gateway between simulated clients and the simulated upstream, in virtual time.

What comes out is a History: all that the upstream saw, the clients were told and the log recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from gateway import app
from gateway.app import Parts
from gateway.audit.writer import Audit, Batch, Line
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.http.headers import Fields, Header, Headers
from gateway.state.memory import MemoryStore
from gateway.state.store import Store
from gateway.upstream.transport import Transport
from tests.simulation.loop import Loop
from tests.simulation.schedule import ALLOWED, BULK, PREFIX, Change, Climate, Jump, Request, Schedule, Terms
from tests.simulation.upstream import LARGE, Sent, SimulatedUpstream
from tests.support.stores import FailingStore, Failure, LateStore

NOON = 1_800_000_000.0  # Unix seconds
QUIET = 30.0  # seconds that are waited for what the last call left behind
PATIENCE = 60.0  # seconds: no call may take longer, whatever the upstream does

Clock = Callable[[], float]


@dataclass(slots=True)
class Told:
    """A client's call as the client lived it. `joined` is when its whole body had been read."""

    request: Request
    arrived: float
    joined: float | None = None
    left: float | None = None
    ended: float | None = None
    status: int | None = None
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    failure: BaseException | None = None

    @property
    def refusal(self) -> str | None:
        """The slug of the gateway's own refusal."""
        if (b"content-type", b"application/problem+json") not in self.headers:
            return None
        slug: str = json.loads(self.body)["type"]
        return slug.rpartition(":")[2]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of the audit log, and when it was written."""

    time: float
    event: str
    id: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class History:
    schedule: Schedule
    ledger: list[Sent]
    told: dict[str, Told]
    log: list[Recorded]
    counts: Counter[str]
    open_replies: list[Sent]
    locks: int  # that are still held or waited for
    failures: list[BaseException | str]


class Journal(Audit):
    """The audit log in memory, each line with the simulated time."""

    def __init__(
        self, path: str, wall: Callable[[], float], clock: Callable[[], float], log: list[Recorded]
    ) -> None:
        super().__init__(path, wall)
        self._clock = clock
        self._log = log

    def append_best_effort(self, line: Line) -> None:
        self._log.append(Recorded(self._clock(), line.event, line.id, msgspec.to_builtins(line)))

    def append(self, line: Line) -> Batch:
        self.append_best_effort(line)
        return self._due

    def commit(self) -> None:
        self._due.written, self._due = True, Batch([])


@lru_cache(maxsize=4096)
def settings(terms: Terms) -> Settings:
    """Three rules: a state; a state and a second field; and one that fills nothing."""

    def rule(name: str, path: str, *fields: str) -> dict[str, Any]:
        fills = [
            {
                "type": "fill",
                "field": one,
                "from": path,
                "select": f"$.participants[?@.id == _.participantId && $.id == _.conversationId].{one}",
                "allow": ALLOWED[one],
                "max_age": f"{terms.max_age}s",
                "settle": f"{terms.settle}s",
                "learn": terms.learn,
                "guard": "etag" if terms.guarded else "none",
            }
            for one in fields
        ]
        return {
            "name": name,
            "match": {"path": path + "/participants/{participantId}" + ("" if fields else "/attributes")},
            "mode": terms.mode,
            "on_lookup_failure": "forward" if terms.forwards else "reject",
            "writes": [
                PREFIX + "/web/instances/{conversationId}/**",
                PREFIX + "/calls/{conversationId}/**",
                PREFIX + "/{conversationId}/**",
                f"POST {BULK}",
            ],
            "repairs": [{"type": "encoding"}, {"type": "content_type"}, *fills],
        }

    return Settings.model_validate(
        {
            "upstream": {"url": "http://upstream.test"},
            "audit": {"path": "/dev/null"},
            "limits": {
                "max_body": LARGE,
                "lock_timeout": f"{terms.lock_timeout}s",
                "deadline": f"{terms.deadline}s",
            },
            "state_cache": {"max_entries": terms.max_entries},
            "rules": [
                rule("attributes", PREFIX + "/calls/{conversationId}"),
                rule("web", PREFIX + "/web/instances/{conversationId}", "state"),
                rule("calls", PREFIX + "/calls/{conversationId}", "state", "held"),
            ],
        }
    )


def memory_store(terms: Terms, clock: Clock) -> Store:
    return MemoryStore(terms.max_entries, 2**20, clock)


@dataclass(slots=True)
class World:
    """`parts`, `store` and `transport` replace the gateway's own, which is how a mutant is made."""

    schedule: Schedule
    parts: Parts = field(default_factory=Parts)
    store: Callable[[Terms, Clock], Store] | None = None
    transport: Callable[[SimulatedUpstream], Transport] | None = None
    offset: float = 0.0

    def run(self) -> History:
        schedule = self.schedule
        loop = Loop(Random(f"{schedule.seed} order") if schedule.climate.shuffled else None)
        upstream = SimulatedUpstream(schedule, loop, lambda: NOON + loop.time() + self.offset)
        log: list[Recorded] = []
        told: dict[str, Told] = {}
        gateway = app.build(
            settings(schedule.terms),
            transport=self.transport(upstream) if self.transport else upstream,
            store=self._store(schedule.terms, schedule.climate, loop.clock),
            clock=loop.clock,
            wall=lambda: NOON + loop.time() + self.offset,
            parts=replace(self.parts, audit=lambda path, wall, soon: Journal(path, wall, loop.clock, log)),
        )

        async def everything() -> None:
            async with asyncio.TaskGroup() as group:
                for action in schedule.actions:
                    group.create_task(self._act(action, loop, upstream, gateway.app, told))
            await asyncio.sleep(QUIET)
            await gateway.close()

        loop.run(everything())
        return History(
            schedule,
            upstream.ledger,
            told,
            log,
            Counter({" ".join(key): count for key, count in gateway.counts.items()}),
            [sent for sent, reply in upstream.replies if not reply.over],
            len(gateway.locks),
            loop.failures,
        )

    def _store(self, terms: Terms, climate: Climate, clock: Clock) -> Store:
        make = self.store or memory_store
        store: Store = make(terms, clock)
        if climate.store_faults:
            rng = Random(f"{self.schedule.seed} store's faults")

            def fails(name: str) -> Failure | None:
                return rng.choice(("not done", "done")) if rng.random() < climate.store_faults else None

            store = FailingStore(store, fails)
        if climate.store:
            store = LateStore(store, Random(f"{self.schedule.seed} store"), climate.store)
        return store

    async def _act(
        self,
        action: Request | Change | Jump,
        loop: Loop,
        upstream: SimulatedUpstream,
        gateway: ASGIApp,
        told: dict[str, Told],
    ) -> None:
        await asyncio.sleep(action.at)
        match action:
            case Change():
                upstream.set(action.conversation, action.participant, action.field, action.value)
            case Jump():
                self.offset += action.seconds
            case Request():
                client = Client(action, loop)
                told[action.id] = client.told
                await client.call(gateway)


class Client:
    """One call: what protocol.py offers the gateway as the request's scope, receive, send and exchange."""

    def __init__(self, request: Request, loop: Loop) -> None:
        self._loop = loop
        self.told = Told(request, loop.clock())
        self.method = request.method
        self.target = request.target.encode()
        self.version = "1.1"
        self.headers = Fields(self._fields())
        self.address = "192.0.2.1"
        self.task: asyncio.Task[Any] | None = None
        self.upgrade = None
        self.abandon: Callable[[], object] | None = None
        self.disconnected = False
        self._left = asyncio.Event()
        half = len(request.body) // 2 if request.gap else 0
        self._pieces = [request.body[:half], request.body[half:]] if half else [request.body]
        if request.leaves is not None:
            loop.call_later(request.leaves, self._leave)

    async def call(self, gateway: ASGIApp) -> None:
        told = self.told
        try:
            async with asyncio.timeout(PATIENCE):
                self.task = asyncio.current_task()
                await gateway({"type": "http", "extensions": {"gateway": self}}, self.receive, self.send)
        except (OSError, GatewayError, asyncio.CancelledError) as error:
            # What protocol.py expects: of a client that left, and of a reply that broke off (C3).
            told.failure = error
        told.ended = self._loop.clock()

    def _leave(self) -> None:
        if self.told.complete:
            return
        self.disconnected = True
        self.told.left = self._loop.clock()
        self._left.set()
        if self.abandon is not None:
            self.abandon()
        self.abandon = None

    def _fields(self) -> list[Header]:
        request = self.told.request
        headers: list[Header] = [
            (b"host", b"gateway.test"),
            (b"authorization", request.caller.encode()),
            (b"x-request-id", request.id.encode()),
            *request.headers,
        ]
        if request.body:
            headers.append((b"content-length", b"%d" % len(request.body)))
            headers.append((b"content-type", b"application/json"))
        if request.method == "GET":
            headers.append((b"x-client-read", b"1"))
        return headers

    def whole_body(self) -> bytes | None:
        if self.disconnected or len(self._pieces) != 1 or self.told.request.gap:
            return None
        return bytes(self._piece()["body"])

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """Never at once: the simulated client is told by messages alone."""
        return False

    async def receive(self) -> Message:
        if self.disconnected or not self._pieces:
            await self._left.wait()
            return {"type": "http.disconnect"}
        if len(self._pieces) == 1 and self.told.request.gap:
            try:
                async with asyncio.timeout(self.told.request.gap):
                    await self._left.wait()
            except TimeoutError:
                return self._piece()
            return {"type": "http.disconnect"}
        return self._piece()

    def _piece(self) -> Message:
        piece = self._pieces.pop(0)
        if not self._pieces:
            self.told.joined = self._loop.clock()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def send(self, message: Message) -> None:
        if self.disconnected:
            raise OSError("the client has gone")
        told = self.told
        if message["type"] == "http.response.start":
            told.status, told.headers = message["status"], list(message["headers"])
            return
        told.body += message["body"]
        told.complete = not message["more_body"]


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
