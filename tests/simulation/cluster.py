"""
Several gateways that share one Redis, in virtual time: the real ones, each in its own process as far as it
can tell, between simulated clients, the simulated upstream and a simulated Redis.

What befalls them is drawn with the schedule: a process is paused or killed, cut off from Redis, or has
another clock; Redis stops for a while, is restarted, loses its last writes or everything, or has its clock
set.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, get_args

from gateway import app
from gateway.backend import Parts
from gateway.config import CredentialSettings, StoreSettings
from gateway.proxy.lifecycle import Lifecycle
from gateway.state.redis_primary import SLOTS
from gateway.state.shared import SharedState, shared_state
from gateway.state.store_clock import StoreClock
from gateway.upstream.transport import Transport
from tests.simulation.drawing import draw
from tests.simulation.loop import Loop
from tests.simulation.plays import PEOPLE
from tests.simulation.promises import (
    Evidence,
    Violation,
    _end,
    _left,
    c2,
    clients_that_leave,
    l1,
    s1,
    s4,
    s7,
    sources,
)
from tests.simulation.redis_model import RedisModel
from tests.simulation.redis_network import NOON, SimulatedRedis, outside
from tests.simulation.schedule import Change, Climate, Fate, Jump, Request, Schedule, Terms
from tests.simulation.upstream import Sent, SimulatedUpstream
from tests.simulation.world import PATIENCE, QUIET, Client, History, Journal, Recorded, Told, settings

NODE: contextvars.ContextVar[int | None] = contextvars.ContextVar("node", default=None)
TIMEOUT = 0.5  # seconds that a step at Redis may take
BETWEEN = 0.006  # seconds by which one process's notion of Redis's time may differ from another's
READ_TIMEOUT = 5.0

Event = Literal["pause", "kill", "cut off", "redis stops", "redis restarts", "redis loses", "flush", "clock"]


EVENTS: tuple[Event, ...] = ("pause", *get_args(Event))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """
    `at` and `seconds`; `node` None: it befalls Redis. `behind`: seconds of writes that are lost.
    `server`: the one that it is about, or all.
    """

    at: float
    event: Event
    node: int | None = None
    seconds: float = 0.0
    behind: float = 0.0
    server: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    `schedule` as for one gateway; `homes`: which node each call comes to; `skews` of their clocks.
    `ahead`: of each Redis server, by how much its clock is; more than one are a cluster.
    """

    schedule: Schedule
    nodes: int
    homes: dict[str, int]
    skews: tuple[float, ...]
    blows: tuple[Blow, ...]
    latency: float
    isolates: bool = False
    ahead: tuple[float, ...] = (0.0,)

    @property
    def url(self) -> str:
        return "redis://simulated" if len(self.ahead) == 1 else "redis+cluster://simulated:1"


def on_a_cluster(plan: Plan) -> Plan:
    """The same on three servers, one of which is struck where Redis was."""
    rng = Random(f"{plan.schedule.seed} servers")
    some: tuple[int | None, ...] = (0, 1, 2)
    blows = tuple(
        replace(blow, server=rng.choice((*some, None) if blow.event == "cut off" else some))
        for blow in plan.blows
    )
    return replace(plan, blows=blows, ahead=tuple(rng.choice((0.0, -1.0, 0.3)) for _ in some))


def drawn(seed: int, *, blows: bool = True) -> Plan:
    rng = Random(f"{seed} cluster")
    schedule = draw(seed)
    terms = replace(schedule.terms, max_entries=10_000)
    # `store` tells the judges that the store is elsewhere.
    climate = replace(schedule.climate, store=0.02, store_faults=0.0)
    schedule = replace(schedule, terms=terms, climate=climate)
    nodes = rng.choice((2, 2, 2, 3))
    requests = [action for action in schedule.actions if isinstance(action, Request)]
    last = max(action.at for action in schedule.actions)
    return Plan(
        schedule=schedule,
        nodes=nodes,
        homes={request.id: rng.randrange(nodes) for request in requests},
        skews=tuple(rng.choice((0.0, 0.0, -3600.0, 0.4, 86_400.0)) for _ in range(nodes)),
        blows=tuple(_blows(rng, nodes, last)) if blows else (),
        latency=rng.choice((0.0005, 0.002, 0.03)),
        isolates=rng.random() < 0.3,
    )


