"""
Who may have how many of the file descriptors that the process may open: enough stay for the admin side, the
audit log and the upstream, however many clients come. Pure, but for `raised`, which asks for as many as
there are.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

OWN: Final = (
    64  # listeners, the loop's, the audit log, names being resolved, what is being turned away at once
)
LEAST: Final = 8  # connections of any kind, however few descriptors there are


@dataclass(frozen=True, slots=True)
class Shares:
    """Connections: of clients, of clients turned away that still read why, to the upstream, of operators."""

    clients: int
    lingering: int
    upstream: int
    admin: int

    @property
    def descriptors(self) -> int:
        return OWN + self.clients + self.lingering + self.upstream + self.admin


def raised() -> int:
    """The soft limit on open files, after it was raised to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems have a limit beside the hard one
            return soft
    return hard


def shared(wanted: Shares, available: int) -> Shares:
    """
    `wanted` where there are descriptors for all of it. Else clients have what the others leave: the upstream
    at most half of that, whom the operator needs and who is turned away an eighth each.
    """
    if wanted.descriptors <= available:
        return wanted
    rest = available - OWN
    admin = min(wanted.admin, max(LEAST, rest // 8))
    lingering = min(wanted.lingering, max(LEAST, rest // 8))
    rest -= admin + lingering
    upstream = min(wanted.upstream, max(LEAST, rest // 2))
    clients = min(wanted.clients, max(LEAST, rest - upstream))
    return Shares(clients, lingering, upstream, admin)


def shortage(wanted: Shares, has: Shares, available: int) -> str | None:
    """What to set, where not all can be had."""
    if has == wanted:
        return None
    said = (
        f"the process may open {available} files, but limits.max_connections and upstream.max_connections "
        f"need {wanted.descriptors} (ulimit -n {wanted.descriptors}, LimitNOFILE=, or --ulimit nofile=): "
        f"as if limits.max_connections were {has.clients}"
    )
    return said + (f" and upstream.max_connections {has.upstream}" if has.upstream < wanted.upstream else "")
