"""
The `fill` repair: a member that is missing is inserted into the client's own text, after a look-up.

The look-up itself is not here: this file says what is wanted, which values may be filled (S7), and
how the text changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway import paths as templates
from gateway.paths import Template
from gateway.repairs import select
from gateway.repairs.findings import Draft, Explicit, Finding, Missing, NotApplicable, Unfilled
from gateway.repairs.json_text import quoted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fill:
    """Durations in seconds. `conversation` is the path parameter that names the conversation,
    `subject` those that name whose value it is within it (the participant)."""

    field: str
    source: Template
    select: str
    allow: frozenset[str]
    max_age: float
    settle: float
    refill_on: frozenset[int]
    null_is_missing: bool
    learn: bool
    guarded: bool
    conversation: str
    subject: tuple[str, ...]
    # The member's name as text, where whatever may contradict a filled value is the value of such a member.
    named: bytes | None = None

    @classmethod
    def of(cls, settings: Any, parameters: tuple[str, ...]) -> Fill:
        source = templates.parse(settings.source)
        return cls(
            field=settings.field,
            source=source,
            select=settings.select,
            allow=frozenset(settings.allow),
            max_age=settings.max_age,
            settle=settings.settle,
            refill_on=frozenset(settings.refill_on),
            null_is_missing=settings.null_is_missing,
            learn=settings.learn,
            guarded=settings.guard == "etag",
            conversation=source.names[-1],
            subject=tuple(name for name in parameters if name not in source.names),
            named=quoted(settings.field) if select.member(settings.select) == settings.field else None,
        )

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        explicit = draft.document.named(self.field)
        if not explicit:
            return Missing(self.field)
        if len(explicit) > 1:
            return Unfilled("duplicate-member")
        if explicit[0] is None and self.null_is_missing:
            return Missing(self.field, there=True)
        return Explicit(self.field, explicit[0])

    def chosen(self, document: Any, data: Mapping[str, str]) -> str | Unfilled:
        """The one value that is found, or why there is none. `data`: the path's parameters, decoded."""
        values = select.values(self.select, document, data)
        if not values:
            return Unfilled(f"{self.field}-not-found")
        if len(values) > 1:
            return Unfilled(f"{self.field}-ambiguous")
        value = values[0]
        if not isinstance(value, str):
            return Unfilled(f"{self.field}-not-allowed")
        return value

    def allowed(self, value: str) -> bool:
        return value in self.allow

    def agrees(self, body: bytes, value: str) -> bool:
        """Whether a glance at the reply shows that nothing contradicts it: no such member says another."""
        if self.named is None or b"\\" in body:
            return False
        name, said = self.named, quoted(value)
        return body.count(name) == body.count(name + b":" + said) + body.count(name + b": " + said)

    def contradicted(self, reply: Any, value: str, data: Mapping[str, str]) -> bool:
        """Whether the reply to the call names another value than the one that was filled."""
        if not isinstance(reply, dict):
            return False
        named = reply.get(self.field)
        if not isinstance(named, str):
            named = self.chosen(reply, data)
        return isinstance(named, str) and named != value
