"""
Where the server of the shared state is, and who asks there: what `store.url` says.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

PORT, SENTINEL_PORT = 6379, 26379


class Address(NamedTuple):
    """
    Where a server is and who asks there. `path` of a Unix socket, or host and port; `service`: the name that
    Sentinels at `hosts` know the primary by; `cluster`: the `hosts` are some of its nodes.
    """

    hosts: tuple[tuple[str, int], ...]
    path: str | None
    user: str | None
    password: str | None
    database: int
    tls: bool
    service: str | None
    cluster: bool = False

    @classmethod
    def parse(cls, url: str) -> Address:
        """
        redis://, rediss:// (TLS), unix:///path, redis+sentinel://host:port,host:port/service, or
        redis+cluster://host:port,host:port. Raises ValueError.
        """
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        if scheme not in {"redis", "rediss", "unix"} or kind not in {"", "sentinel", "cluster"}:
            raise ValueError("expected redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://")
        if parts.fragment or parts.query:
            raise ValueError("expected no query or fragment")
        userinfo, _, hosts = parts.netloc.rpartition("@")
        user, colon, password = userinfo.partition(":")
        named = tuple(filter(None, parts.path.split("/")))
        if scheme == "unix":
            if kind or not parts.path or hosts:
                raise ValueError("expected unix:///path/of/the/socket")
            return cls((), parts.path, unquote(user) or None, unquote(password) or None, 0, False, None)
        service = None
        if kind == "sentinel":
            if not named:
                raise ValueError("expected the primary's name as the first part of the path")
            service, named = named[0], named[1:]
        if len(named) > 1 or (named and not named[0].isdigit()):
            raise ValueError("expected the database's number as the path")
        if kind == "cluster" and named:
            raise ValueError("expected no database, of which a cluster has one")
        found = []
        for host in hosts.split(","):
            one = urlsplit("//" + host)
            if not one.hostname:
                raise ValueError("expected a host")
            found.append((one.hostname, one.port or (SENTINEL_PORT if service else PORT)))
        if len(found) > 1 and not kind:
            raise ValueError("expected one host")
        return cls(
            tuple(found),
            None,
            unquote(user) or None,
            unquote(password) if colon else None,
            int(named[0]) if named else 0,
            scheme == "rediss",
            service,
            kind == "cluster",
        )

    def __str__(self) -> str:
        """Without its password."""
        return self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)
