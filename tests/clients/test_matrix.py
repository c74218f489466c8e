"""
Each client sends the seed call in each way that it has, through the gateway to both profiles of the API: it
is accepted, and the upstream gets the client's own bytes with the one member put in.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.matrix import CLIENTS, Client
from tests.support.gateways import gateway
from tests.support.mocking import mock

BODY = '{"attributes": {"supervisorNote": "テスト"}}'
# Made from an object, it is written as the client writes JSON.
COMPACT = '{"attributes":{"supervisorNote":"テスト"}}'
ESCAPED = '{"attributes": {"supervisorNote": "\\u30c6\\u30b9\\u30c8"}}'
AS_JSON = {"axios": COMPACT, "superagent": COMPACT, "requests": ESCAPED}


async def sent(client: Client, base: str, variants: tuple[str, ...]) -> dict[str, str]:
    """What the client printed: the status of each variant."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *client.command,
        base,
        client.name,
        *variants,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PATH": path, "NO_PROXY": "*"},
    )
    try:
        told, trouble = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    lines = [line.split(" ", 1) for line in told.decode().splitlines()]
    assert [line[0] for line in lines] == list(variants), (told, trouble)
    return {line[0]: line[1] for line in lines}


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
    async with (
        mock() as strict,
        mock(profile="documented") as documented,
        gateway(strict.url) as to_strict,
        gateway(documented.url) as to_documented,
    ):
        told = await sent(client, to_strict.url, client.variants)
        # The other profile takes the same bytes; one way of sending is enough to see that.
        told_too = await sent(client, to_documented.url, client.variants[:1])

        assert told == dict.fromkeys(client.variants, "202")
        assert told_too == {"default": "202"}
        for upstream, running, variants in (
            (strict, to_strict, client.variants),
            (documented, to_documented, client.variants[:1]),
        ):
            calls: dict[str, Any] = {
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
                call = calls[f"{client.name}-{variant}"]
                body = AS_JSON.get(client.name, BODY) if variant == "json" else BODY
                assert call.body.decode() == body.replace("{", '{"state":"connected",', 1), variant
                assert dict(call.headers)[b"content-type"] == b"application/json"
                assert (b"content-encoding" in dict(call.headers)) is False
            # What it calls the body by itself, which is what had to be repaired.
            assert types.get(f"{client.name}-default", "application/json") == client.sends
