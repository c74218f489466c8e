"""
A rule's own tests, as config.yaml has them: a call, what its look-up finds, and what is to become of it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from gateway.http.grammar import TCHAR
from gateway.units import Section


def _sendable(value: Any) -> Any:
    try:
        if not isinstance(value, str | dict | list):
            raise TypeError
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("expected a text, or a structure that JSON can say") from error
    return value


Body = Annotated[Any, AfterValidator(_sendable)]
Fields = dict[Annotated[str, Field(pattern=f"^{TCHAR.decode()}+$")], str]


class CaseCall(Section):
    method: Annotated[str, Field(pattern=r"^[!-~]+$")] | None = None
    """None given: the rule's own."""
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]
    """The call's path, with its query."""
    headers: Fields | None = None
    """Its fields, each a name and a text."""
    body: Body = None
    """A text, or a structure that is sent as compact JSON."""


class CaseLookup(Section):
    status: Annotated[int, Field(ge=200, le=599)] = 200
    """The status that each look-up gets."""
    body: Body = None
    """And the body."""


class CaseExpected(Section):
    method: str | None = None
    """The method that the upstream gets."""
    path: str | None = None
    """The path, with its query."""
    body: Body = None
    """What the upstream gets: a text is compared byte by byte, a structure as JSON."""
    headers: Fields | None = None
    """Fields that it gets."""


class CaseSettings(Section):
    name: str | None = None
    """Stands in what `gateway check` says of it."""
    call: CaseCall
    """What a client sends."""
    lookup: CaseLookup | None = None
    """What the upstream says to a look-up."""
    expect: CaseExpected | None = None
    """What becomes of the call."""
    reason: str | None = None
    """Instead of `expect` or beside it: why the call goes on unfilled, as it came, or not at all."""

    @model_validator(mode="after")
    def _something_expected(self) -> CaseSettings:
        if self.reason is None and (self.expect is None or not self.expect.model_fields_set):
            raise ValueError("expect: required, with method, path, body or headers, unless there is a reason")
        return self


def text(body: Any) -> str:
    """As it is sent: a structure is compact JSON."""
    if body is None or isinstance(body, str):
        return body or ""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)
