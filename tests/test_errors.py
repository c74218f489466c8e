"""Every way the gateway refuses a call: what the client is told and may conclude from it (C5, C8)."""

from __future__ import annotations

import json
import re
from typing import Any

import http_sf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import UNSENT, GatewayError, NotSent, UpstreamError
from gateway.http.problem import problem

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# RFC 9209 section 2.3: the error types that are registered, with the status each recommends.
REGISTERED = {
    "dns_timeout": 504, "dns_error": 502, "destination_not_found": 500, "destination_unavailable": 503,
    "destination_ip_prohibited": 502, "destination_ip_unroutable": 502, "connection_refused": 502,
    "connection_terminated": 502, "connection_timeout": 504, "connection_read_timeout": 504,
    "connection_write_timeout": 504, "connection_limit_reached": 503, "tls_protocol_error": 502,
    "tls_certificate_error": 502, "tls_alert_received": 502, "http_request_error": 400,
    "http_request_denied": 403, "http_response_incomplete": 502, "http_response_header_section_size": 502,
    "http_response_header_size": 502, "http_response_body_size": 502, "http_response_timeout": 504,
    "http_response_trailer_section_size": 502, "http_response_trailer_size": 502,
    "http_response_transfer_coding": 502, "http_response_content_coding": 502,
    "http_upgrade_failed": 502, "http_protocol_error": 502,
    "proxy_internal_response": 500, "proxy_internal_error": 500, "proxy_configuration_error": 500,
    "proxy_loop_detected": 502,
}  # fmt: skip


def descendants(kind: type[GatewayError]) -> list[type[GatewayError]]:
    return [kind] + [lower for below in kind.__subclasses__() for lower in descendants(below)]


ALL = descendants(GatewayError)
LEAVES = [kind for kind in ALL if not kind.__subclasses__()]


@pytest.mark.parametrize("kind", ALL)
def test_a_refusal_is_problem_json_that_says_who_refused_why_and_what_to_do(kind: type[GatewayError]) -> None:
    status, headers, body = problem(kind("the reason"), "id-1")
    document = json.loads(body)

    assert status == document["status"] == kind.status
    assert 400 <= status < 600
    assert document["type"] == f"urn:gateway:error:{kind.slug()}"
    assert document["code"] == f"gateway.{kind.slug()}"
    assert document["detail"] == "the reason"
    assert document["title"] == kind.title
    assert document["message"] == f"{kind.title}: the reason"
    assert document["refused_by"] == "gateway"
    assert document["contextId"] == "id-1"
    assert document["advice"].endswith(".")
    assert len(headers) == len(dict(headers))
    assert dict(headers)[b"content-type"] == b"application/problem+json"
    assert dict(headers)[b"content-length"] == b"%d" % len(body)
    assert dict(headers)[b"cache-control"] == b"no-store"
    assert dict(headers)[b"x-request-id"] == b"id-1"


@pytest.mark.parametrize("kind", LEAVES)
def test_proxy_status_names_the_gateway_and_a_registered_error(kind: type[GatewayError]) -> None:
    _, headers, _ = problem(kind("x"), "id-1")

    members: Any = http_sf.parse(dict(headers)[b"proxy-status"], tltype="list")
    ((name, parameters),) = members
    assert str(name) == "gateway"
    assert str(parameters["error"]) in REGISTERED
    if issubclass(kind, UpstreamError):
        assert REGISTERED[str(parameters["error"])] == kind.status


def test_only_what_was_not_sent_may_be_retried_on_the_gateway_s_word() -> None:
    """C8: real clients replay a PATCH on Retry-After."""
    for kind in ALL:
        retry_after = dict(problem(kind("x"), "i")[1]).get(b"retry-after")
        assert retry_after is None or (issubclass(kind, (NotSent, *UNSENT)) and kind.status == 503)
    assert dict(problem(errors.Overloaded("x"), "i")[1])[b"retry-after"] == b"1"


@pytest.mark.parametrize(("seconds", "written"), [(0.01, b"1"), (1.4, b"1"), (2.6, b"3"), (90.0, b"90")])
def test_retry_after_is_in_whole_seconds_and_never_zero(seconds: float, written: bytes) -> None:
    error = errors.Overloaded("x")
    error.retry_after = seconds

    assert dict(problem(error, "i")[1])[b"retry-after"] == written


def test_each_kind_has_a_name_of_its_own() -> None:
    slugs = [kind.slug() for kind in ALL]

    assert len(slugs) == len(set(slugs))
    assert errors.BodyTooLarge.slug() == "body-too-large"
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", slug) for slug in slugs)
    assert all(kind.title and kind.advice for kind in LEAVES)
    assert len({kind.title for kind in LEAVES}) == len(LEAVES)


def test_the_drawn_tree_is_the_tree() -> None:
    """The docstring's lines with a branch: each class once, with its status where it has one of its own."""
    branches = [line for line in (errors.__doc__ or "").splitlines() if re.search("[├└]", line)]
    found = re.findall(
        r"── ((?:[A-Z]\w+, )*[A-Z]\w+)(?: (\d{3}))?(?=\s{2,}|$)", "\n".join(branches), re.MULTILINE
    )
    drawn = [(name, status) for names, status in found for name in names.split(", ")]

    assert sorted(name for name, _ in drawn) == sorted(
        kind.__name__ for kind in ALL if kind is not GatewayError
    )
    statuses = {kind.__name__: str(kind.status) for kind in ALL}
    assert [(name, status) for name, status in drawn if status and statuses[name] != status] == []
    assert {kind.__name__ for kind in LEAVES} <= {name for name, status in drawn if status}


def test_without_a_reason_the_title_is_told() -> None:
    document = json.loads(problem(errors.BadRequest(), "i")[2])

    assert document["detail"] == document["message"] == errors.BadRequest.title


@patient
@given(st.text(max_size=40), st.text(max_size=20), st.sampled_from(LEAVES))
def test_no_reason_and_no_request_id_can_forge_a_header_or_break_the_document(
    reason: str, request_id: str, kind: type[GatewayError]
) -> None:
    _, headers, body = problem(kind(reason), request_id)

    assert json.loads(body)["detail"] == reason
    assert body.isascii()
    for name, value in headers:
        assert (name + value).isascii()
        if name != b"x-request-id":  # forwarding.sane_id has judged that one
            assert not re.search(rb"[\x00-\x1f\x7f]", value)
