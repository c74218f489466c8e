"""
Whether a call has left, and that it is recorded once: what did not leave changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.upstream.transport import Commit


def _unrecorded() -> None:
    """What no rule matches has no line on the log."""


class Departure:
    """
    A `before_send`: `left` says whether the upstream may have the call, unless the sending raises an error
    that is UNSENT. It is asked again where a connection was lost before the first byte: what `allow` raises
    keeps the call back each time, but it is recorded once.
    """

    __slots__ = ("_allow", "_record", "_recorded", "left")

    def __init__(self, allow: Callable[[], None], record: Callable[[], Commit | None] = _unrecorded) -> None:
        self._allow = allow
        self._record = record
        self._recorded = False
        self.left = False

    def __call__(self) -> Commit | None:
        self.left = False
        self._allow()
        commit = self.record()
        self.left = True
        return commit

    def record(self) -> Commit | None:
        if self._recorded:
            return None
        self._recorded = True
        return self._record()
