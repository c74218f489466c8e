"""Two gateways on one audit log are noticed, and refused where each would delete what the other keeps."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from gateway.audit.claim import Claim
from tests.support.mocking import mock
from tests.support.processes import gateway_process, process, write_configuration
from tests.support.waiting import until


def test_one_at_a_time_has_a_log_and_the_other_is_told_who(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one, other = Claim(str(log)), Claim(str(log))
    assert one.take()
    assert one.take()
    assert not other.take()
    assert other.holder is not None
    assert other.holder.startswith(f"process {os.getpid()} on ")
    one.end()
    assert other.take()
    assert other.holder is None
    other.end()
    assert os.listdir(tmp_path) == []


def test_a_rotation_takes_no_log_from_who_has_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    one, other = Claim(str(log)), Claim(str(log))
    assert one.take()
    log.rename(tmp_path / "log.1")
    log.touch()
    assert not other.take()


def test_what_a_killed_process_left_is_nobody_s(tmp_path: Path) -> None:
    (tmp_path / "log.lock").write_text("1 on elsewhere\n")
    assert Claim(str(tmp_path / "log")).take()


def test_standard_output_and_what_is_no_file_have_as_many_writers_as_they_like(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("-", "/dev/null", str(tmp_path / "fifo")):
        assert Claim(path).take()
        assert Claim(path).take()
    assert os.listdir(tmp_path) == ["fifo"]


def test_where_there_can_be_no_lock_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.lock").mkdir()
    claim = Claim(str(tmp_path / "log"))
    assert not claim.take()
    assert (claim.holder, claim.problem) == (None, "Is a directory")


async def test_a_second_gateway_without_rotation_says_so_until_the_first_has_ended(tmp_path: Path) -> None:
    async with mock() as upstream, gateway_process(tmp_path, upstream.url) as first:
        async with gateway_process(tmp_path, upstream.url) as second, second.admin() as admin:
            said = f"is written by another gateway too (process {first.process.pid} on "
            await until(lambda: said in second.process.said)
            assert "\ngateway_audit_shared 1" in (await admin.get("/metrics")).text
            first.process.signal(signal.SIGTERM)
            assert await first.process.exit() == 0
            assert "\ngateway_audit_shared 0" in (await admin.get("/metrics")).text
        assert "another gateway" not in first.process.said


async def test_a_second_gateway_is_refused_where_the_log_is_rotated(tmp_path: Path) -> None:
    async with mock() as upstream, gateway_process(tmp_path, upstream.url) as first:
        audit = {"path": "rewrites.jsonl", "rotate": "1MiB"}
        write_configuration(tmp_path, upstream.url, 0, 0, audit=audit)
        async with process("run", folder=tmp_path) as second:
            assert await second.exit() == 1
            assert f"(process {first.process.pid} on " in second.said
            assert "stop that one, or give this one a log of its own" in second.said
            assert "Traceback" not in second.said
