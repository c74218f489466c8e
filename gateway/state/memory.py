"""
The store in this process's memory: bounded in entries and in bytes.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from gateway.state.store import Accepted, Key, Pause, Reading, Refusal, Stamp, Suspension, View

# What an entry costs beside its body: the key, the reading, the tables' links. Measured, rounded up.
OVERHEAD = 1280


class Sizes(NamedTuple):
    """How many entries each table has."""

    readings: int
    generations: int
    accepted: int
    pauses: int


class MemoryStore:
    """
    Generations are drawn from one counter for all conversations, so one that was dropped and came back
    has a new generation: a reading begun before can't be mistaken for a current one.
    """

    def __init__(self, max_entries: int, max_bytes: int, clock: Callable[[], float]) -> None:
        """Each table has `max_entries` at most; `max_bytes` bounds the readings. `clock` never jumps."""
        self.now = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0
        self._numbers = itertools.count(1)
        # The tables in the order in which they are dropped: what was used longest ago is the first of the
        # readings, what was set longest ago of the others. No cache class, since every fill asks them.
        self._readings: OrderedDict[Key, Reading] = OrderedDict()
        self._generations: OrderedDict[str, int] = OrderedDict()
        # Of those that a write has suspended, the generation that it may give back.
        self._suspended: dict[str, int] = {}
        self._accepted: OrderedDict[tuple[str, ...], Accepted] = OrderedDict()
        self._pauses: OrderedDict[str, Pause] = OrderedDict()
        # What holds for all whose accepted value was dropped, once that has happened.
        self._dropped: Accepted | None = None

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View:
        time = self.now()
        generation = self._generations.get(key.conversation)
        if generation is None:
            generation = self._next_generation(key.conversation)
        reading = self._readings.get(key)
        if reading is not None:
            self._readings.move_to_end(key)
        return View(
            time,
            generation,
            reading,
            self._accepted.get(subject, self._dropped) if self._accepted else None,
            self._current_pause(key.credential, time) if self._pauses else None,
        )

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        return self.try_view(key, subject)

    async def stamp(self, conversation: str) -> Stamp:
        generation = self._generations.get(conversation)
        return Stamp(self.now(), self._next_generation(conversation) if generation is None else generation)

    def _next_generation(self, conversation: str) -> int:
        generation = self._generations[conversation] = next(self._numbers)
        self._generations.move_to_end(conversation)
        if len(self._generations) > self._max_entries:
            dropped, _ = self._generations.popitem(last=False)
            self._suspended.pop(dropped, None)
        return generation

    async def put(self, key: Key, reading: Reading) -> bool:
        oldest = self._suspended.get(key.conversation) or self._generations.get(key.conversation)
        if oldest is None or reading.generation < oldest:
            return False
        kept = self._readings.get(key)
        if kept is not None and kept.generation >= reading.generation and kept.started > reading.started:
            return False
        size = _size(reading)
        if size > self._max_bytes:
            return False
        if kept is not None:
            self._drop(key)
        self._readings[key] = reading
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._readings) > self._max_entries:
            self._drop(next(iter(self._readings)))
        return True

    def _drop(self, key: Key) -> None:
        self._bytes -= _size(self._readings.pop(key))

    async def invalidate(self, conversation: str | None) -> None:
        if conversation is None:
            self._generations.clear()
            self._suspended.clear()
        else:
            self._suspended.pop(conversation, None)
            self._next_generation(conversation)

    async def suspend(self, conversation: str) -> Suspension:
        before = self._generations.get(conversation)
        if before is None:
            before = self._next_generation(conversation)
        self._suspended[conversation] = before
        return Suspension(conversation, before, self._next_generation(conversation))

    async def reinstate(self, suspension: Suspension) -> None:
        if self._generations.get(suspension.conversation) == suspension.generation:
            self._generations[suspension.conversation] = suspension.before
            self._suspended.pop(suspension.conversation, None)

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        since = self.now()
        self._accepted[subject] = Accepted(value, since, since + settle)
        self._accepted.move_to_end(subject)
        if len(self._accepted) > self._max_entries:
            _, dropped = self._accepted.popitem(last=False)
            until = dropped.until if self._dropped is None else max(self._dropped.until, dropped.until)
            self._dropped = Accepted(None, -math.inf, until)

    async def pause(self, credential: str, refusal: Refusal, seconds: float) -> None:
        self._pauses[credential] = Pause(self.now() + seconds, refusal)
        self._pauses.move_to_end(credential)
        if len(self._pauses) > self._max_entries:
            self._pauses.popitem(last=False)

    def _current_pause(self, credential: str, time: float) -> Pause | None:
        pause = self._pauses.get(credential)
        if pause is None or pause.until > time:
            return pause
        del self._pauses[credential]
        return None

    def sizes(self) -> Sizes:
        return Sizes(len(self._readings), len(self._generations), len(self._accepted), len(self._pauses))

    @property
    def bytes(self) -> int:
        """That the readings are taken to need."""
        return self._bytes

    async def close(self) -> None:
        """Nothing is open."""


def _size(reading: Reading) -> int:
    return len(reading.body) + OVERHEAD
