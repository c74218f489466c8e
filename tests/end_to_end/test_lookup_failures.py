"""A look-up that the upstream refuses is relayed, one that fails is 502 or 504; nothing is patched (C5)."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from gateway import backend
from gateway.config import UpstreamSettings
from gateway.mock.server import Fault
from tests.support.calls import ACCEPTED, STATE, answering_gets, reply
from tests.support.clock import Clock
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, gateway
from tests.support.judging import refused_by_the_gateway, told
from tests.support.mocking import mocked
from tests.support.ports import closed_port
from tests.support.raw_upstream import Peer, RawUpstream
from tests.support.serving import connect
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (401, (("www-authenticate", 'Bearer realm="a, b"'),)),
        (403, ()),
        (404, ()),
        (429, (("retry-after", "7"), ("inin-ratelimit-allowed", "300"))),
        (503, (("retry-after", "2"),)),
    ],
)
async def test_a_refused_look_up_is_relayed_as_the_upstream_said_it(
    status: int, fields: tuple[tuple[str, str], ...]
) -> None:
    body = b'{"message": "as the upstream said it", "status": %d }' % status
    fault = Fault(method="GET", status=status, headers=fields, body=body)
    async with mocked() as (upstream, running, client):
        upstream.faults.append(fault)
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == status
        assert answer.content == body
        assert [(name, answer.headers[name]) for name, _ in fields] == list(fields)
        assert answer.headers["content-type"] == "application/json"
        # D5: Proxy-Status is for the gateway's own refusals alone.
        assert "proxy-status" not in answer.headers
        assert told(answer.headers["gateway-rewrite"]) == {"skipped": "lookup-refused"}
        assert upstream.ledger.of("PATCH") == []
        assert [(line["event"], line.get("reason")) for line in running.lines()] == [
            ("reject", "lookup-refused"),
            ("outcome", None),
        ]
        assert running.lines("outcome")[0]["status"] == status


async def test_a_refusal_is_never_remembered_but_for_the_pause_of_a_429() -> None:
    async with mocked() as (upstream, _, client):
        upstream.faults.append(Fault(method="GET", status=404))
        refused = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        accepted = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert (refused.status_code, accepted.status_code) == (404, 202)


async def test_a_429_holds_back_further_look_ups_of_that_caller_alone() -> None:
    clock = Clock(100.0)
    async with mocked(clock=clock) as (upstream, _, client):
        upstream.faults.append(Fault(method="GET", status=429, headers=(("retry-after", "7"),)))
        first = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        clock.now += 4.5
        held = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        other = await client.patch(PARTICIPANT, content=BODY, headers={"Authorization": "Bearer two"})
        gets = len(upstream.ledger.of("GET"))
        clock.now += 3
        later = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert [it.status_code for it in (first, held, other, later)] == [429, 429, 202, 202]
        assert held.content == first.content
        assert (first.headers["retry-after"], held.headers["retry-after"]) == ("7", "3")
        assert gets == 2


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


ANSWERED = {
    "500": reply("500 Oops", b"{}"),
    "503": reply("503 Busy", b"{}"),
    "400": reply("400 Bad Request", b"{}"),
    "302": reply("302 Found", b"", "text/html", "Location: http://elsewhere.example/"),
    "206": reply("206 Partial", STATE, "application/json", "Content-Range: bytes 0-9/10"),
    "203": reply("203 Transformed", STATE),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304 unasked": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "an HTML page": reply("200 OK", b"<html>log in</html>", "text/html"),
    "JSON called HTML": reply("200 OK", STATE, "text/html"),
    "HTML called JSON": reply("200 OK", b"<html></html>"),
    "nothing": reply("200 OK"),
    "an array": reply("200 OK", b"[" + STATE + b"]"),
    "null": reply("200 OK", b"null"),
    "NaN": reply("200 OK", STATE[:-1] + b',"n":NaN}'),
    "two documents": reply("200 OK", STATE * 2),
    "a byte order mark": reply("200 OK", b"\xef\xbb\xbf" + STATE),
    "not UTF-8": reply("200 OK", STATE[:-1] + b',"n":"\xff"}'),
    "a surrogate in UTF-8": reply("200 OK", STATE[:-1] + b',"\xed\xa0\x80":1}'),
    "gzip": reply("200 OK", gzip.compress(STATE, mtime=0), "application/json", "Content-Encoding: gzip"),
    "called gzip": reply("200 OK", STATE, "application/json", "Content-Encoding: gzip"),
    "2 MiB": reply("200 OK", b'{"a":"' + b"x" * 2**21 + b'"}'),
    "100,000 deep": reply("200 OK", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "100,000 deep and cut off": reply("200 OK", b'{"a":' + b"[" * 100_000),
}


BROKEN_OFF = {
    "cut off": HEAD + b"Content-Length: 99\r\n\r\n" + STATE,
    "cut off amid chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(STATE), STATE),
    "no head": b"",
    "half a head": HEAD[:-7],
    "no HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
    "a length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded field": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
}


GARBAGE = [(answer, False) for answer in ANSWERED.values()] + [(part, True) for part in BROKEN_OFF.values()]


garbage = pytest.mark.parametrize(("answered", "ends"), GARBAGE, ids=[*ANSWERED, *BROKEN_OFF])


@garbage
async def test_a_look_up_without_a_whole_json_reply_is_502_and_nothing_is_patched(
    answered: bytes, ends: bool
) -> None:
    async with (
        RawUpstream(answering_gets(answered, ends=ends)) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 502, answer.text
        refused_by_the_gateway(answer.headers, answer.json(), 502)
        assert upstream.bodies(b"PATCH") == []
        assert [line["event"] for line in running.lines()] == ["reject", "outcome"]
        # Nothing of it is kept: the next call asks again.
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert sum(request.method == b"GET" for request in upstream.requests) >= 2


@garbage
async def test_where_the_rule_says_so_a_failed_look_up_lets_the_call_go_on_unfilled(
    answered: bytes, ends: bool
) -> None:
    async with (
        RawUpstream(answering_gets(answered, ends=ends)) as upstream,
        gateway(upstream.url, rule={"on_lookup_failure": "forward"}) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 202
        assert upstream.bodies(b"PATCH") == [BODY]
        assert told(answer.headers["gateway-rewrite"]) == {"content-type": True, "skipped": "lookup-failed"}
        assert running.lines("rewrite")[0]["skipped"] == "lookup-failed"


@garbage
async def test_a_reply_that_is_no_whole_document_does_not_prime_the_cache_when_a_client_gets_it(
    answered: bytes, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the reply as it is. It fills no call, and causes no error in the gateway's log."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            gets = sum(it.method == b"GET" for it in peer.upstream.requests)
            if request.method == b"GET" and gets == 1:
                await peer.send(answered)
                if ends:
                    return
            else:
                await peer.send(reply("200 OK", STATE) if request.method == b"GET" else ACCEPTED)

    async with RawUpstream(script) as upstream, gateway(upstream.url) as running:
        async with connect(running.port) as client:
            host = f"Host: 127.0.0.1:{running.port}"
            await client.send(f"GET {CONVERSATION} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n".encode())
            try:
                assert (await client.rest()).startswith(b"HTTP/1.1 ")
            except ConnectionResetError:
                assert ends
        async with running.client() as other:
            assert (await other.patch(PARTICIPANT, content=BODY)).status_code == 202

        assert upstream.bodies(b"PATCH") == [FILLED]
        # A client may ask for gzip: its reply is inflated, and is a whole document.
        assert running.counts("gateway_lookups_total", "sent") == (answered != ANSWERED["gzip"])
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_where_the_rule_says_so_a_refused_look_up_lets_the_call_go_on_unfilled(status: int) -> None:
    async with mocked(rule={"on_lookup_failure": "forward"}) as (upstream, _, client):
        upstream.faults.append(Fault(method="GET", status=status))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 400  # the strict upstream's own word on a PATCH without state
        assert "Missing required property" in answer.json()["message"]
        assert told(answer.headers["gateway-rewrite"]) == {"content-type": True, "skipped": "lookup-refused"}


@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",)])
async def test_a_look_up_that_is_reset_is_502(pieces: tuple[bytes, ...]) -> None:
    async with (
        RawUpstream(answering_gets(*pieces, resets=True)) as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 502
        error = refused_by_the_gateway(answer.headers, answer.json(), 502)
        assert error == "connection_terminated"


async def test_an_upstream_that_is_not_there_is_502_and_says_that_nothing_was_sent() -> None:
    with closed_port() as port:
        async with gateway(f"http://127.0.0.1:{port}") as running, running.client() as client:
            answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            passed = await client.get("/anything", headers=TOKEN)

    for one in (answer, passed):
        assert one.status_code == 502
        error = refused_by_the_gateway(one.headers, one.json(), 502)
        assert error == "connection_refused"
        assert "Nothing was sent" in one.json()["advice"]


@pytest.mark.parametrize("pieces", [(), (HEAD + b"Content-Length: 99\r\n\r\n", b"{")])
@pytest.mark.parametrize("limit", ["lookup_timeout", "read_timeout"])
async def test_a_look_up_that_takes_too_long_is_504(pieces: tuple[bytes, ...], limit: str) -> None:
    async with RawUpstream(answering_gets(*pieces)) as upstream:
        changes: dict[str, Any] = {"fill": {"lookup_timeout": "150ms"}}
        if limit == "read_timeout":
            transport = backend.connect(UpstreamSettings(url=upstream.url, read_timeout="150ms"))  # type: ignore[arg-type]
            changes = {"fill": {"max_age": 0}, "transport": transport}
        async with gateway(upstream.url, **changes) as running, running.client() as client:
            answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

            assert answer.status_code == 504
            error = refused_by_the_gateway(answer.headers, answer.json(), 504)
            assert error == "http_response_timeout"
            assert upstream.bodies(b"PATCH") == []


async def test_the_calls_deadline_covers_the_look_up_and_what_is_left_behind_is_cleared_away() -> None:
    async with (
        RawUpstream(answering_gets()) as upstream,
        gateway(upstream.url, fill={"max_age": 0}, limits={"deadline": "150ms"}) as running,
        running.client() as client,
    ):
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 504
        assert "0.15 s" in answer.json()["detail"]
        refused_by_the_gateway(answer.headers, answer.json(), 504)
        assert upstream.bodies(b"PATCH") == []
        assert len(running.gateway.main.locks) == 0


async def test_never_stale_if_error() -> None:
    clock = Clock(100.0)
    async with mocked(clock=clock, fill={"max_age": "1s"}) as (upstream, _, client):
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        clock.now += 1.001
        upstream.faults.append(Fault(method="GET", status=500))
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert answer.status_code == 502
        assert len(upstream.ledger.of("PATCH")) == 1


async def test_a_failed_get_fails_all_who_waited_for_it_and_nobody_after() -> None:
    async with mocked() as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", delay=held, status=500))
        calls = [
            asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN)) for _ in range(10)
        ]
        await until(lambda: running.asked == 10)
        held.set()
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {502}
        assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        assert len(upstream.ledger.of("GET")) == 2


@pytest.mark.parametrize(
    "body",
    [b'{"state":"\xff"}', b"{", b"[" * 50_000, b'{"state":1e400}', b"[]", b"null", b'{"state":"\\ud800"}'],
)
async def test_a_reply_to_the_filled_call_that_is_no_sound_json_is_relayed_all_the_same(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(method="PATCH", status=202, body=body, headers=(("content-type", "application/json"),))
    async with mocked() as (upstream, running, client):
        upstream.faults.append(fault)
        answer = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        again = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert (answer.status_code, answer.content) == (202, body)
        assert again.status_code == 202
        assert running.lines("outcome")[0]["status"] == 202
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []
