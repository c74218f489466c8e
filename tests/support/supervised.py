"""`gateway run --workers N`, but that nothing is asked of the configuration: with a store for each worker."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from gateway import app, config
from gateway.process import lifetime, signals
from gateway.workers import supervisor
from gateway.workers.place import CannotStart

if __name__ == "__main__":
    signals.at_start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                supervisor.run(
                    config.read_file(Path("config.yaml")),
                    int(sys.argv[1]),
                    config.nothing_more,
                    watch="--watch" in sys.argv,
                )
            )
    except (app.CannotListen, lifetime.LogInUse, CannotStart, supervisor.NotEnded) as error:
        sys.exit(f"gateway: {error}")
