"""What a test asks of the mock: the ledger of all requests, faults that are scripted, changes out of band."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.mock import server as mock_module
from gateway.mock.server import Fault, Ledger
from tests.support.mocking import API, SEED, mock, one_conversation
from tests.support.serving import exchange


async def test_the_ledger_has_every_request_byte_for_byte() -> None:
    async with mock() as upstream:
        head = (
            b"PATCH /api/v2/conversations/calls/c%31/participants/p1?x=%2F&& HTTP/1.1\r\nHost: a\r\n"
            b"X-Twice: 1\r\nx-other: caf\xe9\r\nX-TWICE: 2\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n"
        )
        await exchange(upstream.port, head + b'{ "state":"parked" }')
        await exchange(upstream.port, b"GET /nowhere? HTTP/1.0\r\n\r\n")
        patch, get = upstream.ledger.entries
        assert (patch.method, patch.target) == (
            "PATCH",
            b"/api/v2/conversations/calls/c%31/participants/p1?x=%2F&&",
        )
        assert patch.headers == [
            (b"host", b"a"),
            (b"x-twice", b"1"),
            (b"x-other", b"caf\xe9"),
            (b"x-twice", b"2"),
            (b"connection", b"close"),
            (b"content-type", b"application/json"),
            (b"content-length", b"20"),
        ]
        assert patch.body == b'{ "state":"parked" }'
        assert (patch.status, patch.before["p1"], patch.after["p1"]) == (202, "connected", "parked")
        assert (get.target, get.status, get.before) == (b"/nowhere?", 404, {})

        async with upstream.client() as caller:
            told = (await caller.get("/_mock/requests")).json()
            assert [entry["number"] for entry in told] == [1, 2]
            assert ["x-other", "caf\xe9"] in told[0]["headers"]
            assert told[0]["body"] == '{ "state":"parked" }'
            assert (await caller.delete("/_mock/requests")).status_code == 204
            assert (await caller.get("/_mock/requests")).json() == []


async def test_a_request_that_breaks_off_in_its_body_is_recorded_and_does_nothing() -> None:
    async with mock() as upstream:
        _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        head = f"PATCH {SEED} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        writer.write(head.encode() + b'\r\n{"state":"disconnected"}')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await upstream.ledger.arrived(1)
        entry = upstream.ledger.entries[0]
        assert (entry.complete, entry.status, entry.after) == (False, None, {})
        assert upstream.state("c1", "p1") == "connected"


async def test_a_body_beyond_the_limit_is_413_and_not_read_to_its_end() -> None:
    async with mock() as upstream:
        size = mock_module.MAX_BODY + 1
        head = f"PATCH {SEED} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
        assert (await exchange(upstream.port, head + bytes(size))).startswith(b"HTTP/1.1 413 ")


def test_the_ledger_is_bounded_in_number_and_in_bytes() -> None:
    ledger = Ledger()
    for _ in range(mock_module.MAX_ENTRIES + 5):
        ledger.add(0.0, "GET", b"/", [], b"", True)
    assert (len(ledger.entries), ledger.received) == (mock_module.MAX_ENTRIES, mock_module.MAX_ENTRIES + 5)
    for _ in range(5):
        ledger.add(0.0, "PATCH", b"/", [], bytes(mock_module.MAX_BODY), True)
    assert len(ledger.of("PATCH")) == mock_module.MAX_LEDGER // mock_module.MAX_BODY
    assert ledger.of("GET") == []


async def test_a_change_out_of_band_is_no_request() -> None:
    async with mock(one_conversation("calls", p1="connected")) as upstream, upstream.client() as caller:
        door = "/_mock/conversations/c1/participants"
        assert (await caller.put(f"{door}/p1", json={"state": "alerting"})).status_code == 204
        assert (await caller.put(f"{door}/p2", json={"purpose": "acd"})).status_code == 204
        assert upstream.conversations.conversations["c1"].states() == {"p1": "alerting", "p2": "connected"}
        assert (await caller.put(f"{door}/p1", json={"state": "busy"})).status_code == 400
        assert (await caller.put(f"{door}/p1", json={"conversation": "x"})).status_code == 400
        assert (await caller.put(f"{door}/p1", content=b"{")).status_code == 400
        assert (await caller.put("/_mock/conversations/c9/participants/p1", json={})).status_code == 404
        assert len(upstream.ledger.entries) == 0


async def test_faults_are_taken_in_turn_by_the_requests_they_are_meant_for() -> None:
    async with mock() as upstream, upstream.client() as caller:
        for fault in (
            {"method": "GET", "status": 429, "headers": [["Retry-After", "7"]]},
            {"method": "PATCH", "status": 200, "body": "garbage", "headers": [["Content-Type", "text/html"]]},
            {"path": "c2", "status": 599, "times": 2},
        ):
            assert (await caller.post("/_mock/faults", json=fault)).status_code == 204
        assert (await caller.post("/_mock/faults", json={"statu": 500})).status_code == 400
        assert (await caller.post("/_mock/faults", json={"times": 0})).status_code == 400

        replaced = await caller.patch(SEED, json={"state": "disconnected"})
        assert (replaced.status_code, replaced.text, replaced.headers["content-type"]) == (
            200,
            "garbage",
            "text/html",
        )
        assert upstream.state("c1", "p1") == "connected", "a scripted reply stands instead of the call"
        limited = await caller.get(f"{API}/c1")
        assert (limited.headers["retry-after"], limited.json()["code"]) == (
            "7",
            "too.many.requests.retry.after",
        )
        assert [(await caller.get(f"{API}/{name}")).status_code for name in ("c1", "c2", "c2", "c2")] == [
            200,
            599,
            599,
            200,
        ]


async def test_a_reply_can_be_lost_after_the_call_was_applied_and_before() -> None:
    async with mock() as upstream, upstream.client() as caller:
        for applied, state in ((False, "connected"), (True, "disconnected")):
            upstream.faults.append(Fault(reset=True, applied=applied))
            with pytest.raises(httpx.ReadError):
                await caller.patch(SEED, json={"state": "disconnected"})
            assert upstream.state("c1", "p1") == state
            assert upstream.ledger.entries[-1].status is None


async def test_a_reply_can_end_within_its_body() -> None:
    async with mock() as upstream:
        upstream.faults.append(Fault(status=200, body=b"half", reset=True))
        reply = await exchange(upstream.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"content-length: 5\r\n" in reply
        assert reply.endswith(b"\r\n\r\nhalf")


async def test_a_call_can_be_held_before_it_takes_effect_and_after() -> None:
    async with mock() as upstream, upstream.client() as caller:
        delay, hold = asyncio.Event(), asyncio.Event()
        upstream.faults.append(Fault(delay=delay, hold=hold))
        patch = asyncio.create_task(caller.patch(SEED, json={"state": "alerting"}))
        await upstream.ledger.arrived(1)
        assert upstream.state("c1", "p1") == "connected"
        delay.set()
        await caller.get(f"{API}/calls/other")  # time enough in this loop for the held call to go on
        assert (upstream.state("c1", "p1"), patch.done()) == ("alerting", False)
        hold.set()
        assert (await patch).status_code == 202


async def test_every_form_of_a_target_reaches_the_ledger() -> None:
    async with mock() as upstream, upstream.client() as caller:
        head = await caller.head(f"{API}/c1")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        reply = await exchange(
            upstream.port, f"GET http://b{API}/c1 HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n".encode()
        )
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert upstream.ledger.entries[-1].target == f"http://b{API}/c1".encode()
        reply = await exchange(upstream.port, b"OPTIONS * HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
        assert b'"code": "not.found"' in reply
        assert upstream.ledger.entries[-1].target == b"*"
