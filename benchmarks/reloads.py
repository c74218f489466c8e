"""
The configuration read again, and the listener's certificate exchanged, amid calls: does any of these notice?

    .venv/bin/python -m benchmarks.reloads [--reloads 200] [--swaps 100] [--clients 24] [--seed 1]

Clients keep their connections and call without a pause: PATCHes without a state, each with another head, and
calls that no rule matches. Meanwhile the file is written anew and `POST /api/reload` asks for it, one that is
good and one that is not by turns. The good ones differ from the one before

    same rules    in a setting that takes a restart: what was read serves on, so no conversation is looked up
                  twice
    modes         in the rule's mode
    other rules   in the rule itself

Then certificate and key are exchanged by SIGHUP, with a pair and with files that do not match by turns, while
half of the clients keep their TLS connection and half make one for each call; after each exchange a new
connection is to be shown the latest that is good. Exits with 1 if a call failed, a connection was dropped, a
reload came out otherwise than its file, or a look-up was made twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trustme
import uvloop

from benchmarks import rig
from benchmarks.client import Broken, Connection, Tally, opened
from gateway.admin import client as admin

CONVERSATIONS = 200
LOOKS = 0.005  # seconds between two
BODY = b'{"attributes": {"supervisorNote": "test"}}'
AGENTS = ("legacy/1.0", "python-requests/2.31", "Java/1.8.0_202", "curl/8.5.0")
TYPES = (
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/json",
    "text/plain;charset=utf-8",
)
BAD = ("rules: [", "ruels: []\n", "- 1\n", "", "upstream: {url: 'ftp://x'}\n", "a: &a [*a]\n")
COLUMNS = ("files", "turns", "calls", "failed", "dropped", "wrong turns", "look-ups", "p50 (ms)", "max (ms)")

Opened = Callable[[], Awaitable[Connection]]


class Load:
    """Calls until it is `over`; a connection is dropped where one that was kept has to be opened again."""

    def __init__(self, connect: Opened, seed: int) -> None:
        self.tally = Tally()
        self.dropped = 0
        self._connect = connect
        self._random = random.Random(seed)
        self._over = False

    def call(self) -> tuple[str, str, list[tuple[str, str]], bytes | None]:
        chance = self._random
        fields = [
            ("Authorization", "Bearer one"),
            ("User-Agent", chance.choice(AGENTS)),
            ("X-Request-Id", f"{chance.random()}"),
        ]
        if (kind := chance.choice(TYPES)) != "":
            fields.append(("Content-Type", kind))
        chance.shuffle(fields)
        if chance.random() < 0.3:
            return "GET", f"/api/v2/users/me?{chance.random()}", fields, None
        if chance.random() < 0.1:
            return "POST", "/sink", fields, b"x" * chance.randrange(4000)
        return "PATCH", rig.path(f"c{chance.randrange(CONVERSATIONS)}"), fields, BODY

    async def _client(self, keeps: bool) -> None:
        one: Connection | None = None
        while not self._over:
            if one is None:
                try:
                    one = await self._connect()
                except (Broken, OSError) as error:
                    self.tally.failures[f"no connection: {type(error).__name__}"] += 1
                    await asyncio.sleep(0.01)
                    continue
            reply = await self.tally.call(one, *self.call())
            if reply is None:
                self.dropped += 1
            if reply is None or not keeps:
                await one.close()
                one = None
        if one is not None:
            await one.close()

    @contextlib.asynccontextmanager
    async def under_way(self, clients: int, reconnecting: int = 0) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._client(number >= reconnecting)) for number in range(clients)]
        try:
            yield
            # What comes after the last turn is to be seen, too.
            seen = self.tally.good
            await seen_soon(lambda: self.tally.good >= seen + 10 * clients or self.tally.bad > 0)
        finally:
            self._over = True
            await asyncio.gather(*tasks)


async def seen_soon(seen: Callable[[], bool]) -> None:
    """Looks for as long as anything may take."""
    for _ in range(int(rig.PATIENCE / LOOKS)):
        if seen():
            return
        await asyncio.sleep(LOOKS)


def bad_files() -> Iterator[str]:
    while True:
        yield from BAD


def good_files(kind: str, first: Mapping[str, Any]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        rule: dict[str, Any] = dict(first["rules"][0])
        changed: dict[str, Any] = {**first, "rules": [rule]}
        if kind == "same rules":
            changed["limits"] = {"max_body": 2**20 + number}
        elif kind == "modes":
            rule["mode"] = ("on_reject", "enforce")[number % 2]
        else:
            rule["writes"] = [*rule["writes"], f"/other/{number}/{{conversationId}}"]
        yield json.dumps(changed)


async def reloaded(kind: str, turns: int, clients: int, seed: int) -> tuple[list[object], bool]:
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(rig.folder())
        upstream = stack.enter_context(rig.upstream(work))
        gateway = stack.enter_context(rig.gateway(work, upstream, fill={"max_age": "60s"}))
        file = work / "config.yaml"
        good, bad = good_files(kind, json.loads(file.read_text())), bad_files()
        load = Load(lambda: opened(gateway.port), seed)
        wrong, took = 0, []
        async with load.under_way(clients):
            for turn in range(turns):
                fits = turn % 2 == 0
                file.write_text(next(good) if fits else next(bad))
                began = time.perf_counter()
                answer = await asyncio.to_thread(
                    admin.post, "127.0.0.1", gateway.admin, "/api/reload", {}, None
                )
                took.append(time.perf_counter() - began)
                wrong += answer["ok"] != fits
        counts = gateway.counts()
        sent = next(count for name, count in counts.items() if "lookups" in name and "sent" in name)
    twice = kind == "same rules" and sent > CONVERSATIONS
    return row(kind, turns, load, wrong, f"{sent}", took), bool(
        load.tally.bad or load.dropped or wrong or twice
    )


async def swapped(turns: int, clients: int, seed: int) -> tuple[list[object], bool]:
    with rig.folder() as work, rig.upstream(work) as upstream:
        authority = trustme.CA()
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        certificate, key = work / "cert.pem", work / "key.pem"

        def renew(fits: bool) -> bytes:
            issued = authority.issue_cert("127.0.0.1")
            issued.cert_chain_pems[0].write_to_path(certificate)
            if fits:
                issued.private_key_pem.write_to_path(key)
            return ssl.PEM_cert_to_DER_cert(certificate.read_text())

        shown = renew(True)
        tls = {"certificate": str(certificate), "key": str(key)}
        with rig.gateway(work, upstream, listen={"tls": tls}) as gateway:

            async def connect() -> Connection:
                streams = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=trust)
                return Connection(*streams, 20.0)

            load = Load(connect, seed)
            wrong, took = 0, []
            async with load.under_way(clients, clients // 2):
                for turn in range(turns):
                    fits = turn % 2 == 0
                    log = gateway.process.log
                    before = turns_told(log)
                    fresh = renew(fits)
                    shown = fresh if fits else shown
                    began = time.perf_counter()
                    os.kill(gateway.process.pid, signal.SIGHUP)
                    await seen_soon(partial(more_told, log, before))
                    took.append(time.perf_counter() - began)
                    one = await connect()
                    found = one.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                    wrong += found != shown
                    await one.close()
            return row("certificates", turns, load, wrong, "", took), bool(
                load.tally.bad or load.dropped or wrong
            )


def more_told(log: Path, before: int) -> bool:
    return turns_told(log) > before


def turns_told(log: Path) -> int:
    said = log.read_text()
    return said.count("the certificate was loaded again") + said.count("loaded before is shown on")


def row(files: str, turns: int, load: Load, wrong: int, lookups: str, took: list[float]) -> list[object]:
    tally = load.tally
    if tally.bad:
        print(f"{files}: {tally.wrong()}")
    return [
        files,
        turns,
        tally.good,
        tally.bad,
        load.dropped,
        wrong,
        lookups,
        f"{rig.quantile(took, 0.5) * 1000:.0f}",
        f"{max(took) * 1000:.0f}",
    ]


async def main(arguments: argparse.Namespace) -> int:
    found = [
        await reloaded(kind, arguments.reloads, arguments.clients, arguments.seed)
        for kind in ("same rules", "modes", "other rules")
    ]
    found.append(await swapped(arguments.swaps, arguments.clients, arguments.seed))
    rig.table(COLUMNS, [one for one, _ in found])
    return int(any(violated for _, violated in found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    rig.pinned_off_the_gateway()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise SystemExit(runner.run(main(parser.parse_args())))
