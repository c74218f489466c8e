"""
A matched call, and a change that was made in it: the values that the phases hand on.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from gateway.http.headers import Fields


class Call(Struct, frozen=True):
    """A matched call with its whole body. `headers` are those for the upstream, without X-Request-Id."""

    method: bytes
    target: bytes
    headers: Fields
    body: bytes


class Change(Struct, frozen=True):
    """
    One repair, and how it is recorded: never with a value from the body but the filled one (L3). `said` is
    the same as parameters of Gateway-Rewrite (RFC 9651 section 3.1.2).
    """

    repair: str
    record: dict[str, Any]
    said: str

    @classmethod
    def of(cls, repair: str, **details: Any) -> Change:
        return cls(repair, {"repair": repair, **details}, "; " + repair.replace("_", "-"))
