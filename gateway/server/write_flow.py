"""
Back pressure from one client: writing waits while it does not read, and one that reads too little is cut off.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from math import inf
from typing import Literal

from gateway.errors import AbortCause
from gateway.server.client_watch import ClientWatch
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.stalled_replies import StalledReplies
from gateway.server.unsent_replies import UnsentReplies

if sys.platform != "win32":
    import fcntl
    import termios


class ClientDisconnected(OSError):
    """Nothing can be sent to this client any more, and nothing more comes from it."""


def may_hold_one() -> bool:
    """Of a reply of which nobody can tell whether it holds a connection to the upstream."""
    return True


class WriteFlow:
    """
    The transport, and whether more may be written to it. `deadline` is when overdue() is to be asked. What
    counts is what the client has taken, not what the kernel has taken for it.
    """

    __slots__ = (
        "_cut_off",
        "_holds_connection",
        "_limits",
        "_loop",
        "_min_rate",
        "_stalled",
        "_together",
        "_unsent",
        "_unsent_replies",
        "_unsent_when_waiting",
        "_waiters",
        "_watch",
        "_written",
        "deadline",
        "paused",
        "transport",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        limits: ServerLimits,
        stats: ServerStats,
        cut_off: Callable[[AbortCause], None],
    ) -> None:
        self.transport = transport
        self._together = stats.together
        self._written = b""  # that waits for the end of the loop's turn
        self.paused = False
        self.deadline = inf
        self._loop = loop
        self._limits = limits
        self._stalled: StalledReplies | None = stats.stalled
        self._unsent_replies: UnsentReplies | None = stats.unsent
        self._cut_off: Callable[[AbortCause], None] | None = cut_off
        self._holds_connection: Callable[[], bool] = may_hold_one
        self._min_rate = limits.min_rate
        self._unsent = 0
        self._unsent_when_waiting = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._watch: ClientWatch | None = None

    def write(self, data: bytes) -> None:
        if self._written:
            self.flush()
        self.transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """With what others write in this turn of the loop. For what is small."""
        if self._written:
            self._written += data
        else:
            self._written = data
            self._together.add(self, self._loop)

    def flush(self) -> None:
        data, self._written = self._written, b""
        if data:
            self.transport.write(data)

    async def drain(self, holds_connection: Callable[[], bool] = may_hold_one) -> None:
        """
        Until the client has taken enough for more to be written, or has gone. `holds_connection`: whether
        what is written holds a connection to the upstream meanwhile.
        """
        stalled = self._stalled
        if self.paused and stalled is not None:
            self._unsent_when_waiting = self._count_unsent()
            self._holds_connection = holds_connection
            stalled.add(self, self._loop)
        try:
            while self.paused:
                waiter = self._loop.create_future()
                self._waiters.append(waiter)
                await waiter
        finally:
            if stalled is not None:
                stalled.discard(self)
                self._holds_connection = may_hold_one

    def taken_since_waiting(self) -> int:
        return self._unsent_when_waiting - self._count_unsent()

    def holds_connection(self) -> bool:
        return self._holds_connection()

    def cut_off(self, cause: AbortCause) -> None:
        if self._cut_off is not None:
            self._cut_off(cause)

    def pause(self) -> None:
        """More is ready for the client than it takes: it is waited for."""
        self.paused = True
        now = self._loop.time()
        if self._unsent_replies is not None:
            self._unsent_replies.add(self, self.transport.get_write_buffer_size(), now)
        self._watched().start(now)
        self._look_on()

    def resume(self) -> None:
        self._go_on()
        # After close() there is still something to take, and a deadline for it.
        if self._watch is not None and not self.transport.is_closing():
            self.deadline = inf
            self._watch.moved(self._taken())
            self._watch.stop(self._loop.time())
        self._wake()

    def finish(self) -> None:
        """The connection ends when all was taken: the client is waited for until then."""
        self.flush()
        if self.transport.get_write_buffer_size():
            self._watched().extend(self._loop.time())
            self._look_on()

    def lost(self) -> None:
        """The client has gone: writers that wait go on, and their next write raises."""
        self._written = b""
        self._go_on()
        self._cut_off = None
        self._wake()

    def becomes_tunnel(self) -> None:
        """No least rate applies to a tunnel: either side may be silent."""
        if self._unsent_replies is not None:
            self._unsent_replies.discard(self)
        self._stalled = self._unsent_replies = None
        self._min_rate = 0
        if self._watch is not None:
            self._watch.rated = False

    def overdue(self, now: float) -> Literal["timeout", "rate"] | None:
        """What the client has failed in by the deadline; None if it is given another."""
        assert self._watch is not None
        taken = self._taken()
        if taken > 0:
            self._watch.moved(taken)
            self._watch.extend(now)
        self._watch.rated = self.paused and self._min_rate > 0
        verdict = self._watch.verdict(now)
        self.deadline = self._watch.deadline if verdict is None else inf
        return verdict

    def _go_on(self) -> None:
        self.paused = False
        if self._unsent_replies is not None:
            self._unsent_replies.discard(self)

    def _watched(self) -> ClientWatch:
        if self._watch is None:
            limits = self._limits
            self._watch = ClientWatch(limits.write_timeout, self._min_rate, limits.rate_window)
        self._watch.rated = self.paused and self._min_rate > 0
        return self._watch

    def _look_on(self) -> None:
        self._unsent = self._count_unsent()
        if self._watch is not None:
            self.deadline = self._watch.deadline

    def _taken(self) -> int:
        """Bytes that the client took since this was asked last."""
        before, self._unsent = self._unsent, self._count_unsent()
        return before - self._unsent

    def _count_unsent(self) -> int:
        """Bytes the client has not taken: a slow reader empties the kernel's buffer long before ours."""
        unsent = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sys.platform != "win32" and sock is not None:
            try:
                queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            except OSError:
                return unsent  # not every system counts a socket's queue
            unsent += int.from_bytes(queued, sys.byteorder)
        return unsent

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
