"""
One upstream and all that is kept apart for it: its rules, look-ups, store, locks, callers, connections.

What calls to several upstreams share is the client's side, and what is told of all (Common).
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.admin.call_metrics import counted
from gateway.admin.metrics import Counts, Gauge, Histograms, MetricKey, UpstreamCounts, of_upstream
from gateway.admin.troubles import OF_THE_UPSTREAM, Answers, Troubles
from gateway.audit.finished_call import Observer
from gateway.audit.watched_bodies import WatchedBodies
from gateway.audit.writer import AuditLog
from gateway.config import NamedUpstreamSettings, Settings, UpstreamSettings
from gateway.errors import GatewayError
from gateway.http.destinations import MAIN
from gateway.http.forwarding import Hop
from gateway.http.grammar import imitations
from gateway.proxy.buffered import BufferBudget
from gateway.proxy.lifecycle import Lifecycle
from gateway.proxy.passthrough import Passthrough, UploadSlots
from gateway.proxy.phases import Phases
from gateway.proxy.shadow_checks import ShadowChecks
from gateway.proxy.spool import Spools
from gateway.proxy.tunnel import TunnelSlots
from gateway.repairs.fill import FillSettings
from gateway.rules import Rules
from gateway.server.limits import ServerStats
from gateway.state.applications import Applications
from gateway.state.credentials import CredentialFingerprints
from gateway.state.layered_locks import LayeredLocks
from gateway.state.locks import MemoryLocks
from gateway.state.lookup import Lookups
from gateway.state.memory import MemoryStore, Sizes
from gateway.state.shared import SharedState, shared_state
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """
    What all upstreams share. `key`: from which others are `derived`. `hold_patience`: seconds in which a
    small reply has to be whole.
    """

    settings: Settings
    parts: Parts
    key: bytes
    clock: Callable[[], float]
    wall: Callable[[], float]
    counts: Counts
    histograms: Histograms
    audit: AuditLog
    stats: ServerStats
    budget: BufferBudget
    spools: Spools
    bodies: WatchedBodies
    observers: Sequence[Observer]
    hold_patience: float
    tracing: Tracing | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """`name`: MAIN, or that of one of `upstreams`. `shared`: its state, where other processes share it."""

    name: str
    url: str
    lifecycle: Lifecycle
    lookups: Lookups
    store: Store
    locks: Locks
    shared: SharedState | None
    credentials: CredentialFingerprints
    transport: Transport
    troubles: Troubles

    def follow(self, settings: Settings) -> None:
        """Calls that come from now on go by the rules of these settings."""
        if self.shared is not None:
            self.shared.server.settles(_longest_settle(settings))
        self.lifecycle.follow(rules_of(settings, self.name))

    async def close(self) -> None:
        """What calls need is closed; the store after that, which they may tell something when cut off."""
        await self.lifecycle.close()
        await self.lookups.close()
        self.transport.close()
        await self.transport.wait_closed()
        if self.shared is not None:
            await self.shared.locks.close()
        await self.store.close()

    def gauges(self) -> dict[MetricKey, Gauge]:
        """What can be measured: httpx does not tell of its pool, nor a store elsewhere of its tables."""
        transport, store = self.transport, self.store
        found: dict[MetricKey, Gauge] = {("gateway_locked_conversations",): lambda: len(self.locks)}
        if isinstance(transport, Pool):
            found["gateway_upstream_connections", "idle"] = lambda: transport.idle
            found["gateway_upstream_connections", "open"] = lambda: transport.size
            found["gateway_upstream_waiting",] = lambda: transport.waiting
        if isinstance(store, MemoryStore):
            found["gateway_store_bytes",] = lambda: store.bytes
            for number, table in enumerate(Sizes._fields):
                found["gateway_store_entries", table] = partial(_size, store, number)
        return {_of(self.name, key): gauge for key, gauge in found.items()}

    def tell_of_store(self, counts: Counter[MetricKey]) -> None:
        """When the store can't be asked, and when it can again: then it is told what it missed."""
        if self.shared is None:
            return
        server, locks = self.shared.server, self.shared.locks

        def turned(problem: str | None) -> None:
            if problem is not None:
                log.error("the store at %s can't be asked about %s: %s", server.address, self.url, problem)
            else:
                log.info("the store at %s is asked about %s again", server.address, self.url)

        def alone() -> None:
            counts["gateway_store_failures_total",] += 1

        server.on_turn = turned
        locks.on_alone = alone
        locks.after_writes(self.lookups.is_untold, self.lookups.make_up)
        server.on_swept.append(self.lookups.swept)


