"""
config.yaml into frozen values: read once, and every error told at once, with its place.

Nothing here knows how a setting is used. Rules own their settings and so do repairs: they say how these are
checked, and all is checked here, so that all errors come together.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway import paths as templates
from gateway.checks import document, overlay
from gateway.checks.document import Document, Mark
from gateway.checks.known_keys import keys_at, meant, words
from gateway.checks.overlaps import overlaps
from gateway.description import schema_files
from gateway.http.grammar import NEVER_IGNORED, TCHAR
from gateway.repairs.fill import FillSettings
from gateway.rules import Mode, RuleSettings
from gateway.state.address import Address
from gateway.units import Duration, Section, Size, Timeout, at_least_one, checked


class ConfigError(Exception):
    """
    All that is wrong with a configuration: one line an error, each with its place. `elsewhere`: it may lie in
    other files, and the same text be right later.
    """

    def __init__(self, errors: list[str], *, elsewhere: bool = False) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors
        self.elsewhere = elsewhere


class FileIdentity(NamedTuple):
    """By it a file is told from another that was put in its place, and from what it was before."""

    device: int
    inode: int
    changed: int
    size: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


class ConfigFile(NamedTuple):
    """As it was read."""

    path: Path
    text: str
    identity: FileIdentity


def _network(value: str) -> None:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError('expected an address or network such as "10.0.0.0/8"') from error


def _upstream_url(value: str) -> None:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError as error:
        raise ValueError("expected http(s)://host[:port][/prefix]") from error
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
        raise ValueError("expected http(s)://host[:port][/prefix]")
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:.]+", url.hostname):
        raise ValueError("expected a host name in ASCII, or an address")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("expected no user, query or fragment")
    if not re.fullmatch(r"(/[!$&'()*+,;=:@%\w.~-]+)*/?", url.path, re.ASCII):
        raise ValueError("expected a plain path prefix")


def _store_url(value: str) -> None:
    try:
        Address.parse(value)
    except ValueError as error:
        raise ValueError(f"{error} (redis://[user:password@]host[:port][/database])") from error


def _path_prefix(value: str) -> None:
    if not re.fullmatch(r"(/[!$&'()*+,;=:@\w.~-]+)+", value, re.ASCII) or {".", ".."} & {*value.split("/")}:
        raise ValueError("expected a plain path such as /gateway, without a slash at its end")


def _key(value: SecretStr) -> SecretStr:
    """Checked here and not by pydantic's min_length, in whose errors the value would stand."""
    if len(value.get_secret_value().encode()) < LEAST_KEY:
        raise ValueError(
            f"expected a secret of at least {LEAST_KEY} bytes, such as `openssl rand -hex 32` gives"
        )
    return value


def _token(value: SecretStr | None) -> SecretStr | None:
    """An empty one is none, for `${NAME:-}`."""
    secret = "" if value is None else value.get_secret_value()
    if secret and not re.fullmatch(rf"[!-~]{{{LEAST_TOKEN},}}", secret):
        raise ValueError(
            f"expected a secret of at least {LEAST_TOKEN} characters of ASCII without spaces, such as "
            "`openssl rand -hex 32` gives"
        )
    return value if secret else None


# A key that is shorter could be found by trying.
LEAST_KEY = 32
LEAST_TOKEN = 16
LEAST_ROTATED = 64 * 2**10  # bytes: smaller ones would come by the second
SECRETS = {"credentials.key", "admin.token"}  # no error repeats what was given
Count = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
FieldName = Annotated[str, Field(pattern=f"^{TCHAR.decode()}+$")]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class ListenTlsSettings(Section):
    certificate: Annotated[str, Field(min_length=1)]
    """A PEM file, the chain below it too; loaded again when it changes, and on SIGHUP."""
    key: Annotated[str, Field(min_length=1)]
    """The PEM file of its key, without a password."""
    client_ca: Annotated[str, Field(min_length=1)] | None = None
    """A PEM file: a client must show a certificate of these authorities, which counts as a credential."""
    # YAML reads 1.2 as a number.
    min_version: Annotated[Literal["1.2", "1.3"], BeforeValidator(str)] = "1.2"
    """The oldest version of TLS that is spoken."""


