"""
The callers on disk, in SQLite: added to by the writer's thread, read by `gateway report`.

Whatever is added is a sum, so that several processes may have one file. It is bounded: in callers (those
whom the upstream never accepted give way first, then the longest unseen), in a credential's User-Agents, and
in days.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import quote

from msgspec import Struct

from gateway.errors import Unrecordable

DAYS_KEPT = 31
AGENTS_KEPT = 20  # of one credential; the others are counted together
OTHERS = "(others)"
BUSY = 1.0  # seconds that another process may hold the file

# Credential, User-Agent, rule, mode, repairs needed, why nothing, or not all, was repaired, and whether what
# shadow would have filled was right, and the application that the client says it is.
Seen: TypeAlias = tuple[str, str, str, str, tuple[str, ...], str | None, str | None, str | None]

Key = TypeVar("Key")
Value = TypeVar("Value")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS callers (
    id INTEGER PRIMARY KEY,
    credential TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    first REAL NOT NULL,
    last REAL NOT NULL,
    last_need REAL,
    calls INTEGER NOT NULL,
    needed INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    application TEXT,
    UNIQUE (credential, user_agent)
);
CREATE TABLE IF NOT EXISTS days (
    caller INTEGER NOT NULL REFERENCES callers ON DELETE CASCADE,
    day TEXT NOT NULL,
    calls INTEGER NOT NULL,
    needed INTEGER NOT NULL,
    PRIMARY KEY (caller, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (
    caller INTEGER NOT NULL REFERENCES callers ON DELETE CASCADE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    calls INTEGER NOT NULL,
    PRIMARY KEY (caller, kind, name)
) WITHOUT ROWID;
"""
_CALLER = """
INSERT INTO callers (credential, user_agent, first, last, last_need, calls, needed, accepted, application)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    first = min(first, excluded.first), last = max(last, excluded.last),
    last_need = max(coalesce(last_need, excluded.last_need), coalesce(excluded.last_need, last_need)),
    calls = calls + excluded.calls, needed = needed + excluded.needed,
    accepted = accepted + excluded.accepted,
    application = coalesce(excluded.application, application)
RETURNING id
"""
_DAY = """
INSERT INTO days VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, needed = needed + excluded.needed
"""
_COUNT = "INSERT INTO counts VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls"
_TRIM = """
DELETE FROM callers WHERE id IN (
    SELECT id FROM callers WHERE credential <> :others ORDER BY accepted > 0, last
    LIMIT max(0, (SELECT count(*) FROM callers WHERE credential <> :others) - :maximum)
)
"""
_FIRST = "ORDER BY last_need DESC NULLS LAST, last DESC, id LIMIT ?"
_OF_THESE = f"caller IN (SELECT id FROM callers {_FIRST})"


class Tally(Struct):
    """Calls that were alike. `first` and `last` in Unix seconds; `accepted`: those the upstream accepted."""

    first: float
    last: float = 0.0
    calls: int = 0
    accepted: int = 0

    def add(self, later: Tally) -> None:
        self.last = max(self.last, later.last)
        self.calls += later.calls
        self.accepted += later.accepted


class Day(Struct, frozen=True):
    day: str
    calls: int
    needed: int


class Caller(Struct, frozen=True):
    """
    Times in Unix seconds; `needed`: calls that needed a repair. `repairs`, `modes`, `rules`, `left` (why
    nothing, or not all, was repaired) and `shadow` (what it would have filled: right or wrong) have calls by
    name; `days` runs to today, oldest first. `application` is the one that it last said it was, unverified.
    """

    credential: str
    user_agent: str
    first: float
    last: float
    last_need: float | None
    calls: int
    needed: int
    accepted: int
    repairs: dict[str, int]
    modes: dict[str, int]
    rules: dict[str, int]
    left: dict[str, int]
    shadow: dict[str, int]
    days: list[Day]
    application: str | None = None


