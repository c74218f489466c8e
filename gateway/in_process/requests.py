"""
What the requests that come without a connection of the gateway's have in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, NoReturn

from gateway.http.headers import Headers
from gateway.http.request_parser import RequestHead
from gateway.proxy.client import Body
from gateway.server.write_flow import ClientDisconnected, may_hold_one

# Who has no address is so called in X-Forwarded-For and Forwarded (RFC 7239 section 6.2).
NO_ADDRESS: Final = "unknown"


class ToldRequest(ABC):
    """
    A request that somebody else has read, for the lifecycle. It offers no upgrade: nobody here could switch.
    """

    body: Body
    upgrade: bytes | None = None
    certificate = b""
    trace_id = ""
    cancel_on_disconnect = False
    gone = False
    complete = False
    started = False
    task: Any = None  # of asyncio's, that serves it

    def __init__(self, head: RequestHead, version: str, address: str) -> None:
        self.method = head.method.decode()
        self.target = head.target
        self.headers = head.headers
        self.values = head.values
        self.version = version
        self.address = address
        self.holds_connection: Callable[[], bool] = may_hold_one

    def lost(self) -> None:
        """The client has gone."""
        self.gone = True
        if self.cancel_on_disconnect and not self.complete and self.task is not None:
            self.task.cancel()

    def check_client(self) -> None:
        if self.gone:
            raise ClientDisconnected("the client has gone")

    def outcome(self) -> BaseException | None:
        """Of the task, which is over: what whoever sent the request has to be told beside the reply."""
        task = self.task
        if task.cancelled():
            return None if self.complete or self.gone else ConnectionAbortedError("the call was cancelled")
        error: BaseException | None = task.exception()
        if error is None and not (self.complete or self.gone):
            return ConnectionAbortedError("the call ended without a whole reply")
        return None if self.gone and isinstance(error, OSError) else error

    @abstractmethod
    def respond(self, status: int, headers: Headers, body: bytes, extra_headers: Headers = ()) -> bool: ...

    @abstractmethod
    async def start(self, status: int, headers: Headers, extra_headers: Headers = ()) -> None: ...

    @abstractmethod
    async def write(self, piece: bytes, more: bool) -> None: ...

    def switch(self, headers: Headers) -> NoReturn:
        raise RuntimeError("no upgrade was offered")
