"""
Clients that this machine cannot have, as the bytes that they send: recorded from CoreCLR 3.1, or made after
their sources and documentation (Windows PowerShell 5.1, PowerShell 7, WinHTTP).
"""

from __future__ import annotations

import pytest

from tests.support.gateways import gateway
from tests.support.mocking import mock
from tests.support.serving import connect

PATH = "/api/v2/conversations/web/instances/c1/participants/p1"
TEXT = '{"attributes": {"supervisorNote": "テスト"}}'
ASCII = '{\r\n    "attributes":  {\r\n        "supervisorNote":  "test"\r\n    }\r\n}'


def request(body: bytes, *fields: str, expects: bool = False) -> bytes:
    lines = [f"PATCH {PATH} HTTP/1.1", *fields, f"Content-Length: {len(body)}"]
    lines += ["Expect: 100-continue"] if expects else []
    return "\r\n".join([*lines, "", ""]).encode() + body


RECORDED = {
    # No -ContentType: none is sent; a text is ISO-8859-1, of which ASCII is a part.
    "Windows PowerShell 5.1, Invoke-RestMethod": (
        request(
            ASCII.encode(),
            "User-Agent: Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.1",
            "Authorization: Bearer one",
            "Host: gateway:8080",
            expects=True,
        ),
        ASCII,
    ),
    "Windows PowerShell 5.1, -ContentType 'application/json; charset=utf-8'": (
        request(
            TEXT.encode(),
            "Content-Type: application/json; charset=utf-8",
            "Authorization: Bearer one",
            "Host: gateway:8080",
        ),
        TEXT,
    ),
    "PowerShell 7.4, Invoke-RestMethod": (
        request(
            TEXT.encode(),
            "Host: gateway:8080",
            "User-Agent: Mozilla/5.0 (Macintosh; Darwin; en-US) PowerShell/7.4.0",
            "Accept-Encoding: gzip, deflate, br",
            "Authorization: Bearer one",
        ),
        TEXT,
    ),
    ".NET HttpClient, StringContent(text)": (
        request(
            TEXT.encode(),
            "Host: gateway:8080",
            "Authorization: Bearer one",
            "Content-Type: text/plain; charset=utf-8",
        ),
        TEXT,
    ),
    ".NET HttpClient, StringContent(text, Encoding.Unicode, json)": (
        request(
            TEXT.encode("utf-16-le"),
            "Host: gateway:8080",
            "Authorization: Bearer one",
            "Content-Type: application/json; charset=utf-16",
        ),
        TEXT,
    ),
    ".NET ByteArrayContent": (
        request(TEXT.encode(), "Host: gateway:8080", "Authorization: Bearer one"),
        TEXT,
    ),
    "MSXML2.ServerXMLHTTP": (
        request(
            TEXT.encode(),
            "Connection: Keep-Alive",
            "Content-Type: text/plain;charset=UTF-8",
            "Accept: */*",
            "Authorization: Bearer one",
            "Host: gateway:8080",
        ),
        TEXT,
    ),
}


@pytest.mark.parametrize("profile", ["strict", "documented"])
@pytest.mark.parametrize("name", RECORDED)
async def test_what_a_client_of_another_platform_sends_is_repaired(name: str, profile: str) -> None:
    sent, text = RECORDED[name]
    async with (
        mock(profile=profile) as upstream,
        gateway(upstream.url) as running,
        connect(running.port) as client,
    ):
        await client.send(sent)
        head = await client.head()
        if head.startswith(b"HTTP/1.1 100 "):
            head = await client.head()

        assert head.startswith(b"HTTP/1.1 202 ")
        (call,) = upstream.ledger.of("PATCH")
        assert call.body.decode() == text.replace("{", '{"state":"connected",', 1)
        assert dict(call.headers)[b"content-type"] == b"application/json"


async def test_a_text_that_windows_powershell_sent_as_latin_1_goes_on_as_it_came() -> None:
    """`é` without a charset is no UTF-8; what was meant only a setting of the rule could say."""
    body = '{"attributes": {"supervisorNote": "é"}}'.encode("latin-1")
    async with (
        mock() as upstream,
        gateway(upstream.url) as running,
        connect(running.port) as client,
    ):
        await client.send(request(body, "Host: gateway:8080", "Authorization: Bearer one"))
        await client.head()

        assert [call.body for call in upstream.ledger.of("PATCH")] == [body]
        assert [line["reason"] for line in running.lines("skip")] == ["not-utf-8"]
