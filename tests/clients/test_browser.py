"""
A supervisor's dashboard on another origin, in a real browser: its calls by fetch and XMLHttpRequest, each
with a preflight, are repaired, and it can read what the gateway says of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.clients.refusing import AGAIN, ONCE, REFUSALS, refusing
from tests.support.browsers import chromium, needs_chromium
from tests.support.gateways import gateway
from tests.support.mocking import mock

pytestmark = needs_chromium

CALLS = 200
PAGE = b"<!doctype html><title>dashboard</title>"
FETCHED = """async ([base, count, credentials]) => {
  const told = [];
  for (let n = 0; n < count; n++) {
    const url = `${base}/api/v2/conversations/web/instances/c${n % 10}/participants/p1`;
    const body = JSON.stringify({attributes: {supervisorNote: "テスト"}});
    const headers = {Authorization: "Bearer one"};
    const reply = await fetch(url, {method: "PATCH", body, credentials, headers});
    told.push([reply.status, reply.headers.get("gateway-rewrite"), reply.headers.get("x-request-id")]);
  }
  return told;
}"""
BY_XHR = """([base]) => new Promise((resolve) => {
  const request = new XMLHttpRequest();
  request.open("PATCH", `${base}/api/v2/conversations/web/instances/x1/participants/p1`);
  request.withCredentials = true;
  request.setRequestHeader("Authorization", "Bearer one");
  request.onloadend = () => resolve([request.status, request.getResponseHeader("gateway-rewrite")]);
  request.send('{"attributes": {}}');
})"""
REFUSED = """async ([base, kinds]) => {
  const told = [];
  for (const kind of kinds) {
    const url = `${base}/api/v2/conversations/web/instances/chromium-${kind}/participants/p1`;
    try {
      told.push((await fetch(url, {method: "PATCH", body: "{}"})).status);
    } catch (error) {
      told.push(error.name);
    }
  }
  return told;
}"""


@asynccontextmanager
async def dashboard() -> AsyncIterator[str]:
    """The origin of a server that gives an empty page."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a connection that the browser opened and did not need
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_dashboard_s_calls_are_repaired_and_it_reads_what_was_done() -> None:
    async with dashboard() as origin, mock() as upstream:
        cors = {"origins": [origin], "credentials": True}
        async with (
            gateway(upstream.url, cors=cors) as running,
            chromium() as browser,
            browser(origin) as watched,
        ):
            told: list[Any] = await watched.page.evaluate(FETCHED, [running.url, CALLS, "include"])
            status, rewrite = await watched.page.evaluate(BY_XHR, [running.url])
            rewrites = running.lines("rewrite")

        assert {one[0] for one in told} == {202} == {status}
        assert all("filled=state" in one[1] and one[2] for one in [*told, (0, rewrite, "-")])
        assert watched.problems == []
        assert len(rewrites) == CALLS + 1
        bodies = {call.body for call in upstream.ledger.of("PATCH")}
        assert all(body.startswith(b'{"state":"connected"') for body in bodies)


async def test_a_browser_sends_a_patch_as_often_as_the_table_says_when_it_is_refused_or_cut_off() -> None:
    async with (
        dashboard() as origin,
        refusing() as (refuser, times),
        chromium() as browser,
        browser(origin) as watched,
    ):
        told = await watched.page.evaluate(REFUSED, [refuser, list(REFUSALS)])

        assert told == [502, 503, 504, "TypeError"]
        assert times == ONCE | AGAIN.get("chromium", {})
