"""The snippets of docs/in-process.md, each run as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.audit_lines import audit_lines
from tests.support.clients import bare_client
from tests.support.drawn import ROOT
from tests.support.gateways import BODY, FILLED, PARTICIPANT, TOKEN, document
from tests.support.hosted import under_uvicorn
from tests.support.mocking import mock
from tests.support.ports import unused_ports
from tests.support.waiting import until

PAGE = (ROOT / "docs/in-process.md").read_text("utf-8")
MODULES = dict(re.findall(r"```python\n# the module (\w+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def written(folder: Path, upstream: str) -> None:
    """All that the page has, and a config.yaml beside it."""
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(document(upstream, "log")), "utf-8")


def test_every_snippet_of_the_page_is_run_here() -> None:
    assert sorted(MODULES) == ["api", "client", "mounted", "served"]
    assert [line.split()[0] for line in COMMANDS] == ["uvicorn", "hypercorn", "granian"]
    assert PAGE.count("```") == 2 * (len(MODULES) + 1)


@pytest.mark.parametrize("command", COMMANDS, ids=[line.split()[0] for line in COMMANDS])
async def test_a_server_of_the_page_serves_and_ends_with_its_log_written(
    command: str, tmp_path: Path
) -> None:
    name, *arguments = shlex.split(command)
    pytest.importorskip(name)
    (port,) = unused_ports(1)
    where = ["--bind", f"127.0.0.1:{port}"] if name == "hypercorn" else ["--port", str(port)]
    async with mock() as upstream, bare_client(f"http://127.0.0.1:{port}") as client:
        written(tmp_path, upstream.url)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", name, *arguments, *where,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            reply = await patched(client, process)
        finally:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), 20)

        assert reply.status_code == 202, reply.text
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED]
        assert [line["event"] for line in audit_lines(tmp_path / "log")] == ["rewrite", "outcome"]


async def patched(client: httpx.AsyncClient, process: asyncio.subprocess.Process) -> httpx.Response:
    """As soon as somebody listens."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                return await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            except httpx.ConnectError:
                await asyncio.sleep(0.02)
    raise AssertionError("the server has ended")


@pytest.mark.parametrize("name", ["mounted", "api"])
async def test_an_application_of_the_page(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    async with mock() as upstream:
        written(tmp_path, upstream.url)
        monkeypatch.chdir(tmp_path)
        app = runpy.run_path(f"{name}.py")["app"]
        async with under_uvicorn(app) as port, bare_client(f"http://127.0.0.1:{port}") as client:
            reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert reply.status_code == 202
        assert "filled=state" in reply.headers["gateway-rewrite"]
        assert len(upstream.ledger.of("PATCH")) == (name == "mounted")


async def test_the_client_of_the_page(tmp_path: Path, monkeypatch: Any) -> None:
    async with mock() as upstream:
        written(tmp_path, upstream.url)
        monkeypatch.chdir(tmp_path)
        reply = await runpy.run_path("client.py")["main"](upstream.url)

        assert "filled=state" in reply.headers["gateway-rewrite"]
        assert len(upstream.ledger.of("PATCH")) == 1
        await until(lambda: len(audit_lines(tmp_path / "log")) == 2)
