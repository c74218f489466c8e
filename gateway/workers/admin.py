"""
The admin side of several workers, under the paths of one: the supervisor asks them all, and answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway.admin.exposition import OPENMETRICS, TEXT, exposition, wants_openmetrics
from gateway.admin.live import CALLERS, KEPT
from gateway.admin.metrics import Metrics
from gateway.admin.page_routes import HEADERS, routes
from gateway.admin.shown_callers import ShownCallers
from gateway.workers import merged
from gateway.workers.channel import NoAnswerFromThere
from gateway.workers.live import LiveOfAll
from gateway.workers.merged import Figures
from gateway.workers.place import Place
from gateway.workers.worker_process import WorkerProcess

# Seconds for a worker to answer. Probes wait for 1 s (Kubernetes by default, and all that are shipped): one
# worker that hangs is to cost the gateway its readiness no more than one that is gone.
CHECKED_IN: Final = 0.4


def build(
    places: Sequence[Place],
    live: LiveOfAll,
    own: Metrics,
    kept: ShownCallers | None,
    draining: Callable[[], bool],
) -> Starlette:
    """`own`: what the supervisor counts itself. `kept`: the callers on disk, where they are kept."""

    async def asked(what: str) -> list[tuple[WorkerProcess, Any]]:
        """Those that leave too: they have calls in flight."""

        async def one(worker: WorkerProcess) -> tuple[WorkerProcess, Any]:
            try:
                return worker, await worker.channel.ask(what, seconds=2.0)
            except NoAnswerFromThere:
                return worker, None

        workers = [worker for place in places for worker in place.processes if worker.follows]
        return await asyncio.gather(*map(one, workers))

    async def checked(place: Place) -> tuple[int, dict[str, str] | None]:
        try:
            return place.number, await place.ask("ready", seconds=CHECKED_IN)
        except NoAnswerFromThere:
            return place.number, None

    async def metrics() -> Metrics:
        found = await asyncio.gather(*[place.figures() for place in places])
        own_figures = Figures.of(own)
        everything = merged.metrics(merged.summed([own_figures, *[one for some in found for one in some]]))
        everything.digest = own.digest
        return everything

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        told = await asyncio.gather(*map(checked, places))
        ready, said = merged.readiness(dict(told), draining(), own.digest)
        return JSONResponse(said, 200 if ready else 503)

    async def counted(_: Request) -> Response:
        found = (sample for sample in (await metrics()).samples() if sample.counted)
        return JSONResponse({sample.name: sample.value for sample in found})

    async def scraped(request: Request) -> Response:
        openmetrics = wants_openmetrics(",".join(request.headers.getlist("accept")))
        headers = {"Content-Type": OPENMETRICS if openmetrics else TEXT, "Vary": "Accept"}
        return Response(exposition(await metrics(), openmetrics=openmetrics), headers=headers)

    async def rewrites(_: Request) -> Response:
        found = [merged.numbered(said or [], worker.ordinal) for worker, said in await asked("recent")]
        return JSONResponse({"run": live.run, "calls": merged.latest(found, KEPT)}, headers=HEADERS)

    async def callers() -> dict[str, Any]:
        if kept is not None:
            return await kept()
        found = [said or [] for _, said in await asked("callers")]
        return {"kept": False, "callers": merged.callers(found, CALLERS)}

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/counts", counted),
            Route("/metrics", scraped),
            # Before those of one process, which has all that it tells at hand.
            Route("/api/rewrites", rewrites),
            *routes(live, callers),
        ]
    )
