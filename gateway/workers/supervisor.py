"""
The process that keeps the workers: it has their listeners, the admin side and the configuration, and never a
client's byte.

A configuration is checked here, and then followed by all workers, each as soon as it can. One that does not
answer meanwhile is ended, and the next in its place begins with it: so all go by the same rules or are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.applications import Starlette

from gateway import app, config
from gateway.admin import changes, process
from gateway.admin.metrics import Counts, Metrics
from gateway.admin.shown_callers import ShownCallers
from gateway.audit.claim import Claim
from gateway.audit.configurations import ConfigurationInForce
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.writer import Line
from gateway.config import ConfigFile, Settings
from gateway.errors import Unrecordable
from gateway.process import lifetime, signals
from gateway.process.reloads import Reloads, watched
from gateway.promotion.effect import digest
from gateway.server import backlog
from gateway.workers import admin, listeners
from gateway.workers.channel import NoAnswerFromThere
from gateway.workers.live import LiveOfAll
from gateway.workers.place import Place
from gateway.workers.start import Followed, Start
from gateway.workers.worker_process import WorkerProcess

FOLLOWS_IN: Final = 10.0  # seconds
RECORDS_IN: Final = 2.0  # seconds, beside those of audit.timeout
ENDS_IN: Final = 5.0  # seconds, beside those of limits.drain_timeout

log = logging.getLogger("gateway")


class NotEnded(Exception):
    """Workers had to be killed at the end."""


async def run(file: ConfigFile, workers: int, also: config.Also, watch: bool) -> None:
    """
    Until SIGTERM or SIGINT; a second one kills what is left. Raises ConfigError, CannotListen, LogInUse,
    CannotStart and NotEnded.
    """
    settings = config.parse(file.text, os.environ, file.path.name, also)
    with lifetime.logging_to(2, settings.log), lifetime.claimed(settings.audit) as claim:
        await Supervisor(settings, file, workers, also, claim).run(watch)


class Supervisor:
    def __init__(
        self, settings: Settings, file: ConfigFile, workers: int, also: config.Also, claim: Claim
    ) -> None:
        self._settings = settings
        self._claim = claim
        self._file = file  # as it was at the start
        self._also = also
        self._loaded = self._text = file.text
        self._modes = _modes(settings)
        self._workers = workers
        self._key = secrets.token_hex(32)
        self._counts = Counts()
        self._own = Metrics(self._counts, {})
        self._own.digest = digest(settings)
        self._reloads = Reloads(settings, self._load, self._follow, self._record, self._counts)
        self._places: list[Place] = []
        self._live = LiveOfAll(time.time, app.shown_rules(settings), self._places)
        self._ready = asyncio.Event()  # all of them, once
        self._live.reload_problem = lambda: self._reloads.problem
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- from start to end

    async def run(self, watch: bool) -> None:
        listen, side = self._settings.listen, self._settings.admin
        app.certificates(self._settings)  # the workers would fail one after the other
        first = listeners.first(listen)
        port = first.getsockname()[1]
        self._make_places(first)
        try:
            private = lifetime.bind("admin", side.host, side.port, lifetime.ADMIN_CONNECTIONS)
            async with self._serving(private) as admin_port:
                self._follow_stops()
                keeping = [asyncio.create_task(place.keep()) for place in self._places]
                try:
                    await self._until(self._ready, keeping)
                    if not self._stopped.is_set():
                        with contextlib.suppress(Unrecordable):  # told when calls are refused for it
                            await self._record([ConfigurationInForce.of(self._own.digest, "start")])
                        self._log_start(listen.host, port, side.host, admin_port)
                    # Not before: while no worker is there nothing can be recorded, so nothing changes.
                    self._follow_hang_ups()
                    if watch:
                        self._spawn(watched(self._file, self._reloads))
                    await self._until(self._stopped, keeping)
                finally:
                    await self._end(keeping)
        finally:
            for place in self._places:
                place.close_listener()
        killed = [str(place.number) for place in self._places if place.killed]
        if killed:
            raise NotEnded(f"worker {', '.join(killed)} did not end in time and was killed")

    def _make_places(self, first: socket.socket) -> None:
        address = first.getsockname()[:2]
        for number in range(1, self._workers + 1):
            place = Place(
                number,
                first if number == 1 else listeners.another(address),
                self._start,
                self._holds,
                self._settings.limits.drain_timeout + ENDS_IN,
                alone=self._nobody_serves,
                ready=self._place_ready,
                ended=self._place_ended,
            )
            self._places.append(place)

    @contextlib.asynccontextmanager
    async def _serving(self, private: socket.socket) -> AsyncIterator[int]:
        """The admin side."""
        server = lifetime.Server(
            lifetime.admin_config(self._settings, self._admin(), lifetime.ADMIN_CONNECTIONS)
        )
        with private:
            task = asyncio.create_task(server.serve(sockets=[private]))
            try:
                yield private.getsockname()[1]
            finally:
                self._live.close()
                server.should_exit = True
                await task

    def _admin(self) -> Starlette:
        own = self._own
        own.measure(process.readings())
        own.measure({("gateway_audit_shared",): lambda: lifetime.is_shared(self._claim)})
        callers = self._settings.callers
        stable = self._settings.credentials.key is not None
        kept = None
        if callers is not None:
            kept = ShownCallers(callers.path, list, time.time, time.monotonic, stable)
        side = admin.build(self._places, self._live, own, kept, self._stopped.is_set)
        side.router.routes += changes.routes(self._reloads.reload, self._reloads.set_mode)
        return side

    def _log_start(self, host: str, port: int, admin_host: str, admin_port: int) -> None:
        lifetime.log_start(self._settings, self._own.digest)
        log.info(
            "listening on %s:%d, admin on %s:%d, forwarding to %s, by %d workers",
            host,
            port,
            admin_host,
            admin_port,
            self._settings.upstream.url,
            self._workers,
        )
        problem = backlog.shortage(self._settings.listen.backlog)
        for warning in [*app.warnings(self._settings), *([problem] if problem else [])]:
            log.warning("%s", warning)

    async def _until(self, event: asyncio.Event, keeping: list[asyncio.Task[None]]) -> None:
        """Until then, or until we are stopped. Raises what kept a worker from being kept."""
        waits = [asyncio.create_task(one.wait()) for one in {event, self._stopped}]
        try:
            await asyncio.wait([*waits, *keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        for task in keeping:
            if task.done():
                task.result()

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        self._stopped.set()
        log.info("stopping: finishing what is in flight")
        for task in self._tasks:
            task.cancel()
        for place in self._places:
            place.stop()
        ending = [*keeping, *(one for place in self._places for one in place.leaving.values())]
        _, late = await asyncio.wait(ending, timeout=self._settings.limits.drain_timeout + ENDS_IN)
        if late:
            for place in self._places:
                place.kill()
            await asyncio.wait(late)

    def _follow_stops(self) -> None:
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            if self._stopped.is_set():
                for place in self._places:
                    place.kill()
                signals.end_by(number)
            self._stopped.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)

    def _follow_hang_ups(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._hang_up()))
        signals.hang_ups_followed()

    def _spawn(self, what: Any) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the workers

    def _start(self, number: int) -> Start:
        return Start(
            number,
            self._workers,
            self._file.path.name,
            self._file.text,
            self._holds(),
            self._key,
        )

    def _holds(self) -> Followed:
        return Followed(self._text, self._modes)

    def _nobody_serves(self) -> bool:
        """Nor did, before all had begun for the first time."""
        return not self._ready.is_set() or not any(one.serves for one in self._places)

    def _place_ready(self, worker: WorkerProcess) -> None:
        log.info("worker %d is ready, as process %d", worker.number, worker.pid)
        if all(one.serves for one in self._places):
            self._ready.set()

    def _place_ended(self) -> None:
        self._counts["gateway_worker_exits_total",] += 1

    # --- the configuration

    def _load(self) -> Settings:
        read = config.read_file(self._file.path)
        settings = config.parse(read.text, os.environ, read.path.name, self._also)
        self._loaded = read.text
        return settings

    async def _follow(self, settings: Settings, rules_differ: bool) -> None:
        if rules_differ:  # else what was loaded last may have been refused
            self._text = self._loaded
        self._modes = _modes(settings)
        self._own.digest = digest(settings)
        self._live.rules = app.shown_rules(settings)
        said = {"followed": msgspec.to_builtins(self._holds()), "rules_differ": rules_differ}
        # At once: one that hangs keeps no other from it. One that begins asks for it before it listens.
        await asyncio.gather(*[self._told(one, said) for one in self._processes() if one.follows])

    async def _told(self, worker: WorkerProcess, said: dict[str, Any]) -> None:
        try:
            await worker.channel.ask("follow", said, FOLLOWS_IN)
        except NoAnswerFromThere as error:
            if not worker.channel.closed:
                log.error("worker %d does not follow (%s): it is killed", worker.number, error)
            worker.kill()

    async def _record(self, lines: list[Line]) -> None:
        """
        On the audit log once, by the worker that answers first: one that hangs could write it down later,
        when another has. Raises Unrecordable.
        """
        for answering in asyncio.as_completed([_answers(place) for place in self._places]):
            place = await answering
            if place is None:
                continue
            # A worker may wait for its log, and then says whether the lines are on it.
            patience = self._settings.audit.timeout + RECORDS_IN
            try:
                problem = await place.ask("record", msgspec.to_builtins(lines), patience)
            except NoAnswerFromThere:
                continue
            if problem is not None:
                raise Unrecordable(problem)
            for line in lines:
                if isinstance(line, ModeChanged):
                    self._live.mode_changed(line)
            return
        raise Unrecordable("no worker is there to record it")

    async def _hang_up(self) -> None:
        for worker in self._processes():
            worker.channel.tell("reopen")  # one that begins finds it before it listens
        await self._reloads.reload("SIGHUP")

    def _processes(self) -> list[WorkerProcess]:
        return [worker for place in self._places for worker in place.processes]


async def _answers(place: Place) -> Place | None:
    try:
        await place.ask("ready")
    except NoAnswerFromThere:
        return None
    return place


def _modes(settings: Settings) -> dict[str, str]:
    return {rule.name: rule.mode for rule in settings.rules}