class ListenSettings(Section):
    host: str = "127.0.0.1"
    """The address that clients connect to."""
    port: Port = 8080
    """Its port; 0: any that is free."""
    backlog: Count = 4096
    """Clients that may wait to be accepted; `net.core.somaxconn` may allow fewer (the log says so)."""
    trusted_proxies: tuple[Annotated[str, checked(_network)], ...] = ()
    """Networks whose `Forwarded` and `X-Forwarded-*` are believed and added to."""
    path_prefix: Annotated[str, checked(_path_prefix)] | None = None
    """
    Clients call below it ([how](clients.md#below-a-path)): it is taken off before rules are matched and calls
    go on. What lacks it is 404.
    """
    rewrite_replies: bool = False
    """
    `true`: `Location`, and path and domain of `Set-Cookie`, say of the upstream's places where they are for
    clients, with the prefixes.
    """
    tls: ListenTlsSettings | None = None
    """The listener speaks TLS where this section is there."""


class AdminSettings(Section):
    host: str = "127.0.0.1"
    """The address of the live page (`/`), `/healthz`, `/readyz`, `/metrics` and `/counts`."""
    port: Port = 9901
    """Its port."""
    hosts: tuple[Annotated[str, Field(pattern=r"^[^\s/:]+$")], ...] = ()
    """
    Names in a Host field to which the admin side answers, beside addresses, `localhost` and `admin.host`:
    else 421.
    """
    token: Annotated[SecretStr | None, AfterValidator(_token)] = None
    """
    A secret of at least 16 characters that all but the probes asks for (`Authorization: Bearer …`); without
    one, where `admin.host` is no loopback address, only the probes are served.
    """

    @property
    def secret(self) -> str | None:
        return None if self.token is None else self.token.get_secret_value()

    @property
    def reachable(self) -> bool:
        """Whether other machines may reach it."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() != "localhost"


class TlsSettings(Section):
    ca: str | None = None
    """
    A PEM file of the authorities that are trusted, in the place of the system's; verification cannot be
    switched off.
    """
    certificate: str | None = None
    """A PEM file: what the gateway shows the server."""
    key: str | None = None
    """The PEM file of its key, where the certificate's has none."""

    @model_validator(mode="after")
    def _no_key_alone(self) -> TlsSettings:
        if self.key is not None and self.certificate is None:
            raise ValueError("key: expected with the certificate that it belongs to")
        return self


class UpstreamSettings(Section):
    url: Annotated[str, checked(_upstream_url)]
    """The only address anything is ever sent to; may have a path prefix."""
    connect_timeout: Timeout = 2.0
    """For name, connection and TLS together."""
    read_timeout: Timeout = 15.0
    """For a reply's whole head, then without a byte from the upstream."""
    write_timeout: Timeout = 15.0
    """Without a byte that the upstream takes."""
    pool_timeout: Timeout = 1.0
    """For a connection to come free."""
    idle_timeout: Timeout = 4.0
    """Of a kept connection; keep it under the upstream's own."""
    max_lifetime: Timeout = 300.0
    """Of a kept connection."""
    max_connections: Count = 200
    """
    Half of them at most for bodies that are streamed (over 64 KiB, or not whole within 2 s), a quarter of
    that for those of one caller. While calls wait for a connection, as many clients whose replies hold one
    are cut off: who has not kept up for half a second and takes less than 64 KiB a second, the longest first.
    """
    max_pause: Duration = 60.0
    """The longest that a 429 with Retry-After pauses a caller's look-ups."""
    preserve_host: bool = False
    """Send the client's Host instead of the URL's."""
    http2: bool = False
    """Use httpx's HTTP/2 transport."""
    tls: TlsSettings = TlsSettings()
    """For an `https` URL."""

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.url)
        return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


class NamedUpstreamSettings(UpstreamSettings):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    """What rules call it by."""
    hosts: tuple[Annotated[str, Field(pattern=r"^[^\s/:]+$")], ...] = ()
    """The names in a Host field with which it is called; none given: any."""
    path_prefix: Annotated[str, checked(_path_prefix)] | None = None
    """The path below which it is called, behind `listen.path_prefix`; none given: any."""
    strip: bool = True
    """`false`: the upstream gets the path with that prefix, as `/oauth` of a login."""

    @model_validator(mode="after")
    def _called_somehow(self) -> NamedUpstreamSettings:
        if not self.hosts and self.path_prefix is None:
            raise ValueError("path_prefix: expected it or hosts, which say what is for this upstream")
        return self

    @property
    def places(self) -> set[tuple[str, str]]:
        """Host and prefix of what is for it."""
        return {(host.lower(), self.path_prefix or "") for host in self.hosts or ("",)}


