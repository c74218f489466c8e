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
from tests.support.audit_lines import audit_lines
from tests.support.clock import Clock

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

    def _take_back(self, half: bytes) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
        self.overtake()
        super()._take_back(half)

    def overtake(self) -> None:
        with open(self._path, "ab") as log:
            log.write(THEIRS)


class OvertakenOnOneDescriptor(Overtaken):
    """The other one has inherited it, as standard output is, so that the two have one offset."""

    def overtake(self) -> None:
        assert self._file is not None
        os.write(self._file, THEIRS)


@pytest.mark.parametrize(("overtaken", "damaged"), [(Overtaken, 0), (OvertakenOnOneDescriptor, 1)])
def test_half_a_line_on_a_full_disk_is_taken_back_without_what_another_wrote_behind_it(
    tmp_path: Path, overtaken: type[Overtaken], damaged: int
) -> None:
    path = tmp_path / "rewrites.jsonl"
    log = overtaken(str(path), time.time)
    log.append(Note("rewrite", "", "first", "x"))
    log.commit()
    log.append(Note("rewrite", "", "half", "x" * 50))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, UNLIMITED[1]))
    with pytest.raises(Unrecordable, match="only 40 of"):
        log.commit()
    log.append(Note("rewrite", "", "last", "x"))
    log.commit()
    log.close()

    reader = Reader(Wanted())
    lines = path.read_bytes().splitlines(keepends=True)
    found = [call for line in lines for call in reader.read(line)] + list(reader.rest())
    assert [call.decision.id for call in found] == ["first", "theirs", "last"]
    assert reader.damaged == damaged


class Met(AuditLog):
    """Opens a file to which another process is writing a line, which is whole a moment later."""

    def _open(self) -> None:
        super()._open()
        if Path(self._path).read_bytes() == THEIRS[:20]:
            with open(self._path, "ab") as log:
                log.write(THEIRS[20:])


async def test_who_opens_a_log_amid_anothers_write_puts_no_empty_line_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    path.write_bytes(THEIRS[:20])
    clock = Clock()
    log = Met(str(path), clock)
    assert await log.begin() is None
    log.append(Note("rewrite", "", "first", "x"))
    log.commit()
    path.rename(tmp_path / "rewrites.jsonl.1")
    path.write_bytes(THEIRS[:20])
    clock.now += 1
    log.append(Note("rewrite", "", "second", "x"))
    log.commit()
    await log.end()

    for name, ours in {"rewrites.jsonl.1": "first", "rewrites.jsonl": "second"}.items():
        assert [line["id"] for line in audit_lines(tmp_path / name)] == ["theirs", ours]


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
