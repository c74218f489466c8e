"""The four modes of a rule: what each sends, what it costs the upstream, what it records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway import backend
from gateway.audit.finished_call import FinishedCall
from gateway.config import UpstreamSettings
from gateway.mock.server import Fault
from gateway.proxy.shadow_checks import AT_ONCE
from tests.support.audit_lines import KEY, body_digest
from tests.support.gateways import BODY, FILLED, PARTICIPANT, TOKEN, Running, gateway
from tests.support.judging import refused_by_the_gateway, told
from tests.support.mocking import Mocked, RunningMock, mock, mocked, one_conversation
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("way")

CONFORMING = b'{"state":"connected","attributes":{}}'
JSON = TOKEN | {"Content-Type": "application/json"}
JSON_REPLY = (("content-type", "application/json"),)
CONNECTED = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
ON_REJECT = {"mode": "on_reject"}
ALL = ["observe", "shadow", "enforce", "on_reject"]


def traffic(upstream: RunningMock) -> list[tuple[str, bytes]]:
    return [(entry.method, entry.body) for entry in upstream.ledger.entries]


def digest(body: bytes) -> dict[str, Any]:
    return {"bytes": len(body), "sha256": body_digest(body)}


@pytest.mark.parametrize("mode", ALL)
async def test_a_conforming_call_goes_on_as_it_came_and_costs_no_look_up(mode: str) -> None:
    async with mocked(rule={"mode": mode}) as (upstream, running, client):
        answer = await client.patch(PARTICIPANT, content=CONFORMING, headers=JSON)

        assert answer.status_code == 202
        assert traffic(upstream) == [("PATCH", CONFORMING)]
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "conforming"}
        skip, outcome = running.lines()
        assert (skip["event"], skip["reason"], skip["mode"]) == ("skip", "conforming", mode)
        assert (outcome["event"], outcome["status"]) == ("outcome", 202)


async def test_observe_changes_nothing_and_records_what_would_be_needed() -> None:
    async with mocked(rule={"mode": "observe"}) as (upstream, running, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN | {"Content-Type": "text/plain"})

        assert answer.status_code == 415
        assert traffic(upstream) == [("PATCH", BODY)]
        assert (b"content-type", b"text/plain") in upstream.ledger.entries[0].headers
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "observe"}
        skip, outcome = running.lines()
        assert (skip["event"], skip["reason"]) == ("skip", "observe")
        assert skip["needs"] == ["content_type", "fill state"]
        assert "changes" not in skip
        assert outcome["status"] == 415


async def test_shadow_changes_nothing_and_records_what_would_be_sent() -> None:
    async with mocked(rule={"mode": "shadow"}, credentials={"key": KEY}) as (upstream, running, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN | {"Content-Type": "text/plain"})

        assert answer.status_code == 415
        assert traffic(upstream) == [("GET", b""), ("PATCH", BODY)]
        assert (b"content-type", b"text/plain") in upstream.ledger.of("PATCH")[0].headers
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "shadow"}
        skip, outcome = running.lines()
        assert 0 < outcome["lookup_ms"] < outcome["total_ms"]
        assert (skip["event"], skip["reason"], skip["unfilled"]) == ("skip", "shadow", None)
        assert [change["repair"] for change in skip["changes"]] == ["content_type", "fill"]
        assert skip["changes"][1]["after"] == "connected"
        assert skip["body"] == {"before": digest(BODY), "after": digest(FILLED)}


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        (202, b'{"id":"p1","state":"connected"}', "right"),
        (202, b'{"id":"p1","state":"disconnected"}', "wrong"),
        (202, b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}', "right"),
    ],
)
async def test_shadow_compares_what_it_would_have_filled_with_what_the_reply_reports(
    status: int, body: bytes, result: str
) -> None:
    async with mocked(rule={"mode": "shadow"}) as (upstream, running, client):
        kind = (("content-type", "application/json"),)
        upstream.faults.append(Fault(method="PATCH", status=status, body=body, headers=kind))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert (answer.status_code, answer.content) == (status, body)
        assert compared(running) == [result]
        assert running.counts("gateway_conflicts_total") == 0
        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH"]


def compared(running: Running) -> list[str]:
    """What shadow's comparisons came to."""
    counts = {one: running.counts("gateway_shadowed_total", one) for one in ("right", "wrong", "unreported")}
    return [one for one, count in counts.items() for _ in range(count)]


