"""The seed call: what legacy clients send, what the upstream must receive, what is recorded of it."""

from __future__ import annotations

import gzip

import pytest

from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN
from tests.support.mocking import mocked

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize(
    ("kind", "body", "extra"),
    [
        (None, BODY, {}),
        ("text/plain", BODY, {}),
        ("text/plain;charset=UTF-8", BODY, {}),
        ("application/x-www-form-urlencoded", BODY, {}),
        ("application/octet-stream", BODY, {}),
        ("application/json; charset=utf-16", BODY.decode().encode("utf-16-le"), {}),
        ("application/json; charset=utf-8", b"\xef\xbb\xbf" + BODY, {}),
        ("application/json", gzip.compress(BODY, mtime=0), {"Content-Encoding": "gzip"}),
    ],
)
async def test_the_seed_call_is_refused_straight_and_accepted_through_the_gateway(
    kind: str | None, body: bytes, extra: dict[str, str]
) -> None:
    headers = TOKEN | extra | ({"Content-Type": kind} if kind else {})
    async with mocked() as (upstream, running, client):
        straight = await client.patch(upstream.url + PARTICIPANT, content=body, headers=headers)
        upstream.ledger.clear()
        through = await client.patch(PARTICIPANT, content=body, headers=headers)

        assert straight.status_code in {400, 415}
        assert through.status_code == 202, through.text
        look_up, patch = upstream.ledger.of("GET"), upstream.ledger.of("PATCH")
        assert [entry.target for entry in look_up] == [CONVERSATION.encode()]
        assert [entry.body for entry in patch] == [FILLED]
        sent = dict(patch[0].headers)
        assert sent[b"content-type"] == b"application/json"
        assert sent[b"content-length"] == b"%d" % len(FILLED)
        assert b"content-encoding" not in sent
        assert [line["event"] for line in running.lines()] == ["rewrite", "outcome"]
