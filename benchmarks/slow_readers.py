"""
Clients that ask for a large reply and take 32 bytes of it every five seconds; who is cut off comes again.

    .venv/bin/python -m benchmarks.steady --name 'slow readers' --seconds 40 -- \\
        .venv/bin/python -m benchmarks.slow_readers --port {port}

The attack "slow read, large reply" of slow.sh where slowhttptest is not installed. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket

REQUEST = b"GET /bulk/10000000 HTTP/1.1\r\nHost: h\r\n\r\n"


async def reader(port: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as client, contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 512)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, REQUEST)
            while await loop.sock_recv(client, 32):  # noqa: ASYNC110
                await asyncio.sleep(5)  # the pace is the attack
        await asyncio.sleep(1)


async def attack(port: int, connections: int, rate: int, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(reader(port))
                await asyncio.sleep(1 / rate)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--port", type=int, required=True)
    ap.add_argument("--connections", type=int, default=1000)
    ap.add_argument("--rate", type=int, default=251, help="new ones a second")
    ap.add_argument("--seconds", type=float, default=30)
    a = ap.parse_args()
    asyncio.run(attack(a.port, a.connections, a.rate, a.seconds))


if __name__ == "__main__":
    main()
