"""The strict conversation API: what it accepts, what it refuses and how, what it remembers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mock import server as mock_module
from gateway.mock.api import PROFILES, MockCall, Participant, Refused
from gateway.mock.server import (
    Conversation,
    Conversations,
    Fault,
    InvalidConversations,
    Ledger,
    MockSettings,
    load,
)
from tests.support.clients import bare_client
from tests.support.mocking import RunningMock, mock

API = "/api/v2/conversations"
SEED = f"{API}/web/instances/c1/participants/p1"
JSON = {"content-type": "application/json"}
TOKEN = {"authorization": "Bearer alice"}
CALL_DISCONNECTED = (400, "conversation.error.call.disconnected")
CODE_REQUIRED = (400, "conversation.error.wrapup.code.required")
NOT_ACTIVE = (403, "conversation.error.forbidden.not.active.participant")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def client(running: RunningMock) -> AsyncIterator[httpx.AsyncClient]:
    async with bare_client(running.url, TOKEN) as it:
        yield it


async def raw(port: int, *pieces: bytes) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
    await writer.drain()
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def one(media: Any = "calls", **fields: Any) -> Conversations:
    return Conversations({"c1": Conversation(media, {"p1": Participant(**fields)})})


# --- the seed thread


async def test_the_seed_call_is_refused_as_it_came_and_accepted_once_repaired() -> None:
    async with mock() as upstream, client(upstream) as caller:
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
    async with mock() as upstream, client(upstream) as caller:
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
        (b'{"state":"connected","attributes":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "bad.request"),
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
    async with mock() as upstream, client(upstream) as caller:
        assert code(await caller.patch(SEED, content=body, headers=JSON)) == (400, expected)
        entry = upstream.ledger.entries[-1]
        assert entry.body == body
        assert entry.before == entry.after == {"p1": "connected", "p2": "connected"}


async def test_numbers_beyond_a_double_are_taken_and_every_later_get_is_still_json() -> None:
    async with mock() as upstream, client(upstream) as caller:
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


# --- the published API


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
    async with mock(one(media, state=before), profile="documented") as upstream, client(upstream) as caller:
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
    async with mock(profile="documented") as upstream, client(upstream) as caller:
        for media, body, status in (
            ("messages", b"null", 202),
            ("cobrowsesessions", b"", 202),
            ("calls", b"", 415),
        ):
            reply = await caller.patch(f"{API}/{media}/c-{media}/participants/p1", content=body)
            assert reply.status_code == status


async def test_attributes_have_an_operation_of_their_own() -> None:
    async with mock(one(attributes={"a": "1"}), profile="documented") as upstream, client(upstream) as caller:
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
    async with mock(profile="documented") as upstream, client(upstream) as caller:
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
    async with mock(one("emails", state="alerting")) as upstream, client(upstream) as caller:
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
    async with mock(one("emails")) as upstream, client(upstream) as caller:
        reply = await caller.request(method, API + path, content=b'{"state":"connected"}', headers=JSON)
        assert code(reply) == expected
        assert ("allow" in reply.headers) == (expected[0] == 405)


async def test_a_token_past_its_rate_is_told_when_to_come_back_and_others_are_not_concerned() -> None:
    clock = Clock()
    async with mock(profile="documented", rate_limit=2, clock=clock) as upstream, client(upstream) as caller:
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


# --- time, versions, visibility


async def test_a_get_shows_the_state_before_until_the_lag_has_passed() -> None:
    clock = Clock()

    async def shown(caller: httpx.AsyncClient) -> str:
        state = (await caller.get(f"{API}/calls/c1")).json()["participants"][0]["state"]
        return str(state)

    async with mock(one(state="alerting"), lag=2, clock=clock) as upstream, client(upstream) as caller:
        await caller.patch(f"{API}/calls/c1/participants/p1", json={"state": "connected"})
        assert (await shown(caller), upstream.state("c1", "p1")) == ("alerting", "connected")
        clock.now += 1.5
        upstream.change("c1", "p1", state="disconnected")
        clock.now += 0.5
        assert await shown(caller) == "connected"
        clock.now += 1.5
        assert await shown(caller) == "disconnected"
        assert len(upstream.conversations.conversations["c1"].versions) == 3
        upstream.change("c1", "p1", state="connected")
        assert len(upstream.conversations.conversations["c1"].versions) == 2, "the past is not kept for ever"


async def test_etags_when_they_are_switched_on() -> None:
    async with mock(etags=True) as upstream, client(upstream) as caller:
        tag = (await caller.get(f"{API}/calls/c1")).headers["etag"]
        unchanged = await caller.get(f"{API}/calls/c1", headers={"if-none-match": f'"0", W/{tag}'})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)

        path = f"{API}/calls/c1/participants/p1"
        patch = {"url": path, "json": {"state": "alerting"}}
        assert (await caller.patch(**patch, headers={"if-match": tag})).status_code == 202  # type: ignore[arg-type]
        assert code(await caller.patch(**patch, headers={"if-match": tag})) == (412, "precondition.failed")  # type: ignore[arg-type]
        assert (await caller.patch(**patch, headers={"if-match": "*"})).status_code == 202  # type: ignore[arg-type]
        missing = await caller.patch(path, json={}, headers={"if-match": tag})
        assert missing.status_code == 400, "a precondition counts only for what would succeed"
        fresh = await caller.get(f"{API}/calls/c1", headers={"if-none-match": tag})
        assert fresh.status_code == 200
    async with mock() as upstream, client(upstream) as caller:
        assert "etag" not in (await caller.get(f"{API}/calls/c1")).headers


async def test_a_caller_sees_only_the_participants_that_its_token_may_see() -> None:
    people = {
        "p1": Participant(tokens=frozenset({"alice"})),
        "p2": Participant(tokens=frozenset({"alice", "bob"})),
    }
    async with (
        mock(Conversations({"c1": Conversation("calls", people)})) as upstream,
        client(upstream) as caller,
    ):
        for token, seen in (("alice", ["p1", "p2"]), ("bob", ["p2"])):
            reply = await caller.get(f"{API}/calls/c1", headers={"authorization": f"Bearer {token}"})
            assert [participant["id"] for participant in reply.json()["participants"]] == seen
        stranger = await caller.get(f"{API}/calls/c1", headers={"authorization": "Bearer eve"})
        assert code(stranger) == (403, "not.authorized")
        hidden = await caller.patch(
            f"{API}/calls/c1/participants/p1",
            json={"state": "disconnected"},
            headers={"authorization": "Bearer bob"},
        )
        assert hidden.status_code == 404
        assert upstream.state("c1", "p1") == "connected"


async def test_on_demand_a_participant_exists_from_the_moment_it_is_named() -> None:
    async with mock(lag=60) as upstream, client(upstream) as caller:
        await caller.patch(f"{API}/callbacks/c1/participants/new", json={"state": "connected"})
        names = [p["id"] for p in (await caller.get(f"{API}/callbacks/c1")).json()["participants"]]
        assert sorted(names) == ["new", "p1", "p2"]
        for implausible in ("%20", "a%2Fb", "..", "x" * 101):
            reply = await caller.get(httpx.URL(upstream.url, raw_path=f"{API}/{implausible}".encode()))
            assert reply.status_code == 404


def test_conversations_made_on_demand_are_bounded_and_listed_ones_are_kept() -> None:
    conversations = Conversations({"kept": Conversation()}, on_demand=True)
    for number in range(mock_module.MAX_MADE + 10):
        conversations.find(str(number))
    assert len(conversations.made) == mock_module.MAX_MADE
    assert conversations.find("kept") is conversations.conversations["kept"]


# --- the file


async def test_a_file_says_exactly_which_conversations_exist(tmp_path: Path) -> None:
    file = tmp_path / "conversations.yaml"
    file.write_text(
        """
        conversations:
          c1:
            media: chats
            participants:
              p1: {state: alerting, purpose: customer, attributes: {note: text}, tokens: [alice]}
        """
    )
    async with mock(load(file)) as upstream, client(upstream) as caller:
        assert (await caller.get(f"{API}/chats/c1")).json() == {
            "id": "c1",
            "participants": [
                {"id": "p1", "purpose": "customer", "state": "alerting", "attributes": {"note": "text"}}
            ],
        }
        assert (await caller.get(f"{API}/chats/c2")).status_code == 404
    file.write_text(file.read_text() + "\n        on_demand: true\n")
    assert load(file).find("c2") is not None
    file.write_text("")
    assert load(file).find("any") is not None, "no conversation listed: made on demand"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("- c1", ["document: "]),
        ("conversations: {c1: {media: fax}}\nondemand: yes", ["conversations.c1.media: ", "ondemand: "]),
        (
            "conversations: {c1: {participants: {p1: {state: busy, attributes: {n: 1}}}}}",
            [
                "conversations.c1.participants.p1.state: Input should be 'alerting'",
                "conversations.c1.participants.p1.attributes.n: Input should be a valid string, got 1",
            ],
        ),
        ("conversations: {c1: [", ["not YAML: "]),
        ("conversations: {c1: {versions: []}}", ["conversations.c1.versions: "]),
    ],
)
def test_a_bad_file_is_refused_with_every_fault_and_its_place(
    tmp_path: Path, text: str, messages: list[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConversations) as caught:
        load(file)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(str(file))]
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"{file}: {message}")


def test_a_missing_file_and_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConversations, match=r"none\.yaml: No such file"):
        load(tmp_path / "none.yaml")
    for wrong in ({"profile": "lax"}, {"lag": -1.0}, {"lag": float("nan")}, {"rate_limit": -1}):
        with pytest.raises(ValueError, match="must be"):
            MockSettings(**wrong)


# --- the ledger


async def test_the_ledger_has_every_request_byte_for_byte() -> None:
    async with mock() as upstream:
        head = (
            b"PATCH /api/v2/conversations/calls/c%31/participants/p1?x=%2F&& HTTP/1.1\r\nHost: a\r\n"
            b"X-Twice: 1\r\nx-other: caf\xe9\r\nX-TWICE: 2\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n"
        )
        await raw(upstream.port, head, b'{ "state":"parked" }')
        await raw(upstream.port, b"GET /nowhere? HTTP/1.0\r\n\r\n")
        patch, get = upstream.ledger.entries
        assert (patch.method, patch.target) == (
            "PATCH",
            b"/api/v2/conversations/calls/c%31/participants/p1?x=%2F&&",
        )
        assert patch.headers == [
            (b"host", b"a"),
            (b"x-twice", b"1"),
            (b"x-other", b"caf\xe9"),
            (b"x-twice", b"2"),
            (b"connection", b"close"),
            (b"content-type", b"application/json"),
            (b"content-length", b"20"),
        ]
        assert patch.body == b'{ "state":"parked" }'
        assert (patch.status, patch.before["p1"], patch.after["p1"]) == (202, "connected", "parked")
        assert (get.target, get.status, get.before) == (b"/nowhere?", 404, {})

        async with client(upstream) as caller:
            told = (await caller.get("/_mock/requests")).json()
            assert [entry["number"] for entry in told] == [1, 2]
            assert ["x-other", "caf\xe9"] in told[0]["headers"]
            assert told[0]["body"] == '{ "state":"parked" }'
            assert (await caller.delete("/_mock/requests")).status_code == 204
            assert (await caller.get("/_mock/requests")).json() == []


async def test_a_request_that_breaks_off_in_its_body_is_recorded_and_does_nothing() -> None:
    async with mock() as upstream:
        _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        head = f"PATCH {SEED} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        writer.write(head.encode() + b'\r\n{"state":"disconnected"}')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await upstream.ledger.arrived(1)
        entry = upstream.ledger.entries[0]
        assert (entry.complete, entry.status, entry.after) == (False, None, {})
        assert upstream.state("c1", "p1") == "connected"


async def test_a_body_beyond_the_limit_is_413_and_not_read_to_its_end() -> None:
    async with mock() as upstream:
        size = mock_module.MAX_BODY + 1
        head = f"PATCH {SEED} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
        assert (await raw(upstream.port, head, bytes(size))).startswith(b"HTTP/1.1 413 ")


def test_the_ledger_is_bounded_in_number_and_in_bytes() -> None:
    ledger = Ledger()
    for _ in range(mock_module.MAX_ENTRIES + 5):
        ledger.add(0.0, "GET", b"/", [], b"", True)
    assert (len(ledger.entries), ledger.received) == (mock_module.MAX_ENTRIES, mock_module.MAX_ENTRIES + 5)
    for _ in range(5):
        ledger.add(0.0, "PATCH", b"/", [], bytes(mock_module.MAX_BODY), True)
    assert len(ledger.of("PATCH")) == mock_module.MAX_LEDGER // mock_module.MAX_BODY
    assert ledger.of("GET") == []


# --- the side door


async def test_a_change_out_of_band_is_no_request() -> None:
    async with mock(one(state="connected")) as upstream, client(upstream) as caller:
        door = "/_mock/conversations/c1/participants"
        assert (await caller.put(f"{door}/p1", json={"state": "alerting"})).status_code == 204
        assert (await caller.put(f"{door}/p2", json={"purpose": "acd"})).status_code == 204
        assert upstream.conversations.conversations["c1"].states() == {"p1": "alerting", "p2": "connected"}
        assert (await caller.put(f"{door}/p1", json={"state": "busy"})).status_code == 400
        assert (await caller.put(f"{door}/p1", json={"conversation": "x"})).status_code == 400
        assert (await caller.put(f"{door}/p1", content=b"{")).status_code == 400
        assert (await caller.put("/_mock/conversations/c9/participants/p1", json={})).status_code == 404
        assert len(upstream.ledger.entries) == 0


async def test_faults_are_taken_in_turn_by_the_requests_they_are_meant_for() -> None:
    async with mock() as upstream, client(upstream) as caller:
        for fault in (
            {"method": "GET", "status": 429, "headers": [["Retry-After", "7"]]},
            {"method": "PATCH", "status": 200, "body": "garbage", "headers": [["Content-Type", "text/html"]]},
            {"path": "c2", "status": 599, "times": 2},
        ):
            assert (await caller.post("/_mock/faults", json=fault)).status_code == 204
        assert (await caller.post("/_mock/faults", json={"statu": 500})).status_code == 400
        assert (await caller.post("/_mock/faults", json={"times": 0})).status_code == 400

        replaced = await caller.patch(SEED, json={"state": "disconnected"})
        assert (replaced.status_code, replaced.text, replaced.headers["content-type"]) == (
            200,
            "garbage",
            "text/html",
        )
        assert upstream.state("c1", "p1") == "connected", "a scripted reply stands instead of the call"
        limited = await caller.get(f"{API}/c1")
        assert (limited.headers["retry-after"], limited.json()["code"]) == (
            "7",
            "too.many.requests.retry.after",
        )
        assert [(await caller.get(f"{API}/{name}")).status_code for name in ("c1", "c2", "c2", "c2")] == [
            200,
            599,
            599,
            200,
        ]


async def test_a_reply_can_be_lost_after_the_call_was_applied_and_before() -> None:
    async with mock() as upstream, client(upstream) as caller:
        for applied, state in ((False, "connected"), (True, "disconnected")):
            upstream.faults.append(Fault(reset=True, applied=applied))
            with pytest.raises(httpx.ReadError):
                await caller.patch(SEED, json={"state": "disconnected"})
            assert upstream.state("c1", "p1") == state
            assert upstream.ledger.entries[-1].status is None


async def test_a_reply_can_end_within_its_body() -> None:
    async with mock() as upstream:
        upstream.faults.append(Fault(status=200, body=b"half", reset=True))
        reply = await raw(upstream.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"content-length: 5\r\n" in reply
        assert reply.endswith(b"\r\n\r\nhalf")


async def test_a_call_can_be_held_before_it_takes_effect_and_after() -> None:
    async with mock() as upstream, client(upstream) as caller:
        delay, hold = asyncio.Event(), asyncio.Event()
        upstream.faults.append(Fault(delay=delay, hold=hold))
        patch = asyncio.create_task(caller.patch(SEED, json={"state": "alerting"}))
        await upstream.ledger.arrived(1)
        assert upstream.state("c1", "p1") == "connected"
        delay.set()
        await caller.get(f"{API}/calls/other")  # time enough in this loop for the held call to go on
        assert (upstream.state("c1", "p1"), patch.done()) == ("alerting", False)
        hold.set()
        assert (await patch).status_code == 202


async def test_every_form_of_a_target_reaches_the_ledger() -> None:
    async with mock() as upstream, client(upstream) as caller:
        head = await caller.head(f"{API}/c1")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        reply = await raw(
            upstream.port, f"GET http://b{API}/c1 HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n".encode()
        )
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert upstream.ledger.entries[-1].target == f"http://b{API}/c1".encode()
        reply = await raw(upstream.port, b"OPTIONS * HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
        assert b'"code": "not.found"' in reply
        assert upstream.ledger.entries[-1].target == b"*"
