"""
The last finished calls, and whoever watches new ones come. The data path appends to a ring, and that is all:
what is shown is made of it four times a second, and only while somebody watches.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from gateway.admin.body_shape import shape
from gateway.admin.per_second import PerSecond
from gateway.audit.finished_call import FinishedCall
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.watched_bodies import LARGEST, Bodies, WatchedBodies

KEPT: Final = 500  # finished calls
UNWATCHED: Final = 50  # of a second's calls, while nobody watches
STREAMS: Final = 16  # at once
WAITING: Final = 8  # events of one stream that its reader has not taken yet
TICK: Final = 0.25  # seconds between two events
SHOWN: Final = 25  # calls in one event, the latest: nobody reads more of them in a quarter of a second
CALLERS: Final = 100
CHANGES: Final = 5
SHAPED: Final = 64 * 1024  # bytes of bodies in one event: reading them holds up the calls
TOO_LARGE: Final = f"larger than {LARGEST // 1024} KiB"
TOO_MUCH: Final = "too much came at once"


class Stream:
    """What one reader is still to be told. What finds no room is lost, and counted."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self.lost = 0

    def offer(self, event: bytes) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.lost += 1


class Kept(msgspec.Struct):
    """`shape` is that of the call's body before and after, where somebody watched."""

    number: int
    ended: float
    call: FinishedCall
    shape: dict[str, Any] | None = None


class Live:
    """A Sampler. `wall` gives Unix seconds; `rules` are as the page shows them."""

    def __init__(self, wall: Callable[[], float], rules: list[dict[str, Any]], bodies: WatchedBodies) -> None:
        self.rules = rules
        self.changes: deque[dict[str, Any]] = deque(maxlen=CHANGES)  # of modes, the latest first
        self.reload_problem: Callable[[], str | None] = lambda: None
        self.run = secrets.token_hex(4)  # tells the calls of this process from those of one before
        self._wall = wall
        self._bodies = bodies
        self._ring: deque[Kept] = deque(maxlen=KEPT)
        self._number = 0
        self._unwatched = PerSecond(UNWATCHED)
        self._streams: set[Stream] = set()
        self._closed = False
        self._pumping: asyncio.Task[None] | None = None

    def wants(self, rewritten: bool) -> bool:
        self._number += 1
        if self._streams:
            return True
        # For who opens the page later, some of each second will do.
        self._unwatched.begin(self._wall())
        return self._unwatched.admits()

    def __call__(self, call: FinishedCall) -> None:
        self._ring.append(Kept(self._number, self._wall(), call))

    def mode_changed(self, line: ModeChanged) -> None:
        said = {"rule": line.rule, "before": line.before, "mode": line.mode, "by": line.by}
        self.changes.appendleft({"time": round(self._wall(), 3), **said})

    def recent(self, after: int = 0, most: int = KEPT) -> list[dict[str, Any]]:
        """Calls that came after the one of this number, newest first."""
        found: list[dict[str, Any]] = []
        room = SHAPED
        for kept in reversed(self._ring):
            if kept.number <= after or len(found) == most:
                break
            bodies = self._bodies.take(kept.call.id)
            if bodies is not None:
                room -= len(bodies.before or b"") + len(bodies.after or b"")
                kept.shape = shapes(bodies) if room >= 0 else {"before": {"why": TOO_MUCH}}
            found.append(shown(kept))
        return found

    def callers(self) -> list[dict[str, Any]]:
        """Who sent the calls that are kept, those with most calls first."""
        return callers([(kept.ended, kept.call) for kept in self._ring])

    def stream(self) -> Stream | None:
        """None where there are too many, or the process is about to stop."""
        if self._closed or len(self._streams) >= STREAMS:
            return None
        stream = Stream()
        self._streams.add(stream)
        self._bodies.watch(True)
        if self._pumping is None:
            self._pumping = asyncio.create_task(self._pump())
        return stream

    async def events(self, stream: Stream) -> AsyncIterator[bytes]:
        """Server-sent events, until the reader leaves or `close`."""
        try:
            yield event("hello", {"run": self.run, "kept": KEPT})
            while (told := await stream.events.get()) is not None:
                lost, stream.lost = stream.lost, 0
                if lost:
                    yield event("lost", {"events": lost})
                yield told
        finally:
            self.leave(stream)

    def leave(self, stream: Stream) -> None:
        self._streams.discard(stream)
        if not self._streams and self._pumping is not None:
            self._bodies.watch(False)
            self._pumping.cancel()
            self._pumping = None

    def close(self) -> None:
        """Ends all streams: the process is about to stop. A page that is open asks for another at once."""
        self._closed = True
        for stream in tuple(self._streams):
            while not stream.events.empty():
                stream.events.get_nowait()
            stream.events.put_nowait(None)
            self.leave(stream)

    async def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        seen, before = self._number, loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            told = self.told(seen, now - before)
            seen, before = self._number, now
            for stream in self._streams:
                stream.offer(told)

    def told(self, seen: int, seconds: float) -> bytes:
        """One event: the calls since number `seen`, and what they come to."""
        came = self._number - seen
        calls = [kept.call for kept in self._ring if kept.number > seen]
        latest = self.recent(seen, SHOWN)
        said = {
            "seconds": round(seconds, 3),
            "came": came,
            "left_out": came - len(latest),
            "strip": strip(calls),
            "calls": latest,
        }
        return event("calls", said)


