"""What is chosen from the document of a look-up: the one value that a query selects, or why there is none."""

from __future__ import annotations

from typing import Any

import jsonpath
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import config
from gateway import paths as templates
from gateway.repairs import Fill, select
from gateway.repairs.findings import Unfilled
from gateway.rules import Rules
from tests.support.gateways import SHIPPED
from tests.support.shipped import API, MEDIA, P, shipped

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
            "$.participants[?@.id == _.p]['x', 'state'][?@.id != 'c1' && @.state != 'connected'].state",
            "$.participants[?@.id == _.p].state[?@.id == 'p1']",
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

    assert select.values(query, document, data) == expected[:2]
    usual = select.listed(query)
    assert usual is not None
    assert usual.index(document).values(data) == expected[:2]


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


def test_every_shipped_query_has_an_index() -> None:
    assert all(select.listed(fill.select) for fills in shipped_fills() for fill in fills)


def test_every_shipped_rule_has_one_fill() -> None:
    assert [len(fills) for fills in shipped_fills()] == [1, 1, 1, 1]


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
