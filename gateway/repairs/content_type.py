"""
The `content_type` repair: a JSON object that is called something else, or nothing, is called JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from gateway.http import headers as h
from gateway.http.headers import Fields, Headers
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft, Finding, NotApplicable, Repaired
from gateway.repairs.repair import Repair, RepairSettings, Stage
from gateway.units import checked


def _json_type(value: str) -> None:
    if not re.fullmatch(r"application/([a-z0-9.-]+\+)?json", value):
        raise ValueError("expected a JSON media type such as application/json")


class ContentTypeSettings(RepairSettings):
    type: Literal["content_type"]
    value: Annotated[str, checked(_json_type)] = "application/json"
    """The type that it becomes."""

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield f"content_type becomes {self.value}"


@dataclass(frozen=True, slots=True, eq=False)
class ContentType(Repair):
    settings = ContentTypeSettings
    stage = Stage.FIELDS
    once = True
    reads_body = False

    value: bytes
    text: str

    @classmethod
    def of(cls, settings: ContentTypeSettings, limit: int, parameters: tuple[str, ...]) -> ContentType:
        return cls(settings.value.encode(), settings.value)

    def accepts(self, media_type: bytes) -> bool:
        return media_type == self.value

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        call = draft.call
        headers = call.headers.derived(self._retyped)
        if headers is None:
            return None
        change = draft.original.headers.derived(self._change)
        return Repaired(Call(call.method, call.target, headers, call.body), draft.document, change)

    def _retyped(self, headers: Headers) -> Fields | None:
        """None where they say the type already, and nothing more (RFC 8259 section 11: no parameters)."""
        current = h.first(headers, b"content-type")
        if current is not None and current.lower() == self.value:
            return None
        return h.replaced(headers, b"content-type", self.value)

    def _change(self, headers: Headers) -> Change:
        before = h.first(headers, b"content-type")
        return Change.of("content_type", before=None if before is None else h.text(before), after=self.text)
