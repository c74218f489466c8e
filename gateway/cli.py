"""
The command line: run, reload, mode, report, audit, replay, check, diff, rules, explain, mock, demo.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop
from pydantic import SecretStr

from gateway import __version__, app, config
from gateway.admin import client
from gateway.audit import callers_file, logged_callers
from gateway.audit import commands as audit_log
from gateway.audit import report as reports
from gateway.audit.reader import Reader, Wanted
from gateway.audit.selection import LOG_GIVEN, Selected, Selection
from gateway.cases import replay
from gateway.cases import run as cases
from gateway.checks import preflight, told
from gateway.description import document as description
from gateway.description.drift import drifts
from gateway.description.operations import Api
from gateway.description.proposals import configuration, proposals
from gateway.errors import GatewayError, Unrecordable
from gateway.explain import Explanation, explain
from gateway.http.headers import Header, text
from gateway.process import lifetime
from gateway.promotion.difference import differences
from gateway.promotion.effect import digest
from gateway.rules import Rules
from gateway.workers import shares, supervisor
from gateway.workers.place import CannotStart

cli = typer.Typer(
    name="gateway",
    help="A reverse proxy that repairs legacy PATCH calls, and records every repair.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Form(StrEnum):
    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


FORMS = {Form.JSON: told.as_json, Form.GITHUB: told.as_github}

ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
DEFAULT = Path("config.yaml")
Workers = Annotated[str, typer.Option(metavar="N|auto", help="Processes on one port; auto: one a processor.")]
Environment = Annotated[
    str | None,
    typer.Option("--env", metavar="NAME", help="One of the file's environments, instead of GATEWAY_ENV."),
]


def fail(message: str) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(1)


def unusable(settings: config.Settings) -> Iterator[tuple[str, str]]:
    callers = settings.callers.path if settings.callers is not None else None
    yield from preflight.problems(app.tls_files(settings), settings.audit.path, callers)
    if settings.tracing is not None and settings.tracing.exporter == "otlp":
        yield from preflight.tracing()


def failing(settings: config.Settings) -> Iterator[tuple[str, str]]:
    yield from unusable(settings)
    yield from cases.failures(settings.rules, settings.limits.max_body, settings.credentials.query)


def loaded(path: Path, place: str | None = None) -> config.Settings:
    try:
        return config.load(path, place=place)
    except config.ConfigError as error:
        raise fail(str(error)) from None


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@cli.callback()
def top(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True)] = False,
) -> None:
    pass


@cli.command()
def run(
    path: ConfigPath = DEFAULT,
    watch: Annotated[bool, typer.Option("--watch", help="Reload whenever the file changes.")] = False,
    workers: Workers = "1",
    env: Environment = None,
) -> None:
    """Run the gateway until SIGTERM. SIGHUP reads the configuration again."""
    number = number_of(workers)
    if env is not None:
        os.environ["GATEWAY_ENV"] = env  # for the workers too, and each reload
    try:
        file = config.read_file(path)
        if number > 1:
            running = supervisor.run(file, number, of_workers(number, unusable), watch)
        else:
            settings = config.parse(file.text, os.environ, path.name, unusable)
            running = lifetime.run(
                settings, lambda: config.load(path, also=unusable), file if watch else None
            )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(running)
    except config.ConfigError as error:
        raise fail(str(error)) from None
    except (app.CannotListen, lifetime.LogInUse, CannotStart, supervisor.NotEnded, OSError) as error:
        raise fail(f"gateway: {error}") from None


def number_of(workers: str) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        return shares.wanted(workers, usable or 1)
    except ValueError as error:
        raise fail(f"gateway: {error}") from None


def of_workers(number: int, also: config.Also) -> config.Also:
    """What more has to be right where so many run."""
    return lambda settings: [*also(settings), *shares.missing(settings, number)]


AdminUrl = Annotated[
    str | None,
    typer.Option(
        "--admin",
        metavar="URL",
        help="The gateway's admin side, as http://127.0.0.1:9901; its token is GATEWAY_ADMIN_TOKEN. Else "
        "the section admin of --config says where it is.",
    ),
]


@cli.command(name="reload")
def reload_(path: ConfigPath = DEFAULT, admin: AdminUrl = None) -> None:
    """Have the running gateway read its configuration again."""
    asked(admin_side(path, admin), "/api/reload", {})


@cli.command(name="mode")
def mode_(
    rule: Annotated[str, typer.Argument(help="The rule's name.")],
    mode: Annotated[str, typer.Argument(help="observe, shadow, enforce or on_reject.")],
    path: ConfigPath = DEFAULT,
    admin: AdminUrl = None,
) -> None:
    """Give a rule of the running gateway another mode, until its file has another or a restart."""
    asked(admin_side(path, admin), "/api/mode", {"rule": rule, "mode": mode})


def admin_side(path: Path, url: str | None) -> config.AdminSettings:
    """Of the file only that section has to be right: it may be read where the gateway does not run."""
    if url is None:
        try:
            return config.load_admin(path)
        except config.ConfigError as error:
            raise fail(str(error)) from None
    try:
        there = urlsplit(url)
        port = there.port or 9901
    except ValueError:
        port = -1
    if port < 0 or there.scheme != "http" or not there.hostname or there.path.strip("/") or there.query:
        raise fail(f"gateway: --admin: expected a URL such as http://127.0.0.1:9901, got {url!r}")
    token = os.environ.get("GATEWAY_ADMIN_TOKEN")
    return config.AdminSettings(host=there.hostname, port=port, token=SecretStr(token) if token else None)


def asked(admin: config.AdminSettings, where: str, body: dict[str, str]) -> None:
    try:
        answer = client.post(admin.host, admin.port, where, body, admin.secret)
    except client.NoAnswer as error:
        raise fail(f"gateway: {error}") from None
    for line in answer.get("said") or ["nothing differs"]:
        typer.echo(line, err=not answer["ok"])
    if not answer["ok"]:
        raise typer.Exit(1)


@cli.command()
def report(
    context: typer.Context,
    path: ConfigPath = DEFAULT,
    log: Annotated[
        str | None,
        typer.Option("--log", "-l", help="An audit log, instead of the callers' file; - is standard input."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=callers_file.DAYS_KEPT)] = 14,
    json_: Annotated[bool, typer.Option("--json", help="Everybody, with all that is known.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Everybody, a line each.")] = False,
) -> None:
    """Say which callers still need the gateway, the last to need it first."""
    clock: Callable[[], float] = context.obj or time.time
    stable = None  # whose log it is, and so under which key, is not known
    source: config.CallersSettings | None = None
    if log is None:
        settings = loaded(path)
        stable, source = settings.credentials.key is not None, settings.callers
    try:
        if source is None:
            selected = Selection(lambda path: loaded(path).audit.path, clock).selected(log, path)
            callers = logged_callers.added_up(selected.calls(Reader(Wanted())), days, clock())
        else:
            callers = callers_file.read(source.path, days, clock())
    except Unrecordable as error:
        raise fail(f"gateway report: {error}") from None
    if json_:
        typer.echo(reports.as_json(callers, stable))
    elif csv:
        typer.echo(reports.as_csv(callers), nl=False)
        if stable is False:
            typer.echo(reports.UNSTABLE, err=True)
    else:
        for line in reports.table(callers, stable):
            typer.echo(line)


@cli.command()
def check(
    path: ConfigPath = DEFAULT,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema instead.")] = False,
    workers: Workers = "1",
    against: Annotated[
        Path | None, typer.Option("--against", help="The API's description, which the rules have to fit.")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How what is wrong is told.")] = Form.TEXT,
    env: Environment = None,
) -> None:
    """Say how the configuration is understood, or everything that is wrong with it."""
    if schema:
        typer.echo(json.dumps(config.Settings.model_json_schema(by_alias=True), indent=2))
        return
    api = None if against is None else described(against)

    def wrong(settings: config.Settings) -> Iterator[tuple[str, str]]:
        yield from of_workers(number_of(workers), failing)(settings)
        yield from drifts(api, settings.rules) if api is not None else ()

    try:
        settings = config.load(path, also=wrong, place=env)
    except config.ConfigError as error:
        if form is Form.TEXT:
            raise fail(str(error)) from None
        typer.echo("\n".join(FORMS[form](error.errors)))
        raise typer.Exit(1) from None
    if form is not Form.TEXT:
        for line in FORMS[form](()):
            typer.echo(line)
        return
    lines = [f"{path}: {len(settings.rules)} rules, forwarding to {settings.upstream.url}"]
    for one in settings.upstreams:
        where = " and ".join(
            [
                *([f"host {' or '.join(one.hosts)}"] if one.hosts else []),
                *([f"path {one.path_prefix}"] if one.path_prefix else []),
            ]
        )
        lines.append(f"upstream {one.name}: {where} to {one.url}")
    lines.append(f"digest: {digest(settings)}")
    if tried := sum(len(rule.cases) for rule in settings.rules):
        lines.append(f"{tried} cases come out as expected")
    lines += [f"warning: {warning}" for warning in app.warnings(settings)]
    for rule in settings.rules:
        lines += ["", *rule.describe()]
    typer.echo("\n".join(lines))


Configuration = Annotated[
    str, typer.Argument(metavar="FILE[@ENV]", help="A configuration; @ENV: as that environment has it.")
]


@cli.command(name="diff")
def diff_(
    a: Configuration,
    b: Configuration,
    env: Environment = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Say how two configurations differ in effect: exit 0 where they do not, 1 where they do."""
    try:
        one, other = [configuration_of(name, env) for name in (a, b)]
    except config.ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    found = differences(one, other)
    digests = [digest(one), digest(other)]
    if json_:
        told = {"digests": digests, "differences": [{"place": d.place, "a": d.a, "b": d.b} for d in found]}
        typer.echo(json.dumps({"same": not found} | told, indent=2))
    else:
        lines = [str(one) for one in found]
        if digests[0] == digests[1]:
            lines.append(
                f"{'modes alone differ' if found else 'no difference'}: both have the digest {digests[0]}"
            )
        else:
            lines += [f"digest of {name}: {of}" for name, of in zip((a, b), digests, strict=True)]
        typer.echo("\n".join(lines))
    if found:
        raise typer.Exit(1)


