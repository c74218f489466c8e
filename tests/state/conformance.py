"""
What every store and every kind of conversation lock must do, whoever keeps them (gateway/state/store.py).

A test class derives from StoreContract or LocksContract, and says how one is made and how time passes for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import LockBusy, LockTimeout
from gateway.state.store import Key, Locks, Reading, Refusal, Store, View
from tests.simulation.loop import Loop

WHOSE = ("state", "c1", "p1")
KEY = Key("c1", b"/conversations/c1", "A")
REFUSAL = Refusal(429, [(b"retry-after", b"9"), (b"x-a", b"1"), (b"x-a", b"2")], b"\x00slow down\xff")
TICK = 0.001  # seconds that pass with each look at the clock, so that no two events have one time


class Clock:
    """Wound by hand; it never shows the same time twice."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        self.time += TICK
        return self.time


def key(conversation: str, credential: str = "A") -> Key:
    return Key(conversation, b"/conversations/" + conversation.encode(), credential)


async def reading(store: Store, key: Key, body: bytes = b"{}", etag: bytes | None = None) -> Reading:
    """As a look-up that began now would make it."""
    stamp = await store.stamp(key.conversation)
    return Reading(body, stamp.time, stamp.generation, etag)


def shown(view: View) -> bytes | None:
    """The body of the reading that may be filled."""
    return view.reading.body if view.reading and view.reading.generation == view.generation else None


