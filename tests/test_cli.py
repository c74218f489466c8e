"""The command line as an operator meets it: real processes, what they say, and how they exit."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from gateway import __version__
from gateway.cli import cli
from tests.support.gateways import BODY, FILLED, PARTICIPANT, SHIPPED
from tests.support.processes import configured, listening, process
from tests.support.waiting import until

BAD = """\
listen: {port: 99999, prot: 1}
upstream: {url: "ftp://${NOWHERE}/", connect_timeout: soon}
limits: {max_body: 1MeB}
rules:
  - name: Bad Name
    match: {method: GET, path: no/slash}
    mode: enfroce
    repairs:
      - {type: fill, field: state, from: "/a/{id}", select: "participants", allow: [], max_age: 2h}
"""


async def test_run_with_a_bad_configuration_says_all_that_is_wrong_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(BAD)
    for command in ("run", "check"):
        async with process(command, folder=tmp_path) as running:
            assert await running.exit() == 1
        said = running.said
        assert "Traceback" not in said
        for place in (
            "listen.port", "listen.prot", "upstream.url", "upstream.connect_timeout", "limits.max_body",
            "rules[0].name", "rules[0].match.path", "rules[0].match.method", "rules[0].mode",
            "rules[0].repairs[0].select", "rules[0].repairs[0].allow", "NOWHERE",
        ):  # fmt: skip
            assert place in said, f"{place} is missing from:\n{said}"
        assert "unknown key" in said
        assert "'soon'" in said


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "expected a mapping"),
        ("a: [", "not YAML"),
        ("upstream: {url: 'http://a'}\nupstream: {url: 'http://b'}\n", "given twice"),
        ("rules: []\n", "upstream: required, but not given"),
    ],
)
def test_what_is_no_configuration_is_said_in_one_line(tmp_path: Path, document: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(document)
    said = CliRunner().invoke(cli, ["run", "--config", str(tmp_path / "config.yaml")])
    assert said.exit_code == 1
    assert words in said.output
    assert len(said.output.splitlines()) == 1


def test_a_configuration_that_is_not_there_is_named() -> None:
    said = CliRunner().invoke(cli, ["run", "--config", "nowhere.yaml"])
    assert said.exit_code == 1
    assert "nowhere.yaml" in said.output


@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_a_port_in_use_is_said_with_the_setting_that_names_it(tmp_path: Path, which: str) -> None:
    port, admin = configured(tmp_path, "http://127.0.0.1:9")
    taken = port if which == "listen" else admin
    with socket.create_server(("127.0.0.1", taken)):
        async with process("run", folder=tmp_path) as running:
            assert await running.exit() == 1
    (line,) = running.said.strip().splitlines()
    assert f"{which}: cannot listen on 127.0.0.1:{taken}" in line
    assert "in use" in line


def test_check_tells_the_shipped_configuration_as_it_is_understood() -> None:
    said = CliRunner().invoke(cli, ["check", "--config", str(SHIPPED)])
    assert said.exit_code == 0
    for words in ("web-participant-state (enforce", "media-participant-state", "at most 1s old"):
        assert words in said.output


def test_check_prints_a_json_schema() -> None:
    said = CliRunner().invoke(cli, ["check", "--schema"])
    assert said.exit_code == 0
    assert {"upstream", "rules", "limits", "audit"} <= json.loads(said.output)["properties"].keys()


def test_explain_shows_a_call_before_and_after_without_any_network() -> None:
    call = [PARTICIPANT, "-d", BODY.decode(), "--state", "connected", "--config", str(SHIPPED)]
    said = CliRunner().invoke(cli, ["explain", "-X", "PATCH", *call])
    assert said.exit_code == 0
    for words in ("web-participant-state", BODY.decode(), FILLED.decode()):
        assert words in said.output


async def test_run_says_where_it_listens_and_forwards(tmp_path: Path) -> None:
    port, admin = configured(tmp_path, "http://127.0.0.1:9")
    async with process("run", folder=tmp_path) as running:
        await listening(running, port)
        await until(lambda: "listening" in running.said)
        running.signal(signal.SIGTERM)
        assert await running.exit() == 0
    assert f"listening on 127.0.0.1:{port}, admin on 127.0.0.1:{admin}" in running.said
    assert "Traceback" not in running.said


@pytest.mark.parametrize(("profile", "status"), [("strict", 400), ("documented", 401)])
async def test_mock_is_a_strict_api_to_try_the_gateway_against(
    tmp_path: Path, profile: str, status: int
) -> None:
    async with (
        process("mock", "--port", "0", "--profile", profile, folder=tmp_path) as running,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        await until(lambda: "http://" in running.said)
        url = running.said.split()[-1]
        answer = await client.patch(
            f"{url}{PARTICIPANT}",
            content=BODY,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == status
        running.signal(signal.SIGINT)
        assert await running.exit() in {0, -signal.SIGINT, 130}
    assert "Traceback" not in running.said


def test_mock_refuses_a_profile_that_there_is_not() -> None:
    said = CliRunner().invoke(cli, ["mock", "--profile", "lenient"])
    assert said.exit_code == 1
    assert "strict, documented" in said.output


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output.strip() == __version__


async def test_a_command_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    said = CliRunner().invoke(cli, ["--help"])
    for command in ("run", "check", "explain", "mock", "demo"):
        assert command in said.output
    async with process("frobnicate", folder=tmp_path) as running:
        assert await running.exit() == 2
