"""
One worker: a gateway whose listener is inherited, and whose admin side is the supervisor's to show.

It is started by the supervisor as a process of its own and not forked, so that no two have a random number,
a connection or a lock of a thread in common. When the supervisor is gone, however that came, it drains and
ends: its end of the channel is closed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import uvloop

from gateway import app
from gateway.audit.configurations import ConfigurationInForce
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.writer import Line
from gateway.config import Settings
from gateway.errors import Unrecordable
from gateway.process import lifetime
from gateway.server import descriptors
from gateway.workers.channel import Answer, Channel, NoAnswerFromThere, receive
from gateway.workers.merged import Figures
from gateway.workers.start import Followed, Start
from gateway.workers.watching import Watching

log = logging.getLogger("gateway")

HELD_IN: Final = 10.0  # seconds for the supervisor to answer


def main() -> None:
    """With the numbers of two inherited sockets: of the channel, and of the listener."""
    channel, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(work(channel, listener))
        except (app.CannotListen, OSError) as error:
            sys.exit(f"gateway: a worker cannot run: {error}")
        except NoAnswerFromThere as error:
            sys.exit(f"gateway: a worker cannot run: the supervisor does not say what to follow: {error}")


async def work(control: socket.socket, listener: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=control)
    try:
        start = msgspec.convert(await receive(reader), Start)
    except asyncio.IncompleteReadError:
        return
    settings = start.settings()
    _name_in_the_log(start.number)
    with lifetime.logging_to(2, settings.log) as observers:
        settings, shares, too_few = lifetime.fitted(settings, descriptors.raised())
        key = None if settings.credentials.key is not None else bytes.fromhex(start.key)
        gateway = app.build(settings, credential_key=key, observers=observers)
        lifetime.keep_what_is_there()
        channel = Channel(reader, writer, answers(gateway, settings, start.name))
        stopped = asyncio.Event()
        serving = asyncio.create_task(channel.serve())
        serving.add_done_callback(lambda _: stopped.set())
        loop = asyncio.get_running_loop()
        # A second one changes nothing: the supervisor and who stops a whole group may both send it.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        if too_few is not None:
            log.warning("%s", too_few)
        await gateway.audit.begin()
        gateway.metrics.measure({("gateway_workers",): lambda: float(not stopped.is_set())})
        # What changes after the answer, the supervisor tells, and waits for it. It is followed after this, as
        # nothing is waited for from the answer until the rules are these.
        held = msgspec.convert(await channel.ask("holds", seconds=HELD_IN), Followed)
        if held != start.followed:
            await gateway.follow(held.within(settings, start.name), held.text != start.followed.text)
        listener.listen(settings.listen.backlog)
        async with lifetime.running(settings, gateway, shares, listener):
            channel.tell("ready")
            await stopped.wait()
            # The next one begins, and takes up who waits at the listener, while this one drains.
            channel.tell("leaving")
        # What was counted to the end stays counted.
        channel.tell("figures", msgspec.to_builtins(Figures.of(gateway.metrics)))
        await channel.end()
        serving.cancel()


RECORDED: Mapping[str, type[Line]] = {"mode": ModeChanged, "config": ConfigurationInForce}


def answers(gateway: app.Gateway, settings: Settings, name: str) -> dict[str, Answer]:
    """To what the supervisor asks for."""
    live, watching = gateway.live, Watching(gateway.live)

    async def follow(said: dict[str, Any]) -> None:
        followed = msgspec.convert(said["followed"], Followed)
        await gateway.follow(followed.within(settings, name), said["rules_differ"])

    async def reopen(_: None) -> None:
        await gateway.reopen()

    async def record(said: list[dict[str, Any]]) -> str | None:
        """What kept it from being recorded."""
        try:
            await gateway.record([msgspec.convert(one, RECORDED[one["event"]]) for one in said])
        except Unrecordable as error:
            return error.detail
        return None

    async def ready(_: None) -> dict[str, str]:
        checks = {**gateway.checks, **gateway.degraded}
        return {name: check() or "ok" for name, check in checks.items()}

    async def figures(_: None) -> Any:
        return msgspec.to_builtins(Figures.of(gateway.metrics))

    async def recent(_: None) -> list[dict[str, Any]]:
        return live.recent()

    async def callers(_: None) -> list[dict[str, Any]]:
        return live.callers()

    async def came(_: None) -> dict[str, Any]:
        return watching.came()

    async def unwatch(_: None) -> None:
        watching.end()

    return {
        "follow": follow,
        "reopen": reopen,
        "record": record,
        "ready": ready,
        "figures": figures,
        "recent": recent,
        "callers": callers,
        "came": came,
        "unwatch": unwatch,
    }


def _name_in_the_log(number: int) -> None:
    made = logging.getLogRecordFactory()

    def named(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = made(*arguments, **more)
        record.msg = f"worker {number}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
