"""
Which server takes the writes: the one that the address names, or that Sentinels or a cluster's nodes name.

A fail-over is decided elsewhere, and who asks one alone may be told what was before it. So most Sentinels
have to answer, and the newest answer counts: most of them have agreed to a fail-over.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Awaitable, Callable
from ssl import SSLContext
from typing import Any, Protocol, TypeAlias

from gateway.errors import StoreUnavailable
from gateway.state.address import Address
from gateway.state.redis_connection import RedisConnection, RedisError, greeting

SLOTS = 16_384

Opened: TypeAlias = Callable[..., Awaitable[RedisConnection]]  # as RedisConnection.open
Where: TypeAlias = tuple[str, int] | str
_Answer: TypeAlias = tuple[int, tuple[str, int]]


class Primary(Protocol):
    replaceable: bool  # another may take its place while it is connected to

    async def find(self) -> Where:
        """Raises StoreUnavailable, or RedisError."""

    async def is_still(self, where: Where) -> bool:
        """Raises StoreUnavailable."""

    def close(self) -> None: ...


def primary_of(
    address: Address, tls: SSLContext | None, timeout: float, opened: Opened, slot: int
) -> Primary:
    """`slot`: where a cluster has the keys that are meant."""
    if address.cluster:
        return ClusterNodes(address, tls, timeout, opened, slot)
    if address.service is not None:
        return Sentinels(address, address.service, tls, timeout, opened)
    return Named(address.path or address.hosts[0])


class Named:
    replaceable = False

    def __init__(self, where: Where) -> None:
        self._where = where

    async def find(self) -> Where:
        return self._where

    async def is_still(self, where: Where) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""


class Sentinels:
    replaceable = True

    def __init__(
        self, address: Address, service: str, tls: SSLContext | None, timeout: float, opened: Opened
    ) -> None:
        self._address = address
        self._service = service
        self._tls = tls
        self._timeout = timeout
        self._opened = opened
        self._connections: dict[tuple[str, int], RedisConnection] = {}

    async def find(self) -> Where:
        hosts = self._address.hosts
        answers = await asyncio.gather(*map(self._tried, hosts))
        failed = [one for one in answers if isinstance(one, str)]
        if 2 * len(failed) >= len(hosts):
            raise StoreUnavailable(f"{len(failed)} of {len(hosts)} Sentinels can't be asked: {failed[0]}")
        known = [one for one in answers if isinstance(one, tuple)]
        if not known:
            raise StoreUnavailable(f"no Sentinel knows the primary of {self._service}")
        return max(known)[1]

    async def is_still(self, where: Where) -> bool:
        return await self.find() == where

    async def _tried(self, host: tuple[str, int]) -> _Answer | str | None:
        """What this one answers, or why it does not."""
        try:
            return await self._asked(host)
        except StoreUnavailable as error:
            return error.detail
        except RedisError as error:
            return str(error)

    async def _asked(self, host: tuple[str, int]) -> _Answer | None:
        """The epoch of what this one has heard of, and who the primary is by that."""
        sentinel = self._connections.get(host)
        if sentinel is None or sentinel.problem is not None:
            sentinel = await self._opened(host, self._tls, self._timeout)
            self._connections[host] = sentinel
        try:
            return await self._said(sentinel)
        except RedisError as error:
            if not str(error).startswith("NOAUTH") or self._address.password is None:
                raise
        await sentinel.ask("AUTH", *filter(None, (self._address.user, self._address.password)))
        return await self._said(sentinel)

    async def _said(self, sentinel: RedisConnection) -> _Answer | None:
        where = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        about = sentinel.ask("SENTINEL", "MASTER", self._service)
        found = await where
        if not found:
            return None
        told = await about
        has = dict(zip(told[::2], told[1::2], strict=False))
        return int(has.get(b"config-epoch", 0)), (found[0].decode(), int(found[1]))

    def close(self) -> None:
        for sentinel in self._connections.values():
            sentinel.end("it is not needed any more")


class ClusterNodes:
    """Which of them has one slot. A node that does not is no use, and says so (MOVED)."""

    replaceable = True

    def __init__(
        self, address: Address, tls: SSLContext | None, timeout: float, opened: Opened, slot: int
    ) -> None:
        self._address = address
        self._tls = tls
        self._timeout = timeout
        self._opened = opened
        self._slot = slot
        self._nodes = list(address.hosts)

    async def find(self) -> Where:
        problem: StoreUnavailable | RedisError | None = None
        for host in list(self._nodes):
            # The next question goes to another first: this one may not know of a fail-over.
            self._nodes.remove(host)
            self._nodes.append(host)
            try:
                slots = await self._asked(host)
            except (StoreUnavailable, RedisError) as error:
                problem = error
                continue
            self._learn(host, slots)
            for first, last, primary, *_ in slots:
                if first <= self._slot <= last:
                    return _place(primary, host)
            problem = StoreUnavailable(f"no node of the cluster has slot {self._slot}")
        assert problem is not None
        raise problem

    async def is_still(self, where: Where) -> bool:
        return True

    async def _asked(self, host: tuple[str, int]) -> Any:
        node = await self._opened(host, self._tls, self._timeout)
        try:
            await node.ask(*greeting(self._address))
            return await node.ask("CLUSTER", "SLOTS")
        finally:
            node.end("it is not needed any more")

    def _learn(self, host: tuple[str, int], slots: Any) -> None:
        """Those that the address names may all have been replaced some day."""
        known = {_place(node, host) for _, _, *nodes in slots for node in nodes}
        self._nodes = [one for one in self._nodes if one in known or one in self._address.hosts]
        self._nodes += sorted(known.difference(self._nodes))

    def close(self) -> None:
        """Nothing is open."""


def _place(node: Any, asked: tuple[str, int]) -> tuple[str, int]:
    """A node that does not know its own address is where it was asked."""
    return (node[0].decode() if node[0] else asked[0]), int(node[1])


def slot_of(key: str) -> int:
    """By its hash tag, which is what the first braces hold; with CRC16 as in XMODEM."""
    _, _, tag = key.partition("{")
    return crc_hqx((tag.partition("}")[0] or key).encode(), 0) % SLOTS
