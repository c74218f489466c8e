"""
The store fails on command, over real sockets: nothing is filled that it does not vouch for, nothing that has
left is answered otherwise for it, and whatever needs no store goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from gateway.state.memory import MemoryStore
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, Running, gateway
from tests.support.judging import refused_by_the_gateway, told
from tests.support.raw_upstream import Peer, RawUpstream
from tests.support.stores import FailingStore, Failure

EVERYTHING = ("try_view", "view", "stamp", "put", "invalidate", "accept", "pause")
EXPLICIT = b'{"state":"active"}'
JSON = TOKEN | {"Content-Type": "application/json"}
BULK = "/api/v2/conversations/callbacks/bulk/disconnect"


def reply(status: str, body: bytes = b"", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Stage:
    """An upstream with one participant, the gateway before it, a client; and what of the store fails."""

    failing: dict[str, Failure] = field(default_factory=dict)
    state: str = "connected"
    # What happens when the upstream has got an unsafe call, before it answers; and what it answers.
    on_write: Callable[[], object] = lambda: None
    written: bytes = reply("202 Accepted", b"{}", "X-Own: yes")
    upstream: RawUpstream = field(init=False)
    running: Running = field(init=False)
    client: httpx.AsyncClient = field(init=False)

    def fail(self, *names: str, how: Failure = "not done") -> None:
        self.failing.update(dict.fromkeys(names, how))

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.method == b"GET":
                people = [{"id": "p1", "state": self.state}]
                await peer.send(reply("200 OK", json.dumps({"id": "c1", "participants": people}).encode()))
                continue
            if b'"state":"active"' in request.body:
                self.state = "active"
            result = self.on_write()
            if result is not None:
                await result  # type: ignore[misc]
            await peer.send(self.written)

    def sent(self, method: bytes) -> list[bytes]:
        return [request.body for request in self.upstream.requests if request.method == method]

    async def fill(self) -> httpx.Response:
        return await self.client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

    async def explicit(self) -> httpx.Response:
        return await self.client.patch(PARTICIPANT, content=EXPLICIT, headers=JSON)


@asynccontextmanager
async def staged(fill: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[Stage]:
    stage = Stage()
    store = FailingStore(MemoryStore(100, 2**20, time.monotonic), stage.failing.get)
    async with (
        RawUpstream(stage.script) as stage.upstream,
        gateway(
            f"http://127.0.0.1:{stage.upstream.port}",
            store=store,
            fill={"max_age": "30s", "settle": "0s"} | (fill or {}),
            **changes,
        ) as stage.running,
        stage.running.client() as stage.client,
    ):
        yield stage


def is_refused(answer: httpx.Response) -> bool:
    refused_by_the_gateway(answer.headers, answer.json(), 503)
    assert answer.json()["code"] == "gateway.store-unavailable"
    assert "Nothing was sent upstream" in answer.json()["advice"]
    assert answer.headers["retry-after"] == "1"
    return True


# --- before the call leaves


@pytest.mark.parametrize("failing", [("view", "try_view"), EVERYTHING])
async def test_a_fill_without_a_store_is_refused_and_nothing_is_sent(failing: tuple[str, ...]) -> None:
    async with staged() as stage:
        stage.fail(*failing)
        assert is_refused(await stage.fill())
        assert stage.upstream.requests == []
        assert [line["reason"] for line in stage.running.lines("reject")] == ["store-unavailable"]
        assert len(stage.running.gateway.main.locks) == 0

        stage.failing.clear()
        assert (await stage.fill()).status_code == 202
        assert stage.sent(b"PATCH") == [FILLED]


async def test_a_fill_whose_generation_cannot_be_asked_is_looked_up_and_not_sent() -> None:
    async with staged() as stage:
        stage.fail("stamp")
        assert is_refused(await stage.fill())
        assert stage.sent(b"PATCH") == []


@pytest.mark.parametrize("forwards", ["reject", "forward"])
async def test_where_a_failed_look_up_would_forward_it_a_failed_store_still_refuses(forwards: str) -> None:
    """The call would be a write that nobody was told of."""
    async with staged(rule={"on_lookup_failure": forwards}) as stage:
        stage.fail("view", "try_view")
        assert is_refused(await stage.fill())
        assert stage.upstream.requests == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", PARTICIPANT, EXPLICIT),
        ("POST", "/api/v2/conversations/c1/disconnect", b""),
        ("DELETE", CONVERSATION, b""),
    ],
)
async def test_a_write_that_cannot_be_told_of_goes_on_and_nothing_read_before_is_filled(
    method: str, path: str, body: bytes
) -> None:
    """S3."""
    async with staged() as stage:
        assert (await stage.fill()).status_code == 202
        stage.fail("suspend", "invalidate")
        answer = await stage.client.request(method, path, content=body, headers=JSON)
        assert answer.status_code == 202
        assert is_refused(await stage.fill())
        assert len(stage.running.gateway.main.locks) == 0

        stage.failing.clear()
        assert told((await stage.fill()).headers["gateway-rewrite"])["source"] == "lookup"


async def test_what_needs_no_store_goes_on() -> None:
    async with staged() as stage:
        stage.fail(*EVERYTHING)
        for path in (CONVERSATION, "/api/v2/users/me"):
            answer = await stage.client.get(path, headers=TOKEN)
            assert (answer.status_code, answer.json()["id"]) == (200, "c1")
        answer = await stage.client.post("/api/v2/analytics/query", content=b"{}", headers=JSON)
        assert (answer.status_code, answer.headers["x-own"]) == (202, "yes")


# --- what only saves a look-up


async def test_a_reading_that_cannot_be_kept_costs_one_look_up_a_call() -> None:
    async with staged() as stage:
        stage.fail("put")
        answers = [await stage.fill() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202] * 3
        assert [told(answer.headers["gateway-rewrite"])["source"] for answer in answers] == ["lookup"] * 3
        assert len(stage.sent(b"GET")) == 3


async def test_a_client_s_own_get_that_cannot_be_kept_costs_a_look_up() -> None:
    async with staged() as stage:
        stage.fail("stamp")
        assert (await stage.client.get(CONVERSATION, headers=TOKEN)).status_code == 200
        stage.failing.clear()
        assert told((await stage.fill()).headers["gateway-rewrite"])["source"] == "lookup"


# --- after the call has left


async def read_meanwhile(stage: Stage) -> None:
    """A client's own GET while the write is under way: it is kept, of the generation that is current now."""
    now, stage.state = stage.state, "connected"
    assert (await stage.client.get(CONVERSATION, headers=TOKEN)).status_code == 200
    stage.state = now


