"""
When a rule's repairs will end, as the replies to repaired calls say it: Deprecation (RFC 9745), Sunset
(RFC 8594), and Link to what tells more.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from email.utils import format_datetime
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from gateway.units import Section, checked

FieldLine: TypeAlias = tuple[bytes, bytes]


def _moment(value: object) -> datetime:
    """YAML makes a date of 2027-06-30, and text of "2027-06-30": the beginning of that day, UTC."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("expected a date such as 2027-06-30, or 2027-06-30T12:00:00Z")


def _url(value: str) -> None:
    if not re.fullmatch(r"https?://[!#-;=?-\[\]_a-z~%]+", value):
        raise ValueError("expected https://… in ASCII")


Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string"})]


class SunsetSettings(Section):
    date: Moment
    """The end: a date, or a time such as `2027-06-30T12:00:00Z`."""
    since: Moment | None = None
    """What `Deprecation` says; without it that is `date`."""
    link: Annotated[str, checked(_url), Field(examples=["https://example.com/migrate"])] | None = None
    """A page that tells more."""

    @model_validator(mode="after")
    def _no_end_before_the_beginning(self) -> SunsetSettings:
        if self.since is not None and self.since > self.date:  # RFC 9745 section 4
            raise ValueError("since: expected no later than date")
        return self

    def field_lines(self) -> tuple[FieldLine, ...]:
        deprecated = b"@%d" % int((self.since or self.date).timestamp())
        lines: list[FieldLine] = [
            (b"deprecation", deprecated),
            (b"sunset", format_datetime(self.date, usegmt=True).encode()),
        ]
        if self.link is not None:
            link = self.link.encode()
            lines.append((b"link", b'<%b>; rel="sunset", <%b>; rel="deprecation"' % (link, link)))
        return tuple(lines)
