"""
Several gateways with one guard taken out, of their own or of the scripts on Redis: what must be found on a
real server as it is in memory (mutants.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from gateway.backend import PARTS, Parts
from gateway.state.redis import RedisStore
from gateway.state.redis_server import Source, packaged
from gateway.state.shared import SharedState, shared_state
from gateway.state.store import Key, Reading, View
from gateway.upstream.transport import Transport
from tests.simulation.cluster import Makes, Plan, drawn, staged
from tests.simulation.mutants import MUTANTS as IN_MEMORY
from tests.simulation.plays import explicit, legacy
from tests.simulation.schedule import Fate
from tests.simulation.upstream import SimulatedUpstream


def changed(**changes: tuple[str, str]) -> Source:
    """Scripts in which something stands instead of something else, which must be there."""
    for part, (there, _) in changes.items():
        assert there in packaged(part)
    return lambda part: packaged(part).replace(*changes[part]) if part in changes else packaged(part)


def scripted(**changes: tuple[str, str]) -> Makes:
    def makes(*given: Any, **rest: Any) -> SharedState:
        return shared_state(*given, source=changed(**changes), **rest)

    return makes


class Trusting(RedisStore):
    """What is there is current, since a write deletes it: right as long as `put` is one step."""

    def seen(self, key: Key, moment: float, reply: Sequence[Any]) -> View:
        view = super().seen(key, moment, reply)
        if view.reading is None:
            return view
        return structs.replace(view, reading=structs.replace(view.reading, generation=view.generation))


class TwoSteps(Trusting):
    async def put(self, key: Key, reading: Reading) -> bool:
        if (await self.stamp(key.conversation)).generation > reading.generation:
            return False
        await asyncio.sleep(0.01)
        return await super().put(key, reading)


def trusting(kind: type[RedisStore], **changes: tuple[str, str]) -> Makes:
    last = "  set_generation(KEYS[2], draw())\n"
    deleting = "  for _, one in ipairs(redis.call('KEYS', KEYS[2] .. ':r:*')) do redis.call('DEL', one) end\n"

    def makes(*given: Any, **rest: Any) -> SharedState:
        made = scripted(invalidate=(last, last + deleting), **changes)(*given, **rest)
        made.store.__class__ = kind
        return made

    return makes


UNCHECKED = ("< math.max(oldest, all) then return {now, 0} end", "< 0 then return {now, 0} end")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisMutant:
    """`promise` is the one that it is seen to break, in `plan`."""

    promise: str
    plan: Plan
    parts: Parts = PARTS
    makes: Makes = shared_state
    transport: Callable[[SimulatedUpstream], Transport] | None = None


def _same(name: str, plan: Plan) -> RedisMutant:
    one = IN_MEMORY[name]
    parts = one.parts if isinstance(one.parts, Parts) else one.parts()
    return RedisMutant(promise=one.promise, plan=plan, parts=parts, transport=one.transport)


def quiet(seed: int) -> Plan:
    return drawn(seed, blows=False)


def overtaken() -> Plan:
    """A write comes while what was read before it is about to be kept."""
    return staged(
        (legacy("r", 0.0), explicit("w", 0.114, "s5"), legacy("f", 1.0)),
        {"r": 0, "w": 1, "f": 1},
        {"r": (Fate(back=0.1),), "w": (Fate(out=0.001, back=0.001),), "f": ()},
    )


def slow() -> Plan:
    """A GET takes nearly as long as what it says may be used."""
    return staged((legacy("r", 0.0), legacy("f", 4.5)), {"r": 0, "f": 1}, {"r": (Fate(back=2.5),), "f": ()})


MUTANTS: dict[str, RedisMutant] = {
    "no generations": RedisMutant(
        promise="S3",
        plan=quiet(1),
        makes=scripted(
            common=("return math.max(current, all), math.max(oldest, all)", "return 0, 0"), put=UNCHECKED
        ),
    ),
    "no locks": RedisMutant(
        promise="S4",
        plan=quiet(6),
        makes=scripted(
            acquiring=("if found[1] or found[2] then return false end", "if true then return 'held' end")
        ),
    ),
    "no last accepted value": _same("no last accepted value", quiet(4)),
    "filling from the request's own body": _same("filling from the request's own body", quiet(6)),
    "key without credential": _same("key without credential", quiet(3)),
    "age from the end of the GET": _same("age from the end of the GET", slow()),
    "check and store in two steps": RedisMutant(
        promise="S3", plan=overtaken(), makes=trusting(TwoSteps, put=UNCHECKED)
    ),
    "retry after a timeout": _same("retry after a timeout", quiet(3)),
}
# Not the gateway's store, but one that is as right, and that the two steps are taken in.
SOUND = trusting(Trusting)