class StateCacheSettings(Section):
    max_entries: Count = 10_000
    """Readings kept."""
    max_bytes: Size = 64 * 2**20
    """What they may need of memory."""


class StoreSettings(Section):
    url: Annotated[str, Field(repr=False), checked(_store_url)]
    """
    A Redis or Valkey server for the state that several gateways share:
    `redis://[user:password@]host[:port][/database]`, `redis+sentinel://host:port,host:port/name`,
    `redis+cluster://host:port,host:port`, each also as `rediss` with TLS, or `unix:///path`.
    `maxmemory-policy` has to be `noeviction`. Needs `credentials.key`.
    """
    on_failure: Literal["reject", "isolate"] = "reject"
    """
    While it can't be asked calls that need a fill are 503, and all others go on. `isolate`: each fill has a
    GET of its own, order holds within this process, and Gateway-Rewrite says `isolated`.
    """
    timeout: Timeout = 0.5
    """For each question to it."""
    max_entries: Count = 1_000_000
    """Readings, accepted values and pauses there, each."""
    tls: TlsSettings = TlsSettings()
    """Files, for `rediss://`."""


class CredentialSettings(Section):
    headers: tuple[FieldName, ...] = ()
    """
    Fields that tell callers apart although they are trace context, request ids or forwarding fields; all
    others do so anyway.
    """
    ignore: tuple[FieldName, ...] = ()
    """
    Fields that do not tell callers apart: name only what can neither authorise nor select. Authorization,
    Cookie and Host are refused.
    """
    query: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """
    Parameters of a call's query that its look-up carries too, such as `access_token`. Without that, a call
    with a credential in its query goes on as it came (`credential-in-query`).
    """
    key: Annotated[SecretStr, AfterValidator(_key)] | None = None
    """
    A secret of at least 32 bytes: `credential` and `sha256` on the audit log are then the same in every
    process and after a restart; without it each process makes its own.
    """
    application: tuple[FieldName, ...] = ()
    """
    Fields in which a client names its application, for the report, as it says; without one, the claim of a
    token that is a JWT. What they hold is written down and shown: name no credential.
    """

    @model_validator(mode="after")
    def _nothing_ignored_that_authenticates(self) -> CredentialSettings:
        counted = {name.lower() for name in self.headers}
        errors = []
        for i, name in enumerate(self.ignore):
            if name.lower().encode() in NEVER_IGNORED:
                errors.append(f"ignore[{i}]: expected no field that says who calls or whom, got {name!r}")
            elif name.lower() in counted:
                errors.append(f"ignore[{i}]: expected no field that credentials.headers names, got {name!r}")
        errors += [
            f"application[{i}]: expected a field that may be shown, got {name!r}, which says who calls"
            for i, name in enumerate(self.application)
            if name.lower().encode() in NEVER_IGNORED or name.lower() in counted
        ]
        if errors:
            raise ValueError("\n".join(errors))
        return self


class AuditSettings(Section):
    path: Annotated[str, Field(min_length=1)] = "rewrites.jsonl"
    """A file, or `-` for standard output."""
    sync: Literal["never", "always"] = "never"
    """
    `always`: a rewrite leaves only once its line is synced to the disk (fdatasync), one sync for all that
    wait.
    """
    timeout: Timeout = 0.25
    """
    How long a pipe, or with `always` the disk, may take for the lines; then the log counts as unwritable.
    """
    rotate: Annotated[Size, Field(ge=LEAST_ROTATED)] | None = None
    """
    From this size on the gateway rotates the file itself ([how](operations.md#rotating-the-audit-log)); at
    least 64KiB.
    """
    keep: Count = 10
    """How many rotated files are kept."""
    compress: bool = False
    """`true`: rotated files but the newest are compressed with gzip."""

    @model_validator(mode="after")
    def _a_file_where_it_is_rotated(self) -> AuditSettings:
        if self.rotate is not None and self.path == "-":
            raise ValueError("rotate: expected a file as audit.path, got standard output")
        return self


class LogSettings(Section):
    format: Literal["text", "json"] = "text"
    """
    The log goes to standard error: `text`, coloured on a terminal unless `NO_COLOR` is set, or `json`, one
    object a line.
    """
    level: Literal["debug", "info", "warning", "error"] = "info"
    """At `debug` each matched call that was not rewritten has a line too."""
    rewrites: bool = True
    """One line for each rewrite, at `info`."""
    access: Annotated[str, Field(min_length=1)] = "none"
    """
    A file, or `-` for standard output: one line for each request, whichever serves it. SIGHUP reopens it;
    lines that nobody takes in time are dropped and counted.
    """
    access_format: Literal["json", "combined"] = "json"
    """`combined` is as Apache and nginx write it."""


