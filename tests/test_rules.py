"""Which calls of the published API a rule matches, which others are writes or readings of a conversation."""

from __future__ import annotations

import pytest

from gateway.paths import is_ambiguous, parse
from gateway.rules import Rules
from tests.support.gateways import settings as configured
from tests.support.shipped import API, MEDIA, C, P, shipped

PATCH_PATH = f"{API}/web/instances/c1/participants/p1"


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/web/instances/../participants/p1",
        f"{API}/web/instances/./participants/p1",
        f"{API}/web/instances/c1/participants/..",
        f"{API}/web/instances/c1/participants/.",
        f"/./{PATCH_PATH[1:]}",
        f"/x/../{PATCH_PATH[1:]}",
        f"{API}/web/instances/%2e%2e/participants/p1",
        f"{API}/web/instances/%2E/participants/p1",
        f"{API}/web/instances/.%2e/participants/p1",
        f"{API}/web/instances/c1%2fparticipants%2Fp1",
        f"{API}/web/instances/c1/participants/p1%2Fattributes",
        f"{API}/web/instances/c1/participants/p1%5cattributes",
        f"{API}/web/instances/c1/participants/p1\\attributes",
        f"{API}/web/instances/..\\c1/participants/p1",
        f"/{PATCH_PATH}",
        f"{API}/web/instances//participants/p1",
        f"{API}/web//instances/c1/participants/p1",
        f"{API}/web/instances/c1;v=1/participants/p1",
        f"{API}/web/instances/..;/participants/p1",
        f"{API}/web/instances/c1/participants/p1;jsessionid=1",
        f"{API}/web/instances/c1/participants;a=b/p1",
    ],
)
def test_a_path_that_an_upstream_may_read_otherwise_is_no_rule_s_and_as_a_write_concerns_all(
    path: str,
) -> None:
    rules = shipped()

    assert is_ambiguous(path.encode())
    for method in ("PATCH", "patch", "POST", "DELETE", "PURGE"):
        assert rules.match(method, path.encode()) is None
        write = rules.writes(path.encode(), method)
        assert write is not None
        assert write.value.conversation(write.parameters) is None
    assert rules.writes(path.encode(), "GET") is None
    assert rules.reads("GET", path.encode()) is None


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/%77eb/instances/c1/participants/p1",
        f"{API}/web/instances/c1/participant%73/p1",
        "/api/v2/conversation%73/web/instances/c1/participants/p1",
        "/API/V2/conversations/web/instances/c1/participants/p1",
        f"{PATCH_PATH}/",
        f"{PATCH_PATH}/attributes",
        f"{API}/web/instances/c1/participants/",
        f"{API}/web/instances/c1/participants",
        PATCH_PATH[1:],
        f"/prefix{PATCH_PATH}",
        f"{PATCH_PATH}%3Fa=b",
        "*",
        "/",
        "",
    ],
)
def test_another_spelling_or_another_length_is_no_rule_s(path: str) -> None:
    found = shipped().match("PATCH", path.encode())

    assert found is None or path.endswith("%3Fa=b")


@pytest.mark.parametrize(
    ("path", "conversation"),
    [
        (f"{API}/%63alls/c1/participants/p1/replace", "c1"),
        ("/%61pi/v2/conversations/calls/c1", "c1"),
        (f"{API}/calls/%631/participants/p1", "c1"),
        (f"{API}/calls/C1", "c1"),
        (f"{API}/calls/c%C3%A9", "cé"),
        (f"{API}/calls/c%E9", "c\udce9"),
        (f"{API}/calls/c%25", "c%"),
    ],
)
def test_a_write_is_about_the_same_conversation_however_it_is_spelled(path: str, conversation: str) -> None:
    write = shipped().writes(path.encode(), "POST")

    assert write is not None
    assert write.value.conversation(write.parameters) == conversation


@pytest.mark.parametrize(
    "path",
    [
        "/API/V2/Conversations/c1",
        "/api/v2/conversations/Calls/c1/Participants/p1/Replace",
        f"{API}/calls/c1/",
        f"{API}/CALLS/C1/",
        f"{API}/%43alls/c1/",
    ],
)
def test_a_write_is_known_in_any_case_and_with_a_slash_at_its_end(path: str) -> None:
    rules = shipped()
    write = rules.writes(path.encode(), "POST")

    assert write is not None
    assert write.value.conversation(write.parameters) == "c1"
    assert rules.match("PATCH", path.encode()) is None


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/callbacks/bulk/update/",
        f"{API}/Callbacks/BULK/update",
        f"{API}/callbacks/bulk%2Fupdate",
        f"{API.upper()}/CALLBACKS/BULK/UPDATE/",
    ],
)
def test_a_write_of_all_is_known_in_any_case_and_with_a_slash_at_its_end(path: str) -> None:
    write = shipped().writes(path.encode(), "POST")

    assert write is not None
    assert write.value.conversation(write.parameters) is None


