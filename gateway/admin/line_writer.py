"""
Lines for a terminal, a pipe or a file, written by a thread: whoever writes one never waits for who reads it.

What waits to be written is bounded. Lines past that are dropped and counted, and `told` says so.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable
from typing import Final

from gateway.audit.writer import pieces

MOST: Final = 2**20  # bytes that wait
PAUSE: Final = 0.02  # seconds between two writes: many lines cost one
PATIENCE: Final = 1.0  # seconds for what is left, at the end


class LineWriter:
    """
    `path` is a file that is appended to; without one `file` is written, a descriptor that stays open. `told`
    is called by the thread: with what is wrong, and with None when that is over; and how many were dropped.
    """

    def __init__(
        self,
        path: str | None = None,
        file: int = 2,
        most: int = MOST,
        told: Callable[[str | None, int], None] = lambda problem, dropped: None,
    ) -> None:
        self._path = path
        self._file = None if path is not None else file
        self._mixed = self._file is not None and _is_mixed(self._file)
        self._most = most
        self._told = told
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._lines: list[bytes] = []
        self._size = 0
        self._ends = self._reopens = self._failing = False
        self._half_line = False
        self.dropped = 0  # since that was told
        self.lost = 0  # in all
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """With its line feed."""
        with self._lock:
            if self._size + len(line) > self._most:
                self.dropped += 1
                self.lost += 1
                return
            self._size += len(line)
            self._lines.append(line)
            first = len(self._lines) == 1
        if first:
            self._start()

    def reopen(self) -> None:
        """After a rotation."""
        self._reopens = True
        self._start()

    def close(self) -> None:
        """What is left is written, within a moment. The thread is a daemon: it may hang on."""
        self._ends = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="lines", daemon=True)
            self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            ends = self._ends
            with self._lock:
                lines, self._lines = self._lines, []
                dropped, self.dropped = self.dropped, 0
            due = b"".join(lines)
            problem = self._write(due)
            with self._lock:
                self._size -= len(due)
            if problem is not None:
                with self._lock:
                    self.dropped += dropped + len(lines)
                    self.lost += len(lines)
                if not self._failing:
                    self._failing = True
                    self._told(problem, 0)
            elif dropped or (self._failing and lines):
                self._failing = False
                self._told(None, dropped)
            if ends:
                self._close()
                return
            time.sleep(PAUSE)

    def _write(self, due: bytes) -> str | None:
        """Says what is wrong."""
        try:
            if self._reopens:
                self._reopens = False
                self._close()
            if self._file is None:
                assert self._path is not None
                how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
                self._file = os.open(self._path, how, 0o640)
                os.set_blocking(self._file, True)
                self._mixed = _is_mixed(self._file)
            if due and self._half_line:
                due = b"\n" + due
            # A pipe takes so much as a whole: other workers may write their lines to it.
            for piece in pieces(due, select.PIPE_BUF) if self._mixed else [due]:
                left = memoryview(piece)
                while left:
                    left = left[os.write(self._file, left) :]
                    self._half_line = bool(left)
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _close(self) -> None:
        if self._path is not None and self._file is not None:
            os.close(self._file)
            self._file = None


def _is_mixed(file: int) -> bool:
    """Whether a long write may come in parts, between which another process's comes: a file's does not."""
    return not stat.S_ISREG(os.fstat(file).st_mode)