def configuration_of(name: str, env: str | None) -> config.Settings:
    """Of `FILE@ENV`; `FILE@` is the file without any. Raises ConfigError."""
    path, at, place = name.rpartition("@")
    if not at or Path(name).exists():
        return config.load(Path(name), place=env)
    return config.load(Path(path), place=place)


def described(path: Path) -> Api:
    try:
        api = Api(description.read(path))
    except description.NotADescription as error:
        raise fail(f"gateway: {error}") from None
    if api.unread:
        typer.echo(f"{path}: {len(api.unread)} paths are such that no rule could name them", err=True)
    return api


@cli.command(name="rules")
def rules_(
    source: Annotated[Path, typer.Option("--from", help="The API's description: OpenAPI 3 or Swagger 2.0.")],
    member: Annotated[
        list[str] | None, typer.Option(help="A member to fill although the description does not demand it.")
    ] = None,
) -> None:
    """Propose rules from the API's own description."""
    api = described(source)
    found = proposals(api, member or ())
    typer.echo("\n".join(configuration(api, found, source.name)))
    for reference in sorted(api.document.remote):
        typer.echo(f"{source}: not followed, for it leads elsewhere: {reference}", err=True)
    if not found:
        raise fail(f"{source}: no PATCH or PUT demands a text that a GET of the same resource shows")


