"""
`gateway audit`: tail, show and stats print what the log says of calls.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.audit.log_files import followed, last_lines
from gateway.audit.reader import KEYS, CallTally, LoggedCall, Reader, Wanted
from gateway.audit.selection import LOG_ALONE, Selected, Selection, fail, plain, tell_skipped

NEAR = 16 * 1024  # bytes of the log that a call takes at most, as a rule

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


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


def build(configured: Callable[[Path], str], clock: Callable[[], float]) -> typer.Typer:
    """`configured` says where the log of a configuration file is; `clock` gives Unix seconds."""
    commands = typer.Typer(help="Read the audit log, rotated and compressed files too.", no_args_is_help=True)
    selection = Selection(configured, clock)
    commands.command()(selection.command()(tail))
    commands.command()(selection.command(LOG_ALONE)(show))
    commands.command()(selection.command()(stats))
    return commands


def tail(
    selected: Selected,
    count: Annotated[int, typer.Option("--number", "-n", min=0)] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as calls come.")] = False,
    json_: AsJson = False,
) -> None:
    """The last calls, one a line; with -f those that come, too."""
    say = as_json if json_ else one_line
    if follow and selected.path == "-":
        raise fail("standard input is read to its end: leave -f out")
    wanted, log = selected.wanted, Path(selected.path)
    if wanted == Wanted() and follow:
        _follow(log, count, Reader(wanted), say)
        return
    for call in deque(selected.calls(Reader(wanted)), maxlen=count):
        typer.echo(say(call))
    if follow:
        _follow(log, 0, Reader(wanted), say)


def show(
    selected: Selected,
    call: Annotated[str, typer.Argument(metavar="ID", help="The id, or the client's X-Request-Id.")],
    json_: AsJson = False,
) -> None:
    """All that the log has of the calls with this id."""
    found = list(selected.calls(Reader(Wanted(call=call))))
    for one in found:
        if json_:
            typer.echo(b"".join(one.lines).decode("ascii", "replace"), nl=False)
        else:
            typer.echo("\n".join(details(one)))
    if not found:
        raise fail(f"no call has the id {plain(call)}")


def stats(
    selected: Selected,
    by: Annotated[str, typer.Option(help="rule, caller or reason")] = "rule",
    json_: AsJson = False,
) -> None:
    """How many calls there were, and what became of them."""
    if by not in KEYS:
        raise fail(f"--by: expected {', '.join(KEYS)}, got {by!r}")
    reader, tallies, key = Reader(selected.wanted), dict[str, CallTally](), KEYS[by]
    for call in selected.calls(reader):
        name = key(call)
        if name not in tallies:
            tallies[name] = CallTally()
        tallies[name].add(call)
    ordered = dict(sorted(tallies.items(), key=lambda one: -one[1].calls))
    if json_:
        rows = {name: tally.as_dict() for name, tally in ordered.items()}
        skipped = {"damaged": reader.damaged, "foreign": reader.foreign, "lost": reader.lost}
        typer.echo(json.dumps({"by": by, "calls": rows, **skipped}, indent=2))
        return
    for line in table(by, ordered):
        typer.echo(line)


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
