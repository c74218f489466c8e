"""Calls for the repairs' tests, the seed rule's repairs, and what becomes of the one by the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings

from gateway import repairs
from gateway.http.headers import Fields, Header
from gateway.repairs import Diagnosis, diagnose, rewrite
from gateway.repairs.call import Call, Change
from tests.support.gateways import settings as configured

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LIMIT = 2**16
JSON = (b"content-type", b"application/json")


def built(*chosen: Mapping[str, Any], fill: Mapping[str, Any] | None = None) -> tuple[repairs.Repair, ...]:
    """The seed rule's repairs; or those chosen."""
    rule = {"repairs": [dict(one) for one in chosen]} if chosen else None
    (one,) = configured("http://upstream", "-", fill=fill, rule=rule).rules
    return repairs.build(one.repairs, LIMIT, one.parameters)


ALL = built()


def fill(**changes: Any) -> dict[str, Any]:
    return {
        "type": "fill",
        "field": "state",
        "from": "/api/v2/conversations/web/instances/{conversationId}",
        "select": "$.participants[?@.id == _.participantId].state",
        "allow": ["connected"],
        **changes,
    }


def called(body: bytes, *headers: Header) -> Call:
    return Call(b"PATCH", b"/p", Fields([*headers, (b"content-length", b"%d" % len(body))]), body)


def found(body: bytes, *headers: Header, by: tuple[repairs.Repair, ...] = ALL) -> Diagnosis:
    return diagnose(called(body, *headers), by)


def filled(diagnosis: Diagnosis, **values: str) -> tuple[Call, list[str]]:
    """The call with the values filled, and the names of the repairs made."""
    chosen = {name: (value, Change.of("fill", field=name, after=value)) for name, value in values.items()}
    call, changes = rewrite(diagnosis, chosen)
    return call, [change.repair for change in changes]


def sent(body: bytes, *headers: Header) -> Call:
    """What leaves when the look-up finds `connected`."""
    diagnosis = found(body, *headers)
    return filled(diagnosis, **{missing.field: "connected" for missing in diagnosis.missing})[0]


def untouched(body: bytes, *headers: Header) -> str:
    """The reason why nothing at all was done, which is asserted."""
    call = called(body, *headers)
    diagnosis = diagnose(call, ALL)
    assert diagnosis.nothing_to_repair
    assert diagnosis.call is call
    assert rewrite(diagnosis, {}) == (call, ())
    return diagnosis.reason


def kind(value: str) -> Header:
    return b"content-type", value.encode()


# Types that come with JSON by mistake, and types that say something of their own.
MISTAKEN = [
    "",
    "text/plain",
    "TEXT/Plain",
    "text/plain;charset=UTF-8",
    "text/plain; charset=utf-8",
    'text/plain; charset="utf-8"',
    "text/html",
    "text/xml",
    "text/json",
    "text/csv; header=present",
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded; charset=UTF-8",
    "application/x-www-form-urlencoded;charset=utf-8;",
    "application/octet-stream",
    "Application/Octet-Stream",
    "application/json;charset=utf-8",
    "application/json; charset=utf-8",
    "application/json; charset=nonsense",
    "application/json; charset=us-ascii",
    "application/json;",
    "application/json; odata=verbose",
    "application/json ; version=2",
]
OTHERS = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/vnd.api+json",
    "application/problem+json; charset=utf-8",
    "application/ld+json",
    "multipart/form-data; boundary=x",
    "multipart/mixed; boundary=x",
    "application/xml",
    "application/soap+xml",
    "application/x-json",
    "application/x-ndjson",
    "application/jsonp",
    "application/javascript",
    "application/msgpack",
    "application/*",
    "*/*",
    "image/png",
    "json",
    "text",
    "application",
    "application/json, application/json",
    "application/json,text/plain",
    "null",
    "undefined",
]
