"""What replies to repaired calls say of the end of the repairs, and other replies do not."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.sunset import SunsetSettings
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN
from tests.support.mocking import mocked

JSON = TOKEN | {"Content-Type": "application/json"}
SUNSET: dict[str, Any] = {"date": "2027-06-30", "since": "2026-12-01", "link": "https://example.com/migrate"}
SAID = {
    "deprecation": "@1796083200",
    "sunset": "Wed, 30 Jun 2027 00:00:00 GMT",
    "link": '<https://example.com/migrate>; rel="sunset", <https://example.com/migrate>; rel="deprecation"',
}


def announced(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in SAID if name in headers}


async def test_a_repaired_call_is_told_of_the_end_and_no_other() -> None:
    async with mocked(rule={"sunset": SUNSET}) as (_, _, client):
        repaired = await client.patch(PARTICIPANT, content=BODY, headers=JSON)
        conforming = await client.patch(PARTICIPANT, content=b'{"state":"connected"}', headers=JSON)
        read = await client.get(CONVERSATION, headers=TOKEN)

    assert (repaired.status_code, announced(repaired.headers)) == (202, SAID)
    assert (conforming.status_code, announced(conforming.headers)) == (202, {})
    assert announced(read.headers) == {}


@pytest.mark.parametrize("mode", ["observe", "shadow"])
async def test_a_call_that_only_would_be_repaired_is_not_told(mode: str) -> None:
    async with mocked(rule={"sunset": SUNSET, "mode": mode}) as (_, _, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=JSON)

    assert announced(answer.headers) == {}


@pytest.mark.parametrize(
    ("date_", "sunset"),
    [
        ("2027-06-30", "Wed, 30 Jun 2027 00:00:00 GMT"),
        (date(2027, 6, 30), "Wed, 30 Jun 2027 00:00:00 GMT"),
        (datetime(2027, 6, 30, 8, 30), "Wed, 30 Jun 2027 08:30:00 GMT"),
        ("2027-06-30T12:00:00+02:00", "Wed, 30 Jun 2027 10:00:00 GMT"),
    ],
)
def test_a_date_is_read_as_yaml_or_text_gives_it(date_: Any, sunset: str) -> None:
    lines = dict(SunsetSettings(date=date_).field_lines())

    assert lines[b"sunset"] == sunset.encode()
    assert lines.keys() == {b"deprecation", b"sunset"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"date": "soon"},
        {"date": 2027},
        {"date": "0001-01-01T00:00:00+14:00"},
        {"since": "2027-07-01"},
        {"link": "javascript:alert(1)"},
        {"link": "https://a/>; rel=x"},
        {"link": "https://a/\r\nx: y"},
        {"till": "2027-06-30"},
    ],
)
def test_what_is_no_date_or_link_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SunsetSettings.model_validate(SUNSET | wrong)
