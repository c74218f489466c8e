"""
What a worker is told at its start, so that it has the very settings of those that began before it.

The texts are handed on and not the file, which may be another by then: the settings are those of the
supervisor's own start, the rules those of its last reload, in the modes that were set since.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from msgspec import Struct

from gateway import config
from gateway.config import Settings
from gateway.workers.shares import share


class Followed(Struct, frozen=True):
    """The rules that hold: a configuration's text, and the mode of each rule by its name."""

    text: str
    modes: dict[str, str]

    def within(self, settings: Settings, name: str, environment: Mapping[str, str] = os.environ) -> Settings:
        """These settings with these rules."""
        read = config.parse(self.text, environment, name).rules
        rules = tuple(rule.model_copy(update={"mode": self.modes[rule.name]}) for rule in read)
        return settings.model_copy(update={"rules": rules})


class Start(Struct, frozen=True):
    """`number` of `workers`; `key` is the secret where the configuration has none; `name` the file's."""

    number: int
    workers: int
    name: str
    text: str
    followed: Followed
    key: str

    def settings(self, environment: Mapping[str, str] = os.environ) -> Settings:
        whole = config.parse(self.text, environment, self.name)
        return self.followed.within(share(whole, self.workers), self.name, environment)
