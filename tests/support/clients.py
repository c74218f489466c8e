"""HTTP clients that add nothing of their own: no default header, no proxy from the environment."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import httpx

# One for all clients. None of them speaks TLS, and httpx would read the list of authorities for each one
# anew, which takes longer than most tests.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def bare_client(url: str = "", headers: Mapping[str, str] | None = None, **options: Any) -> httpx.AsyncClient:
    client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=20, verify=_NO_AUTHORITIES, **options)
    client.headers.clear()
    client.headers.update(headers or {})
    return client
