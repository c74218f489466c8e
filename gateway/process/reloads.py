"""
The configuration, read again while the gateway runs: all of it or nothing.

Rules and their modes change at once, for the calls that come from then on; those in flight end under the
rules that they began with. What else differs is named, and waits for a restart.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast, get_args

from gateway.audit.configurations import ConfigurationInForce
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.writer import Line
from gateway.bounded_reads import BoundedReads, Hangs
from gateway.config import ConfigError, ConfigFile, FileIdentity, Settings
from gateway.errors import Unrecordable
from gateway.promotion.effect import digest
from gateway.rules import Mode, RuleSettings

MODES: Final[tuple[str, ...]] = get_args(Mode)
WATCHED: Final = 1.0  # seconds between two looks at the file
TRIED_AGAIN: Final = 5.0  # seconds after a refusal

log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """
    What came of it. `said` tells an operator, line by line; where it is not `ok`, nothing was changed.
    `elsewhere`: for something beside the configuration's own text, and the same one may be taken later.
    """

    ok: bool
    said: list[str] = field(default_factory=list)
    elsewhere: bool = False


class Reloads:
    """
    `load` reads the configuration again, and raises ConfigError. `follow` has the calls to come go by these
    settings' rules; it is told whether more than modes differ. `record` writes down the modes that are
    about to change, and the configuration's new digest, all of it or nothing; it raises Unrecordable, and
    then nothing is changed. A mode that was set holds until the file's own for that rule is another than it
    was.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        follow: Callable[[Settings, bool], Awaitable[None]],
        record: Callable[[list[Line]], Awaitable[None]],
        counts: Counter[tuple[str, ...]],
        reads: BoundedReads | None = None,
    ) -> None:
        self.settings = settings
        self.problem: str | None = None  # of the last reload, where that failed
        self._load = load
        self._follow = follow
        self._record = record
        self._counts = counts
        self._reads = reads or BoundedReads()
        self._digest = digest(settings)
        self._of_file = {rule.name: rule.mode for rule in settings.rules}
        self._set: dict[str, Mode] = {}
        self._turn = asyncio.Lock()

    async def reload(self, by: str, again: bool = False) -> Reloaded:
        """
        `by`: who asked for it, for the log. `again`: it is tried once more, and a refusal for what it was
        refused for is neither told nor counted.
        """
        async with self._turn:
            try:
                settings = await self._reads.read(self._load)
                # What waits for a restart is told at each reload until it has come.
                waiting = differing(self.settings, settings)
                kept = self._modes_that_hold(settings)
                said = await self._change(_with_modes(settings.rules, kept), by)
            except (ConfigError, Hangs, Unrecordable) as error:
                why = _why(error)
                if not again or why != self.problem:
                    self._counts["gateway_reloads_total", "failed"] += 1
                    log.error("reload (%s) refused, nothing is changed: %s", by, why)
                self.problem = why
                return Reloaded(False, why.splitlines(), _lies_elsewhere(error))
            self._counts["gateway_reloads_total", "ok"] += 1
            self.problem = None
            self._set, self._of_file = kept, {rule.name: rule.mode for rule in settings.rules}
            said += [
                f"rule {name} stays in mode {mode}, which was set: the file says {self._of_file[name]}"
                for name, mode in kept.items()
            ]
            said += [f"{name} differs: it takes a restart" for name in waiting]
            for line in said or ["nothing differs"]:
                log.info("reload (%s): %s", by, line)
            return Reloaded(True, said)

    async def set_mode(self, name: str, mode: str, by: str) -> Reloaded:
        """Until the file's mode for the rule is another than it was, or a restart."""
        async with self._turn:
            if mode not in MODES:
                return Reloaded(False, [f"mode: expected one of {', '.join(MODES)}, got {mode[:64]!r}"])
            if not any(rule.name == name for rule in self.settings.rules):
                known = ", ".join(rule.name for rule in self.settings.rules) or "none"
                return Reloaded(False, [f"there is no rule {name[:64]!r}; there are: {known}"])
            wanted = cast(Mode, mode)
            try:
                said = await self._change(_with_modes(self.settings.rules, {name: wanted}), by)
            except Unrecordable as error:
                log.error("mode (%s) refused, nothing is changed: %s", by, _why(error))
                return Reloaded(False, [_why(error)])
            if self._of_file[name] == wanted:
                self._set.pop(name, None)
                until = "as in the file"
            else:
                self._set[name] = wanted
                until = "until the file has another mode for it, or a restart"
            for line in said:
                log.warning("mode (%s): %s, %s", by, line, until)
            return Reloaded(True, said or [f"{name} is in mode {mode} already"])

    def _modes_that_hold(self, settings: Settings) -> dict[str, Mode]:
        """Of the modes that were set, those that hold on under these settings."""
        of_file = {rule.name: rule.mode for rule in settings.rules}
        return {name: mode for name, mode in self._set.items() if self._of_file[name] == of_file.get(name)}

    async def _change(self, rules: tuple[RuleSettings, ...], by: str) -> list[str]:
        was = self.settings
        if was.rules == rules:
            return []
        before = {rule.name: rule for rule in was.rules}
        after = {rule.name: rule for rule in rules}
        changed: list[Line] = [
            ModeChanged.of(name, before[name].mode, rule.mode, by)
            for name, rule in after.items()
            if name in before and before[name].mode != rule.mode
        ]
        now = was.model_copy(update={"rules": rules})
        rules_differ = _but_for_modes(was) != _but_for_modes(now)
        in_force = digest(now) if rules_differ else self._digest
        if in_force != self._digest:
            changed.append(ConfigurationInForce.of(in_force, by))
        if changed:
            await self._record(changed)
        self.settings, self._digest = now, in_force
        await self._follow(now, rules_differ)
        said = [_said(before.get(name), after.get(name)) for name in before | after]
        return [line for line in said if line is not None] or ["the rules have another order"]


