"""
The `fill` repair: a member that is missing is inserted into the client's own text, after a look-up.

The look-up itself is not here: this file says what is to be looked up, which values may be filled (S7), and
which replies contradict one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway import paths as templates
from gateway.paths import Template
from gateway.repairs import select
from gateway.repairs.findings import Draft, Explicit, Finding, Missing, NotApplicable, Unfilled
from gateway.repairs.json_text import quoted
from gateway.repairs.repair import Repair, RepairSettings, Stage
from gateway.units import Duration, Timeout, at_least_one, checked

MAX_AGE_REFUSED = 60.0
MAX_AGE_WARNED = 5.0
# A refusal that says nothing about whether the PATCH was applied, or that a second PATCH can't cure.
NEVER_REFILLED = frozenset({401, 403, 404, 429})


def _path_of_a_conversation(value: str) -> None:
    if not templates.parse_whole(value).names:
        raise ValueError("expected a path with at least one {parameter}")


def _fresh(value: float) -> float:
    if value > MAX_AGE_REFUSED:
        raise ValueError(f"expected at most {MAX_AGE_REFUSED:g}s: an older state answers or hangs up calls")
    return value


def _proof(status: int) -> int:
    if status in NEVER_REFILLED or not 400 <= status < 500:
        raise ValueError("expected a status that proves that the PATCH was not applied, such as 409")
    return status


class FillSettings(RepairSettings):
    type: Literal["fill"]
    field: Annotated[str, Field(min_length=1, examples=["state"])]
    """The member."""
    source: Annotated[
        str,
        checked(_path_of_a_conversation),
        Field(alias="from", examples=["/api/v2/conversations/web/instances/{conversationId}"]),
    ]
    """The look-up's path, with parameters of the rule's own."""
    select: Annotated[
        str,
        checked(select.compiled),
        Field(examples=["$.participants[?@.id == _.participantId && $.id == _.conversationId].state"]),
    ]
    """RFC 9535 JSONPath on the look-up's reply, where `_.name` is a path parameter."""
    allow: Annotated[tuple[str, ...], AfterValidator(at_least_one), Field(examples=[["active", "connected"]])]
    """Values that may be filled."""
    max_age: Annotated[Duration, AfterValidator(_fresh)] = 1.0
    """
    The oldest that a filled value may be when the call leaves, 60s at most; `0s` is a fresh GET for each
    call.
    """
    lookup_timeout: Timeout = 5.0
    """How long one look-up may take (at most half of `limits.deadline`): else 504."""
    settle: Duration = 2.0
    """For how long after an explicit value was accepted a fill needs a look-up that agrees with it."""
    refill_on: tuple[Annotated[int, AfterValidator(_proof)], ...] = (409, 412)
    """Refusals that allow one more try."""
    null_is_missing: bool = False
    """`null` counts as missing, and is replaced in place."""
    learn: bool = True
    """A client's own GET of `from` saves a look-up."""
    guard: Literal["none", "etag"] = "none"
    """`etag`: send If-Match with the PATCH."""

    @property
    def conversation(self) -> str:
        """The path parameter that names the conversation: what is looked up is about it."""
        return templates.parse(self.source).names[-1]

    def subject(self, parameters: tuple[str, ...]) -> tuple[str, ...]:
        """
        The path parameters that name whose value it is within the conversation (the participant): by any
        path that has them, the same.
        """
        names, used = templates.parse(self.source).names, select.parameters(self.select)
        return tuple(name for name in parameters if name in used and name not in names)

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield f"fill {self.field} of {', '.join(self.subject(parameters))} from GET {self.source}"
        yield f"  {self.select}"
        yield f"  only {', '.join(self.allow)}; at most {self.max_age:g}s old"
        yield f"  settles {self.settle:g}s; refilled on {sorted(set(self.refill_on))}"

    def errors(self, parameters: tuple[str, ...], method: str) -> Iterator[tuple[str, str]]:
        used = {"from": templates.parse(self.source).names, "select": select.parameters(self.select)}
        for key, names in used.items():
            for name in names:
                if name not in parameters:
                    yield key, f"no parameter {name!r} in match.path"

    def warnings(self) -> Iterator[str]:
        if self.max_age > MAX_AGE_WARNED:
            yield f"max_age {self.max_age:g}s: a state this old may already be wrong"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fill(Repair):
    """Its settings, compiled. Durations in seconds."""

    settings = FillSettings
    stage = Stage.LOOK_UP
    reads_body = True

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
    lookup_timeout: float = 5.0
    # The member's name as JSON text, where only a member of that name can contradict a filled value.
    named: bytes | None = None

    @classmethod
    def of(cls, settings: FillSettings, limit: int, parameters: tuple[str, ...]) -> Fill:
        return cls(
            field=settings.field,
            source=templates.parse(settings.source),
            select=settings.select,
            allow=frozenset(settings.allow),
            max_age=settings.max_age,
            settle=settings.settle,
            refill_on=frozenset(settings.refill_on),
            null_is_missing=settings.null_is_missing,
            learn=settings.learn,
            guarded=settings.guard == "etag",
            conversation=settings.conversation,
            subject=settings.subject(parameters),
            lookup_timeout=settings.lookup_timeout,
            named=quoted(settings.field) if select.member(settings.select) == settings.field else None,
        )

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        values = draft.document.named(self.field)
        if not values:
            return Missing(self.field)
        if len(values) > 1:  # RFC 8259 section 4: which of them counts is not known
            return Unfilled("duplicate-member")
        if values[0] is None and self.null_is_missing:
            return Missing(self.field, there=True)
        return Explicit(self.field, values[0])

    def explicit(self, draft: Draft) -> Explicit | None:
        found = self.diagnose(draft)
        return found if isinstance(found, Explicit) else None

    def chosen(self, document: Any, data: Mapping[str, str]) -> str | Unfilled:
        """The one value that is found, or why there is none. `data`: the path's parameters, decoded."""
        return self.judged(select.values(self.select, document, data))

    def judged(self, values: list[Any]) -> str | Unfilled:
        """`values`: the distinct ones that were found, two of them where there are more."""
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
        """
        Whether the text of the reply alone shows that it does not contradict `value`: every member that could
        has that value. False where the reply has to be parsed to tell.
        """
        if self.named is None or b"\\" in body:
            return False
        name, expected = self.named, quoted(value)
        return body.count(name) == body.count(name + b":" + expected) + body.count(name + b": " + expected)

    def contradicted(self, reply: Any, value: str, data: Mapping[str, str]) -> bool:
        """Whether the reply to the call names another value than the one that was filled."""
        return self.reported(reply, data) not in {None, value}

    def reported(self, reply: Any, data: Mapping[str, str]) -> str | None:
        """The value that the reply to a call names, if it does."""
        if not isinstance(reply, dict):
            return None
        named = reply.get(self.field)
        if not isinstance(named, str):
            named = self.chosen(reply, data)
        return named if isinstance(named, str) else None
