"""
One line for each request, whoever served or refused it: as JSON, or in the combined format of other tools.

Nothing a client says can break a line or forge one. The lines are made by the loop and written elsewhere:
`write` does not wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

MOST: Final = 512  # characters of one value
CLIENT_CLOSED: Final = 499  # nginx's, for who left without a reply: this format has to have a number
_unquotable = re.compile(rb'["\\\x00-\x1f\x7f-\xff]')


class Access(Struct):
    """
    A request that is over. `sent`: bytes of the reply's body; `duration` in seconds, from the request's head
    to the reply's last byte. `whole`: the client was given all of it. Without a method it was no request.
    """

    address: str
    method: str | None = None
    target: bytes = b""
    version: str = "1.1"
    status: int = 0
    sent: int = 0
    duration: float = 0.0
    whole: bool = True
    request_id: bytes = b""
    user_agent: bytes = b""
    referer: bytes = b""
    trace_id: str = ""


class AccessLog:
    """`wall` gives Unix seconds."""

    def __init__(self, write: Callable[[bytes], None], wall: Callable[[], float], combined: bool) -> None:
        self._write = write
        self._wall = wall
        self._line = combined_line if combined else json_line

    def __call__(self, access: Access) -> None:
        self._write(self._line(access, self._wall()))


class _Json(Struct, omit_defaults=True):
    time: str
    client: str
    method: str | None
    target: str
    status: int | None
    sent: int = msgspec.field(name="bytes")
    duration_ms: float
    request_id: str = ""
    trace_id: str = ""
    user_agent: str = ""
    referer: str = ""
    whole: bool = True


_encode = msgspec.json.Encoder().encode


def json_line(access: Access, now: float) -> bytes:
    when = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    said = _Json(
        when,
        access.address,
        access.method,
        _text(access.target, None),
        access.status or None,
        access.sent,
        round(access.duration * 1000, 2),
        _text(access.request_id),
        access.trace_id,
        _text(access.user_agent),
        _text(access.referer),
        access.whole,
    )
    line = _encode(said)
    if not line.isascii() or b"\x7f" in line:
        line = json.dumps(msgspec.to_builtins(said)).encode("ascii")
    return line + b"\n"


def _text(value: bytes, most: int | None = MOST) -> str:
    return value[:most].decode("utf-8", "backslashreplace")


def combined_line(access: Access, now: float) -> bytes:
    """As Apache and nginx write it, escapes too."""
    when = datetime.fromtimestamp(now, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000").encode("ascii")
    request = b"-"
    if access.method is not None:
        request = b"%b %b HTTP/%b" % (access.method.encode(), access.target, access.version.encode())
    return b'%b - - [%b] "%b" %d %d "%b" "%b"\n' % (
        (access.address or "-").encode("ascii", "backslashreplace"),
        when,
        _quoted(request),
        access.status or CLIENT_CLOSED,
        access.sent,
        _quoted(access.referer[:MOST] or b"-"),
        _quoted(access.user_agent[:MOST] or b"-"),
    )


def _quoted(value: bytes) -> bytes:
    return _unquotable.sub(lambda found: b"\\x%02X" % found[0][0], value)
