"""
What bodies that are never finished take: 600 clients, each a body of 1 MiB that is one byte short.

    python -m benchmarks.unfinished_bodies [--callers 1]

Prints the gateway's resident memory before, while they wait, and after they have gone, and how many were
refused. `--callers`: by how many tokens the clients go. Talks to 127.0.0.1 only, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CLIENTS = 600
SIZE = 2**20
PATH = "/api/v2/conversations/web/instances/c1/participants/p1"
RULE = """
rules:
  - name: seed
    match: {path: "/api/v2/conversations/web/instances/{conversationId}/participants/{participantId}"}
    repairs: [{type: content_type}]
"""


def resident(pid: int) -> int:
    """In MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


async def unfinished(port: int, token: int) -> tuple[bool, asyncio.StreamWriter]:
    """Whether it was refused, once all that is sent is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"PATCH {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\nContent-Length: {SIZE}\r\n\r\n"
    with contextlib.suppress(OSError):
        writer.write(head.encode() + b"x" * (SIZE - 1))
        await writer.drain()
    try:
        async with asyncio.timeout(3):
            return await reader.read(12) != b"", writer
    except TimeoutError:
        return False, writer
    except OSError:
        return True, writer


async def measure(pid: int, port: int, callers: int) -> None:
    before = resident(pid)
    found = await asyncio.gather(*[unfinished(port, number % callers) for number in range(CLIENTS)])
    during = resident(pid)
    for _, writer in found:
        writer.transport.abort()
    await asyncio.sleep(2)
    refused = sum(refused for refused, _ in found)
    print(f"{CLIENTS} clients, {callers} callers: {refused} refused;", end=" ")
    print(f"{before} MiB before, {during} MiB while they wait, {resident(pid)} MiB after")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--port", type=int, default=23_451)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            f"listen: {{port: {options.port}}}\nadmin: {{port: {options.port + 1}}}\n"
            "upstream: {url: 'http://127.0.0.1:1'}\n"
            f"audit: {{path: '{folder}/audit.jsonl'}}\n" + RULE
        )
        process = subprocess.Popen([sys.executable, "-m", "gateway", "run", "--config", str(config)])
        try:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    asyncio.run(wait_open(options.port))
                    break
            asyncio.run(measure(process.pid, options.port, options.callers))
        finally:
            process.terminate()
            process.wait(10)


async def wait_open(port: int) -> None:
    await asyncio.sleep(0.2)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


if __name__ == "__main__":
    main()
