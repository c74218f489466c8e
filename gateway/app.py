"""
Wiring: every object is made here, from checked settings.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette

from gateway import __version__
from gateway.admin import call_metrics, health, page_routes, process
from gateway.admin.line_writer import LineWriter
from gateway.admin.live import Live
from gateway.admin.metrics import Counts, Gauge, Histograms, MetricKey, Metrics, WatchedRule
from gateway.admin.shown_callers import ShownCallers
from gateway.admin.troubles import OF_THE_UPSTREAM, Answers, Troubles
from gateway.audit.callers import Callers
from gateway.audit.callers_file import CallersFile
from gateway.audit.finished_call import CallCounter, Observer
from gateway.audit.mode_changes import ModeChanged
from gateway.audit.rotation import Rotation
from gateway.audit.watched_bodies import WatchedBodies
from gateway.audit.writer import AuditLog, Line
from gateway.checks import preflight
from gateway.config import (
    AuditSettings,
    CorsSettings,
    CredentialSettings,
    LogSettings,
    NamedUpstreamSettings,
    Settings,
    UpstreamSettings,
)
from gateway.errors import GatewayError
from gateway.http.destinations import MAIN, Destination, Destinations
from gateway.http.forwarding import Hop
from gateway.http.grammar import imitations
from gateway.promotion.effect import digest
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.dispatch import Dispatcher
from gateway.proxy.lifecycle import HOLD_PATIENCE, Lifecycle
from gateway.proxy.passthrough import Passthrough, UploadSlots
from gateway.proxy.phases import Phases
from gateway.proxy.shadow_checks import ShadowChecks
from gateway.proxy.spool import Spools
from gateway.proxy.tunnel import TunnelSlots
from gateway.repairs.fill import FillSettings
from gateway.rules import Rules
from gateway.server import asgi, connection, memory
from gateway.server.access_log import AccessLog
from gateway.server.cors import with_cors
from gateway.server.limits import ServerStats
from gateway.server.stalled_replies import StalledReplies
from gateway.server.tls import Certificates, TlsUnusable
from gateway.server.unsent_replies import UnsentReplies
from gateway.state.applications import Applications
from gateway.state.credentials import CredentialFingerprints
from gateway.state.locks import MemoryLocks
from gateway.state.lookup import Lookups
from gateway.state.memory import MemoryStore, Sizes
from gateway.state.shared import SharedServer, SharedState, shared_state
from gateway.state.store import Locks, Store
from gateway.state.sweeps import SweepRate
from gateway.upstream.connect import tls_context
from gateway.upstream.connection import Timeouts
from gateway.upstream.pool import Pool, PoolLimits
from gateway.upstream.relocated_replies import RelocatedReplies
from gateway.upstream.transport import Transport

if TYPE_CHECKING:
    from gateway.tracing.export import Tracing

log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What one of `upstreams` has of its own."""

    name: str
    lifecycle: Lifecycle
    lookups: Lookups
    store: Store
    locks: Locks
    shared: SharedState | None
    transport: Transport
    troubles: Troubles

    async def close(self) -> None:
        await self.lifecycle.close()
        await self.lookups.close()
        self.transport.close()
        await self.transport.wait_closed()
        if self.shared is not None:
            await self.shared.locks.close()
        self.troubles.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """All that runs. `draining` is set when the process is about to stop."""

    app: connection.App
    lifecycle: Lifecycle
    admin: Starlette
    lookups: Lookups
    store: Store
    locks: Locks
    shared: SharedState | None  # with other processes
    audit: AuditLog
    callers: Callers | None
    transport: Transport
    spools: Spools
    counts: Counts
    stats: ServerStats
    access: LineWriter | None
    troubles: Troubles
    metrics: Metrics
    live: Live
    checks: health.Checks
    degraded: health.Checks  # what it can do without, for a time
    draining: asyncio.Event
    beside: tuple[Beside, ...]  # what the other upstreams have of their own
    certificates: Certificates | None  # that the listener shows, where it speaks TLS
    tracing: Tracing | None

    @property
    def stores_elsewhere(self) -> list[SharedState]:
        """One for each upstream, where there are any."""
        every = (self.shared, *(one.shared for one in self.beside))
        return [shared for shared in every if shared is not None]

    async def follow(self, settings: Settings, rules_differ: bool) -> None:
        """
        Calls that come from now on go by the rules of these settings. Where these are others but for their
        modes, what was read before is not used: what is a write by them may have passed by unnoticed (S3).
        """
        self.lifecycle.follow(Rules(settings.rules_of(None), settings.limits.max_body))
        for one in self.beside:
            one.lifecycle.follow(Rules(settings.rules_of(one.name), settings.limits.max_body))
        self.metrics.follow(watched_rules(settings))
        if rules_differ:
            self.metrics.digest = digest(settings)
        self.live.rules = shown_rules(settings)
        if rules_differ:
            await self.lookups.invalidate_after(None)
            for one in self.beside:
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
        await self.lifecycle.close()
        await self.lookups.close()
        self.transport.close()
        await self.transport.wait_closed()
        for one in self.beside:
            await one.close()
        self.spools.close()
        if self.shared is not None:
            await self.shared.locks.close()
        await self.store.close()  # calls that were cut off may have had to tell it something until now
        for one in self.beside:
            await one.store.close()
        await self.audit.end()
        self.troubles.close()
        if self.access is not None:
            self.access.close()
        if self.callers is not None:
            await self.callers.end()
        if self.tracing is not None:
            await self.tracing.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The classes of the parts that keep the promises: a test hands in one that breaks them."""

    audit: Callable[..., AuditLog] = AuditLog
    credentials: type[CredentialFingerprints] = CredentialFingerprints
    locks: Callable[[float], Locks] = MemoryLocks
    lookups: type[Lookups] = Lookups
    memory: Callable[[int, int, Callable[[], float]], Store] = MemoryStore
    spools: Callable[..., Spools] = Spools
    troubles: Callable[..., Troubles] = Troubles


PARTS = Parts()
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
    transport = transport or connect(settings.upstream)
    tracing = traced(settings)
    limits = settings.limits
    if store is None and shared is None:
        shared = shared_by(settings, key, settings.upstream)
    locks: Locks
    if shared is not None:
        store, locks = shared.store, shared.locks
    else:
        store = store or parts.memory(settings.state_cache.max_entries, settings.state_cache.max_bytes, clock)
        locks = parts.locks(limits.lock_timeout)
    credentials = parts.credentials(
        settings.upstream.url,
        settings.credentials.headers,
        settings.credentials.ignore,
        settings.credentials.query,
        key=derived(key, "credentials"),
    )
    # Replies that nobody takes are cut off before they leave bodies without room.
    unsent = UnsentReplies(limits.max_buffered // 2)
    stalled = stalled_replies(transport, settings.upstream.max_connections)
    stats = ServerStats(stalled=stalled, unsent=unsent, caller_of=credentials.caller_of)
    access = access_lines(settings.log)
    if access is not None:
        stats.access = AccessLog(access.write, wall, settings.log.access_format == "combined")
    budget = BufferBudget(limits.max_buffered, limits.max_body, memory.give_back, lambda: unsent.held)
    lookups = parts.lookups(
        store,
        _carrier(transport, settings, tracing, "lookup"),
        wall=wall,
        counts=counts,
        max_body=limits.max_body,
        max_pause=settings.upstream.max_pause,
        sweeps=SweepRate(limits.unnamed_write_rate, limits.lock_timeout, clock),
        budget=budget,
        ignored=credentials.ignored,
        timed=lambda ended, seconds: histograms["gateway_lookup_duration_seconds", ended].observe(seconds),
    )
    spools = parts.spools(max_body=limits.max_body, max_write=limits.max_write, timeout=limits.upload_timeout)
    callers = None
    if settings.callers is not None:
        callers = Callers(CallersFile(settings.callers.path, settings.callers.max), wall, counts)
        observers = [*observers, callers.saw]
    refused = stats.log.refused
    bodies = WatchedBodies()
    live = Live(wall, shown_rules(settings), bodies)
    lifecycle = _lifecycle(
        settings,
        lookups,
        locks,
        _carrier(transport, settings, tracing, "forward"),
        credentials,
        audit,
        clock,
        counts,
        refused,
        budget,
        spools,
        call_metrics.counted(counts, histograms),
        (*observers, live),
        hold_patience,
        tracing,
        bodies,
        shared,
    )
    troubles = watched_parts(parts, settings, clock, stats, counts, transport, lookups, audit)

    def other(to: NamedUpstreamSettings) -> Beside:
        """As all of the above, for another upstream: what calls to several share is the client's side."""
        own = settings.model_copy(update={"upstream": to, "rules": settings.rules_of(to.name)})
        carrier = transports.get(to.name) or connect(to)
        with_others = shared_by(settings, key, to)
        kept: Store
        turns: Locks
        if with_others is not None:
            kept, turns = with_others.store, with_others.locks
        else:
            kept = parts.memory(settings.state_cache.max_entries, settings.state_cache.max_bytes, clock)
            turns = parts.locks(limits.lock_timeout)
        callers_there = parts.credentials(
            to.url,
            settings.credentials.headers,
            settings.credentials.ignore,
            settings.credentials.query,
            key=derived(key, "credentials"),
        )
        readings = parts.lookups(
            kept,
            _carrier(carrier, own, tracing, "lookup"),
            wall=wall,
            counts=counts,
            max_body=limits.max_body,
            max_pause=to.max_pause,
            sweeps=SweepRate(limits.unnamed_write_rate, limits.lock_timeout, clock),
            budget=budget,
            ignored=callers_there.ignored,
            timed=lambda ended, seconds: histograms["gateway_lookup_duration_seconds", ended].observe(
                seconds
            ),
        )
        told = parts.troubles(
            to.url,
            clock,
            refusals=lambda: 0,
            held_back=lambda: 0,
            answers=carrier if isinstance(carrier, Answers) else None,
        )
        readings.on_pause = told.paused
        if isinstance(carrier, Pool):
            carrier.on_wait = stalled.look
        if isinstance(turns, MemoryLocks):
            turns.on_waited = histograms["gateway_lock_wait_seconds",].observe

        def refused_there(error: GatewayError, address: str) -> None:
            if type(error) in OF_THE_UPSTREAM:
                told.refused(error)
                stats.log.tell(error, address)
            else:
                refused(error, address)

        served = _lifecycle(
            own,
            readings,
            turns,
            _carrier(carrier, own, tracing, "forward"),
            callers_there,
            audit,
            clock,
            counts,
            refused_there,
            budget,
            spools,
            call_metrics.counted(counts, histograms),
            (*observers, live),
            hold_patience,
            tracing,
            bodies,
            with_others,
        )
        return Beside(
            name=to.name,
            lifecycle=served,
            lookups=readings,
            store=kept,
            locks=turns,
            shared=with_others,
            transport=carrier,
            troubles=told,
        )

    beside = tuple(other(to) for to in settings.upstreams)
    served: Lifecycle | Dispatcher = lifecycle
    if beside or settings.listen.path_prefix is not None:
        by_name = {MAIN: lifecycle} | {one.name: one.lifecycle for one in beside}
        served = Dispatcher(destinations(settings), by_name, counts, refused)
    pools = [one for one in (transport, *(one.transport for one in beside)) if isinstance(one, Pool)]
    if isinstance(transport, Pool):
        stalled.wanted = lambda: sum(pool.waiting for pool in pools)
    metrics = exposed(settings, counts, histograms, stats)
    audit.on_write = histograms["gateway_audit_write_seconds",].observe
    if isinstance(locks, MemoryLocks):
        locks.on_waited = histograms["gateway_lock_wait_seconds",].observe
    metrics.measure(audit_gauges(audit))
    metrics.measure({("gateway_store_failing",): lambda: 0.0})
    metrics.measure(gauges(MAIN, transport, store, locks))
    for one in beside:
        metrics.measure(gauges(one.name, one.transport, one.store, one.locks))
    metrics.measure({**rotation_gauges(rotation), ("gateway_audit_shared",): lambda: 0})
    metrics.measure({("gateway_access_lines_lost",): lambda: 0 if access is None else access.lost})
    metrics.measure({("gateway_buffered_bytes",): lambda: budget.held + unsent.held})
    degraded: health.Checks = {}
    elsewhere = [(settings.upstream, shared, lookups)]
    elsewhere += [(to, one.shared, one.lookups) for to, one in zip(settings.upstreams, beside, strict=True)]
    servers = [tell_of(state, asked, counts, to.url) for to, state, asked in elsewhere if state is not None]
    if servers:
        problem = partial(problem_of, servers)
        metrics.measure({("gateway_store_failing",): lambda: float(problem() is not None)})
        degraded = {"store": problem}
    draining = asyncio.Event()
    checks: health.Checks = {
        "configuration": lambda: None,
        "audit_log": audit.check,
        "draining": lambda: "the process is about to stop" if draining.is_set() else None,
    }
    admin = health.build(checks, metrics, degraded)
    path = None if settings.callers is None else settings.callers.path
    shown_callers = ShownCallers(path, live.callers, wall, clock, settings.credentials.key is not None)
    admin.router.routes += page_routes.routes(live, shown_callers)
    return Gateway(
        lifecycle=lifecycle,
        app=served if settings.cors is None else answering_cors(served, settings.cors),
        admin=admin,
        lookups=lookups,
        store=store,
        locks=locks,
        shared=shared,
        audit=audit,
        callers=callers,
        transport=transport,
        spools=spools,
        counts=counts,
        stats=stats,
        access=access,
        troubles=troubles,
        metrics=metrics,
        live=live,
        checks=checks,
        degraded=degraded,
        beside=beside,
        draining=draining,
        certificates=shown,
        tracing=tracing,
    )


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


