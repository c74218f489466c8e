"""
Where a member that a call must have can be read: in the reply to a GET of the same resource, or of one that
it is part of.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.description import schemas
from gateway.description.document import Node
from gateway.description.operations import Api, Operation
from gateway.paths import Segment


class MemberSource(Struct, frozen=True):
    """
    `select` is the query in the reply to a GET of `path`. `shown` are the values that the reply may have;
    `several`: a person must say which of several that are found counts.
    """

    path: str
    select: str
    shown: schemas.Values | None
    several: bool = False


def source(api: Api, operation: Operation, member: str) -> MemberSource | None:
    """The nearest: the resource itself first, then what it is part of."""
    segments = operation.template.segments
    parts = operation.path.split("/")[1:]
    for end in range(len(segments), 0, -1):
        if not any(one.name for one in segments[:end]):
            return None
        if end < len(segments) and segments[end - 1].name is None:
            continue
        path = "/" + "/".join(parts[:end])
        shown = _get(api, path)
        if shown is None:
            continue
        found = _in_reply(api, path, segments[:end], segments[end:], parts[end:], shown.shows, member)
        if found is not None:
            return found
    return None


def _get(api: Api, path: str) -> Operation | None:
    return next((one for one in api.operations if (one.method, one.path) == ("GET", path)), None)


def _in_reply(
    api: Api,
    path: str,
    above: tuple[Segment, ...],
    below: tuple[Segment, ...],
    parts: list[str],
    reply: Node,
    member: str,
) -> MemberSource | None:
    shown = schemas.members(api.document, reply)
    if not below:
        if member not in shown:
            return None
        return MemberSource(path, f"$.{member}", schemas.values(api.document, shown[member]))
    if len(below) < 2 or below[0].name is not None or below[1].name is None:
        return None
    listed, parameter = parts[0], below[1].name
    item = schemas.items(api.document, shown.get(listed))
    inner = schemas.members(api.document, item)
    if item is None or "id" not in inner or not listed.isidentifier():
        return None
    conversation = next(one.name for one in reversed(above) if one.name)
    where = f"@.id == _.{parameter}" + (f" && $.id == _.{conversation}" if "id" in shown else "")
    chosen = f"$.{listed}[?{where}]"
    if member in inner:
        return MemberSource(path, f"{chosen}.{member}", schemas.values(api.document, inner[member]))
    lists = {
        name: found[member]
        for name, schema in inner.items()
        if name.isidentifier() and member in (found := _item_members(api, schema))
    }
    if not lists:
        return None
    known = [schemas.values(api.document, one) for one in lists.values()]
    union = dict.fromkeys(value for one in known if one is not None for value in one.all)
    names = ", ".join(f"'{name}'" for name in lists)
    select = f"{chosen}[{names}][?@.{member} != ''].{member}"
    return MemberSource(path, select, schemas.Values(tuple(union)) if all(known) else None, several=True)


def _item_members(api: Api, schema: Node) -> dict[str, Node]:
    item = schemas.items(api.document, schema)
    return {} if item is None else schemas.members(api.document, item)
