"""
The diagnose and rewrite phases: which repairs a call needs, and the call with the repairs made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

from msgspec import Struct

from gateway.http import headers as h
from gateway.http.headers import Fields
from gateway.repairs.call import Call, Change
from gateway.repairs.declared import Declared
from gateway.repairs.exemption import exemption
from gateway.repairs.findings import (
    NO_PARAMETERS,
    AnswerAs,
    Draft,
    Explicit,
    Missing,
    NotApplicable,
    Repaired,
    Retargeted,
    Violated,
)
from gateway.repairs.json_schema import Violation
from gateway.repairs.json_text import ObjectText, read
from gateway.repairs.repair import Repair, Stage


class Diagnosis(Struct, frozen=True):
    """
    `call` and its body, `document`, after the repairs that need no look-up, which made `changes`. `missing`
    are the members to look up, `explicit` those that the client gave itself. `not_applicable` says why the
    whole call must go on as it came, `unfilled` why a member is not to be filled. `answer`: for a call that
    goes to another operation, what its client is told. `violations` are what its body was found not to fit,
    `rejected` says that it is to be refused for them; `checks` have to see the call with what is filled.
    """

    call: Call
    document: ObjectText | None
    changes: tuple[Change, ...] = ()
    missing: tuple[Missing, ...] = ()
    explicit: tuple[Explicit, ...] = ()
    not_applicable: str | None = None
    unfilled: str | None = None
    answer: AnswerAs | None = None
    violations: tuple[Violation, ...] = ()
    rejected: bool = False
    checks: tuple[Repair, ...] = ()

    @property
    def nothing_to_repair(self) -> bool:
        return not self.changes and not self.missing

    @property
    def reason(self) -> str:
        """Why a call that has nothing to repair is left as it is."""
        named = self.not_applicable or self.unfilled
        if named is not None:
            return named
        # The client named the member, and its null is its own (S1); but an upstream may call it missing.
        return "explicit-null" if any(one.value is None for one in self.explicit) else "conforming"

    @property
    def needs(self) -> list[str]:
        return [change.repair for change in self.changes] + [
            f"fill {missing.field}" for missing in self.missing
        ]

    @property
    def may_change_state(self) -> bool:
        """A call that names the value, or that can't be read, may change it at the upstream (S4)."""
        return bool(self.explicit) or self.not_applicable is not None or self.unfilled is not None

    def names(self, fields: Collection[str]) -> bool:
        return bool(fields) and self.document is not None and any(map(self.document.named, fields))


def diagnose(
    call: Call, repairs: tuple[Repair, ...], parameters: dict[str, bytes] = NO_PARAMETERS
) -> Diagnosis:
    """
    `parameters`: the raw segments that the rule's path names. Raises BodyTooLarge where decoding the body
    passes the limit.
    """
    draft = Draft.of(call, parameters)
    head = call.headers.derived(_of_head, repairs)
    if head.exempt is not None:
        return Diagnosis(call, None, explicit=_explicit(draft, repairs), not_applicable=head.exempt)
    if draft.document is None or not head.decided:
        return _diagnosis(draft, repairs)
    if head.changes:
        repaired = Call(call.method, call.target, head.headers, call.body)
        draft = Draft(call, repaired, draft.document, "", parameters)
    return _diagnosis(draft, head.following, head.changes)


