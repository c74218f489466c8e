"""
What processes that serve the same clients must share, as two contracts: a store and the conversation locks.

All of it is plain data, and every time is of the store's own clock, so that both mean the same to each of
them. `memory.py` and `locks.py` keep it in one process; any other must pass tests/state/conformance.py.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from msgspec import Struct

from gateway.http.headers import Headers


class Key(Struct, frozen=True):
    """`credential` is a keyed hash over the upstream and all that authenticates; never the secret (S6)."""

    conversation: str
    target: bytes
    credential: str


class Reading(Struct, frozen=True, eq=False, weakref=True):
    """
    A conversation as the upstream showed it to one caller. `started` and `generation` are the Stamp that was
    taken before its GET began: age counts from there, and `age` is what it was old by then, where a cache in
    between says so (RFC 9111 section 4.2.3). `learned`: the GET was a client's own. `ambiguous`: an object in
    it has a member twice. `shared`: its reply is the same for all calls of the key; else it is for one alone,
    and never kept. Two are never equal, so that what is derived from one can be remembered beside it.
    """

    body: bytes
    started: float
    generation: int
    etag: bytes | None = None
    learned: bool = False
    age: float = 0.0
    ambiguous: bool = False
    shared: bool = True


class Accepted(Struct, frozen=True):
    """
    The explicit value of one subject that the upstream accepted last, at `since`; until `until` the upstream
    may still show an older one (S5). `value` None: it is not known any more which value that was.
    """

    value: str | None
    since: float
    until: float


class Refusal(Struct, frozen=True):
    """A whole reply that is relayed later, or again."""

    status: int
    headers: Headers
    body: bytes


class Pause(Struct, frozen=True):
    """The upstream wants no look-up with one credential before `until`; it said so in `refusal` (429)."""

    until: float
    refusal: Refusal


class Stamp(Struct, frozen=True):
    """A conversation's generation, and the time at which it was the current one."""

    time: float
    generation: int


class Suspension(Struct, frozen=True):
    """A write to the conversation is in flight: its generation until then (`before`), and the one since."""

    conversation: str
    before: int
    generation: int


class View(Struct, frozen=True, gc=False):  # made for each fill, and never part of a cycle
    """
    All that one fill needs to know, as it was at one moment, `time`. `reading` is whatever is kept for the
    key: it may be too old, and of an earlier generation, which is a lesser number. `pause` has not ended.
    """

    time: float
    generation: int
    reading: Reading | None
    accepted: Accepted | None
    pause: Pause | None


class Store(Protocol):
    """
    Each awaited method is one step at the store: whatever others do comes wholly before or wholly after it.
    Each ends in bounded time, or raises StoreUnavailable; then it may have been done, or not.

    `invalidate` and `accept` are done once they are called, also when the caller is cancelled meanwhile.

    A write suspends the conversation before it leaves. If the process dies then, or can't tell how it ended,
    it stays so, and nothing that was read before is used again: only `reinstate` gives it back.

    What is kept is bounded, and any of it may be dropped to make room:
    - a conversation whose generation was dropped gets a new one, never one that it had before;
    - a reading or a pause that was dropped is as if it had never been there;
    - for a subject whose accepted value was dropped, views say Accepted(None, since, until), a span that
      covers the dropped one's; unless its `until` is longer ago than the longest `max_age` (60 s).
    """

    def now(self) -> float:
        """
        Seconds, of the clock that all times in this file are of. Never less than a time that the store has
        given before; it may be ahead of what a view or a stamp would say, and far ahead until a store
        elsewhere has been asked.
        """

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View | None:
        """What `view` would say, or None where that cannot be told at once: a store elsewhere never can."""

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        """`time` is never before a `now` that was read before the call."""

    async def stamp(self, conversation: str) -> Stamp:
        """
        What a reading is to carry, taken before its GET begins. `time` is never before a `now` that was read
        before the call.
        """

    async def put(self, key: Key, reading: Reading) -> bool:
        """
        False, and nothing kept, when the conversation was invalidated since the reading's stamp was taken, or
        a reading is kept that began later, in the same generation or a later one.
        """

    async def suspend(self, conversation: str) -> Suspension:
        """
        The conversation gets a new generation, as with `invalidate`; but what is of the one before may still
        be put, and `reinstate` makes it good again.
        """

    async def reinstate(self, suspension: Suspension) -> None:
        """
        The write changed nothing: the generation from before it is the current one again, unless the
        conversation got another one since. What was read meanwhile stays good too. It may be lost.
        """

    async def invalidate(self, conversation: str | None) -> None:
        """
        The conversation (None: each of them) gets a new generation, a greater number, so that no reading of
        it that is kept or under way is of the current one any more (S3).
        """

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        """
        The upstream accepted this explicit value (None: it is not known which), and may take `settle` seconds
        from now until it shows it.
        """

    async def pause(self, credential: str, refusal: Refusal, seconds: float) -> None:
        """The upstream wants no look-up with this credential for so long."""

    async def close(self) -> None:
        """Frees what is open. No method is called after it."""


class ConversationLock(Protocol):
    """
    A lock on one conversation that is held until `release`, which may be called again. `waited`: it was not
    free at once, so others may have written meanwhile.
    """

    @property
    def waited(self) -> bool: ...

    @property
    def alone(self) -> bool:
        """Locks elsewhere could not be asked: it keeps order within this process, and no more."""

    def holds(self) -> bool:
        """
        Whether it surely lasts for as long as a call may be in flight: asked right before the first byte goes
        out, for a process may have been stopped since it was granted.
        """

    def release(self) -> None:
        """At once, whatever the store takes to learn of it."""

    def __enter__(self) -> ConversationLock: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases it."""


class Locks(Protocol):
    """
    Shared and exclusive locks on conversations, fair between callers (S4). None names no conversation, and
    never waits.

    Whoever comes while somebody waits, waits too, so that neither kind starves. Callers whose calls wait
    take turns: one that had none waiting comes last, and so does one that has had its turn and has more. In
    its turn a caller is granted the lock for the first of its calls, in the order in which they came; and if
    that is shared, for those behind it too, up to the first that is exclusive. A turn comes when the locks
    that are held allow it, and nobody is granted a lock before it has.
    """

    def __len__(self) -> int:
        """Conversations that are locked or waited for by this process."""

    def exclusive_pending(self, conversation: str | None) -> bool:
        """
        Whether an exclusive lock is held or waited for, as far as this process can tell at once: a hint, on
        which no promise rests.
        """

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> ConversationLock | None:
        """None where it is not free, or that cannot be told at once."""

    async def acquire(self, conversation: str | None, *, exclusive: bool, caller: str) -> ConversationLock:
        """
        `caller` is a Key's credential. Raises LockTimeout; LockBusy at once where so many calls of the caller
        wait for this conversation that no more may; or StoreUnavailable where the locks are elsewhere. A call
        that gives up or is cancelled while it waits leaves nothing behind, and lets those behind it move up.
        """


class Entrance(Protocol):
    """What a store and locks that are elsewhere together have for the common fill."""

    async def enter(self, key: Key, subject: tuple[str, ...]) -> tuple[ConversationLock, View] | None:
        """
        A shared lock, where it is free at once, and the view under it, as one step; None where it is not.
        Raises StoreUnavailable.
        """
