"""
The order of writes to one conversation: calls that leave its state share, calls that may change it exclude.

First come, first served (S4): a call behind one that must wait waits too, so nobody starves. A line
exists only while somebody stands in it, so lines are bounded by the calls in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from msgspec import Struct

from gateway.errors import LockTimeout


class _Line(Struct, eq=False):
    sharing: int = 0
    exclusive: bool = False
    waiting: deque[tuple[bool, asyncio.Future[None]]] | tuple[()] = ()


class ConversationLock(Struct, eq=False):
    """
    Held from before the call leaves until the upstream has answered; `release` may be called again.
    `waited`: others were before it.
    """

    _order: ConversationLocks
    _held: str | None  # the conversation
    _changing: bool
    waited: bool

    def release(self) -> None:
        conversation, self._held = self._held, None
        if conversation is not None:
            self._order._leave(conversation, self._changing)

    def __enter__(self) -> ConversationLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ConversationLocks:
    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds a call may wait for its turn."""
        self._timeout = timeout
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def exclusive(self, conversation: str | None) -> bool:
        """Whether a call that may change the state is in flight or waits."""
        line = self._lines.get(conversation) if conversation is not None else None
        return line is not None and (line.exclusive or bool(line.waiting))

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> ConversationLock | None:
        """The turn, if nobody is to be waited for: a call about no conversation (None) waits for nobody."""
        if conversation is not None:
            line = self._lines.get(conversation)
            if line is None:
                line = self._lines[conversation] = _Line()
            elif line.waiting or line.exclusive or (exclusive and line.sharing > 0):
                return None
            if exclusive:
                line.exclusive = True
            else:
                line.sharing += 1
        return ConversationLock(self, conversation, exclusive, False)

    async def acquire(self, conversation: str | None, *, exclusive: bool) -> ConversationLock:
        """Raises LockTimeout; nothing is left behind by a call that is cancelled while it waits."""
        turn = self.try_acquire(conversation, exclusive=exclusive)
        if turn is None:
            assert conversation is not None
            await self._wait(conversation, self._lines[conversation], exclusive)
            turn = ConversationLock(self, conversation, exclusive, True)
        return turn

    async def _wait(self, conversation: str, line: _Line, exclusive: bool) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (exclusive, granted)
        if not isinstance(line.waiting, deque):
            line.waiting = deque()  # most lines never need one
        line.waiting.append(place)
        try:
            async with asyncio.timeout(self._timeout):
                await granted
        except (TimeoutError, asyncio.CancelledError) as error:
            if granted.done() and not granted.cancelled():
                # The turn was given in the very moment the call gave up: hand it on.
                self._leave(conversation, exclusive)
            else:
                line.waiting.remove(place)
                self._admit(conversation, line)
            if isinstance(error, TimeoutError):
                raise LockTimeout(f"it waited {self._timeout:g} s for its turn") from error
            raise

    def _leave(self, conversation: str, exclusive: bool) -> None:
        line = self._lines[conversation]
        if exclusive:
            line.exclusive = False
        else:
            line.sharing -= 1
        if line.waiting:
            self._admit(conversation, line)
        elif not line.sharing:
            del self._lines[conversation]

    def _admit(self, conversation: str, line: _Line) -> None:
        while line.waiting and not line.exclusive:
            exclusive, granted = line.waiting[0]
            if granted.cancelled():
                # Its task is about to remove it itself; those behind must not wait for that.
                break
            if exclusive and line.sharing:
                break
            line.waiting.popleft()
            granted.set_result(None)
            if exclusive:
                line.exclusive = True
            else:
                line.sharing += 1
        if not line.waiting and not line.exclusive and not line.sharing:
            del self._lines[conversation]
