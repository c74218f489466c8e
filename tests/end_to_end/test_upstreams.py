"""One listener, a path before everything, and several upstreams behind it that share nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli import cli
from gateway.config import ConfigError, parse
from gateway.mock.server import Fault
from tests.support.gateways import (
    BODY,
    CONVERSATION,
    PARTICIPANT,
    TOKEN,
    document,
    gateway,
    proxied,
    settings,
)
from tests.support.judging import Refusal, refusal
from tests.support.mocking import RunningMock, mock, one_conversation
from tests.support.ports import closed_port
from tests.support.raw_upstream import OK, RawUpstream, answering
from tests.support.serving import connect
from tests.support.waiting import PATIENCE, until

GW = {"path_prefix": "/gw"}


def rules(*upstreams: str | None) -> list[dict[str, Any]]:
    """The rule of the seed for each, named after it."""
    (rule,) = document("http://u", "a")["rules"]
    return [
        rule | ({"name": f"{name}-rule", "upstream": name} if name else {"name": "main-rule"})
        for name in upstreams
    ]


def behind(url: str, name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "url": url, **keys}


def targets(upstream: RunningMock) -> list[str]:
    return [entry.target.decode() for entry in upstream.ledger.entries]


# --- a prefix


async def test_below_the_prefix_calls_are_repaired_and_go_on_without_it() -> None:
    async with mock() as upstream, gateway(upstream.url, listen=GW) as running, running.client() as client:
        reply = await client.patch(f"/gw{PARTICIPANT}?x=/gw/", content=BODY, headers=TOKEN)

        assert reply.status_code == 202
        assert "filled=state" in reply.headers["gateway-rewrite"]
        assert targets(upstream) == [CONVERSATION, f"{PARTICIPANT}?x=/gw/"]
        assert running.lines("rewrite")[0]["path"] == PARTICIPANT


@pytest.mark.parametrize("changes", [{}, {"cors": {"origins": ["*"]}}], ids=["plain", "with cors"])
@pytest.mark.parametrize("before", ["", "/gw2", "/%67w", "/x/../gw"])
async def test_what_lacks_the_prefix_is_404_by_the_gateway_and_nothing_is_sent(
    before: str, changes: Mapping[str, Any]
) -> None:
    async with proxied(listen=GW, **changes) as (upstream, running, client):
        await client.send(
            f"PATCH {before}{PARTICIPANT} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )
        assert refusal(await client.reply()) == Refusal(404, "not-served", "http_request_error")
        assert running.counts("gateway_refusals_total", "not-served") == 1
        assert running.counts("gateway_requests_total", "none", "PATCH", "4xx") == 1
        # And the connection is used again.
        await client.send(b"GET /gw/x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.reply()).status == 200
        assert [request.target for request in upstream.requests] == [b"/x"]


async def test_the_access_log_has_the_target_as_it_was_sent(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with proxied(listen=GW, log={"access": str(log)}) as (_, _, client):
        await client.send(b"GET /gw/x HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.reply()
        await until(lambda: log.exists() and b"\n" in log.read_bytes())
    assert "/gw/x" in log.read_text()


MOVED = (
    b"HTTP/1.1 302 Found\r\nLocation: /up/there\r\nSet-Cookie: a=1; Path=/up; Domain=127.0.0.1\r\n"
    b"Content-Length: 0\r\n\r\n"
)


@pytest.mark.parametrize(
    ("listen", "location", "cookie"),
    [
        (GW, "/up/there", "a=1; Path=/up; Domain=127.0.0.1"),
        (GW | {"rewrite_replies": True}, "/gw/there", "a=1; Path=/gw/"),
        ({"rewrite_replies": True}, "/there", "a=1; Path=/"),
    ],
    ids=["as it came", "for the client", "without a prefix here"],
)
async def test_replies_name_places_as_the_client_sees_them_where_that_is_asked_for(
    listen: Mapping[str, Any], location: str, cookie: str
) -> None:
    async with (
        RawUpstream(answering(MOVED)) as upstream,
        gateway(upstream.url, upstream={"url": f"{upstream.url}/up"}, listen=listen) as running,
        running.client() as client,
    ):
        reply = await client.get(f"{listen.get('path_prefix', '')}/x")
        assert upstream.requests[0].target == b"/up/x"
        assert (reply.headers["location"], reply.headers["set-cookie"]) == (location, cookie)


# --- several upstreams


async def test_each_call_goes_to_the_upstream_that_it_is_for_under_its_own_rule() -> None:
    async with AsyncExitStack() as stack:
        main, eu, us = [await stack.enter_async_context(mock()) for _ in range(3)]
        upstreams = [behind(eu.url, "eu", path_prefix="/eu"), behind(us.url, "us", hosts=["us.example"])]
        running = await stack.enter_async_context(
            gateway(main.url, listen=GW, upstreams=upstreams, rules=rules(None, "eu", "us"))
        )
        client = await stack.enter_async_context(running.client())
        told = []
        for path, host in (("/gw", "h"), ("/gw/eu", "h"), ("/gw", "US.example:80")):
            reply = await client.patch(f"{path}{PARTICIPANT}", content=BODY, headers=TOKEN | {"Host": host})
            told.append(reply.headers["gateway-rewrite"].partition(";")[0])

        assert told == ["main-rule", "eu-rule", "us-rule"]
        for one in (main, eu, us):
            assert targets(one) == [CONVERSATION, PARTICIPANT]
        assert [running.counts("gateway_requests_total", rule, "PATCH", "2xx") for rule in told] == [1, 1, 1]
        await client.get("/gw/eu/elsewhere", headers=TOKEN)
        assert running.counts("gateway_requests_total", "none.eu", "GET", "4xx") == 1
        async with running.admin() as admin:
            exposed = (await admin.get("/metrics")).text.splitlines()
        for upstream in ("", ',upstream="eu"', ',upstream="us"'):
            assert f'gateway_upstream_connections{{state="open"{upstream}}} 1' in exposed
            assert f'gateway_store_entries{{table="readings"{upstream}}} 1' in exposed
            assert f'gateway_lookups_total{{result="sent"{upstream}}} 1' in exposed
            assert f'gateway_lookup_duration_seconds_count{{result="read"{upstream}}} 1' in exposed


async def test_a_value_that_one_upstream_told_never_fills_a_call_to_another() -> None:
    """The same caller, the same conversation, at the same time: each is asked itself (S6)."""
    async with AsyncExitStack() as stack:
        main = await stack.enter_async_context(mock(one_conversation("web", p1="connected")))
        eu = await stack.enter_async_context(mock(one_conversation("web", p1="alerting")))
        fill = {"allow": ["connected", "alerting"]}
        seeds = document("http://u", "a", fill=fill)["rules"]
        both = [*seeds, seeds[0] | {"name": "eu-rule", "upstream": "eu"}]
        upstreams = [behind(eu.url, "eu", path_prefix="/eu")]
        running = await stack.enter_async_context(gateway(main.url, upstreams=upstreams, rules=both))
        client = await stack.enter_async_context(running.client())
        calls = [client.patch(f"{at}{PARTICIPANT}", content=BODY, headers=TOKEN) for at in ("", "/eu") * 4]
        await asyncio.gather(*calls)

        filled = {
            line["rule"]: {one["after"] for one in line["changes"] if "field" in one}
            for line in running.lines("rewrite")
        }
        assert filled == {"web-participant-state": {"connected"}, "eu-rule": {"alerting"}}
        credentials = {line["rule"]: line["client"]["credential"] for line in running.lines("rewrite")}
        assert len(set(credentials.values())) == 2


async def test_a_write_to_one_upstream_holds_up_no_call_to_another_and_forgets_nothing_there() -> None:
    async with AsyncExitStack() as stack:
        main, eu = [await stack.enter_async_context(mock()) for _ in range(2)]
        upstreams = [behind(eu.url, "eu", path_prefix="/eu", max_connections=1)]
        running = await stack.enter_async_context(
            gateway(main.url, upstreams=upstreams, rules=rules(None, "eu"))
        )
        client = await stack.enter_async_context(running.client())
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        held = asyncio.Event()
        eu.faults.append(Fault(method="POST", hold=held))
        write = asyncio.create_task(client.post(f"/eu{CONVERSATION}/x", content=b"{}", headers=TOKEN))
        async with asyncio.timeout(PATIENCE):
            await eu.ledger.arrived(1)
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        held.set()
        await write

        assert "source=cache" in reply.headers["gateway-rewrite"]


async def test_an_upstream_that_is_down_is_told_as_itself_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closed_port() as port:
        async with mock() as main:
            down = behind(f"http://127.0.0.1:{port}", "eu", path_prefix="/eu")
            async with (
                gateway(main.url, upstreams=[down], rules=rules(None, "eu")) as running,
                running.client() as client,
            ):
                calls = [
                    await client.patch(f"{at}{PARTICIPANT}", content=BODY, headers=TOKEN)
                    for at in ("/eu", "")
                ]
    assert [reply.status_code for reply in calls] == [502, 202]
    assert f"http://127.0.0.1:{port}" in caplog.text
    assert f"upstream {main.url}" not in caplog.text


async def test_a_login_passes_through_to_its_own_host_with_its_path() -> None:
    """As an SDK that was given a gateway calls it."""
    async with RawUpstream(answering(OK)) as login, mock() as api:
        upstreams = [
            behind(login.url, "login", path_prefix="/oauth", strip=False),
            behind(login.url, "login-below", path_prefix="/login"),
        ]
        async with gateway(api.url, upstreams=upstreams) as running, running.client() as client:
            form = {"grant_type": "client_credentials"}
            basic = {"Authorization": "Basic aTpz"}
            for path in ("/oauth/token", "/login/oauth/token"):
                assert (await client.post(path, data=form, headers=basic)).status_code == 200
            assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202
        assert [(one.target, one.body) for one in login.requests] == [
            (b"/oauth/token", b"grant_type=client_credentials")
        ] * 2
        assert login.requests[0].header(b"authorization") == b"Basic aTpz"
        assert [call.method for call in api.ledger.entries] == ["GET", "PATCH"]


async def test_no_target_and_no_field_leads_to_another_address() -> None:
    """C7: whatever the request says, it goes to one of those that are configured."""
    async with RawUpstream(answering(OK)) as main, RawUpstream(answering(OK)) as eu, RawUpstream() as trap:
        upstreams = [behind(eu.url, "eu", path_prefix="/eu")]
        async with gateway(main.url, upstreams=upstreams) as running:
            evil = trap.url.removeprefix("http://").encode()
            for target in (b"/eu/@" + evil, b"/eu//" + evil, b"http://" + evil + b"/eu/x", b"/eu?u=" + evil):
                async with connect(running.port) as client:
                    host = evil if target.startswith(b"http") else b"h"
                    fields = b"Host: %b\r\nX-Forwarded-Host: %b\r\n\r\n" % (host, evil)
                    await client.send(b"GET %b HTTP/1.1\r\n%b" % (target, fields))
                    assert (await client.reply()).status == 200
        assert [request.target for request in eu.requests] == [
            b"/@" + evil,
            b"//" + evil,
            b"/x",
            b"/?u=" + evil,
        ]
        assert not trap.requests
        assert not main.requests


async def test_a_reload_changes_the_rules_of_each() -> None:
    async with mock() as main, mock() as eu:
        upstreams = [behind(eu.url, "eu", path_prefix="/eu")]
        async with gateway(main.url, upstreams=upstreams, rules=rules(None, "eu")) as running:
            later = settings(main.url, "a", upstreams=upstreams, rules=rules(None))
            await running.gateway.follow(later, True)
            async with running.client() as client:
                reply = await client.patch(f"/eu{PARTICIPANT}", content=BODY, headers=TOKEN)
            assert "gateway-rewrite" not in reply.headers


TEXT = """\
upstream: {url: "http://u:9000"}
upstreams:
  - {name: eu, url: "http://eu:9000", path_prefix: /eu}
  - {name: us, url: "http://us:9000", hosts: [us.example]}
