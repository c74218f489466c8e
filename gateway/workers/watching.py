"""
A worker's side of the live page: while the supervisor asks what came, it is one of those who watch here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.admin.live import SHOWN, Live, Stream
from gateway.workers import merged


class Watching:
    def __init__(self, live: Live) -> None:
        self._live = live
        self._stream: Stream | None = None

    def came(self) -> dict[str, Any]:
        """Since it was asked before: nothing, the first time."""
        if self._stream is None:
            self._stream = self._live.stream()
        told: list[dict[str, Any]] = []
        while self._stream is not None and not self._stream.events.empty():
            event = self._stream.events.get_nowait()
            if event is not None:
                told.append(msgspec.json.decode(event.partition(b"\ndata: ")[2]))
        return merged.came(told, SHOWN)

    def end(self) -> None:
        if self._stream is not None:
            self._live.leave(self._stream)
            self._stream = None