def _carrier(transport: Transport, settings: Settings, tracing: Tracing | None, phase: str) -> Transport:
    if settings.listen.rewrite_replies:
        to, prefix = settings.upstream, settings.listen.path_prefix or ""
        if isinstance(to, NamedUpstreamSettings) and to.strip:
            prefix += to.path_prefix or ""
        transport = RelocatedReplies(transport, to.url, prefix.encode())
    if tracing is None:
        return transport
    from gateway.tracing.transport import TracedTransport

    return TracedTransport(transport, tracing.tracer, settings.upstream.url, phase)


def _kind_of_lifecycle(settings: Settings, tracing: Tracing | None) -> Callable[..., Lifecycle]:
    if tracing is None:
        return Lifecycle
    from gateway.tracing.calls import TracedLifecycle

    return partial(TracedLifecycle, tracing.tracer, "http" if settings.listen.tls is None else "https")


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


def shared_by(settings: Settings, key: bytes, upstream: UpstreamSettings) -> SharedState | None:
    """What processes with these settings share of one upstream, where they say where it is."""
    to, limits = settings.store, settings.limits
    if to is None:
        return None
    settles = (
        repair.settle
        for rule in settings.rules
        for repair in rule.repairs
        if isinstance(repair, FillSettings)
    )
    encrypted = to.url.startswith("rediss")
    return shared_state(
        to.url,
        key=derived(key, "store"),
        deployment=upstream.url,
        tls=tls_context(to.tls.ca, to.tls.certificate, to.tls.key) if encrypted else None,
        timeout=to.timeout,
        settle=max(settles, default=0.0),
        max_entries=to.max_entries,
        max_remembered=settings.state_cache.max_bytes,
        lock_timeout=limits.lock_timeout,
        in_flight=limits.deadline,
    )