class StoreContract:
    """
    Every store passes this. `make` returns an empty one; `advance` lets time pass for all that it made.
    APART: seconds by which an accepted value's span may be shown as longer, where a store goes by two clocks.
    """

    APART = 0.0

    def make(self, *, max_entries: int = 100) -> Store:
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        raise NotImplementedError

    # --- time

    async def test_its_clock_never_goes_back_and_is_never_behind_what_it_says(self) -> None:
        store = self.make()
        await store.stamp("c1")
        for _ in range(20):
            before = store.now()
            stamp = await store.stamp("c1")
            view = await store.view(KEY, WHOSE)
            assert before <= stamp.time <= view.time <= store.now()

    async def test_time_passes(self) -> None:
        store = self.make()
        before = await store.stamp("c1")
        await self.advance(2.0)
        assert (await store.stamp("c1")).time - before.time == pytest.approx(2.0, abs=0.5)
        assert store.now() - before.time == pytest.approx(2.0, abs=0.5)

    # --- readings

    async def test_what_was_put_is_shown_as_it_was(self) -> None:
        store = self.make()
        for etag, learned in ((None, False), (b'W/"\xff"', True)):
            stamp = await store.stamp("c1")
            put = Reading(b"\x00\xff{}", stamp.time, stamp.generation, etag, learned)
            assert await store.put(KEY, put)
            found = (await store.view(KEY, WHOSE)).reading
            assert found is not None
            assert (found.body, found.started, found.generation) == (put.body, put.started, put.generation)
            assert (found.etag, found.learned) == (etag, learned)

    async def test_what_can_be_told_at_once_is_what_a_view_says(self) -> None:
        store = self.make()
        await store.put(KEY, await reading(store, KEY))
        await store.accept(WHOSE, "connected", 2.0)
        view, at_once = await store.view(KEY, WHOSE), store.try_view(KEY, WHOSE)
        if at_once is not None:
            assert shown(at_once) == shown(view)
            assert at_once.accepted == view.accepted
            assert (at_once.generation, at_once.time >= view.time) == (view.generation, True)

    async def test_a_conversation_that_nobody_knows_has_nothing_but_a_generation(self) -> None:
        store = self.make()
        view = await store.view(KEY, WHOSE)
        assert (view.reading, view.accepted, view.pause) == (None, None, None)
        assert (await store.stamp("c1")).generation == view.generation

    @pytest.mark.parametrize(
        "other",
        [
            Key("c2", KEY.target, KEY.credential),
            Key(KEY.conversation, b"/conversations/c1?expand=1", KEY.credential),
            Key(KEY.conversation, KEY.target, "B"),
        ],
    )
    async def test_a_reading_is_shown_for_its_own_key_alone(self, other: Key) -> None:
        """S6: nor to another caller."""
        store = self.make()
        await store.put(KEY, await reading(store, KEY))
        assert (await store.view(other, WHOSE)).reading is None

    async def test_a_later_reading_replaces_an_earlier_one_but_never_the_other_way_round(self) -> None:
        store = self.make()
        early = await reading(store, KEY, b"early")
        late = await reading(store, KEY, b"late")
        assert await store.put(KEY, late)
        assert not await store.put(KEY, early)
        assert shown(await store.view(KEY, WHOSE)) == b"late"
        assert await store.put(KEY, await reading(store, KEY, b"later"))
        assert shown(await store.view(KEY, WHOSE)) == b"later"

    # --- generations

    @pytest.mark.parametrize("which", ["c1", None])
    async def test_what_is_invalidated_is_not_current_any_more(self, which: str | None) -> None:
        """S3. It may still be shown, so that it can be revalidated."""
        store = self.make()
        await store.put(KEY, await reading(store, KEY))
        before = await store.view(KEY, WHOSE)
        await store.invalidate(which)
        after = await store.view(KEY, WHOSE)
        assert shown(before) is not None
        assert shown(after) is None
        assert after.generation != before.generation

    async def test_other_conversations_stay_as_they_are(self) -> None:
        store = self.make()
        await store.put(key("c2"), await reading(store, key("c2")))
        await store.invalidate("c1")
        assert shown(await store.view(key("c2"), WHOSE)) is not None

    @pytest.mark.parametrize("which", ["c1", None])
    async def test_what_an_invalidation_overtook_is_not_kept(self, which: str | None) -> None:
        """S3: a GET that a write overtakes shows the state from before it."""
        store = self.make()
        overtaken = await reading(store, KEY)
        await store.invalidate(which)
        assert not await store.put(KEY, overtaken)
        assert (await store.view(KEY, WHOSE)).reading is None
        assert await store.put(KEY, await reading(store, KEY))

    async def test_what_an_invalidation_overtook_does_not_replace_what_was_read_since(self) -> None:
        store = self.make()
        overtaken = await reading(store, KEY, b"overtaken")
        await store.invalidate("c1")
        await store.put(KEY, await reading(store, KEY, b"since"))
        assert not await store.put(KEY, overtaken)
        assert shown(await store.view(KEY, WHOSE)) == b"since"

    async def test_a_generation_never_comes_back_however_many_conversations_there_are(self) -> None:
        store = self.make(max_entries=5)
        rng = Random(1)
        seen: dict[str, list[int]] = {}
        for number in range(300):
            conversation = f"c{rng.randrange(12)}"
            generations = seen.setdefault(conversation, [])
            now = (await store.stamp(conversation)).generation
            assert now not in generations[:-1], "one that it had before its last"
            if now not in generations:
                generations.append(now)
            if rng.random() < 0.3:
                await store.invalidate(None if number % 10 == 0 else conversation)
                assert (await store.stamp(conversation)).generation not in generations

    async def test_what_was_read_before_its_generation_was_dropped_is_never_current_again(self) -> None:
        store = self.make(max_entries=5)
        before = await reading(store, KEY)
        await store.invalidate("c1")
        for number in range(20):
            await store.stamp(f"other{number}")
        assert (await store.stamp("c1")).generation != before.generation
        assert not await store.put(KEY, before)

    # --- writes in flight

    async def test_what_a_refused_write_suspended_is_good_again_and_what_was_read_meanwhile_too(self) -> None:
        store = self.make()
        await store.put(KEY, await reading(store, KEY))
        suspension = await store.suspend("c1")
        view = await store.view(KEY, WHOSE)
        assert shown(view) is None
        meanwhile = await reading(store, KEY, b"meanwhile")
        await store.reinstate(suspension)
        view = await store.view(KEY, WHOSE)
        assert view.reading is not None
        assert view.reading.generation >= view.generation
        assert await store.put(KEY, meanwhile)

    @pytest.mark.parametrize("which", ["c1", None])
    async def test_what_was_invalidated_meanwhile_is_not_reinstated(self, which: str | None) -> None:
        store = self.make()
        before = await reading(store, KEY)
        suspension = await store.suspend("c1")
        await store.invalidate(which)
        await store.reinstate(suspension)
        assert not await store.put(KEY, before)
        assert shown(await store.view(KEY, WHOSE)) is None

    # --- accepted values

    async def test_the_value_that_was_accepted_last_is_told_of_its_subject_alone(self) -> None:
        store = self.make()
        await store.accept(WHOSE, "alerting", 2.0)
        before = store.now()
        await store.accept(WHOSE, "connected", 2.0)
        view = await store.view(KEY, WHOSE)
        assert view.accepted is not None
        assert view.accepted.value == "connected"
        assert before - self.APART <= view.accepted.since <= view.time
        assert view.accepted.until == pytest.approx(view.accepted.since + 2.0, abs=self.APART + 1e-3)
        for other in (("held", "c1", "p1"), ("state", "c1", "p2"), ("state", "c2", "p1"), ("state", "c1")):
            assert (await store.view(KEY, other)).accepted is None

    async def test_which_value_was_accepted_may_be_unknown(self) -> None:
        store = self.make()
        await store.accept(WHOSE, "connected", 2.0)
        await store.accept(WHOSE, None, 2.0)
        view = await store.view(KEY, WHOSE)
        assert view.accepted is not None
        assert view.accepted.value is None

    async def test_an_accepted_value_is_told_also_when_it_has_settled(self) -> None:
        """S5: what was read before it had is of no use later either."""
        store = self.make()
        await store.accept(WHOSE, "connected", 0.2)
        await self.advance(0.4)
        view = await store.view(KEY, WHOSE)
        assert view.accepted is not None
        assert view.accepted.value == "connected"
        assert view.accepted.until < view.time

    async def test_an_invalidation_does_not_touch_what_was_accepted(self) -> None:
        store = self.make()
        await store.accept(WHOSE, "connected", 2.0)
        for which in ("c1", None):
            await store.invalidate(which)
            accepted = (await store.view(KEY, WHOSE)).accepted
            assert accepted is not None
            assert accepted.value == "connected"

    async def test_where_an_accepted_value_was_dropped_its_span_is_still_told(self) -> None:
        store = self.make(max_entries=5)
        await store.accept(WHOSE, "connected", 60.0)
        known = (await store.view(KEY, WHOSE)).accepted
        assert known is not None
        for number in range(20):
            await store.accept(("state", f"c{number}", "p2"), "connected", 1.0)
        still_known = 0
        for subject in (WHOSE, *(("state", f"c{number}", "p2") for number in range(20))):
            accepted = (await store.view(KEY, subject)).accepted
            assert accepted is not None
            still_known += accepted.value is not None
            if subject == WHOSE:
                assert accepted.since <= known.since
                assert accepted.until >= known.until
        assert 0 < still_known <= 5

    # --- pauses

    async def test_a_pause_is_one_credentials_alone_and_ends(self) -> None:
        store = self.make()
        before = (await store.stamp("c1")).time
        await store.pause("A", REFUSAL, 2.0)
        view = await store.view(KEY, WHOSE)
        assert view.pause is not None
        assert view.pause.until == pytest.approx(before + 2.0, abs=0.5)
        assert (view.pause.refusal.status, view.pause.refusal.body) == (REFUSAL.status, REFUSAL.body)
        assert list(view.pause.refusal.headers) == list(REFUSAL.headers)
        assert (await store.view(key("c2"), WHOSE)).pause is not None
        assert (await store.view(key("c1", "B"), WHOSE)).pause is None
        await self.advance(2.5)
        assert (await store.view(KEY, WHOSE)).pause is None

    async def test_the_latest_pause_counts(self) -> None:
        store = self.make()
        await store.pause("A", REFUSAL, 60.0)
        await store.pause("A", REFUSAL, 1.0)
        await self.advance(1.5)
        assert (await store.view(KEY, WHOSE)).pause is None

    # --- bounds

    async def test_it_holds_no_more_than_it_may(self) -> None:
        store = self.make(max_entries=10)
        keys = [key(f"c{number}", f"caller{number}") for number in range(50)]
        for one in keys:
            assert await store.put(one, await reading(store, one))
            await store.pause(one.credential, REFUSAL, 60.0)
        views = [await store.view(one, WHOSE) for one in reversed(keys)]
        assert 0 < sum(view.reading is not None for view in views) <= 10
        assert 0 < sum(view.pause is not None for view in views) <= 10

    async def test_what_was_just_put_is_there(self) -> None:
        store = self.make(max_entries=10)
        for number in range(50):
            one = key(f"c{number}")
            await store.put(one, await reading(store, one))
            assert shown(await store.view(one, WHOSE)) is not None

    # --- one step

    @pytest.mark.parametrize("seed", range(10))
    async def test_a_view_is_one_step(self, seed: int) -> None:
        """
        Each write accepts its number before it invalidates, and each reading shows the number of the write
        that it was read after. No view may know the one and not the other.
        """
        store, rng = self.make(), Random(seed)
        first = (await store.stamp("c1")).generation
        numbers = {first: 0}
        torn: list[str] = []

        async def moment() -> None:
            await asyncio.sleep(rng.choice((0.0, 0.0, 0.001)))

        async def write() -> None:
            for number in range(1, 12):
                await moment()
                await store.accept(WHOSE, str(number), 60.0)
                await store.invalidate("c1")
                numbers[(await store.stamp("c1")).generation] = number

        async def read() -> None:
            for _ in range(12):
                stamp = await store.stamp("c1")
                await moment()
                await store.put(KEY, Reading(b"%d" % stamp.generation, stamp.time, stamp.generation))

        views: list[View] = []

        async def view() -> None:
            for _ in range(24):
                await moment()
                views.append(await store.view(KEY, WHOSE))

        await asyncio.gather(write(), read(), read(), view(), view())
        for one in views:
            accepted = int((one.accepted and one.accepted.value) or 0)
            if accepted < numbers[one.generation]:
                torn.append(f"generation of {numbers[one.generation]}, accepted {accepted}")
            if one.reading and one.reading.body != b"%d" % one.reading.generation:
                torn.append("a reading of one generation with another's body")
        assert torn == []

    @pytest.mark.parametrize("seed", range(10))
    async def test_putting_is_one_step(self, seed: int) -> None:
        """However they come between each other, nothing that a write overtook is shown after it."""
        store, rng = self.make(), Random(seed)
        written = 0

        async def write() -> None:
            nonlocal written
            for number in range(1, 15):
                await asyncio.sleep(rng.choice((0.0, 0.001, 0.003)))
                await store.invalidate("c1")
                written = number

        async def read() -> None:
            for _ in range(15):
                stamp, after = await store.stamp("c1"), written
                await asyncio.sleep(rng.choice((0.0, 0.001, 0.003)))
                await store.put(KEY, Reading(b"%d" % after, stamp.time, stamp.generation))

        async def view() -> None:
            for _ in range(30):
                before = written
                found = shown(await store.view(KEY, WHOSE))
                # The stamp may have been taken when the write was over, and before that was noted.
                assert found is None or int(found) >= before - 1
                await asyncio.sleep(rng.choice((0.0, 0.001)))

        await asyncio.gather(write(), read(), read(), view())

    @pytest.mark.parametrize("wait", [0, 1, 2])
    async def test_invalidating_and_accepting_are_done_once_called(self, wait: int) -> None:
        """Whenever the caller is cancelled: the call that they are about has left."""
        store = self.make()
        await store.put(KEY, await reading(store, KEY))
        for call in (store.invalidate("c1"), store.accept(WHOSE, "connected", 2.0)):
            task = asyncio.ensure_future(call)
            for _ in range(1 + wait):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.advance(0.1)
        view = await store.view(KEY, WHOSE)
        assert shown(view) is None
        assert view.accepted is not None

    async def test_it_can_be_closed(self) -> None:
        store = self.make()
        await store.put(KEY, await reading(store, KEY))
        await store.close()


