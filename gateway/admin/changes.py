"""
What an operator changes on the admin side, by POST: the configuration is read again, a rule has another mode.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MAX_BODY = 4096


class Answer(Protocol):
    @property
    def ok(self) -> bool: ...

    @property
    def said(self) -> list[str]: ...


def routes(
    reload: Callable[[str], Awaitable[Answer]], set_mode: Callable[[str, str, str], Awaitable[Answer]]
) -> list[Route]:
    async def reloaded(request: Request) -> Response:
        return _told(await reload(_by(request)))

    async def mode(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                break
        try:
            asked = json.loads(body) if len(body) <= MAX_BODY else None
        except (ValueError, RecursionError):
            asked = None
        rule, wanted = (asked.get("rule"), asked.get("mode")) if isinstance(asked, dict) else (None, None)
        if not isinstance(rule, str) or not isinstance(wanted, str):
            said = ['expected {"rule": "…", "mode": "…"}']
            return JSONResponse({"ok": False, "said": said}, 400)
        return _told(await set_mode(rule, wanted, _by(request)))

    return [
        Route("/api/reload", reloaded, methods=["POST"]),
        Route("/api/mode", mode, methods=["POST"]),
    ]


def _told(answer: Answer) -> Response:
    return JSONResponse({"ok": answer.ok, "said": answer.said}, 200 if answer.ok else 409)


def _by(request: Request) -> str:
    return f"admin, {request.client.host}" if request.client else "admin"
