"""Who shares a look-up: calls at once, and all people of a conversation (S8); two callers never (S6)."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.mock.api import Participant
from gateway.mock.server import Conversation, Conversations, Fault
from tests.support.calls import PATCH, patch
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, gateway
from tests.support.mocking import mock, mocked, one_conversation
from tests.support.serving import connect
from tests.support.waiting import until


async def test_a_hundred_first_calls_at_once_cost_one_get() -> None:
    async with mocked() as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        calls = [
            asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN)) for _ in range(100)
        ]
        await until(lambda: running.asked == 100)
        held.set()
        answers = await asyncio.gather(*calls)

        assert {answer.status_code for answer in answers} == {202}
        assert len(upstream.ledger.of("GET")) == 1
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED] * 100


async def test_one_conversations_get_serves_all_its_participants() -> None:
    async with mocked(one_conversation(p1="connected", p2="active")) as (upstream, _, client):
        for name in ("p1", "p2", "p1"):
            await client.patch(f"{CONVERSATION}/participants/{name}", content=BODY, headers=TOKEN)

        assert len(upstream.ledger.of("GET")) == 1
        states = [json.loads(entry.body).get("state") for entry in upstream.ledger.of("PATCH")]
        assert states == ["connected", "active", "connected"]


async def test_a_call_left_unfilled_and_refused_makes_nothing_forgotten() -> None:
    async with mocked(one_conversation(p1="connected", p3="disconnected")) as (upstream, _, client):
        for name in ("p3", "p1"):
            await client.patch(f"{CONVERSATION}/participants/{name}", content=BODY, headers=TOKEN)

        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH", "PATCH"]


@pytest.mark.parametrize("leaver", [0, 1, 2], ids=["the first", "a waiter", "the last"])
async def test_a_caller_that_leaves_never_fails_the_others(leaver: int) -> None:
    request = patch(BODY, b"Authorization: Bearer one")
    async with (
        mock() as upstream,
        gateway(upstream.url) as running,
        connect(running.port) as first,
        connect(running.port) as second,
        connect(running.port) as third,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        clients = [first, second, third]
        await first.send(request)
        await until(lambda: running.counts("gateway_lookups_total", "sent") == 1)
        await second.send(request)
        await until(lambda: running.counts("gateway_lookups_total", "coalesced") == 1)
        await third.send(request)
        await until(lambda: running.counts("gateway_lookups_total", "coalesced") == 2)
        clients.pop(leaver).reset()
        await until(lambda: running.counts("gateway_matched_calls_total"))
        held.set()
        for client in clients:
            assert (await client.reply())[0] == 202

        assert len(upstream.ledger.of("GET")) == 1
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED] * 2
        assert [line.get("error") for line in running.lines("outcome")] == ["client-gone", None, None]


async def test_when_all_have_left_nothing_is_patched() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        await client.send(PATCH)
        await upstream.ledger.arrived(1)
        client.reset()
        await until(lambda: running.counts("gateway_matched_calls_total"))
        held.set()
        async with connect(running.port) as other:
            await other.send(PATCH)
            await other.reply()

        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH"]
        assert [line["event"] for line in running.lines()] == ["outcome", "rewrite", "outcome"]


CALLERS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}),
    ({"Authorization": "Bearer one"}, {}),
    ({"Cookie": "session=one"}, {"Cookie": "session=two"}),
    ({"Authorization": "Bearer one"}, {"Authorization": "Bearer one", "Cookie": "session=two"}),
    ({"Authorization": "Bearer one"}, {"Authorization": "bearer one"}),
    ({"X-Api-Key": "one"}, {"X-Api-Key": "two"}),
    ({"X-Api-Key": "one"}, {}),
    ({"Accept-Language": "de"}, {"Accept-Language": "en"}),
    ({"Origin": "https://one.example"}, {"Origin": "https://two.example"}),
]


@pytest.mark.parametrize(("one", "two"), CALLERS)
async def test_a_value_read_for_one_caller_never_fills_anothers_call(
    one: dict[str, str], two: dict[str, str]
) -> None:
    async with mocked() as (upstream, _, client):
        for headers in (one, two, one, two):
            await client.patch(PARTICIPANT, content=BODY, headers=headers)

        gets = upstream.ledger.of("GET")
        names = [name.lower().encode() for name in {**one, **two}]
        sent = [{key: value for key, value in entry.headers if key in names} for entry in gets]
        assert sent == [{k.lower().encode(): v.encode() for k, v in it.items()} for it in (one, two)]


async def test_callers_at_once_each_look_up_with_their_own_credentials() -> None:
    """300 callers with a secret each: each secret is on one GET and one PATCH."""
    seen: dict[bytes, list[str]] = {}
    people = {f"p{n}": Participant(tokens=frozenset({f"secret-{n}"})) for n in range(300)}
    async with (
        mock(Conversations({"c1": Conversation("messages", people)})) as upstream,
        # A busy machine does not give each of them a connection within a second.
        gateway(upstream.url, upstream={"url": upstream.url, "pool_timeout": "20s"}) as running,
    ):

        async def call(n: int) -> int:
            async with connect(running.port, patience=20) as client:
                token = b"Authorization: Bearer secret-%d" % n
                await client.send(patch(BODY, token, target=f"{CONVERSATION}/participants/p{n}"))
                return (await client.reply())[0]

        statuses = await asyncio.gather(*(call(n) for n in range(300)))
        for entry in upstream.ledger.entries:
            seen.setdefault(dict(entry.headers)[b"authorization"], []).append(entry.method)

        assert set(statuses) == {202}
        assert len(seen) == 300
        assert all(methods == ["GET", "PATCH"] for methods in seen.values())


async def test_a_caller_whose_token_was_revoked_is_not_filled_from_the_cache_of_another() -> None:
    people = {"p1": Participant(tokens=frozenset({"one"}))}
    async with mocked(Conversations({"c1": Conversation("messages", people)})) as (upstream, _, client):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        answer = await client.patch(PARTICIPANT, content=BODY, headers={"Authorization": "Bearer two"})

        assert answer.status_code == 403
        assert len(upstream.ledger.of("PATCH")) == 1


async def test_a_look_up_is_a_plain_get_with_the_callers_own_end_to_end_headers() -> None:
    carried = [
        ("Authorization", "Bearer one"), ("Cookie", "a=1"), ("Accept-Language", "de"), ("X-Tenant", "7"),
        ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("User-Agent", "it"),
    ]  # fmt: skip
    kept_back = [
        ("Content-Type", "text/plain"), ("Content-Language", "de"), ("Content-Location", "/x"),
        ("Content-Disposition", "attachment"), ("Content-Range", "bytes 0-1/2"),
        ("If-Match", '"1"'), ("If-None-Match", '"1"'), ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"), ("If-Range", '"1"'), ("Range", "bytes=0-1"),
        ("Prefer", "return=minimal"), ("Idempotency-Key", '"k"'), ("Expect", "100-continue"),
        ("Accept", "text/html"), ("Accept-Encoding", "gzip"),
        ("Connection", "te, close"), ("Keep-Alive", "5"), ("TE", "trailers"), ("Pragma", "x"),
        ("Cache-Control", "max-stale=60"),
    ]  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in carried + kept_back)
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        await client.send(
            f"PATCH {PARTICIPANT}?q=1 HTTP/1.1\r\nHost: a\r\n{head}".encode()
            + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
        )
        await client.until(b"HTTP/1.1 202")

        (get,) = upstream.ledger.of("GET")
        assert get.target == CONVERSATION.encode()
        assert get.body == b""
        sent = [(name.decode(), value.decode()) for name, value in get.headers]
        for name, value in carried:
            assert (name.lower(), value) in sent
        names = [name for name, _ in sent]
        assert ("accept", "application/json") in sent
        assert ("accept-encoding", "identity") in sent
        assert len(set(names)) == len(names)
        assert ("cache-control", "no-cache") in sent
        expected = {name.lower() for name, _ in kept_back} - {"accept", "accept-encoding", "cache-control"}
        assert expected.isdisjoint(names)
        assert {"content-length", "transfer-encoding"}.isdisjoint(names)
