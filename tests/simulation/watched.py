"""
What the calls in one process have in common, each use of which is told: so that two steps there may change
places unless one uses what the other changes.

What is left out is said by name. A process with a part that is unknown here is one thing (`watch` says so).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
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
        tables=names("_in_flight _missed _accepted_unheard"),
        # For the end of the process; for the metrics; and what a reading says, which is the same for all.
        alone=names("_tasks _counts _parsed"),
    ),
    RedisStore: Uses(
        values=names("_forgotten_at"),
        tables=names("_remembered"),
        alone=names("_bytes _index"),  # no bound is reached
    ),
    MemoryLocks: Uses(tables=names("_entries")),
    RedisLocks: Uses(
        values=names("_lease _leasing _renewing"),
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
            vars(part)[name] = table(value, f"{kind.__name__}.{name}", touch)
        elif isinstance(value, dict | list | set | deque | asyncio.Event):
            assert name in known, f"{kind.__name__}.{name} is used by several calls: say how"

    class Watched(kind):  # type: ignore[misc, valid-type]
        def __setattr__(self, name: str, value: Any) -> None:
            assert name in known, f"{kind.__name__}.{name} is changed by a call: say how"
            super().__setattr__(name, value)

    for name in uses.values | uses.tables | uses.things:
        setattr(Watched, name, _attribute(kind, uses, name, touch))
    part.__class__ = _with_lease(Watched, touch) if kind is RedisLocks else Watched


def _attribute(kind: type, uses: Uses, name: str, touch: Touch) -> property:
    told = f"{kind.__name__}.{name}"

    def get(part: Any) -> Any:
        if name not in uses.tables:
            touch(told, WHOLE, name in uses.things)
        return vars(part)[name]

    def put(part: Any, value: Any) -> None:
        touch(told, WHOLE, True)
        vars(part)[name] = table(value, told, touch) if name in uses.tables else value

    return property(get, put)


def _with_lease(kind: Any, touch: Touch) -> Any:
    class WithLease(kind):  # type: ignore[misc]
        def lasts(self, lease: Any) -> bool:
            touch("lease", WHOLE, False)
            return bool(super().lasts(lease))

        def _lose(self, lease: Any = None) -> None:
            touch("lease", WHOLE, True)
            super()._lose(lease)

        async def _renewed(self, *given: Any, **rest: Any) -> bool:
            good: bool = await super()._renewed(*given, **rest)
            touch("lease", WHOLE, True)
            return good

    return WithLease


def table(entries: Any, name: str, touch: Touch) -> Any:
    """A copy of the dict, whatever kind it is of, each use of which is told."""

    def told(key: Any, value: Any, *, changed: bool = False) -> Any:
        # What is no constant may be changed by whoever gets it.
        touch(name, repr(key), changed or not isinstance(value, CONSTANTS))
        return value

    class Table(type(entries)):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> Any:
            return told(key, super().__getitem__(key))

        def get(self, key: Any, default: Any = None) -> Any:
            return told(key, super().get(key, default))

        def __contains__(self, key: Any) -> bool:
            return bool(told(key, super().__contains__(key)))

        def __setitem__(self, key: Any, value: Any) -> None:
            told(key, value, changed=True)
            super().__setitem__(key, value)

        def __delitem__(self, key: Any) -> None:
            told(key, None, changed=True)
            super().__delitem__(key)

        def pop(self, key: Any, *default: Any) -> Any:
            return told(key, super().pop(key, *default), changed=True)

        def setdefault(self, key: Any, default: Any = None) -> Any:
            return told(key, super().setdefault(key, default), changed=True)

        def __iter__(self) -> Any:
            touch(name, WHOLE, False)
            return super().__iter__()

        def __len__(self) -> int:
            touch(name, WHOLE, False)
            return int(super().__len__())

        def keys(self) -> Any:
            touch(name, WHOLE, False)
            return super().keys()

        def items(self) -> Any:
            touch(name, WHOLE, True)
            return super().items()

        def values(self) -> Any:
            touch(name, WHOLE, True)
            return super().values()

        def clear(self) -> None:
            touch(name, WHOLE, True)
            super().clear()

        def popitem(self, *last: Any) -> Any:
            touch(name, WHOLE, True)
            return super().popitem(*last)

    assert type(entries) in {dict, OrderedDict, Counter}
    return Table(entries)
