"""What becomes of a body: the client's own bytes with one member inserted, or not a byte changed."""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, Running, gateway
from tests.support.judging import MIB, Refusal, refusal, told
from tests.support.mocking import mock, mocked
from tests.support.serving import Reply, connect


def inserted(body: bytes) -> bytes:
    """What the upstream must receive, computed without the product's code."""
    before, brace, after = body.partition(b"{")
    comma = b"" if after.lstrip(b" \t\r\n").startswith(b"}") else b","
    return before + brace + b'"state":"connected"' + comma + after


def nested(size: int) -> bytes:
    """An object of about `size` bytes: nested attributes that a JSON printer would write otherwise."""
    leaf = '{"n": 1.10, "big":12345678901234567890 ,"e":1e400, "t": "\\u0000 \\ud83d\\ude00 é 😀", "a":[ ]}'
    rows = ",\n".join(f'"k{n}":\t{{"in": {leaf}}}' for n in range(size // (len(leaf.encode()) + 16)))
    return f'\r\n {{ "attributes" : {{{rows}}} }}\n'.encode()


FILLABLE = {
    "empty object": b"{}",
    "empty object with space": b" \t\r\n{ \n }\r\n ",
    "big integer": b'{"n":12345678901234567890}',
    "decimals as written": b'{"a":1.10,"b":-0,"c":1E+2,"d":0.10e-07}',
    "beyond any float": b'{"attributes":{"n":1e400,"m":-1e400}}',
    "five thousand digits": b'{"n":' + b"9" * 5000 + b"}",
    "duplicate keys": b'{"a":1,"a":2,"attributes":{"x":1,"x":2},"attributes":{}}',
    "null character": b'{"attributes":{"a":"\\u0000"}}',
    "lone surrogate": b'{"attributes":{"a":"\\ud800"}}',
    "emoji": '{"attributes":{"😀":"👩‍👩‍👧","é":"e\u0301"}}'.encode(),
    "escapes": b'{"\\u0061ttributes":{"\\/":"\\b\\f\\n\\r\\t\\"\\\\ \\u00E9"}}',
    "separators that are not JSON's": '{"a":"\u2028\u2029\x85\x7f"}'.encode(),
    "odd white space": b'\n\t{\r\n"attributes"\t:\n\n{ } ,"wrapup" :null }\n',
    "state within": b'{"attributes":{"state":"disconnected"}}',
    "state in another case": b'{"State":"disconnected","STATE":1}',
    "state with space": b'{" state":1,"state ":2,"state\\u0000":3}',
    "many values": nested(250_000),
    "one megabyte": b'{"attributes":{"note":"' + b"\\u00e9 " * ((MIB - 100) // 7) + b'"}}',
    "nineteen thousand members": b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(19_000)) + b"}",
    "deep": b'{"a":' + b"[" * 400 + b"]" * 400 + b"}",
}


@pytest.mark.parametrize("body", FILLABLE.values(), ids=FILLABLE.keys())
async def test_an_object_without_state_arrives_byte_for_byte_with_one_member_inserted(body: bytes) -> None:
    async with mocked() as (upstream, running, client):
        reply = await client.patch(PARTICIPANT, content=body, headers=TOKEN)

        (patch,) = upstream.ledger.of("PATCH")
        assert patch.body == inserted(body)
        assert told(reply.headers["gateway-rewrite"])["filled"] == "state"
        (line,) = running.lines("rewrite")
        assert line["body"]["before"]["bytes"] == len(body)
        assert line["body"]["after"]["bytes"] == len(patch.body)


UNFILLABLE = {
    "empty": (None, b"", "empty-body"),
    "white space": ("application/json", b" \r\n\t", "empty-body"),
    "array": ("application/json", b'[{"attributes":{}}]', "not-an-object"),
    "number": ("text/plain", b"7", "not-an-object"),
    "string": ("text/plain", b'"{}"', "not-an-object"),
    "null": ("application/json", b"null", "null-body"),
    "a JavaScript object printed": ("text/plain", b"[object Object]", "not-json"),
    "NaN": ("application/json", b'{"attributes":{"n":NaN}}', "not-json"),
    "Infinity": ("application/json", b'{"attributes":{"n":-Infinity}}', "not-json"),
    "not ended": ("application/json", b'{"attributes":{}', "not-json"),
    "followed by another": ("application/json", b"{}{}", "not-json"),
    "comma at the end": ("application/json", b'{"a":1,}', "not-json"),
    "single quotes": ("application/json", b"{'a':1}", "not-json"),
    "a raw control character": ("application/json", b'{"a":"\x01"}', "not-json"),
    "form data": ("application/x-www-form-urlencoded", b"attributes=%7B%7D&wrapup=", "not-json"),
    "not UTF-8": ("application/json", b'{"a":"\xff"}', "not-utf-8"),
    "an overlong slash": ("application/json", b'{"a":"\xc0\xaf"}', "not-utf-8"),
    "a surrogate in UTF-8": ("application/json", b'{"a":"\xed\xa0\x80"}', "not-utf-8"),
    "multipart": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n{}\r\n--x--\r\n',
        "media-type",
    ),
    "multipart that is an object": ("multipart/form-data; boundary=x", BODY, "media-type"),
    "JSON Patch": ("application/json-patch+json", b'[{"op":"add","path":"/a","value":1}]', "media-type"),
    "an object called JSON Patch": ("application/json-patch+json", BODY, "media-type"),
    "merge patch": ("application/merge-patch+json", BODY, "media-type"),
    "XML": ("application/xml", b"<a/>", "media-type"),
    "white space around": ("application/json", b" \r\n[] \n", "not-an-object"),
    "thirty thousand deep": (None, b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "too-deep"),
    "a hundred thousand deep": (None, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too-many-values"),
    "seventy thousand members": (
        None,
        b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(70_000)) + b"}",
        "too-many-values",
    ),
    "a million brackets": (None, b"[" * 1_000_000, "too-many-values"),
    "damaged gzip": (None, gzip.compress(BODY, mtime=0)[:-3], "content-encoding-damaged"),
    "two codings": (None, gzip.compress(gzip.compress(BODY, mtime=0)), "content-encoding"),
}
CODINGS = {"damaged gzip": "gzip", "two codings": "gzip, gzip"}


@pytest.mark.parametrize("name", UNFILLABLE)
async def test_what_is_no_json_object_arrives_unchanged_and_the_reason_is_told_and_recorded(
    name: str,
) -> None:
    kind, body, reason = UNFILLABLE[name]
    headers = TOKEN | ({"Content-Type": kind} if kind else {})
    headers |= {"Content-Encoding": CODINGS[name]} if name in CODINGS else {}
    async with mocked() as (upstream, running, client):
        reply = await client.patch(PARTICIPANT, content=body, headers=headers)

        (patch,) = upstream.ledger.entries
        assert (patch.method, patch.body) == ("PATCH", body)
        assert [value for key, value in patch.headers if key == b"content-type"] == (
            [kind.encode()] if kind else []
        )
        assert reply.status_code == patch.status
        assert told(reply.headers["gateway-rewrite"]) == {"skipped": reason}
        assert [(line["event"], line.get("reason")) for line in running.lines()] == [
            ("skip", reason),
            ("outcome", None),
        ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"state":"disconnected"}', "conforming"),
        (b'{"state":""}', "conforming"),
        (b'{"state":0}', "conforming"),
        (b'{"state":false}', "conforming"),
        (b'{"state":null}', "explicit-null"),
        (b'{"st\\u0061te":"disconnected"}', "conforming"),
        (b'{"state":"a","state":"b"}', "duplicate-member"),
        (b'{"state":"a","\\u0073tate":"b"}', "duplicate-member"),
    ],
)
async def test_a_state_that_the_client_sent_is_never_altered_and_never_looked_up(
    body: bytes, reason: str
) -> None:
    async with mocked() as (upstream, _, client):
        json_type = {"Content-Type": "application/json"}
        reply = await client.patch(PARTICIPANT, content=body, headers=TOKEN | json_type)
        mistaken = await client.patch(PARTICIPANT, content=body, headers=TOKEN)

        assert [(entry.method, entry.body) for entry in upstream.ledger.entries] == [("PATCH", body)] * 2
        assert told(reply.headers["gateway-rewrite"]) == {"skipped": reason}
        assert told(mistaken.headers["gateway-rewrite"])["content-type"] is True
        assert "filled" not in told(mistaken.headers["gateway-rewrite"])