def _blows(rng: Random, nodes: int, last: float) -> Iterator[Blow]:
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        event: Event = rng.choice(EVENTS)
        at = rng.uniform(0.0, last + 0.1)
        node = rng.randrange(nodes) if event in {"pause", "kill", "cut off"} else None
        seconds = rng.choice((0.05, 0.6, 3.0, 30.0) if event == "pause" else (0.05, 0.4, 1.0, 3.0))
        if event == "clock":
            seconds = rng.choice((-5.0, -0.5, 0.5, 20.0))
        yield Blow(at=at, event=event, node=node, seconds=seconds, behind=rng.choice((0.05, 0.5, 2.0)))


def staged(
    actions: tuple[Request, ...], homes: dict[str, int], fates: dict[str, tuple[Fate, ...]], *blows: Blow
) -> Plan:
    """A plan by hand, of two gateways."""
    schedule = Schedule(
        seed=0,
        actions=actions,
        terms=Terms(max_age=3.0, settle=0.0),
        climate=Climate(shuffled=False, store=0.02),
        conversations=PEOPLE,
        fates={id: (*some, *[Fate()] * 9) for id, some in fates.items()},
    )
    return Plan(schedule=schedule, nodes=2, homes=homes, skews=(0.0, 0.0), blows=blows, latency=0.0005)


class ClusterLoop(Loop):
    """What a node has to do waits while it is paused, and is never done once it is killed."""

    def __init__(self, rng: Random | None) -> None:
        super().__init__(rng, steps=1_000_000)
        self._paused: dict[int, list[asyncio.Handle]] = {}
        self.dead: set[int] = set()

    def pause(self, node: int, seconds: float) -> None:
        if node not in self._paused:
            self.stop_node(node)
            outside(self.call_later, seconds, self.resume, node)

    def stop_node(self, node: int) -> None:
        self._paused.setdefault(node, [])

    def is_stopped(self, node: int) -> bool:
        return node in self._paused

    def resume(self, node: int) -> None:
        if node not in self.dead:
            self._ready.extend(self._paused.pop(node))

    def kill(self, node: int) -> None:
        self.dead.add(node)
        self.stop_node(node)

    def bury(self) -> None:
        """What the dead had to do is done after all, once nobody looks: so that it has an end."""
        dead, self.dead = self.dead, set()
        for node in dead:
            self.resume(node)

    def _chosen(self) -> asyncio.Handle:
        handle = super()._chosen()
        node = handle._context.get(NODE)  # type: ignore[attr-defined]
        if node in self._paused:
            self._paused[node].append(handle)
            return asyncio.Handle(_nothing, (), self, None)
        return handle


def _nothing(*_: object) -> None:
    """In place of what waits, or of who would hear of it."""


class OnTheWire:
    """The loop, as what is no process of ours has it: its timers go off whoever is paused."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.clock, self.time, self.create_future = loop.clock, loop.time, loop.create_future

    def call_later(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
        return outside(self._loop.call_later, seconds, call, *arguments)


class Killed(ConnectionResetError):
    """What a client sees of its gateway's end."""


Makes = Callable[..., SharedState]


