"""
The state that several processes share, as the parts that one of them needs: a server, a store, locks.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from gateway.state.address import Address
from gateway.state.layered_locks import LayeredLocks
from gateway.state.locks import MemoryLocks
from gateway.state.redis import RedisStore
from gateway.state.redis_cluster import PARTS, ClusterLocks, ClusterServer, ClusterStore, Part, roots
from gateway.state.redis_connection import RedisConnection
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_primary import Opened
from gateway.state.redis_server import WATCHED, RedisServer, Source, packaged
from gateway.state.sealed import Sealed
from gateway.state.store_clock import StoreClock

SharedServer: TypeAlias = RedisServer | ClusterServer


class SharedState(NamedTuple):
    server: SharedServer
    store: RedisStore | ClusterStore
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
    source: Source = packaged,
    watch_interval: float = WATCHED,
) -> SharedState:
    """
    Processes with one `key` and `deployment` share one state, whatever else is on the server. `settle`: the
    longest that a fill has; `in_flight`: seconds that a call may take once it has left.
    """
    sealed = Sealed(key)
    root = f"gateway:{sealed.name('deployment', deployment)[:12]}"
    cluster = Address.parse(url).cluster
    clock = clock or StoreClock()
    share = PARTS if cluster else 1

    def part(root: str, clock: StoreClock) -> Part:
        server = RedisServer(
            url,
            root,
            timeout=timeout,
            clock=clock,
            settle=settle,
            tls=tls,
            opened=opened,
            chance=chance,
            source=source,
            watch_interval=watch_interval,
        )
        bounds = {"max_entries": -(-max_entries // share), "max_remembered": max_remembered // share}
        store = RedisStore(server, sealed, local=cluster, **bounds)
        return Part(
            server, store, RedisLocks(server, store, sealed, timeout=lock_timeout, in_flight=in_flight)
        )

    near = MemoryLocks(lock_timeout)
    if not cluster:
        whole = part(root, clock)
        return SharedState(whole.server, whole.store, LayeredLocks(near, whole.locks))
    parts = [part(one, StoreClock(clock.local)) for one in roots(root)]
    store = ClusterStore(parts, sealed)
    server = ClusterServer([one.server for one in parts])
    return SharedState(server, store, LayeredLocks(near, ClusterLocks(parts, store)))
