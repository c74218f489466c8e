"""The settings as docs/configuration.md has them: a table a section, made from the settings' own classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from gateway import units
from gateway.config import FROM_ENVIRONMENT, Settings
from gateway.repairs import REPAIRS, name_of
from gateway.sunset import Moment

# What a reader sets first stands first; a section that is not here comes last.
ORDER = [
    "upstream", "mode", "rules", "listen", "admin", "audit", "callers", "log", "credentials", "state_cache",
    "store", "limits", "cors", "environments",
]  # fmt: skip
VARIABLES = {f"{section}.{key}": name for name, (section, key) in FROM_ENVIRONMENT.items()}
MARKED = {
    get_args(kind)[1]: name
    for kind, name in ((units.Duration, "duration"), (units.Size, "size"), (Moment, "date"))
}
PLAIN = {str: "text", int: "number", bool: "true, false", float: "number", SecretStr: "secret"}
HEAD = ["| key | type | default | is |", "|---|---|---|---|"]


def tables() -> Iterator[str]:
    first = {name: place for place, name in enumerate(ORDER)}
    fields = sorted(Settings.model_fields.items(), key=lambda one: first.get(one[0], len(first)))
    for name, field in fields:
        inner, listed = section_of(field.annotation)
        yield from [f"## {name}", ""]
        if inner is None:
            yield from [*HEAD, row(name, field), ""]
            continue
        yield from [sentence(field), ""]
        yield from [*HEAD, *rows(inner, f"{name}[]." if listed else f"{name}."), ""]
        if name == "rules":
            for repair in REPAIRS:
                yield from [*_of_repair(name_of(repair), repair.settings), ""]


def _of_repair(name: str, settings: type[BaseModel]) -> Iterator[str]:
    known = list(rows(settings, f"{name}.", without="type"))
    yield from [f"### The repair {name}", "", *([*HEAD, *known] if known else ["It has no keys but `type`."])]


def rows(section: type[BaseModel], before: str, without: str = "") -> Iterator[str]:
    """A section within has no row of its own where it always is there: its keys have."""
    for name, field in section.model_fields.items():
        inner, listed = section_of(field.annotation)
        key = before + (field.alias or name)
        if name == without:
            continue
        if inner is None or field.default is None or listed or name == "repairs":
            yield row(key, field)
        if inner is not None and name != "repairs":
            yield from rows(inner, f"{key}[]." if listed else f"{key}.")


def row(key: str, field: FieldInfo) -> str:
    default = (
        "required" if field.is_required() else shown(field.default, kind(field.annotation, field.metadata))
    )
    if key in VARIABLES:
        default += f"; else `{VARIABLES[key]}`" if field.is_required() else f", or `{VARIABLES[key]}`"
    cells = f"`{key}`", kind(field.annotation, field.metadata), default, sentence(field)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sentence(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def kind(annotation: Any, metadata: Any = ()) -> str:
    marked = [MARKED[one] for one in metadata if one in MARKED]
    if marked:
        return marked[0]
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return kind(inner, more)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return (
            "section, several" if section_of(annotation)[0] else f"{kind(get_args(annotation)[0])}, several"
        )
    if get_origin(annotation) is dict:
        return "names and texts" if get_args(annotation)[1] is str else "names and sections"
    if annotation is Any:
        return "text or structure"
    if section_of(annotation)[0] is not None:
        return "section"
    options = [one for one in get_args(annotation) if one is not type(None)]
    return PLAIN[annotation] if not options else kind(options[0])


def shown(value: Any, of: str) -> str:
    """As config.yaml would say it."""
    if isinstance(value, BaseModel):
        return "as below"
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join('`*`' if one == '*' else str(one) for one in value)}]"
    if of == "duration":
        return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:g}s"
    if of == "size":
        by_twos = sorted((size, name) for name, size in units.BYTES.items() if name.endswith("iB"))
        size, name = max([(1, "B"), *(one for one in by_twos if value % one[0] == 0)])
        return f"{value // size}{name}"
    return str(value)


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model that a key's value is one of, or a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is Annotated:
        return section_of(get_args(annotation)[0])
    found = [section_of(one)[0] for one in get_args(annotation)]
    inner = next((one for one in found if one is not None), None)
    return inner, get_origin(annotation) is tuple
