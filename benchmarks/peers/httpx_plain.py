"""
The peer that most people would write: starlette, an httpx client, a dict with times, a line per rewrite.

    ../shared/bench/compare -- $PWD/.venv/bin/python $PWD/benchmarks/peers/httpx_plain.py
"""

from __future__ import annotations

import argparse
import json
import re
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATH = re.compile("(/api/v2/conversations/web/instances/[^/]+)/participants/([^/]+)")
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
ALLOW = {"active", "connected"}
MAX_AGE = 2.0
LIMITS = httpx.Limits(max_connections=400, max_keepalive_connections=400)


def build(upstream: str, audit: Path) -> Starlette:
    states: dict[tuple[str, str, str], tuple[float, str]] = {}
    client = httpx.AsyncClient(
        base_url=upstream, transport=httpx.AsyncHTTPTransport(limits=LIMITS), timeout=15, trust_env=False
    )
    log = audit.open("a", buffering=1)

    async def look_up(conversation: str, participant: str, authorization: str) -> str | None:
        key = (authorization, conversation, participant)
        kept = states.get(key)
        if kept is not None and time.monotonic() - kept[0] < MAX_AGE:
            return kept[1]
        reply = await client.get(conversation, headers={"authorization": authorization})
        reply.raise_for_status()
        for one in reply.json()["participants"]:
            if one["id"] == participant and one["state"] in ALLOW:
                state: str = one["state"]
                states[key] = (time.monotonic(), state)
                return state
        return None

    async def proxy(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        body = await request.body()
        matched = PATH.fullmatch(request.url.path)
        if request.method == "PATCH" and matched is not None:
            headers = [pair for pair in headers if pair[0] not in {"content-type", "content-length"}]
            headers.append(("content-type", "application/json"))
            document = json.loads(body)
            if "state" not in document:
                authorization = request.headers.get("authorization", "")
                state = await look_up(matched[1], matched[2], authorization)
                if state is not None:
                    body = json.dumps({"state": state, **document}).encode()
                    log.write(
                        json.dumps({"time": time.time(), "path": request.url.path, "filled": state}) + "\n"
                    )
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        sent = client.build_request(request.method, target, headers=headers, content=body)
        reply = await client.send(sent, stream=True)
        kept = {name: value for name, value in reply.headers.items() if name not in HOP_BY_HOP}
        return StreamingResponse(
            reply.aiter_raw(), reply.status_code, kept, background=BackgroundTask(reply.aclose)
        )

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()
        log.close()

    return Starlette(routes=[Route("/{path:path}", proxy, methods=METHODS)], lifespan=closing)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--port", type=int, default=8080)
    ap.add_argument("--upstream", default="http://127.0.0.1:9000")
    ap.add_argument("--audit", type=Path, default=Path("run/rewrites.jsonl"))
    a = ap.parse_args()
    a.audit.parent.mkdir(exist_ok=True)
    app = build(a.upstream, a.audit)
    uvicorn.run(app, host="127.0.0.1", port=a.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
