"""
Which upstream a request is for, by its Host and the first segments of its path. Pure.

Law: prefixes are compared byte by byte. A path that is only read as one of them by who decodes it is below
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from gateway.errors import NotServed

MAIN: Final = ""  # the name of the upstream that takes what no other does


class Destination(Struct, frozen=True):
    """`hosts` in lower case, without ports; none: any. `strips`: the upstream does not see the prefix."""

    name: str
    hosts: frozenset[bytes] = frozenset()
    prefix: bytes = b""
    strips: bool = True


class Destinations:
    def __init__(self, prefix: bytes, named: Sequence[Destination]) -> None:
        """
        Requests below `prefix` are served. Of the named ones that fit, one with hosts wins, then the longest.
        """
        self._prefix = prefix
        self._named = sorted(named, key=lambda one: (not one.hosts, -len(one.prefix)))

    def chosen(self, host: bytes, target: bytes) -> tuple[str, bytes]:
        """The upstream's name, and the target as it goes there. Raises NotServed."""
        inner = below(self._prefix, target)
        if inner is None:
            raise NotServed(f"only paths below {self._prefix.decode()} are (listen.path_prefix)")
        host = _name(host)
        for one in self._named:
            if one.hosts and host not in one.hosts:
                continue
            rest = below(one.prefix, inner)
            if rest is not None:
                return one.name, rest if one.strips else inner
        return MAIN, inner


def below(prefix: bytes, target: bytes) -> bytes | None:
    """The target without the prefix, None where it does not begin with that."""
    if not prefix:
        return target
    if not target.startswith(prefix):
        return None
    rest = target[len(prefix) :]
    if rest[:1] in {b"", b"?"}:
        return b"/" + rest
    return rest if rest[:1] == b"/" else None


def _name(host: bytes) -> bytes:
    """Without its port (RFC 9110 section 7.2)."""
    name = host.partition(b"]")[0] + b"]" if host[:1] == b"[" else host.partition(b":")[0]
    return name.lower()
