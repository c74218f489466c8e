"""
What the gateway knows how to repair: REPAIRS, and what follows from it.

To add a repair, write a file of its own as `repair.py` says, and list its class here. Nothing else knows a
repair by its name, but for `fill`, which looks up, and `retarget`, after which a fill may be done instead.
Nothing in this room does I/O, reads a clock or logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Annotated, Any, get_args

from pydantic import Field, GetPydanticSchema

from gateway.repairs.content_type import ContentType
from gateway.repairs.diagnosis import Diagnosis, checked, diagnose, left_as_it_is, rewrite
from gateway.repairs.encoding import Encoding
from gateway.repairs.fill import Fill
from gateway.repairs.findings import Unfilled
from gateway.repairs.json_schema import Violation
from gateway.repairs.method import Method
from gateway.repairs.repair import Repair, RepairSettings
from gateway.repairs.retarget import Retarget
from gateway.repairs.validate import Validate

__all__ = [
    "REPAIRS", "AnyRepairSettings", "Diagnosis", "Fill", "Repair", "Retarget", "Unfilled", "Violation",
    "build", "checked",    "diagnose", "left_as_it_is", "name_of", "out_of_order", "rewrite",
]  # fmt: skip

# In the order in which a rule lists them: their stages decide, and within a stage their places here.
REPAIRS: tuple[type[Repair], ...] = tuple(
    sorted(
        (
            Encoding,
            Method,
            ContentType,
            Validate,
            Retarget,
            Fill,
        ),
        key=lambda repair: repair.stage,
    )
)
_BY_SETTINGS = {repair.settings: repair for repair in REPAIRS}

# The settings of any repair, told apart by `type`. The type checker sees what all have in common.
_settings: Any = reduce(or_, _BY_SETTINGS)
AnyRepairSettings = Annotated[
    RepairSettings,
    GetPydanticSchema(lambda _, handler: handler(Annotated[_settings, Field(discriminator="type")])),
]


def name_of(repair: type[Repair]) -> str:
    """By which config.yaml and the audit log call it."""
    (literal,) = get_args(repair.settings.model_fields["type"].annotation)
    return str(literal)


def out_of_order(chosen: Sequence[RepairSettings]) -> str | None:
    """What is wrong with the order of a rule's repairs, or how often they stand there."""
    places = [REPAIRS.index(_BY_SETTINGS[type(one)]) for one in chosen]
    twice = any(place == after and REPAIRS[place].once for place, after in pairwise(places))
    if places == sorted(places) and not twice:
        return None
    *names, last = [name_of(repair) if repair.once else f"{name_of(repair)}s" for repair in REPAIRS]
    return f"expected {', '.join(names)} and {last}, in this order"


def build(settings: Sequence[RepairSettings], limit: int, parameters: tuple[str, ...]) -> tuple[Repair, ...]:
    """`limit`: bytes a decoded body may have; `parameters`: the names in the rule's path, in order."""
    return tuple(_BY_SETTINGS[type(one)].of(one, limit, parameters) for one in settings)
