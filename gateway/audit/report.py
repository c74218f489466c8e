"""
Who still needs the gateway, as `gateway report` prints it: a table, JSON or CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import compress

import msgspec

from gateway.audit.callers_file import Caller

UNSTABLE = (
    "credentials.key is not set: after each restart a caller counts as another, and stands here once more"
)
_BARS = "▁▂▃▄▅▆▇█"
_HEAD = ("CALLER", "USER-AGENT", "APPLICATION", "LAST NEED", "NEEDED", "OF CALLS", "WHAT", "MODES", "TREND")
_WIDTHS = (12, 36, 36, 16, 9, 9, 40, 24, 31)
_FIELDS = (
    "credential", "user_agent", "application", "first_seen", "last_seen", "last_need", "calls", "needed",
    "accepted", "repairs", "left", "shadow", "modes", "rules", "trend",
)  # fmt: skip


def table(callers: Sequence[Caller], stable: bool | None) -> Iterator[str]:
    """`stable`: whether a caller keeps its fingerprint, None where that is not known."""
    days = len(callers[0].days) if callers else 0
    needing = [one for one in callers if any(day.needed for day in one.days)]
    if not callers:
        yield "no matched call yet"
    elif not needing:
        yield f"nobody: in the last {days} days no call of {_callers(len(callers))} needed a repair"
    else:
        yield f"{_callers(len(needing))} needed a repair in the last {days} days, of {len(callers)} known"
        yield ""
        # The column of applications only where one is known.
        named = [i != 2 or any(one.application for one in needing) for i in range(len(_HEAD))]
        rows = [tuple(compress(row, named)) for row in (_HEAD, *map(_row, needing))]
        limits = compress(_WIDTHS, named)
        used = [min(limit, max(len(row[i]) for row in rows)) for i, limit in enumerate(limits)]
        for row in rows:
            cells = [_cut(cell, width).ljust(width) for cell, width in zip(row, used, strict=True)]
            yield "  ".join(cells).rstrip()
    wrong = sum(one.shadow.get("wrong", 0) for one in callers)
    compared = wrong + sum(one.shadow.get("right", 0) for one in callers)
    if compared:
        yield ""
        yield f"shadow: {wrong:,} of {compared:,} fills that could be compared would have been wrong"
    if stable is False:
        yield ""
        yield UNSTABLE


def _callers(count: int) -> str:
    return f"{count} caller{'' if count == 1 else 's'}"


def _row(caller: Caller) -> tuple[str, ...]:
    return (
        caller.credential,
        caller.user_agent or "-",
        caller.application or "-",
        _time(caller.last_need)[:16].replace("T", " "),
        str(sum(day.needed for day in caller.days)),
        str(sum(day.calls for day in caller.days)),
        ", ".join(caller.repairs),
        ", ".join(caller.modes),
        _trend([day.needed for day in caller.days]),
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _trend(needed: Sequence[int]) -> str:
    """A bar for each day, a dot for one on which nothing was needed."""
    most = max(needed)
    return "".join([_BARS[(count * 8 - 1) // most] if count else "·" for count in needed])


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_json(callers: Sequence[Caller], stable: bool | None) -> str:
    """Everybody, with what the table leaves out."""
    told = [dict(zip(_FIELDS, _values(caller), strict=True)) for caller in callers]
    return json.dumps({"fingerprints_are_stable": stable, "callers": told}, indent=2)


def _values(caller: Caller) -> tuple[object, ...]:
    return (
        caller.credential,
        caller.user_agent,
        caller.application,
        _time(caller.first),
        _time(caller.last),
        _time(caller.last_need) or None,
        caller.calls,
        caller.needed,
        caller.accepted,
        caller.repairs,
        caller.left,
        caller.shadow,
        caller.modes,
        caller.rules,
        msgspec.to_builtins(caller.days),
    )


def as_csv(callers: Sequence[Caller]) -> str:
    """One line a caller. The trend is what was needed each day, oldest first."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(_FIELDS)
    for caller in callers:
        *values, _ = _values(caller)
        lines.writerow([*map(_cell, values), " ".join(str(day.needed) for day in caller.days)])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return "; ".join(f"{name}={count}" for name, count in value.items())
    # A spreadsheet would run it (OWASP, CSV injection).
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value
