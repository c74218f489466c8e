"""The look-up of the state: which answers count, what it costs and carries, what its failures lead to."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from typing import Any

import pytest

from gateway import app
from gateway.config import FillSettings, RuleSettings, UpstreamSettings, load
from gateway.mock.api import Participant
from gateway.mock.server import Conversation, Conversations, Fault
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, SHIPPED, TOKEN, gateway
from tests.support.judging import refused_by_the_gateway, told, until
from tests.support.mocking import mock
from tests.support.raw_upstream import Peer, RawUpstream, Script
from tests.support.serving import connect

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
DOCUMENT = b'{"id":"c1","participants":[{"id":"p1","state":"connected"}]}'


def reply(status: str, body: bytes = b"", kind: str = "application/json", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def api(*pieces: bytes, ends: bool = False, resets: bool = False) -> Script:
    """Any GET is answered with `pieces`, and perhaps no further; any other call with 202."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.method != b"GET":
                await peer.send(ACCEPTED)
                continue
            await peer.send(*pieces)
            if resets:
                peer.reset()
            if ends or resets:
                return

    return script


def patches(upstream: RawUpstream) -> list[bytes]:
    return [request.body for request in upstream.requests if request.method == b"PATCH"]


def conversation(**states: Any) -> Conversations:
    people = {name: Participant(state=state) for name, state in states.items()}
    return Conversations({"c1": Conversation("messages", people)})


# --- S7: which values may be filled


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
    async with (
        mock(conversation(**states)) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
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
        RawUpstream(api(reply("200 OK", body))) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}") as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 202
        assert patches(upstream) == [BODY]
        assert told(answer.headers["gateway-rewrite"])["skipped"] == reason


async def test_the_same_value_twice_is_one_distinct_value() -> None:
    body = b'{"id":"c1","participants":[{"id":"p1","state":"connected"},{"id":"p1","state":"connected"}]}'
    async with (
        RawUpstream(api(reply("200 OK", body))) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}") as running,
        running.client() as client,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert patches(upstream) == [FILLED]


@pytest.mark.parametrize("participant", ["p1'||@.id=='p2", 'p1"]', "p1 || true", "*", "%22%5D", "p%31"])
async def test_a_participant_id_is_data_never_part_of_the_query(participant: str) -> None:
    target = f"{CONVERSATION}/participants/{participant}".replace(" ", "%20").replace('"', "%22")
    async with (
        RawUpstream(api(reply("200 OK", DOCUMENT))) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}") as running,
        connect(running.port) as client,
    ):
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
            % (target.encode(), len(BODY), BODY)
        )
        await client.reply()

        # `p%31` is `p1` (RFC 3986 section 2.3): the upstream sees it spelled as it was sent.
        assert patches(upstream) == [FILLED if participant == "p%31" else BODY]
        assert upstream.requests[-1].target == target.encode()


# --- C5: an upstream that refuses the look-up


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (401, (("www-authenticate", 'Bearer realm="a, b"'),)),
        (403, ()),
        (404, ()),
        (429, (("retry-after", "7"), ("inin-ratelimit-allowed", "300"))),
    ],
)
async def test_a_refused_look_up_is_relayed_as_the_upstream_said_it(
    status: int, fields: tuple[tuple[str, str], ...]
) -> None:
    body = b'{"message": "as the upstream said it", "status": %d }' % status
    fault = Fault(method="GET", status=status, headers=fields, body=body)
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        upstream.faults.append(fault)
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == status
        assert answer.content == body
        assert [(name, answer.headers[name]) for name, _ in fields] == list(fields)
        assert answer.headers["content-type"] == "application/json"
        # D5: what the upstream said is not called the gateway's own.
        assert "proxy-status" not in answer.headers
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "lookup-refused"}
        assert upstream.ledger.of("PATCH") == []
        assert [(line["event"], line.get("reason")) for line in running.lines()] == [
            ("reject", "lookup-refused"),
            ("outcome", None),
        ]
        assert running.lines("outcome")[0]["status"] == status