def test_an_exception_in_another_case_takes_back_no_write_that_is_spelled_out() -> None:
    changes = {"writes": ["/a/{conversationId}", "except /a/Bulk", "/a:b/{conversationId}"]}
    rules = Rules(configured("http://upstream", "-", rule=changes).rules, 1)

    assert rules.writes(b"/a/Bulk", "POST") is None
    assert rules.writes(b"/a/bulk", "POST") is not None  # to an upstream that heeds case: a conversation
    for path in (b"/A%3Ab/c1/", b"/a%3ab/C1"):
        write = rules.writes(path, "POST")
        assert write is not None
        assert write.value.conversation(write.parameters) == "c1"


# conversation-api.md section 1.1: the path of each of the 26, and the rule that takes it.
OPERATIONS: list[tuple[str, str | None]] = [
    (f"/c1{P}", "participant-state"),
    *((f"/{media}/c1{P}", "media-participant-state") for media in MEDIA),
    (f"/calls/c1{P}/user/u1", "call-participant-user-state"),
    (f"/c1{P}/attributes", None),
    *((f"/{media}/c1{P}/attributes", None) for media in MEDIA),
    *((f"/{media}/c1{P}{C}", None) for media in MEDIA),
    (f"/calls/c1{P}{C}/postflowaction", None),
    (f"/calls/c1{P}/consult", None),
    (f"/emails/c1{P}/parkingstate", None),
    (f"/messages/c1{P}/parkingstate", None),
    (f"/aftercallwork/c1{P}{C}", None),
]


def test_the_table_has_all_operations_of_the_published_api() -> None:
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 26


@pytest.mark.parametrize(("path", "rule"), OPERATIONS)
@pytest.mark.parametrize("method", ["PATCH", "patch", "Patch"])
def test_a_patch_of_the_published_api_is_its_rule_s_or_a_write_of_its_conversation(
    path: str, rule: str | None, method: str
) -> None:
    rules, target = shipped(), f"{API}{path}".encode()
    matched = rules.match(method, target)

    assert (matched.rule.name if matched else None) == rule
    if matched is not None:
        assert matched.data["conversationId"] == "c1"
        assert matched.data["participantId"] == "p1"
        assert matched.data.get("media", "") in path
    write = rules.writes(target, method)
    assert write is not None
    assert write.value.conversation(write.parameters) == "c1"


def test_a_rule_s_look_up_is_the_get_of_the_same_conversation() -> None:
    rules = shipped()
    for path, rule in [*OPERATIONS, (f"/web/instances/c1{P}", "web-participant-state")]:
        matched = rules.match("PATCH", f"{API}{path}".encode())
        if matched is not None:
            assert matched.rule.name == rule
            (target,) = matched.targets.values()
            assert target.target == f"{API}{path}".partition(P)[0].encode()
            assert target.subject == ("state", "c1", "p1")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [path for path, rule in OPERATIONS if rule])
def test_only_patch_is_a_rule_s(method: str, path: str) -> None:
    assert shipped().match(method, f"{API}{path}".encode()) is None


# conversation-api.md section 1.5: calls that change a participant's state.
REPLACED = ("", "/agent", "/queue", "/external", "/contact/external")


CONSULTED = ("/consult", "/consult/agent", "/consult/queue", "/consult/external", "/consult/contact/external")


WRITES = [
    *(f"PATCH {path}" for path, _ in OPERATIONS),
    *(f"PATCH /{media}/c1" for media in MEDIA),
    "PATCH /calls/c1/conference",
    "PATCH /c1/recordingstate",
    *(f"POST /c1/{action}" for action in ("disconnect", "assign", "barge", "cobrowse")),
    *(f"POST /c1{P}/replace{end}" for end in REPLACED),
    *(f"POST /c1{P}{end}" for end in ("/transfer", "/callbacks", "/secureivrsessions")),
    f"POST /c1{P}/internalmessages/users/communications",
    "POST /calls/c1",
    "POST /calls/c1/participants",
    "POST /calls/c1/participants/user/u1",
    *(f"POST /calls/c1{P}{end}" for end in CONSULTED),
    *(f"POST /calls/c1{P}/{end}" for end in ("voice/consult", "barge", "coach", "monitor")),
    *(f"POST /{media}/c1{P}/replace" for media in MEDIA),
    f"POST /messages/c1{P}/monitor",
    f"POST /messages/c1{P}/takeover",
    "POST /emails/c1/reconnect",
    "POST /emails/c1/inboundmessages",
    f"POST /calls/c1{P}{C}/wrapup",
    f"POST /aftercallwork/c1{P}{C}/wrapup",
    "DELETE /c1",
    f"DELETE /calls/c1{P}/consult",
    f"POST /videos/c1{P}/replace",
    f"PATCH /socials/c1{P}",
    f"PATCH /screenshares/c1{P}",
    f"POST /internalmessages/c1{P}/replace",
    f"PUT /web/instances/c1{P}",
    "DELETE /web/instances/c1",
    f"PURGE /c1{P}",
]


