"""The `content_type` repair: which objects are called JSON, and how that is recorded."""

from __future__ import annotations

import pytest

from tests.support.gateways import BODY, FILLED
from tests.support.repairing import JSON, MISTAKEN, OTHERS, built, fill, filled, found, kind, untouched


@pytest.mark.parametrize("was", MISTAKEN)
def test_a_json_object_that_is_called_something_else_is_called_json(was: str) -> None:
    diagnosis = found(BODY, kind(was))

    (change,) = diagnosis.changes
    assert change.record == {"repair": "content_type", "before": was, "after": "application/json"}
    assert [pair for pair in diagnosis.call.headers if pair[0] == b"content-type"] == [JSON]


@pytest.mark.parametrize("was", [None, "text/plain", "application/json", "application/vnd.x+json; a=b"])
def test_a_rule_may_want_another_json_type_and_what_has_it_already_is_filled_too(was: str | None) -> None:
    by = built({"type": "content_type", "value": "application/vnd.x+json"}, fill())
    call, made = filled(found(BODY, *([kind(was)] if was else []), by=by), state="connected")

    assert (call.body, made) == (FILLED, ["content_type", "fill"])
    assert dict(call.headers)[b"content-type"] == b"application/vnd.x+json"
    again = found(BODY, kind("application/vnd.x+json"), by=by)
    assert filled(again, state="connected")[1] == ["fill"]
    assert found(BODY, kind("application/vnd.y+json"), by=by).not_applicable == "media-type"


@pytest.mark.parametrize("was", ["application/json", "Application/JSON"])
def test_what_is_called_json_already_is_not_changed(was: str) -> None:
    assert not found(BODY, kind(was)).changes


def test_a_missing_type_is_added_and_recorded_as_missing() -> None:
    (change,) = found(BODY).changes

    assert change.record == {"repair": "content_type", "before": None, "after": "application/json"}


@pytest.mark.parametrize("was", [None, "text/plain", *OTHERS, *MISTAKEN])
def test_real_form_data_keeps_its_type_whatever_that_is(was: str | None) -> None:
    assert untouched(b"state=connected", *([kind(was)] if was is not None else [])) in {
        "not-json",
        "media-type",
    }
