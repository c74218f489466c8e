"""A call that its client gave up leaves nothing behind, not even until the garbage collector comes."""

from __future__ import annotations

import gc

import pytest

from gateway.proxy.client import Client
from tests.support.calls import PATCH_HEAD
from tests.support.gateways import proxied
from tests.support.serving import connect
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("way")


def held() -> int:
    return sum(isinstance(one, Client) for one in gc.get_objects())


async def test_a_call_whose_client_left_amid_its_body_is_freed_at_once() -> None:
    async with proxied() as chain:
        stats = chain.running.gateway.stats
        gc.collect()
        gc.disable()
        try:
            before = held()
            async with connect(chain.running.port) as client:
                await client.send(PATCH_HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 50)
                await until(lambda: stats.awaiting == 1)
                assert held() == before + 1
                client.reset()
            await until(lambda: stats.awaiting == 0 and held() == before)
        finally:
            gc.enable()