@pytest.mark.parametrize("write", WRITES)
def test_a_call_that_changes_a_state_is_a_write_of_its_conversation(write: str) -> None:
    method, path = write.split()
    found = shipped().writes(f"{API}{path}".encode(), method)

    assert found is not None
    assert found.value.conversation(found.parameters) == "c1"


def test_a_guest_who_leaves_a_chat_writes_its_conversation() -> None:
    path = b"/api/v2/webchat/guest/conversations/c1/members/m1"
    found = shipped().writes(path, "DELETE")

    assert found is not None
    assert found.value.conversation(found.parameters) == "c1"
    assert shipped().writes(path + b"/messages", "POST") is None


@pytest.mark.parametrize(
    "write",
    [
        "POST /callbacks/bulk/disconnect",
        "POST /callbacks/bulk/update",
        "PATCH /callbacks",
        "POST /calls",  # `conversationIds` are merged into a conference
        "POST /calls/user/u1",
        "post /callbacks/bulk/update",
    ],
)
def test_a_write_that_names_its_conversations_in_the_body_is_one_of_all(write: str) -> None:
    method, path = write.split()
    found = shipped().writes(f"{API}{path}".encode(), method)

    assert found is not None
    assert found.value.conversation(found.parameters) is None


@pytest.mark.parametrize(
    "call",
    [
        f"GET {API}/calls/c1",
        f"HEAD {API}/c1",
        f"OPTIONS {API}/c1",
        "POST /api/v2/users/u1",
        "PATCH /api/v2/conversationsx/c1",
        f"POST {API}",
        f"PATCH {API}/calls",
        f"POST {API}/callbacks",
        f"POST {API}/messages/inbound/open",
        f"POST {API}/messages/i1/inbound/open/message",
        f"POST {API}/messages/i1/inbound/open/event",
        f"PUT {API}/summaries/settings",
        f"POST {API}/summaries/preview",
        f"PATCH {API}/messaging/integrations/open/i1",
        f"POST {API}/participants/attributes/search",
    ],
)
def test_what_changes_no_conversation_is_no_write(call: str) -> None:
    method, path = call.split()

    assert shipped().writes(path.encode(), method) is None


@pytest.mark.parametrize(
    ("method", "path", "source"),
    [
        ("GET", f"{API}/web/instances/c1", f"{API}/web/instances/{{conversationId}}"),
        ("GET", f"{API}/emails/c1", f"{API}/{{media}}/{{conversationId}}"),
        ("GET", f"{API}/calls/c1", f"{API}/calls/{{conversationId}}"),
        ("GET", f"{API}/c1", f"{API}/{{conversationId}}"),
        ("GET", f"{API}/c1{P}/x", None),
        ("get", f"{API}/c1", None),
        ("HEAD", f"{API}/c1", None),
        ("POST", f"{API}/c1", None),
    ],
)
def test_a_clients_get_of_a_whole_conversation_may_prime_the_cache(
    method: str, path: str, source: str | None
) -> None:
    found = shipped().reads(method, path.encode())

    assert (found.value.source if found else None) == (parse(source) if source else None)


def test_where_learn_is_off_no_clients_get_primes_the_cache() -> None:
    loaded = configured("http://upstream", "-", fill={"learn": False})

    assert Rules(loaded.rules, 1).reads("GET", f"{API}/web/instances/c1".encode()) is None


def test_a_rule_s_call_is_about_its_conversation_if_it_fills_anything() -> None:
    path = PATCH_PATH.replace("c1", "C-%C3%84").encode()
    for repairs, conversation in (([{"type": "encoding"}], None), (None, "c-\u00e4")):
        loaded = configured("http://upstream", "-", rule={"repairs": repairs} if repairs else None)
        matched = Rules(loaded.rules, 1).match("PATCH", path)
        assert matched is not None
        assert matched.conversation == conversation


def test_without_a_list_the_writes_are_all_unsafe_calls_below_what_is_looked_up() -> None:
    loaded = configured("http://upstream", "-", rule={"writes": None})
    rules = Rules(loaded.rules, loaded.limits.max_body)

    for path in (f"{API}/web/instances/c1", f"{API}/web/instances/c1/a/b"):
        found = rules.writes(path.encode(), "DELETE")
        assert found is not None
        assert found.value.conversation(found.parameters) == "c1"
    assert rules.writes(f"{API}/calls/c1".encode(), "DELETE") is None


def test_of_the_methods_that_a_call_claims_any_may_be_meant() -> None:
    path = f"{API}/callbacks".encode()
    assert shipped().writes(path, "POST") is None
    assert shipped().writes(path, "POST", "PATCH") is not None
    assert shipped().writes(path, "GET", "HEAD") is None
