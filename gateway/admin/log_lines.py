"""
How a record of the log becomes one line, as text or as JSON. No control character of anybody's reaches a
terminal.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

_encode = msgspec.json.Encoder().encode
COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}


def printable(text: str) -> str:
    """With what a terminal would act upon written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def coloured(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def json_line(said: dict[str, Any]) -> bytes:
    """In UTF-8 where all of it is printable, as nearly always; else in ASCII, with escapes."""
    try:
        line = _encode(said)
    except UnicodeEncodeError:  # a lone surrogate
        line = b"\x00"
    return line if line.decode().isprintable() else json.dumps(said).encode("ascii")


def stamp(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class TextLines(logging.Formatter):
    """One line a record; a traceback is indented below it."""

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        if self._colours and level in COLOURS:
            level = coloured(level, COLOURS[level])
        said = f"{stamp(record.created)} {level} {record.name}: {printable(record.getMessage())}"
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            said = "\n    ".join([said, *map(printable, lines)])
        return said


class JsonLines(logging.Formatter):
    """One object a line; `event` and what else a record brings stand beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= getattr(record, "fields", {})
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json_line(said).decode()


class LineHandler(logging.Handler):
    """Hands each record on as bytes, to who does not keep it waiting."""

    def __init__(self, write: Callable[[bytes], None], formatter: logging.Formatter) -> None:
        super().__init__()
        self._write = write
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