async def test_a_refusal_is_never_remembered_but_for_the_pause_of_a_429() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        upstream.faults.append(Fault(method="GET", status=404))
        refused = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        accepted = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert (refused.status_code, accepted.status_code) == (404, 202)


async def test_a_429_holds_back_further_look_ups_of_that_caller_alone() -> None:
    now = [100.0]
    async with (
        mock() as upstream,
        gateway(upstream.url, clock=lambda: now[0]) as running,
        running.client() as client,
    ):
        upstream.faults.append(Fault(method="GET", status=429, headers=(("retry-after", "7"),)))
        first = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        now[0] += 4.5
        held = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        other = await client.patch(PARTICIPANT, content=BODY, headers={"Authorization": "Bearer two"})
        gets = len(upstream.ledger.of("GET"))
        now[0] += 3
        later = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert [it.status_code for it in (first, held, other, later)] == [429, 429, 202, 202]
        assert held.content == first.content
        assert (first.headers["retry-after"], held.headers["retry-after"]) == ("7", "3")
        assert gets == 2


# --- C5: a look-up that fails

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWERED = {
    "500": reply("500 Oops", b"{}"),
    "503 with Retry-After": reply("503 Busy", b"{}", "application/json", "Retry-After: 5"),
    "400": reply("400 Bad Request", b"{}"),
    "302": reply("302 Found", b"", "text/html", "Location: http://elsewhere.example/"),
    "206": reply("206 Partial", DOCUMENT, "application/json", "Content-Range: bytes 0-9/10"),
    "203": reply("203 Transformed", DOCUMENT),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304 unasked": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "an HTML page": reply("200 OK", b"<html>log in</html>", "text/html"),
    "JSON called HTML": reply("200 OK", DOCUMENT, "text/html"),
    "HTML called JSON": reply("200 OK", b"<html></html>"),
    "nothing": reply("200 OK"),
    "an array": reply("200 OK", b"[" + DOCUMENT + b"]"),
    "null": reply("200 OK", b"null"),
    "NaN": reply("200 OK", DOCUMENT[:-1] + b',"n":NaN}'),
    "two documents": reply("200 OK", DOCUMENT * 2),
    "a byte order mark": reply("200 OK", b"\xef\xbb\xbf" + DOCUMENT),
    "not UTF-8": reply("200 OK", DOCUMENT[:-1] + b',"n":"\xff"}'),
    "a surrogate in UTF-8": reply("200 OK", DOCUMENT[:-1] + b',"\xed\xa0\x80":1}'),
    "gzip": reply("200 OK", gzip.compress(DOCUMENT, mtime=0), "application/json", "Content-Encoding: gzip"),
    "called gzip": reply("200 OK", DOCUMENT, "application/json", "Content-Encoding: gzip"),
    "2 MiB": reply("200 OK", b'{"a":"' + b"x" * 2**21 + b'"}'),
    "100,000 deep": reply("200 OK", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "100,000 deep and cut off": reply("200 OK", b'{"a":' + b"[" * 100_000),
}
BROKEN_OFF = {
    "cut off": HEAD + b"Content-Length: 99\r\n\r\n" + DOCUMENT,
    "cut off amid chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3c\r\n" + DOCUMENT + b"\r\n",
    "no head": b"",
    "half a head": HEAD[:-7],
    "no HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
    "a length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded field": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
}
GARBAGE = [(answer, False) for answer in ANSWERED.values()] + [(part, True) for part in BROKEN_OFF.values()]
garbage = pytest.mark.parametrize(("answered", "ends"), GARBAGE, ids=[*ANSWERED, *BROKEN_OFF])
assert len(DOCUMENT) == 0x3C


@garbage
async def test_a_look_up_without_a_whole_json_reply_is_502_and_nothing_is_patched(
    answered: bytes, ends: bool
) -> None:
    async with (
        RawUpstream(api(answered, ends=ends)) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}") as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 502, answer.text
        refused_by_the_gateway(answer.headers, answer.json(), 502)
        assert patches(upstream) == []
        assert [line["event"] for line in running.lines()] == ["reject", "outcome"]
        # Nothing of it is kept: the next call asks again.
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert sum(request.method == b"GET" for request in upstream.requests) >= 2


@garbage
async def test_where_the_rule_says_so_a_failed_look_up_lets_the_call_go_on_unfilled(
    answered: bytes, ends: bool
) -> None:
    async with (
        RawUpstream(api(answered, ends=ends)) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}", rule={"on_lookup_failure": "forward"}) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 202
        assert patches(upstream) == [BODY]
        assert told(answer.headers["gateway-rewrite"]) == {"content-type": True, "skipped": "lookup-failed"}
        assert running.lines("rewrite")[0]["skipped"] == "lookup-failed"


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_where_the_rule_says_so_a_refused_look_up_lets_the_call_go_on_unfilled(status: int) -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, rule={"on_lookup_failure": "forward"}) as running,
        running.client() as client,
    ):
        upstream.faults.append(Fault(method="GET", status=status))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 400  # the strict upstream's own word on a PATCH without state
        assert "Missing required property" in answer.json()["message"]
        assert told(answer.headers["gateway-rewrite"]) == {"content-type": True, "skipped": "lookup-refused"}


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
    """Any client can put such a value into a conversation: it must not lock everybody else out of it."""
    async with (
        RawUpstream(api(reply("200 OK", document))) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}") as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 202, answer.text
        assert patches(upstream) == [FILLED]


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
        RawUpstream(api(reply("200 OK", json.dumps(document).encode()))) as upstream,
        gateway(
            f"http://127.0.0.1:{upstream.port}",
            rule={"match": {"path": rule.match.path}},
            fill={"from": fill.source, "select": fill.select, "allow": fill.allow},
        ) as running,
        running.client() as client,
    ):
        await client.patch(target, content=BODY, headers=TOKEN)

        assert b'"state"' not in b"".join(patches(upstream))
        assert running.counts("lookups") == 1


