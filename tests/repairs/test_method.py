"""The `method` repair: which calls are sent as the rule's method, and what is said of those that are not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.cases import run as cases
from gateway.config import ConfigError, parse
from gateway.http.headers import Fields
from gateway.repairs import diagnose
from gateway.repairs.call import Call
from tests.support.gateways import BODY, FILLED, PARTICIPANT, Proxied, proxied
from tests.support.judging import told
from tests.support.raw_upstream import OK, Peer, answering
from tests.support.repairing import JSON, built, fill

pytestmark = pytest.mark.usefixtures("way")

METHOD = {"type": "method"}
DOCUMENT = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n"
    b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
)
NOT_ALLOWED = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
OVERRIDES = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]


def with_method(**rule: Any) -> dict[str, Any]:
    """The seed rule with the repair."""
    seed = fill(max_age="5s")
    return {"repairs": [{"type": "encoding"}, METHOD, {"type": "content_type"}, seed], **rule}


async def sent(
    staged: Proxied, method: str, fields: Mapping[str, str] | None = None, body: bytes = BODY
) -> tuple[int, dict[str, Any]]:
    """The status that the client gets, and what Gateway-Rewrite says."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fields or {}).items())
    head = f"{method} {PARTICIPANT} HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    await staged.client.send(head.encode() + body)
    status, headers, _ = await staged.client.reply()
    said = dict(headers).get(b"gateway-rewrite")
    return status, told(said.decode()) if said is not None else {}


@pytest.mark.parametrize("method", ["patch", "Patch", "PaTcH"])
async def test_patch_in_small_letters_is_sent_as_patch(method: str) -> None:
    async with proxied(answering(DOCUMENT, OK), rule=with_method()) as staged:
        status, said = await sent(staged, method)

        assert (status, said["method"], said["filled"]) == (200, True, "state")
        assert [(one.method, one.body) for one in staged.requests] == [(b"GET", b""), (b"PATCH", FILLED)]
        (line,) = staged.running.lines("rewrite")
        assert line["method"] == method
        assert line["changes"][0] == {"repair": "method", "before": method, "after": "PATCH"}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("value", ["PATCH", "patch"])
async def test_a_post_that_claims_patch_is_sent_as_patch_without_the_field(name: str, value: str) -> None:
    async with proxied(answering(DOCUMENT, OK), rule=with_method()) as staged:
        status, said = await sent(staged, "POST", {name: value, "X-Kept": "1"})

        assert (status, said["method"]) == (200, True)
        _, patch = staged.requests
        assert (patch.method, patch.body, patch.header(b"x-kept")) == (b"PATCH", FILLED, b"1")
        assert patch.header(name.lower().encode()) is None
        (line,) = staged.running.lines("rewrite")
        field = name.lower()
        assert line["changes"][0] == {
            "repair": "method", "before": "POST", "after": "PATCH", "fields": [field]
        }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [
        ("POST", {}, BODY),
        ("POST", {"X-HTTP-Method-Override": "PUT"}, BODY),
        ("POST", {"X-HTTP-Method-Override": "PATCH", "X-HTTP-Method": "DELETE"}, BODY),
        ("PUT", {"X-HTTP-Method-Override": "PATCH"}, BODY),
        ("POST", {}, b'{"_method": "PATCH"}'),
        ("POST", {"Content-Type": "application/x-www-form-urlencoded"}, b"_method=PATCH"),
    ],
)
async def test_nothing_else_is_taken_for_patch(method: str, fields: dict[str, str], body: bytes) -> None:
    async with proxied(answering(OK), rule=with_method()) as staged:
        assert await sent(staged, method, fields, body) == (200, {})

        (request,) = staged.requests
        assert (request.method, request.body) == (method.encode(), body)
        for name, value in fields.items():
            assert request.header(name.lower().encode()) == value.encode()


async def test_a_field_that_only_imitates_one_claims_nothing() -> None:
    """It does not reach the upstream, which would have seen a POST."""
    async with proxied(answering(OK), rule=with_method()) as staged:
        assert await sent(staged, "POST", {"X_HTTP_Method_Override": "PATCH"}) == (200, {})
        assert [one.method for one in staged.requests] == [b"POST"]