class CallersSettings(Section):
    path: Annotated[str, Field(min_length=1)] = "callers.sqlite3"
    """An SQLite file."""
    max: Count = 10_000
    """Callers in it at most."""


class LimitSettings(Section):
    max_body: Size = 2**20
    """Of a matched call, also decoded; of a look-up's reply."""
    max_write: Size = 32 * 2**20
    """
    Of a write that no rule fills: past `max_body` it waits in a temporary file (`TMPDIR`; 16 at a time, 4 of
    one caller) until it is whole, past this it is 413.
    """
    max_buffered: Size = 256 * 2**20
    """
    Bodies and large replies that wait in memory, in all calls together; one caller has a quarter of it (or
    `max_body`): then 503, and nothing was sent. What clients do not take of their replies may be half of it.
    """
    max_head: Size = 32 * 2**10
    """Of a request's head: else 431."""
    max_headers: Count = 100
    """Fields in it: else 431."""
    max_target: Size = 8 * 2**10
    """Of a request's target: else 414."""
    max_connections: Count = 20_000
    """
    Clients: past it 503 at once, with Retry-After. Where the process may not open as many files there are
    fewer, and the log says so.
    """
    max_in_flight: Count = 1_000
    """
    Calls in flight: past it 503 at once, with Retry-After; a caller that has less than a tenth of the places
    finds a tenth more. A call whose body is waited for is not in flight; of those there may be four times as
    many beside.
    """
    overload_pause: Duration = 0.5
    """
    For how long a client that was refused past `max_in_flight` is not read; longer where very many were.
    `0s`: it is read at once.
    """
    head_timeout: Timeout = 10.0
    """For a whole head."""
    body_timeout: Timeout = 10.0
    """Between two pieces of a body."""
    upload_timeout: Timeout = 60.0
    """In which a body that waits in a temporary file (`max_write`) has to be whole: else 408."""
    write_timeout: Timeout = 60.0
    """Without the client taking a byte."""
    min_rate: Size = 500
    """
    What a client has to give or take in a second, on average over each 10 s in which it is waited for: else
    408, or the connection is cut. A reply that is not read at all ends by this, before `write_timeout`. 0:
    any.
    """
    keep_alive: Timeout = 60.0
    """Of idle client connections."""
    lock_timeout: Timeout = 5.0
    """Waiting for the conversation's lock: else 503, nothing was sent."""
    unnamed_write_rate: Count = 2
    """
    Writes a second of one credential that name no conversation: each makes the gateway forget all that was
    read. More wait, for `lock_timeout` at most, then 503, nothing was sent.
    """
    deadline: Timeout = 15.0
    """Of a matched call, from arrival to the head of its reply: else 504."""
    drain_timeout: Timeout = 30.0
    """Finishing what is in flight after SIGTERM."""
    tunnel_idle: Timeout = 300.0
    """Of a WebSocket on which neither side speaks."""
    max_tunnels: Count | None = None
    """
    WebSockets and other upgrades at a time, of those a quarter for one client (address and credential): past
    either 503, nothing was sent. None given: a quarter of `upstream.max_connections`.
    """


def _collector(value: str) -> None:
    try:
        url = urlsplit(value)
        usable = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable or url.username or url.password or url.query or url.fragment:
        raise ValueError("expected http(s)://host[:port][/prefix]")


class TracingSettings(Section):
    """What is not given here, the OTEL_* variables of OpenTelemetry's SDK say."""

    exporter: Literal["otlp", "none"] = "otlp"
    """OTLP over HTTP; `none`: as without the section."""
    endpoint: Annotated[str, checked(_collector)] | None = None
    """
    The collector, such as `http://collector:4318`, to which `/v1/traces` is added; without it
    OTEL_EXPORTER_OTLP_ENDPOINT, else localhost.
    """
    sample: Annotated[float, Field(ge=0, le=1)] | None = None
    """
    The share of the traces that begin here, 0 to 1; without it OTEL_TRACES_SAMPLER, else all. What a client
    began is sampled as it says.
    """


