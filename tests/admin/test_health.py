"""The operator's side: alive, ready and why not, and what was counted; on a port of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.mock.server import Fault
from gateway.promotion.effect import digest
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, gateway, settings
from tests.support.mocking import mock
from tests.support.ports import closed_port
from tests.support.processes import gateway_process
from tests.support.waiting import until

JSON = TOKEN | {"Content-Type": "application/json"}


async def test_a_healthy_gateway_is_alive_and_ready() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.admin() as admin:
        alive, ready = await admin.get("/healthz"), await admin.get("/readyz")

        assert (alive.status_code, alive.text) == (200, "ok\n")
        assert ready.status_code == 200
        assert ready.json() == {
            "ready": True,
            "checks": {"configuration": "ok", "audit_log": "ok", "draining": "ok"},
            "config": digest(settings(upstream.url, str(running.audit))),
        }


async def test_readiness_names_each_thing_that_is_wrong_and_liveness_none(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing" / "log")
    async with mock() as upstream, gateway(upstream.url, audit=missing) as running, running.admin() as admin:
        running.gateway.draining.set()
        ready = await admin.get("/readyz")

        assert ready.status_code == 503
        checks = ready.json()["checks"]
        assert ready.json()["ready"] is False
        assert checks["configuration"] == "ok"
        assert missing in checks["audit_log"]
        assert "stop" in checks["draining"]
        assert (await admin.get("/healthz")).status_code == 200


async def test_an_upstream_that_is_down_does_not_make_the_gateway_unready() -> None:
    """Else all replicas would leave the load balancer at once, and no client would be told why."""
    with closed_port() as port:
        async with gateway(f"http://127.0.0.1:{port}") as running, running.admin() as admin:
            assert (await admin.get("/readyz")).status_code == 200


async def test_what_happens_is_counted() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        calls = [
            asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN)) for _ in range(3)
        ]
        await until(lambda: running.counts("gateway_lookups_total", "coalesced") == 2)
        held.set()
        await asyncio.gather(*calls)
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await client.patch(PARTICIPANT, content=b'{"state":"connected"}', headers=JSON)
        upstream.faults.append(Fault(method="GET", status=500))
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        counts = (await admin.get("/counts")).json()

        assert counts["gateway_matched_calls_total"] == 6
        assert counts['gateway_lookups_total{result="sent"}'] == len(upstream.ledger.of("GET"))
        assert counts['gateway_lookups_total{result="coalesced"}'] == 2
        assert counts['gateway_lookups_total{result="cached"}'] >= 1
        assert counts['gateway_forwards_total{filled="yes"}'] == 4
        assert counts['gateway_forwards_total{filled="no"}'] == 1
        assert counts['gateway_refusals_total{cause="lookup-failed"}'] == 1
        assert counts['gateway_upstream_connections{state="open"}'] >= 1
        assert counts["gateway_conflicts_total"] == 0


async def test_a_reply_that_names_another_state_is_counted_as_a_conflict() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        upstream.faults.append(
            Fault(
                method="PATCH",
                status=200,
                body=b'{"id":"p1","state":"disconnected"}',
                headers=(("content-type", "application/json"),),
            )
        )
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.json()["state"] == "disconnected"
        assert (await admin.get("/counts")).json()["gateway_conflicts_total"] == 1
        assert running.lines("outcome")[0]["conflict"] is True


@pytest.mark.parametrize(
    "path",
    ["/page/app.py", "/page/../health.py", "/page/", "/page/%2e%2e%2fhealth.py",
     "/metrics-not-yet", "/healthz/", "/readyz/x", "/%2e%2e/healthz", CONVERSATION],
)  # fmt: skip
async def test_the_operators_side_serves_nothing_else_and_forwards_nothing(path: str) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.admin() as admin:
        answer = await admin.get(path)

        assert answer.status_code in {307, 404}
        assert upstream.ledger.received == 0


async def test_the_operators_pages_are_not_on_the_clients_port(tmp_path: Path) -> None:
    """On the clients' port /healthz and /readyz are forwarded to the upstream."""
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        for path in ("/healthz", "/readyz", "/counts", "/metrics"):
            assert (await admin.get(path)).status_code == 200
            assert (await client.get(path)).status_code == 404
        targets = [entry.target for entry in upstream.ledger.entries]
        assert targets == [b"/healthz", b"/readyz", b"/counts", b"/metrics"]