def event(name: str, said: dict[str, Any]) -> bytes:
    """JSON has no line break, so nothing in it ends the event (the HTML standard, section 9.2)."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(said))


def result(call: FinishedCall) -> str:
    """In one word, what became of it."""
    if call.conflict:
        return "conflict"
    if call.error is not None:
        return "refused" if call.status is not None else "ended"
    if call.changes:
        return "rewritten" if call.status is not None and call.status < 400 else "failed"
    return "watched" if call.needs or call.would_change else "skipped"


def shapes(bodies: Bodies) -> dict[str, Any]:
    """Without `after` where nothing was changed."""

    def of(body: bytes | None) -> dict[str, Any]:
        return {"why": TOO_LARGE} if body is None else shape(body)

    return {"before": of(bodies.before), **({"after": of(bodies.after)} if bodies.changed else {})}


def shown(kept: Kept) -> dict[str, Any]:
    """
    What the page shows of a call: all that the audit log may hold, its body's shape, times in milliseconds.
    """
    call = kept.call
    said: dict[str, Any] = msgspec.structs.asdict(call)
    times = {f"{name}_ms": round(said.pop(name) * 1000, 2) for name in ("lookup", "upstream", "total")}
    more = {"number": kept.number, "ended": round(kept.ended, 3), "result": result(call)}
    return {**more, **said, **times, "shape": kept.shape}


def strip(calls: list[FinishedCall]) -> dict[str, float]:
    """Sums, so that the page can add up as many seconds as it shows."""
    sources = [change["source"] for call in calls for change in call.changes if "source" in change]
    return {
        "calls": len(calls),
        "rewritten": sum(bool(call.changes) for call in calls),
        "filled": len(sources),
        "cached": sum(source != "lookup" for source in sources),
        "refused": sum(call.error is not None for call in calls),
        "added_ms": round(sum(call.total - call.upstream for call in calls) * 1000, 3),
    }


def callers(calls: list[tuple[float, FinishedCall]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for ended, call in calls:
        one = found.setdefault(
            (call.credential, call.user_agent),
            {
                "credential": call.credential,
                "user_agent": call.user_agent,
                "application": call.application,
                "address": call.address,
                "calls": 0,
                "needed": 0,
                "refused": 0,
                "last": 0.0,
            },
        )
        one["calls"] += 1
        one["needed"] += bool(call.changes or call.would_change or call.needs)
        one["refused"] += call.error is not None
        one["last"] = round(max(one["last"], ended), 3)
    return sorted(found.values(), key=lambda one: -one["calls"])[:CALLERS]
