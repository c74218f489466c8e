"""
The live page: its files, which hold nothing, and its data, which is for whoever has the token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.admin.live import Live, Stream

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Nothing from elsewhere, nothing in line, and no text ever taken for HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
TOO_MANY = "So many pages watch already that there is no room for one more. Close one.\n"


class EventStream(StreamingResponse):
    """Its place is free as soon as its reader has left."""

    def __init__(self, live: Live, stream: Stream) -> None:
        super().__init__(live.events(stream), headers=HEADERS, media_type="text/event-stream")
        self._leave = partial(live.leave, stream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass  # closing the page is how one stops watching
        finally:
            self._leave()


def routes(live: Live, shown_callers: Callable[[], Awaitable[dict[str, Any]]]) -> list[Route]:
    # Read once, and by their names alone: no path of a request ever names a file.
    folder = Path(__file__).parent / "page"
    files = {one.name: (one.read_bytes(), KINDS[one.suffix]) for one in folder.iterdir()}

    async def page(request: Request) -> Response:
        found = files.get(request.path_params.get("name", "index.html"))
        if found is None:
            return PlainTextResponse("Not Found", 404)
        headers = {**HEADERS, "Content-Type": found[1], "Content-Security-Policy": POLICY}
        return Response(found[0], headers=headers)

    async def rewrites(_: Request) -> Response:
        return _json({"run": live.run, "calls": live.recent()})

    async def rules(_: Request) -> Response:
        changes, problem = list(live.changes), live.reload_problem()
        return _json({"rules": live.rules, "changes": changes, "reload_problem": problem})

    async def callers(_: Request) -> Response:
        return _json(await shown_callers())

    async def events(_: Request) -> Response:
        stream = live.stream()
        if stream is None:
            return PlainTextResponse(TOO_MANY, 503, {**HEADERS, "Retry-After": "5"})
        return EventStream(live, stream)

    return [
        Route("/", page),
        Route("/page/{name}", page),
        Route("/api/rewrites", rewrites),
        Route("/api/rules", rules),
        Route("/api/callers", callers),
        Route("/api/events", events),
    ]


def _json(said: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(said), headers=HEADERS, media_type="application/json")
