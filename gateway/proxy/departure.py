"""
Whether a call has left, and that it is recorded once: what did not leave changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from gateway.upstream.transport import Commit


def _unrecorded() -> None:
    """What no rule matches has no line on the log."""


class Departure(Struct, eq=False):
    """
    A `before_send`: `left` says whether the upstream may have the call, unless the sending raises an error
    that is UNSENT. It is asked again where a connection was lost before the first byte: what `allow` raises
    keeps the call back each time, but it is recorded once.
    """

    _allow: Callable[[], None]
    _record: Callable[[], Commit | None] = _unrecorded
    _recorded: bool = False
    left: bool = False

    def __call__(self) -> Commit | None:
        self.left = False
        self._allow()
        commit = None
        if not self._recorded:
            self._recorded = True
            commit = self._record()
        self.left = True
        return commit

    def record(self) -> Commit | None:
        if self._recorded:
            return None
        self._recorded = True
        return self._record()
