"""
Small replies, written at the end of the loop's turn: all that came to be in it leave one after the other.

A write wakes who reads it, on another processor as a rule. One after the other they cost a third less than
with other work between them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class Flushed(Protocol):
    def flush(self) -> None: ...


class TurnWrites:
    def __init__(self) -> None:
        self._flows: deque[Flushed] = deque()

    def add(self, flow: Flushed, loop: asyncio.AbstractEventLoop) -> None:
        if not self._flows:
            loop.call_soon(self._flush, loop)
        self._flows.append(flow)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        flows = self._flows
        try:
            while flows:
                flows.popleft().flush()
        finally:
            if flows:  # one failed: the others go on
                loop.call_soon(self._flush, loop)
