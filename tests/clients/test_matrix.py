"""
Each client sends the seed call in each way that it has, through the gateway to both profiles of the API: it
is accepted, and the upstream gets the client's own bytes with the one member put in. Refused, or cut off, it
sends it as often as docs/clients.md says.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.clients.matrix import CLIENTS, Client
from tests.clients.refusing import AGAIN, ONCE, REFUSALS, refusing
from tests.support.browsers import CHROMIUM
from tests.support.gateways import gateway
from tests.support.mocking import mock

BODY = '{"attributes": {"supervisorNote": "テスト"}}'
# Made from an object, it is written as the client writes JSON.
COMPACT = '{"attributes":{"supervisorNote":"テスト"}}'
ESCAPED = '{"attributes": {"supervisorNote": "\\u30c6\\u30b9\\u30c8"}}'
AS_JSON = {"axios": COMPACT, "superagent": COMPACT, "requests": ESCAPED}


@pytest.mark.skipif("EVERY_CLIENT" not in os.environ, reason="some may be missing here")
def test_nothing_is_missing_where_everything_could_be_installed() -> None:
    assert {one.name: one.missing for one in CLIENTS if one.missing is not None} == {}
    assert CHROMIUM is not None


async def sent(client: Client, calls: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, str]]:
    """What the client printed: each variant and its status, by base."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *client.command,
        client.name,
        *[part for base, variants in calls for part in (base, *variants)],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PATH": path, "NO_PROXY": "*"},
    )
    try:
        told, trouble = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    lines = [line.partition(" ") for line in told.decode().splitlines()]
    expected = [variant for _, variants in calls for variant in variants]
    assert [variant for variant, _, _ in lines] == expected, (told, trouble)
    return [(variant, status) for variant, _, status in lines]


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(
            one, id=one.name, marks=pytest.mark.skipif(one.missing is not None, reason=str(one.missing))
        )
        for one in CLIENTS
    ],
)
async def test_a_legacy_client_s_calls_are_repaired_however_it_sends_them(client: Client) -> None:
    # The other profile takes the same bytes; one way of sending is enough to see that.
    one_way = client.variants[:1]
    async with (
        refusing() as (refuser, times),
        mock() as strict,
        mock(profile="documented") as documented,
        gateway(strict.url) as to_strict,
        gateway(documented.url) as to_documented,
    ):
        calls = ((to_strict.url, client.variants), (to_documented.url, one_way), (refuser, tuple(REFUSALS)))
        told = await sent(client, calls)

        repaired = [*client.variants, *one_way]
        assert told[: len(repaired)] == [(variant, "202") for variant in repaired]
        assert times == ONCE | AGAIN.get(client.name, {})
        for upstream, running, variants in (
            (strict, to_strict, client.variants),
            (documented, to_documented, one_way),
        ):
            got: dict[str, Any] = {
                entry.target.decode().split("/")[-3]: entry
                for entry in upstream.ledger.entries
                if entry.method.upper() == "PATCH"
            }
            assert len(upstream.ledger.of("PATCH") + upstream.ledger.of("patch")) == len(variants)
            types = {
                line["path"].split("/")[-3]: change["before"]
                for line in running.lines("rewrite")
                for change in line["changes"]
                if change["repair"] == "content_type"
            }
            for variant in variants:
                call = got[f"{client.name}-{variant}"]
                body = AS_JSON.get(client.name, BODY) if variant == "json" else BODY
                assert call.body.decode() == body.replace("{", '{"state":"connected",', 1), variant
                assert dict(call.headers)[b"content-type"] == b"application/json"
                assert (b"content-encoding" in dict(call.headers)) is False
            # What it calls the body by itself, which is what had to be repaired.
            assert types.get(f"{client.name}-default", "application/json") == client.sends