class CorsSettings(Section):
    origins: Annotated[tuple[Origin, ...], AfterValidator(at_least_one)]
    """`https://name[:port]`, or `"*"`."""
    methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    """What a page may use."""
    headers: tuple[str, ...] = ("*",)
    """Fields that it may send; `*`: any."""
    credentials: bool = False
    """Whether it may send cookies; with named origins only."""
    max_age: Duration = 600.0
    """How long the answer holds."""

    @model_validator(mode="after")
    def _no_credentials_for_everybody(self) -> CorsSettings:
        if self.credentials and "*" in self.origins:
            raise ValueError('credentials: expected named origins, not "*"')
        return self


def _same_host(one: tuple[str, int], other: tuple[str, int]) -> bool:
    return (one[0].lower().rstrip("."), one[1]) == (other[0].lower().rstrip("."), other[1])


def _same_address(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether both are surely the same, or one is every address of the machine and the other its own."""
    if one[1] != other[1] or one[1] == 0:
        return False
    hosts = {"127.0.0.1" if host.lower() == "localhost" else host.lower() for host in (one[0], other[0])}
    return len(hosts) == 1 or any(
        every in hosts and hosts <= own
        for every, own in (("0.0.0.0", {"0.0.0.0", "127.0.0.1"}), ("::", {"::", "::1"}))
    )


class Settings(Section):
    listen: ListenSettings = ListenSettings()
    """Where clients connect."""
    admin: AdminSettings = AdminSettings()
    """The operator's side."""
    upstream: UpstreamSettings
    """The API that is called."""
    upstreams: tuple[NamedUpstreamSettings, ...] = ()
    """Others behind the same listener, each with rules, a cache, locks and connections of its own."""
    state_cache: StateCacheSettings = StateCacheSettings()
    """What was looked up, in memory."""
    store: StoreSettings | None = None
    """Where this section is there the state lies on a Redis or Valkey server, for several gateways."""
    credentials: CredentialSettings = CredentialSettings()
    """What tells callers apart. Nothing has to be set for callers to be safe from each other."""
    audit: AuditSettings = AuditSettings()
    """The log of every rewrite."""
    log: LogSettings = LogSettings()
    """What the process says, and the access log."""
    callers: CallersSettings | None = None
    """
    Who calls and what they need is written down, for `gateway report`, where this section is there, also an
    empty one; the shipped file has it.
    """
    limits: LimitSettings = LimitSettings()
    """What one client, and all together, may take."""
    cors: CorsSettings | None = None
    """Where this section is there preflights are answered here; without it they pass."""
    tracing: TracingSettings | None = None
    """
    Where this section is there each call has a span, sent to a collector; needs the extra:
    `pip install 'gateway[otel]'`.
    """
    mode: Mode = "enforce"
    """The mode of all rules that have none of their own."""
    rules: tuple[RuleSettings, ...] = ()
    """
    Which calls are repaired, and how. The rule with the most specific path counts, and of equals the first.
    """
    environments: dict[str, dict[str, Any]] = Field(default={})
    """
    By name, what is laid over all else where `--env` or GATEWAY_ENV names it ([how](promotion.md)): sections
    key by key, `rules` by their names, other lists as a whole.
    """

    @field_validator("rules")
    @classmethod
    def _in_the_mode_for_all(
        cls, rules: tuple[RuleSettings, ...], info: ValidationInfo
    ) -> tuple[RuleSettings, ...]:
        mode = info.data.get("mode", "enforce")
        return tuple(
            rule if "mode" in rule.model_fields_set else rule.model_copy(update={"mode": mode})
            for rule in rules
        )

    @model_validator(mode="after")
    def _rules_that_can_be_told_apart(self) -> Settings:
        errors: list[str] = []
        names: set[str] = set()
        known = {one.name for one in self.upstreams}
        tables: dict[str | None, templates.Routes[str]] = defaultdict(templates.Routes)
        for i, rule in enumerate(self.rules):
            if rule.upstream is not None and rule.upstream not in known:
                hint = meant(rule.upstream, known)
                errors.append(f"rules[{i}].upstream: expected one of upstreams, got {rule.upstream!r}{hint}")
            if rule.name in names:
                errors.append(f"rules[{i}].name: expected different names, got {rule.name!r} again")
            names.add(rule.name)
            if not tables[rule.upstream].add(rule.match.method, templates.parse(rule.match.path), rule.name):
                errors.append(f"rules[{i}].match.path: can never match: earlier rules take all of it")
            half = self.limits.deadline / 2
            errors += [
                f"rules[{i}].repairs[{j}].lookup_timeout: expected {half:g}s at most, half of limits.deadline"
                for j, repair in enumerate(rule.repairs)
                if isinstance(repair, FillSettings)
                and "lookup_timeout" in repair.model_fields_set
                and repair.lookup_timeout > half
            ]
        if errors:
            raise ValueError("\n".join(errors))
        return self

    @model_validator(mode="after")
    def _upstreams_that_can_be_told_apart(self) -> Settings:
        errors: list[str] = []
        names: set[str] = set()
        places: set[tuple[str, str]] = set()
        for i, one in enumerate(self.upstreams):
            if one.name in names:
                errors.append(f"upstreams[{i}].name: expected different names, got {one.name!r} again")
            if places & one.places:
                errors.append(f"upstreams[{i}]: expected another host or prefix: an earlier one has the same")
            names.add(one.name)
            places |= one.places
        # What passes one by would be a write that the other's cache and locks do not know of (S3, S4).
        repaired = {rule.upstream for rule in self.rules}
        known: list[tuple[str | None, tuple[str, int]]] = [(None, self.upstream.address)]
        for i, other in enumerate(self.upstreams):
            errors += [
                f"upstreams[{i}].url: expected another address than that of {name or 'upstream'}: there are "
                "rules for one of them, whose locks the other does not know"
                for name, address in known
                if repaired & {name, other.name} and _same_host(address, other.address)
            ]
            known.append((other.name, other.address))
        if errors:
            raise ValueError("\n".join(errors))
        return self

    @model_validator(mode="after")
    def _addresses_that_differ(self) -> Settings:
        listen, admin = (self.listen.host, self.listen.port), (self.admin.host, self.admin.port)
        upstreams = {"upstream": self.upstream}
        upstreams |= {f"upstreams[{i}]": one for i, one in enumerate(self.upstreams)}
        errors = []
        if _same_address(listen, admin):
            errors.append("admin.port: expected another port than that of listen")
        errors += [
            f"{place}.url: expected the API, got the gateway's own address (that of {name})"
            for place, upstream in upstreams.items()
            for name, address in (("listen", listen), ("admin", admin))
            if _same_address(address, upstream.address)
        ]
        if errors:
            raise ValueError("\n".join(errors))
        return self

    @model_validator(mode="after")
    def _one_name_for_a_caller(self) -> Settings:
        if self.store is not None and self.credentials.key is None:
            raise ValueError(
                "credentials.key: required with store, and the same for all gateways that share it, such as "
                "`openssl rand -hex 32` gives"
            )
        return self

    def rules_of(self, upstream: str | None) -> tuple[RuleSettings, ...]:
        """Those for one of `upstreams`, or for `upstream`."""
        return tuple(rule for rule in self.rules if rule.upstream == upstream)

    def warnings(self) -> list[str]:
        """What is allowed but should be known: said by `gateway check` and at start-up."""
        warnings = [] if self.rules else ["rules: none, every call is passed through as it came"]
        warnings += [
            f"rules.{rule.name}: {warning}"
            for rule in self.rules
            for repair in rule.repairs
            for warning in repair.warnings()
        ]
        for name in (None, *(one.name for one in self.upstreams)):
            rules = self.rules_of(name)
            for one in overlaps([(rule.match.method, templates.parse(rule.match.path)) for rule in rules]):
                why = "is more specific" if one.more_specific else "stands earlier"
                warnings.append(
                    f"rules.{rules[one.loser].name}: some of its paths are those of "
                    f"rules.{rules[one.winner].name} too, which {why} and takes them"
                )
        if self.admin.reachable and self.admin.token is None:
            warnings.append(
                f"admin.token: not set, and other machines reach admin.host {self.admin.host}: only /healthz "
                "and /readyz are served"
            )
        return warnings


class Problem(NamedTuple):
    """`path`: the setting, such as `rules[0].mode`. `of_key`: it is the key itself that is wrong."""

    path: str
    message: str
    of_key: bool = False


_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")
_UNFIT = re.compile("[\0\ud800-\udfff]")


def _expanded(
    value: Any, environment: Mapping[str, str], place: str, errors: list[Problem], given: dict[str, str]
) -> Any:
    """
    Variables are replaced in the scalars, after YAML is parsed, so that no value can add structure. `given`
    gets the places that one was given for, with its name.
    """
    if isinstance(value, dict):
        return {
            key: _expanded(item, environment, f"{place}.{key}" if place else str(key), errors, given)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_expanded(one, environment, f"{place}[{i}]", errors, given) for i, one in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name is None:
            errors.append(Problem(place, "expected ${NAME} or ${NAME:-default}"))
            return ""
        text = environment.get(name) or default
        if environment.get(name):
            given[place] = name
        if text is None:
            errors.append(Problem(place, f"the environment variable {name} is not set and has no default"))
            return ""
        return text

    text = _VARIABLE.sub(variable, value)
    if _UNFIT.search(text):
        errors.append(Problem(place, "expected text without NUL and surrogates"))
    return text


# A check over a whole section names the key within it.
_INNER = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)*): ")


