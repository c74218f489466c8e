"""
The smallest cases of several gateways on one Redis, walked whole: every order in which their messages arrive.

A message is on its way from when it is sent until it is its turn to arrive: at Redis, at the upstream, at a
gateway; and a client's call until it comes. Which is next is a choice (interleavings.py). Those of one
connection keep their order. Whoever gets one does all that it can do before the next arrives, first come,
first served: what the order within a process may do is for the random schedules (cluster.py). Time stands
still while anything is on its way, but for a moment with each arrival; then the next timer goes off.

A fault is one more thing on its way, from the beginning: it comes before or after each of the others. A
stopped process goes on only once time went by: till then nobody can tell that from messages that take longer.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import math
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Literal

from gateway import app
from gateway.backend import Parts
from gateway.proxy.lifecycle import Lifecycle
from gateway.state.redis_connection import Word
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_server import RedisServer
from gateway.state.shared import shared_state
from tests.simulation.cluster import (
    NODE,
    Cluster,
    ClusterEvidence,
    ClusterLoop,
    Killed,
    Makes,
    Plan,
    broken,
    lenient,
)
from tests.simulation.interleavings import WHOLE, Course, Interleavings, Redundant, Step
from tests.simulation.plays import PEOPLE, explicit, legacy
from tests.simulation.promises import Violation
from tests.simulation.redis_model import RedisModel
from tests.simulation.redis_network import (
    NOON,
    Pipe,
    SimulatedConnection,
    SimulatedRedis,
    _bytes,
    outside,
)
from tests.simulation.schedule import Climate, Fate, Request, Schedule, Terms
from tests.simulation.story import story
from tests.simulation.upstream import Sent, SimulatedUpstream
from tests.simulation.watched import watch
from tests.simulation.world import Client, History, Recorded, Told

CALL: contextvars.ContextVar[str] = contextvars.ContextVar("call")
MOMENT = 1e-5  # seconds from one arrival to the next
TIMER, LATER = "the next timer", "a time that is longer than any lease"
FAULT, RESUMED = "fault", "resumed"
PROMPT = ("redis", "upstream")  # what is on its way there or back; a call, say, may as well come later

Fault = Literal["kill", "lose a reply", "restart", "restart, older", "flush", "pause"]
LONG = 20.0  # seconds: longer than any lease here


@dataclass(frozen=True, slots=True)
class Message:
    """`cause`: the step in which it was sent. `context`: of the process where it arrives."""

    cause: int | None
    arrive: Callable[[], Any]
    context: contextvars.Context


class WalkedLoop(ClusterLoop):
    """First come, first served; what is on its way arrives once nobody has anything left to do."""

    def __init__(self, course: Course) -> None:
        super().__init__(None)
        self._course = course
        self.walking = False
        self._noting = True  # what steps touch: of those that are repeated it is known
        self.watched: set[int] = set()  # nodes that are more than one thing
        self._under_way: dict[str, deque[Message]] = {}
        self.settled: Callable[[], None] = lambda: None  # told before each choice
        self.rests: Callable[[], list[str]] = list  # what may come when nothing is on its way
        self.rested = 0  # times
        self.went_on = False  # by a long time
        self.timed = False  # whether a timer went off, and then nothing came but from Redis
        self.over: asyncio.Future[None] = self.create_future()

    def post(self, channel: str, arrive: Callable[[], Any], context: contextvars.Context) -> None:
        if not self.walking:
            self.call_soon(arrive, context=context)
            return
        self.touch(f"channel {channel}")
        self._under_way.setdefault(channel, deque()).append(Message(self._course.number, arrive, context))

    def drop(self, beginning: str) -> None:
        for channel in [one for one in self._under_way if one.startswith(beginning)]:
            self.touch(f"channel {channel}")
            self.touch(f"what came by {channel}")
            del self._under_way[channel]

    def is_under_way(self, channel: str) -> bool:
        return bool(self._under_way.get(channel))

    def touch(self, thing: str, part: str = WHOLE, *, write: bool = True) -> None:
        step = self.noted_step
        if step is not None:
            step.footprint.touch(thing, part, write=write)

    def touch_all(self) -> None:
        step = self.noted_step
        if step is not None:
            step.footprint.everything = True

    @property
    def noted_step(self) -> Step | None:
        return self._course.step if self.walking and self._noting else None

    def _run_once(self) -> None:
        if self._ready or not self.walking:
            if self.walking:
                self._seen(self._ready[0])
            super()._run_once()
            return
        self.settled()
        due = [(channel, waiting[0].cause) for channel, waiting in self._under_way.items() if waiting]
        due.sort(key=lambda one: self._patience(one[0]))
        can_wait = not due or self._patience(due[0][0]) > 0
        rests = self.rests() if can_wait else []
        due += [(channel, None) for channel in rests]
        if not due:
            self._end(None)
            return
        try:
            waiting = {channel for channel, _ in due if self._patience(channel)}
            chosen = self._course.choose(due, rests, waiting)
        except Redundant as cut:
            self._end(cut)
            return
        self._noting = self._course.is_new
        if chosen in rests:
            self.touch_all()
            self._rest(chosen)
            return
        self._now += MOMENT
        self.timed = self.timed and chosen.startswith("redis")
        message = self._under_way[chosen].popleft()
        self.touch(f"what came by {chosen}", write=False)
        self.call_soon(message.arrive, context=message.context)

    def _patience(self, channel: str) -> int:
        """What can wait comes after the rest, a call before a fault."""
        return 0 if channel.startswith(PROMPT) else 2 if channel == FAULT else 1

    def _end(self, cut: Redundant | None) -> None:
        self.walking = False
        if cut is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(cut)

    def _rest(self, which: str) -> None:
        self.rested += 1
        if which == TIMER:
            self.timed = True
            super()._wake()
            return
        # All that comes meanwhile comes at once.
        self.walking, self.went_on = False, True
        outside(self.call_later, LONG, self._go_on)

    def _go_on(self) -> None:
        self.walking = True

    def _wake(self) -> None:
        """While it walks no timer goes off but at a rest, though each arrival takes a moment."""
        if not self.walking:
            super()._wake()

    def _seen(self, handle: asyncio.Handle) -> None:
        """
        Whose turn it is touches what is that call's alone; or all of a process that is one thing, unless all
        that comes of it is seen by who waits for it.
        """
        node: int | None = handle._context.get(NODE)  # type: ignore[attr-defined]
        if node is None or node in self.dead or not self._noting:
            return
        if self.is_stopped(node):
            self.touch_part(node, "queue")
            return
        callback: Any = handle._callback  # type: ignore[attr-defined]
        task = getattr(callback, "__self__", None)
        if node not in self.watched:
            if _name(callback) not in SILENT:
                self.touch(f"node {node}")
        elif isinstance(task, asyncio.Task):
            coroutine: Any = task.get_coro()
            whose = handle._context.get(CALL, coroutine.__qualname__)  # type: ignore[attr-defined]
            self.touch_part(node, f"of {whose}")

    def touch_part(self, node: int, thing: str, part: str = WHOLE, write: bool = True) -> None:
        if not self._noting:
            return
        self.touch(f"node {node}: {thing}", part, write=write)
        self.touch(f"node {node}", "a part", write=False)


SILENT = {"replied", "RedisLocks.give_up.<locals>.told"}


def _name(callback: Any) -> str:
    return str(
        callback.func.__name__ if isinstance(callback, partial) else getattr(callback, "__qualname__", "")
    )


class WalkedPipe(Pipe):
    def __init__(self, loop: WalkedLoop, channel: str, context: contextvars.Context) -> None:
        super().__init__(loop, context)
        self._walked = loop
        self._channel = channel

    def send(self, when: float, call: Callable[..., Any], *what: Any) -> None:
        self._walked.post(self._channel, partial(call, *what), self.context)


# Of the commands that scripts call: whether it writes, and which of its words name parts of the key.
PARTS: dict[bytes, tuple[bool, Callable[[Sequence[Any]], Sequence[Any]]]] = {
    b"HGET": (False, lambda words: words),
    b"HMGET": (False, lambda words: words),
    b"HEXISTS": (False, lambda words: words),
    b"HGETALL": (False, lambda words: [WHOLE]),
    b"EXISTS": (False, lambda words: [WHOLE]),
    b"HSET": (True, lambda words: words[::2]),
    b"HDEL": (True, lambda words: words),
    b"DEL": (True, lambda words: [WHOLE]),
    b"SET": (True, lambda words: [WHOLE]),
}
# How long a key is kept is no matter in so short a time, and no table is so full that it drops any. Who has
# not subscribed waits for nothing, or its connection was lost: that may as well have been on its way then.
UNTOUCHED = frozenset({b"TIME", b"PEXPIRE", b"ZADD", b"ZCARD", b"PUBLISH"})


class WalkedConnection(SimulatedConnection):
    def ask(self, *words: Word) -> asyncio.Future[Any]:
        """That a script is loaded is no matter to anybody: no message of its own."""
        if words[0] != "SCRIPT" or self.problem is not None:
            return super().ask(*words)
        reply = asyncio.get_running_loop().create_future()
        reply.set_result(self._server._done(self, [_bytes(word) for word in words]))
        return reply

    def end(self, problem: str) -> None:
        if self.problem is None:
            loop: Any = self._loop
            loop.touch(f"node {self.node}")
        super().end(problem)


class WalkedModel(RedisModel):
    loop: WalkedLoop

    def _call(self, name: bytes, *given: Any) -> Any:
        if self.loop.noted_step is None:
            pass
        elif name in PARTS:
            writes, parts = PARTS[name]
            for part in parts(given[1:]):
                self.loop.touch(f"key {given[0]!r}", part if part == WHOLE else repr(part), write=writes)
            self.loop.touch("redis", "a key", write=False)
        elif name not in UNTOUCHED:
            self.loop.touch_all()
        return super()._call(name, *given)


class WalkedRedis(SimulatedRedis):
    loop: WalkedLoop
    connection = WalkedConnection

    def __init__(self, loop: WalkedLoop) -> None:
        super().__init__(loop, Random(0), 0.0)
        self.model = WalkedModel(self._micros, self._publish)
        self.model.loop = loop
        self._pipes: Counter[tuple[object, str]] = Counter()

    def pipe(self, node: object, way: str, context: contextvars.Context) -> Pipe:
        self._pipes[node, way] += 1
        return WalkedPipe(self.loop, f"redis, {way}, node {node}, {self._pipes[node, way]}", context)

    def _delay(self) -> float:
        return 0.0

    def begin_anew(self, data: Any) -> None:
        """Another process, at once, with this data; what is on its way to the old one is lost."""
        self.loop.touch("redis")
        self._run += 1
        self.model.restore(data)
        lost, self._connections = self._connections, {}
        for connection in lost:
            self._return(connection, connection.end, "the connection to it was lost")

    def lose_replies(self, node: int) -> None:
        """Those on their way to the node never come, nor any other on its connection."""
        for connection in self._connections:
            if connection.node == node and connection.problem is None:
                self.loop.drop(f"redis, back, node {node}, {self._pipes[node, 'back']}")
                self.loop.call_soon(
                    connection.end, "the connection to it was lost", context=connection.back.context
                )


class ToTheUpstream:
    """The loop, as the upstream has it: its timers are messages, each exchange on a connection of its own."""

    def __init__(self, loop: WalkedLoop, homes: dict[str, int], truth: Callable[[], object]) -> None:
        self._loop = loop
        self._homes = homes
        self._truth = truth
        self._asked: Sent | None = None  # what arrived last
        self.kept: dict[int, float] = {}  # since when an answer was there for a process that was stopped
        self.clock, self.time, self.create_future = loop.clock, loop.time, loop.create_future

    def call_later(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
        """A request there, with what was sent; or then its reply back, with nothing."""
        sent = next((one for one in arguments if isinstance(one, Sent)), None)
        if sent is not None:
            self._post("there", sent, self._there, partial(call, *arguments))
        else:
            assert self._asked is not None
            self._post("back", self._asked, self._back, partial(call, *arguments))

    def _post(self, way: str, sent: Sent, arrives: Callable[..., None], call: Callable[[], None]) -> None:
        self._loop.post(f"upstream, {way}, {sent.id}", partial(arrives, sent, call), contextvars.Context())

    def _there(self, sent: Sent, call: Callable[[], None]) -> None:
        self._asked, before = sent, self._truth()
        call()
        self._loop.touch("truth", write=self._truth() != before)
        if self._homes[sent.id] in self._loop.dead:
            sent.ended = self._loop.clock()

    def _back(self, sent: Sent, call: Callable[[], None]) -> None:
        if self._loop.is_stopped(self._homes[sent.id]):
            self.kept[sent.number] = self._loop.clock()
        call()


# A lock is waited for no longer than until whoever waits has asked once whether it is free; and a value that
# does not agree with the accepted one is looked up once more.
SHORT = Terms(max_age=1.0, settle=0.1, deadline=2.0, lock_timeout=0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    `calls`, with the node to which each comes; at which fault may come, and to which node. `warm`: the
    conversation was read before, through the first node.
    """

    calls: tuple[tuple[Request, int], ...]
    fault: Fault | None = None
    node: int = 0
    warm: bool = False

    def plan(self) -> Plan:
        requests = (READ_BEFORE, *(call for call, _ in self.calls))
        homes = {"read-before": 0, **{call.id: node for call, node in self.calls}}
        schedule = Schedule(
            seed=0,
            actions=requests,
            terms=SHORT,
            climate=Climate(shuffled=False, store=0.02),
            conversations=PEOPLE,
            fates={request.id: (Fate(out=0.0, back=0.0),) * 60 for request in requests},
        )
        return Plan(schedule=schedule, nodes=2, homes=homes, skews=(0.0, 0.0), blows=(), latency=0.0)


