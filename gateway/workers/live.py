"""
The live page's data, of all workers: asked for four times a second, and only while somebody watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gateway.admin.live import SHOWN, TICK, Live, event
from gateway.audit.watched_bodies import WatchedBodies
from gateway.workers import merged
from gateway.workers.channel import NoAnswerFromThere
from gateway.workers.place import Place
from gateway.workers.worker_process import WorkerProcess


class LiveOfAll(Live):
    """As of one process, but that its events are what the workers say."""

    def __init__(
        self, wall: Callable[[], float], rules: list[dict[str, Any]], places: Sequence[Place]
    ) -> None:
        super().__init__(wall, rules, WatchedBodies())
        self._places = places

    async def _pump(self) -> None:
        clock = asyncio.get_running_loop().time
        before = clock()
        try:
            while True:
                await asyncio.sleep(TICK)
                found = await asyncio.gather(*map(_came, self._workers()))
                now = clock()
                told = merged.came([one for one in found if one is not None], SHOWN)
                said = event("calls", {"seconds": round(now - before, 3), **told})
                before = now
                for stream in self._streams:
                    stream.offer(said)
        finally:
            for worker in self._workers():
                worker.channel.tell("unwatch")

    def _workers(self) -> list[WorkerProcess]:
        return [worker for place in self._places for worker in place.processes if worker.follows]


async def _came(worker: WorkerProcess) -> dict[str, Any] | None:
    try:
        said: dict[str, Any] = await worker.channel.ask("came", seconds=2.0)
    except NoAnswerFromThere:
        return None
    return {**said, "calls": merged.numbered(said["calls"], worker.ordinal)}
