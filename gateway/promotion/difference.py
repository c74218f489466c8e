"""
In what two configurations differ in effect, place by place. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from gateway.config import Settings
from gateway.promotion.effect import ORDER, effects


class Difference(Struct, frozen=True):
    """`a` and `b` are None where the place is in one of them only."""

    place: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.place}: {_shown(self.a)} → {_shown(self.b)}"


def differences(one: Settings, other: Settings) -> list[Difference]:
    """By their places, rules by their names. A rule or upstream that only one
    of them has is told as a whole."""
    before, after = effects(one), effects(other)
    names = [{rule.name for rule in settings.rules} for settings in (one, other)]
    whole = [_named(settings) for settings in (one, other)]
    single = {name: name in whole[0] for name in whole[0] ^ whole[1]}
    places = [
        place
        for place in sorted(before | after)
        if before.get(place) != after.get(place) and not _within(place, single)
    ]
    found = [Difference(place, before.get(place), after.get(place)) for place in places if place != ORDER]
    found += [
        Difference(rule, *(("there", None) if first else (None, "there"))) for rule, first in single.items()
    ]
    orders = [[name for name in order[ORDER] if name in names[0] & names[1]] for order in (before, after)]
    if orders[0] != orders[1]:
        found.append(Difference(ORDER, *orders))
    return sorted(found, key=lambda one: one.place)


def _named(settings: Settings) -> set[str]:
    return {f"rules[{rule.name}]" for rule in settings.rules} | {
        f"upstreams[{upstream.name}]" for upstream in settings.upstreams
    }


def _within(place: str, names: Iterable[str]) -> bool:
    return any(place.startswith(f"{name}.") for name in names)


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
