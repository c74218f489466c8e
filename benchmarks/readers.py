"""
Many clients that read large replies at a steady rate, beside some that make small calls: is anybody cut off?

    .venv/bin/python -m benchmarks.readers --clients 150 --rate 1000000 --size 10000000

More of them at once than half the connections to the upstream, whose default is 200. Bounded by the time that
a reply takes at that rate, twice.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter

from benchmarks import rig
from benchmarks.client import Broken, Tally, opened

PIECES = 5  # a second that a reader takes


async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
    """`/large` is `size` bytes, all else is two."""
    piece = b"x" * 65_536
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = size if b" /large " in head else 2
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            for start in range(0, length, len(piece)):
                writer.write(piece[: length - start])
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def read_large(port: int, rate: int, size: int) -> str:
    patience = 2.0 * size / rate + 10
    one = await opened(port, patience=patience, buffer=rate // PIECES)
    began = time.monotonic()
    got = 0
    try:
        async with asyncio.timeout(patience):
            one.send("GET", "/large")
            reply = await one.head()
            if reply.status != 200:
                return str(reply.status)
            while got < size:
                piece = await one.reader.read(rate // PIECES)
                if not piece:
                    return "cut off"
                got += len(piece)
                await asyncio.sleep(max(0.0, began + got / rate - time.monotonic()))
    except ConnectionError:
        return "reset"
    except Broken as error:
        return str(error)
    except TimeoutError:
        return "not done in time"
    finally:
        one.writer.transport.abort()
    return "complete"


async def call(port: int, tally: Tally, over: asyncio.Event) -> None:
    one = await opened(port)
    while not over.is_set():
        await tally.call(one, "GET", "/small")
        await asyncio.sleep(0.1)
    await one.close()


async def run(gateway: int, server: asyncio.Server, chosen: argparse.Namespace) -> None:
    over, tally = asyncio.Event(), Tally()
    normal = [asyncio.create_task(call(gateway, tally, over)) for _ in range(chosen.normal)]
    readers = [read_large(gateway, chosen.rate, chosen.size) for _ in range(chosen.clients)]
    print("readers:", dict(Counter(await asyncio.gather(*readers))))
    over.set()
    await asyncio.wait(normal)
    print(f"normal calls: {tally.good} good, p99 {tally.ms(0.99)} ms, others: {tally.wrong()}")
    server.close()


async def measured(chosen: argparse.Namespace) -> None:
    server = await asyncio.start_server(lambda r, w: upstream(r, w, chosen.size), "127.0.0.1", 0)
    with rig.folder() as work, rig.gateway(work, server.sockets[0].getsockname()[1]) as gateway:
        await run(gateway.port, server, chosen)
    await asyncio.sleep(0.5)  # the gateway has gone: so do its connections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=150)
    parser.add_argument("--normal", type=int, default=20)
    parser.add_argument("--rate", type=int, default=1_000_000, help="bytes a second of each")
    parser.add_argument("--size", type=int, default=10_000_000, help="bytes of a large reply")
    rig.many_files()
    rig.pinned_off_the_gateway()
    asyncio.run(measured(parser.parse_args()))


if __name__ == "__main__":
    main()