def _places(error: Any) -> list[Problem]:
    """pydantic's location as `rules[0].repairs[2].max_age`."""
    path, before = "", ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        # Right after `repairs[2]` pydantic names the type of the repair, which is no place in the file.
        elif not (before == "repairs" and path.endswith("]")):
            path += f".{part}" if path else part
        before = part if isinstance(part, str) else before
    message, given = error["msg"].removeprefix("Value error, "), error["input"]
    if error["type"] == "extra_forbidden":
        hint = meant(str(error["loc"][-1]), keys_at(_schema(), error["loc"][:-1]))
        return [Problem(path, f"unknown key{hint}", of_key=True)]
    if error["type"] == "missing":
        message = "required, but not given"
    elif error["type"] == "value_error" and _INNER.match(message):
        inner = [_INNER.match(line) for line in message.split("\n")]
        return [
            Problem(f"{path}.{found[1]}" if path else found[1], found.string[found.end() :])
            for found in inner
            if found
        ]
    elif not _SECRET.search(path) and not isinstance(given, dict | list | tuple):
        # A password in a URL, or a credential in its query, is refused but not repeated.
        shown = re.sub(r"(://[^?#]*)[?#].*", r"\1?…", re.sub(r"//.*@", "//…@", repr(given)))
        message += f", got {shown[:200]}{_hint(error, given)}"
    elif error["type"] == "union_tag_invalid":
        message += meant(str(error["ctx"]["tag"]), words(error["ctx"]["expected_tags"]))
    return [Problem(path, " ".join(message.split()))]


