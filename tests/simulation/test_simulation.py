"""
The promises about state in virtual time: random schedules, the schedules that random search would miss,
and the gateways with a guard less that must be found out.

A failure prints its seed; `python -m benchmarks.simulate --seed S --schedules 1 --trace` tells it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.simulation.drawing import draw
from tests.simulation.mutants import MUTANTS, SOUND, WASTEFUL, Mutant, ReusedGenerations
from tests.simulation.plays import (
    BOTH,
    bulk,
    changed,
    explicit,
    kept,
    legacy,
    look_ups,
    other,
    played,
    read,
    sends,
    skipped,
    states,
)
from tests.simulation.promises import Evidence, Violation, broken
from tests.simulation.schedule import Fate, Request
from tests.simulation.story import story
from tests.simulation.world import World

# Thousands of schedules: under a tracer they would take most of the suite's time, and cover nothing new.
pytestmark = pytest.mark.no_cover

BLOCK = 250
BLOCKS = 8
SOAK = 100_000
FOUND_WITHIN = 1_000  # seeds, for each mutant


# --- random schedules


def examined(first: int, number: int) -> Counter[str]:
    figures: Counter[str] = Counter()
    for seed in range(first, first + number):
        history = World(draw(seed)).run()
        found = broken(history)
        assert not found, f"seed {seed}: {'; '.join(map(str, found))}"
        figures.update(history.counts)
        figures["fills"] += len(Evidence(history).fills)
        figures["left"] += sum(told.left is not None for told in history.told.values())
    return figures


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_schedule_breaks_a_promise(block: int) -> None:
    figures = examined(block * BLOCK, BLOCK)

    rare = {name: count for name in HAPPENS if (count := figures[name]) < 2}
    assert not rare, "the schedules no longer lead where the promises are at stake"


# What the schedules must bring about, or they prove nothing.
HAPPENS = (
    "fills",
    "left",
    "gateway_conflicts_total",
    "gateway_lookups_total coalesced",
    "gateway_lookups_total disagreed",
    "gateway_lookups_total cached",
    "gateway_lookups_total held_back",
    "gateway_lookups_total learned",
    "gateway_lookups_total revalidated",
    "gateway_forwards_total yes",
    "gateway_forwards_total no",
    "gateway_refills_total",
    "gateway_refusals_total connection-refused",
    "gateway_refusals_total deadline-exceeded",
    "gateway_refusals_total lookup-failed",
    "gateway_refusals_total lock-timeout",
    "gateway_refusals_total read-timeout",
    "gateway_refusals_total store-unavailable",
    "gateway_store_failures_total",
)


@pytest.mark.soak
def test_no_schedule_of_a_hundred_thousand_breaks_a_promise() -> None:
    examined(0, SOAK)


@pytest.mark.parametrize("seed", [3, 84, 516])
def test_a_schedule_is_a_function_of_its_seed(seed: int) -> None:
    assert list(story(World(draw(seed)).run())) == list(story(World(draw(seed)).run()))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_gateway_with_a_guard_less_is_found_out(name: str) -> None:
    mutant = MUTANTS[name]

    for seed in range(FOUND_WITHIN):
        found = broken(mutant.world(draw(seed)).run())
        if any(mutant.promise in violation.promise.split("+") for violation in found):
            assert not broken(World(draw(seed)).run()), "and nothing is found in the gateway itself"
            return
    raise AssertionError(f"{name}: no violation of {mutant.promise} in {FOUND_WITHIN} schedules")


def test_another_sound_store_is_not_taken_for_a_mutant() -> None:
    for seed in range(200):
        assert not broken(SOUND.world(draw(seed)).run()), f"seed {seed}"


# --- named schedules


def promises(violations: list[Violation]) -> set[str]:
    return {violation.promise for violation in violations}


SLOW = Fate(out=0.0, back=0.3)  # it is done at once, and known late


def test_a_burst_costs_one_look_up() -> None:
    history = kept(*[legacy(f"r{n}", 0.001 * n) for n in range(20)])

    assert [states(history, f"r{n}") for n in range(20)] == [["s1"]] * 20
    assert len(look_ups(history)) == 1


def test_a_look_up_that_a_write_overtakes_is_made_again() -> None:
    history = kept(legacy("r", 0.0), explicit("w", 0.01, "s5"), fates={"r": (SLOW,)})

    assert [sent.shown["p1", "state"] for sent in look_ups(history)] == ["s1", "s5"]
    assert states(history, "r") == ["s5"]


def test_what_a_client_read_is_not_learned_when_a_write_overtook_it() -> None:
    history = kept(
        read("g", 0.0), explicit("w", 0.01, "s5"), legacy("r", 0.4), fates={"g": (SLOW,)}, settle=0.1
    )

    assert len(look_ups(history)) == 1
    assert states(history, "r") == ["s5"]


def test_what_a_client_read_saves_the_look_up() -> None:
    history = kept(read("g", 0.0), legacy("r", 0.1), legacy("another", 0.1, caller="B"))

    assert [sent.credential for sent in look_ups(history)] == ["B"]
    assert states(history, "r") == ["s1"]


def test_a_look_up_begun_before_a_write_is_not_shared_after_it() -> None:
    history = kept(
        legacy("before", 0.0), explicit("w", 0.01, "s5"), legacy("after", 0.1), fates={"before": (SLOW,)}
    )

    assert states(history, "before") == states(history, "after") == ["s5"]
    assert len(look_ups(history)) == 2


def test_after_a_write_whose_reply_is_lost_the_state_is_read_anew() -> None:
    history = kept(
        legacy("first", 0.0),
        explicit("w", 0.1, "s5"),
        legacy("r", 0.2),
        fates={"w": (Fate(loss="silence"),)},
        max_age=10.0,
    )

    assert history.told["w"].status == 504
    assert len(sends(history, "w")) == 1
    assert states(history, "r") == ["s5"]


def test_a_refused_fill_is_sent_again_with_the_state_that_it_has_by_now() -> None:
    history = kept(legacy("r", 0.0), changed(0.025, "s5"), fates={"r": (Fate(), Fate(status=409))})

    assert states(history, "r") == ["s1", "s5"]
    assert history.told["r"].status == 202
    assert [line.record.get("attempt") for line in history.log if line.event == "rewrite"] == [None, 2]


def test_a_refused_fill_is_not_sent_again_when_the_state_is_the_same() -> None:
    history = kept(legacy("r", 0.0), fates={"r": (Fate(), Fate(status=409))})

    assert states(history, "r") == ["s1"]
    assert history.told["r"].status == 409
    assert len(look_ups(history)) == 2


def test_a_refused_fill_is_not_sent_again_when_a_write_overtook_the_fresh_look_up() -> None:
    history = kept(
        legacy("r", 0.0),
        changed(0.025, "s5"),
        bulk("b", 0.1),
        fates={"r": (Fate(), Fate(status=409), SLOW)},
    )

    assert states(history, "r") == ["s1"]
    assert history.told["r"].status == 409


def test_two_callers_are_never_filled_from_each_others_look_ups() -> None:
    history = kept(legacy("a", 0.0, caller="A"), legacy("b", 0.0, caller="B"), legacy("b2", 0.1, caller="B"))

    assert sorted(sent.credential for sent in look_ups(history)) == ["A", "B"]
    assert states(history, "b2") == ["s1"]


def test_the_first_of_those_who_share_a_look_up_may_leave() -> None:
    history = kept(legacy("first", 0.0, leaves=0.05), legacy("r", 0.01), fates={"first": (SLOW,)})

    assert len(look_ups(history)) == 1
    assert states(history, "first") == []
    assert states(history, "r") == ["s1"]


def test_a_client_that_leaves_while_it_waits_for_its_lock_leaves_no_trace() -> None:
    history = kept(
        explicit("w", 0.0, "s5"),
        explicit("waiting", 0.1, "s6", leaves=0.1),
        explicit("next", 0.15, "s7"),
        fates={"w": (Fate(back=1.0),)},
    )

    assert sends(history, "waiting") == []
    assert states(history, "next") == ["s7"]


@pytest.mark.parametrize("write", [explicit("w", 0.0, "s5", leaves=0.05), other("w", 0.0, leaves=0.05)])
def test_the_lock_is_held_until_the_upstream_has_answered_also_for_a_client_that_left(
    write: Request,
) -> None:
    history = kept(write, legacy("r", 0.1), fates={"w": (Fate(back=1.0),)})

    (sent,), (filled,) = sends(history, "w"), sends(history, "r")
    assert sent.status == 202
    assert sent.ended is not None
    assert filled.begun > sent.ended > 1.0
    assert states(history, "r") != ["s1"]


def test_a_client_that_leaves_while_its_call_waits_for_a_connection_leaves_no_trace() -> None:
    history = kept(
        explicit("w", 0.0, "s5", leaves=0.1),
        other("o", 0.0, "/c2/disconnect", leaves=0.1),
        fates={"w": (Fate(wait=0.5),), "o": (Fate(wait=0.5),)},
    )

    assert sends(history, "w") == sends(history, "o") == []


def test_a_fill_that_waited_too_long_for_a_connection_is_looked_up_again() -> None:
    history = kept(
        legacy("r", 0.0), changed(0.5, "s5"), fates={"r": (Fate(), Fate(wait=1.5), Fate(), Fate())}
    )

    assert states(history, "r") == ["s5"]


def test_a_fill_that_waits_for_a_connection_is_overtaken_by_a_write_that_waits_for_nobody() -> None:
    history = kept(legacy("r", 0.0), bulk("b", 0.1), fates={"r": (Fate(), Fate(wait=0.5))})

    assert len(look_ups(history)) == 2
    assert states(history, "r") != ["s1"]


def test_a_replica_that_lags_is_asked_until_it_agrees_with_what_was_accepted() -> None:
    lagging = Fate(lag=1.0)
    history = kept(explicit("w", 0.0, "s5"), legacy("r", 0.1), fates={"r": (lagging, lagging)}, lag=1.0)

    assert [sent.shown["p1", "state"] for sent in look_ups(history)] == ["s1", "s1", "s5"]
    assert states(history, "r") == ["s5"]


def test_while_no_replica_agrees_nothing_is_filled() -> None:
    history = kept(explicit("w", 0.0, "s5"), legacy("r", 0.1), fates={"r": (Fate(lag=9.0),) * 9}, lag=9.0)

    assert states(history, "r") == [None]
    assert skipped(history, "r") == "unsettled"


def test_readings_that_are_all_overtaken_are_told_from_those_that_do_not_agree() -> None:
    slow = Fate(out=0.3, back=0.3)
    sweeps = [other(f"w{n}", 0.5 + 0.6 * n, "//c9/disconnect") for n in range(4)]
    history = kept(legacy("r", 0.0), *sweeps, fates={"r": (slow,) * 6})

    assert states(history, "r") == [None]
    assert skipped(history, "r") == "outdated"


def test_what_disagreed_while_it_settled_is_of_no_use_when_it_has() -> None:
    history = kept(
        explicit("w", 0.0, "s5"),
        read("g", 0.3),
        legacy("r", 0.6),
        fates={"g": (Fate(lag=9.0),)},
        lag=9.0,
        settle=0.5,
        max_age=3.0,
    )

    assert states(history, "r") == ["s5"]


def test_a_value_counts_as_accepted_also_when_the_call_may_not_be_touched() -> None:
    history = kept(
        explicit("w", 0.0, "s5", headers=((b"cache-control", b"no-transform"),)),
        legacy("r", 0.1),
        fates={"r": (Fate(lag=1.0),)},
        lag=1.0,
    )

    assert states(history, "r") == ["s5"]


def test_a_herd_that_waits_for_the_upstream_to_settle_costs_one_look_up_a_round() -> None:
    herd = [legacy(f"r{n}", 0.1 + 0.0001 * n) for n in range(40)]
    lagging = {call.id: (Fate(lag=9.0),) * 9 for call in herd}
    history = kept(explicit("w", 0.0, "s5"), *herd, fates=lagging, lag=9.0)

    assert {skipped(history, call.id) for call in herd} == {"unsettled"}
    assert len(look_ups(history)) <= 8


def test_a_herd_that_finds_what_does_not_agree_costs_one_look_up() -> None:
    herd = [legacy(f"r{n}", 0.4 + 0.0001 * n) for n in range(40)]
    history = kept(explicit("w", 0.0, "s5"), read("g", 0.3), *herd, fates={"g": (Fate(lag=9.0),)}, lag=9.0)

    assert all(states(history, call.id) == ["s5"] for call in herd)
    assert len(look_ups(history)) == 1


def test_where_an_accepted_value_was_dropped_nothing_is_taken_as_settled() -> None:
    history = kept(
        explicit("w1", 0.0, "s5"),
        explicit("w2", 0.1, "s6", "c2"),
        legacy("r", 0.2),
        legacy("later", 2.5),
        fates={"r": (Fate(lag=9.0),) * 9},
        lag=9.0,
        max_entries=1,
    )

    assert states(history, "r") == [None]
    assert states(history, "later") == ["s5"]


def test_writers_and_sharers_alternate_and_nobody_starves() -> None:
    sharers = [legacy(f"r{n}", 0.1 * n) for n in range(30)]
    writers = [explicit(f"w{n}", 0.55 + n * 0.5, f"s{n + 10}") for n in range(5)]
    slow = {call.id: (Fate(back=0.2),) * 6 for call in [*sharers, *writers]}
    history = kept(*sharers, *writers, fates=slow, max_age=0.5)

    for writer in writers:
        (write,) = sends(history, writer.id)
        behind = [sent.begun for call in sharers if call.at > writer.at for sent in sends(history, call.id)]
        assert write.begun < min(behind)
        assert write.begun - writer.at < 1.5
    assert all(told.status == 202 for told in history.told.values())


def test_what_waits_longer_than_it_may_is_refused_and_not_sent() -> None:
    history = kept(
        explicit("w", 0.0, "s5"),
        legacy("r", 0.1),
        explicit("w2", 0.1, "s6"),
        legacy("r2", 0.7),
        fates={"w": (Fate(back=2.0),)},
        lock_timeout=0.5,
        deadline=30.0,
    )

    assert [history.told[id].refusal for id in ("r", "w2", "r2")] == ["lock-timeout"] * 3
    assert sends(history, "r") == sends(history, "w2") == []
    assert history.told["r"].status == 503


def test_a_write_that_names_no_conversation_invalidates_them_all() -> None:
    history = kept(
        legacy("r1", 0.0), legacy("r2", 0.0, "c2"), bulk("b", 0.1), legacy("r3", 0.2), legacy("r4", 0.2, "c2")
    )

    assert len(look_ups(history)) == 4
    assert states(history, "r3") != ["s1"]


def test_a_look_up_in_flight_is_overtaken_by_a_write_that_names_no_conversation() -> None:
    history = kept(legacy("r", 0.0), bulk("b", 0.05), fates={"r": (SLOW,)})

    assert len(look_ups(history)) == 2
    assert states(history, "r") != ["s1"]


def test_with_max_age_0_each_call_has_a_look_up_of_its_own() -> None:
    history = kept(
        read("g", 0.0),
        *[legacy(f"r{n}", 0.1 + n / 100) for n in range(5)],
        fates={"r0": (Fate(back=0.5),)},
        max_age=0.0,
    )

    assert len(look_ups(history)) == 5


def test_with_max_age_0_what_was_read_before_a_wait_is_read_again() -> None:
    history = kept(
        legacy("slow", 0.0),
        legacy("r", 0.05),
        explicit("impatient", 0.06, "s5", leaves=0.5),
        changed(0.3, "s7"),
        fates={"slow": (Fate(), Fate(back=1.0)), "r": (Fate(back=0.1),)},
        max_age=0.0,
    )

    assert states(history, "impatient") == []
    assert states(history, "r") == ["s7"]


def test_a_call_that_names_one_field_and_lacks_another_is_a_write() -> None:
    history = kept(
        legacy("r1", 0.0, media=BOTH),
        explicit("w", 0.1, "s5", media=BOTH),
        legacy("r2", 0.2, media=BOTH),
        settle=0.0,
        max_age=3.0,
    )

    assert sends(history, "w")[0].members == {"state": "s5", "held": "h1"}
    assert states(history, "r2") == ["s5"]


def test_a_field_that_only_another_rule_fills_makes_a_call_a_write_too() -> None:
    history = played(
        legacy("r1", 0.0, media=BOTH),
        replace(explicit("w", 0.1, ""), body=b'{"held": "h9"}'),
        legacy("r2", 0.2, media=BOTH),
        max_age=3.0,
    )

    assert [sent.members["held"] for sent in sends(history, "r2")] == ["h9"]


def test_a_call_of_a_rule_that_fills_nothing_takes_its_lock_like_any_other_write() -> None:
    history = kept(
        legacy("r1", 0.0),
        other("w", 0.1, "/calls/c1/participants/p1/attributes", "PATCH"),
        legacy("r2", 0.15),
        fates={"w": (Fate(back=0.5),)},
        max_age=3.0,
    )

    (write,), (filled,) = sends(history, "w"), sends(history, "r2")
    assert write.ended is not None
    assert filled.begun > write.ended
    assert len(look_ups(history)) == 2


def test_a_look_up_that_hangs_does_not_fail_the_calls_that_come_later() -> None:
    history = kept(legacy("r1", 0.0), legacy("r2", 1.1), fates={"r1": (Fate(loss="silence"),)})

    assert history.told["r1"].status == 504
    assert states(history, "r2") == ["s1"]


def test_a_refusal_that_is_never_read_to_its_end_is_closed() -> None:
    history = kept(legacy("r", 0.0), fates={"r": (Fate(), Fate(status=409, rest=9.0))}, deadline=1.0)

    assert history.told["r"].refusal == "deadline-exceeded"
    assert history.open_replies == []


def test_a_reply_that_names_another_state_than_the_filled_one_is_a_conflict_and_invalidates() -> None:
    history = kept(legacy("r1", 0.0), legacy("r2", 0.1), fates={"r1": (Fate(), Fate(answer="x9"))})

    outcomes = {line.id: line.record for line in history.log if line.event == "outcome"}
    assert outcomes["r1"]["conflict"] is True
    assert "conflict" not in outcomes["r2"]
    assert history.counts["gateway_conflicts_total"] == 1
    assert len(look_ups(history)) == 2


def test_an_etag_that_guards_the_patch_proves_that_nothing_changed_in_between() -> None:
    history = kept(
        legacy("r", 0.0), changed(0.025, "s5"), fates={"r": (Fate(), Fate(out=0.05))}, guarded=True
    )

    assert [sent.status for sent in sends(history, "r")] == [412, 202]
    assert states(history, "r") == ["s1", "s5"]


def test_a_generation_that_was_evicted_never_comes_back() -> None:
    schedule = (
        legacy("r", 0.0),
        explicit("w", 0.01, "s5"),
        legacy("evicts", 0.1, "c2"),
    )
    rest: dict[str, Any] = {"fates": {"r": (SLOW,)}, "max_entries": 1, "settle": 0.0}
    reused = Mutant(
        promise="S3", store=lambda terms, clock: ReusedGenerations(terms.max_entries, 2**20, clock)
    )

    history = kept(*schedule, **rest)
    assert states(history, "r") == ["s5"]
    assert "S3" in promises(broken(played(*schedule, mutant=reused, **rest)))


REFUSED = (Fate(status=401),)


@pytest.mark.parametrize("write", [bulk("w", 0.1), other("w", 0.1), explicit("w", 0.1, "s5")])
def test_a_write_that_the_upstream_refused_makes_nothing_forgotten(write: Request) -> None:
    history = kept(legacy("r1", 0.0), write, legacy("r2", 0.2), fates={"w": REFUSED})

    assert len(look_ups(history)) == 1
    assert states(history, "r2") == ["s1"]


@pytest.mark.parametrize("write", [bulk("w", 0.1), other("w", 0.1), explicit("w", 0.1, "s5")])
def test_a_gateway_that_forgets_what_was_refused_is_found_out_by_its_look_ups(write: Request) -> None:
    history = kept(legacy("r1", 0.0), write, legacy("r2", 0.2), fates={"w": REFUSED}, mutant=WASTEFUL)

    assert len(look_ups(history)) == 2


def test_what_filled_a_call_that_was_refused_is_forgotten() -> None:
    history = kept(legacy("r1", 0.0), legacy("r2", 0.2), fates={"r1": (Fate(), Fate(status=422))})

    assert history.told["r1"].status == 422
    assert len(look_ups(history)) == 2


def test_who_differs_in_a_field_that_nobody_thought_of_is_another_caller() -> None:
    history = kept(legacy("a", 0.0, caller="A"), legacy("c", 0.1, caller="C"), legacy("a2", 0.2, caller="A"))

    assert [sent.credential for sent in look_ups(history)] == ["A", "C"]


def test_a_look_up_in_flight_is_not_overtaken_by_a_write_that_is_refused() -> None:
    history = kept(legacy("r", 0.0), explicit("w", 0.01, "s5"), fates={"r": (SLOW,), "w": REFUSED})

    assert len(look_ups(history)) == 1
    assert states(history, "r") == ["s1"]


@pytest.mark.parametrize("status", [303, 408, 500])
def test_a_write_that_was_not_refused_makes_all_forgotten(status: int) -> None:
    history = kept(legacy("r1", 0.0), bulk("w", 0.1), legacy("r2", 0.2), fates={"w": (Fate(status=status),)})

    assert len(look_ups(history)) == 2


def test_a_burst_in_on_reject_costs_one_look_up() -> None:
    burst = [legacy(f"r{n}", 0.003 * n) for n in range(40)]
    history = kept(*burst, fates={call.id: (Fate(status=400),) for call in burst}, mode="on_reject")

    assert len(look_ups(history)) == 1
    assert all(states(history, call.id) == [None, "s1"] for call in burst)


def test_one_credential_makes_all_forgotten_only_so_often_and_the_rest_waits() -> None:
    history = kept(*[bulk(f"b{n}", 0.001 * n) for n in range(20)], legacy("r", 0.5))

    sent = [sends(history, f"b{n}")[0].begun for n in range(12)]
    assert all(later - earlier > 0.45 for earlier, later in pairwise(sent[1:]))
    assert {history.told[f"b{n}"].refusal for n in range(13, 20)} == {"unnamed-writes-limited"}
