"""
The audit log: one JSON object a line, in the order written. A rewrite is on it before it leaves (L1).

The rewrites that leave together go out in one write to the kernel, so that a SIGKILL at any moment loses
none that was recorded. What may be missing (an outcome) is held until the next write or the end of the
loop's turn, and goes out with it. Lines are ASCII whatever the input was: nothing can forge or break
one (L2).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import stat
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from gateway.errors import Unrecordable

# Seconds between two looks for a rotation. What is written meanwhile is on the rotated file.
LOOKED_FOR = 0.1


class Line(Struct, omit_defaults=True):
    """How each line begins. The log fills in `time`."""

    event: str
    time: str
    id: str


class Batch(Struct, eq=False):
    """Lines that are written together. `written`: they are on the log."""

    lines: list[bytes]
    written: bool = False


class _Gap(Struct, tag_field="event", tag="gap"):
    time: str
    lost: int


class AuditLog:
    def __init__(
        self,
        path: str,
        wall: Callable[[], float],
        soon: Callable[[Callable[[], None]], object] = lambda flush: flush(),
    ) -> None:
        """Writes to `path`, "-" being standard output. `wall` gives Unix seconds; `soon` is a loop's."""
        self._path = path
        self._wall = wall
        self._soon = soon
        self._held: list[bytes] = []
        self._batch = Batch([])
        self._regular = True
        self._half_line = False
        self._file: int | None = None
        self._identity: tuple[int, int] | None = None
        self._encode = msgspec.json.Encoder().encode
        self._looked = -math.inf
        self._second = -1
        self._stamp = ""
        self.lost = 0
        self.problem: str | None = None

    def append(self, line: Line) -> Batch:
        """For what may not go on before `commit`: several lines then cost one write."""
        line.time = self._time(self._wall())
        self._batch.lines.append(self._encoded(line))
        return self._batch

    def commit(self) -> None:
        """Raises Unrecordable when not all lines that were entered are on the log."""
        due, self._batch = self._batch, Batch([])
        self._put(b"".join(due.lines), self._wall())
        due.written = True

    def append_best_effort(self, line: Line) -> None:
        """For what may go on without its line (an outcome): a line that is lost is counted and reported."""
        held = self._held
        line.time = self._time(self._wall())
        held.append(self._encoded(line))
        if len(held) == 1:
            self._soon(self._flush)

    def check(self) -> str | None:
        """What is wrong with the log, or None. After a failure it tries again, by recording the gap."""
        try:
            if self.problem is not None:
                self._put(b"", self._wall())
            elif self._file is None:
                self._open()
        except Unrecordable as error:
            return error.detail
        return None

    def reopen(self) -> None:
        """After a rotation (SIGHUP). Lines written until now are in the old file."""
        self.close()

    def close(self) -> None:
        self._flush()
        self._close()

    def _close(self) -> None:
        if self._file is not None and self._path != "-":
            os.close(self._file)
        self._file = None

    def _encoded(self, record: Line | _Gap) -> bytes:
        try:
            line = self._encode(record)
        except UnicodeEncodeError:  # a lone surrogate
            line = b""
        if not line or not line.isascii() or b"\x7f" in line:
            line = json.dumps(msgspec.to_builtins(record)).encode("ascii")
        return line + b"\n"

    def _flush(self) -> None:
        if self._held:
            with contextlib.suppress(Unrecordable):  # counted as lost, and told by check()
                self._put(b"", self._wall())

    def _put(self, line: bytes, now: float) -> None:
        lost = len(self._held)
        if lost:
            line = b"".join([*self._held, line])
            self._held.clear()
        if self.problem is not None:
            # The first line after a failure tells a reader that some are missing before it.
            line = self._encoded(_Gap(self._time(now), self.lost)) + line
        try:
            if self._file is None or self._moved(now):
                self._open()
            assert self._file is not None
            if self._half_line:
                line = b"\n" + line
            for piece in [line] if self._regular else pieces(line, select.PIPE_BUF):
                written = os.write(self._file, piece)
                if written < len(piece):
                    self._take_back(written)
                    raise OSError(f"only {written} of {len(piece)} bytes were written")
        except OSError as error:
            self.lost += lost
            self.problem = f"the audit log {self._path} cannot be written: {error.strerror or error}"
            raise Unrecordable(self.problem) from error
        except Unrecordable:
            self.lost += lost
            raise
        self._half_line = False
        if self.problem is not None:
            self.problem, self.lost = None, 0

    def _open(self) -> None:
        self._close()
        try:
            if self._path == "-":
                self._file = 1
            else:
                self._file = os.open(
                    self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640
                )
            found = os.fstat(self._file)
        except OSError as error:
            self.problem = f"the audit log {self._path} cannot be opened: {error.strerror or error}"
            raise Unrecordable(self.problem) from error
        self._identity = (found.st_dev, found.st_ino)
        self._regular = stat.S_ISREG(found.st_mode)
        self._half_line = self._regular and found.st_size > 0 and not self._ends_with_a_line()

    def _ends_with_a_line(self) -> bool:
        """
        Not where a SIGKILL came in the middle of a write: what follows is not to be read as one line with it.
        A log that may not be read is taken to be whole.
        """
        try:
            with open(self._path, "rb") as log:
                log.seek(-1, os.SEEK_END)
                return log.read(1) == b"\n"
        except OSError:
            return True

    def _moved(self, now: float) -> bool:
        """Rotated away or deleted: what is written to the old file might never be read."""
        if self._path == "-":
            return False
        assert self._file is not None
        if os.fstat(self._file).st_nlink == 0:
            return True
        if 0 <= now - self._looked < LOOKED_FOR:
            return False
        self._looked = now
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def _take_back(self, written: int) -> None:
        """A full disk took half a line: cut it off again, so that each line stays one object (L2)."""
        assert self._file is not None
        if self._regular and written:
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)

    def _time(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z"


def pieces(lines: bytes, limit: int) -> list[bytes]:
    """Whole lines, as many as `limit` bytes hold: so much goes into a pipe as a whole or not at all."""
    result = [b""]
    for line in lines.splitlines(keepends=True):
        if result[-1] and len(result[-1]) + len(line) > limit:
            result.append(b"")
        result[-1] += line
    return result