rules:
  - {name: one, upstream: eu, match: {path: "/c/{id}"}, repairs: [{type: encoding}]}
  - {name: two, match: {path: "/c/{id}"}, repairs: [{type: encoding}]}
"""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "upstream: eu",
            "upstream: ue",
            "rules[0].upstream (rule 'one'): expected one of upstreams",
        ),
        (", upstream: eu", "", "rules[1].match.path (rule 'two'): can never match"),
        ("name: us", "name: eu", "upstreams[1].name: expected different names, got 'eu' again"),
        ("hosts: [us.example]", "path_prefix: /eu", "upstreams[1]: expected another host or prefix"),
        (", hosts: [us.example]", "", "upstreams[1].path_prefix: expected it or hosts"),
        (
            "http://eu:9000",
            "http://U.:9000/x",
            "upstreams[0].url: expected another address",
        ),
        ("/eu}", "/eu/}", "upstreams[0].path_prefix: expected a plain path"),
        ("/eu}", "/a/../b}", "upstreams[0].path_prefix: expected a plain path"),
        ("/eu}", "/%65u}", "upstreams[0].path_prefix: expected a plain path"),
        (
            "http://us:9000",
            "http://127.0.0.1:8080",
            "upstreams[1].url: expected the API, got the",
        ),
    ],
)
def test_what_cannot_be_is_refused(before: str, after: str, told: str) -> None:
    parse(TEXT, {})
    with pytest.raises(ConfigError) as refused:
        parse(TEXT.replace(before, after), {})
    assert told in str(refused.value)


def test_two_with_one_address_are_fine_where_no_rule_is_for_either() -> None:
    third = '  - {name: login, url: "http://login:9000", path_prefix: /login}\nrules:'
    more = TEXT.replace("us:9000", "login:9000").replace("rules:", third)
    assert len(parse(more, {}).upstreams) == 3


def test_a_rule_is_shared_by_an_alias() -> None:
    shared = TEXT.replace("- {name: one, upstream: eu,", "- &one\n   {name: one, upstream: eu,")
    shared += "  - {<<: *one, name: three, upstream: us}\n"
    assert [rule.upstream for rule in parse(shared, {}).rules] == ["eu", None, "us"]


def test_check_explain_and_diff_know_them(tmp_path: Path) -> None:
    file, other = tmp_path / "config.yaml", tmp_path / "other.yaml"
    file.write_text(TEXT)
    other.write_text(TEXT.replace("path_prefix: /eu", "path_prefix: /europe, read_timeout: 1s"))

    def said(*arguments: str) -> str:
        return CliRunner().invoke(cli, list(arguments)).output

    assert "upstream eu: path /eu to http://eu:9000" in said("check", "--config", str(file))
    explained = said("explain", "/eu/c/1", "--config", str(file))
    assert "upstream: eu, as /c/1\nrule:     one" in explained
    assert "rule:     none" in said("explain", "/c/1", "-H", "Host: us.example", "--config", str(file))
    found = json.loads(said("diff", str(file), str(other), "--json"))["differences"]
    assert [one["place"] for one in found] == ["upstreams[eu].path_prefix", "upstreams[eu].read_timeout"]