async def test_a_null_is_replaced_in_place_where_the_rule_says_that_it_is_missing() -> None:
    body = b'{ "a" : 1.10, "state" :  null , "b":[ ] }'
    async with mocked(fill={"null_is_missing": True}) as (upstream, _, client):
        await client.patch(PARTICIPANT, content=body, headers=TOKEN)

        (patch,) = upstream.ledger.of("PATCH")
        assert patch.body == b'{ "a" : 1.10, "state" :  "connected" , "b":[ ] }'


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (("Cache-Control", "no-cache, No-Transform"), "no-transform"),
        (("Content-Digest", "sha-256=:AAAA:"), "signed-body"),
        (("Repr-Digest", "sha-256=:AAAA:"), "signed-body"),
        (("Digest", "sha-256=AAAA"), "signed-body"),
        (("Content-MD5", "AAAA"), "signed-body"),
        (("Signature", "s=:AAAA:"), "signed-body"),
        (("Signature-Input", 's=("@method")'), "signed-body"),
    ],
)
async def test_a_body_that_may_not_be_changed_is_not_changed(header: tuple[str, str], reason: str) -> None:
    async with mocked() as (upstream, running, client):
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN | dict([header]))

        (patch,) = upstream.ledger.entries
        assert patch.body == BODY
        assert told(reply.headers["gateway-rewrite"]) == {"skipped": reason}
        assert running.lines("skip")[0]["reason"] == reason


