"""
The `method` repair: a call that means the rule's method, by a field or in small letters, is sent as that.

By a field: `X-HTTP-Method-Override` and its like on a POST. A member such as `_method` never counts: it is
data of the client's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.http import headers as h
from gateway.http.grammar import METHOD_OVERRIDES
from gateway.http.headers import Fields, Headers
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft, Finding, NotApplicable, Repaired
from gateway.repairs.repair import Repair, RepairSettings, Stage


class MethodSettings(RepairSettings):
    type: Literal["method"]
    value: Annotated[str, Field(pattern=r"^[A-Z]+$")] = "PATCH"
    """The method that it becomes: that of the rule's `match`."""

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield f"method becomes {self.value}, from small letters or a POST with X-HTTP-Method-Override"

    def errors(self, parameters: tuple[str, ...], method: str) -> Iterator[tuple[str, str]]:
        if self.value != method:
            yield "value", f"expected {method}, the method of match"


def _not_overridden(headers: Headers) -> Fields:
    return h.without(headers, METHOD_OVERRIDES)


@dataclass(frozen=True, slots=True, eq=False)
class Method(Repair):
    settings = MethodSettings
    stage = Stage.FIELDS
    once = True
    reads_body = True  # what it finds depends on the method, which the header fields do not tell

    value: bytes
    text: str

    @classmethod
    def of(cls, settings: MethodSettings, limit: int, parameters: tuple[str, ...]) -> Method:
        return cls(settings.value.encode(), settings.value)

    def claims(self, methods: Sequence[str]) -> bool:
        return bool(methods) and all(one == self.text for one in methods)

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        call = draft.call
        fields = sorted({name.decode() for name, _ in call.headers if name in METHOD_OVERRIDES})
        if call.method == self.value and not fields:
            return None
        headers = call.headers.derived(_not_overridden) if fields else call.headers
        said: dict[str, Any] = {"before": h.text(call.method), "after": self.text}
        if fields:
            said["fields"] = fields
        repaired = Call(self.value, call.target, headers, call.body)
        return Repaired(repaired, draft.document, Change.of("method", **said))
