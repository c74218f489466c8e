"""
The operator's side, on a port of its own: is the process alive, may it have traffic, what has it done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway.admin.exposition import OPENMETRICS, TEXT, lines, wants_openmetrics
from gateway.admin.metrics import Metrics

AT_ONCE = 500  # lines of metrics: a millisecond or two of the loop

T = TypeVar("T")

# Each says what is wrong, or None.
Checks = Mapping[str, Callable[[], str | None]]


async def taken(items: Iterable[T]) -> list[T]:
    """All of them, with turns between for the calls that are served."""
    found: list[T] = []
    for number, item in enumerate(items, 1):
        found.append(item)
        if not number % AT_ONCE:
            await asyncio.sleep(0)
    return found


def build(checks: Checks, metrics: Metrics, parts: Checks | None = None) -> Starlette:
    """Without one of the `parts` the process is degraded, but may have traffic."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        found = {name: check() for name, check in checks.items()}
        ready = not any(found.values())
        also = {name: check() for name, check in (parts or {}).items()}
        told = {name: problem or "ok" for name, problem in {**found, **also}.items()}
        degraded = {"degraded": True} if any(also.values()) else {}
        said = {"ready": ready, **degraded, "checks": told, "config": metrics.digest}
        return JSONResponse(said, 200 if ready else 503)

    async def counted(_: Request) -> Response:
        found = (sample for sample in await taken(metrics.samples()) if sample.counted)
        return JSONResponse({sample.name: sample.value for sample in found})

    async def scraped(request: Request) -> Response:
        openmetrics = wants_openmetrics(",".join(request.headers.getlist("accept")))
        headers = {"Content-Type": OPENMETRICS if openmetrics else TEXT, "Vary": "Accept"}
        return Response("".join(await taken(lines(metrics, openmetrics=openmetrics))), headers=headers)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/counts", counted),
            Route("/metrics", scraped),
        ]
    )
