"""
The conversation locks on a Redis server: shared and exclusive, fair between callers of all processes (S4).

A process has one lease, and its locks are good while it lasts: so they all end with a process that is killed.
It is longer than a call can be in flight, and a lock `holds` only while more than that is left of it by this
process's own clock: who was stopped for a minute finds that it does not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import cast

from msgspec import Struct

from gateway.errors import LockBusy, LockTimeout, StoreUnavailable
from gateway.state.redis import RedisStore
from gateway.state.redis_connection import RedisError
from gateway.state.redis_server import RedisServer
from gateway.state.sealed import Sealed
from gateway.state.store import Key, View

MARGIN = 6.0  # seconds for which a lease lasts beyond the longest call
RENEWED = 1.5  # seconds from one renewal to the next
POLLED = 0.5  # seconds after which who waits asks, should nobody have told it; doubles
LONGEST_POLLED = 2.0
ATTEMPTS = 4  # at one lock: those who wait may be lost, and then this process's lease
LOT = 256  # of what is owed, told at once; then the others have their turn
MUCH_LATER = 2**53


class _Lease(Struct, eq=False):
    """`good_until` by the local clock; a lease that was lost has none left."""

    name: str
    key: str
    good_until: float


class RedisLock(Struct, eq=False):
    """A held lock (store.ConversationLock)."""

    _locks: RedisLocks
    _conversation: str | None  # None: nothing to release, or not any more
    _exclusive: bool
    _key: str
    _token: str
    _lease: _Lease | None
    waited: bool

    @property
    def alone(self) -> bool:
        return False

    def holds(self) -> bool:
        return self._lease is None or self._locks.lasts(self._lease)

    def release(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            self._locks.forget(conversation, self._exclusive)
            self._locks.give_back(conversation if self._exclusive else None, self._key, self._token)

    def __enter__(self) -> RedisLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RedisLocks:
    def __init__(
        self,
        server: RedisServer,
        store: RedisStore,
        sealed: Sealed,
        *,
        timeout: float,
        in_flight: float,
        max_waiting: int = 32,
    ) -> None:
        """
        `timeout`: seconds that a call may wait for a lock; `in_flight`: that it may take once it has left.
        `max_waiting`: how many calls of one caller may wait for one conversation.
        """
        self._server = server
        self._store = store
        self._sealed = sealed
        self._timeout = timeout
        self._in_flight = in_flight
        self._max_waiting = max_waiting
        self._seconds = in_flight + MARGIN
        ttl = 3 * self._seconds
        self._acquire = server.script("locking", "acquiring", "acquire", lock_ttl=ttl)
        self._enter = server.script("locking", "acquiring", "seen", "enter", lock_ttl=ttl)
        self._release = server.script("locking", "release", lock_ttl=ttl)
        self._poll = server.script("locking", "poll", lock_ttl=ttl)
        self._renew = server.script("lease", lock_ttl=ttl)
        self._numbers = itertools.count()
        self._lease: _Lease | None = None
        self._leasing: asyncio.Task[_Lease] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._held: Counter[str] = Counter()  # locks held or waited for, by conversation
        self._exclusive: Counter[str] = Counter()
        self._granted: dict[str, asyncio.Future[None]] = {}  # by token, who waits
        # By token that the server may not know to be given up: its key, and the conversation where it held
        # that lock exclusively.
        self._owed: dict[str, tuple[str, str | None]] = {}
        self._paying: asyncio.Task[None] | None = None
        self._pays_again = False
        # Whether the store is still to be told of a write to that conversation, and what tells it: before who
        # waits for the lock gets it.
        self.is_untold: Callable[[str], bool] = lambda conversation: False
        self.make_up: Callable[[], Awaitable[None]] = _nothing
        server.on_message = self._heard
        server.on_connected.append(self._pay)
        server.on_forgotten.append(self._lose)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def parts(self) -> Sequence[RedisLocks]:
        """As those of a cluster have them."""
        return [self]

    def exclusive_pending(self, conversation: str | None) -> bool:
        return conversation in self._exclusive

    def lasts(self, lease: _Lease) -> bool:
        return self._server.clock.local() + self._in_flight < lease.good_until

    def try_acquire(self, conversation: str | None, *, exclusive: bool) -> RedisLock | None:
        if conversation is None:
            return RedisLock(self, None, exclusive, "", "", None, False)
        return None

    async def acquire(
        self, conversation: str | None, *, exclusive: bool, caller: str, waited: float = 0.0
    ) -> RedisLock:
        """`waited`: seconds of `timeout` that are gone."""
        if conversation is None:
            return RedisLock(self, None, exclusive, "", "", None, False)
        self._held[conversation] += 1
        if exclusive:
            self._exclusive[conversation] += 1
        lock = None
        try:
            began = self._server.clock.local() - waited
            lock = await self._acquired(conversation, exclusive, self._sealed.name("caller", caller), began)
        finally:
            if lock is None:
                self.forget(conversation, exclusive)
        return lock

    async def _acquired(self, conversation: str, exclusive: bool, caller: str, began: float) -> RedisLock:
        key = self._key(conversation)
        for _ in range(ATTEMPTS):
            lease = self._lease
            if lease is None or self._server.problem is not None:
                lease = await self._ready()
            token = self._token(lease)
            granted = self._granted[token] = asyncio.get_running_loop().create_future()
            outcome, told = b"", False
            try:
                args = (token, int(exclusive), caller, self._max_waiting)
                _, reply = await self._server.step(self._acquire, [key], *args)
                outcome, told = reply[1], True
                if outcome == b"waits":
                    outcome = await self._waited_for(key, token, granted, began)
                    if outcome == b"held":
                        return RedisLock(self, conversation, exclusive, key, token, lease, True)
                if outcome == b"held":
                    return RedisLock(self, conversation, exclusive, key, token, lease, False)
            finally:
                del self._granted[token]
                if outcome == b"waits" or not told:
                    self.give_up(key, token)
            if outcome == b"busy":
                raise LockBusy(f"{reply[2]} calls of this caller wait for the conversation's lock")
            if outcome == b"lost":
                self._lose(lease)
        raise StoreUnavailable("it lost this process's locks again and again")

    async def _waited_for(self, key: str, token: str, granted: asyncio.Future[None], began: float) -> bytes:
        """`held` once it is; `gone` where the server has lost who waited."""
        left, pause = began + self._timeout - self._server.clock.local(), POLLED
        try:
            async with asyncio.timeout(left):
                while True:
                    await asyncio.wait([granted], timeout=pause)
                    if granted.done():
                        return b"held"
                    pause = min(2 * pause, LONGEST_POLLED)
                    _, reply = await self._server.step(self._poll, [key], token)
                    if reply[1] != b"waits":
                        return cast(bytes, reply[1])
        except TimeoutError as error:
            raise LockTimeout(f"it waited {self._timeout:g} s for the conversation's lock") from error

    async def enter(self, key: Key, subject: tuple[str, ...]) -> tuple[RedisLock, View] | None:
        """As one step: a shared lock where it is free at once, and the view. None where it is not."""
        lease = self._lease
        if lease is None or self._server.problem is not None:
            lease = await self._ready()
        conversation = key.conversation
        place, token = self._key(conversation), self._token(lease)
        store = self._store
        sent, told = self._server.clock.local(), False
        try:
            moment, reply = await self._server.step(
                self._enter, [place, *store.keys(key, subject)], token, store.had(key)
            )
            told = True
        finally:
            if not told:
                self.give_up(place, token)
        if reply[1] != b"held":
            if reply[1] == b"lost":
                self._lose(lease)
            return None
        self._held[conversation] += 1
        lock = RedisLock(self, conversation, False, place, token, lease, False)
        return lock, store.seen(key, store.time(sent, moment), reply[2])

    def _key(self, conversation: str) -> str:
        return self._store.conversation(conversation) + ":lock"

    def _token(self, lease: _Lease) -> str:
        return f"{lease.name}/{next(self._numbers)}"

    def _heard(self, message: bytes) -> None:
        granted = self._granted.get(message.decode())
        if granted is not None and not granted.done():
            granted.set_result(None)

    # --- giving up

    def forget(self, conversation: str, exclusive: bool) -> None:
        """What this process knows of one lock."""
        for table in (self._held, self._exclusive) if exclusive else (self._held,):
            table[conversation] -= 1
            if not table[conversation]:
                del table[conversation]

    def give_back(self, written: str | None, key: str, token: str) -> None:
        """
        A lock that was held, exclusively for a call that may have `written` to the conversation: not before
        the store knows of that.
        """
        if written is not None and self.is_untold(written):
            self._owed[token] = key, written
            if self._server.problem is None:
                self._pay()  # else once there is a connection
        else:
            self.give_up(key, token, written)

    def give_up(
        self, key: str, token: str, written: str | None = None, *, whole: bool = False
    ) -> asyncio.Future[object] | None:
        """What the token holds or waits for; told to the server until it is certain that it knows."""
        reply = self._server.tell(self._release, [key], token, until=MUCH_LATER, whole=whole)
        if reply is None:
            self._owed[token] = key, written
            return None

        def told(done: asyncio.Future[object]) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, RedisError) and str(error).startswith("NOSCRIPT") and not whole:
                self.give_up(key, token, written, whole=True)
            elif done.cancelled() or error is not None:
                self._owed[token] = key, written

        reply.add_done_callback(told)
        return reply

    def _pay(self) -> None:
        if self._paying is not None:
            self._pays_again = True
            return
        self._paying = asyncio.get_running_loop().create_task(self._paid())
        self._paying.add_done_callback(self._paying_ended)

    def _paying_ended(self, task: asyncio.Task[None]) -> None:
        self._paying = None
        if self._pays_again and not task.cancelled():
            self._pays_again = False
            self._pay()

    async def _paid(self) -> None:
        """What this process could not tell: first of its writes, then of the locks that it has given up."""
        await self.make_up()
        payable = [
            (token, key, written)
            for token, (key, written) in self._owed.items()
            if written is None or not self.is_untold(written)
        ]
        for first in range(0, len(payable), LOT):
            for token, key, written in payable[first : first + LOT]:
                reply = None
                if self._owed.pop(token, None) is not None:
                    reply = self.give_up(key, token, written)
            if reply is not None:
                await asyncio.wait([reply])

    # --- the lease

    async def _ready(self) -> _Lease:
        """With a connection, too: else the server would be owed a token that it was never told of."""
        await self._server.connected()
        return self._lease or await self._leased()

    async def _leased(self) -> _Lease:
        if self._leasing is None:
            self._leasing = asyncio.create_task(self._begin_lease())
            self._leasing.add_done_callback(self._leasing_ended)
        return await asyncio.shield(self._leasing)

    def _leasing_ended(self, task: asyncio.Task[_Lease]) -> None:
        self._leasing = None
        if not task.cancelled():
            task.exception()  # each who waits raises it

    async def _begin_lease(self) -> _Lease:
        name = f"{self._server.name}.{next(self._numbers)}"
        lease = _Lease(name, self._server.key("lease", name), 0.0)
        if not await self._renewed(lease, [], new=True):
            raise StoreUnavailable("it gave this process no lease")
        self._lease = lease
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._go_on())
        return lease

    async def _renewed(self, lease: _Lease, long_held: Sequence[str], *, new: bool = False) -> bool:
        sent = self._server.clock.local()
        milliseconds = round(self._seconds * 1000)
        _, reply = await self._server.step(self._renew, [lease.key, *long_held], milliseconds, int(new))
        if reply[1] != b"good":
            return False
        lease.good_until = sent + self._seconds
        return True

    async def _go_on(self) -> None:
        held_before: set[str] = set()
        while True:
            await asyncio.sleep(RENEWED)
            held = set(self._held)
            long_held = [self._key(one) for one in held & held_before]
            held_before = held
            lease = self._lease
            if lease is None:
                continue
            try:
                if not await self._renewed(lease, long_held):
                    self._lose(lease)
                elif self._owed:
                    self._pay()
            except StoreUnavailable:
                if lease.good_until <= self._server.clock.local():
                    self._lose(lease)

    def _lose(self, lease: _Lease | None = None) -> None:
        """
        What was held under it may be others' by now. None: the server's data may not be what it was, and yet
        have the lease still.
        """
        lost = self._lease
        if lost is not None and lease in {None, lost}:
            lost.good_until = 0.0
            self._lease = None
        if lease is not None:
            gone = f"{lease.name}/"
            self._owed = {token: what for token, what in self._owed.items() if not token.startswith(gone)}

    async def close(self) -> None:
        for task in (self._renewing, self._paying):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def _nothing() -> None:
    pass
