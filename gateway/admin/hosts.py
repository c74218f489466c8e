"""
Under which names the admin side answers: a page that has bound its own name to this address (DNS rebinding)
is not to read it in its visitor's browser.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from starlette.responses import PlainTextResponse

Message: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


def answers_to(authority: str, names: Collection[str]) -> bool:
    """
    Whether a Host field names this machine: by an address, a loopback name, or one of `names`. Nobody can
    bind an address to another one, so these need no list.
    """
    host = authority.strip().lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host in names or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def guarded(app: AsgiApp, names: Collection[str]) -> AsgiApp:
    """`names` in lower case: those that the configuration has."""

    async def serve(scope: Message, receive: Any, send: Any) -> None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if all(answers_to(host, names) for host in hosts):
            await app(scope, receive, send)
            return
        said = "The admin side does not answer to this Host. Add it to admin.hosts, or use the address.\n"
        await PlainTextResponse(said, 421)(scope, receive, send)

    return serve
