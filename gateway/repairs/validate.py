"""
The `validate` repair, which changes nothing: a body, or a member of it, that does not fit a JSON Schema is
recorded, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import AfterValidator, Field, PlainSerializer, ValidationInfo

from gateway.repairs import json_schema
from gateway.repairs.findings import Draft, Finding, NotApplicable, Violated
from gateway.repairs.json_schema import JsonSchema, Violation
from gateway.repairs.json_text import ObjectText
from gateway.repairs.repair import Repair, RepairSettings, Stage


class NamedSchema(Struct, frozen=True):
    """A schema, and how config.yaml names it."""

    name: str
    schema: Any


def _schema(value: Any, info: ValidationInfo) -> NamedSchema:
    """Files are read by who reads the configuration, with `read_schema` in the context."""
    if isinstance(value, NamedSchema):
        return value
    if isinstance(value, dict):
        named = NamedSchema("the schema given", value)
    elif isinstance(value, str) and info.context is not None:
        named = NamedSchema(value, info.context["read_schema"](value))
    else:
        raise ValueError("expected a file, or a JSON Schema")
    JsonSchema(named.schema)
    return named


class ValidateSettings(RepairSettings):
    type: Literal["validate"]
    source: Annotated[
        Any,
        AfterValidator(_schema),
        PlainSerializer(lambda named: named.schema),
        Field(alias="schema", examples=[{"type": "object"}]),
    ]
    """
    A JSON Schema (2020-12): a file, a place in one (`openapi.yaml#/components/schemas/Name`), or the schema
    itself. It is read with the configuration; no reference to another file or host is followed.
    """
    member: Annotated[str, Field(min_length=1)] | None = None
    """The member that has to fit, where the body has it; none given: the whole body."""
    when: Literal["before", "after"] = "after"
    """`before`: the body as the client means it; `after`: with what the other repairs change in it."""
    on_violation: Literal["record", "reject"] = "record"
    """`reject`: 400, and nothing is sent, where the mode is `enforce`; in the others it is recorded."""

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        what = self.member or "the body"
        yield f"validate {what} by {self.source.name}, {self.when} the other repairs: {self.on_violation}"


@dataclass(frozen=True, slots=True, eq=False)
class Validate(Repair):
    settings = ValidateSettings
    stage = Stage.CHECKS

    schema: JsonSchema
    member: str | None
    rejects: bool
    after: bool = False

    @classmethod
    def of(cls, settings: ValidateSettings, limit: int, parameters: tuple[str, ...]) -> Validate:
        return cls(
            JsonSchema(settings.source.schema),
            settings.member,
            settings.on_violation == "reject",
            settings.when == "after",
        )

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        violations = self.check(draft.document)
        return Violated(violations, self.rejects) if violations else None

    def check(self, document: ObjectText) -> tuple[Violation, ...]:
        """Of the body as it is sent."""
        if self.member is None:
            return self.schema.violations(document.text)
        given = document.named(self.member)
        if not given:
            return ()
        if len(given) > 1:
            return json_schema.UNREADABLE
        name = json_schema.pointed_at(self.member)
        found = self.schema.violations(document.text_of(self.member))
        return tuple(Violation(name + one.pointer, one.expected) for one in found)
