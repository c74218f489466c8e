"""
Figures of the process itself, under the names that Prometheus has for them.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from gateway.admin.metrics import Gauge, MetricKey

PROC = Path("/proc")


def readings(proc: Path = PROC) -> dict[MetricKey, Gauge]:
    """Where there is no /proc, only what every system tells."""
    found: dict[MetricKey, Gauge] = {
        ("process_cpu_seconds_total",): time.process_time,
        ("process_max_fds",): lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    if (proc / "self/stat").exists():
        began = started(proc)
        found |= {
            ("process_resident_memory_bytes",): lambda: resident(proc),
            ("process_open_fds",): lambda: len(os.listdir(proc / "self/fd")),
            ("process_start_time_seconds",): lambda: began,
        }
    return found


def resident(proc: Path) -> int:
    pages = int((proc / "self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def started(proc: Path) -> float:
    """Unix seconds: when the machine was booted, and the ticks from then on (proc(5))."""
    # The process's name, which comes first, may have any character in it.
    fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
    booted = next(line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
