"""
The live page's data, of all workers: asked for four times a second, and only while somebody watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from gateway.admin.live import SHOWN, TICK, Live, event
from gateway.workers import merged
from gateway.workers.channel import NoAnswerFromThere
from gateway.workers.place import Place


class LiveOfAll(Live):
    def __init__(self, wall: Callable[[], float], places: Iterable[Place]) -> None:
        super().__init__(wall, [])
        self._places = list(places)

    async def _pump(self) -> None:
        clock = asyncio.get_running_loop().time
        seen: dict[int, int] = {}  # the number of the last call, by its worker's ordinal
        before = clock()
        try:
            while True:
                await asyncio.sleep(TICK)
                found = [one for one in await asyncio.gather(*[_since(p, seen) for p in self._places]) if one]
                now = clock()
                said = {"seconds": round(now - before, 3), **merged.came(dict(found), SHOWN)}
                before = now
                for stream in self._streams:
                    stream.offer(event("calls", said))
        finally:
            for place in self._places:
                if place.channel is not None:
                    place.channel.tell("watch", False)


async def _since(place: Place, seen: dict[int, int]) -> tuple[int, dict[str, Any]] | None:
    ordinal = place.ordinal
    try:
        if ordinal not in seen:
            seen[ordinal] = await place.ask("watch", True)
        said = await place.ask("since", seen[ordinal])
    except NoAnswerFromThere:
        return None
    seen[ordinal] = said["number"]
    return ordinal, said
