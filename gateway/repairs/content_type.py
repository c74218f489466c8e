"""
The `content_type` repair: a JSON object that is called something else, or nothing, is called JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from gateway.http import headers as h
from gateway.http.headers import Fields, Headers
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft, Finding, NotApplicable, Repaired

MISTAKEN = frozenset({b"", b"application/x-www-form-urlencoded", b"application/octet-stream"})


def is_json_or_mistaken(headers: Headers, wanted: bytes) -> bool:
    """False for types that say something of their own: multipart, JSON Patch and other +json, XML …"""
    values = h.every(headers, b"content-type")
    return not values or (len(values) == 1 and _is_json_or_mistaken(values[0], wanted))


@lru_cache(maxsize=256)
def _is_json_or_mistaken(value: bytes, wanted: bytes) -> bool:
    kind = h.media_type(value)[0]
    return kind in {b"application/json", wanted} or kind in MISTAKEN or kind.startswith(b"text/")


@dataclass(frozen=True, slots=True, eq=False)
class ContentType:
    value: bytes
    text: str

    @classmethod
    def of(cls, value: str) -> ContentType:
        return cls(value.encode(), value)

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
        current = h.first(headers, b"content-type")
        if current is not None and current.lower() == self.value:
            return None
        return h.replaced(headers, b"content-type", self.value)

    def _change(self, headers: Headers) -> Change:
        before = h.first(headers, b"content-type")
        return Change.of("content_type", before=None if before is None else h.text(before), after=self.text)