def backend(
    common: Common,
    to: UpstreamSettings,
    transport: Transport,
    *,
    store: Store | None = None,
    shared: SharedState | None = None,
) -> Backend:
    """`transport` leads there. Its state is in `store`, or `shared`, or where the settings say."""
    settings, parts, histograms, stats = common.settings, common.parts, common.histograms, common.stats
    limits = settings.limits
    name = to.name if isinstance(to, NamedUpstreamSettings) else MAIN
    counts = common.counts if name == MAIN else UpstreamCounts(common.counts, name)
    if store is None and shared is None:
        shared = _shared_of(common, to)
    locks: Locks
    if shared is not None:
        store, locks = shared.store, shared.locks
    else:
        kept = settings.state_cache
        store = store or parts.memory(kept.max_entries, kept.max_bytes, common.clock)
        locks = parts.locks(limits.lock_timeout)
    if isinstance(locks, MemoryLocks | LayeredLocks):
        locks.on_waited = histograms[_of(name, ("gateway_lock_wait_seconds",))].observe
    credentials = _credentials(common, to)
    lookups = _lookups(common, name, to, transport, store, credentials, counts)
    troubles = _troubles(common, name, to, transport, counts)
    lookups.on_pause = troubles.paused

    def refused(error: GatewayError, address: str) -> None:
        if type(error) in OF_THE_UPSTREAM:
            troubles.refused(error)
            stats.log.tell(error, address)
        else:
            stats.log.refused(error, address)

    made = Backend(
        name=name,
        url=to.url,
        lifecycle=_lifecycle(
            common, name, to, transport, lookups, locks, credentials, shared, counts, refused
        ),
        lookups=lookups,
        store=store,
        locks=locks,
        shared=shared,
        credentials=credentials,
        transport=transport,
        troubles=troubles,
    )
    made.tell_of_store(counts)
    return made


def _credentials(common: Common, to: UpstreamSettings) -> CredentialFingerprints:
    settings = common.settings.credentials
    return common.parts.credentials(
        to.url, settings.headers, settings.ignore, settings.query, key=derived(common.key, "credentials")
    )


def _lookups(
    common: Common,
    name: str,
    to: UpstreamSettings,
    transport: Transport,
    store: Store,
    credentials: CredentialFingerprints,
    counts: Counter[MetricKey],
) -> Lookups:
    settings, histograms = common.settings, common.histograms
    limits = settings.limits

    def timed(ended: str, seconds: float) -> None:
        histograms[_of(name, ("gateway_lookup_duration_seconds", ended))].observe(seconds)

    return common.parts.lookups(
        store,
        _carrier(transport, settings, to, common.tracing, "lookup"),
        wall=common.wall,
        counts=counts,
        max_body=limits.max_body,
        max_pause=to.max_pause,
        sweeps=SweepRate(limits.unnamed_write_rate, limits.lock_timeout, common.clock),
        budget=common.budget,
        ignored=credentials.ignored,
        isolates=_isolates(settings),
        timed=timed,
    )


def _troubles(
    common: Common, name: str, to: UpstreamSettings, transport: Transport, counts: Counter[MetricKey]
) -> Troubles:
    stats = common.stats

    def refusals() -> int:
        """For overload, which is of all together: the first tells of it."""
        if name != MAIN:
            return 0
        return stats.refused["overloaded"] + counts["gateway_refusals_total", "overloaded"]

    return common.parts.troubles(
        to.url,
        common.clock,
        refusals=refusals,
        held_back=lambda: counts["gateway_lookups_total", "held_back"],
        answers=transport if isinstance(transport, Answers) else None,
    )


def _isolates(settings: Settings) -> bool:
    return settings.store is not None and settings.store.on_failure == "isolate"


def _of(name: str, key: MetricKey) -> MetricKey:
    return key if name == MAIN else of_upstream(key, name)


def rules_of(settings: Settings, name: str) -> Rules:
    return Rules(settings.rules_of(None if name == MAIN else name), settings.limits.max_body)


def derived(key: bytes, purpose: str) -> bytes:
    """A key for one purpose alone: what is made with it tells nothing about what is made with another."""
    return hmac.digest(key, purpose.encode(), "sha256")


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


