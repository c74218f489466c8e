"""
A supervisor's dashboard on another origin, in a real browser: its calls by fetch and XMLHttpRequest, each
with a preflight, are repaired, and it can read what the gateway says of them.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import playwright.async_api as playwright
import pytest

from tests.support.gateways import gateway
from tests.support.mocking import mock

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

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
        async with gateway(upstream.url, cors=cors) as running, playwright.async_playwright() as driver:
            chromium = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            try:
                page = await (await chromium.new_context()).new_page()
                trouble: list[str] = []
                page.on("console", lambda message: trouble.append(message.text))
                page.on("pageerror", lambda error: trouble.append(str(error)))
                await page.goto(origin)
                told: list[Any] = await page.evaluate(FETCHED, [running.url, CALLS, "include"])
                status, rewrite = await page.evaluate(BY_XHR, [running.url])
                rewrites = running.lines("rewrite")
            finally:
                await chromium.close()

        assert {one[0] for one in told} == {202} == {status}
        assert all("filled=state" in one[1] and one[2] for one in [*told, (0, rewrite, "-")])
        assert trouble == []
        assert len(rewrites) == CALLS + 1
        bodies = {call.body for call in upstream.ledger.of("PATCH")}
        assert all(body.startswith(b'{"state":"connected"') for body in bodies)
