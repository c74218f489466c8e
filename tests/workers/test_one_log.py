"""What several processes write to one file or pipe: each line stays whole, whatever happens to another's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.audit.reader import Reader, Wanted
from gateway.audit.writer import AuditLog, Line
from gateway.errors import Unrecordable

# Writes lines of many lengths to standard output, each of one letter.
WRITER = """
import sys
from gateway.admin.line_writer import LineWriter
letter = sys.argv[1].encode()
writer = LineWriter(file=1, most=2**30)
for number in range(3000):
    writer.write(letter * (1 + number * 37 % 3000) + b"\\n")
writer.close()
"""


UNLIMITED = resource.getrlimit(resource.RLIMIT_FSIZE)
THEIRS = b'{"event":"rewrite","time":"t","id":"theirs"}\n'


class Note(Line):
    text: str


class Overtaken(AuditLog):
    """Of one write only a part is taken, and before that is taken back another process writes behind it."""

    def _take_back(self, written: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
        with open(self._path, "ab") as log:
            log.write(THEIRS)
        super()._take_back(written)


def test_half_a_line_on_a_full_disk_is_taken_back_without_what_another_wrote_behind_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rewrites.jsonl"
    log = Overtaken(str(path), time.time, shared=True)
    log.append(Note("rewrite", "", "first", "x"))
    log.commit()
    log.append(Note("rewrite", "", "half", "x" * 50))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, UNLIMITED[1]))
    with pytest.raises(Unrecordable, match="only 40 of"):
        log.commit()
    log.append(Note("rewrite", "", "last", "x"))
    log.commit()
    log.close()

    lines = path.read_bytes().splitlines(keepends=True)
    assert THEIRS in lines
    reader = Reader(Wanted())
    found = [call for line in lines for call in reader.read(line)] + list(reader.rest())
    assert [call.decision.id for call in found] == ["first", "theirs", "last"]
    assert reader.damaged == 0


def test_lines_of_several_processes_on_one_pipe_are_not_mixed() -> None:
    read, write = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, letter], stdout=write) for letter in ("a", "b")
    ]
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(lines) == 6000
    assert [line for line in lines if len(set(line)) != 1] == []
