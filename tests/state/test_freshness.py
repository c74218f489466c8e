"""The rules of freshness (S2, S3, S5, S8), for all values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.state.freshness import AHEAD, is_fresh, is_settled, may_have_changed, may_join
from gateway.state.store import Accepted, Reading

TIMES = st.integers(0, 30).map(lambda tenths: 100 + tenths / 10)
AGES = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])
VALUES = st.sampled_from(["connected", "alerting", "disconnected"])
GENERATIONS = st.integers(1, 3)
READINGS = st.builds(
    Reading, body=st.just(b"{}"), started=TIMES, generation=GENERATIONS, learned=st.booleans()
)
ACCEPTED = st.builds(
    lambda value, since, settle: Accepted(value, since, since + settle),
    st.none() | VALUES,
    TIMES | st.just(-math.inf),
    AGES,
)


# --- S2, S3


@given(READINGS, GENERATIONS, AGES, TIMES, TIMES)
def test_nothing_is_fresh_that_seems_to_be_of_the_future(
    reading: Reading, generation: int, max_age: float, since: float, now: float
) -> None:
    """S2: whose clock was set since, or was not known, has an age that nobody knows."""
    if is_fresh(reading, generation, max_age, since, now):
        assert reading.started <= now + AHEAD


@given(READINGS, GENERATIONS, AGES, TIMES, TIMES)
def test_nothing_is_fresh_that_a_write_overtook(
    reading: Reading, generation: int, max_age: float, since: float, now: float
) -> None:
    """S3, however young it is."""
    if is_fresh(reading, generation, max_age, since, now):
        assert reading.generation >= generation


@given(READINGS, AGES.filter(bool), TIMES, TIMES)
def test_what_is_fresh_began_at_most_max_age_ago(
    reading: Reading, max_age: float, since: float, now: float
) -> None:
    young = now - reading.started <= max_age
    asked_since = reading.started >= since and not reading.learned
    dated = reading.started <= now + AHEAD

    assert is_fresh(reading, reading.generation, max_age, since, now) == ((young or asked_since) and dated)


@given(READINGS, TIMES, TIMES)
def test_with_max_age_0_only_a_look_up_that_began_after_the_call_is_fresh(
    reading: Reading, since: float, now: float
) -> None:
    fresh = is_fresh(reading, reading.generation, 0.0, since, now)

    assert fresh == (since <= reading.started <= now + AHEAD and not reading.learned)


@given(READINGS, GENERATIONS, AGES, TIMES, TIMES, st.sampled_from([0.1, 1.0, 60.0]))
def test_what_is_not_fresh_never_becomes_so(
    reading: Reading, generation: int, max_age: float, since: float, now: float, later: float
) -> None:
    if reading.started <= now + AHEAD and not is_fresh(reading, generation, max_age, since, now):
        assert not is_fresh(reading, generation, max_age, since, now + later)


@given(READINGS, GENERATIONS, AGES.filter(bool), TIMES, TIMES, st.sampled_from([0.1, 1.0, 60.0]))
def test_a_shorter_max_age_makes_nothing_fresh(
    reading: Reading, generation: int, max_age: float, since: float, now: float, more: float
) -> None:
    if not is_fresh(reading, generation, max_age + more, since, now):
        assert not is_fresh(reading, generation, max_age, since, now)


# --- S5


@given(READINGS, VALUES, ACCEPTED)
def test_while_a_value_settles_only_a_reading_that_shows_it_will_do(
    reading: Reading, value: str, accepted: Accepted
) -> None:
    settling = accepted.since <= reading.started < accepted.until

    assert is_settled(reading, value, accepted) == (value == accepted.value or not settling)


@given(READINGS, VALUES, ACCEPTED)
def test_nothing_agrees_with_a_value_that_is_not_known(
    reading: Reading, value: str, accepted: Accepted
) -> None:
    unknown = replace(accepted, value=None)

    assert is_settled(reading, value, unknown) == is_settled(reading, None, replace(unknown, value="another"))


@given(READINGS, VALUES, ACCEPTED, VALUES)
def test_what_would_do_with_an_unknown_value_does_with_any(
    reading: Reading, value: str, accepted: Accepted, other: str
) -> None:
    """So that dropping a value, or saying late that it is not known, costs a look-up and harms nothing."""
    if is_settled(reading, value, replace(accepted, value=None)):
        assert is_settled(reading, value, replace(accepted, value=other))


@given(READINGS, VALUES, ACCEPTED, AGES, AGES)
def test_a_longer_span_settles_nothing(
    reading: Reading, value: str, accepted: Accepted, before: float, after: float
) -> None:
    longer = replace(accepted, since=accepted.since - before, until=accepted.until + after)
    if is_settled(reading, value, longer):
        assert is_settled(reading, value, accepted)


@given(READINGS, VALUES)
def test_where_nothing_was_accepted_everything_is_settled(reading: Reading, value: str) -> None:
    assert is_settled(reading, value, None)


@pytest.mark.parametrize(
    ("started", "settled"), [(99.9, True), (100.0, False), (101.9, False), (102.0, True), (103.0, True)]
)
def test_what_was_read_while_it_settled_and_differed_is_of_no_use_later_either(
    started: float, settled: bool
) -> None:
    accepted = Accepted("connected", 100.0, 102.0)

    assert is_settled(Reading(b"{}", started, 1), "alerting", accepted) is settled
    assert is_settled(Reading(b"{}", started, 1), "connected", accepted)


# --- S8


@given(TIMES, AGES, TIMES, TIMES | st.just(-math.inf), TIMES)
def test_what_a_call_joins_gives_it_a_reading_that_is_fresh_now_and_began_late_enough(
    started: float, max_age: float, since: float, not_before: float, now: float
) -> None:
    if started <= now and may_join(started, max_age, since, not_before, now):
        assert is_fresh(Reading(b"{}", started, 1), 1, max_age, since, now)
        assert started >= not_before


@given(READINGS, GENERATIONS, AGES, TIMES, TIMES, st.sampled_from([1.0, 60.0]))
def test_what_a_cache_in_between_had_kept_is_as_much_older(
    reading: Reading, generation: int, max_age: float, since: float, now: float, age: float
) -> None:
    """S2, RFC 9111 section 4.2.3."""
    kept = replace(reading, age=age)
    older = replace(reading, started=reading.started - age)

    assert is_fresh(kept, generation, max_age, since, now) == is_fresh(older, generation, max_age, since, now)


@pytest.mark.parametrize(
    ("status", "unfilled", "filled", "both"),
    [
        (None, True, True, True),
        (200, True, False, True),
        (202, True, False, True),
        (303, True, True, True),
        (400, False, True, True),
        (401, False, True, True),
        (404, False, True, True),
        (408, True, True, True),
        (409, False, True, True),
        (429, False, True, True),
        (500, True, True, True),
        (503, True, True, True),
    ],
)
def test_only_what_may_have_changed_the_state_makes_the_gateway_forget(
    status: int | None, unfilled: bool, filled: bool, both: bool
) -> None:
    """S5. `both`: it was filled, and says something of the state itself."""
    assert may_have_changed(status, filled=False, changing=False) is unfilled
    assert may_have_changed(status, filled=False, changing=True) is unfilled
    assert may_have_changed(status, filled=True, changing=False) is filled
    assert may_have_changed(status, filled=True, changing=True) is both


@given(TIMES, AGES, TIMES)
def test_a_call_joins_what_begins_right_now(started: float, max_age: float, since: float) -> None:
    assert may_join(max(started, since), max_age, since, -math.inf, max(started, since))


def test_nobody_waits_for_a_look_up_that_hangs_once_its_reading_would_be_too_old() -> None:
    assert may_join(100.0, 1.0, 100.5, -math.inf, 100.9)
    assert not may_join(100.0, 1.0, 100.5, -math.inf, 101.0)
    assert may_join(100.0, 1.0, 99.5, -math.inf, 101.0)
