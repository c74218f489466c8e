"""How long a client is waited for: the time without a byte, and the least rate. In values."""

from __future__ import annotations

import pytest

from gateway.server.client_watch import ClientWatch


def watch(min_rate: int = 500) -> ClientWatch:
    return ClientWatch(timeout=60.0, min_rate=min_rate, window=10.0)


def test_a_client_that_moves_nothing_fails_at_the_deadline_and_not_before() -> None:
    one = watch(min_rate=0)
    one.start(100.0)
    assert one.deadline == 160.0
    assert one.verdict(159.9) is None
    assert one.verdict(160.0) == "timeout"


def test_each_start_gives_the_whole_time_without_a_byte_again() -> None:
    one = watch(min_rate=0)
    one.start(100.0)
    one.stop(159.0)
    one.start(159.0)
    assert one.deadline == 219.0
    one.extend(200.0)
    assert one.deadline == 260.0


def test_the_deadline_is_the_earlier_of_both() -> None:
    one = watch()
    one.start(100.0)
    assert one.deadline == 110.0
    one.rated = False
    assert one.deadline == 160.0
    assert one.verdict(110.0) is None
    one.rated = True
    assert one.verdict(110.0) == "rate"


@pytest.mark.parametrize(("moved", "verdict"), [(4999, "rate"), (5000, None)])
def test_a_window_is_judged_by_what_moved_in_it(moved: int, verdict: str | None) -> None:
    one = watch()
    one.start(100.0)
    one.moved(moved)
    assert one.verdict(110.0) == verdict


def test_after_a_window_that_was_fast_enough_the_next_begins() -> None:
    one = watch()
    one.start(100.0)
    one.moved(1_000_000)
    assert one.verdict(110.0) is None
    assert one.deadline == 120.0
    assert one.verdict(120.0) == "rate"


def test_only_the_time_between_start_and_stop_is_part_of_a_window() -> None:
    one = watch()
    one.start(100.0)
    one.stop(109.0)
    one.start(1000.0)
    assert one.deadline == 1001.0
