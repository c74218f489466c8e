"""Which refusals are said in the log, and that a flood of them is a line every few seconds."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import BadRequest, HeadTooLarge
from gateway.server.line_limit import LineLimit
from gateway.server.refusal_log import RefusalLog
from tests.support.virtual import in_virtual_time


def test_the_first_is_said_and_the_others_are_counted() -> None:
    limit = LineLimit(every=10.0)
    assert [limit.admits("a", now) for now in (0.0, 1.0, 9.0)] == [True, False, False]
    assert limit.due("a") == 10.0
    assert limit.unsaid("a", 10.0) == 2
    assert limit.due("a") is None
    assert not limit.admits("a", 12.0), "ten seconds from the last line, whatever it said"
    assert limit.due("a") == 20.0


def test_after_a_quiet_time_the_next_is_a_first_again() -> None:
    limit = LineLimit(every=10.0)
    assert limit.admits("a", 0.0)
    assert limit.admits("a", 10.0)


def test_what_was_counted_is_told_before_another_is_said() -> None:
    limit = LineLimit(every=10.0)
    limit.admits("a", 0.0)
    limit.admits("a", 1.0)
    assert not limit.admits("a", 11.0)
    assert limit.unsaid("a", 11.0) == 2


def test_each_cause_has_lines_of_its_own() -> None:
    limit = LineLimit(every=10.0)
    assert limit.admits("a", 0.0)
    assert limit.admits("b", 0.0)


@in_virtual_time
async def test_a_flood_is_a_line_at_once_and_one_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    log = RefusalLog()
    for _ in range(84):
        log.refused(BadRequest("no target"), "192.0.2.1:1")
        await asyncio.sleep(0.3)
    log.refused(HeadTooLarge("long"), "192.0.2.1:1")
    log.aborted("stalled", "192.0.2.1:1")
    await asyncio.sleep(60)
    assert [record.getMessage() for record in caplog.records] == [
        "refused: bad-request: no target; client 192.0.2.1:1",
        "refused: bad-request: 33 more in the last 10 s",
        "refused: bad-request: 33 more in the last 10 s",
        "refused: head-too-large: long; client 192.0.2.1:1",
        "connection aborted: stalled; client 192.0.2.1:1",
        "refused: bad-request: 17 more in the last 10 s",
    ]


@in_virtual_time
async def test_what_a_stranger_said_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    RefusalLog().refused(BadRequest("a\r\nfake line\x1b[31m" + "x" * 5000), "192.0.2.1:1")
    (record,) = caplog.records
    assert "a\\r\\nfake line\\x1b[31mxxx" in record.getMessage()
    assert len(record.getMessage()) < 500
