"""
From checked settings to a process that serves until it is told to stop: its log, its listeners, its signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from gateway import __version__, app
from gateway.admin import changes
from gateway.admin.access import admitting
from gateway.admin.console import Console
from gateway.admin.hosts import guarded
from gateway.admin.line_writer import LineWriter
from gateway.admin.log_lines import JsonLines, LineHandler, TextLines
from gateway.admin.metrics import Gauge, MetricKey
from gateway.audit.claim import Claim
from gateway.audit.configurations import ConfigurationInForce
from gateway.audit.finished_call import Observer
from gateway.config import (
    AuditSettings,
    ConfigFile,
    LogSettings,
    Settings,
)
from gateway.errors import StoreUnavailable
from gateway.http.head_shapes import HeadShapes
from gateway.process import signals
from gateway.process.reloads import Reloads, watched
from gateway.promotion.effect import digest
from gateway.server import backlog, connection, descriptors
from gateway.server.descriptors import Shares
from gateway.server.limits import ServerLimits, ServerStats
from gateway.server.tls import TlsListener

log = logging.getLogger("gateway")

ADMIN_CONNECTIONS = 64  # at once; past it who has said nothing longest makes room

QUIET: dict[str, Any] = {
    "lifespan": "off",
    "ws": "none",
    "interface": "asgi3",
    "access_log": False,
    "log_config": None,
    "server_header": False,
    "date_header": False,
    # uvicorn would believe X-Forwarded-For from 127.0.0.1: whom to believe is forwarding.py's to say.
    "proxy_headers": False,
}


class Listening(NamedTuple):
    port: int
    admin_port: int


def server_gauges(state: ServerState, stats: ServerStats) -> dict[MetricKey, Gauge]:
    return {
        ("gateway_client_connections",): lambda: len(state.connections),
        ("gateway_requests_in_flight",): lambda: stats.in_flight,
        ("gateway_bodies_awaited",): lambda: stats.awaiting,
        ("gateway_clients_held_back",): lambda: len(stats.held_back),
        ("gateway_replies_stalled",): lambda: len(stats.stalled),
    }


def downstream_limits(settings: Settings, **changes: Any) -> ServerLimits:
    names = {field.name for field in fields(ServerLimits)}
    return ServerLimits(**(settings.limits.model_dump(include=names) | changes))


def wanted_shares(settings: Settings) -> Shares:
    return Shares(
        clients=settings.limits.max_connections,
        lingering=ServerLimits().max_lingering,
        upstream=sum(one.max_connections for one in (settings.upstream, *settings.upstreams)),
        admin=ADMIN_CONNECTIONS,
    )


def fitted(settings: Settings, available: int) -> tuple[Settings, Shares, str | None]:
    """What can be had with so many file descriptors, and what to say where that is less than was asked."""
    wanted = wanted_shares(settings)
    has = descriptors.shared(wanted, available)
    limits = settings.limits.model_copy(update={"max_connections": has.clients})
    upstream, *others = [
        one.model_copy(
            update={"max_connections": max(1, one.max_connections * has.upstream // wanted.upstream)}
        )
        for one in (settings.upstream, *settings.upstreams)
    ]
    fits = settings.model_copy(update={"limits": limits, "upstream": upstream, "upstreams": tuple(others)})
    return fits, has, descriptors.shortage(wanted, has, available)


def admin_config(settings: Settings, side: Starlette, connections: int) -> uvicorn.Config:
    """An edge of its own: whoever reaches the port can't take what the operator needs."""
    admin = settings.admin
    names = {admin.host.lower(), *(host.lower() for host in admin.hosts)}
    admitted = admitting(cast(Any, side), admin.secret, admin.reachable)
    limits = ServerLimits(
        max_connections=connections,
        max_in_flight=ADMIN_CONNECTIONS,
        max_lingering=8,
        makes_room=True,
        head_timeout=5.0,
        keep_alive=15.0,
        write_timeout=10.0,
    )
    return uvicorn.Config(
        cast(Any, guarded(admitted, names)),
        http=connection.build(limits, ServerStats()),
        timeout_graceful_shutdown=1,
        backlog=ADMIN_CONNECTIONS,
        **QUIET,
    )


