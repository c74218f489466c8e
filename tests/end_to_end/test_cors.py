"""
Calls from a browser on another origin: by default the upstream answers CORS, with `cors` the gateway alone.

What is refused before it is a call (400, 431, 503 at the limits) has no such fields: a page sees a
network error.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.calls import OK_HEAD, STATE, conversation
from tests.support.gateways import BODY, PARTICIPANT, Proxied, proxied
from tests.support.raw_upstream import Script, answering

HERE = "https://dashboard.example"
ELSEWHERE = "https://evil.example"
ASKED = "Authorization, Content-Type"
Fields = dict[str, str]


async def ask(
    chain: Proxied, method: str, origin: str | None, fields: Fields | None = None
) -> tuple[int, Fields]:
    """Status and fields of the reply. A field that comes twice fails the test."""
    body = BODY if method == "PATCH" else b""
    sent = {
        "Host": "h",
        "Content-Length": str(len(body)),
        **(fields or {}),
        **({"Origin": origin} if origin else {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    await chain.client.send(f"{method} {PARTICIPANT} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    head = (await chain.client.head()).decode()
    pairs = re.findall(r"(?m)^([^:\r\n]+): (.*)\r$", head)
    assert len(dict(pairs)) == len(pairs), head
    await chain.client.exactly(int(dict(pairs).get("content-length", "0")))
    return int(head.split(" ")[1]), dict(pairs)


def of_cors(fields: Fields) -> Fields:
    return {
        name.removeprefix("access-control-"): fields[name]
        for name in fields
        if name.startswith("access-control-")
    }


def policy(*origins: str, **more: Any) -> Any:
    return {"origins": list(origins), **more}


def saying(*lines: bytes) -> Script:
    fields = b"".join(line + b"\r\n" for line in lines)
    return answering(OK_HEAD + fields + b"Content-Length: 0\r\n\r\n")


PREFLIGHT = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": ASKED}


async def test_without_cors_a_preflight_is_the_upstreams_to_answer() -> None:
    said = (b"Access-Control-Allow-Origin: " + HERE.encode(), b"Access-Control-Allow-Methods: PATCH")
    async with proxied(saying(*said)) as chain:
        status, fields = await ask(chain, "OPTIONS", HERE, PREFLIGHT)
        assert (status, of_cors(fields)) == (200, {"allow-origin": HERE, "allow-methods": "PATCH"})
        [request] = chain.requests
        assert (request.method, request.target) == (b"OPTIONS", PARTICIPANT.encode())
        assert request.header(b"origin") == HERE.encode()
        assert request.header(b"access-control-request-method") == b"PATCH"


async def test_without_cors_a_page_that_the_upstream_lets_in_may_read_what_the_gateway_adds() -> None:
    reply = OK_HEAD + b"Access-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n"
    async with proxied(conversation(reply)) as chain:
        status, fields = await ask(chain, "PATCH", HERE)
        assert (status, "gateway-rewrite" in fields) == (200, True)
        exposed = {"allow-origin": "*", "expose-headers": "gateway-rewrite, server-timing, x-request-id"}
        assert of_cors(fields) == exposed
    async with proxied(conversation()) as chain:
        _, fields = await ask(chain, "PATCH", HERE)
        assert of_cors(fields) == {}


@pytest.mark.parametrize("origin", ["*", HERE])
async def test_with_cors_a_preflight_ends_at_the_gateway(origin: str) -> None:
    async with proxied(cors=policy(origin)) as chain:
        status, fields = await ask(chain, "OPTIONS", HERE, PREFLIGHT)
        assert status == 200
        assert of_cors(fields) == {
            "allow-origin": origin,
            "allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            "allow-headers": ASKED,
            "max-age": "600",
        }
        assert "origin" in fields["vary"].lower()
        assert chain.upstream.peers == []


async def test_with_cors_an_options_that_is_no_preflight_goes_upstream() -> None:
    async with proxied(cors=policy(HERE)) as chain:
        await ask(chain, "OPTIONS", HERE)
        await ask(chain, "OPTIONS", None, PREFLIGHT)
        assert len(chain.requests) == 2


@pytest.mark.parametrize(
    ("origin", "asked"),
    [
        (ELSEWHERE, PREFLIGHT),
        (HERE + ".evil", PREFLIGHT),
        (HERE.upper(), PREFLIGHT),
        ("null", PREFLIGHT),
        (HERE, {**PREFLIGHT, "Access-Control-Request-Method": "BREW"}),
        (HERE, {**PREFLIGHT, "Access-Control-Request-Headers": "X-Other"}),
    ],
)
async def test_with_cors_a_preflight_that_asks_for_more_is_refused(origin: str, asked: Fields) -> None:
    async with proxied(
        cors=policy(HERE, headers=["Authorization", "Content-Type"], credentials=True)
    ) as chain:
        status, fields = await ask(chain, "OPTIONS", origin, asked)
        assert status == 400
        assert origin == HERE or "allow-origin" not in of_cors(fields)
        assert chain.upstream.peers == []


@pytest.mark.parametrize("credentials", [False, True])
async def test_with_cors_every_reply_to_a_call_says_who_may_read_it(credentials: bool) -> None:
    """Also a refusal of a look-up, and the gateway's own errors."""
    replies = (
        OK_HEAD + b"Vary: Accept\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n",
        b"nonsense",
    )
    exposed = "Gateway-Rewrite, Server-Timing, X-Request-Id, Deprecation, Sunset, Link"
    expected = {"allow-origin": HERE, "expose-headers": exposed}
    if credentials:
        expected["allow-credentials"] = "true"
    cors = policy(HERE, "http://other.example", credentials=credentials)
    async with proxied(conversation(*replies), cors=cors, fill={"refill_on": [412]}) as chain:
        for status in (200, 409, 502):
            found, fields = await ask(chain, "PATCH", HERE)
            assert (found, of_cors(fields)) == (status, expected)
            assert fields["vary"] == ("Accept, Origin" if status == 200 else "Origin")
        too_large = {"Content-Length": "2000000", "Expect": "100-continue"}
        found, fields = await ask(chain, "PATCH", HERE, too_large)
        assert (found, of_cors(fields)) == (413, expected)
    refused = answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(STATE), STATE))
    async with proxied(refused, cors=cors) as chain:
        found, fields = await ask(chain, "PATCH", HERE)
        assert (found, of_cors(fields)) == (403, expected)


@pytest.mark.parametrize("origin", [ELSEWHERE, None])
async def test_with_cors_the_policy_is_the_gateways_alone(origin: str | None) -> None:
    """What the upstream lets in must not be added to what the gateway lets in."""
    said = (
        b"Access-Control-Allow-Origin: " + ELSEWHERE.encode(),
        b"Access-Control-Allow-Methods: *",
        b"Access-Control-Expose-Headers: X-Secret",
    )
    async with proxied(saying(*said), cors=policy(HERE, credentials=True)) as chain:
        for method in ("GET", "POST"):
            status, fields = await ask(chain, method, origin)
            assert status == 200
            assert "allow-origin" not in of_cors(fields)
            assert "X-Secret" not in of_cors(fields).get("expose-headers", "")


async def test_credentials_are_for_named_origins_only() -> None:
    with pytest.raises(ValueError, match="named origins"):
        async with proxied(cors=policy("*", credentials=True)):
            pass
    async with proxied(cors=policy("*")) as chain:
        _, fields = await ask(chain, "GET", ELSEWHERE)
        assert "allow-credentials" not in of_cors(fields)
        assert of_cors(fields)["allow-origin"] == "*"