def _longest_settle(settings: Settings) -> float:
    repairs = (repair for rule in settings.rules for repair in rule.repairs)
    return max((one.settle for one in repairs if isinstance(one, FillSettings)), default=0.0)


def _shared_of(common: Common, to: UpstreamSettings) -> SharedState | None:
    settings = common.settings
    where, limits = settings.store, settings.limits
    if where is None:
        return None
    encrypted = where.url.startswith("rediss")
    return shared_state(
        where.url,
        key=derived(common.key, "store"),
        deployment=to.url,
        tls=tls_context(where.tls.ca, where.tls.certificate, where.tls.key) if encrypted else None,
        timeout=where.timeout,
        settle=_longest_settle(settings),
        max_entries=where.max_entries,
        max_remembered=settings.state_cache.max_bytes,
        lock_timeout=limits.lock_timeout,
        in_flight=limits.deadline,
    )


def _carrier(
    transport: Transport, settings: Settings, to: UpstreamSettings, tracing: Tracing | None, phase: str
) -> Transport:
    if settings.listen.rewrite_replies:
        prefix = settings.listen.path_prefix or ""
        if isinstance(to, NamedUpstreamSettings) and to.strip:
            prefix += to.path_prefix or ""
        transport = RelocatedReplies(transport, to.url, prefix.encode())
    if tracing is None:
        return transport
    from gateway.tracing.transport import TracedTransport

    return TracedTransport(transport, tracing.tracer, to.url, phase)


def _kind_of_lifecycle(settings: Settings, tracing: Tracing | None) -> Callable[..., Lifecycle]:
    if tracing is None:
        return Lifecycle
    from gateway.tracing.calls import TracedLifecycle

    return partial(TracedLifecycle, tracing.tracer, "http" if settings.listen.tls is None else "https")


def _lifecycle(
    common: Common,
    name: str,
    to: UpstreamSettings,
    transport: Transport,
    lookups: Lookups,
    locks: Locks,
    credentials: CredentialFingerprints,
    shared: SharedState | None,
    counts: Counter[MetricKey],
    refused: Callable[[GatewayError, str], None],
) -> Lifecycle:
    settings, clock = common.settings, common.clock
    limits = settings.limits
    carrier = _carrier(transport, settings, to, common.tracing, "forward")
    hop = Hop(
        host=None if to.preserve_host else urlsplit(to.url).netloc.encode(),
        # A pseudonym (RFC 9110 section 7.6.3), with a comment that tells this process from its like.
        via=b"gateway (%s)" % secrets.token_hex(4).encode(),
        trusted=tuple(ipaddress.ip_network(network) for network in settings.listen.trusted_proxies),
        imitated=imitations(header.lower().encode() for header in settings.credentials.headers),
        scheme=b"http" if settings.listen.tls is None else b"https",
    )
    passthrough = Passthrough(
        lookups=lookups,
        locks=locks,
        upstream=carrier,
        uploads=UploadSlots(max(1, to.max_connections // 2), to.pool_timeout),
        spools=common.spools,
        tunnels=TunnelSlots(limits.max_tunnels or max(1, to.max_connections // 4)),
        credentials=credentials,
        max_body=limits.max_body,
        tunnel_idle=limits.tunnel_idle,
    )
    phases = Phases(
        lookups=lookups,
        locks=locks,
        upstream=carrier,
        audit=common.audit,
        clock=clock,
        counts=counts,
        lookup_deadline=limits.deadline / 2,  # the call itself is to have the rest
        bodies=common.bodies,
        entrance=None if shared is None else shared.locks,
        isolates=_isolates(settings),
    )
    return _kind_of_lifecycle(settings, common.tracing)(
        rules=rules_of(settings, name),
        phases=phases,
        passthrough=passthrough,
        lookups=lookups,
        audit=common.audit,
        credentials=credentials,
        applications=Applications(settings.credentials.application),
        hop=hop,
        clock=clock,
        counts=counts,
        log_refusal=refused,
        budget=common.budget,
        max_body=limits.max_body,
        deadline=limits.deadline,
        # httpx wants asyncio's own tasks, and so does a trace, whose calls have contexts.
        direct=isinstance(carrier, Pool),
        counted=counted(common.counts, common.histograms),
        shadow_checks=ShadowChecks(lookups, locks, clock, counts),
        observers=common.observers,
        hold_patience=common.hold_patience,
        unmatched="none" if name == MAIN else f"none.{name}",
    )


def _size(store: MemoryStore, table: int) -> float:
    return store.sizes()[table]