_SECRET = re.compile(r"(?:^|\.)(?:key|tokens?|passwords?|secrets?|headers\.[^.]*)(?:\[\d+\])?$")


def _hint(error: Any, given: Any) -> str:
    """What was probably meant."""
    if isinstance(given, bool) and error["type"] in {"literal_error", "string_type"}:
        return ": YAML reads on, yes and true (off, no and false) as a truth value; quote a word that is one"
    if error["type"] == "literal_error":
        return meant(str(given), words(error["ctx"]["expected"]))
    if error["type"] == "string_pattern_mismatch":
        for text in (given.upper(), given.lower()):
            if re.search(error["ctx"]["pattern"], text):
                return f"; did you mean {text!r}?"
    return ""


@cache
def _schema() -> dict[str, Any]:
    return Settings.model_json_schema(by_alias=True)


def _line(problem: Problem, name: str, read: Document) -> str:
    """One error as it is told: the file, line and column, the setting, in which rule."""
    at = read.mark(problem.path, problem.of_key)
    found = re.match(r"rules\[(\d+)\]", problem.path)
    rule: Any = None
    if found and isinstance(read.data["rules"], list):
        rule = read.data["rules"][int(found[1])]
    known = rule.get("name") if isinstance(rule, dict) else None
    named = f" (rule {known!r})" if isinstance(known, str) else ""
    place = f"{problem.path}{named}: " if problem.path else ""
    return f"{_at(name, at)}: {place}{problem.message}"


def _at(name: str, mark: Mark | None) -> str:
    return f"{name}:{mark.line}:{mark.column}" if mark else name


# What the environment says where the file says nothing: so the image works with a file of one's own.
FROM_ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "GATEWAY_HOST": ("listen", "host"),
    "GATEWAY_PORT": ("listen", "port"),
    "GATEWAY_ADMIN_HOST": ("admin", "host"),
    "GATEWAY_ADMIN_PORT": ("admin", "port"),
    "GATEWAY_ADMIN_TOKEN": ("admin", "token"),
    "GATEWAY_UPSTREAM": ("upstream", "url"),
    "GATEWAY_AUDIT": ("audit", "path"),
    "GATEWAY_CALLERS": ("callers", "path"),
    "GATEWAY_KEY": ("credentials", "key"),
    "GATEWAY_STORE": ("store", "url"),
}