def bind(name: str, host: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise app.CannotListen(
            f"{name}: cannot listen on {host}:{port}: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def claimed(settings: AuditSettings) -> Iterator[Claim]:
    """
    The audit log is this gateway's until the block ends, for all processes that it starts. Where another has
    it, that is told; a log that both rotate is refused: each would delete what the other keeps.
    Raises LogInUse.
    """
    claim = Claim(settings.path)
    if not claim.take():
        path = os.path.abspath(settings.path)
        if claim.holder is None:
            log.warning(
                "audit.path: whether another gateway writes to %s cannot be told: %s", path, claim.problem
            )
        elif settings.rotate is not None:
            raise LogInUse(
                f"audit.path: {path} is written by another gateway ({claim.holder}), and audit.rotate is "
                "set: stop that one, or give this one a log of its own"
            )
        else:
            log.error(
                "audit.path: %s is written by another gateway too (%s): counts and reports are of both. Stop "
                "that one, or give this one a log of its own",
                path,
                claim.holder,
            )
    try:
        yield claim
    finally:
        claim.end()


def is_shared(claim: Claim) -> float:
    """As it is by now: the other may have ended."""
    return float(not claim.take() and claim.holder is not None)


class LogInUse(Exception):
    """Another gateway writes to the audit log, and this one may not."""


class Server(uvicorn.Server):
    """uvicorn's server under our signals: its own would end the process by the signal, not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    gateway: app.Gateway,
    shares: Shares | None = None,
    inherited: socket.socket | None = None,
) -> AsyncIterator[Listening]:
    """
    Both listeners, until the block ends: then what is in flight is finished, within the drain timeout. With
    one that is `inherited` there is no admin side: who gave it has that.
    """
    limits, shares = settings.limits, shares or wanted_shares(settings)
    downstream = downstream_limits(settings, max_lingering=shares.lingering)
    with contextlib.ExitStack() as bound:
        public = bound.enter_context(
            inherited or bind("listen", settings.listen.host, settings.listen.port, settings.listen.backlog)
        )
        private = None
        if inherited is None:
            private = bound.enter_context(
                bind("admin", settings.admin.host, settings.admin.port, ADMIN_CONNECTIONS)
            )
        plain = connection.build(downstream, gateway.stats, HeadShapes())
        shown = gateway.certificates
        server = Server(
            uvicorn.Config(
                cast(Any, gateway.app),
                http=plain if shown is None else cast(Any, TlsListener(plain, shown)),
                timeout_graceful_shutdown=math.ceil(limits.drain_timeout),
                backlog=settings.listen.backlog,  # it listens once more, with its own
                **QUIET,
            )
        )
        gateway.metrics.measure(server_gauges(server.server_state, gateway.stats))
        serving = asyncio.create_task(server.serve(sockets=[public]))
        side = Server(admin_config(settings, gateway.admin, shares.admin))
        beside = None if private is None else asyncio.create_task(side.serve(sockets=[private]))
        watching = None if shown is None else asyncio.create_task(shown.watch())
        admin_port = 0 if private is None else private.getsockname()[1]
        try:
            yield Listening(public.getsockname()[1], admin_port)
        finally:
            if watching is not None:
                watching.cancel()
            # Readiness turns first: the admin side answers until the last call is done.
            gateway.draining.set()
            server.should_exit = True
            await serving
            gateway.live.close()
            side.should_exit = True
            if beside is not None:
                await beside
            await gateway.close()


@contextlib.contextmanager
def logging_to(file: int, settings: LogSettings) -> Iterator[Sequence[Observer]]:
    """The process's log goes to this file descriptor until the block ends. Gives who tells of calls."""
    lines = LineWriter(file=file, told=_tell_of_dropped)
    as_json = settings.format == "json"
    colours = not as_json and os.isatty(file) and not os.environ.get("NO_COLOR")
    handler = LineHandler(lines.write, JsonLines() if as_json else TextLines(colours))
    root, level = logging.getLogger(), getattr(logging, settings.level.upper())
    root.addHandler(handler)
    root.setLevel(level)
    # httpcore tells of each step of each connection below WARNING.
    for name in ("uvicorn", "httpcore", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    console = Console(lines.write, time.time, as_json=as_json, colours=colours, others=level <= logging.DEBUG)
    try:
        yield [console] if settings.rewrites and level <= logging.INFO else []
    finally:
        root.removeHandler(handler)
        lines.close()


def _tell_of_dropped(problem: str | None, dropped: int) -> None:
    if problem is None and dropped:
        log.warning("%d lines of this log were dropped: nobody took them in time", dropped)


def log_start(settings: Settings, in_force: str) -> None:
    """What an operator wants to know of the process that just began."""
    log.info("gateway %s: %d rules, configuration %s", __version__, len(settings.rules), in_force)
    for rule in settings.rules:
        log.info("rule %s: %s: %s %s", rule.name, rule.mode, rule.match.method, rule.match.path)
    audit, limits = settings.audit, settings.limits
    where = "standard output" if audit.path == "-" else os.path.abspath(audit.path)
    if audit.rotate is not None:
        where += f", rotated at {audit.rotate} bytes, {audit.keep} kept"
    log.info("audit log: %s (sync: %s); access log: %s", where, audit.sync, settings.log.access)
    log.info(
        "limits: max_body %d bytes, max_in_flight %d, max_connections %d, deadline %g s; upstream "
        "max_connections %d, read_timeout %g s",
        limits.max_body,
        limits.max_in_flight,
        limits.max_connections,
        limits.deadline,
        settings.upstream.max_connections,
        settings.upstream.read_timeout,
    )


def keep_what_is_there() -> None:
    """It stays: it is not to be looked through again, a few ms each time, among the calls."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


async def run(settings: Settings, load: Callable[[], Settings], watch: ConfigFile | None = None) -> None:
    """As `serve_until_stopped`, with the log on standard error. Raises LogInUse."""
    with logging_to(2, settings.log) as observers, claimed(settings.audit) as claim:
        await serve_until_stopped(settings, load, watch, observers, claim)


async def serve_until_stopped(
    settings: Settings,
    load: Callable[[], Settings],
    watch: ConfigFile | None,
    observers: Sequence[Observer],
    claim: Claim,
) -> None:
    """
    Until SIGTERM or SIGINT; a second one ends the process at once. SIGHUP reopens the audit log, loads
    the certificate again, and has `load` read the configuration again; `watch` is the file whose changes do,
    as the settings were read from it.
    """
    configured = settings
    settings, shares, too_few = fitted(settings, descriptors.raised())
    gateway = app.build(settings, observers=observers)
    # What is configured, not what of it could be had here.
    gateway.metrics.digest = digest(configured)
    keep_what_is_there()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            signals.end_by(number)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    reloads = Reloads(configured, load, gateway.follow, gateway.record, gateway.counts)
    gateway.admin.router.routes += changes.routes(reloads.reload, reloads.set_mode)
    gateway.live.reload_problem = lambda: reloads.problem
    tasks: set[asyncio.Task[Any]] = set()

    def hang_up() -> None:
        for one in (gateway.reopen(), reloads.reload("SIGHUP")):
            task = loop.create_task(one)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    for warning in app.warnings(settings):
        log.warning("%s", warning)
    gateway.metrics.measure({("gateway_audit_shared",): lambda: is_shared(claim)})
    await gateway.audit.begin()
    for shared in gateway.stores_elsewhere:
        with contextlib.suppress(StoreUnavailable):  # it is on the log, and goes on trying
            await shared.server.connected()
    gateway.audit.append_best_effort(ConfigurationInForce.of(digest(configured), "start"))
    async with running(settings, gateway, shares) as listening:
        log_start(settings, digest(configured))
        log.info(
            "listening on %s:%d, admin on %s:%d, forwarding to %s",
            settings.listen.host,
            listening.port,
            settings.admin.host,
            listening.admin_port,
            ", ".join(one.url for one in (settings.upstream, *settings.upstreams)),
        )
        for problem in (too_few, backlog.shortage(settings.listen.backlog)):
            if problem is not None:
                log.warning("%s", problem)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        signals.hang_ups_followed()
        if watch is not None:
            tasks.add(loop.create_task(watched(watch, reloads)))
        await stopped.wait()
        for task in tasks:
            task.cancel()
        log.info("stopping: finishing what is in flight")