@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",)])
async def test_a_look_up_that_is_reset_is_502(pieces: tuple[bytes, ...]) -> None:
    async with (
        RawUpstream(api(*pieces, resets=True)) as upstream,
        gateway(f"http://127.0.0.1:{upstream.port}") as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 502
        error = refused_by_the_gateway(answer.headers, answer.json(), 502)
        assert error == "connection_terminated"


async def test_an_upstream_that_is_not_there_is_502_and_says_that_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    async with gateway(f"http://127.0.0.1:{port}") as running, running.client() as client:
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        passed = await client.get("/anything", headers=TOKEN)

        for one in (answer, passed):
            assert one.status_code == 502
            error = refused_by_the_gateway(one.headers, one.json(), 502)
            assert error == "connection_refused"
            assert "Nothing was sent" in one.json()["advice"]


@pytest.mark.parametrize("pieces", [(), (HEAD + b"Content-Length: 99\r\n\r\n", b"{")])
@pytest.mark.parametrize("limit", ["max_age", "read_timeout"])
async def test_a_look_up_that_takes_too_long_is_504(pieces: tuple[bytes, ...], limit: str) -> None:
    async with RawUpstream(api(*pieces)) as upstream:
        url = f"http://127.0.0.1:{upstream.port}"
        changes: dict[str, Any] = {"fill": {"max_age": "150ms"}}
        if limit == "read_timeout":
            wire = app.connect(UpstreamSettings(url=url, read_timeout="150ms"))  # type: ignore[arg-type]
            changes = {"fill": {"max_age": 0}, "wire": wire}
        async with gateway(url, **changes) as running, running.client() as client:
            answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

            assert answer.status_code == 504
            error = refused_by_the_gateway(answer.headers, answer.json(), 504)
            assert error == "http_response_timeout"
            assert patches(upstream) == []


async def test_the_calls_deadline_covers_the_look_up_and_what_is_left_behind_is_cleared_away() -> None:
    async with (
        RawUpstream(api()) as upstream,
        gateway(
            f"http://127.0.0.1:{upstream.port}", fill={"max_age": 0}, limits={"deadline": "150ms"}
        ) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 504
        assert "0.15 s" in answer.json()["detail"]
        refused_by_the_gateway(answer.headers, answer.json(), 504)
        assert patches(upstream) == []
        assert len(running.gateway.locks) == 0


async def test_never_stale_if_error() -> None:
    now = [100.0]
    async with (
        mock() as upstream,
        gateway(upstream.url, clock=lambda: now[0]) as running,
        running.client() as client,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        now[0] += 1.001
        upstream.faults.append(Fault(method="GET", status=500))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 502
        assert len(upstream.ledger.of("PATCH")) == 1


# --- S8: what it costs


async def test_a_hundred_first_calls_at_once_cost_one_get() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, fill={"max_age": "10s"}) as running,
        running.client() as client,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        calls = [
            asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN)) for _ in range(100)
        ]
        await until(lambda: running.counts("lookups") + running.counts("lookups_coalesced") == 100)
        held.set()
        answers = await asyncio.gather(*calls)

        assert {answer.status_code for answer in answers} == {202}
        assert len(upstream.ledger.of("GET")) == 1
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED] * 100


