"""
The Redis server that holds the shared state: greeted, asked in whole steps, and found again when it is lost.

A step is a script (redis_scripts), so nothing comes between its parts. Each says until when it is wanted: one
that reaches the server later, out of a buffer that outlived who asked, does nothing there. While there is no
connection each step fails at once, and a new connection is tried for in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import secrets
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

from gateway.errors import StoreUnavailable
from gateway.state.address import Address
from gateway.state.redis_connection import RedisConnection, RedisError, Word, greeting
from gateway.state.redis_primary import Opened, Where, primary_of, slot_of
from gateway.state.store_clock import StoreClock

FIRST_PAUSE = 0.05  # seconds until a lost connection is tried for again; doubles
LONGEST_PAUSE = 1.0
WATCHED = 1.0  # seconds from one look at who takes the writes to the next
# By what a server says that takes no more writes, or no more questions: it is left, and asked for again.
REFUSES_ALL = (
    "READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN", "MOVED", "NOREPLICAS", "MISCONF",
)  # fmt: skip
PROBES = 5  # readings of its clock when a connection begins, of which the quickest counts
# Milliseconds for which things are kept, each longer than anything of it can matter.
KEPT = {
    "ROOT_TTL": 86_400_000,
    "GENERATION_TTL": 600_000,
    "READING_TTL": 120_000,
    "ACCEPTED_TTL": 180_000,
}


# The text of a script's part, by its name.
Source: TypeAlias = Callable[[str], str]


@cache
def packaged(part: str) -> str:
    return resources.files("gateway.state").joinpath(f"redis_scripts/{part}.lua").read_text("utf-8")


class Script:
    """`parts`: files, one after the other, that are one step."""

    def __init__(
        self, *parts: str, source: Source = packaged, settle: float = 0.0, lock_ttl: float = 60.0
    ) -> None:
        self._constants = {**KEPT, "LOCK_TTL": round(lock_ttl * 1000)}
        self._code = "".join(map(source, ("common", *parts)))
        self.settles(settle)

    def settles(self, seconds: float) -> None:
        constants = {**self._constants, "SETTLE": round(seconds * 1e6)}
        given = "".join(f"local {name} = {value}\n" for name, value in constants.items())
        self.text = given + self._code
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisServer:
    def __init__(
        self,
        url: str,
        root: str,
        *,
        timeout: float,
        clock: StoreClock,
        settle: float = 0.0,
        tls: ssl.SSLContext | None = None,
        opened: Opened = RedisConnection.open,
        chance: Callable[[], float] = random.random,
        source: Source = packaged,
        watch_interval: float = WATCHED,
    ) -> None:
        """
        `root` begins all keys, and has their hash tag where they lie in a cluster. `timeout`: seconds that a
        step may take. `settle`: the longest that a fill's value takes to settle. `chance`, from 0 to 1, keeps
        processes from coming back at once.
        """
        self.address = Address.parse(url)
        self.root = root
        self.clock = clock
        self.timeout = timeout
        self.settle = settle
        # Why it can't be asked at present.
        self.problem: str | None = "it has not been asked yet"
        # Told of each message that is published to this process, of each connection that begins, and when
        # what is there may lack the last writes.
        self.on_message: Callable[[bytes], None] = lambda message: None
        self.on_connected: list[Callable[[], None]] = []
        self.on_forgotten: list[Callable[[], None]] = []
        # Told when all conversations were forgotten, here or elsewhere.
        self.on_swept: list[Callable[[], None]] = []
        # Told when it can't be asked any more, with why, and when it can again.
        self.on_turn: Callable[[str | None], None] = lambda problem: None
        self._told: str | None = None
        self.name = secrets.token_hex(8)  # of this process, for what is published to it
        self._opened = opened
        self._chance = chance
        self._source = source
        self._watch_interval = watch_interval
        self._tls = tls
        if self.address.tls and tls is None:
            self._tls = ssl.create_default_context()
        self._primary = primary_of(self.address, self._tls, timeout, opened, slot_of(root))
        self._watching: asyncio.Task[None] | None = None
        self._scripts: dict[str, Script] = {}
        self._hello = self.script("hello")
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()
        self._distrusted = False  # what is there is to be forgotten by everybody
        self._served: int | None = None  # since when the server is the one it was
        self._closed = False

    def script(self, *parts: str, lock_ttl: float = 60.0) -> Script:
        """One that is loaded with each connection."""
        script = Script(*parts, source=self._source, settle=self.settle, lock_ttl=lock_ttl)
        self._scripts[script.digest] = script
        return script

    def settles(self, seconds: float) -> None:
        """A fill's value takes as long as that, if not longer: after a reload."""
        if seconds > self.settle:
            self.settle = seconds
            for script in self._scripts.values():
                script.settles(seconds)
            self._scripts = {script.digest: script for script in self._scripts.values()}

    def key(self, *parts: str) -> str:
        return ":".join((self.root, *parts))

    async def step(self, script: Script, keys: Sequence[str], *args: Word) -> tuple[float, list[Any]]:
        """
        The time at the server, and what the script gave behind it. Raises StoreUnavailable. What came too
        late was not done: it is asked once more, as either side may only have had no processor for a moment.
        """
        connection = self._connection
        if connection is None:
            connection = await self.connected()
        clock = self.clock
        for _ in range(2):
            sent, told = clock.local(), clock.now()
            try:
                reply = await self._evaluated(connection, script, keys, self._until(told), args)
            except RedisError as error:
                self._refused(connection, str(error))
                raise StoreUnavailable(f"{self.address} refused it: {error}") from error
            moment, back = clock.saw(sent, reply[0] / 1e6, told)
            if back:
                self.distrust("its clock was set back")
                raise StoreUnavailable(f"the clock of {self.address} was set back")
            if len(reply) < 2 or reply[1] != b"late":
                return moment, reply
        raise StoreUnavailable(f"{self.address} came to it too late")

    def tell(
        self, script: Script, keys: Sequence[str], *args: Word, until: int, whole: bool = False
    ) -> asyncio.Future[Any] | None:
        """
        A step that nobody waits for, wanted `until` then; None where it can't be sent now. `whole`: with the
        script's text, for a server that said NOSCRIPT.
        """
        connection = self._connection
        if connection is None:
            return None
        called = ("EVAL", script.text) if whole else ("EVALSHA", script.digest)
        return connection.ask(*called, 1 + len(keys), self.root, *keys, until, *args)

    def _until(self, now: float) -> int:
        # Well before who asked gives up, whatever the two clocks are apart.
        return round((now + self.timeout / 2) * 1e6)

    async def _evaluated(
        self,
        connection: RedisConnection,
        script: Script,
        keys: Sequence[str],
        until: int,
        args: Iterable[Word],
    ) -> Any:
        words = (1 + len(keys), self.root, *keys, until, *args)
        try:
            return await connection.ask("EVALSHA", script.digest, *words)
        except RedisError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return await connection.ask("EVAL", script.text, *words)

    def _refused(self, connection: RedisConnection, said: str) -> None:
        if said.startswith(REFUSES_ALL):
            connection.end(f"it said {said.partition(' ')[0]}")

    # --- connections

    async def connected(self) -> RedisConnection:
        """Waits for the first attempt, and for no other. Raises StoreUnavailable."""
        if self._connection is None and not self._closed:
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.timeout):
                    await self._attempted.wait()
        if self._connection is None:
            raise StoreUnavailable(f"{self.address}: {self.problem}")
        return self._connection

    def distrust(self, why: str) -> None:
        """Everybody is to forget what was read."""
        self._distrusted = True
        if self._connection is not None:
            self._connection.end(why)

    async def _connect(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed:
            try:
                where = await self._primary.find()
                connection = await self._greeted(where)
                if connection.problem is not None:  # it was lost in the moment that it was ready
                    raise StoreUnavailable(connection.problem)
            except StoreUnavailable as error:
                self._turn(error.detail)
            except RedisError as error:
                self._turn(f"it refused the connection: {error}")
            else:
                self._connecting, self._connection = None, connection
                self._turn(None)
                self._attempted.set()
                if self._primary.replaceable:
                    self._watching = asyncio.create_task(self._watch(connection, where))
                for call in self.on_connected:
                    call()
                return
            self._attempted.set()
            await asyncio.sleep(pause * (0.5 + self._chance()))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _watch(self, connection: RedisConnection, where: Where) -> None:
        """
        One that hangs or is cut off is left before another takes its place: should it go on, it would not
        know of that at once.
        """
        while True:
            await asyncio.sleep(self._watch_interval)
            try:
                await connection.ask("EXISTS", self.root)
                if not await self._primary.is_still(where):
                    connection.end("another server has taken its place")
            except RedisError as error:
                self._refused(connection, str(error))
            except StoreUnavailable as error:
                connection.end(error.detail)

    def _lost(self, connection: RedisConnection) -> None:
        if connection is self._connection:
            self._connection = None
            if self._watching is not None:
                self._watching.cancel()
            if not self._closed:
                self._turn(connection.problem)
            if not self._closed and self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def _turn(self, problem: str | None) -> None:
        self.problem = problem
        if problem != self._told:
            self._told = problem
            self.on_turn(problem)

    async def _greeted(self, where: Where) -> RedisConnection:
        """Raises StoreUnavailable, or RedisError."""
        address = self.address
        connection = await self._opened(where, self._tls, self.timeout, self._pushed, self._lost)
        fit = False
        try:
            await connection.ask(*greeting(address))
            if address.database:
                await connection.ask("SELECT", address.database)
            identity = self._fit(await connection.ask("INFO", "everything"))
            loaded = [connection.ask("SCRIPT", "LOAD", script.text) for script in self._scripts.values()]
            connection.tell("SUBSCRIBE", f"{self.root}:to:{self.name}", f"{self.root}:all")
            await self._read_clock(connection)
            await asyncio.gather(*loaded)
            words = (2**53, identity, int(self._distrusted))
            reply = await connection.ask("EVALSHA", self._hello.digest, 1, self.root, *words)
            # It may have hung until now, and not know that its place is another's.
            if self._primary.replaceable and await self._primary.find() != where:
                raise StoreUnavailable("another server has taken its place")
            fit = True
        finally:
            if not fit:
                connection.end("it is not fit for use")
        self._distrusted = False
        served, self._served = self._served, reply[1]
        if served is not None and served != reply[1]:
            for call in self.on_forgotten:
                call()
            self._forgotten()
        return connection

    async def _read_clock(self, connection: RedisConnection) -> None:
        for _ in range(PROBES):
            sent, told = self.clock.local(), self.clock.now()
            seconds, micros = await connection.ask("TIME")
            self.clock.saw(sent, int(seconds) + int(micros) / 1e6, told)

    def _fit(self, info: Any) -> str:
        """Which server it is; raises StoreUnavailable where the promises can't be kept on it."""
        text = info.decode() if isinstance(info, bytes) else str(info)
        has = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if has.get("role", "master") != "master":
            raise StoreUnavailable("it is a replica, which takes no writes")
        if (has.get("cluster_enabled") == "1") != self.address.cluster:
            raise StoreUnavailable("one of a cluster is named by redis+cluster://, and no other is")
        policy = has.get("maxmemory_policy", "noeviction")
        if has.get("maxmemory", "0") != "0" and policy != "noeviction":
            raise StoreUnavailable(f"it may drop locks (maxmemory-policy {policy}): set it to noeviction")
        if has.get("loading") == "1":
            raise StoreUnavailable("it is loading its data")
        return f"{has.get('run_id')} {has.get('master_replid')}"

    def _pushed(self, message: list[Any]) -> None:
        if message[0] != b"message":
            return
        if message[2]:
            self.on_message(message[2])
        else:
            self._forgotten()

    def _forgotten(self) -> None:
        for call in self.on_swept:
            call()

    async def close(self) -> None:
        self._closed = True
        self._primary.close()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            self._connecting = None
        if self._connection is not None:
            self._connection.end("it is closed")
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
