"""Which values a look-up may fill (S7): one that is allowed, of that very participant, in sound JSON."""

from __future__ import annotations

import json
import re

import pytest

from gateway.config import load
from gateway.repairs.fill import FillSettings
from gateway.repairs.json_text import MAX_VALUES
from gateway.rules import RuleSettings
from gateway.state.documents import MAX_READ
from tests.support.calls import STATE, answering_gets, patch, reply
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, SHIPPED, TOKEN, gateway
from tests.support.judging import told
from tests.support.mocking import mocked, one_conversation
from tests.support.raw_upstream import RawUpstream
from tests.support.serving import connect

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ({"p2": "connected"}, "state-not-found"),
        ({}, "state-not-found"),
        ({"p1": "disconnected"}, "state-not-allowed"),
        ({"p1": "alerting"}, "state-not-allowed"),
        ({"p1": "terminated", "p2": "connected"}, "state-not-allowed"),
    ],
)
async def test_a_value_that_is_not_there_or_not_allowed_is_not_filled(
    states: dict[str, str], reason: str
) -> None:
    async with mocked(one_conversation(**states)) as (upstream, running, client):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [BODY]
        assert told(answer.headers["gateway-rewrite"]) == {"content-type": True, "skipped": reason}
        (line,) = running.lines("rewrite")
        assert line["skipped"] == reason
        assert [change["repair"] for change in line["changes"]] == ["content_type"]


@pytest.mark.parametrize(
    ("participants", "reason"),
    [
        ([{"id": "p1", "state": "connected"}, {"id": "p1", "state": "active"}], "state-ambiguous"),
        ([{"id": "p1", "state": "connected"}, {"id": "p1", "state": "disconnected"}], "state-ambiguous"),
        ([{"id": "p1", "state": 1}], "state-not-allowed"),
        ([{"id": "p1", "state": None}], "state-not-allowed"),
        ([{"id": "p1", "state": ["connected"]}], "state-not-allowed"),
        ([{"id": "p1", "state": {"connected": 1}}], "state-not-allowed"),
        ([{"id": "p1", "state": "Connected"}], "state-not-allowed"),
        ([{"id": "p1"}], "state-not-found"),
        ([{"id": 1, "state": "connected"}], "state-not-found"),
        (["p1"], "state-not-found"),
        ("p1", "state-not-found"),
        (None, "state-not-found"),
    ],
)
async def test_only_one_distinct_allowed_text_is_filled(participants: object, reason: str) -> None:
    body = json.dumps({"id": "c1", "participants": participants}).encode()
    async with (
        RawUpstream(answering_gets(reply("200 OK", body))) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 202
        assert upstream.bodies(b"PATCH") == [BODY]
        assert told(answer.headers["gateway-rewrite"])["skipped"] == reason


async def test_the_same_value_twice_is_one_distinct_value() -> None:
    body = b'{"id":"c1","participants":[{"id":"p1","state":"connected"},{"id":"p1","state":"connected"}]}'
    async with (
        RawUpstream(answering_gets(reply("200 OK", body))) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert upstream.bodies(b"PATCH") == [FILLED]


@pytest.mark.parametrize("participant", ["p1'||@.id=='p2", 'p1"]', "p1 || true", "*", "%22%5D", "p%31"])
async def test_a_participant_id_is_data_never_part_of_the_query(participant: str) -> None:
    target = f"{CONVERSATION}/participants/{participant}".replace(" ", "%20").replace('"', "%22")
    async with (
        RawUpstream(answering_gets(reply("200 OK", STATE))) as upstream,
        gateway(upstream.url) as running,
        connect(running.port) as client,
    ):
        await client.send(patch(target=target))
        await client.reply()

        # `p%31` is `p1` (RFC 3986 section 2.3): the upstream sees it spelled as it was sent.
        assert upstream.bodies(b"PATCH") == [FILLED if participant == "p%31" else BODY]
        assert upstream.requests[-1].target == target.encode()


@pytest.mark.parametrize(
    "document",
    [
        b'{"id":"c1","participants":[{"id":"p1","state":"connected","attributes":{"cut":"\\ud83d"}}]}',
        b'{"id":"c1","n":1e400,"participants":[{"id":"p1","state":"connected"}]}',
        b'{"id":"c1","n":' + b"9" * 5000 + b',"participants":[{"id":"p1","state":"connected"}]}',
        b'{"id":"c1","n":12345678901234567890123,"participants":[{"id":"p1","state":"connected"}]}',
        b' {"id":"c1","\\u0000":"\\u0000","participants":[{"id":"p1","st\\u0061te":"connected"}]} \r\n',
    ],
    ids=["half an emoji", "beyond any float", "5,000 digits", "23 digits", "escapes"],
)
async def test_json_that_only_some_parsers_like_is_json_all_the_same(document: bytes) -> None:
    """Any client can write such a value into a conversation: the others' calls must still be filled."""
    async with (
        RawUpstream(answering_gets(reply("200 OK", document))) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 202, answer.text
        assert upstream.bodies(b"PATCH") == [FILLED]


async def test_a_body_or_a_reading_of_too_many_values_is_not_read_and_the_reason_is_told() -> None:
    many = b",".join([b"0"] * (MAX_READ + 1))
    body = b'{"attributes":[%b]}' % b",".join([b'"ab"'] * MAX_VALUES)
    document = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}],"n":[%b]}' % many
    async with (
        RawUpstream(answering_gets(reply("200 OK", document))) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=body, headers=TOKEN)
        assert answer.status_code == 202
        assert upstream.bodies(b"PATCH") == [body]
        assert told(answer.headers["gateway-rewrite"])["skipped"] == "too-many-values"

        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert (answer.status_code, answer.json()["code"]) == (502, "gateway.lookup-failed")
        assert f"more than {MAX_READ} values" in answer.json()["detail"]
        assert len(upstream.bodies(b"PATCH")) == 1


EXAMPLES = [pytest.param(rule, id=rule.name) for rule in load(SHIPPED, {}).rules]


@pytest.mark.parametrize("rule", EXAMPLES)
async def test_a_reply_for_another_conversation_does_not_count(rule: RuleSettings) -> None:
    """S7, for each rule of the shipped configuration."""
    participant = {"id": "p1", "state": "connected", "calls": [{"state": "connected"}]}
    document = {"id": "somebody-elses", "participants": [participant]}
    target = rule.match.path.replace("{conversationId}", "c1").replace("{participantId}", "p1")
    target = re.sub(r"\{media:(\w+)[^}]*\}", r"\1", target)
    fill = rule.repairs[-1]
    assert isinstance(fill, FillSettings)
    async with (
        RawUpstream(answering_gets(reply("200 OK", json.dumps(document).encode()))) as upstream,
        gateway(
            upstream.url,
            rule={"match": {"path": rule.match.path}},
            fill={"from": fill.source, "select": fill.select, "allow": fill.allow},
        ) as running,
        running.client() as client,
    ):
        await client.patch(target, content=BODY, headers=TOKEN)

        assert b'"state"' not in b"".join(upstream.bodies(b"PATCH"))
        assert running.counts("gateway_lookups_total", "sent") == 1
