"""The writer alone: whole lines whatever they say, none torn in a pipe, and lost ones are counted."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.writer import AuditLog, Line, pieces
from gateway.errors import Unrecordable
from tests.support.audit_lines import audit_lines


class Said(Line):
    it: dict[str, Any]


async def test_lines_that_go_into_a_pipe_together_are_never_torn(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16 * 1024)
    os.write(writer, b"x" * 9_000 + b"\n")
    audit = AuditLog(str(path), lambda: 0.0, asyncio.get_running_loop().call_soon)
    assert await audit.begin() is None
    for number in range(20):
        audit.append(Said("rewrite", "", str(number), {"path": "/p" * 250}))

    with pytest.raises(Unrecordable):
        await audit.recorded()

    found = os.read(reader, 2**20).splitlines()[1:]
    assert 0 < len(found) < 20
    while await audit.begin() is not None:  # noqa: ASYNC110 - what was late may be under way
        await asyncio.sleep(0.01)
    audit.append(Said("rewrite", "", "later", {}))
    await audit.recorded()
    found += os.read(reader, 2**20).splitlines()
    lines = [json.loads(line) for line in found]
    *before, last = [line.get("id", line["event"]) for line in lines]
    assert last == "later"
    # What was late may have come to be on the log after all: then nothing is missing. Else a gap says so.
    whole = [str(number) for number in range(20)]
    assert before == whole if "gap" not in before else before != whole
    await audit.end()
    os.close(reader)
    os.close(writer)


def test_half_a_line_that_a_killed_process_left_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    path.write_bytes(b'{"event":"rewrite"}\n{"event":"rew')
    for _ in range(2):  # what the first has ended, the second leaves alone
        audit = AuditLog(str(path), lambda: 0.0)
        assert audit.check() is None
        audit.append(Said("rewrite", "", "later", {}))
        audit.commit()
        audit.close()

    first, half, *later = path.read_bytes().splitlines()
    assert (first, half) == (b'{"event":"rewrite"}', b'{"event":"rew')
    assert [json.loads(line)["id"] for line in later] == ["later", "later"]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 100))
def test_pieces_are_whole_lines_and_no_larger_than_they_must_be(sizes: list[int], limit: int) -> None:
    lines = [b"x" * size + b"\n" for size in sizes]
    found = pieces(b"".join(lines), limit)

    assert b"".join(found) == b"".join(lines)
    for piece in found:
        assert len(piece) <= limit or piece.count(b"\n") == 1
        assert not piece or piece.endswith(b"\n")


def test_lost_lines_are_counted_until_the_gap_is_on_the_log(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "log"
    audit = AuditLog(str(path), lambda: 0.0)
    for _ in range(3):
        audit.append_best_effort(Line("outcome", "", "1"))
    audit.append(Line("rewrite", "", "1"))
    with pytest.raises(Unrecordable):
        audit.commit()
    problem = audit.check()
    assert problem is not None
    assert str(path) in problem
    path.parent.mkdir()
    assert audit.check() is None
    assert audit.check() is None
    audit.close()
    assert [(line["event"], line["lost"]) for line in audit_lines(path)] == [("gap", 3)]


anything = st.text(st.characters(), max_size=40) | st.sampled_from(
    [
        "\r\n",
        "\x00",
        "\x7f",
        "\x85",
        "\u2028",
        "\u2029",
        "\ud800",
        "\udcff",
        '"}\n{"event":"rewrite"}',
        "\ufeff",
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(anything, anything, st.dictionaries(anything, anything | st.lists(anything), max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_text_is_recorded_each_line_is_one_object_that_says_it(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str, dict[str, Any]]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    audit = AuditLog(str(path), lambda: 1.5)
    for event, request_id, record in records:
        audit.append(Said(event, "", request_id, record))
        audit.commit()
    audit.close()
    assert all(0x20 <= byte < 0x7F for line in path.read_bytes().split(b"\n") for byte in line)
    found = [(line["event"], line["id"], line["it"]) for line in audit_lines(path)]
    assert found == [(event, request_id, dict(record)) for event, request_id, record in records]
