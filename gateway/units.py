"""
How config.yaml writes durations, sizes and sections. Knows no setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
Several = TypeVar("Several", bound=tuple[object, ...])


class Section(BaseModel):
    """
    A mapping whose keys are all known, and that nobody changes once it is read. The text under a key is what
    docs/configuration.md and the JSON Schema say of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def checked(check: Callable[[str], object]) -> AfterValidator:
    """`check` raises ValueError for a text that it refuses; the text itself is kept."""

    def validate(value: str) -> str:
        check(value)
        return value

    return AfterValidator(validate)


def at_least_one(value: Several) -> Several:
    if not value:
        raise ValueError("expected at least one")
    return value


def _duration(value: object) -> float:
    if value == 0 and not isinstance(value, bool):
        return 0.0
    text = value.strip() if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)", text)
    if found is None:
        raise ValueError('expected a duration such as "250ms", "2s" or "1m"')
    return float(found[1]) * SECONDS[found[2]]


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = value.strip() if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,15}) ?([kKMG]?i?B)", text)
    if found is None or found[2] not in BYTES:
        raise ValueError('expected a size such as "64KiB" or "1MiB"')
    return int(found[1]) * BYTES[found[2]]


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("expected more than nothing")
    return value


# In seconds. Only 0 may stand without a unit.
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(ms|s|m|h)$", "maximum": 0}),
]
Timeout = Annotated[Duration, AfterValidator(_positive)]
# In bytes.
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+ ?(B|kB|MB|GB|KiB|MiB|GiB)$"}),
]