async def test_headers_target_and_query_of_a_rewritten_call_arrive_as_they_were_sent() -> None:
    fields = [
        (b"X-Twice", b"one"),
        (b"Authorization", b'Digest  odd="a, b",x=\xe9'),
        (b"x-empty", b""),
        (b"X-Twice", b"two, three"),
        (b"x_under", b"1"),
        (b"x-under", b"2"),
        (b"If-Match", b'"v1"'),
        (b"Cookie", b"a=1; b=2"),
        (b"Cookie", b"c=3"),
        (b"X-Obs", b"caf\xe9"),
    ]
    target = PARTICIPANT.encode() + b"?a=%zz&b=c'd|e&;&&=?"
    head = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b"
            % (target, head, len(BODY), BODY)
        )
        await client.reply()

        (patch,) = upstream.ledger.of("PATCH")
        assert patch.target == target
        assert patch.body == FILLED
        sent = [(name.lower(), value) for name, value in fields]
        known = {name for name, _ in sent}
        assert [pair for pair in patch.headers if pair[0] in known] == sent
        assert {name for name, _ in patch.headers} - known == {
            b"host", b"content-length", b"content-type", b"forwarded", b"via",
            b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-request-id",
        }  # fmt: skip


async def test_the_reply_tells_what_was_done_how_long_it_took_and_under_which_id() -> None:
    async with mocked() as (upstream, running, client):
        first = await client.patch(
            PARTICIPANT, content=BODY, headers=TOKEN | {"X-Request-Id": "of-the-client"}
        )
        second = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert told(first.headers["gateway-rewrite"]).keys() == {"content-type", "filled", "source", "age"}
        assert [told(it.headers["gateway-rewrite"])["source"] for it in (first, second)] == [
            "lookup",
            "cache",
        ]
        timing = re.fullmatch(
            r"lookup;dur=(\d+\.\d+), upstream;dur=(\d+\.\d+)", first.headers["server-timing"]
        )
        assert timing is not None
        assert all(0 < float(duration) < 5_000 for duration in timing.groups())
        assert "upstream;dur=" in second.headers["server-timing"]
        assert first.headers["x-request-id"] == "of-the-client"
        ids = [dict(entry.headers)[b"x-request-id"].decode() for entry in upstream.ledger.entries]
        assert ids == ["of-the-client", "of-the-client", second.headers["x-request-id"]]
        assert {line.get("request_id", line["id"]) for line in running.lines()} == set(ids)


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, 'a"b', "caf\xe9", "a,b"])
async def test_a_request_id_that_no_log_should_hold_is_replaced(sent: str) -> None:
    async with mocked() as (_, running, client):
        headers = [(b"X-Request-Id", sent.encode("latin-1"))]
        answer = await client.patch(PARTICIPANT, content=BODY, headers=headers)

        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert running.lines()[0]["id"] == answer.headers["x-request-id"]
        assert "request_id" not in running.lines()[0]


@pytest.mark.parametrize("body", [BODY, b"[object Object]", b"", b'{"state":"connected"}'])
async def test_a_chunked_call_arrives_whole_whether_it_is_rewritten_or_not(body: bytes) -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" % PARTICIPANT.encode()
        )
        for at in range(0, len(body), 7):
            piece = body[at : at + 7]
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await client.send(b"0\r\n\r\n")
        status, _, _ = await client.reply()

        (patch,) = upstream.ledger.of("PATCH")
        assert status == patch.status
        assert patch.complete
        assert patch.body == (FILLED if body is BODY else body)


# --- the limit


async def refused_as_too_large(running: Running, reply: Reply) -> None:
    assert refusal(reply) == Refusal(413, "body-too-large", "http_request_error")
    document = json.loads(reply.body)
    assert "limits.max_body" in document["detail"]
    assert "1000" in document["detail"]
    assert "limits.max_body" in document["advice"]
    assert told(reply.headers[b"gateway-rewrite"].decode()) == {"skipped": "body-too-large"}
    assert [(line["event"], line.get("reason")) for line in running.lines()] == [
        ("reject", "body-too-large"),
        ("outcome", None),
    ]
    assert running.lines("outcome")[0]["status"] == 413


