"""
The gateway as an ASGI application, for any ASGI server, and as a middleware before the API itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gateway.config import Settings
from gateway.in_process import asgi_request
from gateway.in_process.running import InProcess, settings_of
from gateway.server.asgi import AsgiApp, Message, Receive, Send
from gateway.server.cors import with_cors
from gateway.upstream.application import ApplicationTransport

# What all requests of a server have in common in their scopes: a look-up, which is of no request, has it too.
OF_THE_SERVER = ("asgi", "scheme", "server", "root_path", "app")


class GatewayApp:
    """It has begun while its lifespan, or a block of `running`, lasts. One event loop, one at a time."""

    def __init__(self, within: InProcess) -> None:
        self.within = within
        cors = within.settings.cors
        app: AsgiApp = self._request
        self._app = app if cors is None else with_cors(app, **cors.model_dump())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._app(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})  # before it was accepted: a 403
        else:
            raise ValueError(f"an ASGI scope of type {kind!r}")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For the lifespan of an application that mounts it, which gets none of its own."""
        await self.within.begin()
        try:
            yield
        finally:
            await self.within.end()

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        await asgi_request.serve(self.within, scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._begin(send)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.within.end()
        await send({"type": "lifespan.shutdown.complete"})

    async def _begin(self, send: Send) -> None:
        """A server that is told nothing takes the error for an application without a lifespan, and serves."""
        begun = False
        try:
            await self.within.begin()
            begun = True
        finally:
            if not begun:
                said = "the gateway cannot begin: see the log"
                await send({"type": "lifespan.startup.failed", "message": said})


def create_app(config: str | Path | Settings, **seams: Any) -> GatewayApp:
    """In front of `upstream.url`. `config` is a file's path, or settings. `seams`: app.build's."""
    return GatewayApp(InProcess(settings_of(config), **seams))


class GatewayMiddleware(GatewayApp):
    """
    In front of an application of the same process that is the API: what is sent upstream, look-ups too, goes
    to that. `upstream.url` only names it.
    """

    def __init__(self, app: AsgiApp, /, config: str | Path | Settings, **seams: Any) -> None:
        settings = settings_of(config)
        # The application is the host that its clients have asked for.
        upstream = settings.upstream.model_copy(update={"preserve_host": True})
        settings = settings.model_copy(update={"upstream": upstream})
        super().__init__(InProcess(settings, lambda: ApplicationTransport(app, self._scope_of), **seams))
        self._inner = app
        self._state: dict[str, Any] | None = None
        self._current: ContextVar[Message] = ContextVar("current")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            self._state = scope.get("state")
            await self._shared_lifespan(scope, receive, send)
        elif kind == "http":
            self._current.set(scope)
            await self._app(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    def _scope_of(self, method: str, target: bytes) -> Message:
        """A call's own, with all that was put there before; of a look-up, nothing that is any caller's."""
        current = self._current.get()
        path, _, query = target.partition(b"?")
        said = current["method"], current["raw_path"], current.get("query_string", b"")
        if said == (method, path, query):
            return {**current}
        scope = {key: current[key] for key in OF_THE_SERVER if key in current}
        scope |= {"http_version": "1.1", "client": None}
        return scope if self._state is None else scope | {"state": self._state.copy()}

    async def _shared_lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        """The application's own, around which the gateway begins before it and ends before it."""

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._begin(send)
            elif message["type"] == "lifespan.shutdown":
                await self.within.end()
            return message

        try:
            await self._inner(scope, received, send)
        finally:
            await self.within.end()
