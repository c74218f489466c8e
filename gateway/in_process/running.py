"""
A gateway without listeners: begun in somebody else's event loop, and ended when its last call is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from gateway import app, config
from gateway.config import Settings
from gateway.errors import GatewayError, Overloaded
from gateway.http.head_shapes import HeadShapes
from gateway.in_process.requests import ToldRequest
from gateway.process import lifetime
from gateway.server.limits import ServerLimits
from gateway.upstream.transport import Transport

log = logging.getLogger("gateway")


def settings_of(given: str | Path | Settings) -> Settings:
    """Those, or those of that file. Raises what `gateway check` says."""
    return given if isinstance(given, Settings) else config.load(Path(given))


class InProcess:
    """Calls are tasks of its own: who sent one may go, and what the upstream makes of it is still awaited."""

    def __init__(
        self, settings: Settings, upstream: Callable[[], Transport] | None = None, **seams: Any
    ) -> None:
        """`upstream` makes another transport than to upstream.url; `seams` are those of app.build."""
        self.settings = settings
        self.limits: ServerLimits = lifetime.downstream_limits(settings)
        self.shapes = HeadShapes()
        self.gateway: app.Gateway | None = None
        self._upstream = upstream
        self._seams = seams
        self._calls: set[asyncio.Task[None]] = set()
        self._claimed = contextlib.ExitStack()
        self._lock = asyncio.Lock()

    async def begin(self) -> app.Gateway:
        """Once, whoever asks. Raises lifetime.LogInUse."""
        if self.gateway is not None:
            return self.gateway
        async with self._lock:
            if self.gateway is None:
                with contextlib.ExitStack() as claimed:
                    claimed.enter_context(lifetime.claimed(self.settings.audit))
                    transport = None if self._upstream is None else self._upstream()
                    gateway = app.build(self.settings, transport=transport, **self._seams)
                    await gateway.audit.begin()
                    self._claimed = claimed.pop_all()
                for warning in app.warnings(self.settings):
                    log.warning("%s", warning)
                self.gateway = gateway
            return self.gateway

    async def end(self) -> None:
        """What is in flight is finished within limits.drain_timeout; after it, begin() begins another."""
        async with self._lock:
            gateway, self.gateway = self.gateway, None
            if gateway is None:
                return
            gateway.draining.set()
            if self._calls:
                _, late = await asyncio.wait(self._calls, timeout=self.settings.limits.drain_timeout)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await gateway.close()
            self._claimed.close()

    def refused(self, error: GatewayError, address: str) -> None:
        """Before the lifecycle has seen the request, so it is counted and logged here."""
        gateway = self.running
        gateway.stats.refused[error.slug()] += 1
        gateway.stats.log.refused(error, address)

    @property
    def running(self) -> app.Gateway:
        if self.gateway is None:
            raise RuntimeError(
                "the gateway has not begun: its server has to run the lifespan, or its host `running()`"
            )
        return self.gateway

    def serve(self, request: ToldRequest) -> asyncio.Task[None]:
        """In a task of its own. Raises Overloaded."""
        if len(self._calls) >= self.limits.max_in_flight:
            raise Overloaded(f"{len(self._calls)} requests are in flight (limits.max_in_flight)")
        serving: Coroutine[Any, Any, None] = self.running.main.lifecycle.serve(request)
        task = request.task = asyncio.create_task(serving)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task
