"""
config.yaml into frozen values: read once, and every error told at once, with its place.

Nothing here knows how a setting is used. Rules own their settings and so do repairs: they say how these are
checked, and all is checked here, so that all errors come together.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
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
from gateway.checks import document
from gateway.checks.document import Document, Mark
from gateway.checks.known_keys import keys_at, meant, words
from gateway.checks.overlaps import overlaps
from gateway.http.grammar import NEVER_IGNORED, TCHAR
from gateway.repairs.fill import FillSettings
from gateway.rules import Mode, RuleSettings
from gateway.store_address import Address
from gateway.units import Duration, Section, Size, Timeout, at_least_one, checked


class ConfigError(Exception):
    """All that is wrong with a configuration: one line an error, each with its place."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


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
SECRETS = {"credentials.key", "admin.token"}  # no error repeats what was given
Count = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
FieldName = Annotated[str, Field(pattern=f"^{TCHAR.decode()}+$")]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class ListenTlsSettings(Section):
    certificate: Annotated[str, Field(min_length=1)]
    key: Annotated[str, Field(min_length=1)]
    client_ca: Annotated[str, Field(min_length=1)] | None = None
    # YAML reads 1.2 as a number.
    min_version: Annotated[Literal["1.2", "1.3"], BeforeValidator(str)] = "1.2"


class ListenSettings(Section):
    host: str = "127.0.0.1"
    port: Port = 8080
    backlog: Count = 4096
    trusted_proxies: tuple[Annotated[str, checked(_network)], ...] = ()
    tls: ListenTlsSettings | None = None


class AdminSettings(Section):
    host: str = "127.0.0.1"
    port: Port = 9901
    hosts: tuple[Annotated[str, Field(pattern=r"^[^\s/:]+$")], ...] = ()
    token: Annotated[SecretStr | None, AfterValidator(_token)] = None

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
    certificate: str | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _no_key_alone(self) -> TlsSettings:
        if self.key is not None and self.certificate is None:
            raise ValueError("key: expected with the certificate that it belongs to")
        return self


class UpstreamSettings(Section):
    url: Annotated[str, checked(_upstream_url)]
    connect_timeout: Timeout = 2.0
    read_timeout: Timeout = 15.0
    write_timeout: Timeout = 15.0
    pool_timeout: Timeout = 1.0
    idle_timeout: Timeout = 4.0
    max_lifetime: Timeout = 300.0
    max_connections: Count = 200
    max_pause: Duration = 60.0
    preserve_host: bool = False
    http2: bool = False
    tls: TlsSettings = TlsSettings()


class StateCacheSettings(Section):
    max_entries: Count = 10_000
    max_bytes: Size = 64 * 2**20


class StoreSettings(Section):
    url: Annotated[str, Field(repr=False), checked(_store_url)]
    on_failure: Literal["reject", "isolate"] = "reject"
    timeout: Timeout = 0.5
    max_entries: Count = 1_000_000
    tls: TlsSettings = TlsSettings()


class CredentialSettings(Section):
    headers: tuple[FieldName, ...] = ()
    ignore: tuple[FieldName, ...] = ()
    query: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    key: Annotated[SecretStr, AfterValidator(_key)] | None = None

    @model_validator(mode="after")
    def _nothing_ignored_that_authenticates(self) -> CredentialSettings:
        counted = {name.lower() for name in self.headers}
        errors = []
        for i, name in enumerate(self.ignore):
            if name.lower().encode() in NEVER_IGNORED:
                errors.append(f"ignore[{i}]: expected no field that says who calls or whom, got {name!r}")
            elif name.lower() in counted:
                errors.append(f"ignore[{i}]: expected no field that credentials.headers names, got {name!r}")
        if errors:
            raise ValueError("\n".join(errors))
        return self


class AuditSettings(Section):
    path: Annotated[str, Field(min_length=1)] = "rewrites.jsonl"
    sync: Literal["never", "always"] = "never"
    timeout: Timeout = 0.25


class LogSettings(Section):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    rewrites: bool = True
    access: Annotated[str, Field(min_length=1)] = "none"
    access_format: Literal["json", "combined"] = "json"


class CallersSettings(Section):
    path: Annotated[str, Field(min_length=1)] = "callers.sqlite3"
    max: Count = 10_000


class LimitSettings(Section):
    max_body: Size = 2**20
    max_write: Size = 32 * 2**20
    max_buffered: Size = 256 * 2**20
    max_head: Size = 32 * 2**10
    max_headers: Count = 100
    max_target: Size = 8 * 2**10
    max_connections: Count = 20_000
    max_in_flight: Count = 1_000
    overload_pause: Duration = 0.5
    head_timeout: Timeout = 10.0
    body_timeout: Timeout = 10.0
    upload_timeout: Timeout = 60.0
    write_timeout: Timeout = 60.0
    min_rate: Size = 500
    keep_alive: Timeout = 60.0
    lock_timeout: Timeout = 5.0
    unnamed_write_rate: Count = 2
    deadline: Timeout = 15.0
    drain_timeout: Timeout = 30.0
    tunnel_idle: Timeout = 300.0
    max_tunnels: Count | None = None


