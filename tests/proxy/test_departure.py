"""A connection that is lost between record and send: a call is recorded once, and sent or said unsent."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from gateway.audit.writer import AuditLog
from gateway.backend import Parts
from gateway.proxy.departure import Departure
from tests.support.calls import DOCUMENT, PATCH
from tests.support.gateways import Proxied, proxied
from tests.support.raw_upstream import answering
from tests.support.waiting import until


class Interrupted(AuditLog):
    """A log that takes its time: meanwhile something happens, once."""

    meanwhile: Callable[[], None] | None = None

    def commit(self) -> None:
        super().commit()
        self._interrupt()

    async def recorded(self) -> None:
        await super().recorded()
        self._interrupt()

    def _interrupt(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


def parts(synced: bool) -> Parts:
    def log(*given: Any, **options: Any) -> AuditLog:
        return Interrupted(*given, **options | {"synced": synced})

    return Parts(audit=log)


def interrupt(chain: Proxied, meanwhile: Callable[[], None]) -> None:
    log = chain.running.gateway.audit
    assert isinstance(log, Interrupted)
    log.meanwhile = meanwhile


def hang_up(chain: Proxied) -> None:
    for peer in chain.upstream.peers:
        peer.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)


async def events(chain: Proxied) -> list[tuple[str, int]]:
    lines = chain.running.lines
    await until(lambda: len(lines("outcome")) == 2)
    second = lines("outcome")[1]["id"]
    return [(line["event"], line.get("attempt", 1)) for line in lines() if line["id"] == second]


def calls() -> list[bytes]:
    """Each with an id of its own."""
    return [PATCH.replace(b"r1", b"r%d" % number) for number in range(2)]


@pytest.mark.parametrize("synced", [False, True])
async def test_a_call_that_has_to_take_another_connection_is_recorded_once(synced: bool) -> None:
    async with proxied(answering(DOCUMENT), parts=parts(synced), fill={"max_age": "60s"}) as chain:
        first, second = calls()
        await chain.client.send(first)
        assert (await chain.client.reply()).status == 200
        interrupt(chain, lambda: hang_up(chain))
        await chain.client.send(second)
        reply = await chain.client.reply()
        assert (reply.status, b"attempt" in reply.headers[b"gateway-rewrite"]) == (200, False)
        assert await events(chain) == [("rewrite", 1), ("outcome", 1)]
        assert len(chain.upstream.bodies(b"PATCH")) == 2


@pytest.mark.parametrize("synced", [False, True])
async def test_a_call_that_then_finds_no_connection_has_not_left(synced: bool) -> None:
    async with proxied(answering(DOCUMENT), parts=parts(synced), fill={"max_age": "60s"}) as chain:
        first, second = calls()
        await chain.client.send(first)
        assert (await chain.client.reply()).status == 200

        def nobody_listens() -> None:
            chain.upstream.stop_listening()
            hang_up(chain)

        interrupt(chain, nobody_listens)
        await chain.client.send(second)
        reply = await chain.client.reply()
        assert (reply.status, reply.headers[b"gateway-rewrite"]) == (
            502,
            b"web-participant-state; skipped=connection-refused",
        )
        assert await events(chain) == [("rewrite", 1), ("unsent", 1), ("reject", 1), ("outcome", 1)]
        assert len(chain.upstream.bodies(b"PATCH")) == 1


def test_what_is_not_allowed_the_second_time_has_not_left() -> None:
    allowed = [True, False]
    recorded: list[bool] = []

    def allow() -> None:
        if not allowed.pop(0):
            raise LookupError

    departure = Departure(allow, lambda: recorded.append(True))
    departure()
    assert departure.left
    with pytest.raises(LookupError):
        departure()
    assert (departure.left, recorded) == (False, [True])