async def test_a_patch_that_claims_another_method_is_left_as_it_is() -> None:
    async with proxied(answering(OK), rule=with_method()) as staged:
        fields = {"X-HTTP-Method-Override": "DELETE"}
        status, said = await sent(staged, "PATCH", fields)

        assert (status, said) == (200, {"skipped": "method-override"})
        (request,) = staged.requests
        assert (request.method, request.body) == (b"PATCH", BODY)
        assert request.header(b"x-http-method-override") == b"DELETE"


async def test_without_the_repair_a_post_stays_one_and_a_refused_call_says_what_would_help() -> None:
    async with proxied(answering(OK, OK, DOCUMENT, NOT_ALLOWED, DOCUMENT, OK)) as staged:
        assert await sent(staged, "POST", {"X-HTTP-Method-Override": "PATCH"}) == (200, {})
        status, said = await sent(staged, "PATCH", {"X-HTTP-Method-Override": "PATCH"})
        assert (status, said) == (200, {"skipped": "method-override", "helps": "method"})
        status, said = await sent(staged, "patch")
        assert (status, said["helps"], said["filled"]) == (405, "method", "state")
        assert [one.method for one in staged.requests] == [b"POST", b"PATCH", b"GET", b"patch"]
        assert staged.running.lines("outcome")[-1]["helps"] == "method"
        _, said = await sent(staged, "patch")
        assert "helps" not in said


async def test_in_on_reject_a_method_that_the_upstream_does_not_know_is_repaired() -> None:
    async with proxied(answering(NOT_ALLOWED, DOCUMENT, OK), rule=with_method(mode="on_reject")) as staged:
        assert (await sent(staged, "POST", {"X-Method-Override": "PATCH"}))[0] == 200

        assert [one.method for one in staged.requests] == [b"POST", b"GET", b"PATCH"]
        assert staged.requests[2].body == FILLED


@pytest.mark.parametrize("mode", ["observe", "shadow", "on_reject"])
async def test_sent_as_it_came_it_excludes_fills_until_it_is_answered(mode: str) -> None:
    """S4: the upstream may take the POST for anything."""
    arrived, held = asyncio.Event(), asyncio.Event()

    async def holding(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.method == b"POST":
                arrived.set()
                await held.wait()
            await peer.send(DOCUMENT if request.method == b"GET" else OK)

    async with proxied(holding, rule=with_method(mode=mode)) as staged:
        call = asyncio.create_task(sent(staged, "POST", {"X-Method-Override": "PATCH"}))
        await arrived.wait()
        locks = staged.running.gateway.main.locks
        assert locks.exclusive_pending("c1")
        held.set()
        await call
        assert not locks.exclusive_pending("c1")


def test_what_the_client_says_of_the_state_itself_still_counts() -> None:
    call = Call(b"patch", b"/p", Fields([JSON]), b'{"state": "disconnected"}')
    found = diagnose(call, built(METHOD, fill()))

    assert [one.value for one in found.explicit] == ["disconnected"]
    assert (found.call.method, found.call.body) == (b"PATCH", call.body)
    assert found.may_change_state


CONFIG = """
upstream: {{url: "http://u"}}
rules:
  - name: one
    match: {{method: {method}, path: "/c/{{id}}"}}
    repairs: [{{type: method{value}}}, {{type: content_type}}]
    cases:
      - call: {{method: {sent}, path: "/c/1", headers: {{X-HTTP-Method: put}}, body: {{}}}}
        expect: {{method: {method}, headers: {{X-HTTP-Method: ""}}}}
"""


def test_the_method_is_the_rule_s_own() -> None:
    with pytest.raises(ConfigError, match=r"rules\[0\]\.repairs\[0\]\.value .*expected PUT, the method of"):
        parse(CONFIG.format(method="PUT", value="", sent="POST"), {})


@pytest.mark.parametrize(("method", "fails"), [("POST", False), ("PUT", False), ("DELETE", True)])
def test_a_case_tells_the_method_that_is_sent(method: str, fails: bool) -> None:
    rules = parse(CONFIG.format(method="PUT", value=", value: PUT", sent=method), {}).rules

    assert bool(list(cases.failures(rules, 1024, ()))) is fails
