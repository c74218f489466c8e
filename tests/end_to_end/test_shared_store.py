"""Two gateways that share a Redis server: neither fills what a write through the other made old."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from gateway.mock.server import Fault
from gateway.state.layered_locks import LayeredLocks
from gateway.state.redis_locks import RedisLocks
from gateway.state.redis_primary import Named
from gateway.state.redis_server import RedisServer
from tests.support.gateways import (
    BODY,
    CONVERSATION,
    FILLED,
    PARTICIPANT,
    Running,
    document,
    gateway,
    settings,
)
from tests.support.gateways import TOKEN as BEARER
from tests.support.judging import refused_by_the_gateway, told
from tests.support.mocking import RunningMock, mock, one_conversation
from tests.support.raw_upstream import Peer, RawUpstream
from tests.support.redis_servers import RedisProcess, needs_redis
from tests.support.waiting import until

pytestmark = needs_redis
# As clients behind one balancer have it: by another name the upstream might select another resource.
HOST = {"Host": "api.example"}
TOKEN = BEARER | HOST
JSON = TOKEN | {"Content-Type": "application/json"}
KEY = {"key": "k" * 32}


def reply(status: str, body: bytes) -> bytes:
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (status.encode(), len(body))
        + body
    )


@dataclass
class Stage:
    """An upstream with one participant, two gateways before it, and the server that these share."""

    redis: RedisProcess
    state: str = "connected"
    # What an unsafe call waits for before it is answered.
    go: asyncio.Event = field(default_factory=asyncio.Event)
    upstream: RawUpstream = field(init=False)
    gateways: list[Running] = field(default_factory=list)
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.method == b"GET":
                people = [{"id": "p1", "state": self.state}]
                await peer.send(reply("200 OK", json.dumps({"id": "c1", "participants": people}).encode()))
                continue
            if request.body.startswith(b'{"state":"active"}'):
                self.state = "active"
            await self.go.wait()
            await peer.send(reply("202 Accepted", b"{}"))

    def sent(self, method: bytes) -> list[bytes]:
        return [request.body for request in self.upstream.requests if request.method == method]

    async def fill(self, which: int) -> httpx.Response:
        return await self.clients[which].patch(PARTICIPANT, content=BODY, headers=TOKEN)

    async def explicit(self, which: int) -> httpx.Response:
        return await self.clients[which].patch(PARTICIPANT, content=b'{"state":"active"}', headers=JSON)

    async def asked_again(self) -> None:
        """Until each gateway has its server again, and has told it what it missed."""
        for running in self.gateways:
            shared, lookups = running.gateway.main.shared, running.gateway.main.lookups
            assert shared is not None
            await until(lambda: shared.server.problem is None and not lookups._missed)  # noqa: B023


@contextlib.asynccontextmanager
async def staged(*options: str, number: int = 2, **store: Any) -> AsyncIterator[Stage]:
    redis = RedisProcess(*options)
    stage = Stage(redis)
    stage.go.set()
    try:
        async with contextlib.AsyncExitStack() as opened:
            stage.upstream = await opened.enter_async_context(RawUpstream(stage.script))
            for _ in range(number):
                running = await opened.enter_async_context(
                    gateway(
                        f"http://127.0.0.1:{stage.upstream.port}",
                        fill={"max_age": "30s", "settle": "0s"},
                        store={"url": redis.url, "timeout": "4s"} | store,
                        credentials=KEY,
                    )
                )
                stage.gateways.append(running)
                stage.clients.append(await opened.enter_async_context(running.client()))
            yield stage
    finally:
        redis.close()


def source(answer: httpx.Response) -> object:
    assert answer.status_code == 202
    rewrite = told(answer.headers["gateway-rewrite"])
    return rewrite.get("source") or rewrite.get("skipped")


def is_refused(answer: httpx.Response) -> None:
    refused_by_the_gateway(answer.headers, answer.json(), 503)
    assert answer.json()["code"] == "gateway.store-unavailable"
    assert answer.headers["retry-after"] == "1"


# --- what one gateway read or wrote


async def test_what_one_has_read_the_other_fills_without_a_look_up() -> None:
    async with staged() as stage:
        assert source(await stage.fill(0)) == "lookup"
        assert source(await stage.fill(1)) == "cache"
        assert source(await stage.fill(1)) == "cache"
        assert len(stage.sent(b"GET")) == 1
        assert stage.sent(b"PATCH") == [FILLED] * 3
        assert all(len(running.gateway.main.locks) == 0 for running in stage.gateways)


async def test_after_a_write_through_one_the_other_does_not_fill_what_was_read_before() -> None:
    """S3."""
    async with staged() as stage:
        assert source(await stage.fill(1)) == "lookup"
        assert (await stage.explicit(0)).status_code == 202
        assert source(await stage.fill(1)) == "lookup"
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")


async def test_a_fill_through_one_waits_for_a_write_through_the_other() -> None:
    """S4."""
    async with staged() as stage:
        assert source(await stage.fill(1)) == "lookup"
        stage.go.clear()
        write = asyncio.ensure_future(stage.explicit(0))
        await until(lambda: len(stage.sent(b"PATCH")) == 2)
        fill = asyncio.ensure_future(stage.fill(1))
        done, _ = await asyncio.wait({fill}, timeout=0.2)
        assert not done
        assert len(stage.sent(b"PATCH")) == 2
        stage.go.set()
        assert (await write).status_code == 202
        assert source(await fill) == "lookup"
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")
        waits = [one.gateway.metrics.histograms["gateway_lock_wait_seconds",] for one in stage.gateways]
        assert [sum(one.counts) for one in waits] == [0, 1]
        assert waits[1].total > 0.1


async def test_a_write_that_names_no_conversation_makes_the_other_forget_all() -> None:
    """S3."""
    async with staged() as stage:
        assert source(await stage.fill(0)) == "lookup"
        assert source(await stage.fill(1)) == "cache"
        lookups = stage.gateways[1].gateway.main.lookups
        before = lookups._all_invalidated_at
        bulk = "/api/v2/conversations/callbacks/bulk/disconnect"
        assert (await stage.clients[0].post(bulk, content=b"{}", headers=JSON)).status_code == 202
        await until(lambda: lookups._all_invalidated_at > before)
        assert source(await stage.fill(1)) == "lookup"


async def test_a_reload_tells_the_store_how_long_values_take_to_settle() -> None:
    """S5: for as long it is not known what was accepted, should the server lose it."""
    async with staged(number=1) as stage:
        (running,) = stage.gateways
        shared = running.gateway.main.shared
        assert shared is not None
        assert isinstance(shared.server, RedisServer)
        assert source(await stage.fill(0)) == "lookup"
        url = stage.upstream.url
        longer = settings(url, "-", fill={"settle": "3s"}, store={"url": stage.redis.url}, credentials=KEY)
        await running.gateway.follow(longer, True)
        assert shared.server.settle == 3.0
        assert source(await stage.fill(0)) == "lookup", "by rules of now it may have been written to"


async def test_another_caller_does_not_get_it() -> None:
    """S6."""
    async with staged() as stage:
        await stage.fill(0)
        answer = await stage.clients[1].patch(
            PARTICIPANT, content=BODY, headers={"Authorization": "Bearer two"} | HOST
        )
        assert source(answer) == "lookup"


# --- several upstreams


@contextlib.asynccontextmanager
async def two_upstreams() -> AsyncIterator[tuple[RunningMock, RunningMock, list[httpx.AsyncClient]]]:
    """
    Two upstreams with a conversation c1 each, and clients of three gateways that share one server: two have
    the second as `eu`, and to the third it is the only one.
    """
    redis = RedisProcess()
    fill = {"max_age": "30s", "settle": "0s", "allow": ["connected", "alerting"]}
    try:
        async with contextlib.AsyncExitStack() as opened:
            first, second = [
                await opened.enter_async_context(mock(one_conversation("web", p1=state)))
                for state in ("connected", "alerting")
            ]
            (rule,) = document(first.url, "a", fill=fill)["rules"]
            both: dict[str, Any] = {
                "upstreams": [{"name": "eu", "url": second.url, "path_prefix": "/eu"}],
                "rules": [rule, rule | {"name": "eu-rule", "upstream": "eu"}],
            }
            clients, alone = [], {"rules": [rule]}
            for url, more in ((first.url, both), (first.url, both), (second.url, alone)):
                store = {"url": redis.url, "timeout": "4s"}
                running = await opened.enter_async_context(gateway(url, store=store, credentials=KEY, **more))
                clients.append(await opened.enter_async_context(running.client()))
            yield first, second, clients
    finally:
        redis.close()


async def filled(client: httpx.AsyncClient, prefix: str = "") -> str:
    answer = await client.patch(prefix + PARTICIPANT, content=BODY, headers=TOKEN)
    assert answer.status_code == 202
    return answer.headers["gateway-rewrite"].partition("source=")[2].partition(";")[0]


def reads(upstream: RunningMock) -> int:
    return len(upstream.ledger.of("GET"))


async def test_of_each_upstream_all_gateways_share_what_was_read_and_of_no_other() -> None:
    async with two_upstreams() as (first, second, (one, other, alone)):
        assert [await filled(one), await filled(one, "/eu")] == ["lookup"] * 2
        assert [await filled(other), await filled(other, "/eu"), await filled(alone)] == ["cache"] * 3
        assert (reads(first), reads(second)) == (1, 1)
        assert {call.body for call in first.ledger.of("PATCH")} == {FILLED}
        assert {call.body for call in second.ledger.of("PATCH")} == {
            FILLED.replace(b"connected", b"alerting")
        }


async def test_a_write_to_one_upstream_is_one_there_alone_through_all_gateways() -> None:
    """S3, S4."""
    async with two_upstreams() as (first, second, (one, other, alone)):
        for prefix in ("", "/eu"):
            await filled(one, prefix)
        go = asyncio.Event()
        second.faults.append(Fault(method="POST", hold=go, status=202))
        write = asyncio.ensure_future(one.post(f"/eu{CONVERSATION}/x", content=b"{}", headers=TOKEN))
        await until(lambda: len(second.ledger.of("POST")) == 1)
        waiting = [asyncio.ensure_future(filled(*where)) for where in ((other, "/eu"), (alone, ""))]
        assert await filled(other) == "cache"
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert not done
        go.set()
        await write
        assert "lookup" in [await one for one in waiting]
        assert (reads(first), reads(second) > 1) == (1, True)


# --- faults of the server


async def test_while_it_is_down_fills_are_refused_and_writes_go_on_and_all_forget_once_it_is_back() -> None:
    """S3: the write could not be recorded, and the server still has the reading from before it."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    async with staged(*options) as stage:
        assert source(await stage.fill(1)) == "lookup"
        # Only the first can't reach it.
        shared = stage.gateways[0].gateway.main.shared
        assert shared is not None
        assert isinstance(shared.server, RedisServer)
        shared.server._primary = Named("/nowhere")
        shared.server.distrust("the network")
        shared.server._distrusted = False
        is_refused(await stage.fill(0))
        assert stage.gateways[0].counts("gateway_store_failures_total") > 0
        assert len(stage.sent(b"PATCH")) == 1
        assert (await stage.explicit(0)).status_code == 202
        assert (await stage.clients[0].get("/api/v2/users/me", headers=TOKEN)).status_code == 200
        async with stage.gateways[0].admin() as admin:
            readiness = await admin.get("/readyz")
        assert readiness.status_code == 200
        assert readiness.json()["degraded"] is True
        assert readiness.json()["checks"]["store"] != "ok"

        shared.server._primary = Named(str(stage.redis.path))
        await stage.asked_again()
        assert source(await stage.fill(1)) == "lookup"
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")
        async with stage.gateways[0].admin() as admin:
            assert "degraded" not in (await admin.get("/readyz")).json()


