"""
`gateway audit`: tail, show and stats print what the log says of calls.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.audit.log_files import LogFiles, files_of, followed, last_lines, standard_input
from gateway.audit.reader import KEYS, CallTally, LoggedCall, Reader, Wanted

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
NEAR = 16 * 1024  # bytes of the log that a call takes at most, as a rule

Log = Annotated[
    str | None, typer.Option("--log", "-l", help="The log; - is standard input. Else that of --config.")
]
Config = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Since = Annotated[str | None, typer.Option(help="As 30m, 1h, 2d, or a time as the log writes them.")]
ByRule = Annotated[str | None, typer.Option("--rule", help="The rule's name.")]
ByCaller = Annotated[
    str | None, typer.Option("--caller", help="A part of credential, address or User-Agent.")
]
ByResult = Annotated[
    str | None, typer.Option("--result", help="202, 4xx, rewrite, skip, reject, a reason or an error.")
]
ByPath = Annotated[str | None, typer.Option("--path", help="A part of the path.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def fail(message: str) -> typer.Exit:
    typer.echo(f"gateway audit: {message}", err=True)
    return typer.Exit(1)


def begin_of(since: str, now: float) -> datetime:
    """Raises ValueError."""
    if since[-1:] in UNITS and since[:-1].isdigit():
        return datetime.fromtimestamp(now - int(since[:-1]) * UNITS[since[-1]], UTC)
    found = datetime.fromisoformat(since)
    return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)


def plain(text: str) -> str:
    """What a terminal would not show but do stays an escape."""
    return text.encode("unicode_escape").decode() if not (text.isascii() and text.isprintable()) else text


def one_line(call: LoggedCall) -> str:
    decision, outcome = call.decision, call.outcome
    if call.repaired:
        what = ", ".join(_said(change) for change in decision.changes)
    else:
        needs = f", needs {', '.join(decision.needs)}" if decision.needs else ""
        what = f"{decision.event}: {decision.reason}{needs}"
    if outcome is None:
        end = "no outcome"
    else:
        end = f"{outcome.status or outcome.error} in {outcome.total_ms:.0f} ms"
        end += ", CONFLICT" if outcome.conflict else ""
    client = decision.client.user_agent or decision.client.address
    said = f"{decision.method} {decision.path} {what} -> {end}  client={client} rule={decision.rule}"
    return plain(f"{decision.time} {said} id={decision.id}")


def _said(change: dict[str, Any]) -> str:
    if change.get("repair") == "fill":
        return (
            f"{change.get('field')}={change.get('after')} ({change.get('source')}, {change.get('age_ms')} ms)"
        )
    return f"{change.get('repair')} {change.get('before') or ''}->{change.get('after') or ''}"


def as_json(call: LoggedCall) -> str:
    """The decision with the outcome in it."""
    entries = [json.loads(line) for line in call.lines]
    whole = next((one for one in reversed(entries) if one["event"] == call.decision.event), entries[0])
    outcome = entries[-1] if call.outcome is not None else None
    return json.dumps(whole | {"outcome": outcome})


def details(call: LoggedCall) -> Iterator[str]:
    """All lines of a call, a field a line."""
    for line in call.lines:
        entry = json.loads(line)
        yield f"{entry.pop('event')} {entry.pop('time', '')}"
        for name, value in entry.items():
            yield f"  {plain(name)}: {plain(value) if isinstance(value, str) else json.dumps(value)}"


def tell_skipped(reader: Reader, broken: list[str]) -> None:
    said = [
        f"{count} {words}"
        for count, words in (
            (reader.damaged, "damaged lines were skipped"),
            (reader.foreign, "lines that are none of an audit log's were skipped"),
            (reader.lost, "lines were lost, says the log"),
        )
        if count
    ]
    said += [f"{plain(name)} breaks off" for name in broken]
    for one in said:
        typer.echo(f"gateway audit: {one}", err=True)


def build(configured: Callable[[Path], str], clock: Callable[[], float]) -> typer.Typer:
    """`configured` says where the log of a configuration file is; `clock` gives Unix seconds."""
    commands = typer.Typer(help="Read the audit log, rotated and compressed files too.", no_args_is_help=True)

    def path_of(log: str | None, config: Path) -> str:
        path = log or configured(config)
        if path == "-" and log is None:
            raise fail("the log goes to standard output: say where its lines are kept with --log")
        return path

    def wanted(since: str | None, **more: str | None) -> tuple[Wanted, float | None]:
        if since is None:
            return Wanted(**more), None
        try:
            begin = begin_of(since, clock())
        except (ValueError, OverflowError, OSError):
            raise fail(f"--since: expected 30m, 1h, 2d or a time, got {since!r}") from None
        text = begin.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Wanted(since=text, **more), begin.timestamp()

    def calls(path: str, reader: Reader, since: float | None) -> Iterator[LoggedCall]:
        """Of all files; at the end it says what was skipped."""
        told = sys.stderr if sys.stderr.isatty() else None
        broken: list[str] = []
        try:
            if path == "-":
                lines = standard_input()
            else:
                files = files_of(Path(path))
                if not files:
                    raise fail(f"there is no log at {path}")
                log = LogFiles(files, since, told)
                broken, lines = log.broken, log.lines()
            for line in lines:
                yield from reader.read(line)
            yield from reader.rest()
        except OSError as error:
            raise fail(f"{path}: {error.strerror or error}") from None
        tell_skipped(reader, broken)

    @commands.command()
    def tail(
        count: Annotated[int, typer.Option("--number", "-n", min=0)] = 20,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as calls come.")] = False,
        log: Log = None,
        config: Config = Path("config.yaml"),
        since: Since = None,
        rule: ByRule = None,
        caller: ByCaller = None,
        result: ByResult = None,
        path: ByPath = None,
        json_: AsJson = False,
    ) -> None:
        """The last calls, one a line; with -f those that come, too."""
        of = path_of(log, config)
        asked, begin = wanted(since, rule=rule, caller=caller, result=result, path=path)
        say = as_json if json_ else one_line
        if follow and of == "-":
            raise fail("standard input is read to its end: leave -f out")
        if asked == Wanted() and follow:
            _follow(Path(of), count, Reader(asked), say)
            return
        last = deque(calls(of, Reader(asked), begin), maxlen=count)
        for call in last:
            typer.echo(say(call))
        if follow:
            _follow(Path(of), 0, Reader(asked), say)

    @commands.command()
    def show(
        call: Annotated[str, typer.Argument(metavar="ID", help="The id, or the client's X-Request-Id.")],
        log: Log = None,
        config: Config = Path("config.yaml"),
        json_: AsJson = False,
    ) -> None:
        """All that the log has of the calls with this id."""
        found = list(calls(path_of(log, config), Reader(Wanted(call=call)), None))
        for one in found:
            if json_:
                typer.echo(b"".join(one.lines).decode("ascii", "replace"), nl=False)
            else:
                typer.echo("\n".join(details(one)))
        if not found:
            raise fail(f"no call has the id {plain(call)}")

    @commands.command()
    def stats(
        by: Annotated[str, typer.Option(help="rule, caller or reason")] = "rule",
        log: Log = None,
        config: Config = Path("config.yaml"),
        since: Since = None,
        rule: ByRule = None,
        caller: ByCaller = None,
        result: ByResult = None,
        path: ByPath = None,
        json_: AsJson = False,
    ) -> None:
        """How many calls there were, and what became of them."""
        if by not in KEYS:
            raise fail(f"--by: expected {', '.join(KEYS)}, got {by!r}")
        asked, begin = wanted(since, rule=rule, caller=caller, result=result, path=path)
        reader, tallies, key = Reader(asked), dict[str, CallTally](), KEYS[by]
        for call in calls(path_of(log, config), reader, begin):
            name = key(call)
            if name not in tallies:
                tallies[name] = CallTally()
            tallies[name].add(call)
        ordered = dict(sorted(tallies.items(), key=lambda one: -one[1].calls))
        skipped = {"damaged": reader.damaged, "foreign": reader.foreign, "lost": reader.lost}
        if json_:
            rows = {name: tally.as_dict() for name, tally in ordered.items()}
            typer.echo(json.dumps({"by": by, "calls": rows, **skipped}, indent=2))
            return
        for line in table(by, ordered):
            typer.echo(line)

    return commands


def table(by: str, tallies: dict[str, CallTally]) -> Iterator[str]:
    rows = [(by, *CallTally.__struct_fields__)]
    rows += [(plain(name), *map(str, tally.as_dict().values())) for name, tally in tallies.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *counts in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(counts, widths[1:], strict=True)]
        yield "  ".join([f"{name:<{widths[0]}}", *cells]).rstrip()


def _follow(log: Path, count: int, reader: Reader, say: Callable[[LoggedCall], str]) -> None:
    """Calls are told when they are over."""
    lines, end = last_lines(log, count * NEAR) if log.exists() else ([], 0)
    last = deque((call for line in lines for call in reader.read(line)), maxlen=count)
    for call in last:
        typer.echo(say(call))
    try:
        for line in followed(log, end):
            for call in reader.read(line):
                typer.echo(say(call))
    except KeyboardInterrupt:
        tell_skipped(reader, [])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
