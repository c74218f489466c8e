"""
This gateway with httpx's own HTTP/1.1 transport as its transport: what the transport alone costs.

    ../shared/bench/compare -- $PWD/.venv/bin/python $PWD/benchmarks/peers/gateway_httpx.py \
        --config ../shared/bench/gateway.yaml

Every other part is the gateway's, and so is the configuration. A body that a client sends chunked and that no
rule matches can't pass here: `HttpxTransport` leaves its framing to HTTP/2.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import httpx
import uvloop

from gateway import app, config
from gateway.process import lifetime
from gateway.upstream.connection import Timeouts
from gateway.upstream.http2 import HttpxTransport


async def serve(settings: config.Settings) -> None:
    to = settings.upstream
    limits = httpx.Limits(
        max_connections=to.max_connections,
        max_keepalive_connections=to.max_connections,
        keepalive_expiry=to.idle_timeout,
    )
    transport = httpx.AsyncHTTPTransport(http1=True, http2=False, trust_env=False, limits=limits)
    timeouts = Timeouts(
        connect=to.connect_timeout,
        read=to.read_timeout,
        write=to.write_timeout,
        # The gateway's default of 1 s would turn the slowness of httpx's pool into errors.
        pool=to.read_timeout,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with lifetime.running(
        settings, app.build(settings, transport=HttpxTransport(transport, to.url, timeouts))
    ):
        await stopped.wait()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--config", type=Path, required=True)
    ap.add_argument("--port", type=int, help="instead of the configuration's")
    a = ap.parse_args()
    settings = config.load(a.config)
    if a.port is not None:
        settings = settings.model_copy(update={"listen": settings.listen.model_copy(update={"port": a.port})})
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