async def test_a_write_that_goes_on_without_the_lock_of_all_is_counted() -> None:
    async with staged(number=1) as stage:
        locks = stage.gateways[0].gateway.main.locks
        assert isinstance(locks, LayeredLocks)
        assert isinstance(locks._far, RedisLocks)
        assert stage.redis.command("SET", locks._far._key("c1"), "not a lock") == b"+OK\r\n"
        assert (await stage.explicit(0)).status_code == 202
        assert stage.gateways[0].counts("gateway_store_failures_total") == 1


async def test_while_it_hangs_nothing_hangs_and_afterwards_nothing_stays_locked() -> None:
    async with staged(timeout="300ms") as stage:
        assert source(await stage.fill(0)) == "lookup"
        stage.redis.signal(signal.SIGSTOP)
        began = asyncio.get_running_loop().time()
        is_refused(await stage.fill(0))
        assert (await stage.explicit(1)).status_code == 202
        assert asyncio.get_running_loop().time() - began < 6
        is_refused(await stage.fill(1))
        stage.redis.signal(signal.SIGCONT)
        await stage.asked_again()
        assert source(await stage.fill(0)) == "lookup"
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")
        assert (await stage.explicit(0)).status_code == 202, "no shared lock has stayed"


async def test_when_it_is_flushed_nothing_that_was_read_before_is_filled() -> None:
    async with staged() as stage:
        assert source(await stage.fill(0)) == "lookup"
        assert source(await stage.fill(1)) == "cache"
        stage.redis.command("FLUSHALL")
        assert source(await stage.fill(0)) == "lookup"
        assert source(await stage.fill(1)) == "cache"
        assert (await stage.explicit(1)).status_code == 202


