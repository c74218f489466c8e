"""What is recorded of a call and when: the rewrite before it leaves, the outcome after it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from datetime import UTC, datetime

import pytest

from gateway.mock.server import Fault
from tests.support.audit_lines import KEY, audit_lines, body_digest
from tests.support.calls import PATCH
from tests.support.gateways import BODY, FILLED, PARTICIPANT, TOKEN, gateway
from tests.support.judging import refused_by_the_gateway
from tests.support.mocking import mock, mocked
from tests.support.serving import connect
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("way")


async def test_a_rewrite_and_its_outcome_are_recorded_as_the_contract_has_them() -> None:
    wall = datetime(2026, 11, 22, 12, 0, 0, 250_000, UTC).timestamp()
    async with mocked(wall=lambda: wall, credentials={"key": KEY}) as (_, running, client):
        headers = TOKEN | {"Content-Type": "text/plain", "User-Agent": "legacy/1", "X-Request-Id": "it-1"}
        await client.patch(f"{PARTICIPANT}?expand=secret", content=BODY, headers=headers)

        rewrite, outcome = audit_lines(running.audit)
        credential = rewrite["client"].pop("credential")
        assert rewrite == {
            "event": "rewrite",
            "time": "2026-11-22T12:00:00.250Z",
            "id": rewrite["id"],
            "request_id": "it-1",
            "rule": "web-participant-state",
            "mode": "enforce",
            "method": "PATCH",
            "path": PARTICIPANT,
            "changes": [
                {"repair": "content_type", "before": "text/plain", "after": "application/json"},
                {"repair": "fill", "field": "state", "after": "connected", "source": "lookup",
                 "age_ms": rewrite["changes"][1]["age_ms"]},
            ],
            "body": {
                "before": {"bytes": len(BODY), "sha256": body_digest(BODY)},
                "after": {"bytes": len(FILLED), "sha256": body_digest(FILLED)},
            },
            "client": {"address": "127.0.0.1", "user_agent": "legacy/1"},
        }  # fmt: skip
        assert 0 <= rewrite["changes"][1]["age_ms"] <= 1000
        assert len(credential) == 32
        assert re.fullmatch("[0-9a-f]{32}", rewrite["id"])
        times = {name: outcome.pop(name) for name in ("lookup_ms", "upstream_ms", "total_ms")}
        assert outcome == {
            "event": "outcome",
            "time": "2026-11-22T12:00:00.250Z",
            "id": rewrite["id"],
            "request_id": "it-1",
            "status": 202,
        }
        assert 0 < times["lookup_ms"] < times["total_ms"]
        assert 0 < times["upstream_ms"] < times["total_ms"]


async def test_calls_to_which_a_client_gave_one_name_have_ids_of_their_own_and_the_name_beside() -> None:
    async with mocked(rule={"mode": "observe"}) as (_, running, client):
        for headers in (TOKEN | {"X-Request-Id": "same"}, TOKEN | {"X-Request-Id": "same"}, TOKEN):
            await client.patch(PARTICIPANT, content=BODY, headers=headers)

        lines = running.lines()
        assert [line["event"] for line in lines] == ["skip", "outcome"] * 3
        assert [line.get("request_id") for line in lines] == ["same"] * 4 + [None] * 2
        assert len({line["id"] for line in lines}) == 3
        assert all(lines[at]["id"] == lines[at + 1]["id"] for at in (0, 2, 4))


async def test_a_rewrite_is_on_the_log_before_the_upstream_sees_it() -> None:
    """L1: while the upstream holds the PATCH, the log has the rewrite and not yet the outcome."""
    async with mocked() as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", delay=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(2)
        assert [line["event"] for line in audit_lines(running.audit)] == ["rewrite"]
        held.set()
        await call
        assert [line["event"] for line in audit_lines(running.audit)] == ["rewrite", "outcome"]


async def test_a_refill_is_a_second_line_with_its_attempt() -> None:
    async with mocked() as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held, status=409))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(2)
        upstream.change("c1", "p1", state="active")
        held.set()
        assert (await call).status_code == 202

        first, second, outcome = audit_lines(running.audit)
        assert [first["event"], second["event"], outcome["event"]] == ["rewrite", "rewrite", "outcome"]
        assert first["id"] == second["id"] == outcome["id"]
        assert "attempt" not in first
        assert second["attempt"] == 2
        assert [line["changes"][1]["after"] for line in (first, second)] == ["connected", "active"]


async def test_an_outcome_that_is_not_known_is_recorded_as_such() -> None:
    async with mocked() as (upstream, running, client):
        upstream.faults.append(Fault(method="PATCH", reset=True))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert refused_by_the_gateway(answer.headers, answer.json(), 502) == "connection_terminated"
        assert (
            "may have been" in answer.json()["advice"] or "read the conversation" in answer.json()["advice"]
        )
        _, outcome = audit_lines(running.audit)
        assert (outcome["status"], outcome["error"]) == (502, "connection-terminated")


async def test_a_client_that_leaves_while_its_patch_is_in_flight_leaves_a_known_outcome() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        await client.send(PATCH)
        await upstream.ledger.arrived(2)
        client.reset()
        await asyncio.sleep(0.02)
        held.set()
        await until(lambda: len(audit_lines(running.audit)) == 2)

        rewrite, outcome = audit_lines(running.audit)
        assert rewrite["event"] == "rewrite"
        assert (outcome["event"], outcome["status"]) == ("outcome", 202)


async def test_the_same_caller_has_the_same_hash_and_another_another_and_another_process_another_key() -> (
    None
):
    async with mock() as upstream:
        seen = []
        for _ in range(2):
            async with gateway(upstream.url) as running, running.client() as client:
                for token in ("one", "two", "one"):
                    await client.patch(
                        PARTICIPANT, content=BODY, headers={"Authorization": f"Bearer {token}"}
                    )
                seen.append([line["client"]["credential"] for line in running.lines("rewrite")])

        (one, two, again), (elsewhere, _, _) = seen
        assert one == again
        assert len({one, two, elsewhere}) == 3


async def test_without_the_key_nobody_can_try_what_a_body_was_and_with_it_all_processes_agree() -> None:
    async with mock() as upstream:
        seen = []
        for credentials in ({}, {}, {"key": KEY}, {"key": KEY}):
            async with gateway(upstream.url, credentials=credentials) as running, running.client() as client:
                await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
                (line,) = running.lines("rewrite")
                seen.append((line["body"]["before"]["sha256"], line["client"]["credential"]))

        first, second, third, fourth = seen
        assert len({one for one, _ in (first, second, third)}) == 3
        assert len({caller for _, caller in (first, second, third)}) == 3
        assert third == fourth
        assert hashlib.sha256(BODY).hexdigest() not in {one for one, _ in seen}


async def test_the_log_may_be_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    async with mocked(audit="-") as (_, running, client):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        running.gateway.audit.reopen()
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["rewrite", "outcome"] * 2
