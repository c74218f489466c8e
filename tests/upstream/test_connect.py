"""Several addresses: the library that tries them does so on both loops."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohappyeyeballs import AddrInfoType, start_connection

from tests.support.raw_upstream import RawUpstream, silent


def info(address: Any) -> AddrInfoType:
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address


async def test_a_refused_address_is_followed_by_the_next() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = info(unused.getsockname())
        async with RawUpstream(silent) as upstream:
            good = info(("127.0.0.1", upstream.port))
            for addresses in ([refused, good], [good, refused], [refused, refused, good]):
                async with asyncio.timeout(2):
                    connected = await start_connection(addresses, happy_eyeballs_delay=60)
                assert connected.getpeername() == good[4]
                connected.close()
            with pytest.raises(ConnectionRefusedError):
                await start_connection([refused, refused], happy_eyeballs_delay=60)


async def test_a_silent_address_is_overtaken_by_the_next() -> None:
    # A listener that is full: further connections neither succeed nor fail.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with RawUpstream(silent) as upstream:
            slow = info(full.getsockname())
            good = info(("127.0.0.1", upstream.port))
            async with asyncio.timeout(2):
                connected = await start_connection([slow, good], happy_eyeballs_delay=0.01)
            assert connected.getpeername() == good[4]
            connected.close()
        for filler in fillers:
            filler.close()
