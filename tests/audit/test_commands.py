"""`gateway audit` as an operator meets it, on logs that are rotated, compressed, broken off and hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.audit.log_files import LARGE, LogFiles, files_of, followed, last_lines
from gateway.audit.selection import begin_of
from gateway.cli import cli
from tests.audit.test_reader import CALLER, decision, outcome, rewrite
from tests.support.gateways import BODY, PARTICIPANT, TOKEN
from tests.support.mocking import mocked

TIME = "2026-11-26T12:00:00.000Z"


def audit(*words: str | Path, given: bytes = b"") -> Result:
    return CliRunner().invoke(cli, ["audit", *map(str, words)], input=given)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Five calls of which the oldest are in rotated files, and two files that are not of the log."""
    path = tmp_path / "rewrites.jsonl"
    (tmp_path / "rewrites.jsonl-20261101.xz").write_bytes(lzma.compress(rewrite("a") + outcome("a")))
    (tmp_path / "rewrites.jsonl.10.gz").write_bytes(gzip.compress(rewrite("b") + outcome("b", 409)))
    (tmp_path / "rewrites.jsonl.2.bz2").write_bytes(bz2.compress(rewrite("c") + outcome("c")))
    (tmp_path / "rewrites.jsonl.1").write_bytes(decision("skip", "d", reason="conforming"))
    path.write_bytes(outcome("d", 200) + rewrite("e", request_id="theirs") + outcome("e") + b'{"event":"rew')
    (tmp_path / "rewrites.jsonl.bak").write_bytes(b"x")
    (tmp_path / "other.jsonl.1").write_bytes(b"x")
    return path


def test_rotated_and_compressed_files_are_read_oldest_first(log: Path) -> None:
    said = audit("tail", "--json", "--log", log)
    assert said.exit_code == 0
    assert [json.loads(line)["id"] for line in said.stdout.splitlines()] == ["a", "b", "c", "d", "e"]
    assert json.loads(said.stdout.splitlines()[3])["outcome"]["status"] == 200
    assert "1 damaged lines were skipped" in said.stderr


def test_tail_says_a_call_a_line_and_as_many_as_are_asked_for(log: Path) -> None:
    said = audit("tail", "-n", "2", "--log", log).stdout.splitlines()
    assert said == [
        f"{TIME} PATCH /c/1/p/2 skip: conforming -> 200 in 5 ms  client=legacy/1 rule=r id=d",
        f"{TIME} PATCH /c/1/p/2 state=connected (cache, 4 ms) -> 202 in 5 ms  client=legacy/1 rule=r id=e",
    ]
    assert audit("tail", "--result", "4xx", "--log", log).stdout.endswith("id=b\n")


@pytest.mark.parametrize("name", ["e", "theirs"])
def test_show_has_all_lines_of_a_call_by_either_id(log: Path, name: str) -> None:
    said = audit("show", name, "--log", log)
    assert said.stdout.count("id: e\n") == 2
    assert "  rule: r\n" in said.stdout
    assert audit("show", name, "--json", "--log", log).stdout.count('"id":"e"') == 2
    missing = audit("show", "nobody", "--log", log)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "no call has the id nobody" in missing.stderr


def test_stats_counts_by_rule_caller_or_reason(log: Path) -> None:
    told = json.loads(audit("stats", "--json", "--log", log).stdout)
    row = told["calls"]["r"]
    assert (row["calls"], row["repaired"], row["left"], row["refused"]) == (5, 4, 1, 1)
    assert told["damaged"] == 1
    head, *rows = audit("stats", "--by", "reason", "--log", log).stdout.splitlines()
    assert head.split() == [
        "reason", "calls", "repaired", "left", "rejected", "refused", "failed", "conflicts", "last",
    ]  # fmt: skip
    assert [row.split()[:2] for row in rows] == [["repaired", "4"], ["conforming", "1"]]
    assert audit("stats", "--by", "caller", "--log", log).stdout.splitlines()[1].startswith("c0ffee legacy/1")
    assert audit("stats", "--by", "moon", "--log", log).exit_code == 1