@dataclass(slots=True)
class Cluster:
    """
    `parts`, `makes` and `transport` replace the gateways' own, which is how a mutant is made; `model`: what
    keeps Redis's data.
    """

    plan: Plan
    parts: Parts = field(default_factory=Parts)
    makes: Makes = shared_state
    transport: Callable[[SimulatedUpstream], Transport] | None = None
    model: Callable[..., Any] = RedisModel
    _abandoned: list[asyncio.Task[None]] = field(default_factory=list)

    def run(self) -> History:
        plan, schedule = self.plan, self.plan.schedule
        loop = ClusterLoop(Random(f"{schedule.seed} order") if schedule.climate.shuffled else None)
        upstream = SimulatedUpstream(schedule, OnTheWire(loop), lambda: NOON + loop.time())  # type: ignore[arg-type]
        redis = servers(loop, plan, self.model)
        log: list[Recorded] = []
        told: dict[str, Told] = {}

        async def everything() -> None:
            nodes = [await self._begun(number, loop, upstream, redis, log) for number in range(plan.nodes)]
            for blow in plan.blows:
                outside(loop.call_later, blow.at, self._befall, blow, loop, redis, upstream)
            lost = max((blow.at for blow in plan.blows if blow.event == "redis loses"), default=0.0)
            snapshots = outside(loop.create_task, _kept_by_replicas(redis, lost))
            await asyncio.gather(
                *(self._act(action, loop, upstream, nodes, told) for action in schedule.actions)
            )
            await asyncio.sleep(QUIET)
            snapshots.cancel()
            await asyncio.gather(snapshots, return_exceptions=True)
            seen = History(
                replace(schedule, terms=lenient(schedule.terms, plan.blows)),
                [copy.copy(sent) for sent in upstream.ledger],
                {id: copy.copy(one) for id, one in told.items()},
                list(log),
                Counter(),
                [],
                0,
                loop.failures,
            )
            loop.bury()
            for task in self._abandoned:
                task.cancel()
            await asyncio.gather(*self._abandoned, return_exceptions=True)
            for number, node in enumerate(nodes):
                await self._in(number, loop, node.close())
            histories.append(seen)

        histories: list[History] = []
        loop.run(everything())
        return histories[0]

    async def _begun(
        self,
        number: int,
        loop: ClusterLoop,
        upstream: SimulatedUpstream,
        redis: Sequence[SimulatedRedis],
        log: Any,
    ) -> app.Gateway:
        terms, skew = self.plan.schedule.terms, self.plan.skews[number]

        async def begun() -> app.Gateway:
            store = StoreSettings(url=self.plan.url, on_failure="isolate" if self.plan.isolates else "reject")
            credentials = CredentialSettings.model_validate({"key": "k" * 32, "ignore": ["X-Client-Read"]})
            chosen = settings(terms).model_copy(update={"store": store, "credentials": credentials})

            async def opened(
                where: Any, tls: Any, timeout: float, on_push: Any = _nothing, on_lost: Any = _nothing
            ) -> Any:
                server = redis[where[1] - 1 if len(redis) > 1 else 0]
                return await server.open(number, timeout, on_push, on_lost)

            clock = StoreClock(lambda: loop.clock() + skew)
            shared = self.makes(
                self.plan.url,
                key=b"k" * 32,
                deployment="simulated",
                tls=None,
                timeout=TIMEOUT,
                settle=terms.settle,
                max_entries=10_000,
                max_remembered=2**20,
                lock_timeout=terms.lock_timeout,
                in_flight=terms.deadline + READ_TIMEOUT,
                clock=clock,
                opened=opened,
                chance=Random(f"{self.plan.schedule.seed} {number}").random,
            )
            return app.build(
                chosen,
                transport=self.transport(upstream) if self.transport else upstream,
                clock=loop.clock,
                wall=lambda: NOON + loop.time(),
                parts=replace(
                    self.parts, audit=lambda path, wall, *_, **__: Journal(path, wall, loop.clock, log)
                ),
                shared=shared,
            )

        node: app.Gateway = await self._in(number, loop, begun())
        return node

    @staticmethod
    async def _in(number: int, loop: ClusterLoop, what: Any) -> Any:
        """Done in that node's process."""
        context = contextvars.Context()
        context.run(NODE.set, number)
        return await loop.create_task(what, context=context)

    async def _act(
        self,
        action: Any,
        loop: ClusterLoop,
        upstream: SimulatedUpstream,
        nodes: list[app.Gateway],
        told: dict[str, Told],
    ) -> None:
        await asyncio.sleep(action.at)
        match action:
            case Change():
                upstream.set(action.conversation, action.participant, action.field, action.value)
            case Jump():
                pass  # no wall clock is asked
            case Request():
                home = self.plan.homes[action.id]
                if home in loop.dead:
                    return
                client = Client(action, loop)
                told[action.id] = client.told
                lifecycle = nodes[home].app
                assert isinstance(lifecycle, Lifecycle)
                context = contextvars.Context()
                context.run(NODE.set, home)
                task = loop.create_task(client.call(lifecycle), context=context)
                while not task.done() and home not in loop.dead:
                    await asyncio.wait([task], timeout=0.25)
                if not task.done():
                    self._abandoned.append(task)
                    client.told.failure = Killed("its process was killed")
                    client.told.ended = loop.clock()

    def _befall(
        self, blow: Blow, loop: ClusterLoop, servers: Sequence[SimulatedRedis], upstream: SimulatedUpstream
    ) -> None:
        node, redis = blow.node, servers[blow.server or 0]
        match blow.event:
            case "pause":
                loop.pause(node or 0, blow.seconds)
            case "cut off":
                for one in servers if blow.server is None else [redis]:
                    one.cut_off(node, blow.seconds)
            case "kill":
                loop.kill(node or 0)
                for sent in upstream.ledger:
                    if sent.ended is None and self.plan.homes.get(sent.id) == node:
                        # Nobody is there to see when it is over; the upstream has it until then.
                        over = sent.fate.out + sent.fate.back + sent.fate.applied_after
                        sent.ended = loop.time() if sent.left is None else sent.left + over
            case "redis stops":
                redis.stop(blow.seconds)
            case "redis restarts":
                redis.restart(redis.model.snapshot(), blow.seconds)
            case "redis loses":
                redis.restart(redis.replica(blow.behind), blow.seconds)
            case "flush":
                redis.flush()
            case "clock":
                redis.offset += blow.seconds


