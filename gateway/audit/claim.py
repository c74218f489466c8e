"""
Who writes an audit log: a lock of a file beside it, held as long as the gateway runs.

The log itself won't do: a rotation puts another file in its place. Whoever starts several processes on one
log holds the lock for all of them. The kernel ends it with the process, however that ends; what the file says
is only to tell whom to look for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat


class Claim:
    """`holder`: who else has the log, None if nobody has. `problem`: why that can't be told."""

    def __init__(self, path: str) -> None:
        self._log = path
        self._path = f"{os.path.realpath(path)}.lock"
        self._file: int | None = None
        self.holder: str | None = None
        self.problem: str | None = None

    def take(self) -> bool:
        """Whether the log is ours alone. What is no file may have as many writers as it likes."""
        if self._file is not None or not _is_a_file(self._log):
            return True
        self.holder = self.problem = None
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            self.problem = str(error.strerror or error)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it may have deleted it since it was opened here.
            if not os.path.samestat(os.fstat(file), os.stat(self._path)):
                raise FileNotFoundError
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            self.holder = _told(file)
            os.close(file)
            return False
        except FileNotFoundError:
            os.close(file)
            return self.take()
        except OSError as error:  # a full disk keeps the pid from being told, or there are no locks here
            self.problem = str(error.strerror or error)
            os.close(file)
            return False
        self._file = file
        return True

    def end(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._file)
            self._file = None


def _is_a_file(path: str) -> bool:
    if path == "-":
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # it will be


def _told(file: int) -> str:
    said = os.pread(file, 200, 0).decode("ascii", "replace").strip()
    return f"process {said}" if said and said.isprintable() else "another process"
