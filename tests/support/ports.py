"""Ports at which nothing listens, in three ways."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that is taken, so that nobody else listens there meanwhile, and refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """A listener whose queue is full: further connections neither succeed nor fail."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def unused_ports(count: int) -> list[int]:
    """
    For what has to know its port before it listens there. They lie below those that the kernel hands out
    by itself, so that no other test, in this process or another, is given one of them meanwhile.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found
