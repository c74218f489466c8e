"""Which application a call says that it is from, and that no token can do harm by what it says."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.http.headers import Fields
from gateway.state import applications
from gateway.state.applications import MOST, Applications, named_by


def token(claims: Any, scheme: str = "Bearer") -> bytes:
    text = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return f"{scheme} e30.{base64.urlsafe_b64encode(text).decode().rstrip('=')}.c2ln".encode()


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"client_id": "a"}, "a"),
        ({"azp": "b", "sub": "x"}, "b"),
        ({"cid": "c", "scope": ["r", {"deep": [1]}]}, "c"),
        ({"appid": "d", "azp": 7}, "d"),
        ({"appid": "d", "client_id": "a"}, "a"),
        ({"client_id": ""}, None),
        ({"sub": "user"}, None),
        ([], None),
        (b"{", None),
        (b"\xff\xfe", None),
        (b"[" * 4000, None),
    ],
)
def test_the_first_claim_that_names_one_does(claims: Any, named: str | None) -> None:
    assert named_by(token(claims)) == named


@pytest.mark.parametrize(
    "value",
    [b"", b"Bearer", b"Bearer opaque", b"Bearer a.b", b"Bearer a.!.c", b"Bearer a.b.c.d", b"Bearer .."],
)
def test_what_is_no_such_token_names_none(value: bytes) -> None:
    assert named_by(value) is None
    assert named_by(token({"azp": "a"}, "Basic")) is None
    assert named_by(token({"azp": "a"}, "bearer")) == "a"


def test_a_name_is_short_and_for_every_terminal() -> None:
    assert named_by(token({"azp": "x" * 5000})) == "x" * MOST
    assert named_by(token({"azp": "x" * 9000})) is None
    assert named_by(token({"azp": "a\x1b[2J\n\u202e"})) == "a\ufffd[2J\ufffd\ufffd"


def test_a_field_that_is_configured_comes_first_and_no_more_callers_are_kept_than_may_be() -> None:
    known = Applications(["X-App"])
    headers = Fields([(b"authorization", token({"azp": "by-token"})), (b"x-app", b"by-field")])

    assert known.of("one", headers, ()) == "by-field"
    assert known.of("one", Fields(headers[:1]), ()) == "by-token"
    for number in range(applications.CALLERS_KEPT + 10):
        known.of(str(number), Fields(), ())
    assert len(known._known) <= applications.CALLERS_KEPT


def test_a_token_is_read_once_for_its_caller() -> None:
    known = Applications()

    assert known.of("one", Fields([(b"authorization", token({"azp": "first"}))]), ()) == "first"
    assert known.of("one", Fields([(b"authorization", token({"azp": "never looked at"}))]), ()) == "first"
