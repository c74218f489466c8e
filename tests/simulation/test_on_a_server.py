"""
The schedules of several gateways with all that they share on a real Redis server: they go as on its model,
and each guard that is taken out is missed there too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.simulation.cluster import Cluster, Plan, broken, drawn
from tests.simulation.redis_mutants import MUTANTS, SOUND, overtaken
from tests.simulation.redis_real import RedisOnAServer
from tests.simulation.story import story
from tests.support.redis_servers import RedisProcess, needs_redis

pytestmark = [pytest.mark.no_cover, needs_redis]
SOAK = int(os.environ.get("SERVER_SCHEDULES", "2000"))
Model = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    process = RedisProcess()
    yield process
    process.close()


@pytest.fixture
def model(server: RedisProcess) -> Iterator[Model]:
    opened: list[RedisOnAServer] = []

    def model(*given: Any) -> RedisOnAServer:
        opened.append(RedisOnAServer(server, *given))
        return opened[-1]

    yield model
    for one in opened:
        one.close()


def goes_alike(plan: Plan, model: Model) -> bool:
    return list(story(Cluster(plan).run())) == list(story(Cluster(plan, model=model).run()))


def befallen_by(event: str) -> Plan:
    """The first plan in which that happens."""
    return next(plan for plan in map(drawn, range(1000)) if event in {blow.event for blow in plan.blows})


@pytest.mark.parametrize("event", ["flush", "redis loses", "clock", "pause"])
def test_a_plan_goes_as_on_the_model(event: str, model: Model) -> None:
    assert goes_alike(befallen_by(event), model)


@pytest.mark.soak
def test_many_plans_go_as_on_the_model(server: RedisProcess) -> None:
    for seed in range(SOAK):
        opened: list[RedisOnAServer] = []

        def model(*given: Any) -> RedisOnAServer:
            opened.append(RedisOnAServer(server, *given))  # noqa: B023
            return opened[-1]  # noqa: B023

        assert goes_alike(drawn(seed), model), f"seed {seed}"
        for one in opened:
            one.close()


@pytest.mark.parametrize("name", MUTANTS)
def test_one_with_a_guard_less_is_found_out_on_a_server(name: str, model: Model) -> None:
    mutant = MUTANTS[name]

    assert not broken(mutant.plan, Cluster(mutant.plan, model=model).run())
    history = Cluster(mutant.plan, mutant.parts, mutant.makes, mutant.transport, model).run()
    found = {name for one in broken(mutant.plan, history) for name in one.promise.split("+")}
    assert mutant.promise in found


def test_another_sound_store_is_not_taken_for_a_mutant(model: Model) -> None:
    plan = overtaken()

    assert not broken(plan, Cluster(plan, makes=SOUND, model=model).run())