def _completed(
    document: dict[Any, Any], environment: Mapping[str, str], given: dict[str, str]
) -> dict[Any, Any]:
    completed = dict(document)
    for name, (section, key) in FROM_ENVIRONMENT.items():
        there = completed.get(section, {})
        if environment.get(name) and isinstance(there, dict) and key not in there:
            completed[section] = {**there, key: environment[name]}
            given[f"{section}.{key}"] = name
    return completed


def _from(problem: Problem, given: Mapping[str, str]) -> Problem:
    """Whoever set a variable looks for its name."""
    name = given.get(problem.path)
    return problem._replace(message=f"{problem.message} (from {name})") if name else problem


# What more has to be right once the rest is: settings, and what is wrong with each.
Also = Callable[[Settings], Iterable[tuple[str, str]]]


def nothing_more(settings: Settings) -> Iterable[tuple[str, str]]:
    return ()


def parse(
    text: str,
    environment: Mapping[str, str],
    name: str = "config.yaml",
    also: Also = nothing_more,
    place: str | None = None,
) -> Settings:
    """
    `place`: which of its environments; without one GATEWAY_ENV says it, and an empty one is none. Raises
    ConfigError with every error there is.
    """
    return _parsed(Settings, text, environment, name, also, lambda whole: whole, place)


class _AdminAlone(Section):
    admin: AdminSettings = AdminSettings()


def load_admin(path: Path, environment: Mapping[str, str] = os.environ) -> AdminSettings:
    """
    Where the gateway's admin side is: what else the file says may be wrong, or need variables that are only
    set where the gateway runs. Raises ConfigError.
    """

    def admin(whole: dict[Any, Any]) -> dict[Any, Any]:
        return {key: value for key, value in whole.items() if key == "admin"}

    return _parsed(_AdminAlone, read_file(path).text, environment, path.name, lambda _: (), admin).admin


Parsed = TypeVar("Parsed", bound=Section)


def _parsed(
    model: type[Parsed],
    text: str,
    environment: Mapping[str, str],
    name: str,
    also: Callable[[Parsed], Iterable[tuple[str, str]]],
    wanted: Callable[[dict[Any, Any]], dict[Any, Any]],
    place: str | None = None,
) -> Parsed:
    """`wanted` are the sections of a document that the model has."""
    errors: list[Problem] = []
    given: dict[str, str] = {}
    elsewhere = False

    def read_schema(reference: str) -> Any:
        nonlocal elsewhere
        elsewhere = True
        return schema_files.read(reference)

    try:
        read = document.read(text)
        read = overlay.chosen(read, (environment.get("GATEWAY_ENV") if place is None else place) or None)
        whole = wanted(read.data) if isinstance(read.data, dict) else read.data
        expanded = _expanded(whole, environment, "", errors, given)
    except document.Unreadable as error:
        raise ConfigError([f"{_at(name, mark)}: {message}" for mark, message in error.errors]) from error
    except overlay.NoSuchEnvironment as error:
        raise ConfigError([f"{_at(name, read.mark(error.place))}: {error.place}: {error.message}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{name}: nested too deeply"]) from error
    if not isinstance(expanded, dict):
        raise ConfigError([f"{name}: expected a mapping with upstream and rules"])
    try:
        settings = model.model_validate(
            wanted(_completed(expanded, environment, given)), context={"read_schema": read_schema}
        )
    except ValidationError as error:
        known = {place.path for place in errors}
        errors += [place for one in error.errors() for place in _places(one) if place.path not in known]
    else:
        if not errors:
            errors = [Problem(*one) for one in also(settings)]
            elsewhere = True
    if errors:
        raise ConfigError([_line(_from(one, given), name, read) for one in errors], elsewhere=elsewhere)
    return settings


def load(
    path: Path,
    environment: Mapping[str, str] = os.environ,
    also: Also = nothing_more,
    place: str | None = None,
) -> Settings:
    return parse(read_file(path).text, environment, path.name, also, place)


def read_file(path: Path) -> ConfigFile:
    """Raises ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            # Before it is read: what changes meanwhile is another.
            identity = FileIdentity.of(os.fstat(file.fileno()))
            # Not more than what is refused anyway, however long the file is.
            content = file.read(document.MOST_BYTES + 1)
        # A last character that is cut in two is beyond what is allowed too.
        text = content.decode("utf-8-sig", "strict" if len(content) <= document.MOST_BYTES else "replace")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"{path}: cannot be read: {error}"], elsewhere=isinstance(error, OSError)
        ) from error
    return ConfigFile(path, text, identity)
