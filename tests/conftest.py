"""What holds for all tests: the same names in every process, how many of these, no garbage, both ways."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

import pytest
import trustme
from hypothesis import is_hypothesis_test

from tests.support import gateways, serving
from tests.support.certified import Pair

LONGEST_NAME = 60


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """
    Long values are named by their argument: pytest-xdist wants the same names in all its workers, and what
    gzip writes has the second in it in which it was written.
    """
    return argname if isinstance(val, str | bytes) and len(val) > LONGEST_NAME else None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """
    pytest-cov measures a worker twice, the first time as if it were none. It never ends that one, which
    went on tracing wherever `no_cover` paused the other.
    """
    measuring = session.config.pluginmanager.get_plugin("_cov")
    if measuring is not None and hasattr(session.config, "workerinput"):
        measuring.cov_controller.pause()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under a tracer a property's examples take twice as long, and cover again what the first ones did."""
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors: a third of the suite's time is waiting."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """For the servers of `over_tls`."""
    return Pair(trustme.CA(), tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def over_tls(request: pytest.FixtureRequest, pair: Pair) -> Iterator[None]:
    """Every test of a module that uses it is run both ways: a promise holds over TLS too."""
    with serving.over(pair.certificates(), pair.trust()) if request.param else contextlib.nullcontext():
        yield


@pytest.fixture(params=[True, False], ids=["at once", "in a task"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of a module that uses it is run both ways: there is one lifecycle."""
    with gateways.serving_at_once(request.param):
        yield
