"""File descriptors: who may have how many, what is said, and that a process that has few still answers."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.server import backlog
from gateway.server.descriptors import OWN, Shares, shared, shortage
from tests.support.gateways import BODY, PARTICIPANT, TOKEN
from tests.support.mocking import mock
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.serving import connect
from tests.support.waiting import until

DEFAULT = Shares(clients=20_000, lingering=256, upstream=200, admin=64)


def test_where_there_are_enough_everybody_has_what_is_configured() -> None:
    assert shared(DEFAULT, DEFAULT.descriptors) == DEFAULT
    assert shortage(DEFAULT, DEFAULT, DEFAULT.descriptors) is None


def test_the_clients_have_what_the_others_leave() -> None:
    has = shared(DEFAULT, 10_000)
    assert (has.lingering, has.upstream, has.admin) == (256, 200, 64)
    assert has.descriptors == 10_000


@pytest.mark.parametrize("available", [256, 512, 1024, 4096])
def test_however_few_there_are_something_is_kept_for_each(available: int) -> None:
    has = shared(DEFAULT, available)
    assert has.descriptors <= available
    assert has.clients >= (available - OWN) // 3
    assert has.upstream >= min(DEFAULT.upstream, (available - OWN) // 3)
    assert min(has.admin, has.lingering) >= 8


def test_who_was_to_have_few_has_no_more_where_there_are_not_enough() -> None:
    few = Shares(clients=20_000, lingering=4, upstream=3, admin=2)
    has = shared(few, 10_000)
    assert (has.lingering, has.upstream, has.admin) == (4, 3, 2)
    assert has.descriptors == 10_000


def test_what_to_set_is_said() -> None:
    said = shortage(DEFAULT, shared(DEFAULT, 256), 256)
    assert said is not None
    for words in ("256 files", "ulimit -n 20584", "limits.max_connections were 72", "max_connections 72"):
        assert words in said


def test_a_backlog_that_the_system_cuts_is_said(tmp_path: Path) -> None:
    somaxconn = tmp_path / "somaxconn"
    somaxconn.write_text("128\n")
    said = backlog.shortage(4096, somaxconn)
    assert said is not None
    assert "4096" in said
    assert "128" in said
    assert backlog.shortage(128, somaxconn) is None
    assert backlog.shortage(4096, tmp_path / "missing") is None


async def filled(running: GatewayProcess) -> int:
    async with running.client() as client:
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        return reply.status_code


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("files", [256, 1024])
async def test_idle_clients_leave_descriptors_for_the_admin_side_the_log_and_the_upstream(
    tmp_path: Path, files: int
) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url, files=files) as running,
        AsyncExitStack() as idle,
    ):
        await until(lambda: f"may open {files} files" in running.process.said)
        async with running.client() as early, running.admin() as admin:
            assert (await early.get("/api/v2/users/me", headers=TOKEN)).status_code < 500
            for _ in range(files + 144):
                await idle.enter_async_context(connect(running.port))
            assert (await admin.get("/readyz")).status_code == 200
            reply = await early.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            assert reply.status_code == 202, "a look-up, a line of the audit log and a call"
        assert "refused: overloaded" in running.process.said
        await idle.aclose()
        assert await filled(running) == 202


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process")
async def test_a_connection_to_the_upstream_without_a_descriptor_says_so(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url, files=1024) as running,
        running.client() as client,
    ):
        pid = running.process.pid
        async with connect(running.port):
            taken = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
            assert (await client.options("/", headers={"Max-Forwards": "0"})).status_code < 600
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 2, 1024))
            reply = await client.get("/api/v2/users/me", headers=TOKEN)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, 1024))
            assert reply.status_code == 503
            assert reply.json()["code"] == "gateway.no-descriptor"
            assert (await client.get("/api/v2/users/me", headers=TOKEN)).status_code < 500