@pytest.mark.parametrize("how", ["done", "not done"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", PARTICIPANT, EXPLICIT),
        ("POST", "/api/v2/conversations/c1/assign", b'{"state":"active"}'),
        ("POST", BULK, b'{"state":"active"}'),
    ],
)
async def test_a_call_that_has_left_is_answered_as_ever_and_what_was_missed_is_made_up_for(
    method: str, path: str, body: bytes, how: Failure
) -> None:
    async with staged() as stage:

        async def then() -> None:
            await read_meanwhile(stage)
            stage.fail(*EVERYTHING, how=how)

        stage.on_write = then
        answer = await stage.client.request(method, path, content=body, headers=JSON)
        assert (answer.status_code, answer.content, answer.headers["x-own"]) == (202, b"{}", "yes")
        stage.on_write = lambda: None

        # The store has a reading from before the write. While it can't be told, there is no fill …
        assert is_refused(await stage.fill())
        assert [body for body in stage.sent(b"PATCH") if b"attributes" in body] == []

        # … and once it can, the state is read anew.
        gets = len(stage.sent(b"GET"))
        stage.failing.clear()
        filled = await stage.fill()
        assert (filled.status_code, told(filled.headers["gateway-rewrite"])["filled"]) == (202, "state")
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")
        assert len(stage.sent(b"GET")) == gets + 1


async def test_a_filled_call_that_is_refused_is_relayed_and_what_was_read_is_not_used_again() -> None:
    async with staged() as stage:
        assert (await stage.fill()).status_code == 202
        stage.written = reply("422 Unprocessable", b'{"code":"no"}')
        stage.on_write = lambda: stage.fail(*EVERYTHING)
        refused = await stage.fill()
        assert (refused.status_code, refused.content) == (422, b'{"code":"no"}')

        stage.on_write = lambda: None
        stage.failing.clear()
        await stage.fill()
        assert len(stage.sent(b"GET")) == 2


async def test_a_refusal_that_would_be_refilled_is_relayed() -> None:
    async with staged() as stage:
        stage.written = reply("409 Conflict", b'{"code":"busy"}')

        def then() -> None:
            stage.state = "active"
            stage.fail(*EVERYTHING)

        stage.on_write = then
        answer = await stage.fill()
        assert (answer.status_code, answer.content) == (409, b'{"code":"busy"}')
        assert stage.sent(b"PATCH") == [FILLED]


async def test_a_contradicting_reply_is_relayed_and_what_was_read_is_not_used_again() -> None:
    async with staged() as stage:
        stage.written = reply("200 OK", b'{"id":"p1","state":"disconnected"}')
        stage.on_write = lambda: stage.fail("invalidate")
        answer = await stage.fill()
        assert (answer.status_code, answer.json()["state"]) == (200, "disconnected")

        stage.on_write = lambda: None
        stage.failing.clear()
        await stage.fill()
        assert len(stage.sent(b"GET")) == 2


# --- the modes


async def test_a_shadow_s_look_up_never_refuses_the_call() -> None:
    async with staged(rule={"mode": "shadow"}) as stage:
        stage.fail("view", "try_view")
        answer = await stage.fill()
        assert answer.status_code == 202
        assert stage.sent(b"PATCH") == [BODY]
        (skip,) = stage.running.lines("skip")
        assert (skip["reason"], skip["unfilled"]) == ("shadow", "store-unavailable")


async def test_on_reject_relays_the_upstream_s_refusal_when_it_cannot_repair() -> None:
    async with staged(rule={"mode": "on_reject"}) as stage:
        stage.written = reply("400 Bad Request", b'{"message":"state"}')
        stage.on_write = lambda: stage.fail("view", "try_view", "stamp")
        answer = await stage.fill()
        assert (answer.status_code, answer.content) == (400, b'{"message":"state"}')
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "store-unavailable"}
        assert stage.sent(b"PATCH") == [BODY]
