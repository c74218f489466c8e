"""
The demo: a mock and a gateway as real processes, a legacy call that fails straight and works through it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

GATEWAY = (sys.executable, "-m", "gateway")
PATH = "/api/v2/conversations/web/instances/c1/participants/p1"
BODY = b'{"attributes": {"supervisorNote": "test"}}'
HEADERS = {"Content-Type": "text/plain", "Authorization": "Bearer demo", "User-Agent": "a legacy client"}

CONFIG = """\
listen: {{port: 0}}
admin: {{port: 0}}
upstream: {{url: "{upstream}"}}
audit: {{path: {audit}}}
rules:
  - name: web-participant-state
    match: {{path: "/api/v2/conversations/web/instances/{{conversationId}}/participants/{{participantId}}"}}
    writes: ["/api/v2/conversations/web/instances/{{conversationId}}/**"]
    repairs:
      - {{type: encoding}}
      - {{type: content_type}}
      - type: fill
        field: state
        from: "/api/v2/conversations/web/instances/{{conversationId}}"
        select: "$.participants[?@.id == _.participantId].state"
        allow: [active, connected]
"""


def tell(once: bool) -> int:
    """Returns the exit code: 0 when the call failed straight and worked through the gateway."""
    with staged() as (stack, client, folder):
        audit = folder / "rewrites.jsonl"
        config = folder / "config.yaml"
        upstream = mocked(stack, folder)
        config.write_text(CONFIG.format(upstream=upstream, audit=json.dumps(str(audit))))
        here, admin = serving(started(stack, folder / "run.log", *GATEWAY, "run", "--config", str(config)))
        works = story(client, upstream, f"http://{here}", audit)
        if not once:
            stay(here, admin, upstream, audit)
    return 0 if works else 1


@contextlib.contextmanager
def staged() -> Iterator[tuple[contextlib.ExitStack, httpx.Client, Path]]:
    """Where the children live, who calls, and a folder. All is gone with the block."""
    # Told to end at any moment, it ends its children first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gateway-demo-") as folder, contextlib.ExitStack() as stack:
        yield stack, stack.enter_context(httpx.Client(trust_env=False, timeout=10)), Path(folder)


def mocked(stack: contextlib.ExitStack, folder: Path) -> str:
    (url,) = started(stack, folder / "mock.log", *GATEWAY, "mock", "--port", "0").told(r"(http://\S+)")
    return url


def serving(gateway: Child) -> tuple[str, ...]:
    """Its address, and its admin side's."""
    return gateway.told(r"listening on (\S+), admin on (\S+),")


def started(stack: contextlib.ExitStack, said: Path, *command: str) -> Child:
    """Ended with the stack; whoever ends the demo in this very moment is heard when that is sure."""
    told: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: told.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        child = Child(said, *command)
        stack.callback(child.end)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        raise KeyboardInterrupt
    return child


def story(client: httpx.Client, upstream: str, gateway: str, audit: Path) -> bool:
    print(f"A legacy client:  PATCH {PATH}")
    print(f"                  Content-Type: text/plain   {BODY.decode()}\n")
    straight = client.patch(upstream + PATH, content=BODY, headers=HEADERS)
    print(f"1. straight to the upstream:  {straight.status_code} {message(straight)}")
    client.delete(f"{upstream}/_mock/requests")
    json_type = HEADERS | {"Content-Type": "application/json"}
    straight_json = client.patch(upstream + PATH, content=BODY, headers=json_type)
    print(f"   and called JSON:           {straight_json.status_code} {message(straight_json)}")
    client.delete(f"{upstream}/_mock/requests")
    through = client.patch(gateway + PATH, content=BODY, headers=HEADERS)
    print(f"2. through the gateway:       {through.status_code}")
    for name in ("Gateway-Rewrite", "Server-Timing"):
        print(f"     {name}: {through.headers.get(name, '-')}")
    print("3. the upstream received:")
    for request in client.get(f"{upstream}/_mock/requests").json():
        kind = next((value for name, value in request["headers"] if name == "content-type"), "-")
        print(f"     {request['method']:5} {request['target']}")
        if request["method"] == "PATCH":
            print(f"           Content-Type: {kind}   {request['body']}")
    print("4. the audit log has:")
    for line in recorded(audit):
        print(f"     {line}")
    return straight.status_code >= 400 and straight_json.status_code == 400 and through.is_success


def recorded(audit: Path, seconds: float = 2.0) -> list[str]:
    """The log's lines. The outcome is written when the reply has left, which may be read before that."""
    end = time.monotonic() + seconds
    while '"outcome"' not in (text := audit.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    return text.splitlines()


def message(reply: httpx.Response) -> str:
    try:
        return str(reply.json().get("message", ""))
    except ValueError:
        return reply.text


def stay(here: str, admin: str, upstream: str, audit: Path) -> None:
    stayed(f"""
Both stay up until Ctrl-C. Try:
  curl -i -X PATCH -d '{BODY.decode()}' http://{here}{PATH}
  curl -i -X PATCH -d '{BODY.decode()}' {upstream}{PATH}
  curl -s {upstream}/_mock/requests
  curl -s http://{admin}/readyz
  tail -f {audit}""")


def stayed(told: str) -> None:
    print(told, flush=True)  # what reads it through a pipe is not to wait for the end
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


class Child:
    """A process of its own; what it says is in the file `said`, so that it never waits for a reader."""

    def __init__(self, said: Path, *command: str) -> None:
        self._said = said
        with said.open("wb") as output:
            self._running = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo, which then ends its children in order.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def told(self, what: str, seconds: float = 15.0) -> tuple[str, ...]:
        """The groups of `what` in what it says, such as the ports that the system chose for it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._running.poll() is None:
            if found := re.search(what, self._said.read_text()):
                return found.groups()
            time.sleep(0.02)
        raise SystemExit(f"gateway demo: a part did not start:\n{self._said.read_text()}")

    @property
    def pid(self) -> int:
        return self._running.pid

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()

    def end(self) -> None:
        if self._running.poll() == -signal.SIGKILL:
            return
        self._running.terminate()
        try:
            self._running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._running.returncode not in {0, -signal.SIGTERM}:
            print(self._said.read_text(errors="replace"), file=sys.stderr)
