"""
The audit log: one JSON object a line, in the order written. A rewrite is on it before it leaves (L1).

The rewrites that leave together go out in one write to the kernel, so that a SIGKILL at any moment loses
none that was recorded. What may be missing (an outcome) is held until the next write or the end of the
loop's turn, and goes out with it. Lines are ASCII whatever the input was: nothing can forge or break
one (L2).

A file is written by the loop itself: one write is cheaper than any way to wait for one. What may keep a
writer waiting (a pipe, a socket, a terminal; a disk, where each rewrite is to be synced) is written by a
thread: calls wait for it (`recorded`), the loop does not, and what took longer than `timeout` counts as not
written. A thread, and not O_NONBLOCK: that would be set for all who share standard output with this process,
and does nothing for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import select
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import msgspec
from msgspec import Struct

from gateway.audit.rotation import Rotation
from gateway.audit.writer_thread import WriterThread
from gateway.errors import Unrecordable

# Seconds between two looks for a rotation. What is written meanwhile is on the rotated file.
LOOKED_FOR = 0.1
# Seconds in which another process has written the line that it is in the middle of.
WRITTEN_IN = 0.005
# Bytes that must have room after a failure: what a short line finds is no room for a rewrite.
ROOM = 4096


class Line(Struct, omit_defaults=True):
    """How each line begins. The log fills in `time`."""

    event: str
    time: str
    id: str


class Batch(Struct, eq=False):
    """
    Lines that are written together. `problem`: why they are not on the log, in time. The rest is for a log
    that waits: how many lines may be lost, whether one may not, and who waits until it is over.
    """

    lines: list[bytes]
    spare: int = 0
    needed: bool = False
    over: asyncio.Future[None] | None = None
    problem: str | None = None

    def end(self) -> None:
        if self.over is not None and not self.over.done():
            self.over.set_result(None)


class _Gap(Struct, tag_field="event", tag="gap"):
    time: str
    lost: int


class AuditLog:
    def __init__(
        self,
        path: str,
        wall: Callable[[], float],
        soon: Callable[[Callable[[], None]], object] = lambda flush: flush(),
        *,
        timeout: float = 0.25,
        synced: bool = False,
        sync: Callable[[int], None] = os.fdatasync,
        key: bytes | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        """
        Writes to `path`, "-" being standard output. `wall` gives Unix seconds; `soon` is a loop's. With
        `synced` a rewrite is recorded when `sync` has returned. `key` is that of the digests; without one
        they have one of their own. `rotation` is told how large the file is.
        """
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
        self._rotation = rotation
        if rotation is not None:
            rotation.on_rotated = self._look_again
        self._second = -1
        self._millisecond = -1
        self._stamp = self._said = ""
        self.lost = 0  # since the log last could be written
        self.lost_in_all = self.written = self.failures = 0
        # Told the seconds that a write took, by the thread where the log waits.
        self.on_write: Callable[[float], None] = lambda seconds: None
        self.problem: str | None = None
        # Told when the log begins to fail, and when it is well again: with what is wrong, and how many lines
        # it lost.
        self.on_turn: Callable[[str | None, int], None] | None = None
        self.waits = synced or _may_wait(path)
        self._timeout = timeout
        self._synced = synced
        self._sync = sync
        self._thread = WriterThread()
        self._writing: Batch | None = None  # by the thread, whose the file is meanwhile
        self._scheduled = False
        self._reopen = False
        # RFC 2104, its two halves of the key hashed once and not for each body.
        padded = (key or secrets.token_bytes(32)).ljust(64, b"\0")
        if len(padded) > 64:
            raise ValueError("the key of the digests has at most 64 bytes")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def digest(self, body: bytes) -> str:
        """HMAC-SHA-256: nobody without the key can find a short body by trying what it might be (L3)."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(body)
        outer.update(inner.digest())
        return outer.hexdigest()

    def append(self, line: Line) -> Batch:
        """For what may not go on before `commit`: several lines then cost one write."""
        self._batch.lines.append(self._timed(line))
        return self._batch

    def commit(self) -> None:
        """Raises Unrecordable when not all lines that were entered are on the log."""
        if self.waits:  # since it was opened anew: what is there now would keep the loop waiting
            self._start_soon()
            raise Unrecordable(f"the audit log {self._path} is no file any more")
        due, self._batch = self._batch, Batch([])
        try:
            self._put(b"".join(due.lines), self._wall())
        except Unrecordable as error:
            due.problem = error.detail
            raise

    def append_best_effort(self, line: Line) -> None:
        """For what may go on without its line (an outcome): a line that is lost is counted and reported."""
        if self.waits:
            self._spare(self._timed(line))
            return
        held = self._held
        held.append(self._timed(line))
        if len(held) == 1:
            self._soon(self._flush)

    def check(self) -> str | None:
        """
        What is wrong with the log, or None. After a failure it tries again, by recording the gap; of a log
        that waits it says what came of it the next time.
        """
        if self.waits:
            if self.problem is not None or self._file is None:
                self._start_soon()
            return self.problem
        if self.problem is not None or self._file is None:
            with contextlib.suppress(Unrecordable):
                self._put(b"", self._wall())
        return self.problem

    async def begin(self) -> str | None:
        """Opens the log. Returns what is wrong with it."""
        if self.waits:
            with contextlib.suppress(Unrecordable):
                await self._over()
        else:
            self.check()
        if self._half_line:
            # Another process may be in the middle of it: the first line looks once more.
            await asyncio.sleep(WRITTEN_IN)
        if self._rotation is not None and self._regular and self.problem is None:
            self._rotation.begin()
        return self.problem

    async def end(self) -> None:
        """Closes the log, when all lines are on it or can't be written."""
        while self.waits and not self._stuck and (self._writing or self._batch.lines):
            with contextlib.suppress(Unrecordable):
                await self._over()
        self.close()
        if self._rotation is not None:
            self._rotation.end()

    def reopen(self) -> None:
        """After a rotation (SIGHUP). Lines written until now are in the old file."""
        if self.waits:
            self._reopen = True
        else:
            self.close()

    def close(self) -> None:
        if self._writing is None:
            self._flush()
            self._thread.stop()
            self._close()

    def _close(self) -> None:
        if self._file is not None and self._path != "-":
            os.close(self._file)
        self._file = None

    # --- a log that waits

    async def recorded(self) -> None:
        """As `commit`, and waits: those who come while a write is under way share the next one."""
        self._batch.needed = True
        await self._over()

    async def _over(self) -> None:
        if self._stuck:
            self._batch.problem, self._batch = self.problem, Batch([])
            raise Unrecordable(self.problem)
        batch = self._batch
        if batch.over is None:
            batch.over = asyncio.get_running_loop().create_future()
        self._start_soon()
        await asyncio.shield(batch.over)
        if batch.problem is not None:
            raise Unrecordable(batch.problem)

    @property
    def _stuck(self) -> bool:
        """The thread has not come back in time: nothing waits for it any more."""
        return self._writing is not None and self._writing.problem is not None

    def _lose(self, lines: int) -> None:
        self.lost += lines
        self.lost_in_all += lines

    def _spare(self, *lines: bytes) -> None:
        if self._stuck:
            self._lose(len(lines))
            return
        self._batch.lines.extend(lines)
        self._batch.spare += len(lines)
        self._start_soon()

    def _start_soon(self) -> None:
        if self._writing is None and not self._scheduled:
            self._scheduled = True
            self._soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        due, self._batch = self._batch, Batch([])
        self._writing = due
        lines, now, patience = b"".join(due.lines), self._wall(), self._timeout
        if self.problem is not None:
            lines = self._gap(now, lines)
            patience = 0.0  # who comes now is not to wait for what was not to be had
        reopen, self._reopen = self._reopen, False
        job = partial(self._write_in_thread, lines, now, patience, reopen, due.needed and self._synced)
        timer = asyncio.get_running_loop().call_later(self._timeout, self._overdue, due)
        self._thread.run(job, partial(self._ended, due, self.lost, timer))

    def _overdue(self, due: Batch) -> None:
        """None of those who wait may leave, though the lines may still come to be on the log."""
        late, self._batch = self._batch, Batch([])
        self._turn(f"the audit log {self._path} cannot be written: it took longer than audit.timeout")
        due.problem = late.problem = self.problem
        self._lose(late.spare)
        due.end()
        late.end()

    def _ended(self, due: Batch, told: int, timer: asyncio.TimerHandle, problem: Unrecordable | None) -> None:
        """`told`: the lost lines that were told of."""
        timer.cancel()
        self._writing = None
        if problem is not None:
            self._lose(due.spare)
            due.problem = problem.detail
            self._turn(due.problem)
        else:
            self.lost -= told
            if not self.lost:
                self._turn(None, told)
        due.end()
        if self._batch.lines or self._batch.over is not None or (problem is None and self.lost):
            self._start_soon()

    def _write_in_thread(self, lines: bytes, now: float, patience: float, reopen: bool, synced: bool) -> None:
        if reopen:
            self._close()
        self._write(lines, now, patience)
        if synced and self._regular and lines:
            assert self._file is not None
            try:
                self._sync(self._file)
            except OSError as error:
                self.failures += 1
                raise Unrecordable(
                    f"the audit log {self._path} cannot be synced: {error.strerror or error}"
                ) from error

    # --- lines and the file

    def _timed(self, line: Line) -> bytes:
        """The line as it is written, with the time."""
        now = self._wall()
        line.time = self._said if int(now * 1000) == self._millisecond else self._time(now)
        try:
            text = self._encode(line)
            if text.isascii() and b"\x7f" not in text:
                return text + b"\n"
        except UnicodeEncodeError:  # a lone surrogate
            pass
        return json.dumps(msgspec.to_builtins(line)).encode("ascii") + b"\n"

    def _flush(self) -> None:
        held = self._held
        if held and self.waits:
            self._spare(*held)
            held.clear()
        elif held:
            with contextlib.suppress(Unrecordable):  # counted as lost, and told by check()
                self._put(b"", self._wall())

    def _gap(self, now: float, lines: bytes) -> bytes:
        """The first line after a failure tells a reader that some are missing before these."""
        gap = self._encode(_Gap(self._time(now), self.lost))
        return gap[:-1].ljust(ROOM - 2 - len(lines)) + b"}\n" + lines

    def _put(self, line: bytes, now: float) -> None:
        lost = len(self._held)
        if lost:
            line = b"".join([*self._held, line])
            self._held.clear()
        if self.problem is not None:
            line = self._gap(now, line)
        try:
            self._write(line, now, 0.0)
        except Unrecordable as error:
            self._lose(lost)
            self._turn(error.detail)
            raise
        if self.problem is not None:
            lost, self.lost = self.lost, 0
            self._turn(None, lost)

    def _turn(self, problem: str | None, lost: int = 0) -> None:
        turned = (problem is None) != (self.problem is None)
        self.problem = problem
        if turned and self.on_turn is not None:
            self.on_turn(problem, lost)

    def _write(self, line: bytes, now: float, patience: float) -> None:
        """`patience`: the seconds in which what is no file may take it. Raises Unrecordable."""
        began = time.perf_counter()
        try:
            if self._file is None or self._moved(now):
                self._open()
            assert self._file is not None
            if not line:
                return
            lines = line.count(b"\n")
            if self._half_line and not (self._regular and self._ends_with_a_line()):
                line = b"\n" + line
            if self._regular:
                written = os.write(self._file, line)
                if written < len(line):
                    self._take_back(line[:written])
                    raise OSError(f"only {written} of {len(line)} bytes were written")
            else:
                until = time.monotonic() + patience
                for piece in pieces(line, select.PIPE_BUF):
                    self._write_piece(self._file, piece, until)
        except OSError as error:
            self.failures += 1
            raise Unrecordable(
                f"the audit log {self._path} cannot be written: {error.strerror or error}"
            ) from error
        except Unrecordable:
            self.failures += 1
            raise
        self._half_line = False
        self.written += lines
        self.on_write(time.perf_counter() - began)

    def _write_piece(self, file: int, piece: bytes, until: float) -> None:
        """So much at a time as a pipe that is ready takes without waiting, should it be one that blocks."""
        ready = select.poll()
        ready.register(file, select.POLLOUT)
        left = piece
        while left:
            seconds = max(0.0, until - time.monotonic())
            if not ready.poll(math.ceil(seconds * 1000)):
                raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")
            left = left[os.write(file, left[: select.PIPE_BUF]) :]
            self._half_line = bool(left)

    def _open(self) -> None:
        self._close()
        try:
            if self._path == "-":
                self._file = 1
            else:
                # Without O_NONBLOCK the opening of a FIFO waits until somebody reads it.
                how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
                self._file = os.open(self._path, how, 0o640)
            found = os.fstat(self._file)
            self._regular = stat.S_ISREG(found.st_mode)
            if self._synced and self._regular and self._path != "-":
                _sync_name(self._path)
        except OSError as error:
            why = "nobody reads it" if error.errno == errno.ENXIO else error.strerror or error
            raise Unrecordable(f"the audit log {self._path} cannot be opened: {why}") from error
        before, self._identity = self._identity, (found.st_dev, found.st_ino)
        if before is None:
            self._half_line = self._regular and found.st_size > 0 and not self._ends_with_a_line()
        elif not self._regular or before != self._identity:
            # In a file that has just taken another's place half a line is one that somebody is writing.
            self._half_line = False
        # Once it waits it goes on so: the thread may be at it.
        self.waits = self.waits or (not self._regular and not _never_waits(found.st_mode, self._file))

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
        if (found.st_dev, found.st_ino) != self._identity:
            return True
        if self._rotation is not None and self._regular:
            self._rotation.look(found.st_size)
        return False

    def _look_again(self) -> None:
        self._looked = -math.inf

    def _take_back(self, half: bytes) -> None:
        """
        A full disk took half a line: it becomes an empty one, so that all others stay one object each (L2).
        It is not cut off, as what another process has written behind it may have left (L1).
        """
        assert self._file is not None
        if not half:
            return
        self._half_line = True
        begins = os.lseek(self._file, 0, os.SEEK_CUR) - len(half)
        # By another descriptor: with O_APPEND the offset counts for nothing (pwrite(2)).
        again = os.open(f"/dev/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            # It is not there where who shares standard output has moved the offset since.
            if os.pread(again, len(half), begins) == half:
                os.pwrite(again, b" " * (len(half) - 1) + b"\n", begins)
                self._half_line = False
        finally:
            os.close(again)

    def _time(self, now: float) -> str:
        self._millisecond = int(now * 1000)  # many lines are of one
        second, left = divmod(self._millisecond, 1000)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        self._said = f"{self._stamp}.{left:03d}Z"
        return self._said


def _may_wait(path: str) -> bool:
    """Whether a write to what is there now may take as long as somebody else likes."""
    try:
        if path == "-":
            return not _never_waits(os.fstat(1).st_mode, 1)
        mode = os.stat(path).st_mode
        if not stat.S_ISCHR(mode):
            return not stat.S_ISREG(mode)
        device = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False  # there is nothing yet
    try:
        return os.isatty(device)
    finally:
        os.close(device)


def _never_waits(mode: int, file: int) -> bool:
    """A file, or a device that is no terminal (`/dev/null`)."""
    return stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(file))


def _sync_name(path: str) -> None:
    """A new file's lines are lost with the machine if its name is, whatever was synced of it."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pieces(lines: bytes, limit: int) -> list[bytes]:
    """Whole lines, as many as `limit` bytes hold: so much goes into a pipe as a whole or not at all."""
    result = [b""]
    for line in lines.splitlines(keepends=True):
        if result[-1] and len(result[-1]) + len(line) > limit:
            result.append(b"")
        result[-1] += line
    return result
