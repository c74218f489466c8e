"""The demos tell their stories with real processes, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli import cli
from tests.support.clients import bare_client
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT
from tests.support.processes import process
from tests.support.redis_servers import needs_redis
from tests.support.waiting import until


def told_here(folder: Path, *arguments: str) -> str:
    """What it says, told by this process: what it starts are processes all the same."""
    ended_by = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", str(folder))
        try:
            told = CliRunner().invoke(cli, ["demo", "--once", *arguments])
        finally:
            signal.signal(signal.SIGTERM, ended_by)
    assert told.exit_code == 0, told.output
    return told.output


def test_once_tells_the_story_and_exits_0(tmp_path: Path) -> None:
    said = told_here(tmp_path)
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 22, said
    straight, through = said.split("2. through the gateway")
    # What the legacy client sends, and what the upstream says to it.
    assert f"PATCH {PARTICIPANT}" in straight
    assert "text/plain" in straight
    assert "415" in straight
    assert "400 Invalid request body. Missing required property: 'state'" in straight
    # Through the gateway: success, its headers, what arrived, what was recorded.
    assert " 202" in through.splitlines()[0]
    assert "Gateway-Rewrite: web-participant-state; content-type; filled=state" in through
    assert "Server-Timing: lookup;dur=" in through
    assert f"GET   {CONVERSATION}" in through
    assert FILLED.decode() in through
    assert "Content-Type: application/json" in through
    assert '"event":"rewrite"' in through
    assert '"event":"outcome"' in through
    assert os.listdir(tmp_path) == []


async def test_without_once_it_stays_up_with_lines_to_try_until_it_is_told_to_stop(tmp_path: Path) -> None:
    # Through a pipe, and whatever the environment says of buffers.
    async with process("demo", folder=tmp_path, PYTHONUNBUFFERED="") as running:
        await until(lambda: "tail -f" in running.said or running.ended is not None, 20)
        lines = [line.strip() for line in running.said.splitlines() if line.strip().startswith("curl")]
        through = next(line.split()[-1] for line in lines if "PATCH" in line)
        ready = next(line.split()[-1] for line in lines if "readyz" in line)
        async with bare_client() as client:
            assert (await client.patch(through, content=BODY)).status_code == 202
            assert (await client.get(ready)).json()["ready"] is True
            running.signal(signal.SIGINT)
            assert await running.exit(15) == 0
            # Its children are gone with it.
            for url in (through, ready):
                try:
                    await client.get(url)
                except httpx.ConnectError:
                    continue
                raise AssertionError(f"something still answers at {url}")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_told_to_end_amid_its_story_it_leaves_no_child(tmp_path: Path) -> None:
    async with process("demo", "--once", folder=tmp_path) as running:
        await until(lambda: len(children(running.pid)) == 2, 20)
        started = children(running.pid)
        running.signal(signal.SIGTERM)
        assert await running.exit(15) != 0
    assert not set(started) & set(os.listdir("/proc"))
    assert os.listdir(tmp_path) == []


# --- two gateways and a Redis server


@pytest.fixture
def short() -> Iterator[Path]:
    """Where the demo makes its folder: the name of a socket is at most 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as folder:
        yield Path(folder)


@needs_redis
def test_two_gateways_and_their_redis_tell_their_story(short: Path) -> None:
    said = told_here(short, "--cluster")
    assert "NOT AS" not in said
    assert "Traceback" not in said
    _, written, killed, again = said.split("\n2. ")[0], *(said.split(f"\n{n}. ")[1] for n in (2, 3, 4))
    assert "fill through B            202 " in written.split("source=lookup")[0]
    assert 'the upstream received   {"state":"active",' in written
    assert killed.split("\n4. ")[0].count("503 gateway.store-unavailable, Retry-After: 1") == 2
    assert "state: connected through A 202" in killed
    assert "source=lookup" in again.split("the upstream received")[0]
    assert '{"state":"connected","attributes"' in again
    assert os.listdir(short) == []


@needs_redis
async def test_told_to_end_amid_that_story_it_leaves_no_child(short: Path) -> None:
    async with process("demo", "--cluster", folder=short, TMPDIR=str(short)) as running:
        # The mock, Redis and both gateways.
        await until(lambda: len(children(running.pid)) == 4, 30)
        started = children(running.pid)
        running.signal(signal.SIGTERM)
        assert await running.exit(30) != 0
    assert not set(started) & set(os.listdir("/proc"))
    assert os.listdir(short) == []


async def test_without_a_redis_server_it_says_what_to_install(tmp_path: Path) -> None:
    async with process("demo", "--cluster", folder=tmp_path, PATH=str(tmp_path)) as running:
        assert await running.exit(20) == 1
    assert "there is no redis-server" in running.said
    assert "gateway[cluster]" in running.said
