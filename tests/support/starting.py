"""Processes that have just begun, and those that are the first of their container."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import START, Process
from tests.support.waiting import until

# Of a process namespace of its own, where the kernel takes no signal to it that it does not handle.
FIRST = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")

HELD = """
import pathlib, sys, time
print("importing", flush=True)
while not pathlib.Path("go-on").exists():
    time.sleep(0.01)
sys.path[:] = [path for path in sys.path if pathlib.Path(path) != pathlib.Path(__file__).parent]
del sys.modules[__name__]
__import__(__name__)
"""


def can_be_first() -> bool:
    try:
        return subprocess.run([*FIRST, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_namespaces = pytest.mark.skipif(not can_be_first(), reason="no namespaces of processes are given here")


class HeldImport:
    """Who imports `name` in `folder` has it only once it may `go_on`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        (folder / f"{name}.py").write_text(HELD)

    async def begun(self, running: Process) -> None:
        await until(lambda: "importing" in running.said, START)

    def go_on(self) -> None:
        (self._folder / "go-on").touch()


def signal_first(running: Process, number: signal.Signals) -> None:
    """To what `FIRST` started, and not to itself."""
    (child,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(child), number)
