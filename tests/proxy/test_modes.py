"""The four modes of a rule: what each sends, what it costs the upstream, what it records."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway import app
from gateway.config import UpstreamSettings
from gateway.mock.server import Fault
from tests.support.audit_lines import KEY, body_digest
from tests.support.gateways import BODY, FILLED, PARTICIPANT, TOKEN, gateway
from tests.support.judging import refused_by_the_gateway, told
from tests.support.mocking import RunningMock, mock, mocked, one_conversation

pytestmark = pytest.mark.usefixtures("way")

CONFORMING = b'{"state":"connected","attributes":{}}'
JSON = TOKEN | {"Content-Type": "application/json"}
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
    times: dict[str, Any] = {"fill": {"max_age": 0}, "limits": {"deadline": "300ms"}}
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
    times: dict[str, Any] = {"fill": {"max_age": 0}, "limits": {"deadline": "300ms"}}
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
        transport = app.connect(UpstreamSettings(url=upstream.url, max_connections=1))
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
