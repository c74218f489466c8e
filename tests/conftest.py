"""What holds for every test: names that are the same in each process, and no garbage sought where none is."""

from __future__ import annotations

import gc

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
