"""
Where the rules no longer fit what a description says of the API.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from gateway.description import schemas
from gateway.description.operations import Api, Operation
from gateway.description.proposals import proposals
from gateway.paths import Template, parse
from gateway.repairs import select
from gateway.repairs.content_type import ContentTypeSettings
from gateway.repairs.fill import FillSettings
from gateway.rules import RuleSettings

ANY: Final = b"~"  # stands for a segment that may be anything


Drift: TypeAlias = tuple[str, str]  # the setting that no longer fits, and what the description says


def drifts(api: Api, rules: Sequence[RuleSettings]) -> list[Drift]:
    found: list[Drift] = []
    known: set[tuple[str, str]] = set()
    for index, rule in enumerate(rules):
        template = parse(rule.match.path)
        for parameters in _choices(template):
            operation = api.at(rule.match.method, template.filled(parameters))
            if operation is not None:
                known.add((operation.method, operation.path))
            found += (
                (f"rules[{index}].{place}", message)
                for place, message in _of_rule(api, rule, parameters, operation)
            )
    for one in proposals(api):
        if (one.operation.method, one.operation.path) not in known:
            names = ", ".join(member.name for member in one.members)
            found.append(("rules", f"{one.operation.name} demands {names}, and no rule fills it"))
    return list(dict.fromkeys(found))


def _choices(template: Template) -> Iterator[dict[str, bytes]]:
    """The path's parameters: each text that one may be, and one that stands for anything."""
    texts = [one.texts or (ANY,) for one in template.segments if one.name is not None]
    for chosen in itertools.product(*texts):
        yield dict(zip(template.names, chosen, strict=True))


def _of_rule(
    api: Api, rule: RuleSettings, parameters: dict[str, bytes], operation: Operation | None
) -> Iterator[Drift]:
    if operation is None:
        yield "match.path", f"there is no {rule.match.method} {_shown(rule.match.path, parameters)}"
        return
    if operation.deprecated:
        yield "match.path", f"{operation.name} is deprecated"
    for index, repair in enumerate(rule.repairs):
        place = f"repairs[{index}]"
        if isinstance(repair, ContentTypeSettings):
            taken = [one.partition(";")[0].strip() for one in operation.takes]
            if taken and repair.value not in taken:
                yield f"{place}.value", f"{operation.name} takes {', '.join(taken)}, not {repair.value}"
        elif isinstance(repair, FillSettings):
            yield from _of_body(api, place, repair, operation)
            yield from _of_source(api, place, repair, parameters)
    filled = {one.field for one in rule.fills}
    taken_members = schemas.members(api.document, operation.body)
    for name in sorted(schemas.demanded(api.document, operation.body) & taken_members.keys() - filled):
        yield "repairs", f"{operation.name} demands {name}, which the rule does not fill"


def _of_body(api: Api, place: str, fill: FillSettings, operation: Operation) -> Iterator[Drift]:
    members = schemas.members(api.document, operation.body)
    if not members:
        return  # the description does not say what it takes
    schema = members.get(fill.field)
    if schema is None:
        yield f"{place}.field", f"{operation.name} has no member {fill.field}"
        return
    if schema.get("deprecated") is True:
        yield f"{place}.field", f"{fill.field} of {operation.name} is deprecated"
    yield from _of_values(f"{place}.allow", fill, schemas.values(api.document, schema), operation.name)


def _of_values(place: str, fill: FillSettings, values: schemas.Values | None, name: str) -> Iterator[Drift]:
    if values is None:
        return
    for value in fill.allow:
        if value not in values.all:
            yield place, f"{name} knows no {fill.field} {value!r}"
        elif value in values.deprecated:
            yield place, f"{fill.field} {value!r} of {name} is deprecated"


def _of_source(api: Api, place: str, fill: FillSettings, parameters: dict[str, bytes]) -> Iterator[Drift]:
    source = parse(fill.source)
    shown = api.at("GET", source.filled({name: parameters[name] for name in source.names}))
    if shown is None:
        yield f"{place}.from", f"there is no GET {_shown(fill.source, parameters)}"
        return
    if shown.deprecated:
        yield f"{place}.from", f"{shown.name} is deprecated"
    steps = select.names(fill.select)
    if steps is None or not schemas.members(api.document, shown.shows):
        return
    reached = [shown.shows]
    for names in steps:
        after = [
            member
            for node in reached
            for name in names
            if (member := schemas.members(api.document, node).get(name)) is not None
        ]
        if not after:
            said = " or ".join(names)
            yield f"{place}.select", f"the reply to {shown.name} has no {said} where the query looks for it"
            return
        reached = [schemas.items(api.document, one) or one for one in after]
    known = [schemas.values(api.document, one) for one in reached]
    if all(one is not None for one in known):
        union = dict.fromkeys(value for one in known if one is not None for value in one.all)
        values = schemas.Values(tuple(union))
        yield from _of_values(f"{place}.allow", fill, values, f"the reply to {shown.name}")


def _shown(path: str, parameters: dict[str, bytes]) -> str:
    """The path with the texts that were chosen."""
    template = parse(path)
    return template.filled(
        {
            name: f"{{{name}}}".encode() if value == ANY else value
            for name, value in parameters.items()
            if name in template.names
        }
    ).decode()
