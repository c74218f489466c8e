"""
What one step on a Redis server costs in this process, by client: a fill's view, 50 asked at once.

    python -m benchmarks.redis_clients [seconds]

A client that is not installed is left out. `own` is gateway/state/redis_connection.py. Then whole views of
1,000 conversations over TCP, on one server and on a cluster of three on the same processors.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from gateway.state.redis_connection import RedisConnection
from gateway.state.redis_server import Script
from gateway.state.shared import shared_state
from gateway.state.store import Key, Reading
from tests.support.redis_kinds import RedisCluster
from tests.support.redis_servers import RedisProcess

AT_ONCE = 50
SCRIPT = Script("seen", "view")
KEYS = ["r", "r:{c}", "r:{c}:r:k", "r:{c}:a:s", "r:pause:k"]
ARGS = [str(2**53), ""]

Step = Callable[[], Awaitable[Any]]


async def own(path: str) -> Step:
    connection = await RedisConnection.open(path, None, 5.0)
    await connection.ask("HELLO", 3)
    return lambda: connection.ask("EVALSHA", SCRIPT.digest, 5, *KEYS, *ARGS)


async def redis_py(path: str) -> Step:
    module = importlib.import_module("redis.asyncio")
    client = module.Redis(unix_socket_path=path)
    return lambda: client.evalsha(SCRIPT.digest, 5, *KEYS, *ARGS)


async def coredis(path: str) -> Step:
    module = importlib.import_module("coredis")
    client = module.Redis(unix_socket_path=path)
    await client.__aenter__()
    return lambda: client.evalsha(SCRIPT.digest, keys=KEYS, args=ARGS)


async def glide(port: str) -> Step:
    module = importlib.import_module("glide")
    addresses = [module.NodeAddress("127.0.0.1", int(port))]
    client = await module.GlideClient.create(module.GlideClientConfiguration(addresses))
    words = ["EVALSHA", SCRIPT.digest, "5", *KEYS, *ARGS]
    return lambda: client.custom_command(words)


async def views(url: str, seconds: float) -> tuple[float, float]:
    state = shared_state(
        url,
        key=b"k" * 32,
        deployment="views",
        tls=None,
        timeout=5.0,
        settle=0.0,
        max_entries=10_000,
        max_remembered=2**24,
        lock_timeout=5.0,
        in_flight=5.0,
    )
    keys = [Key(f"c{number}", b"/conversations/c%d" % number, "A") for number in range(1000)]
    for key in keys:
        stamp = await state.store.stamp(key.conversation)
        await state.store.put(key, Reading(b"{}", stamp.time, stamp.generation))
    asked = itertools.cycle([(key, ("state", key.conversation, "p1")) for key in keys])
    try:
        await measured(lambda: state.store.view(*next(asked)), seconds / 5)
        return await measured(lambda: state.store.view(*next(asked)), seconds)
    finally:
        await state.locks.close()
        await state.store.close()


CLIENTS = {"own": own, "redis-py": redis_py, "coredis": coredis, "valkey-glide": glide}


async def measured(step: Step, seconds: float) -> tuple[float, float]:
    """Steps a second, and microseconds of this process for each."""
    done = 0
    ends = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < ends:
            await step()
            done += 1

    began, spent = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return done / (time.perf_counter() - began), (time.process_time() - spent) / done * 1e6


async def main(seconds: float) -> None:
    port = "16391"
    process = RedisProcess("--port", port, "--bind", "127.0.0.1")
    try:
        process.command("SCRIPT", "LOAD", SCRIPT.text)
        print("| client | steps a second | µs of our processor for each |\n|---|---:|---:|")
        for name, made in CLIENTS.items():
            try:
                step = await made(port if name == "valkey-glide" else str(process.path))
            except ImportError:
                print(f"| {name} | not installed | |")
                continue
            await measured(step, seconds / 5)
            rate, cost = await measured(step, seconds)
            print(f"| {name} | {rate:,.0f} | {cost:.1f} |", flush=True)
        print("\n| whole views | a second | µs of our processor for each |\n|---|---:|---:|")
        cluster = RedisCluster()
        cluster.ready()
        try:
            kinds = {"one server": f"redis://127.0.0.1:{port}", "a cluster of three": cluster.url}
            for name, url in [*kinds.items()] * 2:
                rate, cost = await views(url, seconds)
                print(f"| {name} | {rate:,.0f} | {cost:.1f} |", flush=True)
        finally:
            cluster.close()
    finally:
        process.close()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))