async def test_one_conversations_get_serves_all_its_participants() -> None:
    async with (
        mock(conversation(p1="connected", p2="active")) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        for name in ("p1", "p2", "p1"):
            await client.patch(f"{CONVERSATION}/participants/{name}", content=BODY, headers=TOKEN)

        assert len(upstream.ledger.of("GET")) == 1
        states = [json.loads(entry.body).get("state") for entry in upstream.ledger.of("PATCH")]
        assert states == ["connected", "active", "connected"]


async def test_a_call_left_unfilled_makes_the_next_ask_again() -> None:
    async with (
        mock(conversation(p1="connected", p3="disconnected")) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        for name in ("p3", "p1"):
            await client.patch(f"{CONVERSATION}/participants/{name}", content=BODY, headers=TOKEN)

        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH", "GET", "PATCH"]


@pytest.mark.parametrize("leaver", [0, 1, 2], ids=["the first", "a waiter", "the last"])
async def test_a_caller_that_leaves_never_fails_the_others(leaver: int) -> None:
    request = (
        f"PATCH {PARTICIPANT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer one\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    async with (
        mock() as upstream,
        gateway(upstream.url) as running,
        connect(running.port) as first,
        connect(running.port) as second,
        connect(running.port) as third,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        clients = [first, second, third]
        await first.send(request)
        await until(lambda: running.counts("lookups") == 1)
        await second.send(request)
        await until(lambda: running.counts("lookups_coalesced") == 1)
        await third.send(request)
        await until(lambda: running.counts("lookups_coalesced") == 2)
        clients.pop(leaver).reset()
        await until(lambda: running.counts("calls_matched"))
        held.set()
        for client in clients:
            assert (await client.reply())[0] == 202

        assert len(upstream.ledger.of("GET")) == 1
        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED] * 2
        assert [line.get("error") for line in running.lines("outcome")] == ["client-gone", None, None]


async def test_when_all_have_left_nothing_is_patched() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held))
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
            % (PARTICIPANT.encode(), len(BODY), BODY)
        )
        await upstream.ledger.arrived(1)
        client.reset()
        await until(lambda: running.counts("calls_matched"))
        held.set()
        async with running.client() as other:
            await other.patch(PARTICIPANT, content=BODY)

        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH"]
        assert [line["event"] for line in running.lines()] == ["outcome", "rewrite", "outcome"]


async def test_a_failed_get_fails_all_who_waited_for_it_and_nobody_after() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held, status=500))
        calls = [
            asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN)) for _ in range(10)
        ]
        await until(lambda: running.counts("lookups") + running.counts("lookups_coalesced") == 10)
        held.set()
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {502}
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        assert len(upstream.ledger.of("GET")) == 2


# --- S6: whose value it is


CALLERS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}),
    ({"Authorization": "Bearer one"}, {}),
    ({"Cookie": "session=one"}, {"Cookie": "session=two"}),
    ({"Authorization": "Bearer one"}, {"Authorization": "Bearer one", "Cookie": "session=two"}),
    ({"Authorization": "Bearer one"}, {"Authorization": "bearer one"}),
    ({"X-Api-Key": "one"}, {"X-Api-Key": "two"}),
]


