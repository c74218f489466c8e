"""
Large bodies: a download and an upload through the gateway, whose memory must stay flat, and a slow reader.

    .venv/bin/python -m benchmarks.bulk --mib 2048

What arrives is checked by its CRC-32. The slow reader takes 100 kB/s of a download of the same size: how far
the upstream could run ahead of it is what the gateway and the kernel's buffers hold.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
import zlib
from collections.abc import Callable

from benchmarks import rig, upstream

FLAT = 20.0  # MiB that the gateway may grow by
READ = 2**20


def connected(port: int, buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", port))
    return sock


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head, and what came of the body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(READ)
        if not piece:
            raise SystemExit(f"the connection ended: {data!r}")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"refused: {data[:1000]!r}")
    return head, rest


def download(port: int, size: int) -> str:
    with connected(port) as sock:
        sock.sendall(b"GET /bulk/%d HTTP/1.1\r\nHost: gateway.test\r\n\r\n" % size)
        _, rest = read_head(sock)
        got, crc = len(rest), zlib.crc32(rest)
        buffer = bytearray(READ)
        view = memoryview(buffer)
        while got < size and (count := sock.recv_into(buffer)):
            crc = zlib.crc32(view[:count], crc)
            got += count
    return verdict(got, crc, size)


def upload(port: int, size: int) -> str:
    with connected(port) as sock:
        sock.sendall(b"POST /sink HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: %d\r\n\r\n" % size)
        for number in range(-(-size // upstream.BLOCK)):
            sock.sendall(upstream.block(number)[: size - number * upstream.BLOCK])
        head, rest = read_head(sock)
        fields = dict(line.split(b": ") for line in head.lower().split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(rest) < length:
            rest += sock.recv(READ)
    told = json.loads(rest)
    return verdict(told["bytes"], told["crc32"], size)


def verdict(got: int, crc: int, size: int) -> str:
    whole = got == size and crc == upstream.checksum(size)
    return "whole" if whole else f"DAMAGED: {got} of {size} bytes"


def slow_reader(port: int, upstream_port: int, size: int, seconds: float, pace: int) -> str:
    with connected(port, buffer=2**15) as sock:
        sock.sendall(b"GET /bulk/%d HTTP/1.1\r\nHost: gateway.test\r\n\r\n" % size)
        _, rest = read_head(sock)
        got, began = len(rest), time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            if got < pace * passed:
                got += len(sock.recv(4096))
            else:
                time.sleep(0.01)
        with connected(upstream_port) as side:
            side.sendall(b"GET /sent HTTP/1.1\r\nHost: upstream.test\r\n\r\n")
            _, sent = read_head(side)
    return f"{got / 1000 / seconds:.0f} kB/s, the upstream {(int(sent) - got) / rig.MIB:.1f} MiB ahead"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--mib", type=int, default=2048)
    ap.add_argument("--slow-seconds", type=float, default=15)
    ap.add_argument("--pace", type=int, default=100_000, help="bytes a second that the slow reader takes")
    a = ap.parse_args()
    size = a.mib * rig.MIB
    rig.pinned_off_the_gateway()
    rows: list[list[object]] = []
    worst = 0.0
    with rig.folder() as work, rig.upstream(work) as up, rig.gateway(work, up) as gateway:
        download(gateway.port, rig.MIB)
        upload(gateway.port, rig.MIB)
        started = gateway.process.rss() / rig.MIB

        def measured(name: str, run: Callable[[], str], timed: bool) -> None:
            nonlocal worst
            began = time.monotonic()
            with rig.sampled(gateway.process.pid, 0.1) as samples:
                outcome = run()
                took = time.monotonic() - began
            most, last = max(one.mib for one in samples), samples[-1].mib
            worst = max(worst, most - started)
            speed = f"{a.mib / took:.0f}" if timed else "-"
            rows.append([name, outcome, speed, *(f"{one:.1f}" for one in (samples[0].mib, most, last))])

        measured(f"download of {a.mib} MiB", lambda: download(gateway.port, size), True)
        measured(f"upload of {a.mib} MiB", lambda: upload(gateway.port, size), True)
        measured("slow reader", lambda: slow_reader(gateway.port, up, size, a.slow_seconds, a.pace), False)
    rig.table(["what", "outcome", "MiB/s", "resident at first (MiB)", "at most", "at last"], rows)
    flat = "flat" if worst <= FLAT else "NOT FLAT"
    print(f"\nThe gateway grew by at most {worst:.1f} MiB over all ({flat}: the limit is {FLAT:g} MiB).")
    damaged = any("DAMAGED" in str(row[1]) for row in rows)
    raise SystemExit(1 if damaged or worst > FLAT else 0)


if __name__ == "__main__":
    main()
