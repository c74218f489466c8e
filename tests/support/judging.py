"""What tests ask of a reply again and again: what it says of the rewrite, who refused and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import http_sf

from tests.support.serving import Reply

MIB = 2**20


def told(value: str) -> dict[str, Any]:
    """The parameters of a Gateway-Rewrite field, by a parser of structured fields that is not ours."""
    item = http_sf.parse(value.encode(), tltype="item")
    assert isinstance(item, tuple)
    name, parameters = item
    assert str(name) == "web-participant-state"
    return {key: value if value is True else str(value) for key, value in parameters.items()}


def refused_by_the_gateway(headers: Mapping[str, str], document: Mapping[str, Any], status: int) -> str:
    """Who refused, why, and what to do: for a reader and for a program. Returns Proxy-Status' error."""
    assert headers["content-type"] == "application/problem+json"
    assert document["status"] == status
    assert document["type"].startswith("urn:gateway:error:")
    assert document["refused_by"] == "gateway"
    assert all(document[member] for member in ("title", "detail", "advice", "message", "code"))
    assert document["contextId"] == headers["x-request-id"]
    if status in {502, 504}:
        assert "retry-after" not in headers  # C8: real clients replay a PATCH on it
    members: Any = http_sf.parse(headers["proxy-status"].encode(), tltype="list")
    ((name, parameters),) = members
    assert str(name) == "gateway"
    return str(parameters["error"])


class Refusal(NamedTuple):
    """What a client is told: the status, the problem's type, Proxy-Status' error and Retry-After."""

    status: int
    kind: str
    error: str
    retry_after: str | None = None


def refusal(reply: Reply) -> Refusal:
    """That of the gateway, with all that such a reply must have."""
    headers = {name.decode(): value.decode() for name, value in reply.headers.items()}
    document = json.loads(reply.body)
    error = refused_by_the_gateway(headers, document, reply.status)
    kind = document["type"].removeprefix("urn:gateway:error:")
    return Refusal(reply.status, kind, error, headers.get("retry-after"))
