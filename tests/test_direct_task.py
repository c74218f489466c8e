"""
A direct task runs at once and goes on at once; in all else it is a task like asyncio's own.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.direct_task import Arrival, DirectTask

Body = Callable[[list[str]], Coroutine[Any, Any, None]]


class Ended:
    """How a task ended, told once."""

    def __init__(self) -> None:
        self.times = 0
        self.cancelled = False
        self.error: BaseException | None = None

    def __call__(self, task: DirectTask) -> None:
        self.times += 1
        self.cancelled = task.cancelled()
        self.error = None if self.cancelled else task.exception()


def outside(act: Callable[[], None]) -> None:
    """Called by the loop, and not by a task, as what a socket brings is."""
    done = asyncio.get_running_loop().create_future()

    def acted() -> None:
        act()
        done.set_result(None)

    asyncio.get_running_loop().call_soon(acted)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def begun(coroutine: Coroutine[Any, Any, None]) -> tuple[DirectTask, Ended]:
    ended = Ended()
    task = DirectTask(coroutine, asyncio.get_running_loop(), ended)
    outside(task.start)
    return task, ended


async def test_it_runs_to_its_end_in_the_step_in_which_it_is_started() -> None:
    seen: list[str] = []

    async def body() -> None:
        seen.append("ran")

    ended = Ended()
    task = DirectTask(body(), asyncio.get_running_loop(), ended)

    def act() -> None:
        task.start()
        seen.append("started")

    outside(act)
    await turns()
    assert seen == ["ran", "started"]
    assert (ended.times, ended.error, task.done()) == (1, None, True)


async def test_it_goes_on_in_the_step_in_which_what_it_waits_for_is_there() -> None:
    seen: list[str] = []
    arrival = Arrival(asyncio.get_running_loop())

    async def body() -> None:
        await arrival
        seen.append("went on")

    _, ended = begun(body())
    await turns()

    def act() -> None:
        arrival.arrived()
        seen.append("told")

    outside(act)
    await turns()
    assert seen == ["went on", "told"]
    arrival.arrived()
    assert ended.times == 1


async def test_one_of_asyncio_s_own_tasks_can_wait_for_an_arrival() -> None:
    arrival = Arrival(asyncio.get_running_loop())

    async def body() -> str:
        await arrival
        return "went on"

    task = asyncio.create_task(body())
    await turns()
    outside(arrival.arrived)
    assert await task == "went on"


async def test_within_another_task_neither_starts_nor_goes_on_before_that_waits() -> None:
    seen: list[str] = []
    loop = asyncio.get_running_loop()
    arrival, plain = Arrival(loop), Arrival(loop)

    async def body() -> None:
        seen.append("began")
        await arrival
        seen.append("went on")

    async def other() -> None:
        await plain
        seen.append("went on too")

    task = DirectTask(body(), loop, Ended())
    waiting = asyncio.create_task(other())
    task.start()
    assert seen == []
    await turns()
    assert seen == ["began"]
    arrival.arrived()
    plain.arrived()
    assert seen == ["began"]
    await waiting
    assert sorted(seen) == ["began", "went on", "went on too"]


async def test_who_asks_for_the_current_task_gets_it() -> None:
    found: list[object] = []

    async def body() -> None:
        found.append(asyncio.current_task())
        await asyncio.sleep(0)
        found.append(asyncio.current_task())

    task, _ = begun(body())
    await turns()
    assert found == [task, task]
    assert task.get_loop() is asyncio.get_running_loop()


async def test_a_timeout_ends_what_takes_too_long_and_nothing_else() -> None:
    seen: list[str] = []

    async def body() -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(0.001)
            seen.append("in time")
        try:
            async with asyncio.timeout(0.01):
                await Arrival(asyncio.get_running_loop())
        except TimeoutError:
            seen.append("late")
        await asyncio.sleep(0.001)
        seen.append("and on")

    task, ended = begun(body())
    await asyncio.sleep(0.1)
    assert seen == ["in time", "late", "and on"]
    assert (ended.times, ended.error, task.cancelling()) == (1, None, 0)


@pytest.mark.parametrize("waits_for", ["an arrival", "a future", "another task", "a turn", "nothing yet"])
async def test_it_can_be_cancelled_wherever_it_waits(waits_for: str) -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    async def body() -> None:
        try:
            if waits_for == "an arrival":
                await Arrival(loop)
            elif waits_for == "a future":
                await loop.create_future()
            elif waits_for == "another task":
                await asyncio.ensure_future(asyncio.sleep(100))
            else:
                for _ in range(1000):
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    ended = Ended()
    task = DirectTask(body(), loop, ended)
    if waits_for != "nothing yet":
        outside(task.start)
        await turns()
    assert task.cancel()
    if waits_for == "nothing yet":
        outside(task.start)
    await turns()
    assert (ended.times, ended.cancelled) == (1, True)
    assert seen == (["cancelled"] if waits_for != "nothing yet" else [])
    assert not task.cancel()


async def test_what_has_arrived_in_the_moment_of_the_cancellation_is_cancelled_at_its_next_wait() -> None:
    loop = asyncio.get_running_loop()
    arrival = Arrival(loop)
    seen: list[str] = []

    async def body() -> None:
        await arrival
        seen.append("went on")
        await asyncio.sleep(0)
        seen.append("and on")

    task, ended = begun(body())
    await turns()
    arrival.arrived()  # within this task: the other goes on in the next turn
    task.cancel()
    await turns()
    assert ended.cancelled
    assert seen == []


async def test_what_it_raises_is_told() -> None:
    async def body() -> None:
        raise ValueError("x")

    _, ended = begun(body())
    await turns()
    assert isinstance(ended.error, ValueError)


async def test_an_error_that_it_waited_for_is_raised_in_it() -> None:
    future = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def body() -> None:
        try:
            await future
        except ValueError as error:
            seen.append(str(error))

    begun(body())
    await turns()
    future.set_exception(ValueError("x"))
    await turns()
    assert seen == ["x"]


async def test_one_that_was_cancelled_keeps_nothing_until_the_collector_comes() -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)

    async def body(one: object) -> None:
        await Arrival(asyncio.get_running_loop())

    gc.disable()
    try:
        task, _ = begun(body(held))
        del held
        await turns()
        task.cancel()
        await turns()
        assert gone() is None
    finally:
        gc.enable()


async def test_an_error_in_the_ending_of_one_is_nothing_to_whoever_woke_it() -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    arrival = Arrival(loop)
    seen: list[str] = []

    async def body() -> None:
        await arrival

    def fails(task: DirectTask) -> None:
        raise ValueError("x")

    task = DirectTask(body(), loop, fails)
    outside(task.start)
    await turns()

    def act() -> None:
        arrival.arrived()
        seen.append("went on")

    outside(act)
    await turns()
    loop.set_exception_handler(None)
    assert seen == ["went on"]
    assert [str(one["exception"]) for one in told] == ["x"]
