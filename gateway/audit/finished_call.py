"""
A matched call as it ended, for whoever watches: the console, metrics, the callers' table, the page.

What is here may be shown: names, sizes and filled values, no other value of a body and no credential (L3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

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
