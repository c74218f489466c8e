"""
The signals of a process that serves, from its first line on: what comes before they are followed counts too.

It is imported before all else, so it imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def at_start() -> None:
    """SIGTERM ends the process; SIGHUP waits until `hang_ups_followed`."""

    def end(number: int, _: FrameType | None) -> None:
        end_by(number)

    signal.signal(signal.SIGTERM, end)
    # Not ignored: what was rotated or changed meanwhile may have been opened or read before it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def hang_ups_followed() -> None:
    """SIGHUP has its handler: one that waits comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def end_by(number: int) -> NoReturn:
    """At once, so that who waits for the process sees which signal it was."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    # A container's first process gets no signal that it does not handle.
    os._exit(128 + number)
