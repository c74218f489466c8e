"""
The callers as the live page has them: from their file where one is kept, else from the calls in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.admin.live import CALLERS
from gateway.audit import callers_file
from gateway.errors import Unrecordable

DAYS: Final = 14
EVERY: Final = 2.0  # seconds for which one reading does, however many pages are open


class ShownCallers:
    """`wall` gives Unix seconds, `clock` ones that never jump. `stable`: names outlive a restart."""

    def __init__(
        self,
        path: str | None,
        latest: Callable[[], list[dict[str, Any]]],
        wall: Callable[[], float],
        clock: Callable[[], float],
        stable: bool,
    ) -> None:
        self._path = path
        self._latest = latest
        self._wall = wall
        self._clock = clock
        self._stable = stable
        self._turn = asyncio.Lock()
        self._read: tuple[float, dict[str, Any]] | None = None

    async def __call__(self) -> dict[str, Any]:
        if self._path is None:
            return {"kept": False, "callers": self._latest()}
        async with self._turn:
            if self._read is None or self._clock() - self._read[0] >= EVERY:
                found = await asyncio.to_thread(self._from_file, self._path)
                self._read = self._clock(), found
            return self._read[1]

    def _from_file(self, path: str) -> dict[str, Any]:
        try:
            found = callers_file.read(path, DAYS, self._wall(), CALLERS)
        except Unrecordable as error:
            return {"kept": False, "callers": self._latest(), "problem": str(error)}
        return {"kept": True, "stable": self._stable, "callers": msgspec.to_builtins(found)}
