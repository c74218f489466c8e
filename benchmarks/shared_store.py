"""
What calls take of the Redis server that gateways share: questions, commands, bytes, its processor, memory.

    .venv/bin/python -m benchmarks.shared_store --conversations 5000

One gateway on processor 0, 32 clients, and each conversation in turn: its first fill, four fills of what was
read, an explicit write, a fill after it. `flood`: as many conversations more; what each leaves behind.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable

import uvloop

from benchmarks import rig
from benchmarks.client import connection
from tests.support.redis_servers import RedisProcess

CLIENTS = 32
FILL = b'{"attributes": {"note": "x"}}'
EXPLICIT = b'{"state": "connected"}'
FIELDS = [("Authorization", "Bearer one"), ("Content-Type", "application/json")]


def counted(redis: RedisProcess) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in ("stats", "cpu", "memory", "commandstats"):
        for line in redis.command("INFO", part).decode().splitlines():
            name, colon, value = line.partition(":")
            if name == "cmdstat_evalsha":
                value = value.split(",")[0].partition("=")[2]
            if colon and value.replace(".", "", 1).isdigit():
                found[name] = float(value)
    return found


async def called(port: int, names: Iterable[str], body: bytes, times: int) -> int:
    waiting = iter([name for name in names for _ in range(times)])
    made = 0

    async def client() -> None:
        nonlocal made
        async with connection(port) as one:
            for name in waiting:
                reply = await one.call("PATCH", rig.path(name), FIELDS, body)
                assert reply.status == 200, reply
                made += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    return made


COLUMNS = {
    "questions": ("cmdstat_evalsha",),
    "commands": ("total_commands_processed",),
    "bytes in": ("total_net_input_bytes",),
    "bytes out": ("total_net_output_bytes",),
    "µs of Redis": ("used_cpu_user", "used_cpu_sys"),
    "bytes kept": ("used_memory",),
}


async def main(number: int) -> None:
    redis = RedisProcess()
    store = {"url": redis.url}
    fill = {"max_age": "60s", "settle": "0s"}
    rows: list[tuple[str, ...]] = []
    try:
        with (
            rig.folder() as work,
            rig.upstream(work) as upstream,
            rig.gateway(work, upstream, fill=fill, store=store, credentials={"key": "k" * 32}) as gateway,
        ):
            names = [f"c{one}" for one in range(number)]
            phases = [
                ("first fill, with its GET", names, FILL, 1),
                ("fill of what was read", names, FILL, 4),
                ("explicit write", names, EXPLICIT, 1),
                ("fill after it, with its GET", names, FILL, 1),
                ("flood: first fill of others", [f"d{one}" for one in range(number)], FILL, 1),
            ]
            for what, those, body, times in phases:
                before = counted(redis)
                calls = await called(gateway.port, those, body, times)
                after = counted(redis)

                each = [
                    sum(after.get(one, 0) - before.get(one, 0) for one in counters) / calls
                    for counters in COLUMNS.values()
                ]
                each[-2] *= 1e6
                rows.append((what, f"{each[0]:.1f}", *(f"{one:,.0f}" for one in each[1:])))
    finally:
        redis.close()
    rig.table(("a call", *COLUMNS), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=5_000)
    uvloop.run(main(parser.parse_args().conversations))
