"""
What a dashboard in a browser waits for: PATCHes by fetch from another origin, straight to the upstream and
through the gateway by turns, in headless Chromium.

    .venv/bin/python -m benchmarks.dashboard [--calls 400]

`kept`: one conversation, so that the browser keeps the preflight's answer and the gateway what it read.
`each`: another conversation with each call, so that each has a preflight, and in the gateway a look-up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httptools
import playwright.async_api as playwright

from benchmarks import rig

# A page that is isolated from others has a clock that tells 5 µs.
PAGE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n"
    b"Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Embedder-Policy: require-corp\r\n\r\n"
    b"<!doctype html>"
)
ALLOWED = b"Access-Control-Allow-Origin: %s\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n"
PREFLIGHT = (
    b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Methods: PATCH\r\nAccess-Control-Max-Age: 600\r\n"
    b"Access-Control-Allow-Headers: authorization,content-type\r\n"
)
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CALLS = """async ([bases, count, kept]) => {
  const took = bases.map(() => []), wrong = [];
  for (let n = 0; n < count; n++) {
    for (const [at, base] of bases.entries()) {
      const url = `${base}/api/v2/conversations/web/instances/c${kept ? 1 : n}/participants/p1`;
      const body = '{"attributes": {"supervisorNote": "test"}}';
      const began = performance.now();
      const options = {method: "PATCH", body, credentials: "include", headers: {Authorization: "Bearer one"}};
      const reply = await fetch(url, options);
      await reply.text();
      took[at].push(performance.now() - began);
      const rewrite = reply.headers.get("gateway-rewrite");
      if (reply.status !== 200 || (at && !rewrite.includes("filled=state"))) wrong.push(rewrite);
    }
  }
  return [took, wrong.length];
}"""


class Server(asyncio.Protocol):
    """The page, and the API, which allows every origin."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.target = self.origin = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.target = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"origin":
            self.origin = value

    def on_message_complete(self) -> None:
        allowed = ALLOWED % self.origin
        if not self.target.startswith(b"/api/"):
            self.transport.write(PAGE)
        elif self.parser.get_method() == b"OPTIONS":
            self.transport.write(PREFLIGHT + allowed + b"\r\n")
        else:
            conversation = self.target.split(b"/")[6]
            body = b'{"id":"%s","participants":[{"id":"p1","state":"connected"}]}' % conversation
            self.transport.write(JSON + allowed + b"Content-Length: %d\r\n\r\n" % len(body) + body)


@contextlib.asynccontextmanager
async def page() -> AsyncIterator[playwright.Page]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


async def main(calls: int) -> None:
    ports = rig.free_ports(2)
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Server, "127.0.0.1", port) for port in ports]
    origin, upstream = (f"http://127.0.0.1:{port}" for port in ports)
    cors = {"origins": [origin], "credentials": True}
    rows: list[tuple[Any, ...]] = []
    with rig.folder() as work, rig.gateway(work, ports[1], cors=cors) as gateway:
        async with page() as shown:
            await shown.goto(origin)
            bases = [upstream, f"http://127.0.0.1:{gateway.port}"]
            await shown.evaluate(CALLS, [bases, 50, True])
            for name, kept in (("kept", True), ("each", False)):
                took, wrong = await shown.evaluate(CALLS, [bases, calls, kept])
                for share in (0.5, 0.99):
                    straight, through = (rig.quantile(sorted(one), share) for one in took)
                    figures = (f"{one:.2f}" for one in (straight, through, through - straight))
                    rows.append((name, f"p{share * 100:.0f}", *figures, wrong))
    for server in servers:
        server.close()
    rig.table(("preflights", "", "straight (ms)", "through the gateway", "added", "wrong"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=400)
    asyncio.run(main(parser.parse_args().calls))
