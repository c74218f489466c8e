"""The live page in a real browser, and all that it said or asked for."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import app
from gateway.process import lifetime
from tests.support.clients import bare_client
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, settings

playwright = pytest.importorskip("playwright.async_api", reason="the browser's driver is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

SECOND = 1000.0
ROWS = "#calls button"
LIVE = "document.querySelector('#state').textContent === 'live'"


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


Browser = Callable[..., AbstractAsyncContextManager[Watched]]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Each page that it opens has a context of its own: what one keeps no other sees."""
    async with playwright.async_playwright() as driver:
        running = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        @asynccontextmanager
        async def opened(origin: str, **options: Any) -> AsyncIterator[Watched]:
            context = await running.new_context(**options)
            try:
                watched = Watched(await context.new_page(), origin)
                await watched.page.goto(origin)
                yield watched
            finally:
                await context.close()

        try:
            yield opened
        finally:
            await running.close()


@asynccontextmanager
async def serving(
    upstream: str, folder: Path, port: int = 0, admin: int = 0, **more: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client of the gateway, and where its page is."""
    sections = {"listen": {"port": port}, "admin": {"port": admin, **more.pop("admin_more", {})}, **more}
    chosen = settings(upstream, str(folder / "log"), **sections)
    async with (
        lifetime.running(chosen, app.build(chosen)) as listening,
        bare_client(f"http://127.0.0.1:{listening.port}") as client,
    ):
        yield client, f"http://127.0.0.1:{listening.admin_port}/"


async def patch(client: httpx.AsyncClient, agent: str = "legacy", path: str = PARTICIPANT) -> None:
    headers = {**TOKEN, "Content-Type": "text/plain", "User-Agent": agent}
    assert (await client.patch(path, content=BODY, headers=headers)).status_code == 202


def rows(count: int) -> str:
    return f"document.querySelectorAll('{ROWS}').length === {count}"
