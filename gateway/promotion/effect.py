"""
What a configuration does to calls, however it is written and wherever it runs, and the digest of that. Pure.

Left out is what each environment has of its own: addresses, files, secrets, and what only tells of calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

from gateway.config import Settings
from gateway.rules import RuleSettings

ELSEWHERE: Final[dict[str, Any]] = {
    "admin": True,
    "audit": {"path"},
    "callers": True,
    "cors": {"origins"},
    "credentials": {"key"},
    "environments": True,
    "listen": {"host", "port", "tls", "trusted_proxies"},
    "log": True,
    "mode": True,  # the rules have it
    "rules": True,  # by their names, below
    "store": {"url", "tls"},
    "tracing": True,
    "upstream": {"url", "tls"},
    "upstreams": True,  # by theirs
}
ORDER: Final = "rules, in their order"


def digest(settings: Settings) -> str:
    """
    SHA-256 over all that has an effect, defaults too, but the rules' modes: what was tried in one mode is the
    same in the next.
    """
    whole = {place: value for place, value in effects(settings).items() if not _is_mode(place)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def effects(settings: Settings) -> dict[str, Any]:
    """Each setting that has an effect, by its place."""
    found = dict(_flat("", settings.model_dump(mode="json", exclude=ELSEWHERE)))
    for upstream in settings.upstreams:
        own = upstream.model_dump(mode="json", exclude={"name", "hosts", "url", "tls"})
        found |= _flat(f"upstreams[{upstream.name}]", own)
    for rule in settings.rules:
        found |= _flat(f"rules[{rule.name}]", _of_rule(rule))
    # Of rules that are equally specific the first counts.
    found[ORDER] = [rule.name for rule in settings.rules]
    return found


def _of_rule(rule: RuleSettings) -> dict[str, Any]:
    """Its cases have no effect; the writes are those that follow where none are given."""
    whole = rule.model_dump(mode="json", exclude={"name", "cases", "repairs", "writes"})
    repairs = {_named(one.model_dump(mode="json", by_alias=True)): one for one in rule.repairs}
    parts = {
        name: one.model_dump(mode="json", by_alias=True, exclude={"type", "field"})
        for name, one in repairs.items()
    }
    return whole | {"writes": sorted(rule.written_by), "repairs": parts, "repaired": list(parts)}


def _named(repair: dict[str, Any]) -> str:
    return f"{repair['type']} {repair['field']}" if "field" in repair else repair["type"]


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield place, value
        return
    for key, inner in value.items():
        yield from _flat(f"{place}.{key}" if place else key, inner)


def _is_mode(place: str) -> bool:
    return place.startswith("rules[") and place.endswith("].mode")
