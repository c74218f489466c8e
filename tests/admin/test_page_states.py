"""The live page is for everybody: axe-core finds nothing, whatever its state, light, dark or on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.browsers import LIVE, ROWS, Browser, Watched, needs_chromium, patch, rows, serving
from tests.support.mocking import mock

axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="axe-core is not installed")
pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

LOOKS = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": {"viewport": {"width": 360, "height": 740}}}
looks = pytest.mark.parametrize("options", LOOKS.values(), ids=LOOKS)


async def violations(watched: Watched) -> list[str]:
    found = await axe.Axe().run(watched.page)
    assert found.response["passes"], "it has looked at something"
    return [
        f"{one['id']}: {', '.join(str(node['target']) for node in one['nodes'])}"
        for one in found.response["violations"]
    ]


@looks
async def test_calls_one_open_callers_and_a_question(
    browser: Browser, tmp_path: Path, options: dict[str, Any]
) -> None:
    kept = {"path": str(tmp_path / "callers.sqlite3")}
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path, callers=kept) as (client, origin),
        browser(origin, reduced_motion="reduce", **options) as watched,
    ):
        await watched.shows(LIVE)
        assert await violations(watched) == [], "empty"
        await patch(client)
        await patch(client, "other")
        await watched.shows(rows(2))
        await watched.shows("document.querySelector('#callers .trend')")
        assert await violations(watched) == [], "calls"
        height = await watched.page.evaluate("document.querySelector('#callers tbody tr').offsetHeight")
        assert height < 80, "its words are not broken into letters"
        await watched.page.click(ROWS)
        await watched.page.wait_for_selector("#detail", state="visible")
        assert await violations(watched) == [], "one open"
        await watched.page.fill("#path", "nothing like it")
        await watched.shows(rows(0))
        await watched.page.click("#pause")
        assert await violations(watched) == [], "none fits, paused"
        await watched.page.click("#rules button")
        await watched.page.wait_for_selector("#mode-dialog", state="visible")
        assert await violations(watched) == [], "asked for a mode"
        width = await watched.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0
        assert (watched.problems, watched.foreign) == ([], [])


@looks
async def test_disconnected(browser: Browser, tmp_path: Path, options: dict[str, Any]) -> None:
    async with mock() as upstream:
        async with serving(upstream.url, tmp_path) as (client, origin):
            opened = browser(origin, reduced_motion="reduce", **options)
            watched = await opened.__aenter__()
            await patch(client)
            await watched.shows(rows(1))
        try:
            await watched.shows("document.querySelector('#state').textContent.includes('disconnected')")
            assert await violations(watched) == []
        finally:
            await opened.__aexit__(None, None, None)


@looks
async def test_locked(browser: Browser, tmp_path: Path, options: dict[str, Any]) -> None:
    token = {"token": "0123456789abcdef"}
    async with (
        serving("http://127.0.0.1:9", tmp_path, admin_more=token) as (_, origin),
        browser(origin, reduced_motion="reduce", **options) as watched,
    ):
        await watched.page.wait_for_selector("#token", state="visible")
        assert await violations(watched) == []
