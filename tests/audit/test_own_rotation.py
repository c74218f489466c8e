"""`audit.rotate`: no line is lost or read twice, whatever it is killed at; what can't be rotated goes on."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.audit.log_files import LogFiles, files_of, followed
from gateway.audit.rotation import Rotation
from gateway.audit.writer import AuditLog, Line
from gateway.config import ConfigError, parse
from tests.end_to_end.test_kill import patch_after_patch
from tests.support.audit_lines import audit_lines
from tests.support.clock import Clock
from tests.support.gateways import BODY, PARTICIPANT, TOKEN
from tests.support.mocking import mock
from tests.support.processes import gateway_process
from tests.support.waiting import PATIENCE, until

# 2026-11-26T21:30:00Z
NOW = 1_795_728_600.0
TURNS = 5
FIRST, SECOND, THIRD = "log-20261126213000000", "log-20261126213000001", "log-20261126213000002"


def rotation(log: Path, size: int = 100, keep: int = 10, compress: bool = False, **more: Any) -> Rotation:
    return Rotation(str(log), size, keep, compress, lambda: NOW, **more)


def lines_of(log: Path) -> list[bytes]:
    return list(LogFiles(files_of(log), None, None).lines())


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


async def rotate(one: Rotation, log: Path) -> None:
    """Fills the log with one line, and has it rotated."""
    before = one.rotated
    with log.open("ab") as file:
        file.write(b"%099d\n" % before)
    one.look(100)
    await until(lambda: one.rotated > before and not one.busy)


async def test_the_full_file_gets_a_dated_name_and_an_empty_one_its_place(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch(0o600)
    one = rotation(log)
    one.look(99)
    assert not one.busy
    await rotate(one, log)
    await rotate(one, log)  # in the same millisecond
    assert names(tmp_path) == ["log", FIRST, SECOND]
    assert log.read_bytes() == b""
    assert log.stat().st_mode & 0o777 == 0o600
    assert lines_of(log) == [b"%099d\n" % 0, b"%099d\n" % 1]


async def test_only_what_it_named_itself_is_ever_deleted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    others = ["log-20261125", "log.1", "log.2.gz", "log-20261126213000000.bak"]
    for name in others:
        (tmp_path / name).touch()
    log.touch()
    one = rotation(log, keep=2)
    for _ in range(4):
        await rotate(one, log)
    assert names(tmp_path) == sorted([*others, "log", THIRD, "log-20261126213000003"])
    assert one.files() == 2


async def test_all_but_the_newest_are_compressed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    one = rotation(log, compress=True)
    for _ in range(3):
        await rotate(one, log)
    await until(lambda: len(names(tmp_path)) == 4)
    assert names(tmp_path) == ["log", f"{FIRST}.gz", f"{SECOND}.gz", THIRD]
    assert gzip.decompress((tmp_path / f"{FIRST}.gz").read_bytes()) == b"%099d\n" % 0
    assert lines_of(log) == [b"%099d\n" % number for number in range(3)]


HALF_DONE: dict[str, Callable[[Path], object]] = {
    "before the second name": lambda folder: (folder / "log.next").touch(),
    "before the first is taken": lambda folder: (
        (folder / "log.next").write_bytes(b""),
        (folder / SECOND).hardlink_to(folder / "log"),  # type: ignore[func-returns-value]
    ),
    "while it compressed": lambda folder: (folder / f"{FIRST}.gz.tmp").write_bytes(b"\x1f\x8b"),
    "before the plain file was deleted": lambda folder: (folder / f"{FIRST}.gz").write_bytes(
        gzip.compress(b"old\n")
    ),
    "after its file was deleted": lambda folder: (folder / "log-20261126200000000.gz.tmp").touch(),
}


@pytest.mark.parametrize("killed", HALF_DONE)
async def test_what_a_killed_process_left_half_done_is_read_once_and_put_in_order(
    killed: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"new\n")
    (tmp_path / FIRST).write_bytes(b"old\n")
    (tmp_path / SECOND if "first is taken" not in killed else tmp_path / THIRD).write_bytes(b"older\n")
    HALF_DONE[killed](tmp_path)
    expected = sorted([b"new\n", b"old\n", b"older\n"])
    assert sorted(lines_of(log)) == expected

    one = rotation(log, compress=True)
    one.begin()
    await until(lambda: not one.busy)
    assert sorted(lines_of(log)) == expected
    assert not [name for name in names(tmp_path) if name.endswith((".next", ".tmp"))]
    assert log.stat().st_nlink == 1
    assert len(names(tmp_path)) == 3


async def test_what_cannot_be_rotated_goes_on_in_the_same_file_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"%099d\n" % 7)
    (tmp_path / "log.next").mkdir()
    one = rotation(log, retry=0.0)
    for failures in (1, 2):
        one.look(100)
        await until(lambda: one.failures == failures and not one.busy)  # noqa: B023
    (tmp_path / "log.next").rmdir()
    assert (names(tmp_path), lines_of(log)) == (["log"], [b"%099d\n" % 7])
    await rotate(one, log)
    assert names(tmp_path) == ["log", FIRST]
    begun, over = [record.getMessage() for record in caplog.records]
    assert "cannot be rotated, it goes on in the same file: " in begun
    assert over.endswith("that is over")


async def test_what_cannot_be_compressed_stays_as_it_is_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    log.touch()
    one = rotation(log, compress=True, keep=2)
    await rotate(one, log)
    (tmp_path / f"{FIRST}.gz.tmp").mkdir()
    await rotate(one, log)
    assert (one.compression_failures, names(tmp_path)) == (1, ["log", FIRST, f"{FIRST}.gz.tmp", SECOND])
    assert lines_of(log) == [b"%099d\n" % 0, b"%099d\n" % 1]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "cannot be compressed, they stay as they are" in told


async def test_two_processes_on_one_log_rotate_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100)
    ones = [rotation(log) for _ in range(8)]
    for one in ones:
        one.look(100)
    await until(lambda: not any(one.busy for one in ones))
    assert sum(one.rotated for one in ones) == 1
    assert names(tmp_path) == ["log", FIRST]


async def test_who_writes_goes_on_in_the_new_file_at_its_next_line(tmp_path: Path) -> None:
    log, clock = tmp_path / "log", Clock()
    one = rotation(log)
    audit = AuditLog(str(log), clock, rotation=one)
    for number in range(2):
        audit.append(Line("a" * 100, "", str(number)))
        audit.commit()
    await until(lambda: one.rotated == 1)
    audit.append(Line("b", "", "2"))  # without any time passing
    audit.commit()
    await audit.end()
    assert [line["id"] for line in audit_lines(tmp_path / FIRST)] == ["0", "1"]
    assert [line["id"] for line in audit_lines(log)] == ["2"]


def test_a_follower_has_what_is_written_to_the_old_file_a_moment_after_the_rotation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\n")

    def rotated() -> None:
        os.link(log, tmp_path / FIRST)
        (tmp_path / "log.next").write_bytes(b"new\n")
        (tmp_path / "log.next").replace(log)

    def late() -> None:
        with (tmp_path / FIRST).open("ab") as file:
            file.write(b"late\n")

    steps: Iterator[Callable[[], object]] = iter([rotated, late, lambda: None])

    def wait() -> bool:
        step = next(steps, None)
        if step is not None:
            step()
        return step is not None

    assert list(followed(log, 0, wait)) == [b"one\n", b"late\n", b"new\n"]


def test_a_reader_that_has_begun_reads_to_the_end_over_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / FIRST).write_bytes(b"one\n")
    (tmp_path / SECOND).write_bytes(b"two\n")
    log.write_bytes(b"three\n")
    lines = LogFiles(files_of(log), None, None).lines()
    assert next(lines) == b"one\n"
    (tmp_path / f"{SECOND}.gz").write_bytes(gzip.compress(b"two\n"))
    (tmp_path / SECOND).unlink()
    log.rename(tmp_path / THIRD)
    log.write_bytes(b"four\n")
    assert list(lines) == [b"two\n", b"three\n"]


@pytest.mark.parametrize("sync", ["never", "always"])
async def test_killed_while_it_rotates_every_rewrite_that_left_is_on_the_log_once(
    sync: str, tmp_path: Path
) -> None:
    seed = time.time_ns()
    choose = random.Random(seed)
    log = tmp_path / "rewrites.jsonl"
    seen: set[str] = set()
    async with mock() as upstream:
        for turn in range(TURNS):
            audit = {"path": "rewrites.jsonl", "sync": sync, "timeout": "5s", "keep": 1000}
            audit |= {"rotate": "64KiB", "compress": True}
            async with gateway_process(tmp_path, upstream.url, audit=audit) as running:
                clients = [
                    asyncio.ensure_future(patch_after_patch(running.port, f"{turn}-{n}", seed + n))
                    for n in range(20)
                ]
                rotated = len(names(tmp_path))
                await until(lambda: len(names(tmp_path)) > rotated)  # noqa: B023
                await asyncio.sleep(choose.uniform(0, 0.3))
                running.process.signal(signal.SIGKILL)
                await asyncio.gather(*clients)
                assert await running.process.exit() == -signal.SIGKILL
            for entry in upstream.ledger.of("PATCH"):
                seen.add(dict(entry.headers)[b"x-request-id"].decode())
            upstream.ledger.clear()

    found: list[str] = []
    for path in files_of(log):
        if path.suffix == ".gz":
            plain = path.with_suffix(".plain")
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            path = plain
        found += [one["request_id"] for one in audit_lines(path, killed=True) if one["event"] == "rewrite"]
    told = f"seed {seed}: {len(seen)} seen, {len(found)} recorded in {len(files_of(log))} files"
    assert len(files_of(log)) > TURNS, told
    assert not seen - set(found), told
    assert len(found) == len(set(found)), told


async def test_rotations_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rewrites.jsonl").write_bytes(b"\n" * 70_000)
    audit = {"path": "rewrites.jsonl", "rotate": "64KiB", "keep": 3}
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url, audit=audit) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        # The line of the start may come while what a process before left is put in order.
        async with asyncio.timeout(PATIENCE):
            while len(files_of(running.audit)) < 2:
                await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        told = (await admin.get("/metrics")).text
        assert "\ngateway_audit_rotations_total 1" in told
        assert "\ngateway_audit_rotated_files 1" in told
        assert "\ngateway_audit_compression_failures_total 0" in told


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        ('{path: "-", rotate: 1MiB}', "audit.rotate: expected a file as audit.path, got standard output"),
        ("{rotate: 1KiB}", "audit.rotate: Input should be greater than or equal to 65536, got '1KiB'"),
        ("{keep: 0}", "audit.keep: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_rotated_is_refused_by_check(audit: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(f"upstream: {{url: 'http://api.example'}}\naudit: {audit}\n", {})
    assert said in str(refused.value)
