"""
The demo: a mock and a gateway as real processes, a legacy call that fails straight and works through it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

PATH = "/api/v2/conversations/web/instances/c1/participants/p1"
BODY = b'{"attributes": {"supervisorNote": "test"}}'
HEADERS = {"Content-Type": "text/plain", "Authorization": "Bearer demo", "User-Agent": "a legacy client"}

CONFIG = """\
listen: {{host: 127.0.0.1, port: {port}}}
admin: {{host: 127.0.0.1, port: {admin}}}
upstream: {{url: "http://127.0.0.1:{mock}"}}
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
    with tempfile.TemporaryDirectory(prefix="gateway-demo-") as folder:
        port, admin, mock = free_ports(3)
        audit = Path(folder) / "rewrites.jsonl"
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG.format(port=port, admin=admin, mock=mock, audit=json.dumps(str(audit))))
        with (
            process("mock", "--port", str(mock)),
            process("run", "--config", str(config)),
            httpx.Client(trust_env=False, timeout=10) as client,
        ):
            for one in (mock, admin, port):
                wait_for(one)
            works = story(client, f"http://127.0.0.1:{mock}", f"http://127.0.0.1:{port}", audit)
            if not once:
                stay(port, admin, mock, audit)
    return 0 if works else 1


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


def stay(port: int, admin: int, mock: int, audit: Path) -> None:
    print(f"""
Both stay up until Ctrl-C. Try:
  curl -i -X PATCH -d '{BODY.decode()}' http://127.0.0.1:{port}{PATH}
  curl -i -X PATCH -d '{BODY.decode()}' http://127.0.0.1:{mock}{PATH}
  curl -s http://127.0.0.1:{mock}/_mock/requests
  curl -s http://127.0.0.1:{admin}/readyz
  tail -f {audit}""")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[None]:
    """`gateway …` as a process of its own, ended by its id when the block ends."""
    running = subprocess.Popen(
        [sys.executable, "-m", "gateway", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Ctrl-C is for the demo, which then ends its children in order.
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield
    finally:
        running.terminate()
        try:
            _, said = running.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            _, said = running.communicate()
        if running.returncode not in {0, -signal.SIGTERM}:
            print(said.decode(errors="replace"), file=sys.stderr)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def wait_for(port: int, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.02)
    raise SystemExit(f"gateway demo: nothing listens on port {port}")
