"""
Who may read the admin side, and change what it lets change: those who have its token, where it has one or
can be reached from another machine; and no page of another site in an operator's browser.
"""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from gateway.admin.hosts import AsgiApp, Message

# Probes have no token; the page's own files hold nothing and ask for it.
OPEN = {"/healthz", "/readyz", "/"}
WANTED = "The admin side wants its token: Authorization: Bearer …, with the value of admin.token.\n"
NONE_SET = (
    "The admin side can be reached from other machines and has no token, so it serves only /healthz and "
    "/readyz. Set admin.token, or bind admin.host to 127.0.0.1.\n"
)
FOREIGN = "Another site's page asked for this; it is refused.\n"


def is_foreign(headers: Headers) -> bool:
    """
    A browser says which site's page asks (RFC 6454 section 7.3; Sec-Fetch-Site, where a GET has no Origin);
    who is none says nothing.
    """
    origin = headers.get("origin")
    if origin is not None:
        try:
            asking = urlsplit(origin).netloc
        except ValueError:
            return True
        if asking.lower() != headers.get("host", "").lower():
            return True
    return headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}


def has_token(headers: Headers, token: str) -> bool:
    """In a time that does not tell how much of it is right."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    return right and scheme.lower() == "bearer"


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/page/")


def admitting(app: AsgiApp, token: str | None, reachable: bool) -> AsgiApp:
    """`reachable`: whether it listens where other machines reach it."""

    async def serve(scope: Message, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        refusal = None
        if not is_open(scope["path"]):
            if is_foreign(headers):
                refusal = PlainTextResponse(FOREIGN, 403)
            elif token is None and reachable:
                refusal = PlainTextResponse(NONE_SET, 403)
            elif token is not None and not has_token(headers, token):
                refusal = PlainTextResponse(WANTED, 401, {"WWW-Authenticate": 'Bearer realm="gateway admin"'})
        await (refusal or app)(scope, receive, send)

    return serve
