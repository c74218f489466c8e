"""
When a reading may be filled: the rules of S2, S3 and S5, as functions of values.

Nothing here waits, reads a clock or asks a store: `lookup.py` brings the values together and acts on them.
All times are of the store's clock.
"""

from __future__ import annotations

from gateway.state.store import Accepted, Reading

AHEAD = 1.0  # seconds by which the clocks of processes that share a store may differ


def is_fresh(reading: Reading, generation: int, max_age: float, since: float, now: float) -> bool:
    """
    S3: its generation is not before the conversation's current one, so no write that may have changed
    anything began since its stamp was taken.
    S2: what it shows was read at most `max_age` before `now`; or by a look-up that began after the call had
    arrived (`since`), since nothing is fresher. A client's own GET was not made for a fill. What seems
    to be of the future was dated by a clock that was set since, or not known yet: nobody knows its age.
    """
    if reading.generation < generation:
        return False
    read = reading.started - reading.age
    if read - now > AHEAD:
        return False
    if max_age and now - read <= max_age:
        return True
    return read >= since and not reading.learned


def is_settled(reading: Reading, value: object, accepted: Accepted | None) -> bool:
    """
    S5: the value that was read is the one that was accepted last; or the reading began when that had
    settled. A reading that began before and differs stays useless afterwards. One that began before the
    value was accepted is not judged here: its generation tells (S3).
    """
    if accepted is None or value == accepted.value:
        return True
    # What a cache in between had kept may show less than the GET's start says.
    return not (accepted.since <= reading.started and reading.started - reading.age < accepted.until)


def may_join(started: float, max_age: float, since: float, not_before: float, now: float) -> bool:
    """
    S8: whether a call may wait for a look-up in flight instead of making one of its own. It may not be older
    than what the call needs (S2), nor have begun before `not_before`, when the last one disagreed (S5).
    """
    if started < not_before:
        return False
    return started >= since or (max_age > 0 and now - started < max_age)


def may_have_changed(status: int | None, *, filled: bool, changing: bool) -> bool:
    """
    S5: whether what was read before a call is to be forgotten, now that the upstream has answered it with
    `status`, or not (None). `changing`: it says something of the state itself. One that does not, and was
    filled, leaves the state as it was if it was accepted; if it was refused, its value was doubtful. Any
    other that was refused changed nothing. 408 says that the upstream had not read it whole, and not more.
    """
    if status is None:
        return True
    if filled:
        return changing or not 200 <= status < 300
    return not 400 <= status < 500 or status == 408
