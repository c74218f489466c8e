"""The end-to-end suite's main cases, in each way in which the gateway can be run."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.mock.server import Fault
from gateway.state.locks import MemoryLocks
from tests.end_to_end.test_bodies import FILLABLE, inserted
from tests.support.audit_lines import audit_lines
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN
from tests.support.hosted import SERVERS, hosted
from tests.support.judging import refused_by_the_gateway, told
from tests.support.mocking import API
from tests.support.waiting import until

WAYS = ["own", *SERVERS, "middleware", "transport"]
pytestmark = pytest.mark.parametrize("way", WAYS)


@pytest.mark.parametrize(
    ("kind", "body", "extra"),
    [
        (None, BODY, {}),
        ("text/plain;charset=UTF-8", BODY, {}),
        ("application/x-www-form-urlencoded", BODY, {}),
        ("application/json", gzip.compress(BODY, mtime=0), {"Content-Encoding": "gzip"}),
    ],
)
async def test_the_seed_call_is_accepted_and_recorded(
    way: str, kind: str | None, body: bytes, extra: dict[str, str]
) -> None:
    headers = TOKEN | extra | ({"Content-Type": kind} if kind else {})
    async with hosted(way) as run:
        reply = await run.client.patch(PARTICIPANT, content=body, headers=headers)

        assert reply.status_code == 202, reply.text
        assert told(reply.headers["gateway-rewrite"])["filled"] == "state"
        (look_up,), (patch,) = run.upstream.ledger.of("GET"), run.upstream.ledger.of("PATCH")
        assert (look_up.target, patch.target) == (CONVERSATION.encode(), PARTICIPANT.encode())
        assert patch.body == FILLED
        sent = dict(patch.headers)
        assert (sent[b"content-type"], sent[b"authorization"]) == (b"application/json", b"Bearer one")
        assert sent[b"content-length"] == b"%d" % len(FILLED)
        assert b"content-encoding" not in sent
        await until(lambda: run.events() == ["rewrite", "outcome"])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", ["decimals as written", "duplicate keys", "one megabyte", "many values"])
async def test_a_body_arrives_byte_for_byte_with_one_member_inserted(
    way: str, name: str, chunked: bool
) -> None:
    body = FILLABLE[name]
    async with hosted(way) as run:
        content = in_pieces(body) if chunked else body
        reply = await run.client.patch(PARTICIPANT, content=content, headers=TOKEN)

        assert reply.status_code == 202, reply.text
        (patch,) = run.upstream.ledger.of("PATCH")
        assert patch.body == inserted(body)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_past_the_limit_is_413_and_nothing_is_sent(way: str, chunked: bool) -> None:
    body = b'{"a":"' + b"x" * 70_000 + b'"}'
    async with hosted(way, limits={"max_body": "64KiB"}) as run:
        content = in_pieces(body) if chunked else body
        reply = await run.client.patch(PARTICIPANT, content=content, headers=TOKEN)

        assert reply.status_code == 413
        refused_by_the_gateway(reply.headers, reply.json(), 413)
        assert not run.upstream.ledger.entries


async def test_a_target_arrives_as_it_was_sent(way: str) -> None:
    target = f"{API}/a%2Fb/%7e/c;d=1?x=%20&y=a+b&x"
    async with hosted(way) as run:
        await run.client.get(target, headers=TOKEN)

        assert [entry.target.decode() for entry in run.upstream.ledger.of("GET")] == [target]


async def test_a_path_with_an_encoded_slash_is_no_participants(way: str) -> None:
    body = b'{"state":"connected"}'
    async with hosted(way) as run:
        reply = await run.client.patch(PARTICIPANT.replace("/c1/", "/c%2F1/"), content=body, headers=TOKEN)

        assert "gateway-rewrite" not in reply.headers
        assert run.upstream.ledger.of("GET") == []


async def test_each_caller_is_looked_up_for_by_itself(way: str) -> None:
    async with hosted(way) as run:
        for token in ("one", "two", "one"):
            headers = {"Authorization": f"Bearer {token}"}
            assert (await run.client.patch(PARTICIPANT, content=BODY, headers=headers)).status_code == 202

        asked = [dict(entry.headers)[b"authorization"] for entry in run.upstream.ledger.of("GET")]
        assert asked == [b"Bearer one", b"Bearer two"]


async def test_after_a_write_of_the_state_nothing_is_filled_that_was_read_before_it(way: str) -> None:
    """S3."""
    async with hosted(way) as run:
        for body in (BODY, BODY, b'{"state": "connected"}', BODY):
            assert (await run.client.patch(PARTICIPANT, content=body, headers=TOKEN)).status_code == 202

        methods = [entry.method for entry in run.upstream.ledger.entries]
        assert methods == ["GET", "PATCH", "PATCH", "PATCH", "GET", "PATCH"]


async def test_a_write_of_the_state_waits_for_a_fill_that_is_in_flight(way: str) -> None:
    """S4."""
    async with hosted(way) as run:
        held = asyncio.Event()
        run.upstream.faults.append(Fault(method="PATCH", delay=held))
        patches = run.upstream.ledger.of
        filled = asyncio.ensure_future(run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await until(lambda: patches("PATCH"))
        explicit = b'{"state": "connected"}'
        write = asyncio.ensure_future(run.client.patch(PARTICIPANT, content=explicit, headers=TOKEN))
        locks = run.gateway.main.locks
        assert isinstance(locks, MemoryLocks)
        await until(lambda: locks.exclusive_pending("c1"))
        assert len(patches("PATCH")) == 1
        held.set()

        assert [reply.status_code for reply in await asyncio.gather(filled, write)] == [202, 202]
        assert [entry.body for entry in patches("PATCH")] == [FILLED, explicit]


async def test_many_that_miss_at_once_cost_one_look_up(way: str) -> None:
    async with hosted(way) as run:
        held = asyncio.Event()
        run.upstream.faults.append(Fault(method="GET", delay=held))
        calls = [
            asyncio.ensure_future(run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
            for _ in range(5)
        ]
        counts = run.gateway.counts
        await until(lambda: counts["gateway_lookups_total", "coalesced"] == 4)
        held.set()

        assert {reply.status_code for reply in await asyncio.gather(*calls)} == {202}
        assert len(run.upstream.ledger.of("GET")) == 1


@pytest.mark.parametrize(
    ("status", "fields"), [(401, (("www-authenticate", 'Bearer realm="a, b"'),)), (404, ()),
                           (429, (("retry-after", "7"),))],
)  # fmt: skip
async def test_a_refused_look_up_is_relayed_as_the_upstream_said_it(
    way: str, status: int, fields: tuple[tuple[str, str], ...]
) -> None:
    body = b'{"message": "as the upstream said it", "status": %d }' % status
    async with hosted(way) as run:
        run.upstream.faults.append(Fault(method="GET", status=status, headers=fields, body=body))
        reply = await run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert (reply.status_code, reply.content) == (status, body)
        assert [(name, reply.headers[name]) for name, _ in fields] == list(fields)
        assert run.upstream.ledger.of("PATCH") == []


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 200, "body": b"<html>"}])
async def test_a_failed_look_up_is_502_and_nothing_is_patched(way: str, fault: dict[str, object]) -> None:
    async with hosted(way) as run:
        run.upstream.faults.append(Fault(method="GET", **fault))  # type: ignore[arg-type]
        reply = await run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert reply.status_code == 502
        refused_by_the_gateway(reply.headers, reply.json(), 502)
        assert run.upstream.ledger.of("PATCH") == []
        await until(lambda: run.events() == ["reject", "outcome"])


async def test_what_cannot_be_recorded_is_not_sent(way: str) -> None:
    async with hosted(way, audit="/dev/full") as run:
        reply = await run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert reply.status_code == 503
        assert reply.json()["code"] == "gateway.unrecordable"
        assert run.upstream.ledger.of("PATCH") == []


@pytest.mark.parametrize("status", [200, 204, 304, 403])
async def test_a_reply_is_passed_on(way: str, status: int) -> None:
    fields = (("set-cookie", "a=1, b"), ("x", "1"), ("set-cookie", "c=2"), ("etag", '"e"'))
    body = b'{"n": 1.10}' if status in {200, 403} else b""
    async with hosted(way) as run:
        run.upstream.faults.append(Fault(method="GET", status=status, headers=fields, body=body))
        reply = await run.client.get(f"{API}/chats/c1", headers=TOKEN)

        assert (reply.status_code, reply.content) == (status, body)
        names = {name for name, _ in fields}
        passed = [pair for pair in reply.headers.multi_items() if pair[0] in names]
        if way == "granian":  # it puts lines of one name together
            assert sorted(passed) == sorted(fields)
        else:
            assert passed == list(fields)
        assert reply.headers["x-request-id"]


async def test_a_head_request_has_its_length_and_no_body(way: str) -> None:
    async with hosted(way) as run:
        run.upstream.faults.append(Fault(method="HEAD", status=200, headers=(("content-length", "7"),)))
        reply = await run.client.head(f"{API}/chats/c1", headers=TOKEN)

        assert (reply.status_code, reply.headers["content-length"], reply.content) == (200, "7", b"")


async def test_a_reply_that_breaks_off_is_never_complete(way: str) -> None:
    body = b"x" * 200_000
    async with hosted(way) as run:
        run.upstream.faults.append(Fault(method="GET", status=200, body=body, reset=True))
        with pytest.raises(httpx.RemoteProtocolError):
            await run.client.get("/x", headers=TOKEN)


async def test_more_than_may_be_in_flight_are_refused_and_told_when_to_come_back(way: str) -> None:
    async with hosted(way, limits={"max_in_flight": 1}) as run:
        held = asyncio.Event()
        run.upstream.faults.append(Fault(method="GET", hold=held, status=200))
        first = asyncio.ensure_future(run.client.get("/x"))
        await until(lambda: run.upstream.ledger.entries)
        refused = await run.client.get("/x")
        held.set()

        assert (refused.status_code, refused.json()["code"]) == (503, "gateway.overloaded")
        assert refused.headers["retry-after"] == "1"
        assert (await first).status_code == 200


async def test_a_client_that_leaves_while_its_look_up_is_awaited_ends_its_call(way: str) -> None:
    async with hosted(way) as run:
        held = asyncio.Event()
        run.upstream.faults.append(Fault(method="GET", delay=held))
        call = asyncio.ensure_future(run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await until(lambda: run.upstream.ledger.of("GET"))
        call.cancel()
        await until(run.events)
        held.set()

        assert [(line["event"], line["error"]) for line in audit_lines(run.audit)] == [
            ("outcome", "client-gone")
        ]
        assert run.upstream.ledger.of("PATCH") == []


async def test_a_call_that_has_left_runs_to_its_end_when_its_client_leaves(way: str) -> None:
    async with hosted(way) as run:
        held = asyncio.Event()
        run.upstream.faults.append(Fault(method="PATCH", hold=held))
        call = asyncio.ensure_future(run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await until(lambda: run.upstream.ledger.of("PATCH"))
        call.cancel()
        await asyncio.wait([call])
        held.set()
        await until(lambda: run.events() == ["rewrite", "outcome"])
