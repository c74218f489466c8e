"""
What the gateway knows how to repair: the diagnose and rewrite phases, and one table that lists the repairs.

Nothing here does I/O, reads a clock or logs. To add a repair: a file of its own whose class has
`diagnose(draft) -> Finding`, a section in config.py, and its line in REPAIRS.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.http import headers as h
from gateway.http.headers import METHOD_OVERRIDES, Fields
from gateway.repairs.call import Call, Change
from gateway.repairs.content_type import ContentType, is_json_or_mistaken
from gateway.repairs.encoding import Declared, Encoding
from gateway.repairs.fill import Fill
from gateway.repairs.findings import Draft, Explicit, Finding, Missing, NotApplicable, Repaired, Unfilled
from gateway.repairs.json_text import ObjectText

__all__ = ["Diagnosis", "Fill", "Given", "Repair", "Unfilled", "Want", "build", "diagnose", "rewrite"]

# RFC 9530, RFC 9421 and their forerunners: a body under one of these can't be changed unnoticed.
SIGNED = frozenset(
    {b"content-digest", b"repr-digest", b"digest", b"content-md5", b"signature", b"signature-input"}
)


class Repair(Protocol):
    def diagnose(self, draft: Draft) -> Finding: ...


REPAIRS: dict[str, Callable[[Any, int, tuple[str, ...]], Repair]] = {
    "encoding": lambda settings, limit, parameters: Encoding(limit),
    "content_type": lambda settings, limit, parameters: ContentType.of(settings.value),
    "fill": lambda settings, limit, parameters: Fill.of(settings, parameters),
}


def build(settings: Sequence[Any], limit: int, parameters: tuple[str, ...]) -> tuple[Repair, ...]:
    """`limit`: bytes a decoded body may have; `parameters`: the names in the rule's path, in order."""
    return tuple(REPAIRS[one.type](one, limit, parameters) for one in settings)


class Diagnosis(Struct, frozen=True):
    """
    `call` with the repairs that need no look-up, `changes` what they did, `wants` what is to be looked
    up, `given` what the client named itself. `left` says why the whole call must go on as it came,
    `unfilled` why a fill alone is not to be made.
    """

    call: Call
    document: ObjectText | None
    changes: tuple[Change, ...] = ()
    missing: tuple[Missing, ...] = ()
    explicit: tuple[Explicit, ...] = ()
    not_applicable: str | None = None
    unfilled: str | None = None

    @property
    def nothing_to_repair(self) -> bool:
        return not self.changes and not self.missing

    @property
    def reason(self) -> str:
        """Why a sound call is left as it is."""
        return self.not_applicable or self.unfilled or "conforming"

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


def exemption(headers: Fields, repairs: Sequence[Repair]) -> str | None:
    """Why a call may not be touched, whatever its body is (C6)."""
    fields = headers.derived(h.by_name)
    if not SIGNED.isdisjoint(fields):
        return "signed-body"
    # RFC 9110 section 7.7 and RFC 9111 section 5.2.1.6
    if b"cache-control" in fields and any(
        b"no-transform" in value.lower() for value in h.every(headers, b"cache-control")
    ):
        return "no-transform"
    if not METHOD_OVERRIDES.isdisjoint(fields):
        return "method-override"
    wanted = next((one.value for one in repairs if isinstance(one, ContentType)), b"application/json")
    return None if is_json_or_mistaken(headers, wanted) else "media-type"


def diagnose(call: Call, repairs: tuple[Repair, ...]) -> Diagnosis:
    """Raises BodyTooLarge where decoding the body passes the limit."""
    draft = Draft.of(call)
    head = call.headers.derived(_of_head, repairs)
    if head.exempt is not None:
        return Diagnosis(call, None, explicit=named(draft, repairs), not_applicable=head.exempt)
    if draft.document is None or not head.plain:
        return _diagnosis(draft, repairs)
    if head.changes:
        draft = Draft(call, Call(call.method, call.target, head.headers, call.body), draft.document)
    return _diagnosis(draft, head.left, head.changes)


def _diagnosis(draft: Draft, repairs: Sequence[Repair], changes: tuple[Change, ...] = ()) -> Diagnosis:
    call = draft.original
    missing: tuple[Missing, ...] = ()
    explicit: tuple[Explicit, ...] = ()
    unfilled: str | None = None
    for repair in repairs:
        finding = repair.diagnose(draft)
        if finding is None:
            continue
        if isinstance(finding, Missing):
            missing += (finding,)
        elif isinstance(finding, Repaired):
            draft = Draft(call, finding.call, finding.document)
            changes += (finding.change,)
        elif isinstance(finding, Explicit):
            explicit += (finding,)
        elif isinstance(finding, NotApplicable):
            return Diagnosis(call, None, not_applicable=finding.reason)
        else:
            unfilled = finding.reason
    return Diagnosis(draft.call, draft.document, changes, missing, explicit, None, unfilled)


class _Head(Struct, frozen=True):
    """
    What a head alone says: why the call may not be touched; whether a body that is a JSON object in UTF-8 is
    what it is said to be (`plain`); and if so the fields repaired, and the repairs that have to see the body.
    """

    exempt: str | None
    plain: bool
    headers: Fields
    changes: tuple[Change, ...]
    left: tuple[Repair, ...]


def _of_head(headers: Fields, repairs: tuple[Repair, ...]) -> _Head:
    left = tuple(repair for repair in repairs if isinstance(repair, Fill))
    others = tuple(repair for repair in repairs if not isinstance(repair, Fill))
    found = _diagnosis(Draft.of(Call(b"", b"", headers, b"{}")), others)
    return _Head(
        exemption(headers, repairs),
        headers.derived(Declared.of).plain,
        found.call.headers,
        found.changes,
        left,
    )


def named(draft: Draft, repairs: Sequence[Repair]) -> tuple[Explicit, ...]:
    """What a call that may not be touched names all the same: its value counts once it is accepted (S5)."""
    if draft.document is None:
        return ()
    found = (repair.diagnose(draft) for repair in repairs if isinstance(repair, Fill))
    return tuple(one for one in found if isinstance(one, Explicit))


def rewrite(
    found: Diagnosis, values: Mapping[str, tuple[str, Change]], guard: bytes | None = None
) -> tuple[Call, tuple[Change, ...]]:
    """
    `values`: for each field that is to be filled its value, and the change as it will be recorded.
    `guard`: the entity tag to send as If-Match, unless the client sent its own.
    """
    call, document, changes = found.call, found.document, list(found.changes)
    headers, body = call.headers, call.body
    if values and document is not None:
        for missing in found.missing:
            if missing.field in values:
                value, change = values[missing.field]
                document = missing.filled(document, value)
                changes.append(change)
        body = document.text.encode("utf-8")
        if guard is not None and h.first(headers, b"if-match") is None:
            headers = Fields([*headers, (b"if-match", guard)])
            changes.append(Change.of("guard", header="if-match", after=h.text(guard)))
    if not changes:
        return call, ()
    # Exactly one Content-Length, and the right one: it is written with the body (RFC 9110 section 8.6).
    return Call(call.method, call.target, headers.derived(h.without_length), body), tuple(changes)
