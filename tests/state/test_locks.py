"""The order of writes to one conversation, in virtual time: who waits for whom, and what is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import LockTimeout
from gateway.state.locks import ConversationLocks
from tests.simulation.loop import Loop

TIMEOUT = 5.0


def lived(story: Callable[[], Awaitable[None]], seed: int | None = None) -> None:
    """In virtual time; with a seed, what is ready at one moment runs in any order."""

    async def told() -> None:
        await story()

    Loop(None if seed is None else Random(seed)).run(told())


@dataclass(slots=True)
class Line:
    """Calls to one conversation, each a task that holds its turn until it is told to end."""

    order: ConversationLocks = field(default_factory=lambda: ConversationLocks(TIMEOUT))
    held: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def call(self, name: str, *, exclusive: bool, conversation: str = "c1") -> Call:
        ended = asyncio.Event()
        return Call(asyncio.create_task(self._live(name, exclusive, conversation, ended)), ended)

    async def _live(self, name: str, exclusive: bool, conversation: str, ended: asyncio.Event) -> None:
        with await self.order.acquire(conversation, exclusive=exclusive):
            self.held.append(name)
            self.log.append(name)
            try:
                await ended.wait()
            finally:
                self.held.remove(name)


@dataclass(slots=True)
class Call:
    task: asyncio.Task[None]
    ended: asyncio.Event

    async def end(self) -> None:
        self.ended.set()
        await self.task


async def a_moment() -> None:
    """Virtual time passes only when nobody has anything left to do."""
    await asyncio.sleep(0.001)


def test_calls_that_leave_the_state_share() -> None:
    async def story() -> None:
        line = Line()
        calls = [line.call(name, exclusive=False) for name in "abc"]
        await a_moment()
        assert line.held == ["a", "b", "c"]
        for call in calls:
            await call.end()
        assert len(line.order) == 0

    lived(story)


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_a_call_that_may_change_the_state_excludes(first: bool, second: bool) -> None:
    async def story() -> None:
        line = Line()
        before = line.call("before", exclusive=first)
        await a_moment()
        behind = line.call("behind", exclusive=second)
        await a_moment()
        assert line.held == ["before"]
        await before.end()
        await a_moment()
        assert line.held == ["behind"]
        await behind.end()
        assert len(line.order) == 0

    lived(story)


def test_first_come_first_served_also_for_one_that_could_share_with_those_in_flight() -> None:
    async def story() -> None:
        line = Line()
        names = ["r1", "r2", "w1", "r3", "r4", "w2", "w3", "r5"]
        calls = {name: line.call(name, exclusive=name.startswith("w")) for name in names}
        await a_moment()
        seen = []
        while calls:
            seen.append(list(line.held))
            for name in list(line.held):
                await calls.pop(name).end()
            await a_moment()
        assert seen == [["r1", "r2"], ["w1"], ["r3", "r4"], ["w2"], ["w3"], ["r5"]]

    lived(story)


def test_conversations_do_not_wait_for_each_other_nor_calls_about_none() -> None:
    async def story() -> None:
        line = Line()
        calls = [line.call(name, exclusive=True, conversation=name) for name in "abc"]
        nowhere = [await line.order.acquire(None, exclusive=True) for _ in range(2)]
        await a_moment()
        assert line.held == ["a", "b", "c"]
        for turn in nowhere:
            turn.release()
        for call in calls:
            await call.end()
        assert len(line.order) == 0

    lived(story)


def test_a_turn_is_given_back_once_however_often_it_is_released() -> None:
    async def story() -> None:
        order = ConversationLocks(TIMEOUT)
        first = await order.acquire("c1", exclusive=False)
        with await order.acquire("c1", exclusive=False) as second:
            first.release()
            first.release()
            second.release()
        turn = await order.acquire("c1", exclusive=True)
        assert order.exclusive("c1")
        turn.release()
        assert len(order) == 0

    lived(story)


def test_a_turn_says_whether_others_were_before_it() -> None:
    async def story() -> None:
        order = ConversationLocks(TIMEOUT)
        first = await order.acquire("c1", exclusive=True)
        waiting = asyncio.ensure_future(order.acquire("c1", exclusive=False))
        await a_moment()
        first.release()
        second = await waiting
        assert (first.waited, second.waited) == (False, True)
        second.release()

    lived(story)


def test_it_is_known_whether_a_write_is_in_flight_or_waits() -> None:
    async def story() -> None:
        line = Line()
        assert not line.order.exclusive("c1")
        assert not line.order.exclusive(None)
        sharing = line.call("r", exclusive=False)
        await a_moment()
        assert not line.order.exclusive("c1")
        waiting = line.call("w", exclusive=True)
        await a_moment()
        assert line.order.exclusive("c1")
        await sharing.end()
        await a_moment()
        assert line.order.exclusive("c1")
        await waiting.end()
        assert not line.order.exclusive("c1")

    lived(story)


def test_waiting_ends_after_the_timeout_and_those_behind_move_up() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        line = Line()
        sharing = line.call("r1", exclusive=False)
        await a_moment()
        writer = line.call("w", exclusive=True)
        await asyncio.sleep(1)
        behind = line.call("r2", exclusive=False)
        began = loop.time()
        with pytest.raises(LockTimeout, match="it waited 5 s"):
            await writer.task
        assert loop.time() - began == pytest.approx(TIMEOUT - 1, abs=0.01)
        await a_moment()
        assert line.held == ["r1", "r2"]
        await sharing.end()
        await behind.end()
        assert len(line.order) == 0

    lived(story)


def test_a_call_that_is_cancelled_in_the_moment_it_gets_its_turn_hands_it_on() -> None:
    async def story() -> None:
        line = Line()
        first = await line.order.acquire("c1", exclusive=True)
        second, third = line.call("second", exclusive=True), line.call("third", exclusive=True)
        await a_moment()
        first.release()  # by now the turn is the second's, which does not know it yet
        second.task.cancel()
        await a_moment()
        assert line.log == ["third"]
        await third.end()
        assert len(line.order) == 0

    lived(story)


def test_a_turn_given_in_the_moment_that_the_waiting_timed_out_is_handed_on() -> None:
    async def story() -> None:
        line = Line()
        first = line.call("first", exclusive=True)
        await a_moment()
        second = line.call("second", exclusive=True)
        asyncio.get_running_loop().call_later(TIMEOUT, first.ended.set)
        await asyncio.sleep(TIMEOUT + 0.1)
        assert first.task.done()
        assert line.held in ([], ["second"])
        assert second.task.done() == (line.held == [])
        third = line.call("third", exclusive=True)
        if line.held:
            await second.end()
        else:
            assert isinstance(second.task.exception(), LockTimeout)
        await a_moment()
        assert line.held == ["third"]
        await third.end()
        assert len(line.order) == 0

    for seed in range(20):
        lived(story, seed)


def test_a_flood_of_conversations_leaves_nothing() -> None:
    async def story() -> None:
        order = ConversationLocks(TIMEOUT)
        for number in range(100_000):
            (await order.acquire(f"c{number}", exclusive=bool(number % 2))).release()
        assert len(order) == 0

    lived(story)


# --- against a model


@dataclass(slots=True)
class Modelled:
    name: str
    exclusive: bool
    came: float
    ended: bool = False


@dataclass(slots=True)
class Model:
    """One conversation's line as it ought to be."""

    holding: list[Modelled] = field(default_factory=list)
    waiting: list[Modelled] = field(default_factory=list)

    def admit(self) -> None:
        while self.waiting:
            head = self.waiting[0]
            if self.holding and (head.exclusive or self.holding[0].exclusive):
                return
            self.waiting.pop(0)
            if not head.ended:
                self.holding.append(head)

    def remove(self, name: str) -> None:
        self.holding = [one for one in self.holding if one.name != name]
        self.waiting = [one for one in self.waiting if one.name != name]
        self.admit()

    def end(self, name: str) -> None:
        for one in self.waiting:
            if one.name == name:
                one.ended = True
                return
        self.remove(name)

    def pass_to(self, now: float) -> None:
        """One after the other: whoever gives up lets those behind move up, in time or not."""
        for one in list(self.waiting):
            if one in self.waiting and now - one.came >= TIMEOUT:
                self.remove(one.name)


