"""The audit log as a strict reader sees it."""

from __future__ import annotations

import hmac
import json
import re
from pathlib import Path
from typing import Any

KEY = "0123456789abcdef0123456789abcdef"  # as credentials.key


def body_digest(body: bytes, key: str = KEY) -> str:
    """As docs/operations.md says that an operator makes it, from the key alone."""
    return hmac.digest(hmac.digest(key.encode(), b"audit body", "sha256"), body, "sha256").hex()


def audit_lines(path: Path, *, killed: bool = False, full: bool = False) -> list[dict[str, Any]]:
    """
    Every line one JSON object, in ASCII without control characters, the last one ended. A process that was
    `killed` in the middle of a write leaves half a line, which the next one ends, or nobody; a disk that was
    `full` leaves an empty line.
    """
    raw = path.read_bytes()
    assert re.fullmatch(rb"(?:[ -~]*\n)*" + rb"[ -~]*" * killed, raw)
    lines = []
    for line in raw.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            if not (full and line.isspace()) and (not killed or line.count(b'"event"') > 1):
                raise
    assert all(isinstance(line, dict) and {"event", "time"} <= line.keys() for line in lines)
    return lines
