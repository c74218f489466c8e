"""Who may read the admin side: the token, where it is wanted; and no page of another site."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import app, config
from gateway.process import lifetime
from tests.support.clients import bare_client
from tests.support.gateways import document, settings

SECRET = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {SECRET}"}
FOREIGN: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
PROBES = ("/healthz", "/readyz")


@asynccontextmanager
async def admin_side(folder: Path, **admin: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Its own listener, as `gateway run` has it."""
    chosen = settings(
        "http://127.0.0.1:9", str(folder / "log"), listen={"port": 0}, admin={"port": 0, **admin}
    )
    async with (
        lifetime.running(chosen, app.build(chosen)) as listening,
        bare_client(f"http://127.0.0.1:{listening.admin_port}") as client,
    ):
        yield client


async def test_where_there_is_a_token_all_but_the_probes_asks_for_it(tmp_path: Path) -> None:
    async with admin_side(tmp_path, token=SECRET) as admin:
        assert [(await admin.get(path)).status_code for path in PROBES] == [200, 200]
        refused = await admin.get("/counts")
        assert (refused.status_code, refused.headers["www-authenticate"][:6]) == (401, "Bearer")
        assert SECRET not in refused.text
        assert (await admin.get("/counts", headers=BEARER)).status_code == 200
        assert (await admin.get("/not-there", headers=BEARER)).status_code == 404
        assert (await admin.post("/api/reload")).status_code == 401


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", f"Bearer {SECRET[:-1]}", f"Bearer {SECRET}0", f"Basic {SECRET}", SECRET,
     "Bearer \xff", f"Bearer {'0' * 8000}"],
)  # fmt: skip
async def test_another_token_is_refused(tmp_path: Path, authorization: str) -> None:
    async with admin_side(tmp_path, token=SECRET) as admin:
        asked = await admin.get("/counts", headers={b"Authorization": authorization.encode("latin-1")})
        assert asked.status_code == 401


async def test_without_a_token_only_the_probes_are_served_where_others_reach_it(tmp_path: Path) -> None:
    async with admin_side(tmp_path, host="0.0.0.0") as admin:
        assert [(await admin.get(path)).status_code for path in PROBES] == [200, 200]
        for headers in ({}, BEARER):
            refused = await admin.get("/counts", headers=headers)
            assert refused.status_code == 403
            assert "admin.token" in refused.text


async def test_with_a_token_it_is_served_there(tmp_path: Path) -> None:
    async with admin_side(tmp_path, host="0.0.0.0", token=SECRET) as admin:
        assert (await admin.get("/counts")).status_code == 401
        assert (await admin.get("/counts", headers=BEARER)).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_what_a_page_of_another_site_asks_for_is_refused(
    tmp_path: Path, headers: Mapping[str, str]
) -> None:
    async with admin_side(tmp_path, token=SECRET) as admin:
        for method, path in (("GET", "/counts"), ("POST", "/api/reload"), ("GET", "/api/events")):
            refused = await admin.request(method, path, headers={**BEARER, **headers})
            assert refused.status_code == 403
            assert not [name for name in refused.headers if name.startswith("access-control")]


async def test_its_own_page_is_answered(tmp_path: Path) -> None:
    async with admin_side(tmp_path) as admin:
        own = {"Origin": str(admin.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        assert (await admin.get("/counts", headers=own)).status_code == 200


@pytest.mark.parametrize("path", ["//counts", "/page/../counts", "/page/%2e%2e/counts", "/healthz/../counts"])
async def test_no_other_way_of_writing_a_path_leads_round_the_token(tmp_path: Path, path: str) -> None:
    async with admin_side(tmp_path, token=SECRET) as admin:
        url = httpx.URL(str(admin.base_url)).copy_with(raw_path=path.encode())
        assert (await admin.get(url)).status_code in {401, 404}


def test_a_token_that_is_short_is_refused_and_not_repeated() -> None:
    with pytest.raises(config.ConfigError) as refused:
        config.parse("upstream: {url: http://u}\nadmin: {token: '${T}'}", {"T": "hush-hush"})
    assert refused.value.errors[0].startswith(
        "config.yaml:2:16: admin.token: expected a secret of at least 16"
    )
    assert "hush" not in str(refused.value)


def test_an_empty_token_is_none_and_that_is_said_where_others_reach_it() -> None:
    for host, said in (("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 1), ("gateway", 1)):
        chosen = config.Settings.model_validate(
            document("http://u", "log", admin={"host": host, "token": ""})
        )
        assert chosen.admin.token is None
        assert sum(warning.startswith("admin.token:") for warning in chosen.warnings()) == said