async def shadowed(staged: Mocked, before_the_reply: Callable[[], None], **reply: Any) -> httpx.Response:
    """A call whose look-up is done when `before_the_reply` is called."""
    upstream, _, client = staged
    held = asyncio.Event()
    upstream.faults.append(Fault(method="PATCH", hold=held, **reply))
    call = asyncio.create_task(client.patch(PARTICIPANT, content=BODY, headers=JSON))
    await upstream.ledger.arrived(2)
    before_the_reply()
    held.set()
    return await call


@pytest.mark.parametrize(
    ("reply", "now", "result"),
    [
        ({}, "connected", "right"),
        ({"status": 202, "body": b'{"id":"p1"}'}, "connected", "right"),
        ({"status": 202, "body": b"{"}, "connected", "right"),
        ({"status": 202, "body": b'{"id":"p1"}'}, "disconnected", "wrong"),
        ({"status": 400, "body": b'{"state":"connected"}'}, "disconnected", "wrong"),
    ],
)
async def test_where_the_reply_tells_nothing_one_more_get_does_when_the_client_has_it(
    reply: dict[str, Any], now: str, result: str
) -> None:
    """`now`: the participant's state, which somebody may have changed past the gateway."""
    seen: list[FinishedCall] = []
    async with mocked(rule={"mode": "shadow"}, observers=[seen.append]) as staged:
        upstream, running, _ = staged
        held = asyncio.Event()

        def before_the_reply() -> None:
            upstream.change("c1", "p1", state=now)
            upstream.faults.append(Fault(method="GET", delay=held))

        answer = await shadowed(staged, before_the_reply, headers=JSON_REPLY, **reply)
        assert answer.status_code == reply.get("status", 400)
        assert (compared(running), seen) == ([], [])
        held.set()
        await until(lambda: seen)

        assert compared(running) == [result]
        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH", "GET"]
        assert running.counts("gateway_shadow_lookups_total", "compared") == 1
    assert [call.shadow for call in seen] == [result]


@pytest.mark.parametrize(
    ("get", "counted"),
    [
        ({"status": 500}, "failed"),
        ({"status": 404}, "failed"),
        ({"reset": True, "times": 2}, "failed"),
        ({"delay": 60.0}, "failed"),
        ({"status": 200, "body": b'{"id":"c1","participants":[]}'}, "unclear"),
    ],
    ids=["500", "404", "reset", "hung", "no value"],
)
async def test_where_that_get_tells_nothing_either_the_call_is_unreported(
    get: dict[str, Any], counted: str
) -> None:
    seen: list[FinishedCall] = []
    changes: dict[str, Any] = {"rule": {"mode": "shadow"}, "fill": {"settle": "300ms"}}
    async with mocked(**changes, observers=[seen.append]) as staged:
        upstream, running, _ = staged
        fault = Fault(method="GET", headers=JSON_REPLY, **get)
        await shadowed(staged, lambda: upstream.faults.append(fault))
        await until(lambda: seen)

        assert compared(running) == ["unreported"]
        assert running.counts("gateway_shadow_lookups_total", counted) == 1
    assert [call.shadow for call in seen] == [None]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_an_upstream_that_is_in_no_state_to_be_asked_is_not_asked_again(status: int) -> None:
    async with mocked(rule={"mode": "shadow"}) as (upstream, running, client):
        upstream.faults.append(Fault(method="PATCH", status=status))
        await client.patch(PARTICIPANT, content=BODY, headers=JSON)
        await until(lambda: compared(running))

        assert compared(running) == ["unreported"]
        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH"]


