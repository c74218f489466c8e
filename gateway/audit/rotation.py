"""
The audit log's own rotation, by threads: its file gets a dated name, and an empty file takes its place.

At any moment, that of a SIGKILL too, each line is in a file that `gateway audit` reads: the full file has its
second name before the empty one takes the first. Whoever writes goes on in the full one until it looks again,
so nobody waits. Several processes may rotate one log: who does holds a lock of the file at its path. What
fails leaves everything as it was, and is tried again. The newest of the rotated files is not compressed: it
may still be written or followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

RETRY = 5.0  # seconds until what failed is tried again
LAST = 1.0  # seconds that the end waits for a thread
PIECE = 256 * 1024
NICENESS = 10  # of the thread that compresses
# Milliseconds of UTC: no other rotation's names have so many digits, and none but ours are ever deleted.
NAMED = re.compile(r"-(\d{17})(|\.gz|\.gz\.tmp)")

log = logging.getLogger("gateway")


class _NotOurTurn(Exception):
    """Another process is at it, or the gateway ends."""


class Rotation:
    def __init__(
        self,
        path: str,
        size: int,
        keep: int,
        compress: bool,
        wall: Callable[[], float],
        *,
        synced: bool = False,
        retry: float = RETRY,
    ) -> None:
        """
        From `size` bytes on the file at `path` is rotated, and `keep` rotated ones are kept. `wall` gives
        Unix seconds. `synced`: the names are on the disk before anything is deleted.
        """
        self._path = os.path.realpath(path)
        self._size = size
        self._keep = keep
        self._compresses = compress
        self._wall = wall
        self._synced = synced
        self._retry = retry
        self._not_before = 0.0
        self._rotating = self._compressing = self._ending = False
        self._threads: list[threading.Thread] = []
        self._problems: dict[str, str] = {}
        self.rotated = self.failures = self.compression_failures = 0
        self.on_rotated: Callable[[], None] = lambda: None  # by the thread

    def begin(self) -> None:
        """What a process before left undone is put in order."""
        self._start(self._put_in_order)

    def look(self, size: int) -> None:
        """The log has so many bytes, says who writes it."""
        if size >= self._size and not self._rotating and time.monotonic() >= self._not_before:
            self._start(self._rotate)

    def end(self) -> None:
        """What is not compressed by now is left to the next process."""
        self._ending = True
        for thread in self._threads:
            thread.join(LAST)

    @property
    def busy(self) -> bool:
        return self._rotating or self._compressing

    def files(self) -> int:
        with contextlib.suppress(OSError):
            return len(self._numbers())
        return 0

    def _start(self, work: Callable[[], None]) -> None:
        self._rotating = True
        thread = threading.Thread(target=self._work, args=(work,), name="audit rotation", daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._drop_oldest()
            self._turn(f"the audit log {self._path} cannot be rotated, it goes on in the same file", None)
        except _NotOurTurn:
            pass
        except OSError as error:
            self.failures += 1
            self._turn(f"the audit log {self._path} cannot be rotated, it goes on in the same file", error)
            self._not_before = time.monotonic() + self._retry
        compresses = self._compresses and not self._compressing
        self._compressing = self._compressing or compresses
        self._rotating = False
        if compresses:
            self._compress_all()
            self._compressing = False

    def _turn(self, what: str, error: OSError | None) -> None:
        if error is not None and what not in self._problems:
            self._problems[what] = str(error.strerror or error)
            log.error("%s: %s", what, self._problems[what])
        elif error is None and self._problems.pop(what, None) is not None:
            log.warning("%s: that is over", what)

    # --- names

    def _numbers(self) -> dict[int, set[str]]:
        """Of each rotated file its endings: of one that was being compressed there are several."""
        folder, name = os.path.split(self._path)
        found: dict[int, set[str]] = {}
        for one in os.listdir(folder):
            if one.startswith(name) and (parts := NAMED.fullmatch(one, len(name))):
                found.setdefault(int(parts[1]), set()).add(parts[2])
        return dict(sorted(found.items()))

    def _name(self, number: int, ending: str = "") -> str:
        return f"{self._path}-{number:017}{ending}"

    def _next_number(self) -> int:
        """Later than all there are, whatever the clock says."""
        now = self._wall()
        stamp = datetime.fromtimestamp(int(now), UTC).strftime("%Y%m%d%H%M%S")
        return max([int(f"{stamp}{int(now * 1000) % 1000:03}"), *(one + 1 for one in self._numbers())])

    # --- rotating

    @contextlib.contextmanager
    def _locked(self) -> Iterator[os.stat_result]:
        """The file at the path: no other process gives it another name meanwhile."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(file)
            if not os.path.samestat(found, os.stat(self._path)):
                raise _NotOurTurn
            yield found
        except BlockingIOError:
            raise _NotOurTurn from None
        finally:
            os.close(file)

    def _put_in_order(self) -> None:
        with self._locked() as found:
            self._undo_half_a_rotation(found)

    def _undo_half_a_rotation(self, found: os.stat_result) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}.next")
        for number, endings in self._numbers().items():
            name = self._name(number)
            # Another process may have compressed or dropped it meanwhile, without this lock.
            with contextlib.suppress(FileNotFoundError):
                if "" in endings and os.path.samestat(found, os.stat(name)):
                    os.unlink(name)

    def _rotate(self) -> None:
        with self._locked() as found:
            if found.st_size < self._size:
                return  # another process was here first
            self._undo_half_a_rotation(found)
            empty = f"{self._path}.next"
            file = os.open(empty, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            try:
                os.fchmod(file, found.st_mode & 0o7777)
            finally:
                os.close(file)
            name = self._name(self._next_number())
            try:
                os.link(self._path, name)
                os.replace(empty, self._path)
            except OSError:
                self._undo_half_a_rotation(found)
                raise
            self._sync_names()
        self.rotated += 1
        self.on_rotated()

    def _sync_names(self) -> None:
        if self._synced:
            folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _drop_oldest(self) -> None:
        for number, endings in list(self._numbers().items())[: -self._keep]:
            for ending in endings:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name(number, ending))

    # --- compressing

    def _compress_all(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        what = f"the rotated files of {self._path} cannot be compressed, they stay as they are"
        try:
            for number, endings in list(self._numbers().items())[:-1]:
                if "" in endings:
                    self._compress(self._name(number))
                elif ".gz.tmp" in endings:  # its file was deleted meanwhile
                    os.unlink(self._name(number, ".gz.tmp"))
            self._turn(what, None)
        except _NotOurTurn:
            pass
        except FileNotFoundError:
            pass  # deleted meanwhile, as one too many
        except OSError as error:
            self.compression_failures += 1
            self._turn(what, error)

    def _compress(self, name: str) -> None:
        unfinished = f"{name}.gz.tmp"
        with open(name, "rb") as plain, open(unfinished, "ab") as packed:
            try:
                fcntl.flock(packed, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _NotOurTurn from None
            try:
                packed.truncate(0)
                found = os.fstat(plain.fileno())
                with gzip.GzipFile("", "wb", 6, packed, found.st_mtime) as file:
                    while piece := plain.read(PIECE):
                        file.write(piece)
                        if self._ending:
                            raise _NotOurTurn
                packed.flush()
                os.fchmod(packed.fileno(), found.st_mode & 0o7777)
                os.fsync(packed.fileno())
                # `--since` leaves out files by their time.
                os.utime(unfinished, ns=(found.st_atime_ns, found.st_mtime_ns))
                os.rename(unfinished, f"{name}.gz")
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(unfinished)
            self._sync_names()
            if os.fstat(plain.fileno()).st_size == plain.tell():  # else it is done again
                os.unlink(name)
