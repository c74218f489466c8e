"""How old a filled value may be (S2): max_age counts from the start of the look-up to the forward."""

from __future__ import annotations

import asyncio
import json

from gateway.mock.server import Fault
from tests.support.clock import Clock
from tests.support.gateways import BODY, PARTICIPANT, TOKEN
from tests.support.judging import told
from tests.support.mocking import mocked


async def test_max_age_counts_from_the_start_of_the_get() -> None:
    clock = Clock(100.0)
    async with mocked(clock=clock, fill={"max_age": "1s"}) as (upstream, running, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(1)
        clock.now += 0.7
        held.set()
        slow = await call
        clock.now += 0.29
        cached = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        clock.now += 0.02
        expired = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        ages = [told(it.headers["gateway-rewrite"])["age"] for it in (slow, cached, expired)]
        sources = [told(it.headers["gateway-rewrite"])["source"] for it in (slow, cached, expired)]
        assert ages == ["0.7", "0.99", "0.0"]
        assert sources == ["lookup", "cache", "lookup"]
        recorded = [line["changes"][1]["age_ms"] for line in running.lines("rewrite")]
        assert recorded == [700, 990, 0]


async def test_a_look_up_that_takes_longer_than_max_age_fills_the_call_that_it_was_made_for() -> None:
    clock = Clock(100.0)
    async with mocked(clock=clock, fill={"max_age": "1s"}) as (upstream, _, client):
        held = asyncio.Event()
        upstream.faults.append(Fault(method="GET", hold=held))
        call = asyncio.ensure_future(client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
        await upstream.ledger.arrived(1)
        upstream.change("c1", "p1", state="active")
        clock.now += 1.5
        held.set()
        answer = await call

        assert answer.status_code == 202
        assert len(upstream.ledger.of("GET")) == 1
        assert told(answer.headers["gateway-rewrite"])["age"] == "1.5"
        # For the next one it is too old.
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert len(upstream.ledger.of("GET")) == 2
        assert json.loads(upstream.ledger.of("PATCH")[1].body)["state"] == "active"


async def test_a_max_age_of_nothing_is_a_fresh_get_for_each_call() -> None:
    async with mocked(fill={"max_age": 0}) as (upstream, _, client):
        for _ in range(3):
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)

        assert [entry.method for entry in upstream.ledger.entries] == ["GET", "PATCH"] * 3


async def test_calls_in_a_row_cost_one_get_within_max_age_and_never_make_it_younger() -> None:
    clock = Clock(100.0)
    async with mocked(clock=clock, fill={"max_age": "1s"}) as (upstream, _, client):
        for _ in range(8):
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            clock.now += 0.3

        # At 0, 0.3, 0.6, 0.9 from the first GET; at 1.2 from the second.
        assert len(upstream.ledger.of("GET")) == 2
