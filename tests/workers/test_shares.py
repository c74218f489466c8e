"""How many workers there are, what so many need, and what each has of what is for the whole machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import cli
from gateway.workers.place import LONGEST_PAUSE, pause
from gateway.workers.shares import MOST, missing, share, wanted
from tests.support.gateways import settings
from tests.support.processes import write_configuration

UPSTREAM = "http://127.0.0.1:1"


def test_auto_is_one_for_each_processor_that_may_be_used() -> None:
    assert wanted("auto", 4) == 4
    assert wanted("auto", 1_000) == MOST
    assert [wanted(one, 4) for one in ("1", "2", "64")] == [1, 2, 64]


@pytest.mark.parametrize("text", ["0", "65", "-1", "two", "", "1.5", "²"])
def test_what_is_no_number_of_workers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--workers: expected auto, or 1 to 64"):
        wanted(text, 4)


def test_several_need_a_store_and_a_log_that_is_a_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    plain = settings(UPSTREAM, str(tmp_path / "rewrites.jsonl"))

    assert list(missing(plain, 1)) == []
    assert [name for name, _ in missing(plain, 2)] == ["store"]
    for path in ("-", str(fifo)):
        assert [name for name, _ in missing(settings(UPSTREAM, path), 2)] == ["store", "audit.path"]


@pytest.mark.parametrize("command", ["run", "check"])
def test_the_commands_say_so(command: str, tmp_path: Path) -> None:
    write_configuration(tmp_path, UPSTREAM, 0, 0)
    path = tmp_path / "config.yaml"
    told = CliRunner().invoke(cli, [command, "--workers", "2", "--config", str(path)])
    assert told.exit_code == 1
    assert told.output.startswith("config.yaml: store: expected with 2 workers")


def test_what_protects_the_machine_or_the_upstream_is_divided() -> None:
    other = {"name": "eu", "url": "http://eu", "path_prefix": "/eu", "max_connections": 40}
    whole = settings(UPSTREAM, "-", upstream={"url": UPSTREAM, "max_connections": 3}, upstreams=[other])
    one = share(whole, 4)

    assert one.limits.max_connections == whole.limits.max_connections // 4
    assert one.limits.max_in_flight == whole.limits.max_in_flight // 4
    assert one.limits.max_buffered >= whole.limits.max_write
    assert one.state_cache.max_bytes == whole.state_cache.max_bytes // 4
    assert one.upstream.max_connections == 1
    assert [to.max_connections for to in one.upstreams] == [10]
    assert one.limits.max_body == whole.limits.max_body
    assert one.rules == whole.rules
    assert share(whole, 1) == whole


def test_the_pause_before_the_next_start_doubles_to_its_longest() -> None:
    assert [pause(failed) for failed in range(5)] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert pause(10) == pause(1_000) == LONGEST_PAUSE
