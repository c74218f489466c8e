"""The live page in a real browser: what an operator sees, and what a hostile client can't do to it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.audit.callers_file import CallersFile, Tally
from tests.support.audit_lines import audit_lines
from tests.support.browsers import LIVE, ROWS, Browser, needs_chromium, patch, rows, serving
from tests.support.gateways import CONVERSATION, PARTICIPANT, TOKEN
from tests.support.mocking import mock
from tests.support.ports import unused_ports
from tests.support.processes import gateway_process

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

HOSTILE = "<img src=x onerror=document.title='owned'>"


async def test_a_rewrite_appears_within_a_second_and_can_be_found_opened_and_paused(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path) as (client, origin),
        browser(origin) as watched,
    ):
        page = watched.page
        await watched.shows(LIVE)
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


async def test_what_a_client_sends_is_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    """In each field that is shown: nothing of it runs, nothing of it becomes an element."""
    quoted = HOSTILE.replace("<", "%3C").replace(">", "%3E").replace(" ", "%20")
    headers = {
        **TOKEN,
        "User-Agent": HOSTILE,
        "X-Request-Id": HOSTILE,
        "Content-Type": f"text/plain; x={HOSTILE}",
    }
    body = b'{"attributes": {"%b": 1}, "</pre><script>document.title=1</script>": 1}' % HOSTILE.encode()
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path, callers={"path": str(tmp_path / "callers")}) as (client, origin),
        browser(origin) as watched,
    ):
        await watched.shows(LIVE)
        for path in (PARTICIPANT, f"{PARTICIPANT}{quoted}", f"{PARTICIPANT}\"'><img"):
            await client.patch(path, content=body, headers=headers)
        await watched.shows(f"document.querySelectorAll('{ROWS}').length >= 2")
        for row in await watched.page.locator(ROWS).all():
            await row.click()
            detail = await watched.text("#detail")
            assert HOSTILE in detail
            assert "script" in detail
        await watched.shows("document.querySelector('#callers').textContent.includes('onerror')")
        await watched.shows("document.querySelector('#callers .trend')")
        assert await watched.page.locator("img, script:not([src]), main style").count() == 0
        assert await watched.page.title() == "Gateway: live"
        assert (watched.problems, watched.foreign) == ([], [])


async def test_after_a_restart_the_page_finds_the_gateway_again(browser: Browser, tmp_path: Path) -> None:
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


async def test_the_page_asks_for_the_token(browser: Browser, tmp_path: Path) -> None:
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path, admin_more={"token": "0123456789abcdef"}) as (client, origin),
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
    browser: Browser, tmp_path: Path, options: dict[str, Any]
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


async def test_a_mode_is_changed_after_a_question_and_who_did_it_is_told(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url) as running,
        browser(f"http://127.0.0.1:{running.admin_port}/") as watched,
    ):
        page = watched.page
        dialog, told = page.locator("#mode-dialog"), "document.querySelector('#mode-said').textContent"
        await page.click("#rules button")
        assert "web-participant-state" in await dialog.inner_text()
        await page.select_option("#mode-new", "observe")
        assert "Calls go on as they come" in await watched.text("#mode-means")
        await page.click("#mode-no")
        assert await page.is_hidden("#mode-dialog")
        assert not [line for line in audit_lines(running.audit) if line["event"] == "mode"]

        await page.click("#rules button")
        await page.select_option("#mode-new", "observe")
        await page.click("#mode-yes")
        await watched.shows(f"{told}.includes('mode enforce is now observe')")
        await watched.shows("document.querySelector('#rules').textContent.includes('observe')")
        changed = await watched.text("#mode-changes")
        assert "web-participant-state: enforce → observe, by admin, 127.0.0.1" in changed
        (line,) = [line for line in audit_lines(running.audit) if line["event"] == "mode"]
        assert (line["rule"], line["before"], line["mode"]) == ("web-participant-state", "enforce", "observe")

        (tmp_path / "config.yaml").write_text("rules: 7\n")
        async with running.admin() as admin:
            assert (await admin.post("/api/reload")).status_code == 409
        await watched.shows("document.querySelector('#refused-reload').textContent.includes('rules')")

        await page.click("#rules button")
        running.process.signal(signal.SIGKILL)
        await running.process.exit()
        await page.click("#mode-yes")
        await watched.shows(f"{told}.startsWith('No answer came')")


async def test_a_change_that_is_refused_is_told(browser: Browser, tmp_path: Path) -> None:
    async with (
        serving("http://127.0.0.1:9", tmp_path) as (_, origin),
        browser(origin) as watched,
    ):
        refusal = {"status": 409, "json": {"ok": False, "said": ["there is no rule 'x'"]}}
        await watched.page.route("**/api/mode", lambda route: route.fulfill(**refusal))
        await watched.page.click("#rules button")
        await watched.page.click("#mode-yes")
        await watched.shows(
            "document.querySelector('#mode-said').textContent === \"Not changed (409): there is no rule 'x'\""
        )


async def test_callers_are_those_of_the_file_with_the_days_before(browser: Browser, tmp_path: Path) -> None:
    kept = {"path": str(tmp_path / "callers.sqlite3")}
    now = time.time()
    file = CallersFile(kept["path"], 10)
    seen = ("cafe", "long ago", "web-participant-state", "enforce", ("fill state",), None, None, None)
    file.add({seen: Tally(now - 3 * 86_400, now - 3 * 86_400, 12, 12)})
    file.close()
    async with (
        mock() as upstream,
        serving(upstream.url, tmp_path, callers=kept) as (client, origin),
        browser(origin) as watched,
    ):
        await patch(client)
        await watched.shows("document.querySelectorAll('#callers tbody tr').length === 2")
        told = await watched.text("#callers")
        assert "long ago" in told
        assert "12 (fill state 12)" in told
        assert "credentials.key is not set" in await watched.text("#callers-of")
        days = await watched.page.get_attribute("#callers tr:nth-child(2) .trend", "aria-label")
        assert days.endswith(": 12 calls, 12 needed a repair")
