"""
A call as it moves through its life, and what was changed in it: the values the phases pass on. Pure.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from gateway.http.headers import Fields


class Call(Struct, frozen=True):
    """A matched call with its whole body, the headers those that go on to the next hop, but its id."""

    method: bytes
    target: bytes
    headers: Fields
    body: bytes


class Change(Struct, frozen=True):
    """One repair, and how it is recorded: never with a value from the body but the filled one (L3)."""

    repair: str
    record: dict[str, Any]

    @classmethod
    def of(cls, repair: str, **details: Any) -> Change:
        return cls(repair, {"repair": repair, **details})
