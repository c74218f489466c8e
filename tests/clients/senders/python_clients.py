"""
Python's own clients, the usual libraries and HTTPie: CLIENT BASE VARIANT… sends the seed call once a variant,
and prints each with the status that came back; further bases with variants may follow.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

BODY = '{"attributes": {"supervisorNote": "テスト"}}'
TYPES = {
    "text": "text/plain",
    "form": "application/x-www-form-urlencoded",
    "charset": "application/json; charset=utf-8",
    "json": "application/json",
}


def fields(variant: str) -> dict[str, str]:
    found = {"Authorization": "Bearer one"}
    if variant in TYPES:
        found["Content-Type"] = TYPES[variant]
    if variant == "gzip":
        found["Content-Encoding"] = "gzip"
    return found


def content(variant: str) -> bytes:
    return gzip.compress(BODY.encode()) if variant == "gzip" else BODY.encode()


def pieces(variant: str) -> Iterator[bytes]:
    yield content(variant)[:10]
    yield content(variant)[10:]


def by_urllib(url: str, variant: str) -> int:
    data: Any = pieces(variant) if variant == "chunked" else content(variant)
    request = urllib.request.Request(url, data=data, headers=fields(variant), method="PATCH")
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def by_http_client(url: str, variant: str) -> int:
    host, _, path = url.removeprefix("http://").partition("/")
    connection: Any = http.client.HTTPConnection(host, timeout=20)
    if variant == "http10":
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
    data: Any = pieces(variant) if variant == "chunked" else content(variant)
    connection.request("PATCH", "/" + path, data, fields(variant), encode_chunked=variant == "chunked")
    return int(connection.getresponse().status)


def by_requests(url: str, variant: str) -> int:
    import requests

    data: Any = pieces(variant) if variant == "chunked" else content(variant)
    if variant == "json":
        given = {"attributes": {"supervisorNote": "テスト"}}
        return requests.patch(
            url, json=given, headers={"Authorization": "Bearer one"}, timeout=20
        ).status_code
    return requests.patch(url, data=data, headers=fields(variant), timeout=20).status_code


def by_httpx(url: str, variant: str) -> int:
    import httpx

    data: Any = pieces(variant) if variant == "chunked" else content(variant)
    # No list of authorities, which takes longer to read than the call takes: this one has no TLS.
    return httpx.patch(url, content=data, headers=fields(variant), timeout=20, verify=False).status_code


def by_urllib3(url: str, variant: str) -> int:
    import urllib3

    data: Any = pieces(variant) if variant == "chunked" else content(variant)
    return urllib3.request("PATCH", url, body=data, headers=fields(variant), timeout=20).status


def by_aiohttp(url: str, variant: str) -> int:
    import aiohttp

    async def sent() -> int:
        # A text, as most give it: it is called text/plain.
        data: Any = BODY if variant == "default" else content(variant)
        chunked = True if variant == "chunked" else None
        async with (
            aiohttp.ClientSession() as session,
            session.patch(
                url, data=data, headers=fields(variant), chunked=chunked, expect100=variant == "expect"
            ) as reply,
        ):
            return reply.status

    return asyncio.run(sent())


def by_httpie(url: str, variant: str) -> int:
    """The command `http` in this process: it takes a second to start."""
    from httpie.context import Environment
    from httpie.core import main as http

    given = ["--ignore-stdin", "--timeout", "20", "--print", "h", "--raw", BODY, "PATCH", url]
    given += ["Authorization:Bearer one"]
    if variant in TYPES:
        given += [f"Content-Type:{TYPES[variant]}"]
    if variant == "chunked":
        given += ["--chunked"]
    if variant == "gzip":
        given += ["--compress", "--compress"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        http(["http", *given], Environment(stdout=told, stdout_isatty=False))
        told.seek(0)
        return int(told.readline().split(" ")[1])


CLIENTS: dict[str, Callable[[str, str], int]] = {
    "urllib": by_urllib,
    "http.client": by_http_client,
    "requests": by_requests,
    "httpx": by_httpx,
    "urllib3": by_urllib3,
    "aiohttp": by_aiohttp,
    "httpie": by_httpie,
}


def main() -> None:
    client, *given = sys.argv[1:]
    base = ""
    for variant in given:
        if "://" in variant:
            base = variant
            continue
        url = f"{base}/api/v2/conversations/web/instances/{client}-{variant}/participants/p1"
        try:
            status: object = CLIENTS[client](url, variant)
        except Exception as error:  # noqa: BLE001 - whatever the client raises is what it tells its user
            status = type(error).__name__
        print(variant, status, flush=True)


if __name__ == "__main__":
    main()
