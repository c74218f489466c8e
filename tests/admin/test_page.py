"""The live page in a real browser: what an operator sees, and what a hostile client can't do to it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import app
from tests.support.clients import bare_client
from tests.support.gateways import BODY, CONVERSATION, PARTICIPANT, TOKEN, settings
from tests.support.mocking import mock
from tests.support.ports import unused_ports

playwright = pytest.importorskip("playwright.async_api", reason="the browser's driver is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

SECOND = 1000.0
HOSTILE = "<img src=x onerror=document.title='owned'>"
ROWS = "#calls button"


class Watched:
    """A page, and all that it said or asked for."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith(origin) else self.foreign.append(one.url))

    async def text(self, selector: str) -> str:
        found: str = await self.page.inner_text(selector)
        return found

    async def shows(self, script: str, seconds: float = 5) -> None:
        await self.page.wait_for_function(f"() => {script}", timeout=seconds * SECOND)


@asynccontextmanager
async def browser(origin: str, **options: Any) -> AsyncIterator[Watched]:
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            context = await chromium.new_context(**options)
            watched = Watched(await context.new_page(), origin)
            await watched.page.goto(origin)
            yield watched
        finally:
            await chromium.close()


@asynccontextmanager
async def serving(
    upstream: str, folder: Path, port: int = 0, admin: int = 0, **more: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client of the gateway, and where its page is."""
    chosen = settings(upstream, str(folder / "log"), listen={"port": port}, admin={"port": admin, **more})
    async with (
        app.running(chosen, app.build(chosen)) as listening,
        bare_client(f"http://127.0.0.1:{listening.port}") as client,
    ):
        yield client, f"http://127.0.0.1:{listening.admin_port}/"


async def patch(client: httpx.AsyncClient, agent: str = "legacy", path: str = PARTICIPANT) -> None:
    headers = {**TOKEN, "Content-Type": "text/plain", "User-Agent": agent}
    assert (await client.patch(path, content=BODY, headers=headers)).status_code == 202


def rows(count: int) -> str:
    return f"document.querySelectorAll('{ROWS}').length === {count}"


async def test_a_rewrite_appears_within_a_second_and_can_be_found_opened_and_paused(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path) as (client, origin),
        browser(origin) as watched,
    ):
        page = watched.page
        await watched.shows("document.querySelector('#state').textContent === 'live'")
        assert "Nothing yet" in await watched.text("#empty")
        await patch(client)
        await watched.shows(rows(1), seconds=1)
        await patch(client, "other", f"{CONVERSATION}/participants/p2")
        await watched.shows(rows(2))
        assert "p2" in await page.inner_text(f"{ROWS} >> nth=0"), "newest first"

        for field, value in (("#path", "p1"), ("#caller", "LEGACY")):
            await page.fill(field, value)
            await watched.shows(rows(1))
            await page.fill(field, "")
            await watched.shows(rows(2))
        await page.select_option("#result", "refused")
        await watched.shows(rows(0))
        assert "No call fits the filters" in await watched.text("#notice")
        await page.select_option("#result", "")
        await watched.shows(rows(2))

        await page.keyboard.press("Escape")  # out of the filter
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#detail", state="visible")
        detail = await watched.text("#detail")
        for words in ("text/plain", "application/json", "state", "connected", "reply 202", "gateway"):
            assert words in detail
        assert await page.inner_text("#detail ins >> nth=0") == "application/json"
        assert await page.inner_text("#detail ins >> nth=1") == '"state": string = "connected"'
        assert '"supervisorNote": string' in detail
        await page.keyboard.press("Escape")
        assert await page.is_hidden("#detail")

        await page.click("#pause")
        await patch(client, path=f"{CONVERSATION}/participants/p2")
        await watched.shows("document.querySelector('#callers').textContent.includes('2')")
        assert await page.locator(ROWS).count() == 2
        await page.click("#pause")
        await watched.shows(rows(3))
        assert "web-participant-state" in await watched.text("#rules")
        assert (watched.problems, watched.foreign) == ([], [])


async def test_what_a_client_sends_is_text_and_nothing_else(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path) as (client, origin),
        browser(origin) as watched,
    ):
        await patch(client, HOSTILE)
        await watched.shows(rows(1))
        await watched.page.click(ROWS)
        await watched.shows("document.querySelector('#callers').textContent.includes('onerror')")
        assert HOSTILE in await watched.text("#detail")
        assert await watched.page.locator("img").count() == 0
        assert await watched.page.title() == "Gateway: live"
        assert (watched.problems, watched.foreign) == ([], [])


async def test_after_a_restart_the_page_finds_the_gateway_again(tmp_path: Path) -> None:
    port, admin = unused_ports(2)
    async with mock() as upstream:
        async with serving(upstream.url, tmp_path, port, admin) as (client, origin):
            opened = browser(origin)
            watched = await opened.__aenter__()
            await patch(client)
            await watched.shows(rows(1))
        try:
            await watched.shows("document.querySelector('#state').textContent.includes('disconnected')")
            async with serving(upstream.url, tmp_path, port, admin) as (client, _):
                await patch(client)
                await watched.shows(rows(2), seconds=10)
                assert await watched.text("#state") == "live"
        finally:
            await opened.__aexit__(None, None, None)


async def test_the_page_asks_for_the_token(tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path, token="0123456789abcdef") as (client, origin),
        browser(origin) as watched,
    ):
        await patch(client)
        for token in ("wrong", "0123456789abcdef"):
            await watched.page.wait_for_selector("#token", state="visible")
            assert await watched.page.locator(ROWS).count() == 0
            await watched.page.fill("#token", token)
            await watched.page.click("#ask button")
        await watched.shows(rows(1))
        assert await watched.page.is_hidden("#ask")


@pytest.mark.parametrize(
    "options", [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}], ids=["dark", "phone"]
)
async def test_it_is_dark_where_that_is_preferred_and_fits_a_phone(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path) as (client, origin),
        browser(origin, **options) as watched,
    ):
        await patch(client)
        await watched.shows(rows(1))
        await watched.page.click(ROWS)
        back = await watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(18, 22, 28)") == ("color_scheme" in options)
        width = await watched.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0
