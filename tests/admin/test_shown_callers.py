"""The page's callers: those of the file, read once for all pages, or those of the latest calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.admin.live import CALLERS
from gateway.admin.shown_callers import DAYS, EVERY, ShownCallers
from gateway.audit.callers_file import CallersFile, Tally

NOON = 1_764_158_400.0
LATEST: list[dict[str, Any]] = [{"user_agent": "latest"}]


def written(path: Path) -> CallersFile:
    file = CallersFile(str(path), 10_000)
    file.add(
        {("cafe", "agent", "web", "enforce", ("fill state",), None, None, None): Tally(NOON - 99, NOON, 3, 3)}
    )
    return file


def shown(path: Path | None, clock: list[float]) -> ShownCallers:
    name = None if path is None else str(path)
    return ShownCallers(name, lambda: LATEST, lambda: NOON, lambda: clock[0], stable=True)


async def test_without_a_file_they_are_those_of_the_latest_calls() -> None:
    assert await shown(None, [0.0])() == {"kept": False, "callers": LATEST}


async def test_a_file_that_is_not_there_is_told_beside_them(tmp_path: Path) -> None:
    found = await shown(tmp_path / "none", [0.0])()
    assert (found["kept"], found["callers"]) == (False, LATEST)
    assert "there is no such file" in found["problem"]


async def test_the_file_s_callers_have_their_first_and_last_time_and_days(tmp_path: Path) -> None:
    written(tmp_path / "file").close()
    found = await shown(tmp_path / "file", [0.0])()
    (caller,) = found["callers"]
    assert (found["kept"], found["stable"]) == (True, True)
    assert (caller["user_agent"], caller["first"], caller["last"]) == ("agent", NOON - 99, NOON)
    assert caller["repairs"] == {"fill state": 3}
    assert len(caller["days"]) == DAYS
    assert caller["days"][-1]["needed"] == 3


async def test_who_needed_it_last_comes_first_and_not_all_are_read(tmp_path: Path) -> None:
    agents = CALLERS + 20
    path = tmp_path / "file"
    file = CallersFile(str(path), 10_000)
    rest = ("agent", "web", "enforce", ("encoding",), None, None, None)
    file.add({
        (f"{number}", *rest): Tally(1.0, NOON - number, 1, 1) for number in range(agents)
    })  # fmt: skip
    file.close()
    found = (await shown(path, [0.0])())["callers"]
    assert [caller["credential"] for caller in found] == [f"{number}" for number in range(CALLERS)]
    assert all(caller["days"][-1]["calls"] == 1 for caller in found)
    assert all(caller["rules"] == {"web": 1} for caller in found)


async def test_one_reading_does_for_a_while(tmp_path: Path) -> None:
    clock = [0.0]
    file = written(tmp_path / "file")
    callers = shown(tmp_path / "file", clock)
    first = await callers()
    file.add({("beef", "new", "web", "enforce", (), None, None, None): Tally(NOON, NOON, 1, 1)})
    file.close()
    assert await callers() is first
    clock[0] += EVERY
    assert len((await callers())["callers"]) == 2
