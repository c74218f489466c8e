"""
The rules that a description proposes: for each PATCH or PUT whose body must have members that a GET shows.

What only a person can decide is marked in the text: which values may be filled, and what counts as a write.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, Final

from msgspec import Struct

from gateway.description import schemas
from gateway.description.document import Description, Node
from gateway.description.operations import Api, Operation, is_json, is_unsafe
from gateway.description.sources import MemberSource, source
from gateway.paths import Routes, Template, parse

DECIDE: Final = "# DECIDE:"
UNKNOWN: Final = "CHANGE-ME"  # stands where the description lists no values: it fills nothing
BODY_DEPTH: Final = 3  # objects within a body in which a conversation may be named


class Member(Struct, frozen=True):
    """A member to fill. `allow`: the values that both the body and the reply may have; None: not listed."""

    name: str
    source: MemberSource
    allow: tuple[str, ...] | None
    optional: bool


class Proposal(Struct, frozen=True):
    operation: Operation
    media_type: str
    members: tuple[Member, ...]


def proposals(api: Api, also: Collection[str] = ()) -> list[Proposal]:
    """`also`: members to fill wherever a body may have them, though the description does not demand them."""
    found = []
    for operation in api.operations:
        if operation.method not in {"PATCH", "PUT"} or operation.deprecated:
            continue
        taken = [one for one in operation.takes if is_json(one)]
        members = tuple(_members(api, operation, also))
        if taken and members and len({one.source.path for one in members}) == 1:
            kind = "application/json" if "application/json" in taken else taken[0].partition(";")[0].strip()
            found.append(Proposal(operation, kind, members))
    return found


def _members(api: Api, operation: Operation, also: Collection[str]) -> Iterator[Member]:
    taken = schemas.members(api.document, operation.body)
    required = schemas.demanded(api.document, operation.body)
    for name in sorted(required | (set(also) & taken.keys())):
        if name not in taken or not _is_text(api.document, taken[name]):
            continue
        found = source(api, operation, name)
        if found is not None:
            allow = _both(schemas.values(api.document, taken[name]), found.shown)
            yield Member(name, found, allow, name not in required)


def _is_text(document: Description, schema: Any) -> bool:
    """Only texts are filled."""
    kind = document.resolved(schema).get("type")
    if kind is None:
        return schemas.values(document, schema) is not None
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _both(one: schemas.Values | None, other: schemas.Values | None) -> tuple[str, ...] | None:
    if one is None or other is None:
        known = one or other
        return None if known is None else known.all
    return tuple(value for value in one.all if value in other.all)


# --- what writes


class Writes:
    """
    The unsafe calls that may change what is read from a path, as the lines of `writes`. What is asked of each
    call and body is found once: there may be thousands of them, and as many paths.
    """

    def __init__(self, api: Api) -> None:
        self._document = api.document
        self._words_of: dict[tuple[int, int], tuple[Node, frozenset[str]]] = {}
        self._unsafe = [
            (one, _example(one.template), self._words(one.body)) for one in api.operations if is_unsafe(one)
        ]
        self._found: dict[tuple[str, str], tuple[str, ...]] = {}

    def of(self, source_path: str) -> tuple[str, ...]:
        conversation = parse(source_path).names[-1]
        # A name of its own means the same everywhere in an API; `id` means another thing in each place.
        root = _literal_root(source_path) + "/" if conversation.lower() == "id" else "/"
        lines = self._found.get((conversation, root))
        if lines is None:
            lines = self._found[conversation, root] = self._lines(conversation, root)
        own = f"{source_path}/**"
        return lines if own in lines else self._lines(conversation, root, own)

    def _lines(self, conversation: str, root: str, *own: str) -> tuple[str, ...]:
        unsafe = [(one, example, words) for one, example, words in self._unsafe if one.path.startswith(root)]
        below = dict.fromkeys(
            [
                f"{one.path[: one.path.index('{' + conversation + '}')]}{{{conversation}}}/**"
                for one, _, _ in unsafe
                if conversation in one.template.names
            ]
        )
        below |= dict.fromkeys(own)
        table: Routes[str] = Routes()
        for line in below:
            table.add(None, parse(line), line)
        literal = tuple(line[: line.index("{")].encode() for line in below)
        wanted = {conversation.lower(), f"{conversation.lower()}s"}
        named, others = [], []
        for one, example, words in unsafe:
            if conversation in one.template.names:
                continue
            if not wanted.isdisjoint(words):
                named.append(one.name)
            elif example.startswith(literal) and table.match(one.method, example) is not None:
                others.append(f"except {one.name}")
        return (*below, *others, *named)

    def _words(self, schema: Any, depth: int = BODY_DEPTH) -> frozenset[str]:
        """The members of a body, in small letters: one may say which conversations it is about."""
        document = self._document
        node = document.resolved(schema)
        known = self._words_of.get((id(node), depth))
        if known is None:
            item = schemas.items(document, node)
            found = {} if item is not None else schemas.members(document, node)
            below = found.values() if item is None else [item]
            inner = [self._words(one, depth - 1) for one in below] if depth else []
            # With the node, which another could follow at its address.
            known = self._words_of[id(node), depth] = node, frozenset(map(str.lower, found)).union(*inner)
        return known[1]


def _literal_root(path: str) -> str:
    return path[: path.index("/{")].rpartition("/")[0] or path[: path.index("/{")]


def _example(template: Template) -> bytes:
    """A path that fits."""
    return template.filled(dict.fromkeys(template.names, b"x"))


# --- as a configuration


def configuration(api: Api, found: list[Proposal], origin: str) -> Iterator[str]:
    """The lines of a config.yaml that `gateway check` accepts. `origin`: what they were made from."""
    quoted = json.dumps
    yield f"# Proposed from {origin}. Each line marked {DECIDE[2:-1]} is a person's to decide."
    upstream = api.origin or "http://127.0.0.1:9000"
    yield f"upstream: {{url: {quoted('${GATEWAY_UPSTREAM:-' + upstream + '}')}}}"
    yield "# Forwards untouched and records what would be needed, until what it recorded was looked at."
    yield "mode: ${GATEWAY_MODE:-observe}"
    yield "rules:" if found else "rules: []"
    anchors: dict[tuple[str, ...], str] = {}
    names: Counter[str] = Counter()
    writes = Writes(api)
    for one in found:
        yield from _rule(writes.of(one.members[0].source.path), one, anchors, names)


def _rule(
    written: tuple[str, ...], one: Proposal, anchors: dict[tuple[str, ...], str], names: Counter[str]
) -> Iterator[str]:
    quoted = json.dumps
    yield f"  - name: {_name(one, names)}"
    yield f"    match: {{method: {one.operation.method}, path: {quoted(one.operation.path)}}}"
    if written in anchors:
        yield f"    writes: *{anchors[written]}"
    else:
        anchors[written] = f"writes{len(anchors) + 1}"
        yield f"    {DECIDE} are these all calls that may change it? What is missing here makes fills stale."
        yield f"    writes: &{anchors[written]}"
        yield from (f"      - {quoted(line)}" for line in written)
    yield "    repairs:"
    yield "      - {type: encoding}"
    yield f"      - {{type: content_type, value: {one.media_type}}}"
    for member in one.members:
        yield from _fill(member)


def _fill(member: Member) -> Iterator[str]:
    quoted = json.dumps
    if member.optional:
        yield f"      {DECIDE} the description does not demand {member.name}"
    yield "      - type: fill"
    yield f"        field: {quoted(member.name)}"
    yield f"        from: {quoted(member.source.path)}"
    if member.source.several:
        yield f"        {DECIDE} which of the parts count? Where they differ nothing is filled."
    yield f"        select: {quoted(member.source.select)}"
    yield f"        {DECIDE} keep those that do nothing when they are sent again: each is an order to the API"
    allow = [UNKNOWN] if member.allow is None else list(member.allow) or [UNKNOWN]
    yield f"        allow: {quoted(allow)}"


def _name(one: Proposal, names: Counter[str]) -> str:
    """Of the path's last words, and what is filled: unique, and as a rule may be called."""
    words = [part for part in one.operation.path.split("/") if part and not part.startswith("{")]
    told = "-".join([*words[-2:], *(member.name for member in one.members)])
    told = re.sub(r"[^a-z0-9_.-]+", "-", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", told).lower()).strip("-")
    told = told if told[:1].isalpha() else f"rule-{told}"
    names[told] += 1
    return told if names[told] == 1 else f"{told}-{names[told]}"
