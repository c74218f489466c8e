"""One browser for the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest_asyncio

if TYPE_CHECKING:
    from tests.support.browsers import Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    # Here and not above: without the driver its import skips, and would skip all that is in this folder.
    from tests.support.browsers import chromium

    async with chromium() as opened:
        yield opened
