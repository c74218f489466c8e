"""
The files of one audit log: rotated and compressed ones first, and line by line what is in them.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import IO

PIECE = 2**20
LARGE = 64 * 2**20  # bytes from which on progress is told
# How a rotated file is called after the log: `.1`, `.2.gz`, `-20261126`, `-20261126.xz`.
ROTATED = re.compile(r"[.-](\d+)(\.gz|\.bz2|\.xz)?")
OPENERS: dict[str, Callable[[BufferedReader], BufferedIOBase]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def files_of(log: Path) -> list[Path]:
    """
    Oldest first, the log itself last. What is there twice while a gateway rotates is read once: a file with
    two names, or one that is just compressed.
    """
    log = Path(os.path.realpath(log))
    dated: list[tuple[int, Path]] = []
    numbered: list[tuple[int, Path]] = []
    for name in os.listdir(log.parent):
        found = ROTATED.fullmatch(name.removeprefix(log.name)) if name.startswith(log.name) else None
        if found is not None:
            # Numbers that rotations give are small, and the largest is the oldest; dates are large.
            where = dated if len(found[1]) >= 8 else numbered
            where.append((int(found[1]), log.parent / name))
    old = [path for _, path in sorted(dated)] + [path for _, path in sorted(numbered, reverse=True)]
    seen: dict[object, Path] = {}
    for path in [*old, log]:
        with contextlib.suppress(FileNotFoundError):
            file = os.stat(path)
            seen[file.st_dev, file.st_ino] = path
    names = {path.name for path in seen.values()}
    return [path for path in seen.values() if not (path.suffix in OPENERS and path.stem in names)]


class LogFiles:
    """`broken` names the files that can't be read to their end."""

    def __init__(self, paths: list[Path], since: float | None, told: IO[str] | None) -> None:
        """
        Files that were last written before `since` (Unix seconds) are left out. Progress goes to `told`, if
        there is much to read.
        """
        self._paths: list[tuple[Path, BufferedReader | None]] = []
        self._size = 0
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if since is None or found.st_mtime >= since - 60:
                    # A rotation takes its name from the log: it is opened before there is one.
                    opened = open(path, "rb") if path == paths[-1] else None  # noqa: SIM115
                    self._paths.append((path, opened))
                    self._size += found.st_size
        self._told = told if self._size >= LARGE else None
        self._percent = -1
        self.broken: list[str] = []

    def lines(self) -> Iterator[bytes]:
        done = 0
        for path, opened in self._paths:
            try:
                path, raw = (path, opened) if opened is not None else _open(path)
            except FileNotFoundError:
                continue  # deleted meanwhile, as one too many
            with raw:
                file = OPENERS[path.suffix](raw) if path.suffix in OPENERS else raw
                try:
                    while piece := file.readlines(PIECE):
                        yield from piece
                        self._tell(done + raw.tell())
                except BROKEN:
                    self.broken.append(path.name)
                except OSError as error:
                    if error.errno is not None:
                        raise
                    self.broken.append(path.name)  # bz2 says so of what is no bz2
                done += raw.seek(0, os.SEEK_END)
        if self._told is not None:
            self._told.write("\r\x1b[K")

    def _tell(self, done: int) -> None:
        percent = done * 100 // max(1, self._size)
        if self._told is not None and percent != self._percent:
            self._percent = percent
            bar = "#" * (percent * 30 // 100)
            self._told.write(f"\r[{bar:<30}] {percent:3} % of {self._size / 2**20:.0f} MiB")
            self._told.flush()


def _open(path: Path) -> tuple[Path, BufferedReader]:
    """Under its other name, if it was compressed meanwhile."""
    try:
        return path, open(path, "rb")
    except FileNotFoundError:
        path = path.with_name(f"{path.name}.gz")
        return path, open(path, "rb")


def last_lines(log: Path, size: int) -> tuple[list[bytes], int]:
    """The whole lines in the last `size` bytes of a log, and where they end."""
    with open(log, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        begin = file.seek(max(0, end - size - 1))
        piece = file.read()
    if begin:
        piece = piece[piece.find(b"\n") + 1 :]
    whole = piece[: piece.rfind(b"\n") + 1]
    return whole.splitlines(keepends=True), end - (len(piece) - len(whole))


def _nap() -> bool:
    time.sleep(0.2)
    return True


def followed(log: Path, offset: int, wait: Callable[[], bool] = _nap) -> Iterator[bytes]:
    """
    Whole lines as they come, across rotations and truncations, while `wait` says to go on. It is called when
    there is nothing new.
    """
    going = True
    rest = b""
    while going:
        try:
            file = open(log, "rb")  # noqa: SIM115
        except FileNotFoundError:
            going = wait()
            continue
        with file:
            file.seek(offset)
            offset = 0
            left = moved = False
            while True:
                if piece := file.read(PIECE):
                    *whole, rest = (rest + piece).split(b"\n")
                    yield from (line + b"\n" for line in whole)
                elif left or not going:
                    break
                else:
                    # Who writes may go on in the old file for a moment: it is left a look later.
                    left = moved
                    going = wait()
                    moved = _moved(log, file)
                    if not moved and os.fstat(file.fileno()).st_size < file.tell():
                        file.seek(0)
                        rest = b""


def _moved(log: Path, file: IO[bytes]) -> bool:
    """What the old file got until now is read before the new one."""
    try:
        return not os.path.samestat(os.stat(log), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def standard_input() -> Iterator[bytes]:
    return iter(sys.stdin.buffer)