class CorsSettings(Section):
    origins: Annotated[tuple[Origin, ...], AfterValidator(at_least_one)]
    methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False
    max_age: Duration = 600.0

    @model_validator(mode="after")
    def _no_credentials_for_everybody(self) -> CorsSettings:
        if self.credentials and "*" in self.origins:
            raise ValueError('credentials: expected named origins, not "*"')
        return self


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
    admin: AdminSettings = AdminSettings()
    upstream: UpstreamSettings
    state_cache: StateCacheSettings = StateCacheSettings()
    store: StoreSettings | None = None
    credentials: CredentialSettings = CredentialSettings()
    audit: AuditSettings = AuditSettings()
    log: LogSettings = LogSettings()
    callers: CallersSettings | None = None
    limits: LimitSettings = LimitSettings()
    cors: CorsSettings | None = None
    mode: Mode = "enforce"
    rules: tuple[RuleSettings, ...] = ()

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
        table: templates.Routes[str] = templates.Routes()
        for i, rule in enumerate(self.rules):
            if rule.name in names:
                errors.append(f"rules[{i}].name: expected different names, got {rule.name!r} again")
            names.add(rule.name)
            if not table.add(rule.match.method, templates.parse(rule.match.path), rule.name):
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
    def _addresses_that_differ(self) -> Settings:
        listen, admin = (self.listen.host, self.listen.port), (self.admin.host, self.admin.port)
        url = urlsplit(self.upstream.url)
        upstream = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        errors = []
        if _same_address(listen, admin):
            errors.append("admin.port: expected another port than that of listen")
        errors += [
            f"upstream.url: expected the API, got the gateway's own address (that of {name})"
            for name, address in (("listen", listen), ("admin", admin))
            if _same_address(address, upstream)
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

    def warnings(self) -> list[str]:
        """What is allowed but should be known: said by `gateway check` and at start-up."""
        warnings = [] if self.rules else ["rules: none, every call is passed through as it came"]
        warnings += [
            f"rules.{rule.name}: {warning}"
            for rule in self.rules
            for repair in rule.repairs
            for warning in repair.warnings()
        ]
        paths = [(rule.match.method, templates.parse(rule.match.path)) for rule in self.rules]
        for one in overlaps(paths):
            why = "is more specific" if one.more_specific else "stands earlier"
            warnings.append(
                f"rules.{self.rules[one.loser].name}: some of its paths are those of "
                f"rules.{self.rules[one.winner].name} too, which {why} and takes them"
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


def _expanded(value: Any, environment: Mapping[str, str], place: str, errors: list[Problem]) -> Any:
    """Variables are replaced in the scalars, after YAML is parsed, so that no value can add structure."""
    if isinstance(value, dict):
        return {
            key: _expanded(item, environment, f"{place}.{key}" if place else str(key), errors)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_expanded(item, environment, f"{place}[{i}]", errors) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name is None:
            errors.append(Problem(place, "expected ${NAME} or ${NAME:-default}"))
            return ""
        text = environment.get(name) or default
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


def _completed(document: dict[Any, Any], environment: Mapping[str, str]) -> dict[Any, Any]:
    completed = dict(document)
    for name, (section, key) in FROM_ENVIRONMENT.items():
        given = completed.get(section, {})
        if environment.get(name) and isinstance(given, dict) and key not in given:
            completed[section] = {**given, key: environment[name]}
    return completed


# What more has to be right once the rest is: settings, and what is wrong with each.
Also = Callable[[Settings], Iterable[tuple[str, str]]]


def nothing_more(settings: Settings) -> Iterable[tuple[str, str]]:
    return ()


def parse(
    text: str,
    environment: Mapping[str, str],
    name: str = "config.yaml",
    also: Also = nothing_more,
) -> Settings:
    """Raises ConfigError with every error there is."""
    errors: list[Problem] = []
    try:
        read = document.read(text)
        expanded = _expanded(read.data, environment, "", errors)
    except document.Unreadable as error:
        raise ConfigError([f"{_at(name, mark)}: {message}" for mark, message in error.errors]) from error
    except RecursionError as error:
        raise ConfigError([f"{name}: nested too deeply"]) from error
    if not isinstance(expanded, dict):
        raise ConfigError([f"{name}: expected a mapping with upstream and rules"])
    try:
        settings = Settings.model_validate(_completed(expanded, environment))
    except ValidationError as error:
        known = {place.path for place in errors}
        errors += [place for one in error.errors() for place in _places(one) if place.path not in known]
    else:
        errors += [Problem(*one) for one in also(settings)] if not errors else []
    if errors:
        raise ConfigError([_line(one, name, read) for one in errors])
    return settings


def load(
    path: Path,
    environment: Mapping[str, str] = os.environ,
    also: Also = nothing_more,
) -> Settings:
    try:
        with path.open("rb") as file:
            # Not more than what is refused anyway, however long the file is.
            content = file.read(document.MOST_BYTES + 1)
        # A last character that is cut in two is beyond what is allowed too.
        text = content.decode("utf-8-sig", "strict" if len(content) <= document.MOST_BYTES else "replace")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse(text, environment, path.name, also)