@cli.command(name="explain")
def explain_(
    target: Annotated[str, typer.Argument(metavar="PATH", help="The request target.")],
    method: Annotated[str, typer.Option("--request", "-X")] = "PATCH",
    data: Annotated[str, typer.Option("--data", "-d", help="The body; @FILE reads it from a file.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="Name: value")] = None,
    state: Annotated[str | None, typer.Option(help="What the look-up is taken to find.")] = None,
    path: ConfigPath = DEFAULT,
    env: Environment = None,
) -> None:
    """Show what would be done to a call, without any network."""
    settings = loaded(path, place=env)
    headers: list[Header] = []
    for line in header or []:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise fail(f"gateway explain: expected -H 'Name: value', got {line!r}")
        headers.append((os.fsencode(name.strip().lower()), os.fsencode(value.strip())))
    if not re.fullmatch("[!-~]+", method):
        raise fail(f"gateway explain: expected a method such as PATCH, got {method!r}")
    if not re.fullmatch("/[!-~]*", target):
        raise fail(f"gateway explain: expected a percent-encoded path that starts with '/', got {target!r}")
    try:
        body = Path(data[1:]).read_bytes() if data.startswith("@") else os.fsencode(data)
    except OSError as error:
        raise fail(f"gateway explain: {error}") from None
    limit = settings.limits.max_body
    query = settings.credentials.query
    hosts = [value for name, value in headers if name == b"host"]
    try:
        name, inner = app.destinations(settings).chosen(b"".join(hosts), target.encode())
    except GatewayError as error:
        raise fail(f"gateway explain: {error.status} {error.title}: {error.detail}") from None
    if settings.upstreams:
        typer.echo(f"upstream: {name or 'the main one'}, as {inner.decode()}")
    rules = Rules(settings.rules_of(name or None), limit)
    show(explain(rules, method, inner.decode(), headers, body, state, limit, query))


def show(told: Explanation) -> None:
    typer.echo(f"rule:     {told.rule or 'none'}" + (f" ({told.mode})" if told.mode else ""))
    for one in told.violations:
        typer.echo(f"differs:  at {one.pointer or 'the whole'}: expected {one.expected}")
    if told.refused is not None:
        typer.echo(f"refused:  {told.refused.status} {told.refused.title}: {told.refused.detail}")
        return
    for change in told.changes:
        details = ", ".join(f"{name} {value!r}" for name, value in change.record.items() if name != "repair")
        typer.echo(f"repair:   {change.repair}: {details}")
    for target in told.looks_up:
        typer.echo(f"look-up:  GET {target}")
    if told.reason is not None:
        typer.echo(f"because:  {told.reason}")
    for name, call in (("before", told.before), ("after", told.after)):
        if call is not None:
            kinds = [text(value) for key, value in call.headers if key == b"content-type"]
            typer.echo(f"{name + ':':9} Content-Type: {', '.join(kinds) or '(none)'}")
            typer.echo(f"          {call.body.decode('utf-8', 'backslashreplace')}")


cli.add_typer(audit_log.build(lambda path: loaded(path).audit.path, time.time), name="audit")


@cli.command(name="replay")
@Selection(lambda path: loaded(path).audit.path, time.time).command(LOG_GIVEN)
def replay_(
    selected: Selected,
    new: Annotated[Path, typer.Option("--config", "-c", help="The configuration with the rules to try.")],
    was: Annotated[
        Path | None, typer.Option(help="The configuration that the calls came under: then more can be told.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Say what other rules would have done with the calls on an audit log, as far as it tells."""
    were = () if was is None else loaded(was).rules
    replayed = replay.replayed(loaded(new).rules, were, selected.calls(Reader(selected.wanted)))
    rules, rows = replay.summed(replayed)
    if json_:
        typer.echo(json.dumps({"rules": rules, "differing": rows}, indent=2))
        return
    for line in replay.table(rules, rows):
        typer.echo(line)


@cli.command(name="mock")
def mock_(
    host: str = "127.0.0.1",
    port: int = 9000,
    profile: Annotated[str, typer.Option(help="strict or documented")] = "strict",
    conversations: Annotated[
        Path | None, typer.Option(help="YAML; without it they are made on demand.")
    ] = None,
    lag: Annotated[float, typer.Option(help="Seconds until a GET shows a change.")] = 0.0,
    rate_limit: Annotated[int | None, typer.Option(help="Calls a token may make in a minute.")] = None,
    etags: Annotated[bool, typer.Option(help="Send ETag, honour If-Match and If-None-Match.")] = False,
) -> None:
    """Run a strict conversation API to try the gateway against."""
    from gateway.mock import server as mock

    try:
        known = mock.load(conversations) if conversations else mock.Conversations()
        api = mock.Mock(
            known, mock.MockSettings(profile=profile, lag=lag, rate_limit=rate_limit, etags=etags)
        )
        if not 0 <= port <= 65535:
            raise ValueError(f"--port: expected 0 to 65535, got {port}")
        listener = socket.create_server((host, port))
    except ValueError as error:
        raise fail(f"gateway mock: {error}") from None
    except OSError as error:
        raise fail(f"gateway mock: cannot listen on {host}:{port}: {error}") from None
    typer.echo(f"mock conversation API ({profile}) on http://{host}:{listener.getsockname()[1]}")
    mock.server(api).run(sockets=[listener])


@cli.command(name="demo")
def demo_(
    once: Annotated[bool, typer.Option("--once", help="Tell the story and exit.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Two gateways that share a Redis server, which fails meanwhile.")
    ] = False,
) -> None:
    """Start a mock and a gateway, and show a legacy call fail and then work."""
    from gateway.mock import cluster_demo, demo  # with httpx, which no other command loads

    raise typer.Exit(cluster_demo.tell(once) if cluster else demo.tell(once))


def main() -> None:
    cli()
