"""
One timer for the time of all calls: it ends those that are late, and only those.
"""

from __future__ import annotations

import asyncio

import pytest

from gateway.proxy.deadline import Deadline


def current() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def call(deadline: Deadline, event: asyncio.Event) -> str:
    deadline.begin(current())
    try:
        await event.wait()
    except asyncio.CancelledError:
        return "late" if deadline.end(current()) else "cancelled"
    return "late" if deadline.end(current()) else "in time"


async def test_a_call_that_takes_too_long_is_ended_and_the_others_are_not() -> None:
    deadline, event, never = Deadline(0.2), asyncio.Event(), asyncio.Event()
    late = asyncio.create_task(call(deadline, never))
    in_time = asyncio.create_task(call(deadline, event))
    await asyncio.sleep(0)
    event.set()
    assert await in_time == "in time"
    assert await late == "late"
    assert not deadline._due
    assert await call(deadline, never) == "late", "the timer is set again"


async def test_the_end_of_the_time_is_no_more_than_that() -> None:
    """A task that is cancelled by somebody else as its time ends stays cancelled."""
    deadline = Deadline(0.01)

    async def both() -> None:
        deadline.begin(current())
        try:
            await asyncio.Event().wait()
        finally:
            current().cancel()
            assert not deadline.end(current())

    task = asyncio.create_task(both())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not deadline._due


async def test_who_is_cancelled_by_somebody_else_is_not_late() -> None:
    deadline, never = Deadline(1.0), asyncio.Event()
    task = asyncio.create_task(call(deadline, never))
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "cancelled"
