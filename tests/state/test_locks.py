"""The conversation locks in memory, in virtual time: they keep the contract."""

from __future__ import annotations

from gateway.state.locks import MemoryLocks
from tests.state.conformance import LocksContract


class TestMemoryLocks(LocksContract):
    def make(self) -> MemoryLocks:
        return MemoryLocks(self.TIMEOUT, self.MAX_WAITING)