@pytest.mark.parametrize(("one", "two"), CALLERS)
async def test_a_value_read_for_one_caller_never_fills_anothers_call(
    one: dict[str, str], two: dict[str, str]
) -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, credentials={"headers": ["X-Api-Key"]}) as running,
        running.client() as client,
    ):
        for headers in (one, two, one, two):
            await client.patch(PARTICIPANT, content=BODY, headers=headers)

        gets = upstream.ledger.of("GET")
        names = [name.lower().encode() for name in {**one, **two}]
        sent = [{key: value for key, value in entry.headers if key in names} for entry in gets]
        assert sent == [{k.lower().encode(): v.encode() for k, v in it.items()} for it in (one, two)]


async def test_callers_at_once_each_look_up_with_their_own_credentials() -> None:
    """300 callers, a secret each: no GET or PATCH ever carries, or is filled for, another's."""
    seen: dict[bytes, list[str]] = {}
    people = {f"p{n}": Participant(tokens=frozenset({f"secret-{n}"})) for n in range(300)}
    async with (
        mock(Conversations({"c1": Conversation("messages", people)})) as upstream,
        gateway(upstream.url) as running,
    ):

        async def call(n: int) -> int:
            async with connect(running.port, patience=20) as client:
                await client.send(
                    f"PATCH {CONVERSATION}/participants/p{n} HTTP/1.1\r\nHost: a\r\n"
                    f"Authorization: Bearer secret-{n}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
                    + BODY
                )
                return (await client.reply())[0]

        statuses = await asyncio.gather(*(call(n) for n in range(300)))
        for entry in upstream.ledger.entries:
            seen.setdefault(dict(entry.headers)[b"authorization"], []).append(entry.method)

        assert set(statuses) == {202}
        assert len(seen) == 300
        assert all(methods == ["GET", "PATCH"] for methods in seen.values())


async def test_a_caller_whose_token_was_revoked_is_not_filled_from_the_cache_of_another() -> None:
    people = {"p1": Participant(tokens=frozenset({"one"}))}
    async with (
        mock(Conversations({"c1": Conversation("messages", people)})) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        answer = await client.patch(PARTICIPANT, content=BODY, headers={"Authorization": "Bearer two"})

        assert answer.status_code == 403
        assert len(upstream.ledger.of("PATCH")) == 1


# --- what a look-up carries


async def test_a_look_up_is_a_plain_get_with_the_callers_own_end_to_end_headers() -> None:
    carried = [
        ("Authorization", "Bearer one"), ("Cookie", "a=1"), ("Accept-Language", "de"), ("X-Tenant", "7"),
        ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("User-Agent", "it"),
    ]  # fmt: skip
    kept_back = [
        ("Content-Type", "text/plain"), ("Content-Language", "de"), ("Content-Location", "/x"),
        ("Content-Disposition", "attachment"), ("Content-Range", "bytes 0-1/2"),
        ("If-Match", '"1"'), ("If-None-Match", '"1"'), ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"), ("If-Range", '"1"'), ("Range", "bytes=0-1"),
        ("Prefer", "return=minimal"), ("Idempotency-Key", '"k"'), ("Expect", "100-continue"),
        ("Accept", "text/html"), ("Accept-Encoding", "gzip"),
        ("Connection", "x-hop, close"), ("X-Hop", "1"), ("Keep-Alive", "5"), ("TE", "trailers"),
    ]  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in carried + kept_back)
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        await client.send(
            f"PATCH {PARTICIPANT}?q=1 HTTP/1.1\r\nHost: a\r\n{head}".encode()
            + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
        )
        await client.until(b"HTTP/1.1 202")

        (get,) = upstream.ledger.of("GET")
        assert get.target == CONVERSATION.encode()
        assert get.body == b""
        sent = [(name.decode(), value.decode()) for name, value in get.headers]
        for name, value in carried:
            assert (name.lower(), value) in sent
        names = [name for name, _ in sent]
        assert ("accept", "application/json") in sent
        assert ("accept-encoding", "identity") in sent
        assert len(set(names)) == len(names)
        expected = {name.lower() for name, _ in kept_back} - {"accept", "accept-encoding"}
        assert expected.isdisjoint(names)
        assert {"content-length", "transfer-encoding"}.isdisjoint(names)


