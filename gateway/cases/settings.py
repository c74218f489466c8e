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
    """`method` None is the rule's own."""

    method: Annotated[str, Field(pattern=r"^[!-~]+$")] | None = None
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]
    headers: Fields | None = None
    body: Body = None


class CaseLookup(Section):
    status: Annotated[int, Field(ge=200, le=599)] = 200
    body: Body = None


class CaseExpected(Section):
    """A body that is a text is compared byte by byte, one that is a structure as JSON."""

    body: Body = None
    headers: Fields | None = None


class CaseSettings(Section):
    name: str | None = None
    call: CaseCall
    lookup: CaseLookup | None = None
    expect: CaseExpected | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _something_expected(self) -> CaseSettings:
        if self.reason is None and (
            self.expect is None or (self.expect.body is None and not self.expect.headers)
        ):
            raise ValueError("expect: required, with body or headers, unless there is a reason")
        return self


def text(body: Any) -> str:
    """As it is sent: a structure is compact JSON."""
    if body is None or isinstance(body, str):
        return body or ""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)