def servers(loop: Loop, plan: Plan, model: Callable[..., Any] = RedisModel) -> list[SimulatedRedis]:
    number = len(plan.ahead)
    slots = None
    if number > 1:
        bounds = [i * SLOTS // number for i in range(number + 1)]
        slots = [[bounds[i], bounds[i + 1] - 1, [b"simulated", i + 1]] for i in range(number)]
    rng = Random(f"{plan.schedule.seed} redis")
    found = [SimulatedRedis(loop, rng, plan.latency, slots, model) for _ in plan.ahead]
    for server, ahead in zip(found, plan.ahead, strict=True):
        server.offset = ahead
    return found


async def _kept_by_replicas(servers: Sequence[SimulatedRedis], until: float) -> None:
    """Until one last takes over: later nobody asks for what they have."""
    while servers[0].loop.time() < until:
        for redis in servers:
            redis.keep()
        await asyncio.sleep(0.05)


def lenient(terms: Terms, blows: tuple[Blow, ...] = ()) -> Terms:
    """By what docs/promises.md says of clocks: S2 weakens by as much as Redis's was set."""
    by = sum(abs(blow.seconds) for blow in blows if blow.event == "clock")
    return replace(terms, max_age=terms.max_age + BETWEEN + by) if terms.max_age else terms


PROMISES = (s1, sources, s4, s7, c2, l1, clients_that_leave)
# docs/promises.md, Several processes: what may weaken between processes when Redis fails. S2 does only when
# its clock is set, and nothing when a process is killed, or paused for less than `store.timeout`.
OF_REDIS = frozenset({"cut off", "redis stops", "redis restarts", "redis loses", "flush", "clock"})
# While it is down a write goes on that others can't be told of.
UNTOLD = frozenset({"cut off", "redis stops", "redis restarts", "redis loses"})


def residuals(plan: Plan) -> frozenset[str]:
    events = {blow.event for blow in plan.blows} & OF_REDIS
    # Else `lenient` says by how much.
    if "clock" in events and not plan.schedule.terms.max_age:
        return frozenset({"S2", "S3", "S4", "S5"})
    # Who is stopped takes a Redis that answered meanwhile for one that does not.
    if any(blow.event == "pause" and blow.seconds >= TIMEOUT for blow in plan.blows):
        return frozenset({"S3", "S4", "S5"})
    if not events:
        return frozenset()
    if plan.isolates or "clock" in events:
        return frozenset({"S3", "S4", "S5"})
    return frozenset({"S3", "S4", "S5"}) if events & UNTOLD else frozenset({"S4"})


@dataclass(frozen=True)
class ClusterEvidence(Evidence):
    plan: Plan

    def over(self, write: Sent, patch: Sent) -> float:
        """
        What names no conversation takes no lock: elsewhere it is known one message after its client hears of
        it, and never where its process was killed.
        """
        homes = self.plan.homes
        if write.about.conversation is not None or homes[write.id] == homes[patch.id]:
            return super().over(write, patch)
        told = self.history.told[write.id]
        if told.ended is None or isinstance(told.failure, Killed):
            return math.inf
        return math.inf if told.ended + self.plan.latency >= _left(patch) else _end(write)


def broken(
    plan: Plan,
    history: History,
    named: frozenset[str] | None = None,
    evidence: ClusterEvidence | None = None,
) -> list[Violation]:
    """But for the `named` residuals; without them, those of the plan."""
    evidence = evidence or ClusterEvidence(history, plan)
    found = [violation for promise in PROMISES for violation in promise(evidence)]
    found += [Violation("traces", f"nobody caught {failure!r}") for failure in history.failures]
    found += [
        Violation("traces", f"{id} had no end")
        for id, told in history.told.items()
        if told.ended is None or told.ended - told.arrived >= PATIENCE + 31
    ]
    return [one for one in found if not is_named(one, plan, history, named)]


def _forgets_its_own(violation: Violation, plan: Plan, history: History) -> bool:
    """S5 holds within a process that isolates: of what a call through it was told, before the next came."""
    (number,) = re.findall(r"\(#(\d+)\)", violation.what)
    evidence = Evidence(history)
    fill = next(one for one in evidence.fills if one.sent.number == int(number))
    about = fill.sent.about
    accepted = [
        (sent.ended, value)
        for attempts in evidence.patches.values()
        for sent in attempts
        for name, value in evidence.request(sent).named
        if sent.accepted
        and sent.ended is not None
        and (sent.about.conversation, sent.about.participant, name)
        == (about.conversation, about.participant, fill.name)
        and plan.homes[sent.id] == plan.homes[fill.sent.id]
        and (history.told[sent.id].ended or math.inf) < fill.told.arrived
    ]
    if not accepted:
        return False
    last, value = max(accepted)
    others = (
        one
        for one in evidence.writing
        if one is not fill.sent and one.about.conversation in {about.conversation, None}
    )
    if value == fill.value or any(_end(one) > last for one in others):
        return False
    shown = (
        read.begun
        for read in evidence.reads
        if read.complete is not None
        and read.complete < _left(fill.sent)
        and read.shown.get((about.participant or "", fill.name)) == fill.value
    )
    return max(shown, default=-math.inf) <= last + plan.schedule.terms.settle


def is_named(violation: Violation, plan: Plan, history: History, named: frozenset[str] | None = None) -> bool:
    promises = set(violation.promise.split("+"))
    if named is not None or promises & residuals(plan):
        if plan.isolates and "S5" in promises and _forgets_its_own(violation, plan, history):
            return False
        return bool(promises & (residuals(plan) if named is None else named))
    if not promises & {"S2", "S3", "S5"}:
        return False
    (number,) = re.findall(r"\(#(\d+)\)", violation.what)
    fill = history.ledger[int(number)]
    reads = [history.ledger[int(number)] for number in re.findall(r"#(\d+) begun", violation.what)]
    if "S2" in promises:
        # The answer to a GET for it came while it was stopped, and counts from when it goes on.
        arrived = history.told[fill.id].arrived
        stopped = [(one.at, one.at + one.seconds) for one in plan.blows if one.event == "pause"]
        waits = plan.schedule.terms.max_age
        return any(
            read.begun >= arrived
            and read.complete is not None
            and begin < read.complete < end <= _left(fill) <= end + waits
            for read in reads
            for begin, end in stopped
        )
    if not promises <= {"S3", "S5"}:
        return False
    # A fill that had its lock and its value when all locks were lost leaves with it; or one that has them,
    # read beside a write whose lock was lost, when that ends.
    flushed = max((blow.at for blow in plan.blows if blow.event == "flush"), default=-math.inf)
    had = any(read.complete is not None and read.complete < flushed for read in reads)
    if had and history.told[violation.what.split()[0]].arrived < flushed:
        return True
    return any(
        one.begun < flushed < _end(one) and fill.begun < _end(one) + 2 * plan.latency
        for one in history.ledger
        if one is not fill and one.about.conversation == fill.about.conversation
    )
