"""Whatever is promised of the upstream is promised on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

HERE = Path(__file__).parent


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture"))
