"""Bodies and replies that wait in memory have one bound for all, and a share of it for each caller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Overloaded
from gateway.proxy.buffered import MUCH, BufferBudget
from gateway.proxy.kept_reply import UNCOUNTED, KeptReply
from tests.support.gateways import PARTICIPANT, proxied
from tests.support.raw_upstream import answering
from tests.support.serving import connect
from tests.support.waiting import until

SHORT = 40_000  # bytes of each body that come; one more is promised


def unfinished(token: bytes, field: bytes = b"Authorization") -> bytes:
    head = b"PATCH %b HTTP/1.1\r\nHost: a\r\n%b: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (PARTICIPANT.encode(), field, token, SHORT + 1) + b"x" * SHORT


@pytest.mark.parametrize("field", [b"Authorization", b"X-Api-Key"])
async def test_one_caller_holds_a_share_and_another_is_served_beside_it(field: bytes) -> None:
    limits = {"max_body": "64KiB", "max_buffered": "256KiB"}
    credentials = {"headers": ["X-Api-Key"]}
    async with proxied(limits=limits, credentials=credentials) as (_upstream, running, first):

        def buffered() -> float:
            samples = running.gateway.metrics.samples()
            return next(one.value for one in samples if one.name == "gateway_buffered_bytes")

        assert buffered() == 0
        await first.send(unfinished(b"one", field))
        await until(lambda: buffered() == SHORT)
        async with connect(running.port) as again, connect(running.port) as other:
            await again.send(unfinished(b"one", field))
            status, _headers, body = await again.reply()
            assert status == 503
            assert b"limits.max_buffered" in body
            assert buffered() == SHORT
            await other.send(unfinished(b"two", field))
            await until(lambda: buffered() == 2 * SHORT)
        await until(lambda: buffered() == SHORT)
        await first.send(b"x")
        assert (await first.reply())[0] < 500
        await until(lambda: buffered() == 0)


async def test_what_a_client_does_not_take_of_its_reply_counts_and_leaves_less_room_for_bodies() -> None:
    limits = {"max_body": "64KiB", "max_buffered": "64KiB"}
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000
    async with proxied(answering(large), limits=limits) as (_upstream, running, first):
        metrics = running.gateway.metrics

        def buffered() -> float:
            return next(one.value for one in metrics.samples() if one.name == "gateway_buffered_bytes")

        async with connect(running.port, buffer=4096, limit=4096) as stalled:
            await stalled.send(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: buffered() > 64 * 1024)
            await first.send(unfinished(b"one"))
            status, _headers, body = await first.reply()
            assert (status, b"limits.max_buffered" in body) == (503, True)
        await until(lambda: buffered() == 0)


callers = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 3))


@given(st.lists(st.tuples(callers, st.integers(0, 60))), st.integers(1, 100), st.integers(1, 50))
def test_no_more_is_held_than_may_be_and_all_is_given_back(
    wanted: list[tuple[tuple[str, int], int]], most: int, largest: int
) -> None:
    budget = BufferBudget(most, largest)
    taken = []
    for caller, size in wanted:
        try:
            budget.take(caller, size)
        except Overloaded:
            continue
        taken.append((caller, size))
        assert budget.held == sum(size for _, size in taken) <= max(most, largest)
        assert sum(size for one, size in taken if one == caller) <= max(max(most, largest) // 4, largest)
    for caller, size in taken:
        budget.give_back(caller, size)
    assert budget.held == 0


def test_of_who_takes_nothing_nothing_is_remembered() -> None:
    budget = BufferBudget(10, 20)
    counts = []
    for size in (0, 1):
        budget.take("a", size)
        counts.append(budget.callers)
    budget.give_back("a", 1)
    assert [*counts, budget.callers] == [0, 1, 0]


def test_what_waits_elsewhere_leaves_so_much_less_room() -> None:
    beside = 60
    budget = BufferBudget(100, 50, beside=lambda: beside)
    budget.take("a", 40)
    with pytest.raises(Overloaded):
        budget.take("b", 1)
    beside = 50
    budget.take("b", 10)


@pytest.mark.parametrize("sizes", [[UNCOUNTED], [UNCOUNTED, 1], [1] * 9, [], [UNCOUNTED // 2] * 4])
def test_a_kept_reply_counts_once_it_is_large_and_is_whole(sizes: list[int]) -> None:
    budget = BufferBudget(2**20, 2**20)
    kept = KeptReply(budget, "a", 2 * UNCOUNTED)
    for size in sizes:
        kept.add(b"x" * size)
    assert budget.held == (sum(sizes) if sum(sizes) > UNCOUNTED else 0)
    assert kept.whole() == b"x" * sum(sizes)
    kept.drop()
    assert budget.held == 0


def test_a_reply_that_is_longer_or_finds_no_room_is_not_kept_and_holds_nothing() -> None:
    for limit, most in ((UNCOUNTED + 1, 2**20), (2**20, UNCOUNTED + 1)):
        budget = BufferBudget(most, most)
        kept = KeptReply(budget, "a", limit)
        for size in (UNCOUNTED, 1, 1, UNCOUNTED):
            kept.add(b"x" * size)
        assert kept.whole() is None
        assert budget.held == 0


def test_a_body_of_the_largest_size_has_room() -> None:
    budget = BufferBudget(10, 20)
    budget.take(("a", 0), 20)
    with pytest.raises(Overloaded):
        budget.take(("b", 0), 1)


def test_memory_is_given_back_when_all_is_over_and_much_was_held() -> None:
    told: list[int] = []
    budget = BufferBudget(2 * MUCH, 2 * MUCH, lambda: told.append(budget.held))
    for sizes in ((10, 20), (MUCH, 1), (10,)):
        for size in sizes:
            budget.take(("192.0.2.1", 0), size)
        for size in sizes:
            budget.give_back(("192.0.2.1", 0), size)
    assert told == [0]
