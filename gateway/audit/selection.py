"""
Which log a command reads, and which of its calls: the options that `audit`, `replay` and `report` share.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.audit.log_files import LogFiles, files_of, standard_input
from gateway.audit.reader import LoggedCall, Reader, Wanted

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
CONFIG = Path("config.yaml")

# By the parameters that a command gets them as: the option, and what it is without one.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "log": (
        Annotated[
            str | None,
            typer.Option("--log", "-l", help="The log; - is standard input. Else that of --config."),
        ],
        None,
    ),
    "config": (Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")], CONFIG),
    "since": (
        Annotated[str | None, typer.Option(help="As 30m, 1h, 2d, or a time as the log writes them.")],
        None,
    ),
    "rule": (Annotated[str | None, typer.Option("--rule", help="The rule's name.")], None),
    "caller": (
        Annotated[str | None, typer.Option("--caller", help="A part of credential, address or User-Agent.")],
        None,
    ),
    "result": (
        Annotated[
            str | None,
            typer.Option("--result", help="202, 4xx, rewrite, skip, reject, a reason or an error."),
        ],
        None,
    ),
    "path": (Annotated[str | None, typer.Option("--path", help="A part of the path.")], None),
}
LOG_ALONE = {name: OPTIONS[name] for name in ("log", "config")}
# Of a command whose configuration is not that of the log.
LOG_GIVEN = {name: option for name, option in OPTIONS.items() if name != "config"} | {
    "log": (Annotated[str, typer.Argument(metavar="LOG", help="The log; - is standard input.")], ...)
}


def fail(message: str) -> typer.Exit:
    typer.echo(f"gateway audit: {message}", err=True)
    return typer.Exit(1)


def plain(text: str) -> str:
    """What a terminal would not show but do stays an escape."""
    return text.encode("unicode_escape").decode() if not (text.isascii() and text.isprintable()) else text


class Selected:
    """The calls that are wanted of the log at `path`; of its files, those that were written since `begin`."""

    def __init__(self, path: str, wanted: Wanted, begin: float | None = None) -> None:
        self.path = path
        self.wanted = wanted
        self._begin = begin

    def calls(self, reader: Reader) -> Iterator[LoggedCall]:
        """Of all files; at the end it says what was skipped."""
        told = sys.stderr if sys.stderr.isatty() else None
        broken: list[str] = []
        try:
            if self.path == "-":
                lines = standard_input()
            else:
                files = files_of(Path(self.path))
                if not files:
                    raise fail(f"there is no log at {self.path}")
                log = LogFiles(files, self._begin, told)
                broken, lines = log.broken, log.lines()
            for line in lines:
                yield from reader.read(line)
            yield from reader.rest()
        except OSError as error:
            raise fail(f"{self.path}: {error.strerror or error}") from None
        tell_skipped(reader, broken)


class Selection:
    """`configured` says where the log of a configuration file is; `clock` gives Unix seconds."""

    def __init__(self, configured: Callable[[Path], str], clock: Callable[[], float]) -> None:
        self._configured = configured
        self._clock = clock

    def command(
        self, options: Mapping[str, tuple[Any, Any]] = OPTIONS
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Gives a command these options; it gets what they select as its first argument."""

        def given(command: Callable[..., None]) -> Callable[..., None]:
            def run(**given: Any) -> None:
                command(self.selected(**{name: given.pop(name) for name in options}), **given)

            _, *own = inspect.signature(command, eval_str=True).parameters.values()
            kind = inspect.Parameter.KEYWORD_ONLY
            shared = [
                inspect.Parameter(name, kind, default=default, annotation=option)
                for name, (option, default) in options.items()
            ]
            parameters = [one.replace(kind=kind) for one in own] + shared
            run.__name__, run.__doc__ = command.__name__, command.__doc__
            run.__annotations__ = {one.name: one.annotation for one in parameters}
            run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
            return run

        return given

    def selected(
        self, log: str | None = None, config: Path = CONFIG, since: str | None = None, **more: str | None
    ) -> Selected:
        path = log or self._configured(config)
        if path == "-" and log is None:
            raise fail("the log goes to standard output: say where its lines are kept with --log")
        if since is None:
            return Selected(path, Wanted(**more))
        try:
            begin = begin_of(since, self._clock())
        except (ValueError, OverflowError, OSError):
            raise fail(f"--since: expected 30m, 1h, 2d or a time, got {since!r}") from None
        text = begin.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Selected(path, Wanted(since=text, **more), begin.timestamp())


def begin_of(since: str, now: float) -> datetime:
    """Raises ValueError."""
    if since[-1:] in UNITS and since[:-1].isdigit():
        return datetime.fromtimestamp(now - int(since[:-1]) * UNITS[since[-1]], UTC)
    found = datetime.fromisoformat(since)
    return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)


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
