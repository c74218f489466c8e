"""
The store in this process's memory, on cachetools: bounded in entries and in bytes.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

from cachetools import LRUCache

from gateway.state.store import Key, Reading

# What an entry costs beside its body: the key, the reading, the cache's links. Measured, rounded up.
OVERHEAD = 1024


class MemoryStore:
    """
    Generations are drawn from one counter for all conversations, so one that was evicted and came back
    has a new generation: a reading begun before can't be mistaken for a current one.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._numbers = itertools.count(1)
        # What was forgotten longest ago is dropped first. No cache class, since every fill asks it.
        self._generations: OrderedDict[str, int] = OrderedDict()
        self._readings: LRUCache[Key, Reading] = LRUCache(
            max_bytes, getsizeof=lambda reading: len(reading.body) + OVERHEAD
        )
        self._max_entries = max_entries

    async def generation(self, conversation: str) -> int:
        generation = self._generations.get(conversation)
        return self._next(conversation) if generation is None else generation

    def _next(self, conversation: str) -> int:
        generation = self._generations[conversation] = next(self._numbers)
        self._generations.move_to_end(conversation)
        if len(self._generations) > self._max_entries:
            self._generations.popitem(last=False)
        return generation

    def try_get(self, key: Key) -> Reading | None:
        try:
            reading = self._readings[key]
        except KeyError:
            return None
        return reading if self._generations.get(key.conversation) == reading.generation else None

    async def get(self, key: Key) -> Reading | None:
        return self._readings.get(key)

    async def keep(self, key: Key, reading: Reading) -> bool:
        if self._generations.get(key.conversation) != reading.generation:
            return False
        if len(reading.body) + OVERHEAD > self._readings.maxsize:
            return False
        self._readings[key] = reading
        while len(self._readings) > self._max_entries:
            self._readings.popitem()
        return True

    async def invalidate(self, conversation: str | None) -> None:
        if conversation is None:
            self._generations.clear()
        else:
            self._next(conversation)

    def __len__(self) -> int:
        return len(self._readings)
