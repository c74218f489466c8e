"""
What several workers need before they may run, and what each of them may have of what is for the whole
machine. Pure.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from gateway.config import Settings

MOST = 64  # workers


def wanted(workers: str, usable: int) -> int:
    """What `--workers` says; `usable`: processors that this process may run on. Raises ValueError."""
    if workers == "auto":
        return max(1, min(usable, MOST))
    if not workers.isascii() or not workers.isdigit() or not 1 <= int(workers) <= MOST:
        raise ValueError(f"--workers: expected auto, or 1 to {MOST}, got {workers[:64]!r}")
    return int(workers)


def missing(settings: Settings, workers: int) -> Iterator[tuple[str, str]]:
    """What keeps these settings from being those of so many workers: the setting, and why."""
    if workers == 1:
        return
    if settings.store is None:
        yield (
            "store",
            f"expected with {workers} workers: without it one does not know of a write through another",
        )
    # A long line goes into a pipe in parts, between which another worker's could come (L2).
    if not _is_file(settings.audit.path):
        yield (
            "audit.path",
            f"expected a file with {workers} workers, which all write to it, got {settings.audit.path!r}",
        )


def _is_file(path: str) -> bool:
    if path == "-":
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # there is nothing yet


def share(settings: Settings, workers: int) -> Settings:
    """Of what protects the machine or the upstream each worker has its part; all else it has in full."""

    def part(number: int) -> int:
        return max(1, number // workers)

    limits, upstream, cache = settings.limits, settings.upstream, settings.state_cache
    fewer = {
        "max_connections": part(limits.max_connections),
        "max_in_flight": part(limits.max_in_flight),
        # Never less than the largest write needs.
        "max_buffered": max(limits.max_buffered // workers, min(limits.max_buffered, 2 * limits.max_write)),
        "max_tunnels": None if limits.max_tunnels is None else part(limits.max_tunnels),
    }
    return settings.model_copy(
        update={
            "limits": limits.model_copy(update=fewer),
            "upstream": upstream.model_copy(update={"max_connections": part(upstream.max_connections)}),
            "upstreams": tuple(
                one.model_copy(update={"max_connections": part(one.max_connections)})
                for one in settings.upstreams
            ),
            "state_cache": cache.model_copy(
                update={"max_entries": part(cache.max_entries), "max_bytes": part(cache.max_bytes)}
            ),
        }
    )
