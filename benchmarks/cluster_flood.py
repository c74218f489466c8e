"""
What a Redis server keeps of a flood of conversations: keys, those that end by themselves, memory.

    .venv/bin/python -m benchmarks.cluster_flood --conversations 1000000 --seconds 60

Each conversation has what a fill and an accepted value have there: a shared lock and a view, a stamp, a
reading, the value; asked through the store itself.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time

import uvloop

from benchmarks import rig
from gateway.state.shared import SharedState, shared_state
from gateway.state.store import Key, Reading
from tests.support.redis_servers import RedisProcess

AT_ONCE = 200
CALLERS = 1000
BODY = b'{"participants": [{"id": "p1", "state": "connected"}], "more": "%s"}' % (b"x" * 400)
FIGURES = re.compile(rb"\b(used_memory|keys|expires)[:=](\d+)")


def shared(redis: RedisProcess, max_entries: int) -> SharedState:
    return shared_state(
        redis.url,
        key=b"k" * 32,
        deployment="benchmark",
        tls=None,
        timeout=5.0,
        settle=2.0,
        max_entries=max_entries,
        max_remembered=2**20,
        lock_timeout=5.0,
        in_flight=5.0,
    )


async def conversation(state: SharedState, number: int) -> None:
    key = Key(f"c{number}", b"/conversations/%d" % number, f"caller-{number % CALLERS}")
    subject = ("rule", key.conversation, "p1")
    entered = await state.locks.enter(key, subject)
    assert entered is not None
    entered[0].release()
    stamp = await state.store.stamp(key.conversation)
    assert await state.store.put(key, Reading(BODY, stamp.time, stamp.generation))
    await state.store.accept(subject, "connected", 2.0)


def figures(redis: RedisProcess) -> dict[str, int]:
    said = (
        redis.command("INFO", "memory") + redis.command("INFO", "keyspace") + redis.command("INFO", "stats")
    )
    return {name.decode(): int(value) for name, value in FIGURES.findall(said)}


async def run(max_entries: int, a: argparse.Namespace) -> list[str]:
    redis = await asyncio.to_thread(RedisProcess)
    try:
        state = shared(redis, max_entries)
        numbers = iter(range(a.conversations))
        begun = time.monotonic()
        done = 0

        async def some() -> None:
            nonlocal done
            for number in numbers:
                await conversation(state, number)
                done += 1
                if time.monotonic() - begun > a.seconds:
                    return

        # The first connects, and is alone.
        await conversation(state, a.conversations)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())
        took = time.monotonic() - begun
        await asyncio.sleep(0.5)
        found = figures(redis)
        await state.locks.close()
        await state.store.close()
    finally:
        await asyncio.to_thread(redis.close)
    keys, ending, memory = found["keys"], found["expires"], found["used_memory"]
    return [
        f"{max_entries:,}", f"{done:,}", f"{took:.0f}", f"{keys:,}", f"{keys - ending:,}",
        f"{memory / rig.MIB:.0f}", f"{memory / done:.0f}",
    ]  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--conversations", type=int, default=1_000_000)
    ap.add_argument("--seconds", type=float, default=60)
    ap.add_argument("--max-entries", default="1000000,10000")
    a = ap.parse_args()
    rows = [uvloop.run(run(int(most), a)) for most in a.max_entries.split(",")]
    rig.table(
        ["`max_entries`", "conversations", "s", "keys", "that never end", "MiB", "bytes a conversation"], rows
    )


if __name__ == "__main__":
    main()
