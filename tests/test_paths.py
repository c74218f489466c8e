"""Which calls a rule takes, which others are writes, and what is chosen from a look-up."""

from __future__ import annotations

import gc
import re
import sys
from functools import cache
from types import FrameType
from typing import Any

import jsonpath
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import config
from gateway import paths as templates
from gateway.paths import Routes, is_ambiguous, parse, parse_write, plain
from gateway.repairs import Fill, select
from gateway.repairs.findings import Unfilled
from gateway.rules import Rules
from tests.support.gateways import SHIPPED
from tests.support.gateways import settings as configured

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

API = "/api/v2/conversations"


# --- templates


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/a", ()),
        ("/a/{x}", ("x",)),
        ("/{x}/b/{y_1}", ("x", "y_1")),
        ("/{media:calls|chats|e-mails}/{id}", ("media", "id")),
        ("/a/**", ()),
        ("/**", ()),
        ("/a-b/c.d/e~f/g:h/i@j/k,l/m=n/o+p/q$r/s!t/u'v/w(x)/y*z/&", ()),
        ("/.well-known/a", ()),
        ("/...", ()),
    ],
)
def test_a_template_names_its_parameters(path: str, names: tuple[str, ...]) -> None:
    assert parse(path).names == names


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("", "'/'"),
        ("a/b", "'/'"),
        ("/", "''"),
        ("/a/", "''"),
        ("/a//b", "''"),
        ("/a/./b", "'.'"),
        ("/a/../b", "'..'"),
        ("/a/%41", "'%41'"),
        ("/a/b c", "'b c'"),
        ("/a/b?c", "'b?c'"),
        ("/a/b#c", "'b#c'"),
        ("/a/b;c", "'b;c'"),
        ("/a\\b", "b"),
        ("/é", "'é'"),
        ("/a/**/b", "'**'"),
        ("/a/*/b", "'*'"),
        ("/a/***", "'***'"),
        ("/a/{}", "'{}'"),
        ("/a/{1x}", "'{1x}'"),
        ("/a/x{y}", "'x{y}'"),
        ("/a/{y}x", "'{y}x'"),
        ("/a/{x:}", "'{x:}'"),
        ("/a/{x:a|}", "'{x:a|}'"),
        ("/a/{x:a b}", "'{x:a b}'"),
        ("/a/{x:é}", "'{x:é}'"),
        ("/a/{x:\ud800}", None),
        ("/{x}/{x}", "twice"),
        ("/a\n", None),
        ("/{x\n}", None),
    ],
)
def test_what_is_no_template_is_refused_and_quoted(path: str, quoted: str | None) -> None:
    with pytest.raises(ValueError, match=re.escape(quoted) if quoted else None):
        parse(path)


@pytest.mark.parametrize(
    ("text", "method", "excepted"),
    [("/a/**", None, False), ("POST /a", "POST", False), ("except /a/{x}", None, True),
     ("except DELETE /a", "DELETE", True)],
)  # fmt: skip
def test_a_write_may_name_a_method_or_be_excepted(text: str, method: str | None, excepted: bool) -> None:
    found = parse_write(text)

    assert (found.method, found.excepted) == (method, excepted)