async def test_a_length_over_the_limit_is_413_from_the_head_alone_before_the_body_is_asked_for() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, limits={"max_body": 1000}) as running,
        connect(running.port) as client,
    ):
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n"
            % PARTICIPANT.encode()
        )
        await refused_as_too_large(running, await client.reply())

        assert upstream.ledger.received == 0


async def test_a_chunked_body_is_413_as_soon_as_it_passes_the_limit() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url, limits={"max_body": 1000}) as running,
        connect(running.port) as client,
    ):
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n%b\r\n1f5\r\n%b\r\n"
            % (PARTICIPANT.encode(), b" " * 500, b" " * 501)
        )
        await refused_as_too_large(running, await client.reply())

        assert upstream.ledger.received == 0


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_body_that_inflates_past_the_limit_is_413_and_costs_no_more_than_that(
    coding: str,
) -> None:
    packer = zlib.compressobj(1, wbits=31 if coding == "gzip" else 15)
    zeros = b"0" * MIB
    bomb = b"".join(
        [packer.compress(b'{"a":"'), *(packer.compress(zeros) for _ in range(40)), packer.flush()]
    )
    async with mocked(limits={"max_body": "300KiB"}) as (upstream, _, client):
        tracemalloc.start()
        try:
            reply = await client.patch(PARTICIPANT, content=bomb, headers={"Content-Encoding": coding})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert reply.status_code == 413
        assert "limits.max_body" in reply.json()["detail"]
        assert peak < 4 * MIB
        assert upstream.ledger.received == 0


async def test_a_body_of_exactly_the_limit_is_rewritten_and_one_byte_more_is_refused() -> None:
    body = BODY + b" " * (1000 - len(BODY))
    async with mocked(limits={"max_body": 1000}) as (upstream, _, client):
        taken = await client.patch(PARTICIPANT, content=body, headers=TOKEN)
        refused = await client.patch(PARTICIPANT, content=body + b" ", headers=TOKEN)

        assert (taken.status_code, refused.status_code) == (202, 413)
        assert upstream.ledger.of("PATCH")[0].body == inserted(body)


async def test_the_limit_is_for_matched_calls_alone() -> None:
    async with mocked(limits={"max_body": 1000}) as (upstream, running, client):
        body = b'{"attributes": {"a": "' + b"x" * 5000 + b'"}}'
        reply = await client.patch(f"{PARTICIPANT}/attributes", content=body, headers=TOKEN)

        assert upstream.ledger.entries[0].body == body
        assert "gateway-rewrite" not in reply.headers
        assert not running.audit.exists()


# --- any JSON object at all

_space = st.text(" \t\r\n", max_size=3)
_text = st.one_of(
    st.text(max_size=8).map(json.dumps),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"\\u0000"', '"\\ud800"', '"\\/\\b"', '"state"']),
)
_leaf = st.one_of(
    _text, st.sampled_from(["1.10", "-0", "1e400", "12345678901234567890", "0.1E-7", "true", "false", "null"])
)


def _list(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(_space, st.lists(values, max_size=3)).map(lambda it: f"[{it[0]}{','.join(it[1])}]")


def _object(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(_space, _text, _space, _space, values, _space).map(
        lambda it: f"{it[0]}{it[1]}{it[2]}:{it[3]}{it[4]}{it[5]}"
    )
    return st.tuples(_space, st.lists(member, max_size=4)).map(lambda it: f"{{{it[0]}{','.join(it[1])}}}")


_value = st.recursive(_leaf, lambda inner: st.one_of(_list(inner), _object(inner)), max_leaves=12)
_document = st.tuples(_space, _object(_value), _space).map("".join)


@settings(max_examples=25, deadline=None)
@given(st.lists(_document, min_size=5, max_size=10))
async def test_whatever_the_object_is_every_byte_outside_the_inserted_member_is_the_clients(
    documents: list[str],
) -> None:
    def names(text: str) -> list[str]:
        return [name for name, _ in json.loads(text, object_pairs_hook=lambda pairs: pairs)]

    bodies = [text.encode() for text in documents if "state" not in names(text)]
    async with mocked() as (upstream, _, client):
        for body in bodies:
            await client.patch(PARTICIPANT, content=body, headers=TOKEN)

        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [inserted(body) for body in bodies]
        # The upstream took the first for valid JSON, so one GET served them all.
        assert len(upstream.ledger.of("GET")) <= len(bodies)
        assert all(entry.target == CONVERSATION.encode() for entry in upstream.ledger.of("GET"))
