"""The API itself: what each profile accepts, and what it refuses and how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mock.api import PROFILES, MockCall, Participant, Refused
from gateway.mock.server import Conversation, Conversations
from tests.support.clients import bare_client
from tests.support.clock import Clock
from tests.support.mocking import API, JSON, SEED, code, mock, one_conversation

CALL_DISCONNECTED = (400, "conversation.error.call.disconnected")


CODE_REQUIRED = (400, "conversation.error.wrapup.code.required")


NOT_ACTIVE = (403, "conversation.error.forbidden.not.active.participant")


async def test_the_seed_call_is_refused_as_it_came_and_accepted_once_repaired() -> None:
    async with mock() as upstream, upstream.client() as caller:
        body = '{"attributes": {"supervisorNote": "test"}}'
        unrepaired = await caller.patch(SEED, content=body, headers=JSON)
        assert unrepaired.status_code == 400
        assert unrepaired.json()["message"] == "Invalid request body. Missing required property: 'state'"
        assert code(await caller.patch(SEED, content=body)) == (415, "unsupported.media.type")

        looked_up = (await caller.get(f"{API}/web/instances/c1")).json()
        assert [(p["id"], p["state"]) for p in looked_up["participants"]] == [
            ("p1", "connected"),
            ("p2", "connected"),
        ]
        repaired = '{"state":"connected","attributes": {"supervisorNote": "test"}}'
        accepted = await caller.patch(SEED, content=repaired, headers=JSON)
        assert accepted.status_code == 202
        assert accepted.json()["state"] == "connected"
        assert accepted.json()["attributes"] == {"supervisorNote": "test"}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-16",
        "application/json; v=1",
        "text/json",
        "application/merge-patch+json",
        "json",
    ],
)
async def test_strict_takes_no_other_content_type(content_type: str) -> None:
    async with mock() as upstream, upstream.client() as caller:
        for accepted in (
            "application/json",
            "Application/JSON ; charset=UTF-8",
            'application/json;charset="utf-8"',
        ):
            reply = await caller.patch(
                SEED, content=b'{"state":"active"}', headers={"content-type": accepted}
            )
            assert reply.status_code == 202
        reply = await caller.patch(
            SEED, content=b'{"state":"active"}', headers={"content-type": content_type}
        )
        assert code(reply) == (415, "unsupported.media.type")
        twice = [("content-type", "application/json"), ("content-type", "application/json")]
        assert (await caller.patch(SEED, content=b'{"state":"active"}', headers=twice)).status_code == 415
        packed = {**JSON, "content-encoding": "gzip"}
        assert (await caller.patch(SEED, content=b'{"state":"active"}', headers=packed)).status_code == 415


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "bad.request"),
        (b"null", "bad.request"),
        (b'["state"]', "bad.request"),
        (b"[object Object]", "bad.request"),
        (b'\xef\xbb\xbf{"state":"connected"}', "bad.request"),
        ('{"state":"connected"}'.encode("utf-16"), "bad.request"),
        (b'{"state":"connected","attributes":{"a":"\xe9"}}', "bad.request"),
        (b'{"state":"connected","attributes":{"a":NaN}}', "bad.request"),
        (b'{"state":"connected","attributes":{"a":-Infinity}}', "bad.request"),
        (b'{"state":"connected","attributes":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "bad.request"),
        (b'{"state":"connected","attributes":[]}', "bad.request"),
        (b'{"state":"connected","attributes":null}', "bad.request"),
        (b'{"state":null}', "invalid.value"),
        (b'{"state":1}', "invalid.value"),
        (b'{"state":{}}', "invalid.value"),
        (b'{"state":"on the phone"}', "invalid.value"),
        (b'{"state":"scheduled"}', "invalid.value"),
    ],
)
async def test_strict_refuses_such_a_body_and_changes_nothing(body: bytes, expected: str) -> None:
    async with mock() as upstream, upstream.client() as caller:
        assert code(await caller.patch(SEED, content=body, headers=JSON)) == (400, expected)
        entry = upstream.ledger.entries[-1]
        assert entry.body == body
        assert entry.before == entry.after == {"p1": "connected", "p2": "connected"}


async def test_numbers_beyond_a_double_are_taken_and_every_later_get_is_still_json() -> None:
    async with mock() as upstream, upstream.client() as caller:
        body = b'{"state":"connected","attributes":{"a":1e400,"b":12345678901234567890,"c":1.10,'
        body += b'"d":{"e":[true]},"f":' + b"9" * 5000 + b"}}"
        assert (await caller.patch(SEED, content=body, headers=JSON)).status_code == 202
        attributes = (await caller.get(f"{API}/web/instances/c1")).json()["participants"][0]["attributes"]
        assert attributes.pop("f") == "9" * 5000
        assert attributes == {"a": "1e400", "b": "12345678901234567890", "c": "1.10", "d": '{"e": [true]}'}


@settings(deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
@pytest.mark.parametrize("profile", ["strict", "documented"])
def test_any_body_is_either_applied_or_refused(profile: str, body: bytes) -> None:
    headers = [(b"content-type", b"application/json")]
    people = {"p1": Participant("alerting")}
    call = MockCall(headers, body, PROFILES[profile], "calls", people, people, "c1", "calls", "p1")
    try:
        status = call.profile.update(call).status
    except Refused as refused:
        status = json.loads(refused.body("x"))["status"]
    assert status in (202, 400)


async def test_documented_wants_a_token_and_says_so_in_the_api_s_own_error_body() -> None:
    async with mock(profile="documented") as upstream, bare_client(upstream.url) as caller:
        reply = await caller.get(f"{API}/calls/c1")
        assert code(reply) == (401, "authentication.required")
        assert reply.json()["contextId"] == reply.headers["inin-correlation-id"]
        assert reply.json().keys() == {"message", "code", "status", "contextId", "details", "errors"}
        assert reply.headers["cache-control"] == "no-cache, no-store, must-revalidate"


@pytest.mark.parametrize(
    ("media", "before", "body", "expected", "after"),
    [
        ("calls", "alerting", {"state": "connected"}, 202, "connected"),
        ("calls", "connected", {"state": "connected"}, 202, "connected"),
        ("calls", "connected", {"state": "disconnected"}, 202, "disconnected"),
        ("calls", "alerting", {"attributes": {"a": "b"}}, 202, "alerting"),
        ("calls", "alerting", {"state": None, "held": False}, 202, "alerting"),
        ("calls", "connected", {"held": True, "wrapup": {"code": "w"}}, 202, "connected"),
        ("calls", "disconnected", {"wrapup": {"code": "w"}}, 202, "disconnected"),
        ("calls", "disconnected", {"state": "connected"}, CALL_DISCONNECTED, None),
        ("emails", "disconnected", {"state": "connected"}, (400, "postino.error.answer.not.alerting"), None),
        ("messages", "disconnected", {"state": "connected"}, (400, "bad.request"), None),
        ("chats", "terminated", {"muted": True}, NOT_ACTIVE, None),
        ("calls", "alerting", {"held": True}, (400, "conversation.error.hold.alerting"), None),
        ("calls", "connected", {"wrapup": {}}, CODE_REQUIRED, None),
        ("calls", "connected", {"state": "alerting"}, (400, "bad.request"), None),
        ("calls", "connected", {"state": "active"}, (400, "invalid.value"), None),
        ("calls", "connected", {"state": "outdated_sdk_version"}, (400, "invalid.value"), None),
        # One bad field fails the whole PATCH.
        ("calls", "alerting", {"state": "connected", "held": "yes"}, (400, "bad.request"), None),
        ("calls", "alerting", {"state": "connected", "wrapup": {}}, CODE_REQUIRED, None),
    ],
)
async def test_documented_takes_state_as_an_action(
    media: str, before: str, body: dict[str, Any], expected: object, after: str | None
) -> None:
    async with (
        mock(one_conversation(media, p1=before), profile="documented") as upstream,
        upstream.client() as caller,
    ):
        reply = await caller.patch(f"{API}/{media}/c1/participants/p1", json=body)
        if expected == 202:
            assert (reply.status_code, reply.content) == (202, b"")
        else:
            assert code(reply) == expected
        assert upstream.state("c1", "p1") == (after or before)
        assert upstream.ledger.entries[-1].after == {"p1": after or before}
        shown = (await caller.get(f"{API}/{media}/c1")).json()["participants"][0]
        assert shown["attributes"] == {}, "attributes is no field of this body"


async def test_a_body_is_optional_where_the_published_api_says_so() -> None:
    async with mock(profile="documented") as upstream, upstream.client() as caller:
        for media, body, status in (
            ("messages", b"null", 202),
            ("cobrowsesessions", b"", 202),
            ("calls", b"", 415),
        ):
            reply = await caller.patch(f"{API}/{media}/c-{media}/participants/p1", content=body)
            assert reply.status_code == status


async def test_attributes_have_an_operation_of_their_own() -> None:
    noted = Conversations({"c1": Conversation("calls", {"p1": Participant(attributes={"a": "1"})})})
    async with mock(noted, profile="documented") as upstream, upstream.client() as caller:
        path = f"{API}/calls/c1/participants/p1/attributes"
        reply = await caller.patch(path, json={"attributes": {"b": "2"}})
        assert (reply.status_code, reply.json()) == (202, {"attributes": {"a": "1", "b": "2"}})
        generic = await caller.patch(f"{API}/c1/participants/p1/attributes", json={"attributes": {"a": "3"}})
        assert (generic.status_code, generic.content) == (202, b"")
        for body, refusal in (
            ({"attributes": {"a": 1}}, "bad.request"),
            ({"attributes": {"a": {}}}, "bad.request"),
            ({"attributes": []}, "bad.request"),
            ({"attributes": None}, "conversation.error.participant.attribute.null"),
        ):
            assert code(await caller.patch(path, json=body)) == (400, refusal)


async def test_every_other_way_to_change_a_state() -> None:
    async with mock(profile="documented") as upstream, upstream.client() as caller:
        line = f"{API}/calls/c1/participants/p1/communications/p1-1"
        assert code(await caller.patch(line, json={"state": "connected"})) == (
            400,
            "communication.state.required",
        )
        assert code(await caller.patch(line + "1", json={"state": "disconnected"})) == (404, "not.found")
        hung_up = await caller.patch(line, json={"state": "disconnected"})
        assert (hung_up.status_code, hung_up.json()) == (200, {})
        assert upstream.ledger.entries[-1].after == {"p1": "disconnected", "p2": "connected"}

        replaced = await caller.post(f"{API}/c2/participants/p1/replace", json={"userId": "u"})
        assert replaced.status_code == 202
        assert upstream.ledger.entries[-1].after == {
            "p1": "disconnected",
            "p2": "connected",
            "p1-2": "alerting",
        }
        again = await caller.post(f"{API}/c2/participants/p1/replace", json={})
        assert code(again) == (400, "conversation.error.participant.no.active.conversations")

        assert (await caller.post(f"{API}/c3/disconnect")).status_code == 202
        assert (await caller.delete(f"{API}/c4")).status_code == 202
        for name in ("c3", "c4"):
            assert upstream.conversations.find(name).states() == {"p1": "disconnected", "p2": "disconnected"}  # type: ignore[union-attr]


async def test_the_generic_view_has_the_state_with_each_communication() -> None:
    async with mock(one_conversation("emails", p1="alerting")) as upstream, upstream.client() as caller:
        participant = (await caller.get(f"{API}/c1")).json()["participants"][0]
        assert "state" not in participant
        assert participant["emails"] == [{"id": "p1-1", "state": "alerting"}]
        assert participant["calls"] == participant["videos"] == []
        alias = (await caller.get(f"{API}/web/instances/c1")).json()["participants"][0]
        assert alias["state"] == "alerting"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/calls/c1", (404, "conversation.error.conversation.not.found")),
        ("GET", "/nobody", (404, "not.found")),
        ("PATCH", "/c1/participants/p9", (404, "conversation.error.not.conversation.participant")),
        ("PATCH", "/emails/c1/participants/p9", (404, "not.found")),
        ("GET", "/c1/participants/p1", (405, "method.not.allowed")),
        ("PUT", "/c1", (405, "method.not.allowed")),
        ("GET", "/calls", (404, "not.found")),
        ("GET", "/web/instances", (404, "not.found")),
        ("GET", "/videos/c1", (404, "not.found")),
        ("PATCH", "/c1/participants%2Fp1", (404, "not.found")),
        ("PATCH", "/c1/participants/p1/", (404, "not.found")),
        ("PATCH", "//c1/participants/p1", (404, "not.found")),
    ],
)
async def test_what_is_not_there_is_refused_in_the_api_s_words(
    method: str, path: str, expected: tuple[int, str]
) -> None:
    async with mock(one_conversation("emails", p1="connected")) as upstream, upstream.client() as caller:
        reply = await caller.request(method, API + path, content=b'{"state":"connected"}', headers=JSON)
        assert code(reply) == expected
        assert ("allow" in reply.headers) == (expected[0] == 405)


async def test_a_token_past_its_rate_is_told_when_to_come_back_and_others_are_not_concerned() -> None:
    clock = Clock()
    async with mock(profile="documented", rate_limit=2, clock=clock) as upstream, upstream.client() as caller:
        first = await caller.get(f"{API}/c1")
        assert {k: v for k, v in first.headers.items() if k.startswith("inin-ratelimit")} == {
            "inin-ratelimit-count": "1",
            "inin-ratelimit-allowed": "2",
            "inin-ratelimit-reset": "60",
        }
        clock.now += 18
        assert (await caller.get(f"{API}/c1")).headers["inin-ratelimit-reset"] == "42"
        refused = await caller.get(f"{API}/c1")
        assert code(refused) == (429, "too.many.requests.retry.after")
        assert (
            refused.json()["message"] == "Rate limit exceeded the maximum. Retry the request in [42] seconds"
        )
        assert refused.headers["retry-after"] == "42"
        other = await caller.get(f"{API}/c1", headers={"authorization": "Bearer bob"})
        assert other.status_code == 200
        clock.now += 42
        assert (await caller.get(f"{API}/c1")).status_code == 200
