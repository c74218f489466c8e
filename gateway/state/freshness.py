"""
When a reading may be filled: the rules of S2, S3 and S5, as functions of values.

Nothing here waits, reads a clock or asks a store: `lookup.py` brings the values together and acts on them.
All times are of the store's clock.
"""

from __future__ import annotations

from gateway.state.store import Accepted, Reading


def is_fresh(reading: Reading, generation: int, max_age: float, since: float, now: float) -> bool:
    """
    S3: its generation is the conversation's current one, so no write began since its stamp was taken.
    S2: its GET began at most `max_age` before `now`. With 0 that can't be, so the GET must have begun after
    the call had arrived (`since`), and be a look-up: a client's own GET was not made for a fill.
    """
    if reading.generation != generation:
        return False
    if max_age == 0:
        return reading.started >= since and not reading.learned
    return now - reading.started <= max_age


def is_settled(reading: Reading, value: object, accepted: Accepted | None) -> bool:
    """
    S5: the value that was read is the one that was accepted last; or the reading began when that had
    settled. A reading that began before and differs stays useless afterwards. One that began before the
    value was accepted is not judged here: its generation tells (S3).
    """
    if accepted is None or value == accepted.value:
        return True
    return not accepted.since <= reading.started < accepted.until


def may_join(started: float, max_age: float, since: float, not_before: float, now: float) -> bool:
    """
    S8: whether a call may wait for a look-up in flight instead of making one of its own. It may not be older
    than what the call needs (S2), nor have begun before `not_before`, when the last one disagreed (S5).
    """
    if max_age == 0:
        return started >= max(since, not_before)
    # A call does not wait for a GET whose result would be too old for it.
    return started >= not_before and now - started < max_age