STEP = st.one_of(
    st.tuples(st.just("come"), st.sampled_from(["c1", "c2"]), st.booleans()),
    st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.0, 5.5]), st.booleans()),
)


@given(st.lists(STEP, max_size=40), st.none() | st.integers(0, 2**16))
def test_any_coming_ending_leaving_and_waiting_gives_the_turns_as_the_model_does(
    steps: list[tuple[str, object, bool]], seed: int | None
) -> None:
    """`end` and `cancel` reach a call at any point: before it waits, while it does, as its turn comes."""

    async def story() -> None:
        line, loop = Line(), asyncio.get_running_loop()
        models = {"c1": Model(), "c2": Model()}
        calls: dict[str, tuple[str, Call]] = {}
        for number, (kind, what, flag) in enumerate(steps):
            if kind == "come":
                name, conversation = str(number), str(what)
                calls[name] = (conversation, line.call(name, exclusive=flag, conversation=conversation))
                await a_moment()
                models[conversation].waiting.append(Modelled(name, flag, loop.time()))
                models[conversation].admit()
            elif kind == "wait":
                assert isinstance(what, float)
                await asyncio.sleep(what)
                for model in models.values():
                    model.pass_to(loop.time())
            elif calls:
                assert isinstance(what, int)
                name = sorted(calls)[what % len(calls)]
                conversation, call = calls[name]
                if kind == "end":
                    call.ended.set()
                    models[conversation].end(name)
                else:
                    call.task.cancel()
                    models[conversation].remove(name)
                # Without a pause the next step finds the line in the middle of its doings.
                if flag:
                    await a_moment()
        await a_moment()
        held = sorted(one.name for model in models.values() for one in model.holding)
        assert sorted(line.held) == held
        assert Counter(line.held).total() == len(set(line.held))
        for _, call in calls.values():
            call.task.cancel()
        await asyncio.gather(*(call.task for _, call in calls.values()), return_exceptions=True)
        assert len(line.order) == 0

    lived(story, seed)
