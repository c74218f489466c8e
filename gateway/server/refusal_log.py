"""
What the log says of clients that were refused or cut off: enough to see it, and never a line for each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from gateway.errors import AbortCause, GatewayError
from gateway.server.line_limit import LineLimit

MAX_DETAIL: Final = 300  # characters of what an error says of itself

logger = logging.getLogger("gateway")


class RefusalLog:
    def __init__(self, limit: LineLimit | None = None) -> None:
        self._limit = limit or LineLimit()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.on_refusal: Callable[[GatewayError], None] | None = None  # told of each

    def refused(self, error: GatewayError, client: str) -> None:
        if self.on_refusal is not None:
            self.on_refusal(error)
        self.tell(error, client)

    def tell(self, error: GatewayError, client: str) -> None:
        slug = error.slug()
        if self._admits(f"refused: {slug}"):
            logger.warning("refused: %s: %s; client %s", slug, _one_line(error.detail), client)

    def aborted(self, cause: AbortCause, client: str) -> None:
        if self._admits(f"connection aborted: {cause}"):
            logger.warning("connection aborted: %s; client %s", cause, client)

    def _admits(self, cause: str) -> bool:
        loop = asyncio.get_running_loop()
        if self._limit.admits(cause, loop.time()):
            return True
        due = self._limit.due(cause)
        if due is not None and cause not in self._timers:
            self._timers[cause] = loop.call_at(due, self._say_how_many, cause, loop)
        return False

    def _say_how_many(self, cause: str, loop: asyncio.AbstractEventLoop) -> None:
        del self._timers[cause]
        count = self._limit.unsaid(cause, loop.time())
        logger.warning("%s: %d more in the last %g s", cause, count, self._limit.every)


def _one_line(detail: str) -> str:
    """Some of it may be a stranger's: no control character of it reaches the log."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in detail[:MAX_DETAIL])
