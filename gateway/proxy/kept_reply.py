"""
A reply that is kept while it is relayed, as long as that takes no more memory than it may.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from gateway.errors import Overloaded
from gateway.proxy.buffered import BufferBudget

UNCOUNTED: Final = 64 * 1024  # bytes, past which it counts in the budget


class KeptReply:
    """Up to `limit` bytes. What is longer, or finds no room, is dropped: the relay goes on without it."""

    def __init__(self, budget: BufferBudget, caller: Hashable, limit: int) -> None:
        self._budget = budget
        self._caller = caller
        self._limit = limit
        self._pieces: list[bytes] | None = []
        self._size = 0
        self._held = 0

    def add(self, piece: bytes) -> None:
        if self._pieces is None:
            return
        self._size += len(piece)
        if self._size > self._limit:
            self.drop()
            return
        if self._size > UNCOUNTED:
            try:
                self._budget.take(self._caller, self._size - self._held)
            except Overloaded:
                self.drop()
                return
            self._held = self._size
        self._pieces.append(piece)

    def whole(self) -> bytes | None:
        return None if self._pieces is None else b"".join(self._pieces)

    def drop(self) -> None:
        self._pieces = None
        if self._held:
            held, self._held = self._held, 0
            self._budget.give_back(self._caller, held)