async def test_what_a_gateway_wrote_is_read_back(tmp_path: Path) -> None:
    async with mocked(audit=str(tmp_path / "log")) as (_, _, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
    said = audit("show", answer.headers["x-request-id"], "--log", tmp_path / "log").stdout
    assert "  status: 202\n" in said
    row = json.loads(audit("stats", "--json", "--log", tmp_path / "log").stdout)["calls"]
    assert row["web-participant-state"]["repaired"] == 1


def test_a_log_cut_off_in_its_compression_is_read_as_far_as_it_goes(log: Path) -> None:
    cut = log.with_name("rewrites.jsonl.10.gz")
    cut.write_bytes(cut.read_bytes()[:-10])
    log.with_name("rewrites.jsonl.9.bz2").write_bytes(b"no bz2 at all")
    log.with_name("rewrites.jsonl.8.xz").write_bytes(b"no xz at all")
    said = audit("tail", "--json", "--log", log)
    assert said.exit_code == 0
    assert {"a", "c", "d", "e"} <= {json.loads(line)["id"] for line in said.stdout.splitlines()}
    assert "rewrites.jsonl.10.gz breaks off" in said.stderr
    assert "rewrites.jsonl.9.bz2 breaks off" in said.stderr
    assert "rewrites.jsonl.8.xz breaks off" in said.stderr


def test_nothing_in_a_log_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\r\n\u202e"
    line = rewrite("a", path=hostile, client=CALLER | {"user_agent": hostile}, rule=hostile)
    (tmp_path / "log").write_bytes(line + outcome("a", None, error=hostile))
    for words in (["tail"], ["show", "a"], ["stats"], ["stats", "--by", "caller"], ["tail", "--json"]):
        said = audit(*words, "--log", tmp_path / "log").stdout
        assert said
        assert all(letter == "\n" or " " <= letter <= "~" for letter in said), words


def test_the_log_is_standard_input_or_that_of_the_configuration(log: Path) -> None:
    assert audit("tail", "--log", "-", given=rewrite("i")).stdout.endswith(
        "no outcome  client=legacy/1 rule=r id=i\n"
    )
    config = log.with_name("config.yaml")
    config.write_text(f"upstream: {{url: 'http://a'}}\naudit: {{path: {log}}}\nrules: []\n")
    assert audit("show", "e", "--config", config).exit_code == 0
    config.write_text("upstream: {url: 'http://a'}\naudit: {path: '-'}\nrules: []\n")
    said = audit("tail", "--config", config)
    assert (said.exit_code, said.stdout) == (1, "")
    assert "--log" in said.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tail", "--log", "{}/nowhere"], "there is no log at"),
        (["tail", "--log", "{}/no/where"], "No such file"),
        (["tail", "--since", "soon", "--log", "{}/x"], "--since: expected"),
        (["tail", "-f", "--log", "-"], "leave -f out"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    told = audit(*(word.format(tmp_path) for word in words))
    assert told.exit_code == 1
    assert said in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_since_is_a_while_ago_or_a_time() -> None:
    now = 1_800_000_000.0
    assert now - begin_of("90m", now).timestamp() == 5400
    assert now - begin_of("2d", now).timestamp() == 172_800
    assert begin_of("2026-11-26T12:00:00Z", now) == begin_of("2026-11-26T13:00:00+01:00", now)
    assert begin_of("2026-11-26", now).isoformat() == "2026-11-26T00:00:00+00:00"


def test_files_older_than_asked_for_are_not_opened_and_a_large_log_tells_its_progress(log: Path) -> None:
    for path in files_of(log)[:-1]:
        os.utime(path, (1000, 1000))
    assert next(LogFiles(files_of(log), 5000.0, None).lines()) == outcome("d", 200)

    with log.open("ab") as file:
        file.truncate(LARGE)
    told = io.StringIO()
    for _ in LogFiles([log], None, told).lines():
        pass
    assert "100 % of 64 MiB" in told.getvalue()
    assert told.getvalue().endswith("\r\x1b[K")


def test_following_goes_on_over_half_lines_rotation_and_truncation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\nthr")
    lines, end = last_lines(log, 1000)
    assert (lines, end) == ([b"one\n", b"two\n"], 8)
    assert last_lines(log, 7)[0] == [b"two\n"]

    def append(text: bytes) -> None:
        with log.open("ab") as file:
            file.write(text)

    def rotate() -> None:
        append(b"last\n")
        log.rename(tmp_path / "log.1")
        log.write_bytes(b"new\n")

    steps: Iterator[Callable[[], object]] = iter([
        lambda: append(b"ee\n"),
        rotate,
        lambda: None,
        lambda: None,
        lambda: os.truncate(log, 0),
        lambda: append(b"a\n"),
        lambda: (tmp_path / "log").unlink(),
        lambda: append(b"again\n"),
        lambda: None,
    ])  # fmt: skip

    def wait() -> bool:
        step = next(steps, None)
        if step is not None:
            step()
        return step is not None

    assert list(followed(log, end, wait)) == [b"three\n", b"last\n", b"new\n", b"a\n", b"again\n"]
