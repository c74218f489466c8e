"""What holds for all tests: names that are the same in every process, how many of these, and no garbage."""

from __future__ import annotations

import gc
import os

import pytest

LONGEST_NAME = 60


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """
    Long values are named by their argument: pytest-xdist wants the same names in all its workers, and what
    gzip writes has the second in it in which it was written.
    """
    return argname if isinstance(val, str | bytes) and len(val) > LONGEST_NAME else None


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a third of the suite's time is waiting."""
    return (os.cpu_count() or 1) + 1
