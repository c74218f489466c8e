"""The gateway under test, in the test's own loop on a port of its own, in front of any upstream."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gateway import app
from gateway.config import Settings
from gateway.process import lifetime
from gateway.proxy.lifecycle import Lifecycle
from gateway.upstream.pool import Pool
from tests.support.audit_lines import audit_lines
from tests.support.clients import bare_client
from tests.support.raw_upstream import OK, RawUpstream, Received, Script, answering
from tests.support.serving import Client, connect, serve
from tests.support.waiting import until

SHIPPED = Path(__file__).parent.parent.parent / "config.yaml"
CONVERSATION = "/api/v2/conversations/web/instances/c1"
PARTICIPANT = f"{CONVERSATION}/participants/p1"
BODY = b'{"attributes": {"supervisorNote": "test"}}'
FILLED = b'{"state":"connected","attributes": {"supervisorNote": "test"}}'
TOKEN = {"Authorization": "Bearer one"}
# Whether calls are served at once, from the step in which their bytes come (direct_task.py), or in tasks of
# asyncio's own, as with httpx's transport. The fixture `way` tries both.
direct = True


@contextmanager
def serving_at_once(at_once: bool) -> Iterator[None]:
    global direct
    direct = at_once
    try:
        yield
    finally:
        direct = True


def document(
    upstream: str,
    audit: str,
    /,
    fill: Mapping[str, Any] | None = None,
    rule: Mapping[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """
    With the rule of the seed. `fill` and `rule` change keys of theirs, `sections` whole sections. A state may
    be five times as old as by default: on a busy machine a second passes between a look-up and its PATCH.
    """
    the_fill = {
        "type": "fill",
        "field": "state",
        "from": "/api/v2/conversations/web/instances/{conversationId}",
        "select": "$.participants[?@.id == _.participantId].state",
        "max_age": "5s",
        "allow": ["active", "connected"],
        **(fill or {}),
    }
    the_rule = {
        "name": "web-participant-state",
        "match": {
            "path": "/api/v2/conversations/web/instances/{conversationId}/participants/{participantId}"
        },
        "writes": [
            "/api/v2/conversations/web/instances/{conversationId}/**",
            "/api/v2/conversations/{conversationId}/**",
            "POST /api/v2/conversations/callbacks/bulk/disconnect",
        ],
        "repairs": [{"type": "encoding"}, {"type": "content_type"}, the_fill],
        **(rule or {}),
    }
    return {
        "upstream": {"url": upstream},
        "audit": {"path": audit},
        "rules": [the_rule],
        **sections,
    }


def settings(upstream: str, audit: str, /, **changes: Any) -> Settings:
    """`changes` are those of `document`."""
    return Settings.model_validate(document(upstream, audit, **changes))


@dataclass(frozen=True, slots=True)
class Running:
    port: int
    gateway: app.Gateway
    audit: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The audit log's lines, each parsed; of one event, or all."""
        return [line for line in audit_lines(self.audit) if event is None or line["event"] == event]

    def counts(self, name: str, *labels: str) -> int:
        return self.gateway.counts[name, *labels]

    @property
    def asked(self) -> int:
        """Look-ups that were sent, and those that waited for another's."""
        return sum(self.counts("gateway_lookups_total", result) for result in ("sent", "coalesced"))

    @property
    def pool(self) -> Pool:
        transport = self.gateway.main.transport
        assert isinstance(transport, Pool)
        return transport

    async def disconnected(self) -> None:
        """Until the pool has no connection to the upstream left."""
        await until(lambda: not self.pool.size)

    def client(self) -> httpx.AsyncClient:
        return bare_client(self.url)

    def admin(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.gateway.admin)
        return httpx.AsyncClient(transport=transport, base_url="http://admin")


@asynccontextmanager
async def gateway(upstream: str, /, audit: str | None = None, **changes: Any) -> AsyncIterator[Running]:
    """
    `changes` are those of `document`, and the seams: app.build's clock, wall, store, transport, parts,
    observers and hold_patience (`store` may be the section too), and the protocol's rate_window.
    """
    window = changes.pop("rate_window", None)
    seams = {
        name: changes.pop(name)
        for name in ("clock", "wall", "store", "transport", "parts", "observers", "hold_patience")
        if name in changes and not isinstance(changes[name], Mapping)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = audit or f"{folder}/rewrites.jsonl"
        chosen = settings(upstream, path, **changes)
        built = app.build(chosen, **seams)
        if isinstance(built.app, Lifecycle):
            built.app.direct = built.app.direct and direct
        limits = lifetime.downstream_limits(chosen, **({"rate_window": window} if window else {}))
        try:
            async with serve(built.app, limits, built.stats, built.certificates) as port:
                yield Running(port, built, Path(path))
        finally:
            await built.close()


class Proxied(NamedTuple):
    """A raw upstream, the gateway in front of it, and one raw connection to that."""

    upstream: RawUpstream
    running: Running
    client: Client

    @property
    def requests(self) -> list[Received]:
        return self.upstream.requests


@asynccontextmanager
async def proxied(
    *scripts: Script, to: Mapping[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Proxied]:
    """The upstream does what `scripts` say, or answers OK. `to` adds keys to the section upstream."""
    async with RawUpstream(*(scripts or (answering(OK),))) as upstream:
        changes["upstream"] = {"url": upstream.url, **(to or {})}
        async with gateway(upstream.url, **changes) as running, connect(running.port) as client:
            yield Proxied(upstream, running, client)