def _why(error: ConfigError | Hangs | Unrecordable) -> str:
    if isinstance(error, Unrecordable):
        return f"nothing changes unrecorded: {error.detail}"
    return str(error)


def _lies_elsewhere(error: ConfigError | Hangs | Unrecordable) -> bool:
    return error.elsewhere if isinstance(error, ConfigError) else True


def _said(before: RuleSettings | None, after: RuleSettings | None) -> str | None:
    if after is None:
        assert before is not None
        return f"rule {before.name} is gone"
    if before is None:
        return f"rule {after.name} is new, in mode {after.mode}"
    if before == after:
        return None
    changed = [] if before.mode == after.mode else [f"mode {before.mode} is now {after.mode}"]
    if before.model_copy(update={"mode": after.mode}) != after:
        changed.append("it says something else")
    return f"rule {after.name}: {' and '.join(changed)}"


def _with_modes(rules: tuple[RuleSettings, ...], modes: Mapping[str, Mode]) -> tuple[RuleSettings, ...]:
    return tuple(
        rule.model_copy(update={"mode": modes[rule.name]}) if rule.name in modes else rule for rule in rules
    )


def _but_for_modes(settings: Settings) -> list[RuleSettings]:
    return [rule.model_copy(update={"mode": "enforce"}) for rule in settings.rules]


def differing(before: Settings, after: Settings) -> list[str]:
    """The settings beside the rules and their modes that differ, as `listen.port`."""
    return list(
        _differing(
            "", before.model_dump(exclude={"rules", "mode"}), after.model_dump(exclude={"rules", "mode"})
        )
    )


def _differing(place: str, before: Any, after: Any) -> list[str]:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [place]
    found: list[str] = []
    for name in before | after:
        inner = f"{place}.{name}" if place else str(name)
        found += _differing(inner, before.get(name), after.get(name))
    return found


async def watched(
    file: ConfigFile, reloads: Reloads, every: float = WATCHED, pause: float = TRIED_AGAIN
) -> None:
    """
    Reloads whenever the file is another than was read, and stays so from one look to the next: also where a
    link in its place was exchanged. What is refused for something beside the file is tried again.
    """
    reads = BoundedReads()
    known = file.identity
    before: FileIdentity | None = known
    refused: FileIdentity | None = None
    while True:
        await asyncio.sleep(every)
        try:
            found = await reads.read(lambda: _identity(file.path))
        except Hangs:
            continue
        if found is not None and found == before and found != known:
            told = await reloads.reload("the file changed", again=found == refused)
            if told.elsewhere:
                refused = found
                await asyncio.sleep(pause)
            else:
                known = found
        before = found


def _identity(path: Path) -> FileIdentity | None:
    try:
        return FileIdentity.of(os.stat(path))
    except OSError:
        return None  # between two files: what comes then counts