async def test_what_a_write_came_between_is_not_compared() -> None:
    """A hang-up through the gateway, while the GET is on its way: nobody knows which came first."""
    async with mocked(rule={"mode": "shadow"}) as staged:
        upstream, running, client = staged
        held = asyncio.Event()
        await shadowed(staged, lambda: upstream.faults.append(Fault(method="GET", hold=held)))
        await upstream.ledger.arrived(3)
        await client.patch(PARTICIPANT, content=b'{"state":"disconnected"}', headers=JSON)
        held.set()
        await until(lambda: compared(running))

        assert compared(running) == ["unreported"]
        assert running.counts("gateway_shadow_lookups_total", "unclear") == 1


async def test_what_enforce_would_have_looked_up_again_is_not_compared() -> None:
    """A hang-up is under way when the call comes, and changes what it had read before it may go."""
    async with mocked(rule={"mode": "shadow"}) as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        hang_up = asyncio.create_task(
            client.patch(PARTICIPANT, content=b'{"state":"disconnected"}', headers=JSON)
        )
        await upstream.ledger.arrived(1)
        upstream.faults.append(Fault(method="GET", status=200, body=CONNECTED, headers=JSON_REPLY))
        call = asyncio.create_task(client.patch(PARTICIPANT, content=BODY, headers=JSON))
        await upstream.ledger.arrived(2)
        held.set()
        await asyncio.gather(hang_up, call)
        await until(lambda: compared(running))

        assert compared(running) == ["unreported"]
        assert [entry.method for entry in upstream.ledger.entries] == ["PATCH", "GET", "PATCH"]


async def test_such_gets_are_bounded_and_end_with_the_gateway() -> None:
    async with mocked(rule={"mode": "shadow"}) as (upstream, running, client):
        held = asyncio.Event()
        for number in range(AT_ONCE + 3):
            other = PARTICIPANT.replace("c1", f"c{number}")
            gate = asyncio.Event()
            upstream.faults.append(Fault(method="PATCH", path=other, hold=gate))
            arrived = len(upstream.ledger.entries)
            call = asyncio.create_task(client.patch(other, content=BODY, headers=JSON))
            await upstream.ledger.arrived(arrived + 2)
            upstream.faults.append(Fault(method="GET", path=f"/c{number}", delay=held))
            gate.set()
            await call
            room = number < AT_ONCE
            await upstream.ledger.arrived(arrived + 2 + room)
        assert running.counts("gateway_shadow_lookups_total", "no_room") == 3
    assert running.counts("gateway_shadow_lookups_total", "failed") == AT_ONCE
    assert compared(running) == ["unreported"] * (AT_ONCE + 3)


FAILING = [
    Fault(method="GET", status=401),
    Fault(method="GET", status=404),
    Fault(method="GET", status=429, headers=(("retry-after", "9"),)),
    Fault(method="GET", status=500),
    Fault(method="GET", status=200, body=b"<html>"),
    Fault(method="GET", reset=True, times=2),  # a GET may go out again on a new connection
]


@pytest.mark.parametrize("fault", FAILING, ids=lambda it: str(it.status))
async def test_a_look_up_that_fails_in_shadow_is_recorded_and_harms_nobody(fault: Fault) -> None:
    async with mocked(rule={"mode": "shadow"}) as (upstream, running, client):
        upstream.faults.append(fault)
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert answer.status_code == 400
        assert "Missing required property" in answer.json()["message"]
        assert traffic(upstream)[-1] == ("PATCH", BODY)
        assert running.lines("rewrite") == []
        assert running.lines("skip")[0]["unfilled"] in {
            "lookup-refused",
            "lookup-failed",
            "connection-terminated",
        }


