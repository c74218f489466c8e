"""
The `retarget` repair: a body that has nothing but certain members goes to the operation that the API has for
these. It needs no state, so nothing is looked up, and nothing is answered or hung up.

Whether the upstream has that operation only its reply tells (proxy/retargeting.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gateway import paths as templates
from gateway.http import headers as h
from gateway.http.grammar import BODILESS
from gateway.paths import Template
from gateway.repairs import json_text
from gateway.repairs.call import Call, Change
from gateway.repairs.findings import AnswerAs, Draft, Finding, NotApplicable, Retargeted
from gateway.repairs.json_text import ObjectText
from gateway.repairs.repair import Repair, RepairSettings, Stage
from gateway.units import Duration, Section, at_least_one, checked

PATH = "{path}"  # what a target may begin with: the call's own path
SHOWN = 1024  # bytes of a path on the audit log's line of a change


def _target(text: str) -> Template:
    """Of what stands after the call's own path, or of the whole. Raises ValueError."""
    return templates.parse_whole(text.removeprefix(PATH))


def _fits(text: str, pattern: re.Pattern[str]) -> bool:
    """Whether it is a JSON object with values at its marks, and no mark in a text or for a name."""
    try:
        return all(isinstance(json.loads(pattern.sub(value, text)), dict) for value in ('""', "{}"))
    except (ValueError, RecursionError):
        return False


def _marks(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\{(" + "|".join(re.escape(name) for name in names) + r")\}")


class RetargetReply(Section):
    status: Annotated[int, Field(ge=200, le=299)] | None = None
    """What the client gets where the upstream accepted the call (2xx); none given: what the upstream said."""
    body: Literal["pass", "empty"] = "pass"
    """`empty`: the client gets none, as of an operation that answers with none."""

    @model_validator(mode="after")
    def _no_body_where_there_is_none(self) -> RetargetReply:
        if self.status in BODILESS and self.body != "empty":
            raise ValueError(f"body: expected empty, since a reply with {self.status} has none")
        return self


class RetargetSettings(RepairSettings):
    type: Literal["retarget"]
    to: Annotated[str, checked(_target), Field(examples=["{path}/attributes"])]
    """
    Where the call goes: `{path}` and what follows it, or a path with parameters of the rule's own. Segments
    are copied as they came, the query is kept.
    """
    only: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AfterValidator(at_least_one)] = (
        "attributes",
    )
    """The members that the body may have: with another, or one of them twice, the call stays where it is."""
    body: str | None = None
    """
    The body that goes there, as JSON in which `{name}` stands for the member's own text, such as
    `{"values": {attributes}}`; none given: the client's own.
    """
    reply: RetargetReply = RetargetReply()
    """What the client is told, who expects the reply of the operation that it called."""
    otherwise: Annotated[Literal["none", "fill"], Field(alias="or")] = "none"
    """
    `fill`: where the upstream has no such operation (405, or 404 where the filled call is then accepted) the
    rule's `fill` is done instead; `none`: its refusal is relayed.
    """
    absent_for: Duration = 300.0
    """With `or: fill`, for how long it is remembered, for this rule, that there is no such operation."""

    @model_validator(mode="after")
    def _a_body_that_is_json(self) -> RetargetSettings:
        if self.body is not None and not _fits(self.body, _marks(self.only)):
            names = ", ".join(f"{{{name}}}" for name in self.only)
            raise ValueError(f"body: expected a JSON object in which {names} may stand for values")
        return self

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield f"retarget a body with nothing but {', '.join(self.only)} to {self.to}"
        if self.body is not None:
            yield f"  as {self.body}"
        status = self.reply.status or "the upstream's status"
        yield f"  answered with {status}, body {self.reply.body}"
        if self.otherwise == "fill":
            yield f"  where there is no such operation: fill, and for {self.absent_for:g}s at once"

    def errors(self, parameters: tuple[str, ...], method: str) -> Iterator[tuple[str, str]]:
        for name in _target(self.to).names:
            if name not in parameters:
                yield "to", f"no parameter {name!r} in match.path"


@dataclass(frozen=True, slots=True, eq=False)
class Retarget(Repair):
    settings = RetargetSettings
    stage = Stage.MEMBERS
    once = True
    reads_body = True

    to: Template
    beneath: bool  # the call's own path
    only: frozenset[str]
    # The text of the body, with the names of members at odd places; None for the client's own.
    body: tuple[str, ...] | None
    reply: AnswerAs
    falls_back: bool
    absent_for: float
    text: str

    @classmethod
    def of(cls, settings: RetargetSettings, limit: int, parameters: tuple[str, ...]) -> Retarget:
        body = None if settings.body is None else tuple(_marks(settings.only).split(settings.body))
        return cls(
            _target(settings.to),
            settings.to.startswith(PATH),
            frozenset(settings.only),
            body,
            AnswerAs(settings.reply.status, settings.reply.body == "empty"),
            settings.otherwise == "fill",
            settings.absent_for,
            settings.to,
        )

    def diagnose(self, draft: Draft) -> Finding:
        document = draft.document
        if document is None:
            return NotApplicable(draft.reason)
        names = [name for name, _ in document.members]
        if not names or not self.only.issuperset(names) or len(set(names)) < len(names):
            return None
        call, body = draft.call, draft.call.body
        if self.body is not None:
            if not set(self.body[1::2]).issubset(names):
                return None
            document = json_text.read(self._written(self.body, document))
            body = document.text.encode("utf-8")
        path, mark, query = call.target.partition(b"?")
        target = self.to.filled(draft.parameters)
        if self.beneath:
            target = path + target
        change = Change.of("retarget", before=h.text(path, SHOWN), after=h.text(target, SHOWN))
        moved = Call(call.method, target + mark + query, call.headers, body)
        return Retargeted(moved, document, change, self.reply)

    def _written(self, parts: tuple[str, ...], document: ObjectText) -> str:
        texts = [document.text_of(part) if i % 2 else part for i, part in enumerate(parts)]
        return "".join(texts)
