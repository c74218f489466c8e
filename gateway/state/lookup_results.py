"""
What is looked up for the fills of one call, and what was found: values, or the upstream's refusal.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.http import headers as h
from gateway.http.headers import Fields, Headers
from gateway.http.slots import Values
from gateway.repairs.call import Change
from gateway.rules import FillTarget
from gateway.state.store import Key, Reading, Refusal

# Replies about the caller or the conversation: the client gets them as the upstream sent them, and a 503 that
# says when to come back (C5).
REFUSALS = frozenset({401, 403, 404, 429})


class LookupRefused(Exception):
    """The upstream refused the look-up: `refusal` is what it said."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.status)
        self.refusal = refusal


class LookupRequest(Struct, frozen=True):
    """
    What is to be looked up for one fill of one call, which had arrived at `since` (of the store's clock).
    `headers`, with `values` in their slots, and `extra_headers` go upstream with the call, whose caller's
    turn the look-up takes.
    """

    target: FillTarget
    key: Key
    caller: str
    headers: Fields
    extra_headers: Headers
    since: float
    values: Values = ()


class LookupResult(Struct, frozen=True):
    """A value that may be filled, and the reading that it was chosen from. `had` is that of `_Found`."""

    request: LookupRequest
    value: str
    reading: Reading
    source: str
    had: float
    isolated: bool = False  # read while the store could not be asked

    def change(self, now: float) -> Change:
        """As it is recorded."""
        field, source = self.request.target.fill.field, self.source
        age = max(0, round((now - self.reading.started + self.reading.age) * 1000))
        record = {"repair": "fill", "field": field, "after": self.value, "source": source, "age_ms": age}
        said = f"; filled={h.bare_item(field)}; source={source}; age={age / 1000}"
        if self.isolated:
            return Change("fill", {**record, "isolated": True}, said + "; isolated")
        return Change("fill", record, said)

    @property
    def guard(self) -> bytes | None:
        """What If-Match can say: a strong validator (RFC 9110 section 13.1.1)."""
        etag = self.reading.etag
        return etag if etag is not None and etag.startswith(b'"') else None


class LookupResults(Struct, frozen=True):
    """What was found for each of a call's fills, by field; `unfilled` says why one may not be made."""

    values: dict[str, LookupResult]
    unfilled: str | None = None

    @property
    def guard(self) -> bytes | None:
        for result in self.values.values():
            if result.request.target.fill.guarded and result.guard is not None:
                return result.guard
        return None

    @property
    def refill_on(self) -> frozenset[int]:
        return frozenset().union(*(result.request.target.fill.refill_on for result in self.values.values()))

    def changes(self, now: float) -> dict[str, tuple[str, Change]]:
        changes = {}
        for field, result in self.values.items():
            changes[field] = result.value, result.change(now)
        return changes

    def differ(self, fresh: LookupResults) -> bool:
        """Whether the fresh results, complete as these, would make another PATCH."""
        if fresh.values.keys() != self.values.keys():
            return False
        return fresh.guard != self.guard or any(
            result.value != fresh.values[field].value for field, result in self.values.items()
        )
