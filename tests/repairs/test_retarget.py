"""The `retarget` repair: which bodies go to another operation, and what becomes of the call there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hypothesis import given

from gateway.cases import run as cases
from gateway.config import ConfigError, parse
from gateway.http.headers import Fields
from gateway.repairs import Diagnosis, build, diagnose
from gateway.repairs.call import Call
from gateway.repairs.json_text import read
from tests.support.clock import Clock
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, SHIPPED, Proxied, proxied
from tests.support.json_texts import ObjectText, objects_without_state
from tests.support.judging import told
from tests.support.mocking import API, mock, one_conversation
from tests.support.raw_upstream import Peer
from tests.support.repairing import JSON, fill, patient
from tests.support.serving import connect

pytestmark = pytest.mark.usefixtures("way")

RETARGET = {"type": "retarget", "to": "{path}/attributes"}
ATTRIBUTES = f"{PARTICIPANT}/attributes"
FALL_BACK: dict[str, Any] = {"or": "fill"}
STATE = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'
WRITES = ["/api/v2/conversations/web/instances/{conversationId}/**"]


def rule(writes: list[str] | None = None, **keys: Any) -> dict[str, Any]:
    """The seed rule with the repair, whose `keys` are set."""
    seed = fill(max_age="5s")
    return {
        "writes": WRITES if writes is None else writes,
        "repairs": [{"type": "encoding"}, {"type": "content_type"}, {**RETARGET, **keys}, seed],
    }


@dataclass
class Api:
    """Answers each operation as `replies` say: a status, fields and a body."""

    replies: dict[tuple[str, str], tuple[int, bytes, bytes]]

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            path = request.target.decode().partition("?")[0]
            status, fields, body = self.replies[request.method.decode(), path]
            length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
            await peer.send(b"HTTP/1.1 %d Said\r\n%b%b\r\n%b" % (status, fields, length, body))


def api(attributes: int = 202, participant: int = 202, conversation: int = 200) -> Api:
    kind = b'Content-Type: application/json\r\nETag: "1"\r\nX-Kept: yes\r\n'
    return Api(
        {
            ("PATCH", ATTRIBUTES): (attributes, kind, b"" if attributes == 204 else b'{"attributes":{}}'),
            ("PATCH", PARTICIPANT): (participant, b"", b""),
            ("GET", CONVERSATION): (conversation, kind, STATE if conversation == 200 else b"{}"),
        }
    )


@asynccontextmanager
async def staged(upstream: Api, **changes: Any) -> AsyncIterator[Proxied]:
    async with proxied(upstream, **changes) as found:
        yield found


async def sent(
    at: Proxied, target: str = PARTICIPANT, body: bytes = BODY
) -> tuple[int, dict[bytes, bytes], bytes]:
    await at.client.send(
        b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (target.encode(), len(body), body)
    )
    status, headers, content = await at.client.reply()
    return status, dict(headers), content


def traffic(at: Proxied) -> list[tuple[str, str]]:
    return [(one.method.decode(), one.target.decode()) for one in at.requests]


async def test_attributes_alone_go_to_their_own_operation_as_they_came_and_nothing_is_looked_up() -> None:
    async with staged(api(), rule=rule()) as at:
        status, headers, body = await sent(at, f"{PARTICIPANT}?a=%2F&b")

        assert (status, body) == (202, b'{"attributes":{}}')
        assert told(headers[b"gateway-rewrite"].decode()) == {"content-type": True, "retarget": True}
        (request,) = at.requests
        assert (request.method, request.target.decode()) == (b"PATCH", f"{ATTRIBUTES}?a=%2F&b")
        assert request.body == BODY
        (line,) = at.running.lines("rewrite")
        assert line["path"] == PARTICIPANT
        assert line["changes"][1] == {"repair": "retarget", "before": PARTICIPANT, "after": ATTRIBUTES}
        assert line["body"]["before"] == line["body"]["after"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"attributes": {}, "wrapup": {}}',
        b'{"attributes": {"a": "1"}, "attributes": {}}',
        b"{}",
        b'{"Attributes": {}}',
    ],
)
async def test_a_body_with_anything_else_is_filled(body: bytes) -> None:
    async with staged(api(), rule=rule()) as at:
        assert (await sent(at, body=body))[0] == 202
        assert traffic(at) == [("GET", CONVERSATION), ("PATCH", PARTICIPANT)]
        assert at.requests[1].body.startswith(b'{"state":"connected"')


async def test_what_says_its_state_goes_where_it_came_to() -> None:
    async with staged(api(), rule=rule(only=["attributes", "note"])) as at:
        await sent(at, body=b'{"state": "connected", "attributes": {}}')
        assert traffic(at) == [("PATCH", PARTICIPANT)]


@pytest.mark.parametrize(
    ("upstream", "reply", "expected"),
    [
        (202, {}, (202, b'{"attributes":{}}', True)),
        (202, {"body": "empty"}, (202, b"", False)),
        (200, {"status": 202, "body": "empty"}, (202, b"", False)),
        (200, {"status": 202}, (202, b'{"attributes":{}}', True)),
        (204, {"status": 202}, (202, b"", None)),
        (200, {"status": 204, "body": "empty"}, (204, b"", False)),
        (400, {"status": 202, "body": "empty"}, (400, b'{"attributes":{}}', True)),
    ],
)
async def test_the_client_is_told_what_it_expects_of_the_operation_that_it_called(
    upstream: int, reply: dict[str, Any], expected: tuple[int, bytes, bool | None]
) -> None:
    async with staged(api(upstream), rule=rule(reply=reply)) as at:
        for _ in range(2):  # the connection is good for another
            status, headers, body = await sent(at)

            assert (status, body) == expected[:2]
            assert headers[b"x-kept"] == b"yes"
            if expected[2] is not None:
                assert (b"content-type" in headers, b"etag" in headers) == (expected[2],) * 2
            assert b"gateway-rewrite" in headers
        assert [line["status"] for line in at.running.lines("outcome")] == [status] * 2


async def test_where_there_is_no_such_operation_the_call_is_filled_and_that_is_remembered() -> None:
    clock = Clock()
    async with staged(api(405), rule=rule(**FALL_BACK, absent_for="60s"), clock=clock) as at:
        status, headers, _ = await sent(at)

        assert status == 202
        assert told(headers[b"gateway-rewrite"].decode())["filled"] == "state"
        assert told(headers[b"gateway-rewrite"].decode())["attempt"] == "2"
        assert traffic(at) == [("PATCH", ATTRIBUTES), ("GET", CONVERSATION), ("PATCH", PARTICIPANT)]
        assert at.requests[2].body == FILLED
        first, second = at.running.lines("rewrite")
        assert [change["repair"] for change in first["changes"]] == ["content_type", "retarget"]
        assert [change["repair"] for change in second["changes"]] == ["content_type", "fill"]
        clock.now += 59
        await sent(at)
        assert traffic(at)[3:] == [("GET", CONVERSATION), ("PATCH", PARTICIPANT)]
        clock.now += 2
        await sent(at)
        assert traffic(at)[5:][0] == ("PATCH", ATTRIBUTES)


async def test_a_404_is_remembered_only_where_the_filled_call_is_accepted() -> None:
    async with staged(api(404, 404, 404), rule=rule(**FALL_BACK)) as at:
        for _ in range(2):  # the conversation is unknown: the look-up is refused too
            status, headers, _ = await sent(at)
            assert status == 404
            assert "retarget" in told(headers[b"gateway-rewrite"].decode())
        assert traffic(at) == [("PATCH", ATTRIBUTES), ("GET", CONVERSATION)] * 2

    async with staged(api(404, 404), rule=rule(**FALL_BACK)) as at:
        for _ in range(2):
            assert (await sent(at))[0] == 404
        assert traffic(at).count(("PATCH", ATTRIBUTES)) == 2

    async with staged(api(404), rule=rule(**FALL_BACK)) as at:
        for _ in range(2):
            assert (await sent(at))[0] == 202
        assert traffic(at).count(("PATCH", ATTRIBUTES)) == 1


@pytest.mark.parametrize("status", [400, 403, 409, 500])
async def test_any_other_refusal_is_relayed(status: int) -> None:
    async with staged(api(status), rule=rule(**FALL_BACK)) as at:
        assert (await sent(at))[0] == status
        assert traffic(at) == [("PATCH", ATTRIBUTES)]


async def test_without_a_fall_back_the_refusal_is_relayed() -> None:
    async with staged(api(405), rule=rule()) as at:
        assert [(await sent(at))[0] for _ in range(2)] == [405, 405]
        assert traffic(at) == [("PATCH", ATTRIBUTES)] * 2


@pytest.mark.parametrize(
    ("mode", "first"), [("observe", PARTICIPANT), ("shadow", PARTICIPANT), ("on_reject", PARTICIPANT)]
)
async def test_the_other_modes_send_it_as_it_came_first(mode: str, first: str) -> None:
    async with staged(api(participant=400), rule=rule(reply={"status": 299}) | {"mode": mode}) as at:
        status, _, _ = await sent(at)

        repaired = [("PATCH", ATTRIBUTES)] if mode == "on_reject" else []
        assert traffic(at) == [("PATCH", first), *repaired]
        assert status == (299 if repaired else 400)
        if mode == "observe":
            assert at.running.lines("skip")[0]["needs"] == ["content_type", "retarget"]


@pytest.mark.parametrize(
    ("writes", "exclusive"),
    [
        (WRITES, True),
        ([*WRITES, f"except {CONVERSATION.replace('c1', '{c}')}/participants/{{p}}/attributes"], False),
    ],
)
async def test_it_takes_the_lock_that_a_call_to_its_target_would(writes: list[str], exclusive: bool) -> None:
    """S3, S4: whether that changes the state, `writes` say."""
    arrived, held = asyncio.Event(), asyncio.Event()

    async def holding(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await held.wait()
        await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    async with proxied(holding, rule=rule(writes)) as at:
        call = asyncio.create_task(sent(at))
        await arrived.wait()
        assert at.running.gateway.main.locks.exclusive_pending("c1") is exclusive
        held.set()
        assert (await call)[0] == 202


async def test_what_was_read_before_is_forgotten_after_it() -> None:
    """S5: the operation is not known to leave the state as it is."""
    body = b'{"wrapup": {}}'
    async with staged(api(), rule=rule()) as at:
        await sent(at, body=body)
        await sent(at, body=body)
        await sent(at)
        await sent(at, body=body)
        assert [path for method, path in traffic(at) if method == "GET"] == [CONVERSATION] * 2


# --- the settings


def configured(match: str = "/c/{a}/p/{b}", **keys: Any) -> str:
    one = {"name": "one", "match": {"path": match}, "repairs": [{**RETARGET, **keys}]}
    return yaml.safe_dump({"upstream": {"url": "http://u"}, "rules": [one]})


def retargeted(target: str, sent: bytes, **keys: Any) -> Diagnosis:
    (one,) = parse(configured(**keys), {}).rules
    segments = target.partition("?")[0].split("/")
    parameters = {"a": segments[2].encode(), "b": segments[4].encode()}
    call = Call(b"PATCH", target.encode(), Fields([JSON]), sent)
    return diagnose(call, build(one.repairs, 1024, one.parameters), parameters)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"to": "{path}/{c}"}, "to.*no parameter 'c' in match.path"),
        ({"to": "attributes"}, "to.*must start with '/'"),
        ({"to": "{path}/**"}, "to"),
        ({"to": "{path}/../x"}, "to.*not a path segment"),
        ({"only": []}, "only"),
        ({"or": "fill"}, "or.*expected a fill in this rule"),
        ({"body": "{attributes}"}, "body.*expected a JSON object"),
        ({"body": '{"a": "{attributes}"}'}, "body.*expected a JSON object"),
        ({"body": "{{attributes}: 1}"}, "body.*expected a JSON object"),
        ({"body": '{"a": {other}}'}, "body.*expected a JSON object"),
        ({"reply": {"status": 204}}, "reply.body.*expected empty"),
        ({"reply": {"status": 404}}, "reply.status"),
    ],
)
def test_what_is_wrong_with_it_is_told(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(configured(**keys), {})


@pytest.mark.parametrize(
    ("to", "target", "expected"),
    [
        ("{path}/attributes", "/c/1/p/2", "/c/1/p/2/attributes"),
        ("/x/{b}/{a}", "/c/%7e1/p/%E2%82%AC?q=1&q", "/x/%E2%82%AC/%7e1?q=1&q"),
        ("/x/{a}", "/c/a+b/p/2?", "/x/a+b?"),
    ],
)
def test_segments_are_copied_as_they_came(to: str, target: str, expected: str) -> None:
    found = retargeted(target, BODY, to=to)

    assert found.call.target.decode() == expected
    assert found.changes[0].record["after"] == expected.partition("?")[0]


@patient
@given(objects_without_state)
def test_a_template_for_the_body_takes_the_member_s_own_text(written: ObjectText) -> None:
    text = f'{{ "attributes" : {written.text} }}'
    body = '{"a": [{attributes}], "b": {attributes}}'

    found = retargeted("/c/1/p/2", text.encode(), body=body)

    inner = written.text.strip(" \t\r\n")
    assert found.call.body.decode() == f'{{"a": [{inner}], "b": {inner}}}'
    assert found.document == read(found.call.body.decode())


@patient
@given(objects_without_state)
def test_without_a_template_not_a_byte_of_the_body_changes(written: ObjectText) -> None:
    text = f'{{ "attributes" : {written.text} }}'.encode()
    assert retargeted("/c/1/p/2", text).call.body == text


def test_a_case_tells_where_it_goes() -> None:
    document = yaml.safe_load(configured())
    tried: Mapping[str, Any] = {
        "call": {"path": "/c/1/p/2?q", "body": {"attributes": {}}},
        "expect": {"path": "/c/1/p/2/attributes?q"},
    }
    document["rules"][0]["cases"] = [tried, {**tried, "expect": {"path": "/c/1/p/2"}}]
    failures = list(cases.failures(parse(yaml.safe_dump(document), {}).rules, 1024, ()))

    assert [place for place, _ in failures] == ["rules[0].cases[1]"]
    assert "path, got:      /c/1/p/2/attributes?q" in failures[0][1]


async def test_the_line_that_the_shipped_file_offers_works_in_front_of_the_api_as_documented() -> None:
    shipped = SHIPPED.read_text()
    line = next(one for one in shipped.splitlines() if "type: retarget" in one)
    offered = shipped.replace(line, line.replace("# - ", "- "))
    media = parse(offered, {}).rules[1]
    changed = media.model_dump(by_alias=True, exclude_unset=True, exclude={"cases"}) | {
        "name": "web-participant-state"
    }
    async with mock(one_conversation("chats", p1="alerting"), profile="documented") as upstream:
        from tests.support.gateways import gateway

        async with gateway(upstream.url, rule=changed) as running, connect(running.port) as client:
            at = f"{API}/chats/c1/participants/p1"
            body = json.dumps({"attributes": {"note": "test"}}).encode()
            await client.send(
                b"PATCH %b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nContent-Length: %d\r\n\r\n%b"
                % (at.encode(), len(body), body)
            )
            status, _, content = await client.reply()

            assert (status, content) == (202, b"")
            (entry,) = upstream.ledger.entries
            assert entry.method == "PATCH"
            assert upstream.state("c1", "p1") == "alerting"
