"""
What a call costs in process: the same repaired calls by the gateway's own server and by create_app under
others, by turns, in one run, each on processor 0 alone.

    .venv/bin/python -m benchmarks.in_process [--seconds 3] [--rounds 3] [--clients 32]

Clients that keep their connections PATCH without a state, each its own conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks import rig
from benchmarks.tls import Measured, measured

SERVED = """
import os
from gateway.asgi import create_app

os.sched_setaffinity(0, {0})
app = create_app(CONFIG)
"""
PLAIN = ("--no-proxy-headers", "--no-server-header", "--no-date-header", "--no-access-log")
SERVERS = {
    "uvicorn": ("uvicorn", "served:app", *PLAIN, "--log-level", "error", "--port"),
    "hypercorn": ("hypercorn", "served:app", "--worker-class", "uvloop", "--bind"),
    "granian": ("granian", "served:app", "--interface", "asgi", "--loop", "uvloop", "--no-log", "--port"),
}


@contextlib.contextmanager
def served(work: Path, upstream: int, name: str) -> Iterator[rig.Gateway]:
    (port,) = rig.free_ports(1)
    audit, config = work / "rewrites.jsonl", work / "config.yaml"
    config.write_text(json.dumps(rig.settings(f"http://127.0.0.1:{upstream}", str(audit))))
    (work / "served.py").write_text(SERVED.replace("CONFIG", repr(str(config))))
    module, *arguments = SERVERS[name]
    where = f"127.0.0.1:{port}" if name == "hypercorn" else str(port)
    argv = ("env", f"PYTHONPATH={work}", sys.executable, "-m", module, *arguments, where)
    with rig.process(work / "server.log", port, *argv) as running:
        yield rig.Gateway(running, port, 0, audit)


async def main(arguments: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(rig.folder())
        upstream = stack.enter_context(rig.upstream(work))
        gateways = {}
        for name in ("own", *SERVERS):
            (folder := work / name).mkdir()
            begun = rig.gateway(folder, upstream) if name == "own" else served(folder, upstream, name)
            gateways[name] = stack.enter_context(begun)
        found: dict[str, list[Measured]] = {name: [] for name in gateways}
        for _ in range(arguments.rounds):
            for name, gateway in gateways.items():
                one = await measured(gateway, None, True, arguments.clients, arguments.seconds)
                found[name].append(one)
        rows = []
        middle = {
            name: sorted(ones, key=lambda one: one.rate)[len(ones) // 2] for name, ones in found.items()
        }
        for name, one in middle.items():
            ratio = one.rate / middle["own"].rate
            rows.append((name, f"{one.rate:.0f}", f"{ratio:.2f}", one.p99, one.wrong))
    rig.table(("server", "calls a second", "ratio", "p99 (ms)", "wrong"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    rig.pinned_off_the_gateway()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(parser.parse_args()))