@pytest.mark.parametrize(
    "text",
    ["", "a", "GET /a", "HEAD /a", "post /a", "POST  /a", "POST", "/a b", "except", "POST POST /a", "POST /"],
)
def test_a_write_is_an_unsafe_method_and_a_path(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|path"):
        parse_write(text)


@patient
@given(st.text(max_size=30) | st.text("/{}:|*ab.%", max_size=20))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    for read in (parse, parse_write):
        try:
            read(text)
        except ValueError:
            continue


def test_a_path_is_filled_with_the_raw_segments() -> None:
    template = parse("/a/{media:calls|chats}/{id}")

    assert template.filled({"media": b"chats", "id": b"%E9%2b"}) == b"/a/chats/%E9%2b"


# --- match, against regular expressions

literals = st.sampled_from(["a", "b"])
parameters = st.sampled_from(["{%s}", "{%s:a|b}", "{%s:c|b}"])


@st.composite
def paths(draw: st.DrawFn) -> str:
    parts = draw(st.lists(literals | parameters, min_size=1, max_size=4))
    named = [part % f"p{n}" if "%" in part else part for n, part in enumerate(parts)]
    return "/" + "/".join([*named, *(["**"] if draw(st.booleans()) else [])])


methods = st.sampled_from(["PATCH", "POST", None])
listed = st.lists(st.tuples(methods, paths()), max_size=9)
segments = st.sampled_from(
    ["a", "b", "c", "d", "A", "aa", "%61", "", ".", "..", "...", "a;b", "a%2fb", "%2E", "%5c", "a\\b"]
)
requests = st.lists(st.sampled_from("aaabbcd"), max_size=4) | st.lists(segments, max_size=5)


def expression(path: str) -> re.Pattern[bytes]:
    result = ""
    for part in path[1:].split("/"):
        named = re.fullmatch(r"\{(\w+)(?::(.+))?\}", part)
        if part == "**":
            result += r"(?:/.*)?"
        elif named:
            result += f"/(?P<{named[1]}>{named[2] or '[^/]+'})"
        else:
            result += f"/{part}"
    return re.compile(result.encode(), re.DOTALL)


def specificity(path: str) -> list[int]:
    return [
        2 if part == "**" else int(part.startswith("{") and ":" not in part) for part in path[1:].split("/")
    ]


def plainly(path: bytes) -> bool:
    parts = path.split(b"/")[1:]
    return (
        not {b".", b".."} & set(parts)
        and b"" not in parts[:-1]
        and not any(mark in path.lower() for mark in (b"%2f", b"%2e", b"%5c", b"\\", b";"))
    )


@settings(patient, max_examples=200)
@example([(None, "/a/b"), (None, "/{p0}/c")], "POST", ["a", "c"])
@example([(None, "/a/**"), (None, "/{p0}/c"), (None, "/a/b/c")], "POST", ["a", "b", "d"])
@example([("PATCH", "/a/b"), ("POST", "/a/{p1}"), (None, "/**")], "POST", ["a", "b"])
@given(listed, st.sampled_from(["PATCH", "POST", "PUT"]), requests)
def test_the_most_specific_template_that_fits_wins_and_what_is_ambiguous_fits_none(
    routes: list[tuple[str | None, str]], method: str, parts: list[str]
) -> None:
    table: Routes[int] = Routes()
    for n, (wanted, path) in enumerate(routes):
        table.add(wanted, parse(path), n)
    target = ("/" + "/".join(parts)).encode()
    fitting = [
        (specificity(path), wanted is None, n, found.groupdict())
        for n, (wanted, path) in enumerate(routes)
        if wanted in {method, None} and (found := expression(path).fullmatch(target))
    ]

    fit = table.match(method, target)

    if not fitting or not plainly(target):
        assert fit is None
    else:
        *_, value, named = min(fitting, key=lambda one: one[:3])
        assert fit is not None
        assert (fit.value, fit.parameters) == (
            value,
            {key: raw for key, raw in named.items() if raw is not None},
        )


@patient
@given(listed)
def test_a_template_is_shadowed_when_earlier_ones_take_every_path_of_it(
    routes: list[tuple[str | None, str]],
) -> None:
    table: Routes[int] = Routes()
    taken: set[tuple[Any, ...]] = set()
    for n, (method, path) in enumerate(routes):
        ways: list[tuple[str, ...]] = [()]
        for part in path[1:].split("/"):
            choices = part[1:-1].partition(":")[2].split("|") if part.startswith("{") else [part]
            ways = [(*way, choice or "{}") for way in ways for choice in choices]
        mine = {(method, way) for way in ways}
        assert table.add(method, parse(path), n) is not mine.issubset(taken)
        taken |= mine


def visits(table: Routes[int], method: str, path: bytes) -> int:
    """How many calls the interpreter makes for one match: a cost that no clock can blur."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    gc.disable()  # what it finalises would count
    sys.setprofile(counted)
    try:
        table.match(method, path)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("path", [b"/api/r3/x/things/y", b"/api/none/x/things/y", b"/api/r3/x/things", b"/"])
def test_a_match_costs_the_same_for_five_rules_and_five_hundred(path: bytes) -> None:
    costs = []
    for size in (5, 500):
        table: Routes[int] = Routes()
        for n in range(size):
            table.add("PATCH", parse(f"/api/r{n}/{{a}}/things/{{b}}"), n)
        costs.append(visits(table, "PATCH", path))

    assert costs[0] == costs[1] > 0


# --- ambiguous paths

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
    fit = shipped().match("PATCH", path.encode())

    assert fit is None or path.endswith("%3Fa=b")


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


@patient
@given(st.lists(st.sampled_from([b"%41", b"%7e", b"%2D", b"%25", b"%2F", b"%e9", b"a", b"/", b"4", b"1"])))
def test_only_what_need_not_be_encoded_is_decoded(parts: list[bytes]) -> None:
    decoded = {b"%41": b"A", b"%7e": b"~", b"%2D": b"-"}

    assert plain(b"".join(parts)) == b"".join(decoded.get(part, part) for part in parts)


# --- the shipped configuration


@cache
def shipped() -> Rules:
    loaded = config.load(SHIPPED, {})
    return Rules(loaded.rules, loaded.limits.max_body)


P, C = "/participants/p1", "/communications/k1"
MEDIA = ("calls", "callbacks", "chats", "cobrowsesessions", "emails", "messages")
# conversation-api.md section 1.1: the path of each of the 26, and the rule that takes it.
OPERATIONS: list[tuple[str, str | None]] = [
    (f"/c1{P}", "participant-state"),
    *((f"/{media}/c1{P}", "media-participant-state") for media in MEDIA),
    (f"/calls/c1{P}/user/u1", None),
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
    place = rules.match(method, target)

    assert (place.rule.name if place else None) == rule
    if place is not None:
        assert place.data["conversationId"] == "c1"
        assert place.data["participantId"] == "p1"
        assert place.data.get("media", "") in path
    write = rules.writes(target, method)
    assert write is not None
    assert write.value.conversation(write.parameters) == "c1"


def test_a_rule_s_look_up_is_the_get_of_the_same_conversation() -> None:
    rules = shipped()
    for path, rule in [*OPERATIONS, (f"/web/instances/c1{P}", "web-participant-state")]:
        place = rules.match("PATCH", f"{API}{path}".encode())
        if place is not None:
            assert place.rule.name == rule
            (target,) = place.targets.values()
            assert target.target == f"{API}{path}".removesuffix(P).encode()
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


@pytest.mark.parametrize(
    "write",
    [
        "POST /callbacks/bulk/disconnect",
        "POST /callbacks/bulk/update",
        "PATCH /callbacks",
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
        f"POST {API}/calls",
        f"POST {API}/callbacks",
        f"POST {API}/messages/inbound/open",
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
        ("GET", f"{API}/calls/c1", f"{API}/{{media}}/{{conversationId}}"),
        ("GET", f"{API}/c1", f"{API}/{{conversationId}}"),
        ("GET", f"{API}/c1{P}/x", None),
        ("get", f"{API}/c1", None),
        ("HEAD", f"{API}/c1", None),
        ("POST", f"{API}/c1", None),
    ],
)
def test_a_get_of_a_whole_conversation_is_one_to_learn_from(
    method: str, path: str, source: str | None
) -> None:
    fit = shipped().reads(method, path.encode())

    assert (fit.value.source if fit else None) == (parse(source) if source else None)


def test_what_is_not_to_be_learned_from_is_not_read() -> None:
    loaded = configured("http://upstream", "-", fill={"learn": False})

    assert Rules(loaded.rules, 1).reads("GET", f"{API}/web/instances/c1".encode()) is None


def test_a_rule_s_call_is_about_its_conversation_if_it_fills_anything() -> None:
    path = PATCH_PATH.replace("c1", "C-%C3%84").encode()
    for repairs, conversation in (([{"type": "encoding"}], None), (None, "c-\u00e4")):
        loaded = configured("http://upstream", "-", rule={"repairs": repairs} if repairs else None)
        place = Rules(loaded.rules, 1).match("PATCH", path)
        assert place is not None
        assert place.conversation == conversation


def test_without_a_list_the_writes_are_all_unsafe_calls_below_what_is_looked_up() -> None:
    loaded = configured("http://upstream", "-", rule={"writes": None})
    rules = Rules(loaded.rules, loaded.limits.max_body)

    for path in (f"{API}/web/instances/c1", f"{API}/web/instances/c1/a/b"):
        found = rules.writes(path.encode(), "DELETE")
        assert found is not None
        assert found.value.conversation(found.parameters) == "c1"
    assert rules.writes(f"{API}/calls/c1".encode(), "DELETE") is None


# --- select


def generic() -> Fill:
    fit = shipped().match("PATCH", f"{API}/c1{P}".encode())
    assert fit is not None
    return fit.rule.fills[0]


def conversation(**media: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "state": "connected",
        "participants": [{"id": "p0", "calls": [{"state": "alerting"}]}, {"id": "p1", **media}],
    }


def call(state: Any, **more: Any) -> dict[str, Any]:
    return {"id": "k", "state": state, **more}


@pytest.mark.parametrize(
    ("document", "chosen"),
    [
        (conversation(calls=[call("connected")]), "connected"),
        (conversation(calls=[], chats=[], messages=[call("connected")]), "connected"),
        (conversation(calls=[call("disconnected"), call("connected")]), "connected"),
        (conversation(calls=[call("terminated")], emails=[call("connected")]), "connected"),
        (conversation(calls=[call("connected")], screenshares=[call("connected")]), "connected"),
        (conversation(internalMessages=[call("connected")]), "connected"),
        (conversation(socialExpressions=[call("connected")], videos=[call("disconnected")]), "connected"),
        (conversation(cobrowsesessions=[call("connected")]), "connected"),
        (conversation(callbacks=[call("scheduled")]), "scheduled"),
        (conversation(calls=[call("alerting")]), "alerting"),
        (conversation(calls=[call("connected"), call("alerting")]), "state-ambiguous"),
        (conversation(calls=[call("connected")], chats=[call("dialing")]), "state-ambiguous"),
        (conversation(calls=[call("connected")], chats=[call(None)]), "state-ambiguous"),
        (conversation(calls=[call("disconnected")]), "state-not-found"),
        (conversation(calls=[call("disconnected")], chats=[call("terminated")]), "state-not-found"),
        (conversation(), "state-not-found"),
        (conversation(calls=None, chats="x"), "state-not-found"),
        (conversation(calls=[{"id": "k"}]), "state-not-found"),
        (conversation(state="connected"), "state-not-found"),
        (conversation(calls=[call(None)]), "state-not-allowed"),
        (conversation(calls=[call({"state": "connected"})]), "state-not-allowed"),
        ({**conversation(calls=[call("connected")]), "id": "c2"}, "state-not-found"),
        ({"participants": conversation(calls=[call("connected")])["participants"]}, "state-not-found"),
        ({"id": "c1", "participants": []}, "state-not-found"),
        ({"id": "c1"}, "state-not-found"),
        ({}, "state-not-found"),
    ],
)
def test_the_generic_path_fills_the_one_live_state_or_none(document: dict[str, Any], chosen: str) -> None:
    value = generic().chosen(document, {"conversationId": "c1", "participantId": "p1"})

    assert value == (Unfilled(chosen) if chosen.startswith("state-") else chosen)
    assert generic().allow == {"connected"}


leaves = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["c1", "p1", "connected", "", "1"])
items = st.fixed_dictionaries(
    {},
    optional={"id": st.just("p1") | leaves, "x": st.just("c1") | leaves, "state": leaves | st.lists(leaves)},
)
several = st.lists(items | leaves, max_size=4)
documents = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("c1") | leaves,
        "participants": several | leaves | st.dictionaries(st.sampled_from("abc"), items | leaves),
        "x": several,
    },
)


@patient
@given(
    documents,
    st.sampled_from(
        [
            "$.participants[?@.id == _.p].state",
            "$.participants[?@.id==_.p].state",
            "$.participants[?@.id == _.p && $.id == _.c].state",
            "$.participants[?@.id == _.p && @.x == _.c].id",
            "$.x[?$.id == _.c].x",
        ]
    ),
    st.sampled_from(["p1", "c1", "1", "", "p1' || true"]),
)
def test_the_usual_query_chooses_what_the_library_says(document: dict[str, Any], query: str, p: str) -> None:
    data = {"p": p, "c": "c1"}
    expected: list[Any] = []
    for value in jsonpath.findall(query, document, filter_context=data):
        if value not in expected:
            expected.append(value)

    assert select.values(query, document, data) == expected


@pytest.mark.parametrize(
    ("conversation_id", "chosen"),
    [("c1", "connected"), ("c2", None), ("C1", None), (None, None), (["c1"], None)],
)
def test_the_reply_of_another_conversation_has_nothing_to_fill(
    conversation_id: Any, chosen: str | None
) -> None:
    """S7: only the reply for that very conversation counts."""
    for path in ("/c1", "/web/instances/c1", *(f"/{media}/c1" for media in MEDIA)):
        fit = shipped().match("PATCH", f"{API}{path}{P}".encode())
        assert fit is not None
        document = {
            "id": conversation_id,
            "participants": [{"id": "p1", "state": "connected", "calls": [call("connected")]}],
        }
        value = fit.rule.fills[0].chosen(
            document, {"conversationId": "c1", "participantId": "p1", "media": "calls"}
        )
        assert value == (chosen or Unfilled("state-not-found"))


@pytest.mark.parametrize(
    "participant", ["p1' || true || '", '"', "\\", "' == ''", "_", "$", "p1].state", "*", "é", "\udce9", ""]
)
def test_a_parameter_is_data_and_never_part_of_the_query(participant: str) -> None:
    document = conversation(calls=[call("connected")])

    for fill in (generic(), *(one for rule in shipped_fills() for one in rule)):
        assert fill.chosen(
            document, {"conversationId": "c1", "participantId": participant, "media": "x"}
        ) == Unfilled("state-not-found")


def shipped_fills() -> list[tuple[Fill, ...]]:
    loaded = config.load(SHIPPED, {})
    rules = Rules(loaded.rules, loaded.limits.max_body)
    found = [rules.match("PATCH", one.match.path.replace("{media:" + "|".join(MEDIA) + "}", "calls").encode())
             for one in loaded.rules]  # fmt: skip
    return [place.rule.fills for place in found if place is not None]


def test_every_shipped_rule_has_one_fill() -> None:
    assert [len(fills) for fills in shipped_fills()] == [1, 1, 1]


@pytest.mark.parametrize(
    "query", ["$..state", "$.participants..state", "$..[?@.state == 'x'].state", "$[?count(@..*) > 1]"]
)
def test_a_document_that_is_too_deep_for_a_query_has_nothing_to_fill(query: str) -> None:
    document: dict[str, Any] = {"state": "connected"}
    for _ in range(400):
        document = {"participants": document}

    assert select.values(query, document, {}) == []


@pytest.mark.parametrize(
    "query",
    [
        "", "state", "@.state", "$.", "$[", "$[?", "$]", "$.a b", "$[?(@.a]", "$[?foo(@)]", "$[?length(@)]",
        "$[99999999999999999999]", "$[" + "9" * 5000 + "]", "$[?@.a == 1e999]", "$[?@.a =~ /(/]", "$\0",
        "$[?" + "(" * 5000,
    ],
    ids=lambda query: query[:20],
)  # fmt: skip
def test_what_is_no_jsonpath_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match=r"expected a JSONPath|digits"):
        select.compiled(query)


FRAGMENTS = st.sampled_from([
    "$", ".", "..", "*", "[", "]", "[?", "@", "@.id", "_", "_.a", "'x'", "==", "!=", "&&", "||", "<", "=~",
    "/a/", "/(", "(", ")", "!", "0", "-1", "1e400", "1.5", ":", ",", "a", "state", "count(", "length(",
    "match(", "search(", "value(", "true", "null", "~", "^", "#", "|", "&", " in ", " contains ", "{", "}",
    "\\u0041", "\\", "é", "\ud800", "\0", " ",
])  # fmt: skip


@settings(patient, max_examples=300)
@given(st.lists(FRAGMENTS, max_size=10).map("".join))
def test_any_text_is_a_query_or_refused_and_a_query_gives_values(rest: str) -> None:
    try:
        select.compiled("$" + rest)
    except ValueError:
        return
    for document in ({}, {"a": [{"id": "x", "state": 1}, None, "x", 1]}, {"a": {"state": None}}):
        assert isinstance(select.values("$" + rest, document, {"a": "x"}), list)


def test_a_query_s_parameters_are_those_after_the_underscore() -> None:
    assert select.parameters("$.a[?@.id == _.x && $.id == _.y_2].b") == ["x", "y_2"]
    assert select.parameters("$._.a[?@._.b == 1]") == []
    assert templates.decoded(b"%70%31") == "p1"


def test_of_the_methods_that_a_call_claims_any_may_be_meant() -> None:
    path = f"{API}/callbacks".encode()
    assert shipped().writes(path, "POST") is None
    assert shipped().writes(path, "POST", "PATCH") is not None
    assert shipped().writes(path, "GET", "HEAD") is None
