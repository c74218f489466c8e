"""A log that is renamed, deleted, truncated or reopened loses no line."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gateway.audit.writer import AuditLog, Line
from tests.support.audit_lines import audit_lines
from tests.support.clock import Clock
from tests.support.gateways import BODY, PARTICIPANT, TOKEN
from tests.support.mocking import mocked


async def test_a_log_that_was_renamed_or_deleted_is_made_anew_and_no_line_is_lost(tmp_path: Path) -> None:
    path, old, clock = tmp_path / "rewrites.jsonl", tmp_path / "rewrites.jsonl.1", Clock()
    async with mocked(audit=str(path), wall=clock) as (_, _, client):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        path.rename(old)
        clock.now += 0.2
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in audit_lines(old)] == ["rewrite", "outcome"]
        assert [line["event"] for line in audit_lines(path)] == ["rewrite", "outcome"]
        path.unlink()
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in audit_lines(path)] == ["rewrite", "outcome"]
        # copytruncate: the file stays the same, and is written from its new end.
        os.truncate(path, 0)
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in audit_lines(path)] == ["rewrite", "outcome"]
        # logrotate's `create`: another file stands at the path.
        path.rename(old)
        path.touch()
        clock.now += 0.2
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in audit_lines(path)] == ["rewrite", "outcome"]
        # A clock that was set back does not keep it from looking.
        path.rename(old)
        clock.now -= 500
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert [line["event"] for line in audit_lines(path)] == ["rewrite", "outcome"]


async def test_a_rotation_while_calls_are_under_way_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    async with mocked(audit=str(path)) as (upstream, running, client):

        async def rotate() -> None:
            for number in range(10):
                await asyncio.sleep(0.01)
                if path.exists():
                    path.rename(tmp_path / f"old-{number}")
                running.gateway.audit.reopen()

        calls = [client.patch(PARTICIPANT, content=BODY, headers=TOKEN) for _ in range(100)]
        await asyncio.gather(rotate(), *calls)

        lines = [line for name in os.listdir(tmp_path) for line in audit_lines(tmp_path / name)]
        assert len(upstream.ledger.of("PATCH")) == 100
        assert sum(line["event"] == "rewrite" for line in lines) == 100
        assert sum(line["event"] == "outcome" for line in lines) == 100


def test_reopen_ends_the_old_file_and_opens_the_path_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    audit = AuditLog(str(path), lambda: 0.0)
    audit.append(Line("a", "", "1"))
    audit.commit()
    kept = os.open(path, os.O_RDONLY)
    audit.reopen()
    audit.append(Line("b", "", "2"))
    audit.commit()
    audit.close()
    audit.close()
    assert os.fstat(kept).st_nlink == 1
    os.close(kept)
    assert [line["event"] for line in audit_lines(path)] == ["a", "b"]
    assert audit_lines(path)[0]["time"] == "1970-01-01T00:00:00.000Z"
    assert path.stat().st_mode & 0o007 == 0  # not for everybody on the machine
