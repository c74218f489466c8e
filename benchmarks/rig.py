"""
What the benchmarks stand on: processes on 127.0.0.1, started, watched and ended by their ids, and figures.

The gateway runs on processor 0, everything else on the others, as `../shared/bench/compare` has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PAGE = resource.getpagesize()
MIB = 2**20
CONVERSATIONS = "/api/v2/conversations/web/instances"
PATIENCE = 15.0  # seconds for a process to listen, or to end


def path(conversation: str, participant: str = "p1") -> str:
    return f"{CONVERSATIONS}/{conversation}/participants/{participant}"


def settings(
    upstream: str, audit: str, /, *, fill: Mapping[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    """The seed's rule with every default. `fill` changes keys of the fill, `sections` adds whole sections."""
    the_fill = {
        "type": "fill",
        "field": "state",
        "from": CONVERSATIONS + "/{conversationId}",
        "select": "$.participants[?@.id == _.participantId].state",
        "allow": ["active", "connected"],
        **(fill or {}),
    }
    rule = {
        "name": "web-participant-state",
        "match": {"path": CONVERSATIONS + "/{conversationId}/participants/{participantId}"},
        "writes": [CONVERSATIONS + "/{conversationId}/**", "/api/v2/conversations/{conversationId}/**"],
        "repairs": [{"type": "encoding"}, {"type": "content_type"}, the_fill],
    }
    return {"upstream": {"url": upstream}, "audit": {"path": audit}, "rules": [rule], **sections}


@dataclass(frozen=True, slots=True)
class Process:
    running: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.running.pid

    def end(self) -> None:
        """By its id."""
        self.running.terminate()
        try:
            self.running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.running.kill()
            self.running.wait()

    def rss(self) -> int:
        """Resident bytes."""
        return resident(self.pid)

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@dataclass(frozen=True, slots=True)
class Gateway:
    process: Process
    port: int
    admin: int
    audit: Path

    def counts(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/counts", timeout=PATIENCE) as reply:
            counts: dict[str, int] = json.load(reply)
            return counts


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGE


def pinned_off_the_gateway() -> None:
    """This process, and what it starts, keeps off processor 0 where there is another."""
    others = os.sched_getaffinity(0) - {0}
    if others:
        os.sched_setaffinity(0, others)


def many_files() -> int:
    """Raises the limit on open files, for this process and those it starts, as far as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def processor_time(pid: int) -> float:
    """Seconds that a process has had of a processor, in user and kernel mode."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A place for a run's files. SIGTERM ends the run as Ctrl-C does: in order, with all that it started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        yield Path(name)


@contextlib.contextmanager
def process(log: Path, port: int, *argv: str, first_core: bool = False) -> Iterator[Process]:
    """Once it listens on `port`; ended by its id when the block ends."""
    begun = begin(log, port, *argv, first_core=first_core)
    try:
        yield begun
    finally:
        begun.end()


def begin(log: Path, port: int, *argv: str, first_core: bool = False) -> Process:
    """Once it listens; whoever began it ends it."""
    with log.open("wb") as said:
        begun = Process(subprocess.Popen(argv, stdout=said, stderr=said, start_new_session=True), log)
    try:
        if first_core and 0 not in os.sched_getaffinity(0):
            os.sched_setaffinity(begun.pid, {0})
        _wait_for(port, begun.running, log)
    except BaseException:
        begun.end()
        raise
    return begun


@contextlib.contextmanager
def gateway(
    work: Path, upstream: int, *, fill: Mapping[str, Any] | None = None, **sections: Any
) -> Iterator[Gateway]:
    """`gateway run`, on free ports."""
    port, admin = free_ports(2)
    audit = work / "rewrites.jsonl"
    chosen = settings(f"http://127.0.0.1:{upstream}", str(audit), fill=fill, **sections)
    config = work / "config.yaml"
    chosen["listen"] = {**sections.get("listen", {}), "port": port}
    # JSON is YAML.
    config.write_text(json.dumps(chosen | {"admin": {"port": admin, "hosts": ["gateway.test"]}}))
    argv = (sys.executable, "-m", "gateway", "run", "--config", str(config))
    with process(work / "gateway.log", port, *argv, first_core=True) as running:
        yield Gateway(running, port, admin, audit)


@contextlib.contextmanager
def upstream(work: Path) -> Iterator[int]:
    """`benchmarks.upstream` as a process; its port."""
    (port,) = free_ports(1)
    argv = (sys.executable, "-m", "benchmarks.upstream", "--port", str(port))
    with process(work / "upstream.log", port, *argv):
        yield port


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and running.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}: {log.read_text(errors='replace')[-2000:]}")


class Sample(NamedTuple):
    """Seconds since the start, and the resident memory then."""

    at: float
    mib: float


@contextlib.contextmanager
def sampled(pid: int, every: float) -> Iterator[list[Sample]]:
    """Resident memory every so many seconds, and when the block ends."""
    samples: list[Sample] = []
    over = threading.Event()
    began = time.monotonic()

    def take() -> None:
        samples.append(Sample(time.monotonic() - began, resident(pid) / MIB))

    def watch() -> None:
        while not over.wait(every):
            take()

    take()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
    take()


def quantile(values: Sequence[float], share: float) -> float:
    """By nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """As Markdown."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()
