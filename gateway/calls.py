"""
A call as it moves through its life, and what was changed in it: the values the phases pass on. Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gateway.headers import Header, Headers


class Call(NamedTuple):
    """A matched call with its whole body, the headers those that go on to the next hop."""

    method: bytes
    target: bytes
    headers: list[Header]
    body: bytes

    def with_body(self, body: bytes, headers: Headers) -> Call:
        return Call(self.method, self.target, list(headers), body)


class Change(NamedTuple):
    """One repair, as it is recorded: never a value from the body but the filled one (L3)."""

    repair: str
    details: dict[str, Any]

    def record(self) -> dict[str, Any]:
        return {"repair": self.repair, **self.details}
