"""
A storm: clients that call again as soon as they are answered, refused or not. What still gets through?

    .venv/bin/python -m benchmarks.overload --clients 50,200,900,3000 --seconds 8

`--nginx`: the same storm against nginx that passes on and does nothing else, to tell what the machine takes.

Each number of clients against a gateway of its own with default limits: GETs that are passed through, one at
a time on each kept connection (`--reconnect`: a new connection for each call). Beside them somebody asks
`/readyz` ten times a second on the admin side. When the storm is over, one client makes a call on a new
connection. "good/CPU s" is the good calls for each second of a processor that the gateway had; "load" is the
share of its own processor that this process had: near 100 it is the load that is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from benchmarks import rig
from benchmarks.client import PER_ADDRESS

CALL = b"GET /api/v2/users/me HTTP/1.1\r\nHost: gateway.test\r\n\r\n"
READY = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
PROBES = 10  # a second
PATIENCE = 10.0  # seconds for one look at /readyz
NGINX_FILES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Storm:
    def __init__(self, reconnect: bool) -> None:
        self.reconnect = reconnect
        self.statuses: Counter[bytes] = Counter()
        self.seconds: list[float] = []  # of the good ones
        self.ended = 0
        self.over = False


class Caller(asyncio.Protocol):
    """As lean as may be: the load has one core, and so has the gateway."""

    def __init__(self, storm: Storm) -> None:
        self.gone = asyncio.get_running_loop().create_future()
        self._storm = storm
        self._got = b""
        self._began = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._call()

    def _call(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(CALL)

    def data_received(self, data: bytes) -> None:
        if self._got:
            data = self._got + data
        head = data.find(b"\r\n\r\n")
        at = data.find(b"ontent-", 0, head)
        while at >= 0 and data[at : at + 14].lower() != b"ontent-length:":
            at = data.find(b"ontent-", at + 7, head)
        length = int(data[at + 14 : data.find(b"\r\n", at)]) if at >= 0 else 0
        if head < 0 or len(data) < head + 4 + length:
            self._got = data
            return
        self._got = b""
        storm = self._storm
        if storm.over:
            return
        status = data[9:12]
        storm.statuses[status] += 1
        if status == b"200":
            storm.seconds.append(time.perf_counter() - self._began)
        if storm.reconnect:
            self._transport.close()
        else:
            self._call()

    def connection_lost(self, exc: Exception | None) -> None:
        self._storm.ended += 1
        if not self.gone.done():
            self.gone.set_result(None)


async def connected(port: int, number: int, storm: Storm) -> Caller:
    sock = socket.socket()
    sock.setblocking(False)
    if number >= PER_ADDRESS:
        sock.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    _, caller = await loop.create_connection(lambda: Caller(storm), sock=sock)
    return caller


async def come_back(port: int, number: int, storm: Storm) -> None:
    """Connects anew for as long as the storm goes on, whenever its connection is gone."""
    while not storm.over:
        try:
            caller = await connected(port, number, storm)
        except OSError:
            storm.ended += 1
            await asyncio.sleep(0.01)
            continue
        await caller.gone


class Stormed(NamedTuple):
    port: int
    admin: int  # that answers /readyz
    pid: int


class Seen(NamedTuple):
    good: float  # a second
    efficiency: float  # good ones for each second of a processor that the gateway had
    load: float  # percent of a processor that the clients had
    refused: float  # a second
    other: int
    p99: float  # ms, of the good ones
    ready_p50: float  # ms
    ready_max: float  # ms, inf where there was no answer
    first: float  # ms until a new client had its first good reply after the storm


async def storm_of(clients: int, seconds: float, stormed: Stormed, reconnect: bool) -> Seen:
    port, admin, pid = stormed
    storm = Storm(reconnect)
    argv = (sys.executable, "-m", "benchmarks.overload", "--probe", str(admin), "--seconds", str(seconds))
    callers = [asyncio.create_task(come_back(port, number, storm)) for number in range(clients)]
    await asyncio.sleep(1.0)
    probe = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    storm.statuses.clear()
    storm.seconds.clear()
    began, had, load = time.perf_counter(), rig.processor_time(pid), time.process_time()
    await asyncio.sleep(seconds)
    took, load = time.perf_counter() - began, time.process_time() - load
    had = rig.processor_time(pid) - had
    storm.over = True
    statuses, latencies = Counter(storm.statuses), list(storm.seconds)
    first = await first_good(port)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    said, _ = await probe.communicate()
    ready = [float(one) * 1000 for one in json.loads(said)]
    return Seen(
        good=statuses[b"200"] / took,
        efficiency=statuses[b"200"] / had,
        load=load / took * 100,
        refused=statuses[b"503"] / took,
        other=sum(count for status, count in statuses.items() if status not in (b"200", b"503")),
        p99=rig.quantile(latencies, 0.99) * 1000 if latencies else float("nan"),
        ready_p50=rig.quantile(ready, 0.5),
        ready_max=max(ready),
        first=first * 1000,
    )


async def first_good(port: int) -> float:
    began = time.perf_counter()
    while time.perf_counter() - began < PATIENCE:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(CALL)
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
            writer.close()
        except (OSError, TimeoutError):
            continue
        if b" 200 " in line:
            return time.perf_counter() - began
    return float("inf")


def probed(admin: int, seconds: float) -> list[float]:
    """How long each look at /readyz took."""
    found = []
    end = time.monotonic() + seconds - 0.5
    while time.monotonic() < end:
        began = time.perf_counter()
        try:
            with socket.create_connection(("127.0.0.1", admin), PATIENCE) as one:
                one.sendall(READY)
                answered = one.recv(65_536).startswith(b"HTTP/1.1 200")
        except OSError:
            answered = False
        found.append(time.perf_counter() - began if answered else float("inf"))
        time.sleep(max(0.0, 1 / PROBES - found[-1]) if answered else 0.1)
    return found


@contextlib.contextmanager
def nginx(work: Path, upstream: int) -> Iterator[Stormed]:
    """With one worker, as many connections to the upstream as are wanted, and no limit of its own."""
    (port,) = rig.free_ports(1)
    places = "".join(f"{name}_temp_path {work};" for name in NGINX_FILES)
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/nginx.err;"
        f"events {{ worker_connections 40000; }}"
        f"http {{ access_log off; keepalive_requests 100000000; {places}"
        f"upstream api {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}"
        f"server {{ listen 127.0.0.1:{port} backlog=8192; proxy_http_version 1.1;"
        f'proxy_set_header Connection ""; location / {{ proxy_pass http://api; }} }} }}'
    )
    argv = ("nginx", "-p", str(work), "-c", str(config))
    with rig.process(work / "nginx.log", port, *argv, first_core=True) as process:
        yield Stormed(port, port, process.pid)


@contextlib.contextmanager
def gateway(work: Path, upstream: int, pause: str) -> Iterator[Stormed]:
    with rig.gateway(work, upstream, limits={"overload_pause": pause}) as running:
        yield Stormed(running.port, running.admin, running.process.pid)


def stormed(clients: int, seconds: float, work: Path, chosen: argparse.Namespace) -> Seen:
    with (
        rig.upstream(work) as upstream,
        nginx(work, upstream) if chosen.nginx else gateway(work, upstream, chosen.pause) as running,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(storm_of(clients, seconds, running, chosen.reconnect))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", default="50,200,900,3000")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--reconnect", action="store_true")
    parser.add_argument("--nginx", action="store_true", help="storm nginx instead of the gateway")
    parser.add_argument("--pause", default="500ms", help="limits.overload_pause; 0s: none")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.probe is not None:
        print(json.dumps(probed(chosen.probe, chosen.seconds)))
        return
    rig.many_files()
    rig.pinned_off_the_gateway()
    heads = ["clients", "good/s", "good/CPU s", "load %", "refused/s", "other", "p99 ms"]
    print(" | ".join([*heads, "/readyz p50 ms", "max ms", "first good ms"]))
    with rig.folder() as work:
        for clients in map(int, chosen.clients.split(",")):
            one = stormed(clients, chosen.seconds, work, chosen)
            good = f"{one.good:6.0f} | {one.efficiency:10.0f} | {one.load:6.0f}"
            figures = f"{one.refused:9.0f} | {one.other:5} | {one.p99:6.0f}"
            ready = f"{one.ready_p50:14.1f} | {one.ready_max:6.0f}"
            print(f"{clients:7} | {good} | {figures} | {ready} | {one.first:13.1f}", flush=True)


if __name__ == "__main__":
    main()
