"""
The sockets at which the workers accept: one each, at one address, all made and kept open by the supervisor.

Measured with 16 connections that stay open: from one socket that all share, one worker took all 16 (libuv
accepts whatever waits as soon as it wakes, however busy it is); from a socket each (SO_REUSEPORT), which the
kernel chooses by a hash of the addresses, 9 and 7; of 200, 120 and 80 against 100 and 100. What a socket each
costs by itself is that the connections that wait at it die with its process. Not here: the supervisor has it
open too, so they wait for the worker that comes next. Only where that one is long in coming is the socket
closed, and the kernel gives what comes to the others.

The first is bound alone: whoever else is at that address, another gateway with workers too, is noticed.
"""

from __future__ import annotations

import contextlib
import socket

from gateway.app import CannotListen
from gateway.config import ListenSettings
from gateway.process.lifetime import bind


def first(settings: ListenSettings) -> socket.socket:
    """Raises CannotListen."""
    listener = bind("listen", settings.host, settings.port, settings.backlog)
    # Only now: with it, an address that others have would be taken for free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return listener


def another(beside: tuple[str, int]) -> socket.socket:
    """At an address where one is already. It has no connections before its worker listens."""
    family = socket.AF_INET6 if ":" in beside[0] else socket.AF_INET
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(beside)
        except OSError as error:
            raise CannotListen(
                f"listen: cannot listen on {beside[0]}:{beside[1]} once more: {error.strerror or error}"
            ) from error
        opened.pop_all()
    return listener
