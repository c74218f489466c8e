"""How fast a client is: over whole windows of waiting, in values."""

from __future__ import annotations

from gateway.server.byte_rate import ByteRate


def test_only_a_window_that_is_over_is_judged() -> None:
    rate = ByteRate()
    rate.start(100.0)
    assert not rate.too_slow(109.9, 500, 10.0)
    assert rate.too_slow(110.0, 500, 10.0)


def test_the_rate_itself_is_fast_enough() -> None:
    rate = ByteRate()
    rate.start(100.0)
    rate.moved += 5000
    assert not rate.too_slow(110.0, 500, 10.0)


def test_a_judgement_that_comes_late_is_about_the_time_that_it_took() -> None:
    rate = ByteRate()
    rate.start(100.0)
    rate.moved += 5000
    assert rate.too_slow(110.1, 500, 10.0)


def test_time_in_which_nobody_waits_does_not_count() -> None:
    rate = ByteRate()
    rate.start(100.0)
    rate.stop(104.0)
    rate.start(200.0)
    assert rate.ends(10.0) == 206.0
    assert not rate.too_slow(205.9, 500, 10.0)
    assert rate.too_slow(206.0, 500, 10.0)


def test_a_burst_buys_no_more_than_its_own_window() -> None:
    rate = ByteRate()
    rate.start(100.0)
    rate.moved += 1_000_000
    assert not rate.too_slow(110.0, 500, 10.0)
    assert rate.ends(10.0) == 120.0
    rate.moved += 4999
    assert rate.too_slow(120.0, 500, 10.0)
