"""
The state that several processes share, as the parts that one of them needs: a server, a store, locks.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from typing import NamedTuple

from gateway.state.layered_locks import LayeredLocks
from gateway.state.locks import MemoryLocks
from gateway.state.redis import RedisStore
from gateway.state.redis_connection import RedisConnection
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_server import Opened, RedisServer
from gateway.state.sealed import Sealed
from gateway.state.store_clock import StoreClock


class SharedState(NamedTuple):
    server: RedisServer
    store: RedisStore
    locks: LayeredLocks


def shared_state(
    url: str,
    *,
    key: bytes,
    deployment: str,
    tls: ssl.SSLContext | None,
    timeout: float,
    settle: float,
    max_entries: int,
    max_remembered: int,
    lock_timeout: float,
    in_flight: float,
    clock: StoreClock | None = None,
    opened: Opened = RedisConnection.open,
    chance: Callable[[], float] = random.random,
) -> SharedState:
    """
    Processes with one `key` and `deployment` share one state, whatever else is on the server. `settle`: the
    longest that a fill has; `in_flight`: seconds that a call may take once it has left.
    """
    sealed = Sealed(key)
    root = f"gateway:{sealed.name('deployment', deployment)[:12]}"
    server = RedisServer(
        url,
        root,
        timeout=timeout,
        clock=clock or StoreClock(),
        settle=settle,
        tls=tls,
        opened=opened,
        chance=chance,
    )
    store = RedisStore(server, sealed, max_entries=max_entries, max_remembered=max_remembered)
    far = RedisLocks(server, store, sealed, timeout=lock_timeout, in_flight=in_flight)
    near = MemoryLocks(lock_timeout)
    return SharedState(server, store, LayeredLocks(near, far))