async def test_when_it_is_started_again_without_its_data_it_is_used_again() -> None:
    async with staged() as stage:
        assert source(await stage.fill(0)) == "lookup"
        stage.redis.stop()
        is_refused(await stage.fill(0))
        assert (await stage.explicit(1)).status_code == 202
        stage.redis.start()
        await stage.asked_again()
        # A clock that is known to a few ms may say that what was accepted has yet to settle.
        async with asyncio.timeout(2):
            while (found := source(await stage.fill(0))) == "unsettled":
                pass
        assert found == "lookup"
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")


async def test_where_a_gateway_isolates_each_fill_has_its_own_get_and_says_so() -> None:
    async with staged(on_failure="isolate", number=1) as stage:
        assert source(await stage.fill(0)) == "lookup"
        assert source(await stage.fill(0)) == "cache"
        stage.redis.stop()
        for _ in range(2):
            answer = await stage.fill(0)
            assert told(answer.headers["gateway-rewrite"])["isolated"] is True
            assert source(answer) == "lookup"
        assert len(stage.sent(b"GET")) == 3
        assert stage.sent(b"PATCH") == [FILLED] * 4
        (*_, line) = stage.gateways[0].lines("rewrite")
        assert [change.get("isolated") for change in line["changes"]][-1] is True
        assert stage.gateways[0].counts("gateway_lookups_total", "isolated") == 2

        # Order within this process holds.
        stage.go.clear()
        write = asyncio.ensure_future(stage.explicit(0))
        await until(lambda: len(stage.sent(b"PATCH")) == 5)
        fill = asyncio.ensure_future(stage.fill(0))
        done, _ = await asyncio.wait({fill}, timeout=0.2)
        assert not done
        assert len(stage.sent(b"PATCH")) == 5
        stage.go.set()
        assert (await write).status_code == 202
        assert told((await fill).headers["gateway-rewrite"])["isolated"] is True
        assert stage.sent(b"PATCH")[-1] == FILLED.replace(b"connected", b"active")

        stage.redis.start()
        await stage.asked_again()
        answer = await stage.fill(0)
        assert "isolated" not in told(answer.headers["gateway-rewrite"])


async def test_a_process_that_was_stopped_longer_than_its_lease_sends_nothing() -> None:
    """What it holds may be another's by now."""
    async with staged(number=1) as stage:
        assert source(await stage.fill(0)) == "lookup"
        shared = stage.gateways[0].gateway.main.shared
        assert shared is not None
        assert isinstance(shared.server, RedisServer)
        clock = shared.server.clock
        local, enter = clock.local, shared.locks.enter

        async def stopped_after_it(*args: Any) -> Any:
            entered = await enter(*args)
            clock.local = lambda: local() + 60.0
            return entered

        shared.locks.enter = stopped_after_it  # type: ignore[method-assign,assignment]
        answer = await stage.fill(0)
        assert answer.status_code == 503
        assert len(stage.sent(b"PATCH")) == 1


async def test_a_get_of_a_clients_own_is_learned_for_both() -> None:
    async with staged() as stage:
        assert (await stage.clients[0].get(CONVERSATION, headers=TOKEN)).status_code == 200
        assert source(await stage.fill(1)) == "cache"
