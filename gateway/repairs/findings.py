"""
What a repair is shown of a call, and what it may find in it. Values; `diagnosis.py` acts on them.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from gateway.repairs.call import Call, Change
from gateway.repairs.json_schema import Violation
from gateway.repairs.json_text import NotAnObject, ObjectText, read

NO_PARAMETERS: Final[dict[str, bytes]] = {}


class Draft(Struct, frozen=True):
    """
    `original` is the call as it came, `call` as the repairs so far have made it. `document` is the body of
    `call`, None where that is no JSON object in UTF-8, for the `reason` given. `parameters`: the raw segments
    that the rule's path names.
    """

    original: Call
    call: Call
    document: ObjectText | None
    reason: str = ""
    parameters: dict[str, bytes] = {}

    @classmethod
    def of(cls, call: Call, parameters: dict[str, bytes] = NO_PARAMETERS) -> Draft:
        try:
            return cls(call, call, read(call.body.decode("utf-8")), "", parameters)
        except UnicodeDecodeError:
            return cls(call, call, None, "not-utf-8", parameters)
        except NotAnObject as error:
            return cls(call, call, None, error.reason, parameters)


class Repaired(Struct, frozen=True):
    """
    The call repaired, and what was changed. `document` is the text of `call.body`: both must be kept in
    step.
    """

    call: Call
    document: ObjectText
    change: Change


class AnswerAs(Struct, frozen=True):
    """
    What the client is told of a call that was accepted elsewhere: another `status`, or None; `empty`: no
    body.
    """

    status: int | None
    empty: bool


class Retargeted(Struct, frozen=True):
    """As Repaired, but for another operation, which needs nothing that would have to be looked up."""

    call: Call
    document: ObjectText
    change: Change
    reply: AnswerAs


class NotApplicable(Struct, frozen=True):
    """
    The whole call goes on as it came: what other repairs changed is dropped too. A repair that has nothing
    to do in a call finds None instead.
    """

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
    """
    The client gave the value of `field` itself: never altered (S1); once it is accepted fills must agree
    with it (S5).
    """

    field: str
    value: Any


class Unfilled(Struct, frozen=True):
    """A member is not to be filled; the other repairs are made all the same."""

    reason: str


class Violated(Struct, frozen=True):
    """The body does not fit what is asked of it. `rejects`: the call is to be refused."""

    violations: tuple[Violation, ...]
    rejects: bool


Finding = Repaired | Retargeted | NotApplicable | Missing | Explicit | Unfilled | Violated | None