READ_BEFORE = legacy("read-before", 0.0)
FILL, OTHER, WRITE = legacy("f1", 0.0), legacy("f2", 0.0), explicit("w", 0.0, "s5")
CASES = {
    "one": Case(calls=((FILL, 0), (WRITE, 1)), warm=True),
    "apart": Case(calls=((FILL, 0), (OTHER, 0), (WRITE, 1)), warm=True),
    "beside": Case(calls=((FILL, 0), (WRITE, 0), (OTHER, 1)), warm=True),
}


def _named(node: app.Gateway, name: str) -> None:
    """In every run alike: what is noted in one tells of others."""
    shared = node.main.shared
    assert shared is not None
    assert isinstance(shared.server, RedisServer)
    shared.server.name = name


async def _connected(node: app.Gateway) -> None:
    """It has a connection to Redis then, and a lease."""
    shared = node.main.shared
    assert shared is not None
    assert isinstance(shared.locks._far, RedisLocks)
    await shared.locks._far._leased()


@dataclass(slots=True)
class Moments:
    """By the number of what was sent, the step in which it left, or was answered; None: before the first."""

    left: dict[int, int | None] = field(default_factory=dict)
    answered: dict[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class WalkedEvidence(ClusterEvidence):
    """
    A GET that may as well have been answered after the fill had left was not what it was filled from.
    `caused`: as the interleavings have it.
    """

    moments: Moments
    caused: Sequence[int]

    def had(self, read: Sent, patch: Sent) -> bool:
        answered, left = self.moments.answered.get(read.number), self.moments.left.get(patch.number)
        if answered is None or left is None or answered == left:
            return super().had(read, patch)
        return bool(self.caused[left] >> answered & 1)


@dataclass(frozen=True, slots=True)
class Walked:
    """`judged`: all that a judge may see of what was sent. `broken`: the promises, and then its `story`."""

    judged: frozenset[object]
    broken: list[Violation]
    story: list[str]


def judged(ledger: Sequence[Sent], writes: Container[str]) -> frozenset[object]:
    """Of each call that left, what it was, beside which writes, and what it could have been filled from."""
    left = [sent for sent in ledger if sent.left is not None]
    patches = [sent for sent in left if sent.about.kind != "read"]

    def beside(sent: Sent) -> frozenset[object]:
        return frozenset(
            (one.id, one.begun < sent.begun, one.ended is not None and one.ended < sent.begun)
            for one in patches
            if one is not sent and (one.id in writes or sent.id in writes)
        )

    def shown(fill: Sent) -> frozenset[object]:
        return frozenset(
            (one.id, tuple(one.shown.values()), beside(one))
            for one in left
            if one.about.kind == "read" and one.complete is not None and one.complete < (fill.left or 0.0)
        )

    return frozenset(
        (sent.id, sent.body, beside(sent), sent.id not in writes and shown(sent)) for sent in patches
    )


@dataclass(slots=True)
class Walk:
    """
    One case, in every order. `parts` and `makes` replace the gateways' own, for a mutant. `finely`: what two
    calls in one process do may change places if they share none of it.
    """

    case: Case
    parts: Parts = field(default_factory=Parts)
    makes: Makes = shared_state
    finely: bool = True
    found: Interleavings = field(default_factory=Interleavings)

    def runs(self) -> Iterator[Walked]:
        """Each, with what it broke."""
        return map(self._judged, self.found.of(self._run))

    def drawn(self, chance: Random) -> Iterator[Walked]:
        """Some, without end."""
        return map(self._judged, self.found.drawn(self._run, chance))

    def _run(self, course: Course) -> tuple[History, Moments]:
        cluster = Cluster(self.case.plan(), self.parts, self.makes)
        return _Run(self.case, cluster, course, self.finely).history()

    def _judged(self, ran: tuple[History, Moments]) -> Walked:
        (history, moments), plan = ran, self.case.plan()
        evidence = WalkedEvidence(history, plan, moments, self.found.caused)
        found = broken(plan, history, frozenset(), evidence)
        writes = {call.id for call, _ in self.case.calls if call.changing}
        return Walked(judged(history.ledger, writes), found, list(story(history)) if found else [])


class _Run:
    def __init__(self, case: Case, cluster: Cluster, course: Course, finely: bool) -> None:
        self._case = case
        self._course = course
        self._finely = finely
        self._case_ids = [call.id for call, _ in case.calls]
        self._cluster = cluster
        self._loop = WalkedLoop(course)
        plan = cluster.plan
        self._homes = plan.homes
        self._wires = ToTheUpstream(self._loop, plan.homes, self._truth)
        wires: Any = self._wires
        self._upstream = SimulatedUpstream(plan.schedule, wires, lambda: NOON + self._loop.time())
        self._redis = WalkedRedis(self._loop)
        self._nodes: list[app.Gateway] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, Told] = {}
        self._log: list[Recorded] = []
        self._known: list[tuple[float | None, ...]] = []
        self._moments = Moments()
        self._seen: list[History] = []
        self._paused: int | None = None
        self._paused_at = math.inf  # how many rests there were before
        self._leases_end = False  # of the node that a fault befell

    def history(self) -> tuple[History, Moments]:
        self._loop.run(self._everything())
        return self._seen[0], self._moments

    def _history(self) -> History:
        """As of now: to clear a process away is no part of it."""
        for id, task in self._tasks.items():
            if not task.done():
                told = self._told[id]
                told.failure, told.ended = Killed("its process was killed"), self._loop.clock()
        schedule = self._cluster.plan.schedule
        return History(
            replace(schedule, terms=lenient(schedule.terms)),
            [replace(sent, ended=self._ended(sent)) for sent in self._upstream.ledger],
            {id: copy.copy(told) for id, told in self._told.items()},
            list(self._log),
            Counter(),
            [],
            0,
            list(self._loop.failures),
        )

    async def _everything(self) -> None:
        loop = self._loop
        for number in (0, 1):
            self._nodes.append(
                await self._cluster._begun(number, loop, self._upstream, [self._redis], self._log)
            )
            _named(self._nodes[-1], f"node-{number}")
            if self._finely and watch(self._nodes[-1], partial(loop.touch_part, number)):
                loop.watched.add(number)
            await self._cluster._in(number, loop, _connected(self._nodes[-1]))
        await asyncio.sleep(2 * SHORT.settle)  # a new server may have lost what was accepted
        if self._case.warm:
            await self._begin(READ_BEFORE)
        began = self._redis.model.snapshot()
        loop.settled, loop.rests = self._settled, self._rests
        loop.walking = True
        for request, node in self._case.calls:
            # Those that are alike come in one order: in the other they only had each other's names.
            body = request.body.replace(request.id.encode(), b"its id")
            alike = f"call of {request.method} {request.target} {body!r} to node {node}"
            loop.post(alike, partial(self._begin, request), contextvars.Context())
        if self._case.fault is not None:
            loop.post(FAULT, partial(self._befall, self._case.fault, began), contextvars.Context())
        try:
            await loop.over
            self._seen.append(self._history())
        finally:
            await self._clear_away()

    def _begin(self, request: Request) -> asyncio.Task[None]:
        client = Client(request, self._loop)
        self._told[request.id] = client.told
        home = self._homes[request.id]
        lifecycle = self._nodes[home].app
        assert isinstance(lifecycle, Lifecycle)
        context = contextvars.Context()
        context.run(NODE.set, home)
        context.run(CALL.set, request.id)
        task = self._tasks[request.id] = self._loop.create_task(client.call(lifecycle), context=context)
        return task

    def _rests(self) -> list[str]:
        """
        The next timer while anybody waits. Once, after a fault that ends with a lease, a long time: at once,
        or when nobody waits any more, as what comes of the timers between comes in a long time, too.
        """
        loop = self._loop
        waits = any(not task.done() and self._runs(self._homes[id]) for id, task in self._tasks.items())
        later = self._leases_end and not loop.went_on and not (waits and loop.timed)
        return [TIMER] * waits + [LATER] * later

    def _runs(self, node: int) -> bool:
        return node not in self._loop.dead and node != self._paused

    def _settled(self) -> None:
        self._note_the_ledger()
        if self._paused is not None and self._loop.rested > self._paused_at:
            self._paused_at = math.inf
            self._loop.post(RESUMED, self._resume, contextvars.Context())

    def _note_the_ledger(self) -> None:
        """
        What is judged is in which order writes, fills and GETs left, and writes and fills were answered: when
        a GET was, is between it and who has its answer.
        """
        step = self._course.number
        for number, sent in enumerate(self._upstream.ledger):
            read = sent.about.kind == "read"
            if sent.left is not None:
                self._moments.left.setdefault(number, step)
            if sent.complete is not None:
                self._moments.answered.setdefault(number, step)
            times = (sent.begun, sent.left, None if read else self._ended(sent))
            if number == len(self._known):
                self._known.append(())
            if self._known[number] != times:
                self._known[number] = times
                changing = not read and self._told[sent.id].request.changing
                self._loop.touch("ledger", "moments", write=changing)
        if all(self._is_decided(id) for id in self._case_ids):
            self._course.decide()

    def _ended(self, sent: Sent) -> float | None:
        """When its answer was there, whenever a process that was stopped then looked at it."""
        return self._wires.kept.get(sent.number, sent.ended)

    def _truth(self) -> list[str]:
        people = self._upstream.truth["c1"].values()
        return [history[-1][1] for fields in people for history in fields.values()]

    def _is_decided(self, id: str) -> bool:
        """Whether nothing more of that call may leave."""
        if self._homes[id] in self._loop.dead:
            return True
        if id not in self._tasks:
            return False
        return self._tasks[id].done() or any(
            sent.id == id and sent.about.kind != "read" and sent.left is not None
            for sent in self._upstream.ledger
        )

    def _befall(self, fault: Fault, began: Any) -> None:
        loop, node, ledger = self._loop, self._case.node, self._upstream.ledger
        match fault:
            case "kill":
                loop.touch(f"node {node}")
                loop.touch("ledger")
                loop.kill(node)
                self._leases_end = True
                loop.drop(f"redis, back, node {node}")
                for sent in ledger:
                    if self._homes[sent.id] == node and sent.ended is None:
                        loop.drop(f"upstream, back, {sent.id}")
                        if not loop.is_under_way(f"upstream, there, {sent.id}"):
                            sent.ended = loop.clock()
            case "lose a reply":
                self._redis.lose_replies(node)
            case "restart":
                self._redis.begin_anew(self._redis.model.snapshot())
            case "restart, older":
                self._redis.begin_anew(began)
            case "flush":
                loop.touch("redis")
                self._redis.flush()
            case "pause":
                loop.touch(f"node {node}")
                self._paused, self._leases_end = node, True
                loop.stop_node(node)
                self._paused_at = loop.rested

    def _resume(self) -> None:
        node, self._paused = self._paused, None
        assert node is not None
        self._loop.touch(f"node {node}")
        self._loop.resume(node)

    async def _clear_away(self) -> None:
        loop = self._loop
        loop.bury()
        if self._paused is not None:
            loop.resume(self._paused)
        while left := asyncio.all_tasks(loop) - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