def _diagnosis(draft: Draft, repairs: Sequence[Repair], changes: tuple[Change, ...] = ()) -> Diagnosis:
    call = draft.original
    missing: tuple[Missing, ...] = ()
    explicit: tuple[Explicit, ...] = ()
    unfilled: str | None = None
    answer: AnswerAs | None = None
    violations: tuple[Violation, ...] = ()
    rejected = False
    checks: tuple[Repair, ...] = ()
    for repair in repairs:
        if repair.after:
            checks += (repair,)
            continue
        if answer is not None and repair.stage is Stage.LOOK_UP:
            continue
        finding = repair.diagnose(draft)
        if finding is None:
            continue
        if isinstance(finding, Missing):
            missing += (finding,)
        elif isinstance(finding, Repaired | Retargeted):
            draft = Draft(call, finding.call, finding.document, "", draft.parameters)
            changes += (finding.change,)
            if isinstance(finding, Retargeted):
                answer = finding.reply
        elif isinstance(finding, Explicit):
            explicit += (finding,)
        elif isinstance(finding, Violated):
            violations += finding.violations
            rejected = rejected or finding.rejects
        elif isinstance(finding, NotApplicable):
            return Diagnosis(call, None, not_applicable=finding.reason)
        else:
            unfilled = finding.reason
    if checks and draft.document is None:
        return Diagnosis(call, None, not_applicable=draft.reason)
    if checks and not missing:
        more = checked(checks, draft)
        violations, rejected, checks = violations + more[0], rejected or more[1], ()
    return Diagnosis(
        draft.call, draft.document, changes, missing, explicit, None, unfilled, answer,
        violations, rejected, checks,
    )  # fmt: skip


def checked(checks: Sequence[Repair], draft: Draft) -> tuple[tuple[Violation, ...], bool]:
    """What the call does not fit, and whether it is to be refused for that."""
    found = [one for one in (repair.diagnose(draft) for repair in checks) if isinstance(one, Violated)]
    return tuple(one for each in found for one in each.violations), any(each.rejects for each in found)


class _Head(Struct, frozen=True):
    """
    What the header fields alone say. `exempt`: why the call may not be touched. `decided`: whether they alone
    decide what the first repairs find where the body is a JSON object in UTF-8. If so, these made `headers`
    and `changes`, and only the repairs that are `following` have to see each body.
    """

    exempt: str | None
    decided: bool
    headers: Fields
    changes: tuple[Change, ...]
    following: tuple[Repair, ...]


_EMPTY = read("{}")


def _of_head(headers: Fields, repairs: tuple[Repair, ...]) -> _Head:
    exempt = exemption(headers, repairs)
    if exempt is not None or not headers.derived(Declared.of).plain:
        return _Head(exempt, False, headers, (), repairs)
    # Up to the first that reads the body, which may change the fields for those after it.
    first = tuple(takewhile(lambda repair: not repair.reads_body, repairs))
    call = Call(b"", b"", headers, b"{}")
    found = _diagnosis(Draft(call, call, _EMPTY), first)
    # Remembered only if nothing but header fields changed; else each call is diagnosed by itself.
    decided = found == Diagnosis(Call(b"", b"", found.call.headers, b"{}"), _EMPTY, found.changes)
    return _Head(None, decided, found.call.headers, found.changes, repairs[len(first) :])


def _explicit(draft: Draft, repairs: Sequence[Repair]) -> tuple[Explicit, ...]:
    """What a call that may not be touched names all the same: its value counts once it is accepted (S5)."""
    if draft.document is None:
        return ()
    found = (repair.explicit(draft) for repair in repairs)
    return tuple(one for one in found if one is not None)


def left_as_it_is(found: Diagnosis, call: Call, reason: str) -> Diagnosis:
    """For a call that is found to be one that must go on as it came, whatever its repairs would do."""
    return Diagnosis(call, None, explicit=found.explicit, not_applicable=reason)


def rewrite(
    found: Diagnosis, values: Mapping[str, tuple[str, Change]], guard: bytes | None = None
) -> tuple[Call, tuple[Change, ...]]:
    """
    `values`: for each field that is to be filled its value, and the change as it will be recorded.
    `guard`: the entity tag to send as If-Match, unless the client sent its own.
    """
    call, document, changes = found.call, found.document, found.changes
    headers, body = call.headers, call.body
    if values and document is not None:
        for missing in found.missing:
            filled = values.get(missing.field)
            if filled is not None:
                document = missing.filled(document, filled[0])
                changes += (filled[1],)
        body = document.text.encode("utf-8")
        if guard is not None and h.first(headers, b"if-match") is None:
            headers = Fields([*headers, (b"if-match", guard)])
            changes += (Change.of("guard", header="if-match", after=h.text(guard)),)
    if not changes:
        return call, ()
    # Exactly one Content-Length, and the right one: it is written with the body (RFC 9110 section 8.6).
    return Call(call.method, call.target, headers.derived(h.without_length), body), changes
