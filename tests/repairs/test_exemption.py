"""Calls that may not be touched, whatever their bodies are (C6)."""

from __future__ import annotations

import gzip

import pytest

from gateway.http.headers import Header
from tests.support.gateways import BODY, FILLED
from tests.support.repairing import JSON, OTHERS, kind, sent, untouched


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((b"cache-control", b"no-transform"), "no-transform"),
        ((b"cache-control", b"max-age=0, No-Transform"), "no-transform"),
        ((b"content-digest", b"sha-256=:AAAA:"), "signed-body"),
        ((b"repr-digest", b"sha-256=:AAAA:"), "signed-body"),
        ((b"digest", b"SHA-256=x"), "signed-body"),
        ((b"content-md5", b"x"), "signed-body"),
        ((b"signature", b"sig=:AAAA:"), "signed-body"),
        ((b"signature-input", b'sig=("@method")'), "signed-body"),
        ((b"x-http-method", b"DELETE"), "method-override"),
        ((b"x-http-method-override", b"PATCH"), "method-override"),
        ((b"x-method-override", b"put"), "method-override"),
    ],
)
@pytest.mark.parametrize("body", [BODY, gzip.compress(BODY, mtime=0), BODY.decode().encode("utf-16"), b"[]"])
def test_a_call_that_is_signed_not_to_be_transformed_or_under_another_method_is_left_as_it_is(
    header: Header, reason: str, body: bytes
) -> None:
    assert untouched(body, kind("text/plain"), (b"cache-control", b"no-store"), header) == reason


@pytest.mark.parametrize(
    "header",
    [(b"cache-control", b"no-cache, no-store"), (b"want-content-digest", b"sha-256=1"), (b"etag", b"x")],
)
def test_other_headers_keep_no_body_from_being_repaired(header: Header) -> None:
    assert sent(BODY, header).body == FILLED


@pytest.mark.parametrize("was", OTHERS)
def test_a_type_that_says_something_of_its_own_is_left_with_everything_else(was: str) -> None:
    assert untouched(BODY, kind(was)) == "media-type"


def test_a_content_type_that_comes_twice_is_left_for_the_upstream_to_judge() -> None:
    assert untouched(BODY, JSON, JSON) == "media-type"
    assert untouched(BODY, kind("text/plain"), JSON) == "media-type"
