"""Scripts of Redis with a guard less: on a real server the contracts of store and locks find each out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.simulation.redis_mutants import changed
from tests.state.test_redis import TestRedisStore as RedisStoreContract
from tests.state.test_redis_locks import TestRedisLocks as RedisLocksContract
from tests.support.redis_servers import RedisProcess, needs_redis

pytestmark = needs_redis
# The script, what stands there, and what instead; which test of the contract finds it, and what it is given.
Broken = tuple[str, str, str, str, tuple[Any, ...]]
OF_STORES: list[Broken] = [
    ("put", "< math.max(oldest, all) then", "< 0 then",
     "test_what_an_invalidation_overtook_is_not_kept", ("c1",)),
    ("put", "if kept[1] and", "if false and",
     "test_a_later_reading_replaces_an_earlier_one_but_never_the_other_way_round", ()),
    ("invalidate", "set_generation(KEYS[2], draw())", "",
     "test_what_is_invalidated_is_not_current_any_more", ("c1",)),
    ("invalidate", "  forget_all()\n", "", "test_what_is_invalidated_is_not_current_any_more", (None,)),
    ("reinstate", "if whole((generation(KEYS[2]))) == ARGV[3] then", "if true then",
     "test_what_was_invalidated_meanwhile_is_not_reinstated", ("c1",)),
    ("accept", "'v', ARGV[3]", "'v', 'other'",
     "test_the_value_that_was_accepted_last_is_told_of_its_subject_alone", ()),
    ("common", "if dropped then dropped(popped[i]) end", "",
     "test_where_an_accepted_value_was_dropped_its_span_is_still_told", ()),
    ("common", "if over > 0 then", "if false then", "test_it_holds_no_more_than_it_may", ()),
]  # fmt: skip
OF_LOCKS: list[Broken] = [
    ("acquiring", "if found[1] or found[2] then return false end", "if true then return 'held' end",
     "test_an_exclusive_lock_is_held_alone", (True, False)),
    ("acquiring", "if exclusive and", "if false and", "test_an_exclusive_lock_is_held_alone", (False, True)),
    ("locking", "if #queue > 0 then waiting[#waiting + 1] = first end",
     "if #queue > 0 then table.insert(waiting, 1, first) end",
     "test_a_callers_many_writes_pass_anothers_fill_once", ()),
    ("release", "then grant(token) end", "then end", "test_an_exclusive_lock_is_held_alone", (True, True)),
    ("acquire", "if #queue >= tonumber(ARGV[5]) then", "if false then",
     "test_no_more_calls_of_one_caller_wait_for_one_conversation_than_may", ()),
]  # fmt: skip


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    process = RedisProcess()
    yield process
    process.close()


@pytest.fixture
async def store(redis: RedisProcess) -> AsyncIterator[RedisStoreContract]:
    contract = RedisStoreContract()
    contract.redis, contract.stores = redis, []
    yield contract
    for store in contract.stores:
        await store.close()


def name_of(broken: Broken) -> str:
    return f"{broken[0]}-{broken[1][:20].strip()}"


@pytest.mark.parametrize("broken", OF_STORES, ids=name_of)
async def test_a_script_of_the_store_with_a_guard_less_is_found_out(
    broken: Broken, store: RedisStoreContract
) -> None:
    part, there, instead, test, given = broken
    store.source = changed(**{part: (there, instead)})

    with pytest.raises(AssertionError):
        await getattr(store, test)(*given)


@pytest.mark.parametrize("broken", OF_LOCKS, ids=name_of)
def test_a_script_of_the_locks_with_a_guard_less_is_found_out(broken: Broken, redis: RedisProcess) -> None:
    part, there, instead, test, given = broken
    contract = RedisLocksContract()
    contract.redis, contract.benches = redis, []
    contract.source = changed(**{part: (there, instead)})

    with pytest.raises((AssertionError, asyncio.InvalidStateError)):
        getattr(contract, test)(*given)
