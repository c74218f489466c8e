"""
The promises about state over real sockets: many clients, a gateway process, both profiles of the mock.

    .venv/bin/python -m benchmarks.freshness --clients 200 --seconds 60

Clients mix PATCHes without state, with one, GETs, POST …/disconnect, and some leave amid a call; others
change states behind the gateway's back; the upstream lags, is slow now and then, refuses, and drops
connections after it has applied a call. Then `judge.py` says which promises were broken, and what it can't
see. Conversations named quiet-* only ever have fills that are accepted: there S8 can be judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import uvloop
from starlette.types import Message, Receive, Scope, Send

from benchmarks import rig
from benchmarks.client import Broken, Connection, opened
from benchmarks.judge import Asked, Run, Seen, Terms
from gateway.backend import derived
from gateway.http import headers as h
from gateway.mock.server import Conversations, Fault, Mock, MockSettings, server

BUSY = [f"busy-{number}" for number in range(30)]
QUIET = [f"quiet-{number}" for number in range(10)]
PEOPLE = ("p1", "p2")
TOKENS = ("alice", "bob", "carol", "dave")
KINDS = {"fill": 72, "explicit": 14, "write": 2, "read": 12}
ALLOW = {"strict": frozenset({"active", "connected"}), "documented": frozenset({"connected"})}
EXPLICIT = {
    "strict": ("connected", "connected", "active", "disconnected"),
    "documented": ("connected", "connected", "connected", "connected", "disconnected"),
}
# What others do behind the gateway's back: mostly bring a conversation back to life.
OTHERS = {
    "strict": ("connected", "connected", "active", "alerting"),
    "documented": ("connected", "connected", "connected", "alerting"),
}
CONTENT_TYPES = ("text/plain", "application/json", "application/x-www-form-urlencoded")
NOTE = b"supervisorNote"  # stands in the bodies without a state
LEAVES = 0.02  # of the calls on busy conversations: their client is gone within 50 ms
KEY = "with it the digests on the audit log can be made again"
LAG = 0.1  # seconds that a GET may be behind
FAULTS = (
    Fault(method="PATCH", path="busy-", status=409),
    Fault(method="PATCH", path="busy-", status=503),
    Fault(method="PATCH", path="busy-", reset=True, applied=True),
    Fault(method="GET", path="busy-", status=500),
)


@dataclass(slots=True)
class Watched:
    """The mock, slower than it is, with everything that passes noted."""

    mock: Mock
    rng: random.Random
    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        conversation, _, _ = scope["path"].removeprefix(f"{rig.CONVERSATIONS}/").partition("/")
        seen = Seen(
            (h.first(headers, b"x-request-id") or b"").decode(),
            scope["method"],
            conversation.removeprefix("/api/v2/conversations/"),
            (h.first(headers, b"authorization") or b"").decode(),
            time.time(),
        )
        if scope["path"].endswith("/disconnect"):
            seen.conversation = scope["path"].split("/")[-2]
        self.seen.append(seen)
        first = await receive()
        self._refuse_what_is_stale(scope, first.get("body", b""))
        body = b""
        messages = [first]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        async def noted(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                await asyncio.sleep(self._latency())
                seen.status = message["status"]
                seen.ended = time.time()
            else:
                body += message.get("body", b"")
            await send(message)

        await asyncio.sleep(self._latency())
        await self.mock.app(scope, replayed, noted)
        for entry in reversed(self.mock.ledger.entries):
            if entry.headers is headers:
                seen.body, seen.before = entry.body, entry.before
                break
        if seen.method == "GET" and seen.status == 200:
            seen.shown = {one["id"]: one["state"] for one in json.loads(body)["participants"]}

    def _refuse_what_is_stale(self, scope: Scope, body: bytes) -> None:
        """Half of the busy fills that are not the truth any more get a 409: that is what a refill is for."""
        if NOTE in body and b'"state"' in body and self.rng.random() < 0.5:
            _, conversation, _, participant = scope["path"].rsplit("/", 3)
            if (
                conversation in BUSY
                and self.mock.state(conversation, participant) != json.loads(body)["state"]
            ):
                self.mock.faults.insert(0, Fault(method="PATCH", path=scope["path"], status=409))

    def _latency(self) -> float:
        return self.rng.choice((0.0, 0.0, 0.001, 0.002, 0.005, 0.005, 0.02, self.rng.uniform(0, 0.2)))


@contextlib.asynccontextmanager
async def watched(profile: str, rng: random.Random) -> AsyncIterator[tuple[int, Watched]]:
    """The mock in this process, so that one clock times what it does and what clients do."""
    api = Watched(Mock(Conversations(), MockSettings(profile=profile, lag=LAG, rate_limit=0)), rng)
    serving = server(api.mock, port=0)
    serving.config.app = api
    serving.config.load()
    serving.lifespan = serving.config.lifespan_class(serving.config)
    await serving.startup()
    listener = serving.servers[0]
    try:
        yield listener.sockets[0].getsockname()[1], api
    finally:
        listener.close()
        for connection in list(serving.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0.1)


@dataclass(slots=True)
class Load:
    profile: str
    port: int
    api: Watched
    rng: random.Random
    asked: list[Asked] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    async def run(self, clients: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._others(end))
            for number in range(clients):
                group.create_task(self._client(number, end))

    async def _others(self, end: float) -> None:
        """Changes out of band, and what goes wrong next."""
        while time.monotonic() < end:
            await asyncio.sleep(self.rng.uniform(0, 0.05))
            conversation = self.rng.choice(BUSY)
            state = self.rng.choice(OTHERS[self.profile])
            if self.rng.random() < 0.2 and self.profile == "strict":
                conversation, state = self.rng.choice(QUIET), self.rng.choice(("active", "connected"))
            self.api.mock.change(conversation, self.rng.choice(PEOPLE), state=state)
            if self.rng.random() < 0.2 and len(self.api.mock.faults) < len(FAULTS):
                self.api.mock.faults.append(self.rng.choice(FAULTS))

    async def _client(self, number: int, end: float) -> None:
        token = TOKENS[number % len(TOKENS)]
        one: Connection | None = None
        count = 0
        while time.monotonic() < end:
            count += 1
            await asyncio.sleep(self.rng.uniform(0, 0.02))
            try:
                if one is None:
                    one = await opened(self.port)
                if not await self._call(one, f"client{number}-{count}", token):
                    one = None
            except (Broken, TimeoutError) as error:
                self.failures[str(error) or type(error).__name__] += 1
                one = None
        if one is not None:
            await one.close()

    async def _call(self, one: Connection, id: str, token: str) -> bool:
        """Whether the connection is still of use."""
        rng = self.rng
        (kind,) = rng.choices(tuple(KINDS), tuple(KINDS.values()))
        conversation = rng.choice(BUSY)
        if kind in {"fill", "read"} and rng.random() < 0.3:
            conversation = rng.choice(QUIET)
        participant = rng.choice(PEOPLE)
        body = b'{"attributes": {"%s": "%s"}}' % (NOTE, id.encode())
        if kind == "explicit":
            body = b'{"state": "%s", "attributes": {}}' % rng.choice(EXPLICIT[self.profile]).encode()
        method, target = "PATCH", rig.path(conversation, participant)
        if kind == "write":
            method, target, body = "POST", f"/api/v2/conversations/{conversation}/disconnect", b""
        elif kind == "read":
            method, target, body = "GET", f"{rig.CONVERSATIONS}/{conversation}", b""
        asked = Asked(id, kind, conversation, participant, body, time.time())
        self.asked.append(asked)
        headers = [("Authorization", f"Bearer {token}"), ("X-Request-Id", id)]
        if method == "PATCH":
            headers.append(("Content-Type", rng.choice(CONTENT_TYPES)))
        if conversation in BUSY and rng.random() < LEAVES:
            one.send(method, target, headers, body or None)
            await asyncio.sleep(rng.uniform(0, 0.05))
            one.reset()
            return False
        reply = await one.call(method, target, headers, body or None)
        asked.status = reply.status
        asked.refused = b'"refused_by": "gateway"' in reply.body
        return True


def lines(audit: Path) -> list[tuple[float, Mapping[str, Any]]]:
    found = []
    for text in audit.read_text().splitlines():
        line = json.loads(text)
        found.append((datetime.fromisoformat(line["time"]).timestamp(), line))
    return found


def digest(body: bytes) -> str:
    return hmac.digest(derived(KEY.encode(), "audit body"), body, "sha256").hex()


async def run(profile: str, a: argparse.Namespace, work: Path) -> int:
    rng = random.Random(f"{a.seed} {profile}")
    skew = time.time() - time.monotonic()
    async with watched(profile, rng) as (port, api):
        fill = {"allow": sorted(ALLOW[profile]), "max_age": f"{a.max_age}s", "settle": f"{a.settle}s"}
        stack = contextlib.ExitStack()
        # In a thread: calls that their clients left are still in flight when the gateway is stopped.
        gateway = await asyncio.to_thread(
            stack.enter_context, rig.gateway(work, port, fill=fill, credentials={"key": KEY})
        )
        try:
            load = Load(profile, gateway.port, api, rng)
            await load.run(a.clients, a.seconds)
            counts = await asyncio.to_thread(gateway.counts)
        finally:
            await asyncio.to_thread(stack.close)
        log = lines(gateway.audit)
    if abs(time.time() - time.monotonic() - skew) > 0.001:
        print("warning: the machine's clock was set amid the run: ages may be judged wrongly")
    judged = Run(Terms(a.max_age, a.settle, ALLOW[profile]), load.asked, api.seen, log, digest)
    return report(profile, load, judged, counts, log, a)


def report(
    profile: str,
    load: Load,
    run: Run,
    counts: Mapping[str, int],
    log: Sequence[tuple[float, Mapping[str, Any]]],
    a: argparse.Namespace,
) -> int:
    violations = run.violations()
    patches = sum(one.kind in {"fill", "explicit"} for one in load.asked)
    statuses = Counter(one.status for one in load.asked)
    refused = Counter(one.status for one in load.asked if one.refused)
    unfilled = Counter(line["reason"] for _, line in log if line["event"] == "skip")
    unfilled.update(line["skipped"] for _, line in log if line["event"] == "rewrite" and "skipped" in line)
    unlike = sum(fill.seen.before.get(fill.asked.participant) not in {None, fill.value} for fill in run.fills)
    results = ("sent", "cached", "coalesced", "learned", "disagreed")
    again = [counts.get(f"gateway_{name}_total", 0) for name in ("refills", "conflicts")]
    rig.table(
        [profile, "figure"],
        [
            ["clients, seconds, calls", f"{a.clients}, {a.seconds:g}, {len(load.asked)}"],
            ["PATCHes, of them filled", f"{patches}, {len(run.fills)}"],
            ["**look-ups per 1,000 PATCHes**", f"**{per_thousand(load, run, BUSY + QUIET)}**"],
            ["of them where others write / where nobody else does",
             f"{per_thousand(load, run, BUSY)} / {per_thousand(load, run, QUIET)}"],
            ["look-ups: " + ", ".join(results),
             ", ".join(str(counts.get(f'gateway_lookups_total{{result="{name}"}}', 0)) for name in results)],
            ["refills, conflicts", ", ".join(map(str, again))],
            ["replies", told(statuses)],
            ["of them the gateway's own", told(refused)],
            ["clients without a reply, but those that left", told(load.failures)],
            ["left as it was, or unfilled", told(unfilled)],
            ["fills that met another truth (changed out of band, or lag)", unlike],
            ["conversations on which S8 could be judged", len(run.undisturbed())],
            ["**violations**", f"**{told(Counter(one.promise for one in violations))}**"],
        ],
    )  # fmt: skip
    for violation in violations[:20]:
        print(f"{violation.promise}: {violation.what}")
    print(flush=True)
    return len(violations)


def per_thousand(load: Load, run: Run, conversations: Sequence[str]) -> str:
    patches = sum(
        one.kind in {"fill", "explicit"} and one.conversation in conversations for one in load.asked
    )
    return f"{1000 * sum(one.conversation in conversations for one in run.look_ups) / max(1, patches):.0f}"


def told(counter: Counter[Any]) -> str:
    return ", ".join(f"{count}x {what}" for what, count in counter.most_common()) or "none"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--clients", type=int, default=200)
    ap.add_argument("--seconds", type=float, default=60)
    ap.add_argument("--profiles", default="strict,documented")
    ap.add_argument("--max-age", type=float, default=1.0)
    ap.add_argument("--settle", type=float, default=2.0)
    ap.add_argument("--seed", default="1")
    a = ap.parse_args()
    rig.pinned_off_the_gateway()
    broken = 0
    for profile in a.profiles.split(","):
        with rig.folder() as work:
            broken += uvloop.run(run(profile, a, work))
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