class CallersFile:
    def __init__(self, path: str, maximum: int) -> None:
        self.path = path
        self.maximum = maximum
        self._opened: sqlite3.Connection | None = None
        self._day = ""  # on which old days were last dropped

    def add(self, batch: Mapping[Seen, Tally]) -> None:
        """All of it or nothing. Raises Unrecordable."""
        try:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                for seen, tally in batch.items():
                    _add(connection, seen, tally)
                connection.execute(_TRIM, {"others": OTHERS, "maximum": self.maximum})
                self._drop_old_days(connection, max(tally.last for tally in batch.values()))
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise Unrecordable(f"{self.path}: cannot be written: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            connection = sqlite3.connect(
                self.path, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            self._opened = connection
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.executescript(_SCHEMA)
            _complete(connection)
        return self._opened

    def close(self) -> None:
        """The next write begins with a new connection: the file may be another by then."""
        opened, self._opened = self._opened, None
        if opened is not None:
            with contextlib.suppress(sqlite3.Error):
                opened.close()

    def _drop_old_days(self, connection: sqlite3.Connection, now: float) -> None:
        today = _day(now)
        if today != self._day:
            connection.execute("DELETE FROM days WHERE day < ?", (_day(now, DAYS_KEPT - 1),))
            self._day = today


def _complete(connection: sqlite3.Connection) -> None:
    """A file of an earlier version lacks a column."""
    if not _has_applications(connection):
        with contextlib.suppress(sqlite3.OperationalError):  # another process was first
            connection.execute("ALTER TABLE callers ADD COLUMN application TEXT")


def _has_applications(connection: sqlite3.Connection) -> bool:
    return any(row[1] == "application" for row in connection.execute("PRAGMA table_info(callers)"))


def _add(connection: sqlite3.Connection, seen: Seen, tally: Tally) -> None:
    credential, agent, rule, mode, repairs, left, shadow, application = seen
    needed = tally.calls if repairs else 0
    named = _agent(connection, credential, agent)
    last_need = tally.last if repairs else None
    values = (tally.first, tally.last, last_need, tally.calls, needed, tally.accepted, application)
    (caller,) = connection.execute(_CALLER, (credential, named, *values)).fetchone()
    connection.execute(_DAY, (caller, _day(tally.last), tally.calls, needed))
    names = [("repair", repair) for repair in repairs] + [("mode", mode), ("rule", rule)]
    if left is not None:
        names.append(("left", left))
    if shadow is not None:
        names.append(("shadow", shadow))
    connection.executemany(_COUNT, [(caller, kind, name, tally.calls) for kind, name in names])


def _agent(connection: sqlite3.Connection, credential: str, agent: str) -> str:
    # A lone surrogate can't be stored, and a control character is not for a terminal.
    agent = "".join([one if one.isprintable() else "�" for one in agent])
    known = connection.execute(
        "SELECT count(*), coalesce(sum(user_agent = ?), 0) FROM callers WHERE credential = ?",
        (agent, credential),
    )
    count, there = known.fetchone()
    return agent if there or count < AGENTS_KEPT else OTHERS


def _day(now: float, before: int = 0) -> str:
    return (datetime.fromtimestamp(now, UTC) - timedelta(days=before)).date().isoformat()


def read(path: str, days: int, now: float, most: int = -1) -> list[Caller]:
    """
    Who needed it last comes first; of more than `most` callers (-1: all) only these. Raises Unrecordable
    where there is no such file.
    """
    if not Path(path).is_file():
        raise Unrecordable(f"{path}: there is no such file: no gateway has written it")
    wanted = [_day(now, before) for before in range(days - 1, -1, -1)]
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY)
        ) as connection:
            connection.execute("BEGIN")
            application = "application" if _has_applications(connection) else "NULL"
            rows = connection.execute(
                "SELECT id, credential, user_agent, first, last, last_need, calls, needed, accepted,"
                f" {application} FROM callers {_FIRST}",
                (most,),
            ).fetchall()
            trend = _by_caller(
                (caller, day, Day(day, calls, needed))
                for caller, day, calls, needed in connection.execute(
                    f"SELECT * FROM days WHERE {_OF_THESE}", (most,)
                )
            )
            counts = _by_caller(
                (caller, (kind, name), calls)
                for caller, kind, name, calls in connection.execute(
                    f"SELECT * FROM counts WHERE {_OF_THESE} ORDER BY calls DESC, name", (most,)
                )
            )
    except sqlite3.Error as error:
        raise Unrecordable(f"{path}: cannot be read: {error}") from error
    return [
        Caller(
            credential,
            agent,
            first,
            last,
            last_need,
            calls,
            needed,
            accepted,
            repairs=_of_kind(counts.get(number, {}), "repair"),
            modes=_of_kind(counts.get(number, {}), "mode"),
            rules=_of_kind(counts.get(number, {}), "rule"),
            left=_of_kind(counts.get(number, {}), "left"),
            shadow=_of_kind(counts.get(number, {}), "shadow"),
            days=[trend.get(number, {}).get(day) or Day(day, 0, 0) for day in wanted],
            application=application,
        )
        for number, credential, agent, first, last, last_need, calls, needed, accepted, application in rows
    ]


def _by_caller(found: Iterable[tuple[int, Key, Value]]) -> dict[int, dict[Key, Value]]:
    table: dict[int, dict[Key, Value]] = {}
    for caller, key, value in found:
        table.setdefault(caller, {})[key] = value
    return table


def _of_kind(counts: Mapping[tuple[str, str], int], wanted: str) -> dict[str, int]:
    return {name: calls for (kind, name), calls in counts.items() if kind == wanted}
