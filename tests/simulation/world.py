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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any

import msgspec

from gateway import app
from gateway.audit.writer import AuditLog, Batch, Line
from gateway.backend import Parts
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.http.headers import Fields, Header, Headers
from gateway.proxy.dispatch import Dispatcher
from gateway.proxy.lifecycle import Lifecycle
from gateway.proxy.tunnel import ByteStream
from gateway.server.write_flow import may_hold_one
from gateway.state.store import Store
from gateway.upstream.transport import Transport
from tests.simulation.loop import Loop
from tests.simulation.schedule import (
    ALLOWED,
    BULK,
    PREFIX,
    UNFIT,
    Change,
    Climate,
    Jump,
    Request,
    Schedule,
    Terms,
    authorising,
)
from tests.simulation.upstream import LARGE, Sent, SimulatedUpstream
from tests.support.stores import FailingStore, Failure, LateStore

NOON = 1_800_000_000.0  # Unix seconds
QUIET = 30.0  # seconds that are waited for what the last call left behind
SECOND = "second"  # the upstream beside the first
BESIDE = "{path}/attributes"  # where a body with nothing but attributes goes
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


class Journal(AuditLog):
    """The audit log in memory, each line with the simulated time."""

    def __init__(
        self, path: str, wall: Callable[[], float], clock: Callable[[], float], log: list[Recorded]
    ) -> None:
        super().__init__(path, wall)
        self._clock = clock
        self._log = log
        self._actions: dict[str, str] = {}  # by the gateway's own ids

    def append_best_effort(self, line: Line) -> None:
        record = msgspec.to_builtins(line)
        action = self._actions.setdefault(line.id, record.get("request_id", line.id))
        self._log.append(Recorded(self._clock(), line.event, action, record))

    def append(self, line: Line) -> Batch:
        self.append_best_effort(line)
        return self._batch

    def digest(self, body: bytes) -> str:
        return digest(body)

    def commit(self) -> None:
        self._batch = Batch([])


ENDS = {"type": ["string", "null"], "pattern": f"[^{''.join(sorted(UNFIT))}]$"}
BODY = {"properties": {"state": ENDS, "held": ENDS}}


def rules(terms: Terms, more_writes: tuple[str, ...], upstream: str | None = None) -> list[dict[str, Any]]:
    """Three: a state; a state and a second field; and one that fills nothing."""

    def rule(name: str, path: str, *fields: str) -> dict[str, Any]:
        more: list[dict[str, Any]] = []
        if terms.checks and fields:
            more += [{"type": "validate", "schema": BODY, "when": terms.checks, "on_violation": "reject"}]
        if terms.retarget and fields:
            more += [{"type": "retarget", "to": BESIDE, "or": terms.retarget, "absent_for": "1s"}]
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
            "name": name if upstream is None else f"{upstream}-{name}",
            "upstream": upstream,
            "match": {"path": path + "/participants/{participantId}" + ("" if fields else "/attributes")},
            "mode": terms.mode,
            "on_lookup_failure": "forward" if terms.forwards else "reject",
            "writes": [
                PREFIX + "/web/instances/{conversationId}/**",
                PREFIX + "/calls/{conversationId}/**",
                PREFIX + "/{conversationId}/**",
                f"POST {BULK}",
                *more_writes,
            ],
            "repairs": [{"type": "encoding"}, {"type": "content_type"}, *more, *fills],
        }

    return [
        rule("attributes", PREFIX + "/calls/{conversationId}"),
        rule("web", PREFIX + "/web/instances/{conversationId}", "state"),
        rule("calls", PREFIX + "/calls/{conversationId}", "state", "held"),
    ]


@lru_cache(maxsize=4096)
def settings(terms: Terms, others: Terms | None = None, more_writes: tuple[str, ...] = ()) -> Settings:
    """`others`: of the rules for a second upstream, which is reached below a path of its own."""
    second = {"name": SECOND, "url": f"http://{SECOND}.test", "path_prefix": f"/{SECOND}"}
    return Settings.model_validate(
        {
            "upstream": {"url": "http://upstream.test"},
            "upstreams": [] if others is None else [second],
            "audit": {"path": "/dev/null"},
            "limits": {
                "max_body": LARGE,
                "lock_timeout": f"{terms.lock_timeout}s",
                "deadline": f"{terms.deadline}s",
            },
            "state_cache": {"max_entries": terms.max_entries},
            # By which the simulated upstream tells a client's own GET from a look-up.
            "credentials": {"ignore": ["X-Client-Read"]},
            "rules": [
                *rules(terms, more_writes),
                *(rules(others, more_writes, SECOND) if others is not None else ()),
            ],
        }
    )


@dataclass(slots=True)
class Side:
    """An upstream, what goes there, and what its clients lived through."""

    schedule: Schedule
    upstream: SimulatedUpstream
    told: dict[str, Told] = field(default_factory=dict)