@pytest.mark.parametrize("mode", ["observe", "shadow"])
async def test_a_look_up_that_never_ends_costs_a_shadowed_call_no_more_than_its_time(mode: str) -> None:
    """A rule that changes nothing must not refuse a call because its look-up failed."""
    times: dict[str, Any] = {"fill": {"max_age": 0}, "limits": {"deadline": "1s"}}
    async with mocked(rule={"mode": mode}, **times) as (upstream, _, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)
        held.set()

        assert answer.status_code == 400
        assert traffic(upstream)[-1] == ("PATCH", BODY)


@pytest.mark.parametrize("mode", ["shadow", "observe"])
async def test_a_mode_that_changes_nothing_needs_no_log(mode: str) -> None:
    async with mocked(audit="/dev/null/no", rule={"mode": mode}) as (upstream, _, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert answer.status_code == 400
        assert traffic(upstream)[-1] == ("PATCH", BODY)


# --- on_reject


@pytest.mark.parametrize(("kind", "first"), [(None, 415), ("text/plain", 415), ("application/json", 400)])
async def test_on_reject_repairs_what_was_refused(kind: str | None, first: int) -> None:
    async with mocked(rule=ON_REJECT) as (upstream, running, client):
        headers = TOKEN | ({"Content-Type": kind} if kind else {})
        answer = await client.patch(PARTICIPANT, content=BODY, headers=headers)

        assert answer.status_code == 202
        assert traffic(upstream) == [("PATCH", BODY), ("GET", b""), ("PATCH", FILLED)]
        assert upstream.ledger.entries[0].status == first
        sent = [value for name, value in upstream.ledger.entries[0].headers if name == b"content-type"]
        assert sent == ([kind.encode()] if kind else [])
        assert told(answer.headers["gateway-rewrite"])["filled"] == "state"
        events = [(line["event"], line.get("reason")) for line in running.lines()]
        assert events == [("rewrite", None), ("outcome", None)]
        assert len({line["id"] for line in running.lines()}) == 1
        assert running.lines("outcome")[0]["status"] == 202


async def test_on_reject_lets_a_lenient_upstream_have_the_call_as_it_came() -> None:
    async with (
        mock(profile="documented") as upstream,
        gateway(upstream.url, rule={"mode": "on_reject"}) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert answer.status_code == 202
        assert traffic(upstream) == [("PATCH", BODY)]
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "not-rejected"}
        assert [line["event"] for line in running.lines()] == ["skip", "outcome"]


@pytest.mark.parametrize(
    "status", [200, 202, 302, 401, 403, 404, 405, 409, 412, 413, 429, 500, 502, 503, 504]
)
async def test_on_reject_repairs_after_no_other_answer_than_400_415_and_422(status: int) -> None:
    async with mocked(rule=ON_REJECT) as (upstream, _, client):
        upstream.faults.append(Fault(method="PATCH", status=status, body=b"as it was said"))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert (answer.status_code, answer.content) == (status, b"as it was said")
        assert traffic(upstream) == [("PATCH", BODY)]


@pytest.mark.parametrize("status", [400, 415, 422])
async def test_on_reject_repairs_after_any_of_400_415_and_422(status: int) -> None:
    async with mocked(rule=ON_REJECT) as (upstream, _, client):
        upstream.faults.append(Fault(method="PATCH", status=status))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert answer.status_code == 202
        assert traffic(upstream) == [("PATCH", BODY), ("GET", b""), ("PATCH", FILLED)]


async def test_on_reject_never_sends_again_what_broke_off() -> None:
    async with mocked(rule=ON_REJECT) as (upstream, running, client):
        upstream.faults.append(Fault(method="PATCH", reset=True))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert refused_by_the_gateway(answer.headers, answer.json(), 502) == "connection_terminated"
        assert traffic(upstream) == [("PATCH", BODY)]
        skip, outcome = running.lines()
        assert (skip["event"], skip["reason"]) == ("skip", "unanswered")
        assert outcome["error"] == "connection-terminated"


@pytest.mark.parametrize("fault", FAILING, ids=lambda it: str(it.status))
async def test_on_reject_relays_the_refusal_when_the_look_up_fails(fault: Fault) -> None:
    async with mocked(rule=ON_REJECT) as (upstream, running, client):
        said = b'{"message": "the very words"}'
        upstream.faults += [Fault(method="PATCH", status=400, body=said, headers=(("x-it", "1"),)), fault]
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert (answer.status_code, answer.content) == (400, said)
        assert answer.headers["x-it"] == "1"
        assert "proxy-status" not in answer.headers
        assert "retry-after" not in answer.headers
        assert told(answer.headers["gateway-rewrite"])["skipped"] in {
            "lookup-refused",
            "lookup-failed",
            "connection-terminated",
        }
        assert running.lines("outcome")[0]["status"] == 400
        assert running.lines("rewrite") == []
        (skip,) = running.lines("skip")
        assert skip["reason"] == told(answer.headers["gateway-rewrite"])["skipped"]


async def test_on_reject_relays_the_refusal_when_there_is_nothing_to_fill_in() -> None:
    ended = one_conversation(p1="disconnected")
    async with mocked(ended, rule=ON_REJECT) as (upstream, running, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert answer.status_code == 400
        assert "Missing required property" in answer.json()["message"]
        assert [method for method, _ in traffic(upstream)] == ["PATCH", "GET"]
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "state-not-allowed"}
        assert [line.get("reason") for line in running.lines()] == ["state-not-allowed", None]


async def test_on_reject_relays_the_refusal_when_the_repair_cannot_be_recorded() -> None:
    async with mocked(audit="/dev/null/no", rule={"mode": "on_reject"}) as (upstream, _, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert answer.status_code == 400
        assert "Missing required property" in answer.json()["message"]
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [BODY]


async def test_on_reject_relays_the_refusal_when_the_deadline_ends_the_look_up() -> None:
    times: dict[str, Any] = {"fill": {"max_age": 0}, "limits": {"deadline": "1s"}}
    async with mocked(rule=ON_REJECT, **times) as (upstream, _, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)
        held.set()

        assert answer.status_code == 400
        assert "Missing required property" in answer.json()["message"]


@pytest.mark.parametrize("size", [10, 63_000, 70_000, 3_000_000])
async def test_a_refusal_of_any_size_is_relayed_whole_and_holds_no_connection(size: int) -> None:
    """There is one connection to the upstream: a refusal that is kept must not hold it during the look-up."""
    said = json.dumps({"message": "x" * size}).encode()
    async with mock() as upstream:
        transport = backend.connect(UpstreamSettings(url=upstream.url, max_connections=1))
        async with (
            gateway(upstream.url, rule=ON_REJECT, transport=transport) as running,
            running.client() as client,
        ):
            upstream.faults += [
                Fault(method="PATCH", status=400, body=said),
                Fault(method="GET", status=404),
            ]
            refused = await client.patch(PARTICIPANT, content=BODY, headers=JSON)
            upstream.faults[:] = []
            repaired = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

            assert (refused.status_code, refused.content) == (400, said)
            reasons = [line["reason"] for line in running.lines("skip")]
            assert reasons == ["rejected" if size > 1_000_000 else "lookup-refused"]
            assert repaired.status_code == 202


async def test_on_reject_repairs_once() -> None:
    async with mocked(rule=ON_REJECT) as (upstream, _, client):
        upstream.faults.append(Fault(method="PATCH", status=400, times=2, body=b"again"))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

        assert (answer.status_code, answer.content) == (400, b"again")
        assert traffic(upstream) == [("PATCH", BODY), ("GET", b""), ("PATCH", FILLED)]
        assert told(answer.headers["gateway-rewrite"])["filled"] == "state"


async def test_on_reject_never_alters_a_state_of_the_clients_own() -> None:
    body = b'{"state":"no such state"}'
    async with mocked(rule=ON_REJECT) as (upstream, _, client):
        answer = await client.patch(PARTICIPANT, content=body, headers=JSON)

        assert answer.status_code == 400
        assert traffic(upstream) == [("PATCH", body)]
