"""
Wiring: every object is made here, from checked settings.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette

from gateway import __version__
from gateway.admin import health, page_routes, process
from gateway.admin.line_writer import LineWriter
from gateway.admin.live import Live
from gateway.admin.metrics import Counts, Gauge, Histograms, MetricKey, Metrics, WatchedRule
from gateway.admin.shown_callers import ShownCallers
from gateway.audit.callers import Callers
from gateway.audit.callers_file import CallersFile
from gateway.audit.finished_call import Observer
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.rotation import Rotation
from gateway.audit.watched_bodies import WatchedBodies
from gateway.audit.writer import AuditLog, Line
from gateway.backend import PARTS, Backend, Common, Parts, backend, connect, derived
from gateway.checks import preflight
from gateway.config import (
    AuditSettings,
    CorsSettings,
    CredentialSettings,
    LogSettings,
    Settings,
)
from gateway.http.destinations import Destination, Destinations
from gateway.promotion.effect import digest
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.dispatch import Dispatcher
from gateway.proxy.lifecycle import HOLD_PATIENCE, Lifecycle
from gateway.proxy.spool import Spools
from gateway.repairs.fill import FillSettings
from gateway.server import asgi, connection, memory
from gateway.server.access_log import AccessLog
from gateway.server.cors import with_cors
from gateway.server.limits import ServerStats
from gateway.server.stalled_replies import StalledReplies
from gateway.server.tls import Certificates, TlsUnusable
from gateway.server.unsent_replies import UnsentReplies
from gateway.state.shared import SharedServer, SharedState
from gateway.state.store import Store
from gateway.upstream.pool import Pool
from gateway.upstream.transport import Transport

if TYPE_CHECKING:
    from gateway.tracing.export import Tracing

log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """
    All that runs. `backends`: the first is that of `upstream`. `draining` is set when the process is about to
    stop.
    """

    app: connection.App
    backends: tuple[Backend, ...]
    admin: Starlette
    audit: AuditLog
    callers: Callers | None
    spools: Spools
    counts: Counts
    stats: ServerStats
    access: LineWriter | None
    metrics: Metrics
    live: Live
    checks: health.Checks
    degraded: health.Checks  # what it can do without, for a time
    draining: asyncio.Event
    certificates: Certificates | None  # that the listener shows, where it speaks TLS
    tracing: Tracing | None

    @property
    def main(self) -> Backend:
        return self.backends[0]

    @property
    def stores_elsewhere(self) -> list[SharedState]:
        """One for each upstream, where there are any."""
        return [one.shared for one in self.backends if one.shared is not None]

    async def follow(self, settings: Settings, rules_differ: bool) -> None:
        """
        Calls that come from now on go by the rules of these settings. Where these are others but for their
        modes, what was read before is not used: what is a write by them may have passed by unnoticed (S3).
        """
        for one in self.backends:
            one.follow(settings)
        self.metrics.follow(watched_rules(settings))
        self.live.rules = shown_rules(settings)
        if rules_differ:
            self.metrics.digest = digest(settings)
            for one in self.backends:
                await one.lookups.invalidate_after(None)

    async def record(self, lines: Sequence[Line]) -> None:
        """What an operator is about to change, on the audit log and the page. Raises Unrecordable."""
        for line in lines:
            self.audit.append(line)
        if self.audit.waits:
            await self.audit.recorded()
        else:
            self.audit.commit()
        for line in lines:
            if isinstance(line, ModeChanged):
                self.live.mode_changed(line)

    async def reopen(self) -> None:
        """The files that may be others by now: the logs after a rotation, the certificate."""
        self.audit.reopen()
        if self.access is not None:
            self.access.reopen()
        if self.certificates is not None:
            await self.certificates.reload_bounded()

    async def close(self) -> None:
        for one in self.backends:
            await one.close()
        self.spools.close()
        await self.audit.end()
        for one in self.backends:
            one.troubles.close()
        if self.access is not None:
            self.access.close()
        if self.callers is not None:
            await self.callers.end()
        if self.tracing is not None:
            await self.tracing.end()


NO_TRANSPORTS: Final[Mapping[str, Transport]] = {}


def _soon(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


def build(
    settings: Settings,
    *,
    transport: Transport | None = None,
    transports: Mapping[str, Transport] = NO_TRANSPORTS,
    store: Store | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    parts: Parts = PARTS,
    credential_key: bytes | None = None,
    observers: Sequence[Observer] = (),
    hold_patience: float = HOLD_PATIENCE,
    shared: SharedState | None = None,
) -> Gateway:
    """
    `clock` gives seconds that never jump, `wall` Unix seconds. `transport` leads to the upstream,
    `transports` to the others, by their names. The gateway closes the `store`. Gateways with one
    `credential_key` (else that of the settings) have one name for a caller and one digest for a body; without
    one the key lives with this gateway.
    """
    shown = certificates(settings)
    counts, histograms = Counts(), Histograms()
    key = credential_key or _key(settings.credentials) or secrets.token_bytes(32)
    rotation = rotated(settings.audit, wall)
    audit = parts.audit(
        settings.audit.path,
        wall,
        _soon,
        timeout=settings.audit.timeout,
        synced=settings.audit.sync == "always",
        key=derived(key, "audit body"),
        rotation=rotation,
    )
    limits = settings.limits
    carriers = [transport or connect(settings.upstream)]
    carriers += [transports.get(to.name) or connect(to) for to in settings.upstreams]
    # Replies that nobody takes are cut off before they leave bodies without room.
    unsent = UnsentReplies(limits.max_buffered // 2)
    stats = ServerStats(stalled=stalled_replies(carriers, settings.upstream.max_connections), unsent=unsent)
    access = access_lines(settings.log)
    if access is not None:
        stats.access = AccessLog(access.write, wall, settings.log.access_format == "combined")
    budget = BufferBudget(limits.max_buffered, limits.max_body, memory.give_back, lambda: unsent.held)
    spools = parts.spools(max_body=limits.max_body, max_write=limits.max_write, timeout=limits.upload_timeout)
    callers = None
    if settings.callers is not None:
        callers = Callers(CallersFile(settings.callers.path, settings.callers.max), wall, counts)
        observers = [*observers, callers.saw]
    bodies = WatchedBodies()
    live = Live(wall, shown_rules(settings), bodies)
    tracing = traced(settings)
    common = Common(
        settings=settings,
        parts=parts,
        key=key,
        clock=clock,
        wall=wall,
        counts=counts,
        histograms=histograms,
        audit=audit,
        stats=stats,
        budget=budget,
        spools=spools,
        bodies=bodies,
        observers=(*observers, live),
        hold_patience=hold_patience,
        tracing=tracing,
    )
    main = backend(common, settings.upstream, carriers[0], store=store, shared=shared)
    others = [backend(common, *one) for one in zip(settings.upstreams, carriers[1:], strict=True)]
    backends = (main, *others)
    stats.caller_of = main.credentials.caller_of
    stats.log.on_refusal = main.troubles.refused
    audit.on_turn = main.troubles.audit_turned
    audit.on_write = histograms["gateway_audit_write_seconds",].observe
    metrics = exposed(settings, counts, histograms, stats)
    for one in backends:
        metrics.measure(one.gauges())
    metrics.measure({**audit_gauges(audit), **rotation_gauges(rotation)})
    metrics.measure({("gateway_access_lines_lost",): lambda: 0 if access is None else access.lost})
    metrics.measure({("gateway_buffered_bytes",): lambda: budget.held + unsent.held})
    problem = partial(store_problem, [one.shared.server for one in backends if one.shared is not None])
    metrics.measure({("gateway_store_failing",): lambda: float(problem() is not None)})
    draining = asyncio.Event()
    checks: health.Checks = {
        "configuration": lambda: None,
        "audit_log": audit.check,
        "draining": lambda: "the process is about to stop" if draining.is_set() else None,
    }
    degraded: health.Checks = {} if main.shared is None else {"store": problem}
    admin = health.build(checks, metrics, degraded)
    path = None if settings.callers is None else settings.callers.path
    shown_callers = ShownCallers(path, live.callers, wall, clock, settings.credentials.key is not None)
    admin.router.routes += page_routes.routes(live, shown_callers)
    return Gateway(
        app=served(settings, backends, counts, stats),
        backends=backends,
        admin=admin,
        audit=audit,
        callers=callers,
        spools=spools,
        counts=counts,
        stats=stats,
        access=access,
        metrics=metrics,
        live=live,
        checks=checks,
        degraded=degraded,
        draining=draining,
        certificates=shown,
        tracing=tracing,
    )


def served(
    settings: Settings, backends: Sequence[Backend], counts: Counts, stats: ServerStats
) -> connection.App:
    """The lifecycles, behind what chooses between several of them, and what answers for CORS."""
    serving: Lifecycle | Dispatcher = backends[0].lifecycle
    if len(backends) > 1 or settings.listen.path_prefix is not None:
        by_name = {one.name: one.lifecycle for one in backends}
        serving = Dispatcher(destinations(settings), by_name, counts, stats.log.refused)
    return serving if settings.cors is None else answering_cors(serving, settings.cors)


def traced(settings: Settings) -> Tracing | None:
    to = settings.tracing
    if to is None or to.exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    # What it needs is an extra, and takes its time to be loaded.
    from gateway.tracing.export import Tracing

    return Tracing.to(to.endpoint, to.sample)


def destinations(settings: Settings) -> Destinations:
    named = [
        Destination(
            one.name,
            frozenset(host.lower().encode() for host in one.hosts),
            (one.path_prefix or "").encode(),
            one.strip,
        )
        for one in settings.upstreams
    ]
    return Destinations((settings.listen.path_prefix or "").encode(), named)


def tls_files(settings: Settings) -> dict[str, dict[str, str | None]]:
    """By their sections, those that have to be read and to fit before the gateway runs."""
    files = {"upstream.tls": settings.upstream.tls.model_dump()}
    files |= {f"upstreams[{i}].tls": one.tls.model_dump() for i, one in enumerate(settings.upstreams)}
    if settings.store is not None:
        files["store.tls"] = settings.store.tls.model_dump()
    if settings.listen.tls is not None:
        files["listen.tls"] = settings.listen.tls.model_dump(exclude={"min_version"})
    return files


def warnings(settings: Settings) -> list[str]:
    """What is allowed but should be known: said by `gateway check` and at start-up."""
    return [*settings.warnings(), *preflight.warnings(tls_files(settings))]


def store_problem(servers: Sequence[SharedServer]) -> str | None:
    return next((server.problem for server in servers if server.problem is not None), None)


def certificates(settings: Settings) -> Certificates | None:
    """Raises CannotListen."""
    tls = settings.listen.tls
    if tls is None:
        return None
    try:
        return Certificates(tls.certificate, tls.key, tls.client_ca, tls.min_version)
    except TlsUnusable as error:
        raise CannotListen(str(error)) from error


def access_lines(settings: LogSettings) -> LineWriter | None:
    path = settings.access
    if path == "none":
        return None

    def tell(problem: str | None, lost: int) -> None:
        if problem is not None:
            log.error("the access log %s cannot be written: %s", path, problem)
        else:
            log.warning("the access log %s is written again: %d lines were lost", path, lost)

    return LineWriter(None if path == "-" else path, file=1, told=tell)


def shown_rules(settings: Settings) -> list[dict[str, Any]]:
    """As the live page has them."""
    return [
        {
            "name": rule.name,
            "mode": rule.mode,
            "method": rule.match.method,
            "path": rule.match.path,
            "repairs": [
                f"fill {repair.field}" if isinstance(repair, FillSettings) else repair.type
                for repair in rule.repairs
            ],
        }
        for rule in settings.rules
    ]


def exposed(settings: Settings, counts: Counts, histograms: Histograms, stats: ServerStats) -> Metrics:
    """What is counted, with what is known of the process from its start."""
    tallies = {"gateway_refusals_total": stats.refused, "gateway_aborts_total": stats.aborted}
    metrics = Metrics(counts, tallies, histograms)
    metrics.follow(watched_rules(settings))
    metrics.digest = digest(settings)
    metrics.measure(process.readings())
    metrics.measure({("gateway_build_info", __version__, platform.python_version()): lambda: 1})
    metrics.measure({("gateway_workers",): lambda: 1})  # whoever speaks for several adds them up
    return metrics


def stalled_replies(transports: Sequence[Transport], max_connections: int) -> StalledReplies:
    pools = [one for one in transports if isinstance(one, Pool)]
    if isinstance(transports[0], Pool):
        stalled = StalledReplies(lambda: sum(pool.waiting for pool in pools))
    else:
        # httpx does not tell who waits: half of the connections' number is left to stalled replies.
        stalled = StalledReplies(lambda: len(stalled) - max(1, max_connections // 2))
    for pool in pools:
        pool.on_wait = stalled.look
    return stalled


def _key(settings: CredentialSettings) -> bytes | None:
    return None if settings.key is None else settings.key.get_secret_value().encode()


def audit_gauges(audit: AuditLog) -> dict[MetricKey, Gauge]:
    return {
        ("gateway_audit_shared",): lambda: 0,  # the process that claims the log says otherwise
        ("gateway_audit_lines_total",): lambda: audit.written,
        ("gateway_audit_lines_lost_total",): lambda: audit.lost_in_all,
        ("gateway_audit_failures_total",): lambda: audit.failures,
        ("gateway_audit_failing",): lambda: float(audit.problem is not None),
    }


def rotated(settings: AuditSettings, wall: Callable[[], float]) -> Rotation | None:
    if settings.rotate is None:
        return None
    return Rotation(
        settings.path,
        settings.rotate,
        settings.keep,
        settings.compress,
        wall,
        synced=settings.sync == "always",
    )


def rotation_gauges(rotation: Rotation | None) -> dict[MetricKey, Gauge]:
    if rotation is None:
        return {("gateway_audit_rotated_files",): lambda: 0}
    return {
        ("gateway_audit_rotations_total",): lambda: rotation.rotated,
        ("gateway_audit_rotation_failures_total",): lambda: rotation.failures,
        ("gateway_audit_compression_failures_total",): lambda: rotation.compression_failures,
        ("gateway_audit_rotated_files",): rotation.files,
    }


def watched_rules(settings: Settings) -> list[WatchedRule]:
    return [
        WatchedRule(rule.name, rule.match.method, rule.mode, tuple(repair.type for repair in rule.repairs))
        for rule in settings.rules
    ]


def answering_cors(served: Lifecycle | Dispatcher, settings: CorsSettings) -> asgi.AsgiApp:
    return with_cors(
        asgi.application(served.serve),
        origins=settings.origins,
        methods=settings.methods,
        headers=settings.headers,
        credentials=settings.credentials,
        max_age=settings.max_age,
    )


class CannotListen(Exception):
    """An address that can't be bound, with the setting that names it."""
