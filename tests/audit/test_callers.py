"""Who still needs the gateway: kept across restarts, bounded, and no trouble to any call."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.audit import callers_file, report
from gateway.audit.callers import Callers
from gateway.audit.callers_file import OTHERS, Caller, CallersFile, Seen, Tally
from gateway.audit.finished_call import FinishedCall
from gateway.cli import cli
from gateway.errors import Unrecordable
from tests.audit.test_reader import CALLER, decision, outcome, rewrite
from tests.support.audit_lines import KEY
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, Running, gateway
from tests.support.mocking import mock
from tests.support.waiting import until

NOON = 1_800_000_000.0 - 1_800_000_000.0 % 86_400 + 43_200
DAY = 86_400.0
CONFORMING = b'{"state":"connected"}'
JSON = TOKEN | {"Content-Type": "application/json"}


_FILES: list[CallersFile] = []


@pytest.fixture(autouse=True)
def _files_are_closed() -> Iterator[None]:
    yield
    while _FILES:
        _FILES.pop().close()


def at(path: str, maximum: int) -> CallersFile:
    _FILES.append(CallersFile(path, maximum))
    return _FILES[-1]


def tallied(at: float = NOON, calls: int = 1, accepted: int = 1) -> Tally:
    return Tally(at, at, calls, accepted)


def seen(
    credential: str = "c1",
    agent: str = "legacy/1.0",
    needs: tuple[str, ...] = ("fill state",),
    left: str | None = None,
    mode: str = "enforce",
    shadow: str | None = None,
    application: str | None = None,
) -> Seen:
    return credential, agent, "web", mode, needs, left, shadow, application


def finished(**changes: Any) -> FinishedCall:
    values: dict[str, Any] = {
        "id": "1", "rule": "web", "mode": "enforce", "method": "PATCH", "path": "/", "address": "::1",
        "request_id": None,
        "user_agent": "legacy/1.0", "credential": "c1", "changes": (), "would_change": (), "needs": (),
        "skipped": None, "error": None, "status": 202, "lookup": 0.0, "upstream": 0.0, "total": 0.0,
        "attempts": 1, "conflict": False,
    }  # fmt: skip
    return FinishedCall(**(values | changes))


def read(path: Path, days: int = 14, now: float = NOON) -> list[Caller]:
    return callers_file.read(str(path), days, now)


def agents(callers: Sequence[Caller]) -> list[str]:
    return [caller.user_agent for caller in callers]


async def patched(running: Running, agent: str, body: bytes = BODY, kind: str = "application/json") -> None:
    async with running.client() as client:
        headers = TOKEN | {"User-Agent": agent, "Content-Type": kind}
        await client.patch(PARTICIPANT, content=body, headers=headers)


# --- over sockets


@pytest.mark.parametrize("mode", ["enforce", "shadow", "observe"])
async def test_every_mode_tells_who_needs_what(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "callers.sqlite3"
    async with (
        mock() as upstream,
        gateway(upstream.url, rule={"mode": mode}, callers={"path": str(path)}) as running,
    ):
        await patched(running, "legacy/1.0", kind="text/plain")
        await patched(running, "legacy/1.0")
        await patched(running, "modern/2.0", CONFORMING)

    legacy, modern = callers_file.read(str(path), 1, time.time())
    assert (legacy.user_agent, legacy.calls, legacy.needed) == ("legacy/1.0", 2, 2)
    assert legacy.repairs == {"fill state": 2, "content_type": 1}
    assert legacy.modes == {mode: 2}
    assert legacy.rules == {"web-participant-state": 2}
    assert legacy.accepted == (2 if mode == "enforce" else 0)
    assert legacy.left == {}
    assert legacy.last_need == legacy.last >= legacy.first
    assert (modern.user_agent, modern.calls, modern.needed, modern.last_need) == ("modern/2.0", 1, 0, None)


async def test_what_was_counted_outlives_a_restart_and_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "callers.sqlite3"
    settings: dict[str, Any] = {"callers": {"path": str(path)}, "credentials": {"key": KEY}}
    async with mock() as upstream:
        for day, mode in enumerate(["observe", "enforce"]):
            at = NOON - DAY + day * DAY
            wall = partial(float, at)
            async with gateway(upstream.url, rule={"mode": mode}, wall=wall, **settings) as running:
                await patched(running, "legacy/1.0")

    (caller,) = read(path, days=3)
    assert (caller.calls, caller.needed, caller.first, caller.last) == (2, 2, NOON - DAY, NOON)
    assert caller.modes == {"observe": 1, "enforce": 1}
    assert [day.needed for day in caller.days] == [0, 1, 1]


async def test_a_disk_that_fails_disturbs_no_call_is_told_once_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone" / "callers.sqlite3"
    async with (
        mock() as upstream,
        gateway(upstream.url, callers={"path": str(path)}) as running,
    ):
        callers = running.gateway.callers
        assert callers is not None
        callers._every = 0.01
        await patched(running, "legacy/1.0")
        await until(lambda: running.counts("gateway_callers_failures_total") > 2)
        async with running.client() as client:
            answer = await client.patch(
                PARTICIPANT, content=BODY, headers=JSON | {"User-Agent": "legacy/1.0"}
            )
            assert answer.status_code == 202
        path.parent.mkdir()
        await until(path.exists)
        await until(lambda: not callers._pending and callers._written is None)
    said = [record.getMessage() for record in caplog.records if "callers.sqlite3" in record.getMessage()]
    assert len([line for line in said if "calls go on, the report waits" in line]) == 1
    assert sum(caller.calls for caller in callers_file.read(str(path), 1, NOON)) == 2


async def test_the_application_that_a_token_names_is_told_and_the_token_is_not(tmp_path: Path) -> None:
    path = tmp_path / "callers.sqlite3"
    token = "eyJhbGciOiJub25lIn0.eyJhenAiOiJuaWdodGx5LWpvYiJ9.c2VjcmV0"
    async with (
        mock() as upstream,
        gateway(upstream.url, callers={"path": str(path)}) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        headers = {"Authorization": f"Bearer {token}"}
        await client.patch(PARTICIPANT, content=BODY, headers=headers)
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        told = (await admin.get("/api/callers")).json()["callers"]
    kept = path.read_bytes()

    assert {one["application"] for one in told} == {"nightly-job", None}
    assert {one.application for one in callers_file.read(str(path), 1, time.time())} == {"nightly-job", None}
    assert not any(part.encode() in kept for part in token.split("."))


async def test_a_field_that_is_configured_names_the_application_call_by_call(tmp_path: Path) -> None:
    path = tmp_path / "callers.sqlite3"
    async with (
        mock() as upstream,
        gateway(upstream.url, callers={"path": str(path)}, credentials={"application": ["X-App"]}) as running,
        running.client() as client,
    ):
        for name in ("one", "two"):
            headers = TOKEN | {"X-App": name, "User-Agent": name}
            await client.patch(PARTICIPANT, content=BODY, headers=headers)

    told = {one.user_agent: one.application for one in callers_file.read(str(path), 1, time.time())}
    assert told == {"one": "one", "two": "two"}


# --- the observer


def failed_since(counts: Counter[tuple[str, ...]], before: int) -> bool:
    return counts["gateway_callers_failures_total",] > before


class Full(CallersFile):
    """A disk without room, until it has some."""

    full = True

    def add(self, batch: Any) -> None:
        if self.full:
            raise Unrecordable("no room")
        super().add(batch)


async def test_what_waits_for_a_full_disk_is_bounded_and_written_when_it_has_room(tmp_path: Path) -> None:
    file = Full(str(tmp_path / "c.sqlite3"), 5)
    counts: Counter[tuple[str, ...]] = Counter()
    callers = Callers(file, lambda: NOON, counts, every=0.001)
    for _ in range(3):
        for number in range(50):
            callers.saw(finished(credential=f"c{number}", needs=("content_type",)))
        await until(partial(failed_since, counts, counts["gateway_callers_failures_total",]))
        assert len(callers._pending) <= 6
    file.full = False
    await callers.end()

    told = read(tmp_path / "c.sqlite3")
    assert sum(caller.calls for caller in told) == 150
    assert next(caller for caller in told if caller.credential == OTHERS).calls == 135


async def test_a_fill_that_was_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    callers = Callers(at(str(tmp_path / "c"), 5), lambda: NOON, Counter())
    changed = ({"repair": "content_type", "before": None, "after": "application/json"},)
    callers.saw(finished(changes=changed, skipped="state-not-allowed"))
    callers.saw(finished(skipped="not-rejected", mode="on_reject"))
    await callers.end()

    (caller,) = read(tmp_path / "c")
    assert (caller.calls, caller.needed) == (2, 1)
    assert caller.left == {"state-not-allowed": 1}


HOSTILE = [
    "<img onerror=alert(1)>",
    "\x1b[2J\x07",
    "=cmd|' /C calc'!A0",
    "\ud800",
    "'; DROP TABLE callers;--",
    "n\0ul",
]


@pytest.mark.parametrize("agent", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_user_agent_is_text_and_no_more(agent: str, tmp_path: Path) -> None:
    callers = Callers(at(str(tmp_path / "c"), 5), lambda: NOON, Counter())
    callers.saw(finished(user_agent=agent, needs=("content_type",)))
    callers.saw(finished(user_agent=agent + "x" * 100_000, needs=("content_type",)))
    await callers.end()

    told = read(tmp_path / "c")
    assert len(told) == 2
    assert all(len(one.user_agent) <= 200 and one.user_agent.isprintable() for one in told)
    assert all(line.isprintable() for line in report.table(told, stable=True))
    cells = [row["user_agent"] for row in csv.DictReader(report.as_csv(told).splitlines())]
    assert len(cells) == 2
    assert not any(cell.startswith("=") for cell in cells)


# --- the file


def test_callers_are_bounded_and_those_the_upstream_accepts_outlast_a_flood(tmp_path: Path) -> None:
    file = at(str(tmp_path / "c"), 10)
    file.add({seen("real"): tallied(NOON - 9 * DAY)})
    file.add({seen(f"junk{number}"): tallied(accepted=0) for number in range(200)})

    told = read(tmp_path / "c")
    assert len(told) == 10
    assert "real" in {caller.credential for caller in told}
    with contextlib.closing(sqlite3.connect(tmp_path / "c")) as rows:
        for table in ("days", "counts"):
            (orphans,) = rows.execute(
                f"SELECT count(*) FROM {table} WHERE caller NOT IN (SELECT id FROM callers)"
            ).fetchone()
            assert orphans == 0


def test_one_credential_takes_no_more_than_its_share_of_user_agents(tmp_path: Path) -> None:
    file = at(str(tmp_path / "c"), 1000)
    for _ in range(2):
        file.add({seen(agent=f"a{number}"): tallied() for number in range(100)})

    told = read(tmp_path / "c")
    assert len(told) == callers_file.AGENTS_KEPT + 1
    others = next(caller for caller in told if caller.user_agent == OTHERS)
    assert sum(caller.calls for caller in told) == 200
    assert others.calls == 160


def test_old_days_are_dropped(tmp_path: Path) -> None:
    file = at(str(tmp_path / "c"), 10)
    for day in range(60, -1, -1):
        file.add({seen(): tallied(NOON - day * DAY)})

    with contextlib.closing(sqlite3.connect(tmp_path / "c")) as rows:
        assert rows.execute("SELECT count(*) FROM days").fetchone() == (callers_file.DAYS_KEPT,)
    (caller,) = read(tmp_path / "c")
    assert caller.calls == 61


def test_two_processes_add_to_one_file(tmp_path: Path) -> None:
    one, other = (at(str(tmp_path / "c"), 10) for _ in range(2))
    for file in (one, other, one):
        file.add({seen(): tallied(calls=2)})

    (caller,) = read(tmp_path / "c")
    assert (caller.calls, caller.repairs) == (6, {"fill state": 6})


def test_a_file_of_an_earlier_version_is_read_and_added_to(tmp_path: Path) -> None:
    file = at(str(tmp_path / "c"), 10)
    file.add({seen(): tallied()})
    file.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "c")) as earlier:
        earlier.execute("ALTER TABLE callers DROP COLUMN application")
    assert [one.application for one in read(tmp_path / "c")] == [None]

    for application in ("nightly-job", None):
        at(str(tmp_path / "c"), 10).add({seen(application=application): tallied()})

    (caller,) = read(tmp_path / "c")
    assert (caller.calls, caller.application) == (3, "nightly-job")


def test_a_file_that_is_no_database_is_told_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text("somebody's own file, and long enough to be looked at" * 100)
    before = path.read_bytes()
    with pytest.raises(Unrecordable, match="not a database"):
        at(str(path), 10).add({seen(): tallied()})
    with pytest.raises(Unrecordable, match="not a database"):
        read(path)
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_after_a_failure_the_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.symlink_to("/dev/full")
    file = at(str(path), 10)
    with pytest.raises(Unrecordable):
        file.add({seen(): tallied()})
    path.unlink()
    file.add({seen(): tallied()})

    assert len(read(path)) == 1


# --- gateway report

CONFIG = """\
upstream: {{url: "http://127.0.0.1:9"}}
callers: {{path: "{path}"}}
rules: []
"""


def reported(folder: Path, *options: str, more: str = "") -> tuple[int, str]:
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(path=folder / "c") + more)
    done = CliRunner().invoke(cli, ["report", "--config", str(config), *options], obj=lambda: NOON)
    return done.exit_code, done.output


@pytest.fixture
def known(tmp_path: Path) -> Path:
    file = at(str(tmp_path / "c"), 10)
    file.add({seen("early", "cron/1"): tallied(NOON - 3 * DAY, 8)})
    file.add({seen("late", "java/8", ("content_type", "fill state")): tallied(NOON - DAY, 3)})
    file.add({seen("old", "perl/5"): tallied(NOON - 20 * DAY)})
    file.add({seen("fine", "modern/2", ()): tallied(NOON, 70)})
    return tmp_path


def test_the_table_has_who_needs_it_the_last_first(known: Path) -> None:
    code, said = reported(known, more=f"credentials: {{key: {KEY}}}\n")

    lines = said.splitlines()
    assert code == 0
    assert lines[0] == "2 callers needed a repair in the last 14 days, of 4 known"
    assert [line.split()[0] for line in lines[2:]] == ["CALLER", "late", "early"]
    assert "content_type, fill state" in lines[3]
    assert lines[4].endswith("··········█···")
    assert report.UNSTABLE not in said


def test_it_says_how_many_fills_of_shadow_would_have_been_wrong(known: Path) -> None:
    assert "shadow:" not in reported(known)[1]
    file = at(str(known / "c"), 10)
    file.add(
        {seen(mode="shadow", shadow="right"): tallied(calls=12_398), seen(shadow="wrong"): tallied(calls=2)}
    )

    assert "shadow: 2 of 12,400 fills that could be compared would have been wrong" in reported(known)[1]


def test_it_says_when_fingerprints_do_not_outlast_a_restart(known: Path) -> None:
    assert report.UNSTABLE in reported(known)[1]
    assert json.loads(reported(known, "--json")[1])["fingerprints_are_stable"] is False


def test_applications_have_a_column_where_one_is_known(known: Path) -> None:
    assert "APPLICATION" not in reported(known)[1]
    at(str(known / "c"), 10).add({seen("late", "java/8", application="nightly-job"): tallied()})

    _, said = reported(known)
    rows = [line.split() for line in said.splitlines()[2:5]]
    assert [row[2] for row in rows] == ["APPLICATION", "nightly-job", "-"]
    assert json.loads(reported(known, "--json")[1])["callers"][0]["application"] == "nightly-job"
    assert "java/8,nightly-job," in reported(known, "--csv")[1]


def test_fewer_days_leave_out_who_needed_it_before(known: Path) -> None:
    assert reported(known, "--days", "2")[1].startswith("1 caller needed")
    assert reported(known, "--days", "1")[1].startswith("nobody: in the last 1 days no call of 4 callers")


def test_json_and_csv_have_everybody(known: Path) -> None:
    told = json.loads(reported(known, "--json", more=f"credentials: {{key: {KEY}}}\n")[1])
    rows = list(
        csv.DictReader(reported(known, "--csv", more=f"credentials: {{key: {KEY}}}\n")[1].splitlines())
    )

    order = ["late", "early", "old", "fine"]
    assert [one["credential"] for one in told["callers"]] == order
    assert [row["credential"] for row in rows] == order
    assert told["callers"][1]["trend"][10] == {"day": "2027-01-12", "calls": 8, "needed": 8}
    assert rows[0]["repairs"] == "content_type=3; fill state=3"
    assert rows[3]["last_need"] == ""


def test_a_report_without_a_file_says_so(tmp_path: Path) -> None:
    code, said = reported(tmp_path)
    assert (code, "no gateway has written it" in said) == (1, True)


LOGGED = b"".join([
    rewrite("a", time="2027-01-14T12:00:00.000Z", skipped="unsettled"),
    outcome("a"),
    decision(
        "skip", "b", reason="observe", needs=["content_type"], mode="observe", time="2027-01-15T11:00:00.000Z"
    ),
    outcome("b", 415),
    decision("skip", "c", reason="conforming", time="2027-01-15T11:30:00.000Z"),
    outcome("c", 200),
    decision(
        "skip", "d", reason="conforming", time="2027-01-15T11:40:00.000Z",
        client=CALLER | {"user_agent": "modern/2"},
    ),
])  # fmt: skip


def test_without_a_section_the_report_is_of_the_audit_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(LOGGED)
    config = tmp_path / "config.yaml"
    config.write_text(f"upstream: {{url: 'http://127.0.0.1:9'}}\naudit: {{path: {tmp_path / 'log'}}}\n")

    def run(*options: str) -> str:
        return CliRunner().invoke(cli, ["report", *options], obj=lambda: NOON).output

    told = json.loads(run("--config", str(config), "--json"))
    assert told["fingerprints_are_stable"] is False
    assert json.loads(run("--log", str(tmp_path / "log"), "--json")) == told | {
        "fingerprints_are_stable": None
    }
    legacy, modern = told["callers"]
    assert (legacy["calls"], legacy["needed"], legacy["accepted"]) == (3, 2, 2)
    assert legacy["repairs"] == {"fill state": 1, "content_type": 1}
    assert legacy["modes"] == {"enforce": 2, "observe": 1}
    assert legacy["left"] == {"unsettled": 1}
    assert (legacy["first_seen"], legacy["last_need"], legacy["last_seen"]) == (
        "2027-01-14T12:00:00Z", "2027-01-15T11:00:00Z", "2027-01-15T11:30:00Z",
    )  # fmt: skip
    assert [(day["calls"], day["needed"]) for day in legacy["trend"][-2:]] == [(1, 1), (2, 1)]
    assert (modern["user_agent"], modern["needed"], modern["last_need"]) == ("modern/2", 0, None)
    assert "1 caller needed a repair in the last 14 days, of 2 known" in run("--log", str(tmp_path / "log"))
    assert report.UNSTABLE not in run("--log", str(tmp_path / "log"))
