"""
The upstream for the benchmarks: answers at once, counts what it is sent, streams what is asked for.

    GET /bulk/{bytes}     that many bytes, by the reader's pace; GET /sent: how many of them have gone out
    POST|PUT /sink        {"bytes": …, "crc32": …} of the body
    Upgrade: echo         101, then every byte back
    anything else         one conversation whose participants p1 and p2 are connected
"""

from __future__ import annotations

import argparse
import asyncio
import json
import zlib

import httptools
import uvloop

BLOCK = 2**18
FILLER = bytes(range(256)) * (BLOCK // 256)
CONVERSATION = json.dumps(
    {"id": "c1", "participants": [{"id": name, "state": "connected"} for name in ("p1", "p2")]}
).encode()


def block(number: int) -> bytes:
    """Each is another, so that one lost, doubled or out of order shows in the checksum."""
    return number.to_bytes(8, "big") + FILLER[8:]


def checksum(size: int) -> int:
    """The CRC-32 of the first `size` bytes of /bulk."""
    crc = 0
    for number in range(-(-size // BLOCK)):
        crc = zlib.crc32(block(number)[: size - number * BLOCK], crc)
    return crc


def reply(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


ANSWER = reply(CONVERSATION)


class Upstream(asyncio.Protocol):
    sent = 0  # bytes of the latest /bulk that were handed to the kernel, or wait for it

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.target = b""
        self.upgrade = False
        self.tunnel = False
        self.length = self.crc = 0
        self.next = self.left = 0
        self.paused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.tunnel:
            self.transport.write(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self.tunnel = True
            rest = data[error.args[0] :]
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n" + rest
            )
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_begin(self) -> None:
        self.target = b""
        self.length = self.crc = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.length += len(body)
        if self.target == b"/sink":
            self.crc = zlib.crc32(body, self.crc)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if self.target.startswith(b"/bulk/"):
            self.next, self.left = 0, int(self.target[6:])
            Upstream.sent = 0
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
            self.transport.write(head % self.left)
            self._stream()
        elif self.target == b"/sink":
            self.transport.write(reply(json.dumps({"bytes": self.length, "crc32": self.crc}).encode()))
        elif self.target == b"/sent":
            self.transport.write(reply(b"%d" % Upstream.sent))
        else:
            self.transport.write(ANSWER)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._stream()

    def _stream(self) -> None:
        while self.left and not self.paused and not self.transport.is_closing():
            piece = block(self.next)[: self.left]
            self.next += 1
            self.left -= len(piece)
            Upstream.sent += len(piece)
            self.transport.write(piece)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--port", type=int, default=9000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.parse_args().port))
