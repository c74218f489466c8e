"""
config.yaml into frozen values: read once, checked at the door, every error at once with its place.

Nothing here knows how a setting is used. What needs more than a shape (templates, JSONPath) is
checked by the module that owns it, through the validators below, so that all errors come together.
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
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from gateway import paths as templates
from gateway.repairs import select

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
SIZES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
MAX_AGE_REFUSED = 60.0
MAX_AGE_WARNED = 5.0

# A refusal that says nothing about whether the PATCH was applied, or that a second PATCH cannot cure.
NEVER_REFILLED = frozenset({401, 403, 404, 429})


class ConfigError(Exception):
    """All that is wrong with a configuration: one line an error, each with its place."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def _duration(value: object) -> float:
    if value == 0 and not isinstance(value, bool):
        return 0.0
    text = value.strip() if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)", text)
    if found is None:
        raise ValueError('expected a duration such as "250ms", "2s" or "1m"')
    return float(found[1]) * UNITS[found[2]]


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = value.strip() if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,15}) ?([kKMG]?i?B)", text)
    if found is None or found[2] not in SIZES:
        raise ValueError('expected a size such as "64KiB" or "1MiB"')
    return int(found[1]) * SIZES[found[2]]


def _some(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("expected at least one")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("expected more than nothing")
    return value


def _path(value: str) -> None:
    if templates.parse(value).rest:
        raise ValueError('"**" may only stand in writes')


def _path_of_a_conversation(value: str) -> None:
    _path(value)
    if not templates.parse(value).names:
        raise ValueError("expected a path with at least one {parameter}")


def _method_with_a_body(value: str) -> None:
    if value in {"GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"}:
        raise ValueError("expected a method that carries a body, such as PATCH")


def _fresh(value: float) -> float:
    if value > MAX_AGE_REFUSED:
        raise ValueError(f"expected at most {MAX_AGE_REFUSED:g}s: an older state answers or hangs up calls")
    return value


def _proof(status: int) -> int:
    if status in NEVER_REFILLED or not 400 <= status < 500:
        raise ValueError("expected a status that proves that the PATCH was not applied, such as 409")
    return status


def _checked(check: Any) -> AfterValidator:
    """`check` raises ValueError for a text it refuses; the text itself is kept."""

    def validate(value: str) -> str:
        check(value)
        return value

    return AfterValidator(validate)


def _network(value: str) -> None:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError('expected an address or network such as "10.0.0.0/8"') from error


def _json_type(value: str) -> None:
    if not re.fullmatch(r"application/([a-z0-9.-]+\+)?json", value):
        raise ValueError("expected a JSON media type such as application/json")


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


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(ms|s|m|h)$", "maximum": 0}),
]
Timeout = Annotated[Duration, AfterValidator(_positive)]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+ ?(B|kB|MB|GB|KiB|MiB|GiB)$"}),
]
Count = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
FieldName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ListenSettings(_Section):
    host: str = "127.0.0.1"
    port: Port = 8080
    trusted_proxies: tuple[Annotated[str, _checked(_network)], ...] = ()


class AdminSettings(_Section):
    host: str = "127.0.0.1"
    port: Port = 9901


class TlsSettings(_Section):
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class UpstreamSettings(_Section):
    url: Annotated[str, _checked(_upstream_url)]
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


class StateCacheSettings(_Section):
    max_entries: Count = 10_000
    max_bytes: Size = 64 * 2**20


class CredentialSettings(_Section):
    headers: tuple[FieldName, ...] = ()


class AuditSettings(_Section):
    path: Annotated[str, Field(min_length=1)] = "rewrites.jsonl"


class LimitSettings(_Section):
    max_body: Size = 2**20
    max_head: Size = 32 * 2**10
    max_headers: Count = 100
    max_target: Size = 8 * 2**10
    max_connections: Count = 20_000
    max_in_flight: Count = 1_000
    head_timeout: Timeout = 10.0
    body_timeout: Timeout = 10.0
    write_timeout: Timeout = 60.0
    min_rate: Size = 500
    keep_alive: Timeout = 60.0
    lock_timeout: Timeout = 5.0
    deadline: Timeout = 15.0
    drain_timeout: Timeout = 30.0
    tunnel_idle: Timeout = 300.0


class CorsSettings(_Section):
    origins: Annotated[tuple[Origin, ...], AfterValidator(_some)]
    methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False
    max_age: Duration = 600.0

    @model_validator(mode="after")
    def _no_credentials_for_everybody(self) -> CorsSettings:
        if self.credentials and "*" in self.origins:
            raise ValueError('credentials: expected named origins, not "*"')
        return self


