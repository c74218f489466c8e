"""
A matched call as it ended, for whoever watches: the console, metrics, the callers' table, the page.

What is here may be shown: names, sizes and filled values, no other value of a body and no credential (L3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct


class FinishedCall(Struct, frozen=True):
    """
    `id` is the gateway's own, `request_id` the client's. `changes` were sent; `would_change` are those that
    `shadow` only worked out, `needs` what `observe` found to be needed. `skipped` is why nothing, or not all,
    was repaired; `error` how a call ended that the gateway refused or its client left. `status` is that of
    the reply, None without one. `shadow`: whether what it would have filled was right or wrong by what the
    reply reports. Times in seconds. `body` has size and digest before and after, where something was changed.
    `trace_id`: of the trace that the call is a part of. `application`: what the client says that it is.
    """

    id: str
    request_id: str | None
    rule: str
    mode: str
    method: str
    path: str
    address: str
    user_agent: str | None
    credential: str
    changes: tuple[dict[str, Any], ...]
    would_change: tuple[dict[str, Any], ...]
    needs: tuple[str, ...]
    skipped: str | None
    error: str | None
    status: int | None
    lookup: float
    upstream: float
    total: float
    attempts: int
    conflict: bool
    shadow: str | None = None
    body: dict[str, Any] | None = None
    trace_id: str | None = None
    application: str | None = None


# It is called from the data path: it takes little time, and raises nothing.
Observer: TypeAlias = Callable[[FinishedCall], None]


@runtime_checkable
class Sampler(Protocol):
    """An observer of some calls: nothing is made of the others."""

    def wants(self, rewritten: bool) -> bool:
        """Asked once of each call, which was `rewritten` or not."""

    def __call__(self, call: FinishedCall) -> None: ...


class CallCounter(Protocol):
    """What is counted of each call: as FinishedCall has it, without the making of one."""

    def __call__(
        self,
        rule: str,
        mode: str,
        status: int | None,
        sent: Sequence[SentChange],
        not_sent: Sequence[str],
        skipped: str | None,
        added: float,
        /,
    ) -> None:
        """`sent` are the changes, `not_sent` names the repairs of those that were not; `added` in seconds."""


class SentChange(Protocol):
    @property
    def repair(self) -> str: ...


def uncounted(
    rule: str,
    mode: str,
    status: int | None,
    sent: Sequence[SentChange],
    not_sent: Sequence[str],
    skipped: str | None,
    added: float,
) -> None:
    """A counter for who counts nothing."""
