"""
config.yaml into frozen values: read once, and every error told at once, with its place.

Nothing here knows how a setting is used. Rules own their settings and so do repairs: they say how these are
checked, and all is checked here, so that all errors come together.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway import paths as templates
from gateway.http.grammar import NEVER_IGNORED, TCHAR
from gateway.repairs.fill import FillSettings
from gateway.rules import Mode, RuleSettings
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
        raise ValueError(f"expected http(s)://host[:port][/prefix]: {error}") from error
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
        raise ValueError("expected http(s)://host[:port][/prefix]")
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:.]+", url.hostname):
        raise ValueError("expected a host name in ASCII, or an address")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("expected no user, query or fragment")
    if not re.fullmatch(r"(/[!$&'()*+,;=:@%\w.~-]+)*/?", url.path, re.ASCII):
        raise ValueError("expected a plain path prefix")


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


class ListenSettings(Section):
    host: str = "127.0.0.1"
    port: Port = 8080
    backlog: Count = 4096
    trusted_proxies: tuple[Annotated[str, checked(_network)], ...] = ()


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


class Settings(Section):
    listen: ListenSettings = ListenSettings()
    admin: AdminSettings = AdminSettings()
    upstream: UpstreamSettings
    state_cache: StateCacheSettings = StateCacheSettings()
    credentials: CredentialSettings = CredentialSettings()
    audit: AuditSettings = AuditSettings()
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

    def warnings(self) -> list[str]:
        """What is allowed but should be known: said by `gateway check` and at start-up."""
        found = [
            f"rules.{rule.name}: {warning}"
            for rule in self.rules
            for repair in rule.repairs
            for warning in repair.warnings()
        ]
        if self.admin.reachable and self.admin.token is None:
            found.append(
                f"admin.token: not set, and other machines reach admin.host {self.admin.host}: only /healthz "
                "and /readyz are served"
            )
        return found


class _Loader(yaml.SafeLoader):
    """YAML as it is, but a key given twice is an error instead of the last one winning."""

    def __init__(self, document: str) -> None:
        self.twice: list[str] = []
        super().__init__(document)

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Here the keys are still those of the text: later, `<<` has added others that may be overridden.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    self.twice.append(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice")
                seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, for 2026-99-99 or `!!bool x`
            raise yaml.constructor.ConstructorError(
                None, None, f"no value of its type: {str(node.value)[:40]!r}", node.start_mark
            ) from error


def _read(document: str, name: str) -> Any:
    try:
        loader = _Loader(document)
        raw = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError([f"{name}: not YAML: {' '.join(str(error).split())}"]) from error
    except (ValueError, OverflowError) as error:  # PyYAML's, for an escape that is no character
        raise ConfigError([f"{name}: not YAML: {error}"]) from error
    if loader.twice:
        raise ConfigError([f"{name}: {line}" for line in loader.twice])
    return raw


class _Place(NamedTuple):
    path: str
    message: str


_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")
_UNFIT = re.compile("[\0\ud800-\udfff]")


def _expanded(value: Any, environment: Mapping[str, str], place: str, errors: list[_Place]) -> Any:
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
            errors.append(_Place(place, "expected ${NAME} or ${NAME:-default}"))
            return ""
        text = environment.get(name) or default
        if text is None:
            errors.append(_Place(place, f"the environment variable {name} is not set and has no default"))
            return ""
        return text

    text = _VARIABLE.sub(variable, value)
    if _UNFIT.search(text):
        errors.append(_Place(place, "expected text without NUL and surrogates"))
    return text


# A check over a whole section names the key within it.
_INNER = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)*): ")


def _places(error: Any) -> list[_Place]:
    """pydantic's location as `rules[0].repairs[2].max_age`."""
    path, before = "", ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        # Right after `repairs[2]` pydantic names the type of the repair, which is no place in the file.
        elif not (before == "repairs" and path.endswith("]")):
            path += f".{part}" if path else part
        before = part if isinstance(part, str) else before
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    elif error["type"] == "missing":
        message = "required, but not given"
    elif error["type"] == "value_error" and _INNER.match(message):
        inner = [_INNER.match(line) for line in message.split("\n")]
        return [
            _Place(f"{path}.{found[1]}" if path else found[1], found.string[found.end() :])
            for found in inner
            if found
        ]
    elif path not in {"credentials.key", "admin.token"} and not isinstance(
        error["input"], dict | list | tuple
    ):
        # A password in a URL is refused, but not repeated.
        message += ", got " + re.sub(r"//[^/@\s]*@", "//…@", repr(error["input"]))[:200]
    return [_Place(path, " ".join(message.split()))]


# What the environment says where the file says nothing: so the image works with a file of one's own.
FROM_ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "GATEWAY_HOST": ("listen", "host"),
    "GATEWAY_PORT": ("listen", "port"),
    "GATEWAY_ADMIN_HOST": ("admin", "host"),
    "GATEWAY_ADMIN_PORT": ("admin", "port"),
    "GATEWAY_ADMIN_TOKEN": ("admin", "token"),
    "GATEWAY_UPSTREAM": ("upstream", "url"),
    "GATEWAY_AUDIT": ("audit", "path"),
    "GATEWAY_KEY": ("credentials", "key"),
}


def _completed(document: dict[Any, Any], environment: Mapping[str, str]) -> dict[Any, Any]:
    completed = dict(document)
    for name, (section, key) in FROM_ENVIRONMENT.items():
        given = completed.get(section, {})
        if environment.get(name) and isinstance(given, dict) and key not in given:
            completed[section] = {**given, key: environment[name]}
    return completed


def parse(document: str, environment: Mapping[str, str], name: str = "config.yaml") -> Settings:
    """Raises ConfigError with every error there is."""
    errors: list[_Place] = []
    try:
        expanded = _expanded(_read(document, name), environment, "", errors)
    except RecursionError as error:
        raise ConfigError([f"{name}: nested too deeply, or an anchor that contains itself"]) from error
    if not isinstance(expanded, dict):
        raise ConfigError([f"{name}: expected a mapping with upstream and rules"])
    try:
        settings = Settings.model_validate(_completed(expanded, environment))
    except ValidationError as error:
        known = {place.path for place in errors}
        errors += [place for one in error.errors() for place in _places(one) if place.path not in known]
    if errors:
        raise ConfigError([f"{name}: {place}: {message}" if place else f"{name}: {message}"
                           for place, message in errors])  # fmt: skip
    return settings


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    try:
        document = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse(document, environment, path.name)
