"""
What the console says of each matched call when it is over: one line for a rewrite; at the level debug, one
for each other too. In a burst, so many a second and no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from gateway.admin.log_lines import coloured, json_line, printable, stamp
from gateway.admin.per_second import PerSecond
from gateway.audit.finished_call import FinishedCall

SHOWN: Final = 60  # characters of what a client said of itself
PARTS: Final = 2  # of a path, from its end
MOST: Final = 100  # lines a second: nobody reads more of them, and each costs a tenth of its call


class Console:
    """A Sampler. `write` takes a line and does not wait; `wall` gives Unix seconds."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        wall: Callable[[], float],
        *,
        as_json: bool = False,
        colours: bool = False,
        others: bool = False,
    ) -> None:
        """`others`: whether calls that were not rewritten have a line."""
        self._write = write
        self._wall = wall
        self._as_json = as_json
        self._colours = colours
        self._others = others
        self._lines = PerSecond(MOST)

    def wants(self, rewritten: bool) -> bool:
        if not (rewritten or self._others):
            return False
        now = self._wall()
        left_out = self._lines.begin(now)
        if left_out:
            self._say_how_many(left_out, now)
        return self._lines.admits()

    def __call__(self, call: FinishedCall) -> None:
        now = self._wall()
        level = "INFO" if call.changes else "DEBUG"
        time = stamp(now)
        if self._as_json:
            told = {"time": time, "level": level.lower(), "logger": "gateway", **fields(call)}
            self._write(json_line(told) + b"\n")
        else:
            said = printable(line(call))
            if self._colours:
                said = coloured(said, colour(call))
            self._write(f"{time} {level} gateway: {said}\n".encode("utf-8", "backslashreplace"))

    def _say_how_many(self, left_out: int, now: float) -> None:
        said = f"{left_out} more calls had no line: {MOST} have one in a second; the audit log has them all"
        if self._as_json:
            told = {"time": stamp(now), "level": "info", "logger": "gateway", "message": said}
            self._write(json_line(told) + b"\n")
        else:
            self._write(f"{stamp(now)} INFO gateway: {said}\n".encode())


def colour(call: FinishedCall) -> str:
    if not call.changes:
        return "2"
    return "32" if call.status is not None and call.status < 400 else "31"


def line(call: FinishedCall) -> str:
    """`PATCH …/participants/p1 text/plain→JSON, state=connected (cache, 0.4 s old) → 202 in 21 ms …`"""
    done = ", ".join(_change(change, call.lookup) for change in call.changes)
    if call.skipped is not None:
        done += f"{', ' if done else ''}not repaired: {call.skipped}"
    if call.needs:
        done += f" (needs {', '.join(call.needs)})"
    if call.would_change:
        done += f" (would be {', '.join(_change(change, call.lookup) for change in call.would_change)})"
    end = str(call.status) if call.status is not None else "no reply"
    if call.error is not None:
        end += f" {call.error}"
    if call.attempts > 1:
        end += f" at attempt {call.attempts}"
    if call.conflict:
        end += " CONFLICT: the reply names another value"
    named = "" if call.request_id is None else f" request_id={call.request_id}"
    agent = call.user_agent or "-"
    client = agent if len(agent) <= SHOWN else agent[: SHOWN - 1] + "…"
    return (
        f"{call.method} {short(call.path)} {done or 'as it came'} → {end} in {call.total * 1000:.0f} ms"
        f"  client={call.address} {json.dumps(client, ensure_ascii=False)}"
        f" rule={call.rule} id={call.id}{named}"
    )


def short(path: str) -> str:
    """Its last parts: what a rule's calls have in common is in the rule."""
    parts = path.split("/")
    path = path if len(parts) <= PARTS + 1 else "…/" + "/".join(parts[-PARTS:])
    return path if len(path) <= 2 * SHOWN else "…" + path[-2 * SHOWN :]


def _change(change: dict[str, Any], lookup: float) -> str:
    repair = change.get("repair")
    if repair == "fill":
        source, age = change.get("source"), change.get("age_ms")
        took = f"lookup {lookup * 1000:.0f} ms" if source == "lookup" else source
        old = "" if age is None else f", {age / 1000:.1f} s old"
        return f"{change['field']}={change['after']} ({took}{old})"
    if repair == "content_type":
        before = change.get("before") or "no Content-Type"
        after = change.get("after", "")
        return f"{str(before)[:SHOWN]}→{'JSON' if after == 'application/json' else after}"
    return str(repair)


def names(call: FinishedCall) -> dict[str, str]:
    """By which others know it, where they gave it one."""
    given = {"request_id": call.request_id, "trace_id": call.trace_id}
    return {key: name for key, name in given.items() if name is not None}


def fields(call: FinishedCall) -> dict[str, Any]:
    """What the JSON form says: names, and times in milliseconds, as on the audit log."""
    told: dict[str, Any] = {
        "message": line(call),
        "event": "rewrite" if call.changes else "call",
        "id": call.id,
        **names(call),
        "rule": call.rule,
        "mode": call.mode,
        "method": call.method,
        "path": call.path,
        "changes": call.changes,
        "skipped": call.skipped,
        "error": call.error,
        "status": call.status,
        "lookup_ms": round(call.lookup * 1000, 2),
        "upstream_ms": round(call.upstream * 1000, 2),
        "total_ms": round(call.total * 1000, 2),
        "client": {
            "address": call.address,
            "user_agent": call.user_agent,
            "credential": call.credential,
        },
    }
    return told
