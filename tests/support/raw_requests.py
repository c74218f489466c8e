"""
Requests as bytes, for those who send them over a socket.
"""

from __future__ import annotations

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def get(target: bytes, *fields: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in (b"GET %b HTTP/1.1" % target, b"Host: a", *fields)) + b"\r\n"


def post(body: bytes, *fields: bytes) -> bytes:
    lines = (b"POST / HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *fields)
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + coded
        + b"0\r\n"
        + trailers
        + b"\r\n"
    )


UPGRADE = get(b"/ws", b"Connection: Upgrade", b"Upgrade: WebSocket")
