"""
What it costs that several gateways share their state: GETs of a storm of first calls, and what a call waits.

    .venv/bin/python -m benchmarks.cluster_costs storm
    .venv/bin/python -m benchmarks.cluster_costs quiet

storm: two gateways, and a hundred first calls at once for one conversation and caller, on one conversation
after the other. quiet: fills at a fixed rate through a gateway with its state in memory, and through one with
it on Redis, by turns in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path

import uvloop

from benchmarks import rig
from benchmarks.client import Connection, opened
from benchmarks.cluster import pair
from benchmarks.freshness import KEY, watched
from tests.support.redis_servers import RedisProcess

BODY = b'{"attributes": {"supervisorNote": "test"}}'
HEADERS = [("Authorization", "Bearer alice"), ("Content-Type", "application/json")]
SETTLE = 2.0
CONNECTIONS = 16


# --- storm


async def storm(a: argparse.Namespace, work: Path) -> None:
    redis = await asyncio.to_thread(RedisProcess)
    rng = random.Random("storm")
    fill: dict[str, object] = {"settle": f"{SETTLE:g}s"}
    try:
        async with watched("strict", rng) as (port, api), pair(work, port, redis, fill) as nodes:
            clients = [await opened(one.port) for one in nodes for _ in range(a.calls // len(nodes))]
            for client in clients:
                await client.call("PATCH", rig.path("warm"), HEADERS, BODY)
            # On a new server it is not known what was accepted before, so that each round looks up again.
            await asyncio.sleep(SETTLE)
            gets: list[int] = []
            statuses: Counter[int] = Counter()
            for number in range(a.conversations):
                api.seen.clear()
                path = rig.path(f"storm-{number}")
                replies = await asyncio.gather(
                    *(client.call("PATCH", path, HEADERS, BODY) for client in clients)
                )
                statuses.update(reply.status for reply in replies)
                gets.append(sum(one.method == "GET" for one in api.seen))
            for client in clients:
                await client.close()
    finally:
        await asyncio.to_thread(redis.close)
    rig.table(
        ["storms of first calls at once", "replies", "GETs of each: least, most", "in all"],
        [[f"{a.conversations} of {a.calls}", dict(statuses), f"{min(gets)}, {max(gets)}", sum(gets)]],
    )


# --- quiet


async def paced(port: int, rate: float, seconds: float, taken: list[float]) -> None:
    free: list[Connection] = [await opened(port) for _ in range(CONNECTIONS)]
    everyone = list(free)

    async def call(number: int) -> None:
        one = free.pop()
        begun = time.perf_counter()
        reply = await one.call("PATCH", rig.path(f"c{number % 50}"), HEADERS, BODY)
        taken.append(time.perf_counter() - begun)
        assert reply.status == 200, reply
        free.append(one)

    begun = time.perf_counter()
    number = 0
    async with asyncio.TaskGroup() as group:
        while (now := time.perf_counter() - begun) < seconds:
            number += 1
            await asyncio.sleep(max(0.0, number / rate - now))
            if free:
                group.create_task(call(number))
    for one in everyone:
        await one.close()


def quiet(a: argparse.Namespace, work: Path) -> None:
    redis = RedisProcess()
    try:
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(rig.upstream(work))
            sections = {"memory": {}, "redis": {"store": {"url": redis.url}}}
            gateways = {}
            for name, section in sections.items():
                (work / name).mkdir()
                gateways[name] = stack.enter_context(
                    rig.gateway(work / name, upstream, credentials={"key": KEY}, **section)
                )
            taken: dict[str, list[float]] = {name: [] for name in gateways}
            for turn in range(a.rounds + 1):
                for name, one in gateways.items():
                    uvloop.run(paced(one.port, a.rate, a.seconds if turn else 3, taken[name] if turn else []))
    finally:
        redis.close()
    rows = [
        [name, len(values), *(f"{rig.quantile(values, share) * 1000:.2f}" for share in (0.5, 0.9, 0.99))]
        for name, values in taken.items()
    ]
    rig.table([f"{a.rate:g} fills a second, ms", "calls", "p50", "p90", "p99"], rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=("storm", "quiet"))
    ap.add_argument("--calls", type=int, default=100)
    ap.add_argument("--conversations", type=int, default=20)
    ap.add_argument("--rate", type=float, default=300)
    ap.add_argument("--seconds", type=float, default=5)
    ap.add_argument("--rounds", type=int, default=4)
    a = ap.parse_args()
    rig.pinned_off_the_gateway()
    with rig.folder() as work:
        if a.what == "storm":
            uvloop.run(storm(a, work))
        else:
            quiet(a, work)


if __name__ == "__main__":
    main()
