"""
The promises between gateways over real sockets, while what they share is killed, stopped and emptied.

    .venv/bin/python -m benchmarks.cluster --seconds 20
    .venv/bin/python -m benchmarks.cluster --store cluster

Two gateway processes on one Redis server, or under Sentinels or in a cluster of three primaries, each with a
replica, serve the calls of `freshness.py`; `judge.py` says which promises were broken. What docs/promises.md
("Several processes") lets weaken by a fault is told apart, by the times of the faults. Afterwards each
conversation is written and filled through each gateway: nothing stays locked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import uvloop

from benchmarks import rig
from benchmarks.client import Broken, opened
from benchmarks.freshness import ALLOW, BUSY, KEY, NOTE, PEOPLE, QUIET, Load, digest, lines, told, watched
from benchmarks.judge import (
    Run,
    Terms,
    Violation,
    allowed,
    bodies,
    coalesced,
    once,
    overlaps,
    recorded,
    sources,
)
from tests.support.redis_kinds import RedisCluster, Watched
from tests.support.redis_servers import RedisProcess

DEADLINE = 5.0  # limits.deadline: what a killed process held ends with its lease, 6 s later
LEASE = DEADLINE + 6.0
RENEWED = 1.5  # seconds until a process notices that its lease is gone
EVERY = {"none": 0.0, "kill": 5.0, "restart": 10.0, "stop": 10.0, "flush": 5.0, "failover": 20.0}
FAULTS = {"one": "none,kill,restart,stop,flush", "sentinel": "none,failover", "cluster": "none,failover"}
STOPPED = 3.0
ASKED = 1.0  # seconds that a question takes at most: store.timeout, twice


Shared: TypeAlias = RedisProcess | Watched | RedisCluster


def clustered() -> RedisCluster:
    cluster = RedisCluster(1, node_timeout=3000)
    cluster.ready()
    return cluster


STORES: dict[str, Callable[[], Shared]] = {
    "one": RedisProcess,
    "sentinel": lambda: Watched(3, down_after=3000),
    "cluster": clustered,
}


@dataclass(slots=True)
class Fault:
    """From `begun` until all that was stopped runs again."""

    kind: str
    begun: float
    ended: float
    node: int | None = None


@dataclass(slots=True)
class Node:
    """`gateway run`, which may be killed and started again with the same files."""

    folder: Path
    port: int
    admin: int
    running: rig.Process | None = None
    starts: int = 0

    @property
    def audit(self) -> Path:
        return self.folder / "rewrites.jsonl"

    def start(self) -> None:
        self.starts += 1
        argv = (sys.executable, "-m", "gateway", "run", "--config", str(self.folder / "config.yaml"))
        log = self.folder / f"gateway-{self.starts}.log"
        self.running = rig.begin(log, self.port, *argv, first_core=True)

    def kill(self) -> None:
        assert self.running is not None
        self.running.running.kill()
        self.running.running.wait()

    def end(self) -> None:
        if self.running is not None:
            self.running.end()


def unreachable(one: Node, until: float) -> list[Fault]:
    """When the gateway said of itself that it could not ask the server: also where it had no processor."""
    found: list[Fault] = []
    for number in range(1, one.starts + 1):
        for line in (one.folder / f"gateway-{number}.log").read_text().splitlines():
            if "can't be asked" in line and (not found or found[-1].ended < until):
                found.append(Fault("unreachable", at(line), until))
            elif line.endswith(" again") and "is asked" in line and found:
                found[-1].ended = at(line)
    return found


async def unasked(one: Node, found: list[Fault]) -> None:
    """When its count of failures grew: single questions fail where a process had no processor for a while."""
    count, before = 0, time.time()
    while True:
        with contextlib.suppress(OSError, Broken, TimeoutError):
            connection = await opened(one.admin)
            try:
                reply = await connection.call("GET", "/counts")
            finally:
                await connection.close()
            known, count = count, json.loads(reply.body)["gateway_store_failures_total"]
            if count > known:
                found.append(Fault("unasked", before - ASKED, time.time()))
        before = time.time()
        await asyncio.sleep(0.25)


def at(line: str) -> float:
    return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()


def node(folder: Path, upstream: int, redis: Shared, fill: dict[str, object]) -> Node:
    folder.mkdir()
    port, admin = rig.free_ports(2)
    one = Node(folder, port, admin)
    chosen = rig.settings(
        f"http://127.0.0.1:{upstream}",
        str(one.audit),
        fill=fill,
        listen={"port": port},
        admin={"port": admin, "hosts": ["gateway.test"]},
        limits={"deadline": f"{DEADLINE:g}s"},
        credentials={"key": KEY},
        store={"url": redis.url},
    )
    # JSON is YAML.
    (folder / "config.yaml").write_text(json.dumps(chosen))
    return one


@dataclass(slots=True)
class Half(Load):
    """The clients of one gateway: their numbers, and so the ids of their calls, are of no other's."""

    first: int = 0

    async def run(self, clients: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            if self.first == 0:
                group.create_task(self._others(end))
            for number in range(self.first, self.first + clients):
                group.create_task(self._client(number, end))


@dataclass(slots=True)
class Faults:
    """What befalls the two and their server, once in so many seconds."""

    kind: str
    nodes: Sequence[Node]
    redis: Shared
    happened: list[Fault] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        every = EVERY[self.kind]
        if not every:
            return
        begun = time.monotonic()
        due = every / 2
        while due < seconds - 1:
            await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
            fault = Fault(self.kind, time.time(), 0.0)
            self.happened.append(fault)
            await self._happens(fault)
            fault.ended = time.time()
            due += every

    async def _happens(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                fault.node = len(self.happened) % len(self.nodes)
                await asyncio.to_thread(self.nodes[fault.node].kill)
                await asyncio.to_thread(self.nodes[fault.node].start)
                return
            case "failover":
                assert not isinstance(self.redis, RedisProcess)
                await asyncio.to_thread(self.redis.fail_over)
                return
        assert isinstance(self.redis, RedisProcess)
        match fault.kind:
            case "restart":
                await asyncio.to_thread(self.redis.stop)
                await asyncio.to_thread(self.redis.start)
            case "stop":
                self.redis.signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(STOPPED)
                finally:
                    self.redis.signal(signal.SIGCONT)
            case "flush":
                await asyncio.to_thread(self.redis.command, "FLUSHALL")


# --- what is judged


@dataclass(slots=True)
class Verdict:
    broken: list[Violation]
    named: list[Violation]  # what docs/promises.md names for the faults


def judged(whole: Run, halves: Sequence[Run], faults: Sequence[Fault]) -> Verdict:
    """`halves`: of undisturbed conversations, what came of each gateway's calls, for S8."""
    verdict = Verdict([], [])
    for rule in (bodies, allowed, recorded, sources, overlaps, once):
        for violation in rule(whole):
            is_named = named(violation, whole, faults)
            (verdict.named if is_named else verdict.broken).append(violation)
    if not faults:
        verdict.broken += [violation for half in halves for violation in coalesced(half)]
    return verdict


def named(violation: Violation, run: Run, faults: Sequence[Fault]) -> bool:
    """Whether a row of the table in docs/promises.md says that this weakens, there and then."""
    ids = [word for word in violation.what.split() if word in run.patches]
    id, other = (ids[0], ids[-1]) if ids else ("", "")
    sent = run.patches.get(id, [])
    if violation.promise not in {"S3", "S4", "S5"} or not sent:
        return False
    left = sent[-1].begun
    for fault in faults:
        back = fault.ended + RENEWED
        if violation.promise == "S4" and fault.kind != "kill":
            # Of locks that were lost, or of writes that went on without one.
            earlier = min((one.begun for one in run.patches[other]), default=left)
            if earlier <= back and fault.begun <= left <= back + DEADLINE:
                return True
        if violation.promise in {"S3", "S5"} and fault.kind not in {"kill", "flush"}:
            writes = run.writes[sent[-1].conversation]
            unrecorded = any(one.begun <= back and one.over >= fault.begun for one in writes)
            if unrecorded and fault.begun <= left <= back:
                return True
    return False


def recoveries(run: Run, faults: Sequence[Fault], of: Sequence[int], gateways: int) -> list[float]:
    """For each fault and each gateway that it met, seconds from its end to the first fill that left."""
    found = []
    for fault in faults:
        for which in range(gateways):
            if fault.node not in {None, which}:
                continue
            left = [
                fill.seen.begun
                for fill in run.fills
                if owner(fill.asked.id, of) == which and fill.asked.at > fault.ended
            ]
            if left:
                found.append(min(left) - fault.ended)
    return found


def longest_gap(run: Run) -> float:
    """Seconds without any fill."""
    times = sorted(fill.seen.begun for fill in run.fills)
    return max((later - one for one, later in pairwise(times)), default=float("nan"))


def owner(id: str, firsts: Sequence[int]) -> int:
    number = int(id.removeprefix("client").split("-")[0])
    return max(which for which, first in enumerate(firsts) if number >= first)


# --- afterwards


async def answers(nodes: Sequence[Node]) -> dict[str, float]:
    """Each conversation, and after how long it had been written, and filled, through each gateway."""
    begun = time.monotonic()
    taken: dict[str, float] = {}

    async def ask(one: Node, conversation: str) -> None:
        for body in (b'{"state": "connected"}', b'{"attributes": {"%s": "afterwards"}}' % NOTE):
            while time.monotonic() - begun < 4 * LEASE:
                with contextlib.suppress(Broken, TimeoutError):
                    connection = await opened(one.port)
                    try:
                        headers = [("Authorization", "Bearer alice"), ("Content-Type", "application/json")]
                        path = rig.path(conversation, PEOPLE[0])
                        reply = await connection.call("PATCH", path, headers, body)
                    finally:
                        await connection.close()
                    if b'"refused_by": "gateway"' not in reply.body:
                        break
                await asyncio.sleep(0.05)
            else:
                taken[conversation] = float("inf")
                return
        taken[conversation] = max(taken.get(conversation, 0.0), time.monotonic() - begun)

    async with asyncio.TaskGroup() as group:
        for one in nodes:
            for conversation in BUSY + QUIET:
                group.create_task(ask(one, conversation))
    return taken


# --- a run


@contextlib.asynccontextmanager
async def pair(work: Path, port: int, redis: Shared, fill: dict[str, object]) -> AsyncIterator[list[Node]]:
    nodes = [node(work / name, port, redis, fill) for name in ("a", "b")]
    try:
        for one in nodes:
            await asyncio.to_thread(one.start)
        yield nodes
    finally:
        # In threads: calls that their clients left are still in flight.
        await asyncio.gather(*(asyncio.to_thread(one.end) for one in nodes))


async def run(profile: str, kind: str, a: argparse.Namespace, work: Path) -> int:
    rng = random.Random(f"{a.seed} {profile} {kind}")
    skew = time.time() - time.monotonic()
    redis = await asyncio.to_thread(STORES[a.store])
    try:
        async with watched(profile, rng) as (port, api):
            fill: dict[str, object] = {
                "allow": sorted(ALLOW[profile]),
                "max_age": f"{a.max_age}s",
                "settle": f"{a.settle}s",
            }
            async with pair(work, port, redis, fill) as nodes:
                firsts = [0, a.clients // 2]
                halves = [
                    Half(profile, one.port, api, rng, first=first)
                    for one, first in zip(nodes, firsts, strict=True)
                ]
                faults, single = Faults(kind, nodes, redis), list[Fault]()
                async with asyncio.TaskGroup() as group:
                    watches = [group.create_task(unasked(one, single)) for one in nodes]
                    async with asyncio.TaskGroup() as load:
                        load.create_task(faults.run(a.seconds))
                        for half in halves:
                            load.create_task(half.run(a.clients // 2, a.seconds))
                    for watch in watches:
                        watch.cancel()
                api.mock.faults.clear()
                taken = await answers(nodes)
                missed = [fault for one in nodes for fault in unreachable(one, time.time())]
            log = [line for one in nodes for line in lines(one.audit)]
    finally:
        await asyncio.to_thread(redis.close)
    if abs(time.time() - time.monotonic() - skew) > 0.001:
        print("warning: the machine's clock was set amid the run: ages may be judged wrongly")
    asked = [one for half in halves for one in half.asked]
    ids = {one.id for one in asked}
    # A PATCH without a body was cut off by a kill, so that nothing was applied.
    seen = [one for one in api.seen if one.id in ids and (one.body or one.method != "PATCH")]
    terms = Terms(a.max_age, a.settle, ALLOW[profile])
    whole = Run(terms, asked, seen, log, digest)
    undisturbed = whole.undisturbed()
    # On a new server it is not known what was accepted before: each round looks up again (S5).
    settled = min(one.begun for one in seen) + a.settle
    parts = []
    for which, half in enumerate(halves):
        own = [
            one
            for one in seen
            if owner(one.id, firsts) == which and one.conversation in undisturbed and one.begun > settled
        ]
        parts.append(Run(terms, half.asked, own, log, digest))
    verdict = judged(whole, parts, [*faults.happened, *missed, *single])
    back = recoveries(whole, faults.happened, firsts, len(nodes))
    statuses = Counter(one.status for one in asked)
    failures = sum((half.failures for half in halves), Counter[str]())
    within = all(one <= LEASE + 1 for one in taken.values())
    rig.table(
        [f"{profile}, {a.store}, {kind}", "figure"],
        [
            ["calls, filled, faults", f"{len(asked)}, {len(whole.fills)}, {len(faults.happened)}"],
            ["replies", told(statuses)],
            ["of them the gateways' own", told(Counter(one.status for one in asked if one.refused))],
            ["without a reply, but those that left", told(failures)],
            ["from the fault's end to the next fill, each gateway: median, longest",
             f"{rig.quantile(back, 0.5):.2f} s, {max(back, default=float('nan')):.2f} s"],
            ["longest without any fill", f"{longest_gap(whole):.2f} s"],
            ["times that a gateway could not ask the server; that questions failed",
             f"{len(missed)}; {len(single)}"],
            ["afterwards: all conversations written and filled through both, after",
             f"{max(taken.values()):.2f} s"],
            ["weakened, as the table of faults says", told(Counter(one.promise for one in verdict.named))],
            ["**violations**", f"**{told(Counter(one.promise for one in verdict.broken))}**"],
        ],
    )  # fmt: skip
    refusals = Counter(str(line.get("code")) for _, line in log if line["event"] == "reject")
    print("refusals on the logs:", told(refusals))
    for violation in verdict.broken[:20]:
        print(f"{violation.promise}: {violation.what}")
    for fault in [*faults.happened, *missed, *single] if verdict.broken else ():
        print(f"{fault.kind} from {fault.begun:.3f} to {fault.ended:.3f}")
    print(flush=True)
    return len(verdict.broken) + (not within)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--clients", type=int, default=100)
    ap.add_argument("--seconds", type=float, default=60)
    ap.add_argument("--profiles", default="strict,documented")
    ap.add_argument("--store", default="one", choices=STORES)
    ap.add_argument("--faults", help="of " + ", ".join(EVERY))
    ap.add_argument("--max-age", type=float, default=1.0)
    ap.add_argument("--settle", type=float, default=2.0)
    ap.add_argument("--seed", default="1")
    a = ap.parse_args()
    rig.pinned_off_the_gateway()
    broken = 0
    for profile in a.profiles.split(","):
        for kind in (a.faults or FAULTS[a.store]).split(","):
            with rig.folder() as work:
                broken += uvloop.run(run(profile, kind, a, work))
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
