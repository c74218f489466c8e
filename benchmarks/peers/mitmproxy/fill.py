"""
The peer in mitmproxy: an addon that fills the state as its users do it, with a dict and a line per rewrite.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import httpx

PATH = re.compile(r"(/api/v2/conversations/web/instances/[^/?]+)/participants/([^/?]+)(?:\?.*)?")
ALLOW = {"active", "connected"}
MAX_AGE = 2.0


class FillState:
    def __init__(self, upstream: str, audit: Path) -> None:
        self.lookups: dict[tuple[str, str, str], tuple[float, str]] = {}
        self.client = httpx.AsyncClient(base_url=upstream, timeout=15, trust_env=False)
        audit.parent.mkdir(exist_ok=True)
        self.log = audit.open("a", buffering=1)

    async def request(self, flow: Any) -> None:
        """mitmproxy calls it with each request, whole, before that goes out; `flow` is an HTTPFlow."""
        matched = PATH.fullmatch(flow.request.path)
        if flow.request.method != "PATCH" or matched is None:
            return
        flow.request.headers["content-type"] = "application/json"
        document = json.loads(flow.request.content)
        if "state" in document:
            return
        authorization = flow.request.headers.get("authorization", "")
        state = await self.look_up(matched[1], matched[2], authorization)
        if state is not None:
            flow.request.content = json.dumps({"state": state, **document}).encode()
            self.log.write(
                json.dumps({"time": time.time(), "path": flow.request.path, "filled": state}) + "\n"
            )

    async def look_up(self, conversation: str, participant: str, authorization: str) -> str | None:
        key = (authorization, conversation, participant)
        kept = self.lookups.get(key)
        if kept is not None and time.monotonic() - kept[0] < MAX_AGE:
            return kept[1]
        reply = await self.client.get(conversation, headers={"authorization": authorization})
        reply.raise_for_status()
        for one in reply.json()["participants"]:
            if one["id"] == participant and one["state"] in ALLOW:
                state: str = one["state"]
                self.lookups[key] = (time.monotonic(), state)
                return state
        return None


# mitmproxy looks for this name. Its script loader passes no arguments on.
addons = [FillState(os.environ["UPSTREAM"], Path(os.environ["AUDIT"]))] if "UPSTREAM" in os.environ else []