def tell_of(shared: SharedState, lookups: Lookups, counts: Counts, upstream: str) -> SharedServer:
    """When the store can't be asked, and when it can again: then it is told what it missed."""
    server, making_up = shared.server, set[asyncio.Task[None]]()

    def turned(problem: str | None) -> None:
        if problem is not None:
            log.error("the store at %s can't be asked about %s: %s", server.address, upstream, problem)
        else:
            log.info("the store at %s is asked about %s again", server.address, upstream)

    def connected() -> None:
        task = asyncio.get_running_loop().create_task(lookups.make_up())
        making_up.add(task)
        task.add_done_callback(making_up.discard)

    def alone() -> None:
        counts["gateway_store_failures_total",] += 1

    server.on_turn = turned
    shared.locks.on_alone = alone
    server.on_swept.append(lookups.swept)
    server.on_connected.append(connected)
    return server


def problem_of(servers: Sequence[SharedServer]) -> str | None:
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


def watched_parts(
    parts: Parts,
    settings: Settings,
    clock: Callable[[], float],
    stats: ServerStats,
    counts: Counts,
    transport: Transport,
    lookups: Lookups,
    audit: AuditLog,
) -> Troubles:
    """The troubles that are told, and what tells of them."""
    troubles = parts.troubles(
        settings.upstream.url,
        clock,
        refusals=lambda: stats.refused["overloaded"] + counts["gateway_refusals_total", "overloaded"],
        held_back=lambda: counts["gateway_lookups_total", "held_back"],
        answers=transport if isinstance(transport, Answers) else None,
    )
    stats.log.on_refusal = troubles.refused
    lookups.on_pause = troubles.paused
    audit.on_turn = troubles.audit_turned
    return troubles


