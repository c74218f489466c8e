"""
Where readings are kept: the seam between the freshness rules and a store, in this process or shared.

A store must make `keep` one step: the lease is checked and the reading stored with nothing between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import Struct


class Key(Struct, frozen=True):
    """`credential` is a keyed hash over the upstream and all that authenticates; never the secret (S6)."""

    conversation: str
    target: bytes
    credential: str


@dataclass(frozen=True, slots=True)
class Reading:
    """
    A conversation as the upstream showed it to one caller. `started` is when the GET began, on a
    monotonic clock in seconds: age counts from there (RFC 9111 section 4.2.3).
    """

    body: bytes
    started: float
    generation: int
    etag: bytes | None = None
    learned: bool = False
    # What was already chosen from the body, by query and parameters: a reading serves all participants.
    chosen: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


class Store(Protocol):
    async def generation(self, conversation: str) -> int:
        """The conversation's generation: a number that changes with each `forget` and never comes back."""

    def try_get(self, key: Key) -> Reading | None:
        """A reading of the current generation, if that can be told at once: a store elsewhere can't."""

    async def get(self, key: Key) -> Reading | None:
        """Whatever was kept, however old; the reader judges its age and its lease."""

    async def keep(self, key: Key, reading: Reading) -> bool:
        """False, and nothing kept, when the conversation was forgotten since the lease was taken."""

    async def invalidate(self, conversation: str | None) -> None:
        """
        No reading of it (None: of any), kept or under way, is of the current generation any more (S3).
        Once called it is done, also when the caller is cancelled meanwhile.
        """
