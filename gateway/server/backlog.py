"""
How many clients may wait to be accepted: what the configuration says, as far as the system lets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")


def shortage(backlog: int, somaxconn: Path = SOMAXCONN) -> str | None:
    """What to set, where the kernel cuts the backlog without a word (listen(2))."""
    try:
        most = int(somaxconn.read_text("ascii"))
    except (OSError, ValueError):
        return None  # not every system tells
    if most >= backlog:
        return None
    return f"listen.backlog is {backlog}, but the system allows {most} (sysctl net.core.somaxconn)"
