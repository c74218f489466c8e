"""
Which of several path templates fit a same path, and which of two then counts. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from gateway.paths import Segment, Template

MOST_TOLD = 20


@dataclass(slots=True)
class _Place:
    """A place in the tree of the templates so far; None is a segment that may be anything."""

    after: dict[bytes | None, _Place] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Overlap:
    """The templates by their indices: `loser` leaves to `winner` the paths that both fit."""

    winner: int
    loser: int
    more_specific: bool


def overlaps(templates: Sequence[tuple[str, Template]]) -> list[Overlap]:
    """`templates`, each with its method, without `**`. Not more than MOST_TOLD."""
    return list(islice(_overlaps(templates), MOST_TOLD))


def _overlaps(templates: Sequence[tuple[str, Template]]) -> Iterator[Overlap]:
    roots: dict[tuple[str, int], _Place] = {}
    for index, (method, template) in enumerate(templates):
        root = roots.setdefault((method, len(template.segments)), _Place())
        reached, added = [root], [root]
        for segment in template.segments:
            reached = [after for place in reached for after in _shared(place, segment)]
            added = [
                place.after.setdefault(text, _Place()) for place in added for text in segment.texts or (None,)
            ]
        for earlier in sorted({one for place in reached for one in place.ends}):
            yield _judged(earlier, templates[earlier][1], index, template)
        for place in added:
            place.ends.append(index)


def _shared(place: _Place, segment: Segment) -> Iterator[_Place]:
    if segment.texts is None:
        yield from place.after.values()
    else:
        for text in (*segment.texts, None):
            if text in place.after:
                yield place.after[text]


def _judged(earlier: int, one: Template, later: int, other: Template) -> Overlap:
    """As the table of routes decides: by the first segment that only one of them spells out."""
    for first, second in zip(one.segments, other.segments, strict=True):
        if (first.texts is None) is not (second.texts is None):
            return Overlap(*((later, earlier) if first.texts is None else (earlier, later)), True)
    return Overlap(earlier, later, False)