# --- locks


@dataclass(slots=True)
class Holders:
    """Calls to some conversations, each a task that holds its lock until it is told to end."""

    locks: Locks
    held: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def call(self, name: str, *, exclusive: bool, conversation: str = "c1", caller: str = "A") -> Call:
        ended = asyncio.Event()
        return Call(asyncio.create_task(self._live(name, exclusive, conversation, caller, ended)), ended)

    async def _live(
        self, name: str, exclusive: bool, conversation: str, caller: str, ended: asyncio.Event
    ) -> None:
        with await self.locks.acquire(conversation, exclusive=exclusive, caller=caller):
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


class LocksContract:
    """
    Every kind of conversation lock passes this. `make` returns a set of them; waiting for one ends after
    TIMEOUT seconds, and MAX_WAITING calls of one caller may wait for one conversation. `run` is the loop that
    a test runs in: in virtual time, where they need no other.
    """

    TIMEOUT = 5.0
    MAX_WAITING = 32
    MOMENT = 0.001  # seconds, until all that can happen has happened
    FLOOD = 100_000

    def make(self) -> Locks:
        raise NotImplementedError

    def run(self, story: Callable[[], Awaitable[None]], seed: int | None = None) -> None:
        """With a seed, what is ready at one moment runs in any order."""

        async def told() -> None:
            await story()

        Loop(None if seed is None else Random(seed)).run(told())

    async def moment(self) -> None:
        await asyncio.sleep(self.MOMENT)

    def test_shared_locks_are_held_together(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            calls = [holders.call(name, exclusive=False) for name in "abc"]
            await self.moment()
            assert sorted(holders.held) == ["a", "b", "c"]
            for call in calls:
                await call.end()
            assert len(holders.locks) == 0

        self.run(story)

    @pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
    def test_an_exclusive_lock_is_held_alone(self, first: bool, second: bool) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            before = holders.call("before", exclusive=first)
            await self.moment()
            behind = holders.call("behind", exclusive=second)
            await self.moment()
            assert holders.held == ["before"]
            await before.end()
            await self.moment()
            assert holders.held == ["behind"]
            await behind.end()
            assert len(holders.locks) == 0

        self.run(story)

    def test_first_in_first_out_also_for_one_that_could_share_with_those_that_hold(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            calls = {}
            for name in ("r1", "r2", "w1", "r3", "r4", "w2", "w3", "r5"):
                calls[name] = holders.call(name, exclusive=name.startswith("w"))
                await self.moment()
            seen = []
            while calls:
                seen.append(sorted(holders.held))
                for name in list(holders.held):
                    await calls.pop(name).end()
                await self.moment()
            assert seen == [["r1", "r2"], ["w1"], ["r3", "r4"], ["w2"], ["w3"], ["r5"]]

        self.run(story)

    async def turns(self, holders: Holders, first: Call, calls: dict[str, Call]) -> list[list[str]]:
        """Who holds locks together, turn by turn, when `first` and all that come behind it end."""
        await first.end()
        await self.moment()
        seen = []
        while holders.held:
            seen.append(sorted(holders.held))
            for name in list(holders.held):
                await calls[name].end()
            await self.moment()
        return seen

    @pytest.mark.parametrize(
        ("came", "seen"),
        [
            ("Aw1 Aw2 Aw3 Aw4 Br1", "Aw1, Br1, Aw2, Aw3, Aw4"),
            ("Aw1 Aw2 Bw1 Bw2 Cr1", "Aw1, Bw1, Cr1, Aw2, Bw2"),
            ("Ar1 Ar2 Aw1 Ar3 Bw1", "Ar1 Ar2, Bw1, Aw1, Ar3"),
            ("Ar1 Ar2 Br1 Br2 Bw1", "Ar1 Ar2 Br1 Br2, Bw1"),
            ("Aw1 Ar1 Bw1 Br1 Aw2", "Aw1, Bw1, Ar1 Br1, Aw2"),
            ("Bw1 Ar1 Bw2 Ar2 Bw3", "Bw1, Ar1 Ar2, Bw2, Bw3"),
        ],
    )
    def test_callers_take_turns_and_each_is_served_first_in_first_out(self, came: str, seen: str) -> None:
        """A caller's turn is one exclusive lock, or its shared ones up to the next that is exclusive."""

        async def story() -> None:
            holders, calls = Holders(self.make()), {}
            first = holders.call("first", exclusive=True, caller="A")
            await self.moment()
            for name in came.split():
                calls[name] = holders.call(name, exclusive=name[1] == "w", caller=name[0])
                await self.moment()
            turns = await self.turns(holders, first, calls)
            assert turns == [turn.split() for turn in seen.split(", ")]
            assert len(holders.locks) == 0

        self.run(story)

    def test_a_callers_many_writes_pass_anothers_fill_once(self) -> None:
        async def story() -> None:
            holders, calls = Holders(self.make()), {}
            first = holders.call("first", exclusive=True, caller="A")
            await self.moment()
            for number in range(self.MAX_WAITING):
                calls[f"A{number}"] = holders.call(f"A{number}", exclusive=True, caller="A")
                await self.moment()
            calls["B"] = holders.call("B", exclusive=False, caller="B")
            await self.moment()
            turns = await self.turns(holders, first, calls)
            assert turns.index(["B"]) <= 1
            assert len(turns) == self.MAX_WAITING + 1

        self.run(story)

    def test_no_more_calls_of_one_caller_wait_for_one_conversation_than_may(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            first = holders.call("first", exclusive=True)
            await self.moment()
            waiting = [holders.call(str(number), exclusive=True) for number in range(self.MAX_WAITING)]
            await self.moment()
            refused = holders.call("refused", exclusive=False)
            others = [
                holders.call("other caller", exclusive=True, caller="B"),
                holders.call("other conversation", exclusive=True, conversation="c2"),
            ]
            await self.moment()
            assert isinstance(refused.task.exception(), LockBusy)
            assert sorted(holders.held) == ["first", "other conversation"]
            waiting.pop().task.cancel()
            await self.moment()
            others.append(holders.call("there is room", exclusive=True))
            await self.moment()
            assert not others[-1].task.done()
            for call in (first, *waiting, *others):
                call.ended.set()
            await asyncio.gather(*(call.task for call in (first, *waiting, *others)))
            assert len(holders.log) == len(set(holders.log)) == self.MAX_WAITING + 3
            assert len(holders.locks) == 0

        self.run(story)

    def test_conversations_do_not_wait_for_each_other_nor_calls_about_none(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            calls = [holders.call(name, exclusive=True, conversation=name) for name in "abc"]
            nowhere = [await holders.locks.acquire(None, exclusive=True, caller="A") for _ in range(2)]
            await self.moment()
            assert sorted(holders.held) == ["a", "b", "c"]
            for lock in nowhere:
                lock.release()
            for call in calls:
                await call.end()
            assert len(holders.locks) == 0

        self.run(story)

    def test_a_lock_is_released_once_however_often_that_is_asked(self) -> None:
        async def story() -> None:
            locks = self.make()
            first = await locks.acquire("c1", exclusive=False, caller="A")
            with await locks.acquire("c1", exclusive=False, caller="A") as second:
                first.release()
                first.release()
                second.release()
            lock = await locks.acquire("c1", exclusive=True, caller="A")
            assert locks.exclusive_pending("c1")
            lock.release()
            assert len(locks) == 0

        self.run(story)

    def test_what_is_acquired_at_once_is_held_like_any_other(self) -> None:
        async def story() -> None:
            locks = self.make()
            holders = Holders(locks)
            shared = locks.try_acquire("c1", exclusive=False)
            if shared is None:
                return  # locks elsewhere can't tell at once
            assert locks.try_acquire("c1", exclusive=True) is None
            writer = holders.call("w", exclusive=True)
            await self.moment()
            assert holders.held == []
            assert locks.try_acquire("c1", exclusive=False) is None, "somebody waits"
            shared.release()
            await self.moment()
            assert holders.held == ["w"]
            assert locks.try_acquire("c1", exclusive=False) is None
            await writer.end()
            assert len(locks) == 0

        self.run(story)

    def test_a_lock_says_whether_it_was_waited_for(self) -> None:
        async def story() -> None:
            locks = self.make()
            first = await locks.acquire("c1", exclusive=True, caller="A")
            waiting = asyncio.ensure_future(locks.acquire("c1", exclusive=False, caller="A"))
            await self.moment()
            first.release()
            second = await waiting
            assert (first.waited, second.waited) == (False, True)
            second.release()

        self.run(story)

    def test_it_is_known_whether_an_exclusive_lock_is_held_or_waited_for(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            locks = holders.locks
            assert not locks.exclusive_pending("c1")
            assert not locks.exclusive_pending(None)
            sharing = holders.call("r", exclusive=False)
            await self.moment()
            assert not locks.exclusive_pending("c1")
            waiting = holders.call("w", exclusive=True)
            await self.moment()
            assert locks.exclusive_pending("c1")
            await sharing.end()
            await self.moment()
            assert locks.exclusive_pending("c1")
            await waiting.end()
            assert not locks.exclusive_pending("c1")

        self.run(story)

    def test_waiting_ends_after_the_timeout_and_those_behind_move_up(self) -> None:
        async def story() -> None:
            loop = asyncio.get_running_loop()
            holders = Holders(self.make())
            sharing = holders.call("r1", exclusive=False)
            await self.moment()
            writer = holders.call("w", exclusive=True)
            await asyncio.sleep(self.TIMEOUT / 5)
            behind = holders.call("r2", exclusive=False)
            began = loop.time()
            with pytest.raises(LockTimeout, match=f"it waited {self.TIMEOUT:g} s"):
                await writer.task
            assert loop.time() - began == pytest.approx(self.TIMEOUT * 4 / 5, abs=0.01 + self.MOMENT)
            await self.moment()
            assert sorted(holders.held) == ["r1", "r2"]
            await sharing.end()
            await behind.end()
            assert len(holders.locks) == 0

        self.run(story)

    def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            first = holders.call("first", exclusive=True)
            await self.moment()
            second = holders.call("second", exclusive=True)
            await self.moment()
            third = holders.call("third", exclusive=False)
            await self.moment()
            second.task.cancel()
            await self.moment()
            await first.end()
            await self.moment()
            assert holders.log == ["first", "third"]
            await third.end()
            assert len(holders.locks) == 0

        self.run(story)

    def test_a_call_that_is_cancelled_in_the_moment_it_is_granted_its_lock_hands_it_on(self) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            first = await holders.locks.acquire("c1", exclusive=True, caller="A")
            second, third = holders.call("second", exclusive=True), holders.call("third", exclusive=True)
            await self.moment()
            first.release()  # by now the lock is the second's, which does not know it yet
            second.task.cancel()
            await self.moment()
            assert holders.log == ["third"]
            await third.end()
            assert len(holders.locks) == 0

        self.run(story)

    @pytest.mark.parametrize("seed", range(20))
    def test_a_lock_granted_in_the_moment_that_the_waiting_timed_out_is_handed_on(self, seed: int) -> None:
        async def story() -> None:
            holders = Holders(self.make())
            first = holders.call("first", exclusive=True)
            await self.moment()
            second = holders.call("second", exclusive=True)
            asyncio.get_running_loop().call_later(self.TIMEOUT, first.ended.set)
            await asyncio.sleep(self.TIMEOUT + 0.1)
            assert first.task.done()
            assert holders.held in ([], ["second"])
            assert second.task.done() == (holders.held == [])
            third = holders.call("third", exclusive=True)
            if holders.held:
                await second.end()
            else:
                assert isinstance(second.task.exception(), LockTimeout)
            await self.moment()
            assert holders.held == ["third"]
            await third.end()
            assert len(holders.locks) == 0

        self.run(story, seed)

    def test_a_flood_of_conversations_leaves_nothing(self) -> None:
        async def story() -> None:
            locks = self.make()
            for number in range(self.FLOOD):
                (await locks.acquire(f"c{number}", exclusive=bool(number % 2), caller="A")).release()
            assert len(locks) == 0

        self.run(story)

    # --- against a model

    COME = st.tuples(st.just("come"), st.sampled_from(["Ac1", "Ac1", "Bc1", "Cc1", "Ac2"]), st.booleans())
    STEP = st.one_of(
        COME,
        st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 30), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.4, 1.1]), st.booleans()),
    )
    # Many that wait for each other: nothing else tells one order from another.
    CROWD = st.builds(list.__add__, st.lists(COME, min_size=8, max_size=20), st.lists(STEP, max_size=40))

    # One class or several may run it.
    @settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(STEP, max_size=40) | CROWD, st.none() | st.integers(0, 2**16), st.booleans())
    def test_however_calls_come_end_leave_and_wait_the_locks_are_granted_as_the_model_does(
        self, steps: list[tuple[str, object, bool]], seed: int | None, several: bool
    ) -> None:
        """
        `end` and `cancel` reach a call at any point: before it waits, while it does, as it is granted. With
        `several` callers they come one after the other: of what happens in one moment either may be first,
        and whose turn it was then follows from that.
        """

        async def story() -> None:
            holders, loop = Holders(self.make()), asyncio.get_running_loop()
            models = {"c1": Model(), "c2": Model()}
            calls: dict[str, tuple[str, Call]] = {}
            for number, (kind, what, flag) in enumerate(steps):
                if kind == "come":
                    name, conversation = str(number), str(what)[1:]
                    caller = str(what)[0] if several else "A"
                    call = holders.call(name, exclusive=flag, conversation=conversation, caller=caller)
                    calls[name] = (conversation, call)
                    await self.moment()
                    models[conversation].come(Modelled(name, flag, loop.time(), caller))
                elif kind == "wait":
                    assert isinstance(what, float)
                    await asyncio.sleep(what * self.TIMEOUT)
                    for model in models.values():
                        model.time_out(loop.time() - self.TIMEOUT)
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
                    # Without a pause the next step comes in the middle of what this one sets off.
                    if flag or several:
                        await self.moment()
            await self.moment()
            held = sorted(one.name for model in models.values() for one in model.holding)
            assert sorted(holders.held) == held
            assert Counter(holders.held).total() == len(set(holders.held))
            for _, call in calls.values():
                call.task.cancel()
            await asyncio.gather(*(call.task for _, call in calls.values()), return_exceptions=True)
            assert len(holders.locks) == 0

        self.run(story, seed)

    @settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(CROWD, st.none() | st.integers(0, 2**16))
    def test_whatever_happens_in_one_moment_locks_exclude_and_nobody_is_overtaken_unfairly(
        self, steps: list[tuple[str, object, bool]], seed: int | None
    ) -> None:
        """
        Of one caller none overtakes an earlier one, save that shared locks are granted together. While a call
        waits, no other caller has more turns than its own, but one that was under way and one ahead of it.
        """

        async def story() -> None:
            locks = self.make()
            ended: dict[str, asyncio.Event] = {}
            tasks: dict[str, asyncio.Task[None]] = {}
            held: dict[str, bool] = {}
            queue: list[tuple[str, str, bool]] = []  # who waits: name, caller, exclusive
            passed: dict[str, Counter[str]] = {}  # for each that waits, each caller's turns since
            broken: list[str] = []

            async def live(name: str, caller: str, exclusive: bool) -> None:
                mine = (name, caller, exclusive)
                queue.append(mine)
                passed[name] = Counter()
                try:
                    with await locks.acquire("c1", exclusive=exclusive, caller=caller):
                        before = [one for one in queue[: queue.index(mine)] if one[1] == caller]
                        queue.remove(mine)
                        if held and (exclusive or any(held.values())):
                            broken.append(f"{name} beside {sorted(held)}")
                        if (exclusive and before) or any(one[2] for one in before):
                            broken.append(f"{name} before {before}")
                        for other, theirs, _ in queue:
                            # Shared locks that are granted in one turn are held from then on in any order.
                            passed[other][caller] += exclusive or caller == theirs
                            if caller != theirs and passed[other][caller] > passed[other][theirs] + 2:
                                broken.append(f"{other} of {theirs} was passed by {passed[other]}")
                        held[name] = exclusive
                        try:
                            await ended[name].wait()
                        finally:
                            del held[name]
                finally:
                    if mine in queue:
                        queue.remove(mine)
                        for other, theirs, _ in queue:
                            passed[other][caller] += caller == theirs  # it may have had its turn

            for number, (kind, what, flag) in enumerate(steps):
                name = str(number)
                if kind == "come":
                    ended[name] = asyncio.Event()
                    tasks[name] = asyncio.create_task(live(name, str(what)[0], flag))
                    await self.moment()
                elif kind == "wait":
                    assert isinstance(what, float)
                    await asyncio.sleep(what * self.TIMEOUT)
                elif tasks:
                    assert isinstance(what, int)
                    name = sorted(tasks)[what % len(tasks)]
                    if kind == "end":
                        ended[name].set()
                    else:
                        tasks[name].cancel()
                    if flag:
                        await self.moment()
            for event in ended.values():
                event.set()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            assert broken == []
            assert len(locks) == 0

        self.run(story, seed)


