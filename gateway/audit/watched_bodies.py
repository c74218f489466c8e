"""
The bodies of the latest calls, before and after, held while somebody watches, and only as long: their shapes
are made of them later, off the way of a call (L3: no value of them is ever told).
"""

from __future__ import annotations

from typing import Final, NamedTuple

KEPT: Final = 256  # calls: as many as may be in flight while the page's next event is made, and more
LARGEST: Final = 16 * 1024  # bytes: of a larger one only that it was too large is kept


class Bodies(NamedTuple):
    """`after` is None where the call went on as it came, either where it was larger than LARGEST."""

    before: bytes | None
    after: bytes | None
    changed: bool


class WatchedBodies:
    def __init__(self) -> None:
        self.watching = False  # who is on the way of a call asks this, and mostly does no more
        self._latest: dict[str, Bodies] = {}

    def saw(self, call: str, before: bytes, after: bytes | None = None) -> None:
        """`call` is its id. What a rewrite made of it counts more than that it went on as it came."""
        if after is None:
            if call not in self._latest:
                self._latest[call] = Bodies(_kept(before), None, False)
        else:
            self._latest[call] = Bodies(_kept(before), _kept(after), True)
        if len(self._latest) > KEPT:
            del self._latest[next(iter(self._latest))]

    def take(self, call: str) -> Bodies | None:
        return self._latest.pop(call, None)

    def watch(self, watching: bool) -> None:
        self.watching = watching
        if not watching:
            self._latest.clear()


def _kept(body: bytes) -> bytes | None:
    return body if len(body) <= LARGEST else None
