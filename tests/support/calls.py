"""Calls and replies as bytes, for the tests on raw connections: what a legacy client sends, what it gets."""

from __future__ import annotations

import json

from tests.support.gateways import BODY, PARTICIPANT
from tests.support.raw_upstream import OK, Peer, Script

ID = b"X-Request-Id: r1\r\n"
# Request heads to which fields and an empty line are to be added …
GET_HEAD = b"GET /x HTTP/1.1\r\nHost: h\r\n"
POST_HEAD = b"POST /x HTTP/1.1\r\nHost: h\r\n"
PATCH_HEAD = b"PATCH %b HTTP/1.1\r\nHost: h\r\n" % PARTICIPANT.encode() + ID
# … and whole calls.
GET = GET_HEAD + b"\r\n"


def patch(body: bytes = BODY, *fields: bytes, target: str = PARTICIPANT) -> bytes:
    lines = [b"PATCH %b HTTP/1.1" % target.encode(), b"Host: h", *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


PATCH = patch()
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw/1\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw/1\r\n\r\n"

# The head of a reply, to which fields and an empty line are to be added.
OK_HEAD = b"HTTP/1.1 200 OK\r\n"
STATE = json.dumps({"id": "c1", "participants": [{"id": "p1", "state": "connected"}]}).encode()


def reply(status: str, body: bytes = b"", kind: str = "application/json", *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


DOCUMENT = reply("200 OK", STATE)


def conversation(*answers: bytes) -> Script:
    """Answers a GET with the conversation's document, anything else with the next answer, or OK."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(DOCUMENT if request.method == b"GET" else left.pop(0) if left else OK)

    return script


ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


def answering_gets(*pieces: bytes, ends: bool = False, resets: bool = False) -> Script:
    """Any GET is answered with `pieces`, and perhaps no further; any other call with 202."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.method != b"GET":
                await peer.send(ACCEPTED)
                continue
            await peer.send(*pieces)
            if resets:
                peer.reset()
            if ends or resets:
                return

    return script
