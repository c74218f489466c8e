"""
The parts of docs/ that are made from the code: what stands between the marks there.

`python -m tests.support.drawn` puts them in place; tests/test_docs.py sees that they are up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.admin.metrics import METRICS
from tests.support import house, settings_tables

ROOT = Path(__file__).parent.parent.parent
END = "<!-- end -->"


# Labels whose values the table of metrics does not have.
OPEN = {
    "rule": "its name",
    "repair": "its type",
    "reason": "[which](#reasons)",
    "upstream": "the name of one of `upstreams`, else left out",
}


def metrics() -> Iterator[str]:
    yield "| name | kind | labels | is |"
    yield "|---|---|---|---|"
    for one in METRICS:
        names = {**one.labels, "upstream": ()} if one.by_upstream else one.labels
        labels = "; ".join(f"`{label}`: {_values(label, values)}" for label, values in names.items())
        yield f"| `{one.name}` | {one.kind} | {labels or '-'} | {one.help} |"


def _values(label: str, values: tuple[str, ...]) -> str:
    return ", ".join(values) or OPEN.get(label, "what it is")


# By page: the mark that a part stands behind, and what makes it.
PARTS: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "docs/design.md": ("<!-- drawn -->", house.drawing),
    "docs/operations.md": ("<!-- metrics -->", metrics),
    "docs/configuration.md": ("<!-- settings -->", settings_tables.tables),
}


def up_to_date(page: str) -> str:
    """The page's text with its part made anew."""
    mark, lines = PARTS[page]
    before, _, rest = (ROOT / page).read_text("utf-8").partition(f"{mark}\n")
    after = rest.partition(f"{END}\n")[2]
    return "\n".join([f"{before}{mark}", "", *lines(), "", f"{END}\n{after}"])


if __name__ == "__main__":
    for page in PARTS:
        (ROOT / page).write_text(up_to_date(page), "utf-8")
