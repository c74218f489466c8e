"""
The reply that tells a client about one of the gateway's own errors: problem details (RFC 9457). Pure.

The members of the API's own error body stand beside them, so that a legacy client's error handling finds what
it expects.
"""

from __future__ import annotations

import json

from gateway.errors import GatewayError
from gateway.http.headers import Header


def problem(error: GatewayError, request_id: str) -> tuple[int, list[Header], bytes]:
    """Status, headers and body of the reply that tells a client about `error`."""
    slug = error.slug()
    document = {
        "type": f"urn:gateway:error:{slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "advice": error.advice,
        "refused_by": "gateway",
        "message": f"{error.title}: {error.detail}" if error.args else error.title,
        "code": f"gateway.{slug}",
        "contextId": request_id,
        **error.members,
    }
    body = json.dumps(document).encode("ascii")
    headers: list[Header] = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"proxy-status", b"gateway; error=%s" % error.proxy_error.encode("ascii")),
        (b"x-request-id", request_id.encode("ascii", "replace")),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    return error.status, headers, body