@dataclass(slots=True)
class World:
    """
    `parts`, `store`, `transport` and `settings` replace the gateway's own, which is how a mutant is made.
    `second`: what goes to another upstream of the same gateway, under its own rules, at the same time.
    """

    schedule: Schedule
    parts: Parts = field(default_factory=Parts)
    store: Callable[[Terms, Clock], Store] | None = None
    transport: Callable[[SimulatedUpstream], Transport] | None = None
    settings: Callable[[Terms, Terms | None], Settings] = settings
    second: Schedule | None = None
    offset: float = 0.0

    def run(self) -> History:
        return self.histories()[0]

    def histories(self) -> list[History]:
        """Of each upstream, as if there were no other."""
        first, second = self.schedule, self.second
        loop = Loop(Random(f"{first.seed} order") if first.climate.shuffled else None)
        sides = [
            Side(schedule, SimulatedUpstream(schedule, loop, lambda: NOON + loop.time() + self.offset))
            for schedule in (first, second)
            if schedule is not None
        ]
        carriers = [self.transport(one.upstream) if self.transport else one.upstream for one in sides]
        log: list[Recorded] = []
        gateway = app.build(
            self.settings(first.terms, None if second is None else second.terms),
            transport=carriers[0],
            transports=dict(zip([SECOND], carriers[1:], strict=False)),
            store=self._store(first.terms, first.climate, loop.clock),
            clock=loop.clock,
            wall=lambda: NOON + loop.time() + self.offset,
            parts=replace(
                self.parts, audit=lambda path, wall, *_, **__: Journal(path, wall, loop.clock, log)
            ),
        )

        served = gateway.app
        assert isinstance(served, Lifecycle | Dispatcher)

        async def everything() -> None:
            async with asyncio.TaskGroup() as group:
                for side in sides:
                    below = "" if side is sides[0] else f"/{SECOND}"
                    for action in side.schedule.actions:
                        group.create_task(self._act(action, loop, side, served, below))
            await asyncio.sleep(QUIET)
            await gateway.close()

        loop.run(everything())
        locks = [one.locks for one in gateway.backends]
        return [
            History(
                side.schedule,
                side.upstream.ledger,
                side.told,
                [line for line in log if line.id in side.told],
                Counter({" ".join(key): count for key, count in gateway.counts.items()}),
                [sent for sent, reply in side.upstream.replies if not reply.over],
                len(held),
                loop.failures,
            )
            for side, held in zip(sides, locks, strict=True)
        ]

    def _store(self, terms: Terms, climate: Climate, clock: Clock) -> Store:
        store = (
            self.parts.memory(terms.max_entries, 2**20, clock)
            if self.store is None
            else self.store(terms, clock)
        )
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
        side: Side,
        gateway: Lifecycle | Dispatcher,
        below: str,
    ) -> None:
        await asyncio.sleep(action.at)
        match action:
            case Change():
                side.upstream.set(action.conversation, action.participant, action.field, action.value)
            case Jump():
                self.offset += action.seconds
            case Request():
                client = Client(action, loop, below)
                side.told[action.id] = client.told
                await client.call(gateway)


class Client:
    """One call: a gateway.proxy.client.ClientRequest, and what the client lived through."""

    def __init__(self, request: Request, loop: Loop, below: str = "") -> None:
        self._loop = loop
        self.told = Told(request, loop.clock())
        self.method = request.method
        self.target = (below + request.target).encode()
        self.version = "1.1"
        self.headers = Fields(self._fields())
        self.values: tuple[bytes, ...] = ()
        self.address = "192.0.2.1"
        self.certificate = b""
        self.upgrade: bytes | None = None
        self.body = SimulatedBody(self.told, loop)
        self.cancel_on_disconnect = False
        self.holds_connection: Callable[[], bool] = may_hold_one
        self.trace_id = ""
        self.gone = False
        self.task: asyncio.Task[Any] | None = None
        if request.leaves is not None:
            loop.call_later(request.leaves, self._leave)

    async def call(self, gateway: Lifecycle | Dispatcher) -> None:
        told = self.told
        try:
            async with asyncio.timeout(PATIENCE):
                self.task = asyncio.current_task()
                await gateway.serve(self)
        except (OSError, GatewayError, asyncio.CancelledError) as error:
            # What the server expects: of a client that left, and of a reply that broke off (C3).
            told.failure = error
        told.ended = self._loop.clock()

    def _leave(self) -> None:
        if self.told.complete:
            return
        self.gone = True
        self.told.left = self._loop.clock()
        self.body.broken.set()
        if self.cancel_on_disconnect and self.task is not None:
            self.task.cancel()

    def _fields(self) -> list[Header]:
        request = self.told.request
        headers: list[Header] = [
            (b"host", b"gateway.test"),
            *authorising(request.caller),
            (b"x-request-id", request.id.encode()),
            *request.headers,
        ]
        if request.body:
            headers.append((b"content-length", b"%d" % len(request.body)))
            headers.append((b"content-type", b"application/json"))
        if request.method == "GET":
            headers.append((b"x-client-read", b"1"))
        return headers

    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool:
        """Never in one step: the simulated client is told piece by piece."""
        return False

    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None:
        self._check()
        self.told.status, self.told.headers = status, [*headers, *extra_headers]

    async def write(self, piece: bytes, more: bool) -> None:
        self._check()
        self.told.body += piece
        self.told.complete = not more

    def switch(self, headers: Headers) -> ByteStream:
        raise AssertionError("no upgrade was offered")

    def _check(self) -> None:
        if self.gone:
            raise OSError("the client has gone")


class SimulatedBody:
    """A call's body: whole at once, or in two halves with a gap between them."""

    def __init__(self, told: Told, loop: Loop) -> None:
        self._told = told
        self._loop = loop
        self._gap = told.request.gap
        body = told.request.body
        half = len(body) // 2 if self._gap else 0
        self._pieces = [body[:half], body[half:]] if half else [body]
        self.broken = asyncio.Event()  # the client has left

    @property
    def ended(self) -> bool:
        return not self._pieces

    def whole(self) -> bytes | None:
        if self.broken.is_set() or len(self._pieces) != 1 or self._gap:
            return None
        return self._piece()

    async def read(self) -> bytes:
        if self._gap and len(self._pieces) == 1:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._gap):
                    await self.broken.wait()
        if self.broken.is_set():
            raise OSError("the client has gone")
        return self._piece()

    def _piece(self) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if not self._pieces:
            self._told.joined = self._loop.clock()
        return piece


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