def stalled_replies(transport: Transport, max_connections: int) -> StalledReplies:
    if isinstance(transport, Pool):
        stalled = StalledReplies(lambda: transport.waiting)
        transport.on_wait = stalled.look
    else:
        # httpx does not tell who waits: half of the connections' number is left to stalled replies.
        stalled = StalledReplies(lambda: len(stalled) - max(1, max_connections // 2))
    return stalled


def _key(settings: CredentialSettings) -> bytes | None:
    return None if settings.key is None else settings.key.get_secret_value().encode()


def derived(key: bytes, purpose: str) -> bytes:
    """A key for one purpose alone: what is made with it tells nothing about what is made with another."""
    return hmac.digest(key, purpose.encode(), "sha256")


def _lifecycle(
    settings: Settings,
    lookups: Lookups,
    locks: Locks,
    transport: Transport,
    credentials: CredentialFingerprints,
    audit: AuditLog,
    clock: Callable[[], float],
    counts: Counts,
    log_refusal: Callable[[GatewayError, str], None],
    budget: BufferBudget,
    spools: Spools,
    counted: CallCounter,
    observers: Sequence[Observer],
    hold_patience: float,
    tracing: Tracing | None,
    bodies: WatchedBodies,
    shared: SharedState | None,
) -> Lifecycle:
    limits, to = settings.limits, settings.upstream
    hop = Hop(
        host=None if to.preserve_host else urlsplit(to.url).netloc.encode(),
        # A pseudonym (RFC 9110 section 7.6.3), with a comment that tells this process from its like.
        via=b"gateway (%s)" % secrets.token_hex(4).encode(),
        trusted=tuple(ipaddress.ip_network(network) for network in settings.listen.trusted_proxies),
        imitated=imitations(name.lower().encode() for name in settings.credentials.headers),
        scheme=b"http" if settings.listen.tls is None else b"https",
    )
    name = to.name if isinstance(to, NamedUpstreamSettings) else None
    rules = Rules(settings.rules_of(name), limits.max_body)
    passthrough = Passthrough(
        lookups=lookups,
        locks=locks,
        upstream=transport,
        uploads=UploadSlots(max(1, to.max_connections // 2), to.pool_timeout),
        spools=spools,
        tunnels=TunnelSlots(limits.max_tunnels or max(1, to.max_connections // 4)),
        credentials=credentials,
        max_body=limits.max_body,
        tunnel_idle=limits.tunnel_idle,
    )
    phases = Phases(
        lookups=lookups,
        locks=locks,
        upstream=transport,
        audit=audit,
        clock=clock,
        counts=counts,
        lookup_deadline=limits.deadline / 2,  # the call itself is to have the rest
        bodies=bodies,
        entrance=None if shared is None else shared.locks,
        isolates=settings.store is not None and settings.store.on_failure == "isolate",
    )
    return _kind_of_lifecycle(settings, tracing)(
        rules=rules,
        phases=phases,
        passthrough=passthrough,
        lookups=lookups,
        audit=audit,
        credentials=credentials,
        applications=Applications(settings.credentials.application),
        hop=hop,
        clock=clock,
        counts=counts,
        log_refusal=log_refusal,
        budget=budget,
        max_body=limits.max_body,
        deadline=limits.deadline,
        # httpx wants asyncio's own tasks, and so does a trace, whose calls have contexts.
        direct=isinstance(transport, Pool),
        counted=counted,
        shadow_checks=ShadowChecks(lookups, locks, clock, counts),
        observers=observers,
        hold_patience=hold_patience,
        unmatched="none" if name is None else f"none.{name}",
    )


def audit_gauges(audit: AuditLog) -> dict[MetricKey, Gauge]:
    return {
        ("gateway_audit_lines_total",): lambda: audit.written,
        ("gateway_audit_lines_lost_total",): lambda: audit.lost_in_all,
        ("gateway_audit_failures_total",): lambda: audit.failures,
        ("gateway_audit_failing",): lambda: float(audit.problem is not None),
    }


def gauges(upstream: str, transport: Transport, store: Store, locks: Locks) -> dict[MetricKey, Gauge]:
    """
    What can be measured of what one upstream has of its own: httpx does not tell of its pool, nor a store
    elsewhere of its tables.
    """
    found: dict[MetricKey, Gauge] = {("gateway_locked_conversations", upstream): lambda: len(locks)}
    if isinstance(transport, Pool):
        found["gateway_upstream_connections", upstream, "idle"] = lambda: transport.idle
        found["gateway_upstream_connections", upstream, "open"] = lambda: transport.size
        found["gateway_upstream_waiting", upstream] = lambda: transport.waiting
    if isinstance(store, MemoryStore):
        found["gateway_store_bytes", upstream] = lambda: store.bytes
        for number, table in enumerate(Sizes._fields):
            found["gateway_store_entries", upstream, table] = partial(_size, store, number)
    return found


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


def _size(store: MemoryStore, table: int) -> float:
    return store.sizes()[table]


def answering_cors(served: Lifecycle | Dispatcher, settings: CorsSettings) -> asgi.AsgiApp:
    return with_cors(
        asgi.application(served.serve),
        origins=settings.origins,
        methods=settings.methods,
        headers=settings.headers,
        credentials=settings.credentials,
        max_age=settings.max_age,
    )


def connect(to: UpstreamSettings) -> Transport:
    url = urlsplit(to.url)
    prefix = url.path.rstrip("/").encode()
    tls = tls_context(to.tls.ca, to.tls.certificate, to.tls.key) if url.scheme == "https" else None
    timeouts = Timeouts(
        connect=to.connect_timeout,
        write=to.write_timeout,
        read=to.read_timeout,
        pool=to.pool_timeout,
    )
    limits = PoolLimits(
        max_connections=to.max_connections,
        idle_timeout=to.idle_timeout,
        max_lifetime=to.max_lifetime,
    )
    if to.http2:
        from gateway.upstream.http2 import over_http2  # with httpx: a third of the time that a start takes

        return over_http2(f"{url.scheme}://{url.netloc}", prefix, tls=tls, timeouts=timeouts, limits=limits)
    return Pool(
        url.scheme,
        url.hostname or "",
        url.port or (443 if url.scheme == "https" else 80),
        prefix=prefix,
        tls=tls,
        timeouts=timeouts,
        limits=limits,
    )


class CannotListen(Exception):
    """An address that can't be bound, with the setting that names it."""
