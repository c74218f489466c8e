"""
Whether a call has left: what did not leave changed nothing.
"""

from __future__ import annotations

from gateway.upstream.transport import BeforeSend, Commit


class Departure:
    """A `before_send` that remembers that it was called. From then on the upstream may have the call."""

    __slots__ = ("_before_send", "left")

    def __init__(self, before_send: BeforeSend) -> None:
        self._before_send = before_send
        self.left = False

    def __call__(self) -> Commit | None:
        commit = self._before_send()
        self.left = True
        return commit
