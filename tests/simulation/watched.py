"""
What the calls in one process have in common, each use of which is told: so that two steps there may change
places unless one uses what the other changes.

What is left out is said by name. A process with a part that is unknown here is one thing (`watch` says so).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from gateway.app import Gateway
from gateway.state.layered_locks import LayeredLocks
from gateway.state.locks import MemoryLocks
from gateway.state.lookup import Lookups
from gateway.state.redis import RedisStore
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_server import RedisServer
from tests.simulation.interleavings import WHOLE

# Told what was used, which part of it, and whether it may be another then.
Touch = Callable[[str, str, bool], None]
TOUCH = "_touch"  # in what is watched
CONSTANTS = (bytes, str, int, float, type(None), tuple, frozenset)


class Uses(NamedTuple):
    """
    `values` are only ever replaced; a table's entries are used one by one; any use of one of the `things` may
    change it. `alone`: nothing comes of it for another call.
    """

    values: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    things: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


USES: dict[type, Uses] = {
    Lookups: Uses(
        values=names("_all_invalidated_at"),
        tables=names("_in_flight _missed _accepted_here"),
        # For the end of the process; for the metrics; and what a reading says, which is the same for all.
        alone=names("_tasks _counts _parsed _missed_subjects"),
    ),
    RedisStore: Uses(
        values=names("_forgotten_at"),
        tables=names("_remembered"),
        alone=names("_bytes _index"),  # no bound is reached
    ),
    MemoryLocks: Uses(tables=names("_entries")),
    RedisLocks: Uses(
        values=names("_lease _leasing _renewing _paying _pays_again"),
        tables=names("_exclusive _granted _owed"),
        alone=names("_held"),  # asked when a timer goes off
    ),
    RedisServer: Uses(
        values=names("_connection _connecting _distrusted _served problem _told _watching _closed"),
        things=names("_attempted"),
        alone=names("_scripts on_connected on_forgotten on_swept"),  # filled before the first call
    ),
}


def watch(node: Gateway, touch: Touch) -> bool:
    """Whether all of it could be."""
    locks = node.main.locks
    if not isinstance(locks, LayeredLocks):
        return False
    shared = node.main.shared
    assert shared is not None
    parts = (node.main.lookups, shared.store, locks._near, locks._far, shared.server)
    if any(type(part) not in USES for part in parts):
        return False
    for part in parts:
        _watch(part, touch)
    return True


def _watch(part: Any, touch: Touch) -> None:
    kind = type(part)
    uses = USES[kind]
    known = uses.values | uses.tables | uses.things | uses.alone
    for name, value in vars(part).items():
        if name in uses.tables:
            vars(part)[name] = _table(value, f"{kind.__name__}.{name}", touch)
        elif isinstance(value, dict | list | set | deque | asyncio.Event):
            assert name in known, f"{kind.__name__}.{name} is used by several calls: say how"
    vars(part)[TOUCH] = touch
    part.__class__ = _watched(kind)  # type: ignore[arg-type]


@cache
def _watched(kind: Any) -> Any:
    uses = USES[kind]
    known = uses.values | uses.tables | uses.things | uses.alone

    class Watched(kind):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            assert name in known, f"{kind.__name__}.{name} is changed by a call: say how"
            super().__setattr__(name, value)

    for name in uses.values | uses.tables | uses.things:
        setattr(Watched, name, _attribute(kind, uses, name))
    return type("WithLease", (_WithLease, Watched), {}) if kind is RedisLocks else Watched


def _attribute(kind: type, uses: Uses, name: str) -> property:
    told = f"{kind.__name__}.{name}"

    def get(part: Any) -> Any:
        own = vars(part)
        if name not in uses.tables:
            own[TOUCH](told, WHOLE, name in uses.things)
        return own[name]

    def put(part: Any, value: Any) -> None:
        own = vars(part)
        own[TOUCH](told, WHOLE, True)
        own[name] = _table(value, told, own[TOUCH]) if name in uses.tables else value

    return property(get, put)


class _WithLease:
    """Of RedisLocks: the lease itself is changed."""

    def lasts(self, lease: Any) -> bool:
        vars(self)[TOUCH]("lease", WHOLE, False)
        return bool(super().lasts(lease))  # type: ignore[misc]

    def _lose(self, lease: Any = None) -> None:
        vars(self)[TOUCH]("lease", WHOLE, True)
        super()._lose(lease)  # type: ignore[misc]

    async def _renewed(self, *given: Any, **rest: Any) -> bool:
        good: bool = await super()._renewed(*given, **rest)  # type: ignore[misc]
        vars(self)[TOUCH]("lease", WHOLE, True)
        return good


def _table(entries: Any, name: str, touch: Touch) -> Any:
    """A copy of the dict, whatever kind it is of, each use of which is told."""
    made = TABLES[type(entries)](entries)
    made.name, made.touch = name, touch
    return made


class _Table:
    name: str
    touch: Touch | None = None

    def _told(self, key: Any, value: Any, *, changed: bool = False) -> Any:
        # What is no constant may be changed by whoever gets it.
        if self.touch is not None:
            self.touch(self.name, repr(key), changed or not isinstance(value, CONSTANTS))
        return value

    def _told_of_all(self, *, changed: bool) -> Any:
        if self.touch is not None:
            self.touch(self.name, WHOLE, changed)
        return super()

    def __getitem__(self, key: Any) -> Any:
        return self._told(key, super().__getitem__(key))  # type: ignore[misc]

    def get(self, key: Any, default: Any = None) -> Any:
        return self._told(key, super().get(key, default))  # type: ignore[misc]

    def __contains__(self, key: Any) -> bool:
        return bool(self._told(key, super().__contains__(key)))  # type: ignore[misc]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._told(key, value, changed=True)
        super().__setitem__(key, value)  # type: ignore[misc]

    def __delitem__(self, key: Any) -> None:
        self._told(key, None, changed=True)
        super().__delitem__(key)  # type: ignore[misc]

    def pop(self, key: Any, *default: Any) -> Any:
        return self._told(key, super().pop(key, *default), changed=True)  # type: ignore[misc]

    def setdefault(self, key: Any, default: Any = None) -> Any:
        return self._told(key, super().setdefault(key, default), changed=True)  # type: ignore[misc]

    def __iter__(self) -> Any:
        return self._told_of_all(changed=False).__iter__()

    def __len__(self) -> int:
        return int(self._told_of_all(changed=False).__len__())

    def keys(self) -> Any:
        return self._told_of_all(changed=False).keys()

    def items(self) -> Any:
        return self._told_of_all(changed=True).items()

    def values(self) -> Any:
        return self._told_of_all(changed=True).values()

    def clear(self) -> None:
        self._told_of_all(changed=True).clear()

    def popitem(self, *last: Any) -> Any:
        return self._told_of_all(changed=True).popitem(*last)


class Table(_Table, dict[Any, Any]):
    pass


class OrderedTable(_Table, OrderedDict[Any, Any]):
    pass


class CountingTable(_Table, Counter[Any]):
    pass


TABLES: dict[type, Callable[[Any], Any]] = {dict: Table, OrderedDict: OrderedTable, Counter: CountingTable}
