"""Nobody is filled, refused or given a cookie in another caller's stead, whatever authenticates them (S6)."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.mock.server import Fault
from tests.support.calls import ACCEPTED, GET, STATE, answering_gets, patch, reply
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, Running, gateway, proxied
from tests.support.mocking import mocked
from tests.support.raw_upstream import OK, Peer, RawUpstream
from tests.support.serving import connect
from tests.support.waiting import until


def buffered(running: Running) -> float:
    samples = running.gateway.metrics.samples()
    return next(one.value for one in samples if one.name == "gateway_buffered_bytes")


COOKIE = (("set-cookie", "session=of-one"), ("retry-after", "60"))


@pytest.mark.parametrize("status", [401, 403, 404, 429])
@pytest.mark.parametrize("other", [{"X-Api-Key": "two"}, {}], ids=["another key", "no key"])
async def test_no_refusal_and_no_cookie_of_one_caller_reaches_another(
    status: int, other: dict[str, str]
) -> None:
    async with mocked() as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", status=status, headers=COOKIE, delay=held))
        one = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers={"X-Api-Key": "one"}))
        await until(lambda: running.counts("gateway_lookups_total", "sent") == 1)
        beside = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=other))
        await until(lambda: running.asked == 2)
        held.set()
        assert (await one).status_code == status
        answers = [await beside, await client.patch(PARTICIPANT, content=BODY, headers=other)]

        assert [answer.status_code for answer in answers] == [202, 202]
        assert all("set-cookie" not in answer.headers for answer in answers)


async def test_no_set_cookie_is_relayed_to_those_who_shared_a_look_up() -> None:
    """Nor in the pause after it."""
    async with mocked() as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", status=429, headers=COOKIE, delay=held))
        calls = [asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY)) for _ in range(5)]
        await until(lambda: running.asked == 5)
        held.set()
        answers = [*await asyncio.gather(*calls), await client.patch(PARTICIPANT, content=BODY)]

        assert {answer.status_code for answer in answers} == {429}
        assert all("set-cookie" not in answer.headers for answer in answers)


@pytest.mark.parametrize("name", ["X-Api-Key", "X-Tenant", "Accept-Language"])
async def test_connection_may_not_name_what_tells_callers_apart(name: str) -> None:
    """And that is recorded: from the match on each call has its line, before it none has."""
    async with mocked() as (upstream, running, _), connect(running.port) as client:
        fields = f"Connection: keep-alive, {name}", f"{name}: secret-1"
        await client.send(patch(BODY, *[field.encode() for field in fields]))
        status, _, body = await client.reply()

        assert status == 400
        assert b"Connection names " + name.lower().encode() in body
        assert b"secret-1" not in body
        assert not upstream.ledger.entries
        told = [(line["event"], line.get("reason", line.get("status"))) for line in running.lines()]
        assert told == [("reject", "bad-request"), ("outcome", 400)]
        assert "secret-1" not in running.audit.read_text()
        assert running.counts("gateway_refusals_total", "bad-request") == 1

        await client.send(patch(BODY, b"Host: another"))
        assert (await client.reply())[0] == 400
        assert len(running.lines()) == 2


@pytest.mark.parametrize(
    "value", ["close", "keep-alive", "te, close", "keep-alive, x-not-there", "User-Agent"]
)
async def test_connection_may_name_what_is_of_one_hop_or_tells_nobody_apart(value: str) -> None:
    async with mocked() as (upstream, running, _), connect(running.port) as client:
        fields = f"Connection: {value}", "TE: trailers", "User-Agent: it"
        await client.send(patch(BODY, *[field.encode() for field in fields]))

        assert (await client.reply())[0] == 202
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED]


@pytest.mark.parametrize(
    ("query", "named", "carried"),
    [
        ("access_token=s3cret", ["access_token"], "?access_token=s3cret"),
        ("a=1&k=s%203&access_token=2&k=4", ["access_token", "k"], "?k=s%203&access_token=2&k=4"),
        ("%61ccess_token=s3cret&b", ["access_token"], "?%61ccess_token=s3cret"),
        ("expand=all&page=2", [], ""),
        ("access_token=s3cret", [], None),
        ("a=1;API-Key=s3cret", [], None),
        ("sig=s3cret&access_token=2", ["access_token"], None),
        ("X-Amz-Signature=s3cret", [], None),
    ],
)
async def test_a_credential_in_the_query_goes_with_the_look_up_or_leaves_the_call_as_it_came(
    query: str, named: list[str], carried: str | None
) -> None:
    async with (
        RawUpstream(answering_gets(reply("200 OK", STATE))) as upstream,
        gateway(upstream.url, credentials={"query": named}) as running,
        connect(running.port) as client,
    ):
        await client.send(patch(BODY, target=f"{PARTICIPANT}?{query}"))
        assert (await client.reply())[0] == 202

        targets = [request.target.decode() for request in upstream.requests]
        looked_up = [] if carried is None else [CONVERSATION + carried]
        assert targets == [*looked_up, f"{PARTICIPANT}?{query}"]
        assert upstream.bodies(b"PATCH") == [BODY if carried is None else FILLED]
        if carried is None:
            assert running.lines("skip")[0]["reason"] == "credential-in-query"
        assert "s3cret" not in running.audit.read_text()


async def test_who_has_another_token_in_the_query_is_another_caller() -> None:
    async with (
        RawUpstream(answering_gets(reply("200 OK", STATE))) as upstream,
        gateway(upstream.url, credentials={"query": ["token"]}) as running,
        connect(running.port) as client,
    ):
        for token in ("1", "2", "1"):
            await client.send(patch(BODY, target=f"{PARTICIPANT}?token={token}"))
            assert (await client.reply())[0] == 202

        gets = [request.target[-1:] for request in upstream.requests if request.method == b"GET"]
        assert gets == [b"1", b"2"]
        assert len({line["client"]["credential"] for line in running.lines("rewrite")}) == 2


@pytest.mark.parametrize(
    ("vary", "counted", "shared"),
    [("User-Agent", [], False), ("User-Agent", ["User-Agent"], True), ("*", ["User-Agent"], False)],
)
async def test_what_a_look_up_read_is_shared_only_if_it_varies_by_what_counts(
    vary: str, counted: list[str], shared: bool
) -> None:
    document = reply("200 OK", STATE, "application/json", f"Vary: {vary}")
    async with proxied(answering_gets(document), credentials={"headers": counted}) as (upstream, _, client):
        for _ in range(3):
            await client.send(patch())
            assert (await client.reply())[0] == 202

        methods = [request.method for request in upstream.requests]
        assert methods.count(b"GET") == (1 if shared else 3)
        assert upstream.bodies(b"PATCH") == [FILLED] * 3


@pytest.mark.parametrize("room", [True, False])
async def test_a_large_get_is_learned_if_there_is_room_for_it_and_relayed_in_any_case(room: bool) -> None:
    """It comes in two pieces: it is relayed as it comes, and kept beside that."""
    document = reply("200 OK", STATE + b" " * 150_000)
    half = len(document) // 2
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if (await peer.request()).target == b"/x":
                await peer.send(OK)
                continue
            await peer.send(document[:half])
            await go.wait()
            await peer.send(document[half:])

    limits = {"max_body": "256KiB", "max_buffered": "256KiB"}
    async with proxied(script, limits=limits) as (_, running, client), connect(running.port) as other:
        if not room:
            body = b"x" * 200_000  # of which the last byte does not come
            await other.send(patch(body)[:-1])
            await until(lambda: buffered(running) > len(body) / 2)
        await client.send(f"GET {CONVERSATION} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        assert (await client.status_and_headers())[0] == 200
        go.set()
        assert (await client.exactly(len(STATE) + 150_000)).rstrip() == STATE
        await client.send(GET)  # whose reply comes when that call is over
        assert (await client.reply())[0] == 200

        assert running.counts("gateway_lookups_total", "learned") == room


@pytest.mark.parametrize("preserved", [True, False])
async def test_who_asks_for_another_host_is_another_caller_where_the_host_goes_on(preserved: bool) -> None:
    """Behind a proxy that is trusted, so that X-Forwarded-Host, which counts too, is the same for both."""
    at_one = STATE.replace(b"connected", b"active")

    async def by_host(peer: Peer) -> None:
        while True:
            request = await peer.request()
            state = at_one if request.header(b"host") == b"one" else STATE
            await peer.send(reply("200 OK", state) if request.method == b"GET" else ACCEPTED)

    listen = {"trusted_proxies": ["127.0.0.1/32"]}
    async with proxied(by_host, to={"preserve_host": preserved}, listen=listen) as (upstream, _, client):
        for host in (b"one", b"two", b"one", b"two"):
            fields = b"X-Forwarded-Host: public", b"X-Forwarded-Proto: https", b"Authorization: Bearer a"
            await client.send(patch(BODY, *fields).replace(b"Host: h", b"Host: " + host))
            assert (await client.reply())[0] == 202

        gets = [request.header(b"host") for request in upstream.requests if request.method == b"GET"]
        filled = [json.loads(body)["state"] for body in upstream.bodies(b"PATCH")]
        if preserved:
            assert gets == [b"one", b"two"]
            assert filled == ["active", "connected"] * 2
        else:
            assert len(gets) == 1
            assert filled == ["connected"] * 4


@pytest.mark.parametrize(
    ("sent", "answered", "learned"),
    [
        ("Accept: application/json, text/plain, */*", "Vary: Accept-Encoding, X-Tenant", True),
        ("Cache-Control: no-cache", 'ETag: "1"', True),
        ("Range: bytes=0-", 'ETag: "1"', False),
        ('If-None-Match: "0"', 'ETag: "1"', False),
        ("Cookie: session=1", 'ETag: "1"', False),
        ("Accept: text/csv", 'ETag: "1"', False),
        ("Accept: application/vnd.x+json, application/json", 'ETag: "1"', False),
        ("Accept: application/json;version=2", 'ETag: "1"', False),
        ("Cache-Control: max-stale=60", 'ETag: "1"', False),
        ("Prefer: return=minimal", 'ETag: "1"', False),
        ("Content-Length: 0", "Vary: *", False),
        ("Content-Length: 0", "Vary: User-Agent", False),
        ("Accept: */*", "Vary: Accept", False),
        ("Content-Length: 0", "Set-Cookie: session=1", False),
        ("Content-Length: 0", "Age: 3", False),
    ],
)
async def test_a_get_is_learned_only_if_a_look_up_would_have_got_the_same(
    sent: str, answered: str, learned: bool
) -> None:
    document = reply("200 OK", STATE, "application/json", answered)
    async with proxied(answering_gets(document)) as (_, running, client):
        await client.send(f"GET {CONVERSATION} HTTP/1.1\r\nHost: h\r\n{sent}\r\n\r\n".encode())
        assert (await client.reply())[0] == 200
        await client.send(patch())
        assert (await client.reply())[0] == 202

        assert running.counts("gateway_lookups_total", "sent") == (not learned)
