"""
The store on a Redis server, for processes that serve the same clients: the contract of state/store.py.

Of a conversation there are hashed names, generations, and readings that only their caller's calls can open
(sealed.py). A reading that this process has had is not sent again: the server says that it is still the one.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.errors import StoreUnavailable
from gateway.http.headers import Headers
from gateway.state.redis_connection import Word
from gateway.state.redis_server import RedisServer, Script
from gateway.state.sealed import NONCE, Sealed
from gateway.state.store import Accepted, Key, Pause, Reading, Refusal, Stamp, Suspension, View
from gateway.state.store_clock import TOLERANCE

OVERHEAD = 1280  # bytes that a remembered reading takes beside its body

_encoded = msgspec.msgpack.Encoder().encode
_content = msgspec.msgpack.Decoder(tuple[bytes, bytes | None, bool, float, bool]).decode
_refusal = msgspec.msgpack.Decoder(tuple[int, list[tuple[bytes, bytes]], bytes]).decode


class RedisStore:
    def __init__(
        self,
        server: RedisServer,
        sealed: Sealed,
        *,
        max_entries: int,
        max_remembered: int = 2**26,
        local: bool = False,
    ) -> None:
        """
        `max_entries`: readings, accepted values and pauses on the server, each. `max_remembered`: bytes of
        readings that this process has opened. `local`: times are of this process's clock, not the server's.
        """
        clock = server.clock
        self.now = clock.local if local else clock.now
        self._local = local
        # Times of the server's, as they are given here, and the other way round.
        self._shown: Callable[[float], float] = clock.shown if local else float
        self._earliest: Callable[[float], float] = clock.earliest if local else float
        self._latest: Callable[[float], float] = clock.latest if local else float
        # What was asked by then began at a server that may have lost it.
        self._forgotten_at = -math.inf
        server.on_forgotten.append(self._forget)
        self._server = server
        self._sealed = sealed
        self._most = max_entries
        self._index = {name: server.key("index", name) for name in ("reading", "accepted", "pause")}
        self._max_remembered = max_remembered
        self._remembered: OrderedDict[Key, tuple[bytes, Reading]] = OrderedDict()
        self._bytes = 0
        self._view = server.script("seen", "view")
        self._stamp = server.script("stamp")
        self._put = server.script("put")
        self._suspend = server.script("suspend")
        self._reinstate = server.script("reinstate")
        self._invalidate = server.script("invalidate")
        self._accept = server.script("accept")
        self._pause = server.script("pause")

    # --- names: what is about one conversation has one hash tag

    def conversation(self, name: str) -> str:
        return self._server.key("{" + self._sealed.name("conversation", name) + "}")

    def keys(self, key: Key, subject: tuple[str, ...]) -> tuple[str, str, str, str]:
        """Of what `seen` reads."""
        conversation, name = self.conversation(key.conversation), self._sealed.name
        return (
            conversation,
            f"{conversation}:r:{name('reading', key.target, key.credential)}",
            self._accepted(subject),
            self._server.key("pause", name("pause", key.credential)),
        )

    def _accepted(self, subject: tuple[str, ...]) -> str:
        conversation = self.conversation(subject[1] if len(subject) > 1 else "")
        return f"{conversation}:a:{self._sealed.name('subject', subject)}"

    # --- views

    def try_view(self, key: Key, subject: tuple[str, ...]) -> View | None:
        return None

    async def view(self, key: Key, subject: tuple[str, ...]) -> View:
        keys = self.keys(key, subject)
        moment, reply = await self._read(self._view, keys, self.had(key))
        return self.seen(key, moment, reply[1])

    def had(self, key: Key) -> bytes:
        """Which reading this process can do without being sent."""
        remembered = self._remembered.get(key)
        return b"" if remembered is None else remembered[0]

    def seen(self, key: Key, moment: float, reply: Sequence[Any]) -> View:
        """What the script `seen` gave."""
        generation, of, started, nonce, body, value, since, until, lost, paused, refusal = reply
        accepted = None
        if until is not None:
            text = None if value is None else value.decode()
            accepted = Accepted(text, self._accepted_since(int(since)), self._latest(int(until) / 1e6))
        elif lost is not None:
            accepted = Accepted(None, -math.inf, self._latest(int(lost) / 1e6))
        pause = None
        if paused is not None and (ends := self._latest(int(paused) / 1e6)) > moment:
            opened = self._sealed.open(key.credential, refusal, b"pause")
            if opened is not None:
                status, headers, content = _refusal(opened)
                pause = Pause(ends, Refusal(status, headers, content))
        reading = None
        if of is not None:
            reading = self._reading(key, int(of), started, nonce, body)
        return View(moment, int(generation), reading, accepted, pause)

    def _accepted_since(self, micros: int) -> float:
        """
        By this process's clock a reading that was stamped afterwards may have begun before, by as much as its
        question took to the server.
        """
        since = self._earliest(micros / 1e6)
        return since - self._server.timeout if self._local else since

    def _reading(
        self, key: Key, generation: int, started: bytes, nonce: bytes, body: bytes | None
    ) -> Reading | None:
        if body is None:
            remembered = self._remembered.get(key)
            if remembered is None or remembered[0] != nonce:
                return None
            self._remembered.move_to_end(key)
            return remembered[1]
        place = self.keys(key, ())[1]
        opened = self._sealed.open(key.credential, nonce + body, _about(place, generation, started))
        if opened is None:
            return None
        text, etag, learned, age, ambiguous = _content(opened)
        began = self._earliest(float(started))
        reading = Reading(text, began, generation, etag, learned, age, ambiguous)
        self._remember(key, nonce, reading)
        return reading

    def _remember(self, key: Key, nonce: bytes, reading: Reading) -> None:
        before = self._remembered.pop(key, None)
        if before is not None:
            self._bytes -= len(before[1].body) + OVERHEAD
        self._remembered[key] = nonce, reading
        self._bytes += len(reading.body) + OVERHEAD
        while self._bytes > self._max_remembered:
            _, (_, dropped) = self._remembered.popitem(last=False)
            self._bytes -= len(dropped.body) + OVERHEAD

    async def stamp(self, conversation: str) -> Stamp:
        moment, reply = await self._read(self._stamp, [self.conversation(conversation)])
        return Stamp(moment, int(reply[1]))

    def time(self, sent: float, moment: float) -> float:
        """Of a step that was sent at `sent`, of the local clock, and `moment` is the time there."""
        return sent if self._local else moment

    async def _read(self, script: Script, keys: Sequence[str], *args: Word) -> tuple[float, list[Any]]:
        """
        What a reading's age counts from, everywhere: so not until the server's clock shows what this process
        has taken it for.
        """
        sent = self._server.clock.local()
        moment, reply = await self._server.step(script, keys, *args)
        if self._local:
            return sent, reply
        ahead = moment - reply[0] / 1e6
        if ahead > TOLERANCE:
            await asyncio.sleep(min(ahead, self._server.timeout))
            moment, reply = await self._server.step(script, keys, *args)
            if moment - reply[0] / 1e6 > TOLERANCE:
                raise StoreUnavailable("its clock is behind what it was taken for")
        return moment, reply

    # --- readings

    async def put(self, key: Key, reading: Reading) -> bool:
        if reading.started <= self._forgotten_at:
            return False
        conversation, place, _, _ = self.keys(key, ())
        started = repr(self._shown(reading.started)).encode()
        content = (reading.body, reading.etag, reading.learned, reading.age, reading.ambiguous)
        about = _about(place, reading.generation, started)
        sealed = self._sealed.seal(key.credential, _encoded(content), about)
        nonce, body = sealed[:NONCE], sealed[NONCE:]
        keys = [conversation, place, self._index["reading"]]
        _, reply = await self._server.step(
            self._put, keys, reading.generation, started, nonce, body, self._most
        )
        if not reply[1]:
            return False
        self._remember(key, nonce, reading)
        return True

    # --- generations

    def _forget(self) -> None:
        """
        Generations that were drawn before may be lost; and greater than those to come, where another clock
        than that of before counts.
        """
        self._forgotten_at = self.now()

    async def suspend(self, conversation: str) -> Suspension:
        _, reply = await self._server.step(self._suspend, [self.conversation(conversation)])
        return Suspension(conversation, int(reply[1]), int(reply[2]))

    async def reinstate(self, suspension: Suspension) -> None:
        keys = [self.conversation(suspension.conversation)]
        await self._server.step(self._reinstate, keys, suspension.before, suspension.generation)

    async def invalidate(self, conversation: str | None) -> None:
        keys = [] if conversation is None else [self.conversation(conversation)]
        await self._server.step(self._invalidate, keys)

    # --- accepted values and pauses

    async def accept(self, subject: tuple[str, ...], value: str | None, settle: float) -> None:
        keys = [self._accepted(subject), self._index["accepted"]]
        known = int(value is not None)
        clock = self._server.clock
        since = math.ceil(clock.now() * 1e6) if clock.known else 0
        args = (known, value or "", round(settle * 1e6), self._most, since)
        await self._server.step(self._accept, keys, *args)

    async def pause(self, credential: str, refusal: Refusal, seconds: float) -> None:
        headers: Headers = refusal.headers
        content = _encoded((refusal.status, list(headers), refusal.body))
        sealed = self._sealed.seal(credential, content, b"pause")
        keys = [self._server.key("pause", self._sealed.name("pause", credential)), self._index["pause"]]
        await self._server.step(self._pause, keys, round(seconds * 1e6), sealed, self._most)

    async def close(self) -> None:
        await self._server.close()


def _about(place: str, generation: int, started: bytes) -> bytes:
    """What a sealed reading is bound to: nobody can pass it off as another's, or as later."""
    return b"%b %d %b" % (place.encode(), generation, started)
