"""
The command line's calls to the admin side of a gateway that runs.
"""

from __future__ import annotations

import http.client
import json
from typing import Any

PATIENCE = 15.0  # seconds for an answer


class NoAnswer(Exception):
    """Nobody there speaks as a gateway's admin side does; the words say what to look at."""


def post(host: str, port: int, path: str, body: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    """The answer to a change that was asked for. Raises NoAnswer."""
    there = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(there, port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        said = reply.read(1_000_000)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(
            f"no gateway answers on {there}:{port} (admin.host, admin.port): {error or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    try:
        answer = json.loads(said)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "ok" not in answer:
        told = said.decode("utf-8", "replace").strip()[:200]
        raise NoAnswer(f"{there}:{port} answers {reply.status}: {told}")
    return answer
