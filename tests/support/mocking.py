"""The conversation API of `gateway.mock`, served on a free port in the test's own loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from gateway.mock.api import Participant
from gateway.mock.server import Conversation, Conversations, Mock, MockSettings, server
from tests.support.clients import bare_client
from tests.support.gateways import Running, gateway

API = "/api/v2/conversations"
SEED = f"{API}/web/instances/c1/participants/p1"
JSON = {"content-type": "application/json"}


class RunningMock(Mock):
    """A Mock (`ledger`, `conversations`, `faults`, `state`, `change`) that listens on `port`."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.AsyncClient:
        return bare_client(self.url, {"authorization": "Bearer alice"})


def code(reply: httpx.Response) -> tuple[int, str]:
    """Status and code of a reply that is one of the API's errors."""
    return reply.status_code, reply.json()["code"]


def one_conversation(media: Any = "messages", **states: Any) -> Conversations:
    """Conversation c1 alone, with a participant for each of `states`."""
    people = {name: Participant(state=state) for name, state in states.items()}
    return Conversations({"c1": Conversation(media, people)})


@asynccontextmanager
async def mock(
    conversations: Conversations | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> AsyncIterator[RunningMock]:
    """`settings` are those of `gateway.mock.Settings`: profile, lag, rate_limit, etags."""
    running = RunningMock(conversations or Conversations(), MockSettings(**settings), clock)
    serving = server(running, port=0)
    # Server.serve would take over the process's signals, and both it and Server.shutdown sleep.
    serving.config.load()
    serving.lifespan = serving.config.lifespan_class(serving.config)
    await serving.on_tick(0)
    await serving.startup()
    listener = serving.servers[0]
    running.port = listener.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        listener.close()
        state = serving.server_state
        for task in state.tasks:
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        for connection in list(state.connections):
            connection.shutdown()
        await listener.wait_closed()
        await asyncio.sleep(0)


class Mocked(NamedTuple):
    """The mock, the gateway in front of it, and a client of that."""

    upstream: RunningMock
    running: Running
    client: httpx.AsyncClient


@asynccontextmanager
async def mocked(conversations: Conversations | None = None, /, **changes: Any) -> AsyncIterator[Mocked]:
    """`changes` are those of `gateways.gateway`."""
    async with (
        mock(conversations) as upstream,
        gateway(upstream.url, **changes) as running,
        running.client() as client,
    ):
        yield Mocked(upstream, running, client)
