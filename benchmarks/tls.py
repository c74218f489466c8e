"""
What TLS on the listener costs: the same repaired calls with it and without, by turns, in one run.

    .venv/bin/python -m benchmarks.tls [--seconds 3] [--rounds 3] [--clients 32]

Clients that keep their connections PATCH without a state, each its own conversation. "for each CPU second" is
what the gateway answers for each second of a processor that it had: the load, which shares the machine and
speaks TLS too, does not count there. "new connections" are calls on a connection each: a handshake too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import time
from typing import NamedTuple

import trustme
import uvloop

from benchmarks import rig
from benchmarks.client import Connection, Tally

BODY = b'{"attributes": {"supervisorNote": "test"}}'
FIELDS = [("Authorization", "Bearer one"), ("Content-Type", "text/plain")]


class Measured(NamedTuple):
    rate: float  # calls a second
    efficiency: float  # calls for each second of a processor that the gateway had
    p99: str  # ms
    wrong: str


async def measured(
    gateway: rig.Gateway, trust: ssl.SSLContext | None, keeps: bool, clients: int, seconds: float
) -> Measured:
    tally, over = Tally(), False

    async def connected() -> Connection:
        return Connection(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=trust), 20.0)

    async def client(number: int) -> None:
        one = await connected()
        while not over:
            await tally.call(one, "PATCH", rig.path(f"c{number}"), FIELDS, BODY)
            if not keeps:
                await one.close()
                one = await connected()
        await one.close()

    callers = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(0.5)
    before, had, began = tally.good, rig.processor_time(gateway.process.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    calls, took = tally.good - before, time.perf_counter() - began
    had = rig.processor_time(gateway.process.pid) - had
    over = True
    await asyncio.gather(*callers)
    return Measured(calls / took, calls / had if had else 0.0, tally.ms(0.99), tally.wrong())


async def main(arguments: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(rig.folder())
        upstream = stack.enter_context(rig.upstream(work))
        authority, trust = trustme.CA(), ssl.create_default_context()
        authority.configure_trust(trust)
        issued = authority.issue_cert("127.0.0.1")
        certificate, key = work / "cert.pem", work / "key.pem"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        tls = {"certificate": str(certificate), "key": str(key)}
        gateways = {}
        for name, listen in (("plain", {}), ("TLS", {"tls": tls})):
            folder = work / name
            folder.mkdir()
            gateways[name] = stack.enter_context(rig.gateway(folder, upstream, listen=listen))
        rows = []
        for what, keeps in (("kept connections", True), ("new connections", False)):
            found: dict[str, list[Measured]] = {name: [] for name in gateways}
            for _ in range(arguments.rounds):
                for name, gateway in gateways.items():
                    shown = trust if name == "TLS" else None
                    found[name].append(
                        await measured(gateway, shown, keeps, arguments.clients, arguments.seconds)
                    )
            middle = {
                name: sorted(rounds, key=lambda one: one.efficiency)[len(rounds) // 2]
                for name, rounds in found.items()
            }
            for name, one in middle.items():
                ratio = one.efficiency / middle["plain"].efficiency
                figures = (f"{one.rate:.0f}", f"{one.efficiency:.0f}", f"{ratio:.2f}", one.p99, one.wrong)
                rows.append((f"{what}, {name}", *figures))
    rig.table(("calls", "a second", "for each CPU second", "ratio", "p99 (ms)", "wrong"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    rig.pinned_off_the_gateway()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(parser.parse_args()))
