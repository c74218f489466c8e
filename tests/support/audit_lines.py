"""The audit log as a strict reader sees it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def audit_lines(path: Path) -> list[dict[str, Any]]:
    """Every line one JSON object, in ASCII without control characters, the last one ended."""
    raw = path.read_bytes()
    assert re.fullmatch(rb"(?:[ -~]*\n)*", raw)
    lines = [json.loads(line) for line in raw.splitlines()]
    assert all(isinstance(line, dict) and {"event", "time"} <= line.keys() for line in lines)
    return lines