class MatchSettings(_Section):
    method: Annotated[str, Field(pattern=r"^[A-Z]+$"), _checked(_method_with_a_body)] = "PATCH"
    path: Annotated[str, _checked(_path)]


class EncodingSettings(_Section):
    type: Literal["encoding"]


class ContentTypeSettings(_Section):
    type: Literal["content_type"]
    value: Annotated[str, _checked(_json_type)] = "application/json"


class FillSettings(_Section):
    type: Literal["fill"]
    field: Annotated[str, Field(min_length=1)]
    source: Annotated[str, _checked(_path_of_a_conversation), Field(alias="from")]
    select: Annotated[str, _checked(select.compiled)]
    allow: Annotated[tuple[str, ...], AfterValidator(_some)]
    max_age: Annotated[Duration, AfterValidator(_fresh)] = 1.0
    settle: Duration = 2.0
    refill_on: tuple[Annotated[int, AfterValidator(_proof)], ...] = (409, 412)
    null_is_missing: bool = False
    learn: bool = True
    guard: Literal["none", "etag"] = "none"


RepairSettings = Annotated[EncodingSettings | ContentTypeSettings | FillSettings, Field(discriminator="type")]
Mode = Literal["observe", "shadow", "enforce", "on_reject"]
ORDER = ("encoding", "content_type", "fill")


class RuleSettings(_Section):
    # The name is written as a token into Gateway-Rewrite (RFC 9651).
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]
    match: MatchSettings
    mode: Mode = "enforce"
    on_lookup_failure: Literal["reject", "forward"] = "reject"
    # None: every unsafe call on what the fills look up, and below it.
    writes: tuple[Annotated[str, _checked(templates.parse_write)], ...] | None = None
    repairs: Annotated[tuple[RepairSettings, ...], AfterValidator(_some)]

    @model_validator(mode="after")
    def _parts_that_fit(self) -> RuleSettings:
        errors: list[str] = []
        order = [ORDER.index(repair.type) for repair in self.repairs]
        if order != sorted(order) or len({kind for kind in order if kind < 2}) < sum(k < 2 for k in order):
            errors.append("repairs: expected encoding, content_type and fills, in this order")
        known = set(templates.parse(self.match.path).names)
        fills = [repair for repair in self.repairs if isinstance(repair, FillSettings)]
        errors += [
            f"repairs[{i}].{key}: no parameter {name!r} in match.path"
            for i, fill in enumerate(self.repairs)
            if isinstance(fill, FillSettings)
            for key, names in (
                ("from", templates.parse(fill.source).names),
                ("select", select.parameters(fill.select)),
            )
            for name in names
            if name not in known
        ]
        if len({fill.field for fill in fills}) < len(fills):
            errors.append("repairs: expected one fill for a field")
        conversations = {templates.parse(fill.source).names[-1] for fill in fills}
        if len(conversations) > 1:
            errors.append("repairs: expected fills that look up the same conversation")
        if errors:
            raise ValueError("\n".join(errors))
        return self

    @property
    def written_by(self) -> tuple[str, ...]:
        if self.writes is not None:
            return self.writes
        return tuple(f"{one.source}/**" for one in self.repairs if isinstance(one, FillSettings))


class Settings(_Section):
    listen: ListenSettings = ListenSettings()
    admin: AdminSettings = AdminSettings()
    upstream: UpstreamSettings
    state_cache: StateCacheSettings = StateCacheSettings()
    credentials: CredentialSettings = CredentialSettings()
    audit: AuditSettings = AuditSettings()
    limits: LimitSettings = LimitSettings()
    cors: CorsSettings | None = None
    rules: tuple[RuleSettings, ...] = ()

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
        if errors:
            raise ValueError("\n".join(errors))
        return self

    def warnings(self) -> list[str]:
        """What is allowed but should be known: said by `gateway check` and at start-up."""
        return [
            f"rules.{rule.name}: max_age {fill.max_age:g}s: a state this old may already be wrong"
            for rule in self.rules
            for fill in rule.repairs
            if isinstance(fill, FillSettings) and fill.max_age > MAX_AGE_WARNED
        ]


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
    """pydantic's location as `rules[0].repairs[2].max_age`; the tags of the repair union are no place."""
    path, before = "", ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (before == "repairs" and path.endswith("]") and part in ORDER):
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
    elif not isinstance(error["input"], dict | list | tuple):
        # A password in a URL is refused, but not repeated.
        message += ", got " + re.sub(r"//[^/@\s]*@", "//…@", repr(error["input"]))[:200]
    return [_Place(path, " ".join(message.split()))]


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
        settings = Settings.model_validate(expanded)
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