@dataclass(slots=True)
class Modelled:
    name: str
    exclusive: bool
    came: float
    caller: str
    ended: bool = False


@dataclass(slots=True)
class Model:
    """The locks on one conversation as they ought to be. Who waits: by caller, in the order of the turns."""

    holding: list[Modelled] = field(default_factory=list)
    waiting: list[tuple[str, list[Modelled]]] = field(default_factory=list)

    def come(self, one: Modelled) -> None:
        for caller, calls in self.waiting:
            if caller == one.caller:
                calls.append(one)
                break
        else:
            self.waiting.append((one.caller, [one]))
        self.grant()

    def grant(self) -> None:
        while self.waiting:
            caller, calls = self.waiting[0]
            if self.holding and (calls[0].exclusive or self.holding[0].exclusive):
                return
            self.waiting.pop(0)
            turn = [calls.pop(0)]
            while calls and not turn[0].exclusive and not calls[0].exclusive:
                turn.append(calls.pop(0))
            self.holding += [one for one in turn if not one.ended]
            if calls:
                self.waiting.append((caller, calls))

    def remove(self, name: str) -> None:
        self.holding = [one for one in self.holding if one.name != name]
        left = [(caller, [one for one in calls if one.name != name]) for caller, calls in self.waiting]
        self.waiting = [(caller, calls) for caller, calls in left if calls]
        self.grant()

    def end(self, name: str) -> None:
        for _, calls in self.waiting:
            for one in calls:
                if one.name == name:
                    one.ended = True
                    return
        self.remove(name)

    def time_out(self, came: float) -> None:
        """One after the other: whoever gives up lets those behind move up, in time or not."""
        late = sorted((one.came, one.name) for _, calls in self.waiting for one in calls if one.came <= came)
        for _, name in late:
            if any(one.name == name for _, calls in self.waiting for one in calls):
                self.remove(name)
