"""
What a repair says it found in a call. Pure values; diagnose() in this package acts on them.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from gateway.repairs.call import Call, Change
from gateway.repairs.json_text import NotAnObject, ObjectText, read


class Draft(Struct, frozen=True):
    """
    The call with the repairs so far; `document` is None where the body is no JSON object (`reason`).
    """

    original: Call
    call: Call
    document: ObjectText | None
    reason: str = ""

    @classmethod
    def of(cls, call: Call) -> Draft:
        try:
            return cls(call, call, read(call.body.decode("utf-8")))
        except UnicodeDecodeError:
            return cls(call, call, None, "not-utf-8")
        except NotAnObject as error:
            return cls(call, call, None, error.reason)


class Repaired(Struct, frozen=True):
    call: Call
    document: ObjectText
    change: Change


class NotApplicable(Struct, frozen=True):
    """The whole call must go on as it came."""

    reason: str


class Missing(Struct, frozen=True):
    """The member `field` is missing, or null (`there`) where that counts as missing: to be looked up."""

    field: str
    there: bool = False

    def filled(self, document: ObjectText, value: str) -> ObjectText:
        if self.there:
            return document.with_value(self.field, value)
        return document.with_member(self.field, value)


class Explicit(Struct, frozen=True):
    """The client gave the value of `field` itself: never altered (S1), a witness once it is accepted (S5)."""

    field: str
    value: Any


class Unfilled(Struct, frozen=True):
    """The member is neither there to be trusted nor missing: the other repairs still apply."""

    reason: str


Finding = Repaired | NotApplicable | Missing | Explicit | Unfilled | None