# --- S2: how old it may be


@garbage
async def test_what_cannot_be_looked_up_is_not_learned_from_a_clients_own_get_either(
    answered: bytes, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets it as it is, and nothing of it fills a call; nor does it upset the gateway."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            gets = sum(it.method == b"GET" for it in peer.upstream.requests)
            if request.method == b"GET" and gets == 1:
                await peer.send(answered)
                if ends:
                    return
            else:
                await peer.send(reply("200 OK", DOCUMENT) if request.method == b"GET" else ACCEPTED)

    async with RawUpstream(script) as upstream, gateway(f"http://127.0.0.1:{upstream.port}") as running:
        async with connect(running.port) as client:
            await client.send(f"GET {CONVERSATION} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            try:
                assert (await client.rest()).startswith(b"HTTP/1.1 ")
            except ConnectionResetError:
                assert ends
        async with running.client() as other:
            assert (await other.patch(PARTICIPANT, content=BODY)).status_code == 202

        assert patches(upstream) == [FILLED]
        # What a client asked for compressed is a whole document once it is inflated.
        assert running.counts("lookups") == (answered != ANSWERED["gzip"])
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "body",
    [b'{"state":"\xff"}', b"{", b"[" * 50_000, b'{"state":1e400}', b"[]", b"null", b'{"state":"\\ud800"}'],
)
async def test_a_reply_to_the_filled_call_that_is_no_sound_json_is_relayed_all_the_same(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(method="PATCH", status=202, body=body, headers=(("content-type", "application/json"),))
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        upstream.faults.append(fault)
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        again = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert (answer.status_code, answer.content) == (202, body)
        assert again.status_code == 202
        assert running.lines("outcome")[0]["status"] == 202
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_max_age_counts_from_the_start_of_the_get() -> None:
    now = [100.0]
    async with (
        mock() as upstream,
        gateway(upstream.url, clock=lambda: now[0]) as running,
        running.client() as client,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(1)
        now[0] += 0.7
        held.set()
        slow = await call
        now[0] += 0.29
        cached = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        now[0] += 0.02
        expired = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        ages = [told(it.headers["gateway-rewrite"])["age"] for it in (slow, cached, expired)]
        sources = [told(it.headers["gateway-rewrite"])["source"] for it in (slow, cached, expired)]
        assert ages == ["0.7", "0.99", "0.0"]
        assert sources == ["lookup", "cache", "lookup"]
        recorded = [line["changes"][1]["age_ms"] for line in running.lines("rewrite")]
        assert recorded == [700, 990, 0]


async def test_an_answer_that_is_too_old_when_it_comes_is_asked_for_again() -> None:
    now = [100.0]
    async with (
        mock() as upstream,
        gateway(upstream.url, clock=lambda: now[0]) as running,
        running.client() as client,
    ):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(1)
        upstream.change("c1", "p1", state="active")
        now[0] += 1.5
        held.set()
        answer = await call

        assert answer.status_code == 202
        assert len(upstream.ledger.of("GET")) == 2
        assert json.loads(upstream.ledger.of("PATCH")[0].body)["state"] == "active"
        assert float(told(answer.headers["gateway-rewrite"])["age"]) <= 1


async def test_a_max_age_of_nothing_is_a_fresh_get_for_each_call() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, fill={"max_age": 0}) as running,
        running.client() as client,
    ):
        for _ in range(3):
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH"] * 3


async def test_calls_in_a_row_cost_one_get_within_max_age_and_never_make_it_younger() -> None:
    now = [100.0]
    async with (
        mock() as upstream,
        gateway(upstream.url, clock=lambda: now[0]) as running,
        running.client() as client,
    ):
        for _ in range(8):
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            now[0] += 0.3

        # At 0, 0.3, 0.6, 0.9 from the first GET; at 1.2 from the second.
        assert len(upstream.ledger.of("GET")) == 2
