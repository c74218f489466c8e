"""What several processes say, as one: sums, worst of all, the latest of all."""

from __future__ import annotations

from gateway.admin.exposition import exposition
from gateway.admin.live import strip
from gateway.admin.metrics import METRICS, Counts, Histograms, Metrics
from gateway.server.limits import ServerStats
from gateway.workers import merged
from gateway.workers.merged import Figures, summed


def of(calls: int, failing: float, began: float, connections: float, *seconds: float) -> Figures:
    counts, histograms = Counts(), Histograms()
    counts["gateway_matched_calls_total",] = calls
    for one in seconds:
        histograms["gateway_lock_wait_seconds",].observe(one)
    metrics = Metrics(counts, {}, histograms)
    metrics.measure(
        {
            ("gateway_audit_failing",): lambda: failing,
            ("process_start_time_seconds",): lambda: began,
            ("gateway_client_connections",): lambda: connections,
        }
    )
    return Figures.of(metrics)


def lines(figures: Figures) -> list[str]:
    return exposition(merged.metrics(figures), openmetrics=False).splitlines()


def test_counters_and_histograms_are_added_and_gauges_by_what_they_mean() -> None:
    told = lines(summed([of(2, 0, 9, 5, 0.001, 3.0), of(3, 1, 8, 6, 0.001)]))
    for line in (
        "gateway_matched_calls_total 5",
        "gateway_audit_failing 1",
        "process_start_time_seconds 8",
        "gateway_client_connections 11",
        'gateway_lock_wait_seconds_bucket{le="0.001"} 2',
        'gateway_lock_wait_seconds_bucket{le="+Inf"} 3',
        "gateway_lock_wait_seconds_count 3",
    ):
        assert line in told
    assert any(line.startswith("gateway_lock_wait_seconds_sum 3.00") for line in told)


def test_of_a_process_that_is_gone_only_what_it_counted_stays() -> None:
    told = lines(summed([of(2, 1, 9, 5, 0.001).counted(), of(3, 0, 8, 6)]))
    for line in (
        "gateway_matched_calls_total 5",
        "gateway_audit_failing 0",
        "process_start_time_seconds 8",
        "gateway_client_connections 6",
        "gateway_lock_wait_seconds_count 1",
    ):
        assert line in told


def test_one_process_alone_says_what_it_says_by_itself() -> None:
    one = of(2, 0, 9, 5, 0.001, 3.0)
    assert lines(summed([one])) == lines(one)
    assert {line.split()[2] for line in lines(one) if line.startswith("# TYPE")} <= {
        metric.name for metric in METRICS
    }


def test_what_a_worker_should_not_have_counted_costs_no_other_figure() -> None:
    stats = ServerStats()
    stats.aborted["of a later version"] += 2
    worker = Metrics(Counts(), {"gateway_aborts_total": stats.aborted})
    told = lines(summed([Figures.of(worker), of(3, 0, 8, 6)]))
    assert 'gateway_aborts_total{cause="of a later version"} 2' in told
    assert "gateway_matched_calls_total 3" in told


def test_the_latest_calls_of_all_are_told_apart() -> None:
    one = merged.numbered([{"number": 2, "ended": 5.0}, {"number": 1, "ended": 1.0}], 1)
    other = merged.numbered([{"number": 2, "ended": 4.0}, {"number": 1, "ended": 2.0}], 2)
    found = merged.latest([one, other], 3)
    assert [call["ended"] for call in found] == [5.0, 4.0, 2.0]
    assert len({call["number"] for call in found}) == 3


def test_what_came_in_a_moment_is_added_up() -> None:
    call = {"number": 1, "ended": 1.0}
    nothing = merged.came([], 1)
    told = [
        {"came": 40, "strip": {**nothing["strip"], "calls": 40, "added_ms": 1.5}, "calls": [call]},
        {"came": 1, "strip": {**nothing["strip"], "calls": 1, "added_ms": 0.5}, "calls": [call]},
    ]
    found = merged.came(told, 1)
    assert (found["came"], found["left_out"], len(found["calls"])) == (41, 40, 1)
    assert found["strip"] == {**strip([]), "calls": 41, "added_ms": 2.0}


def test_a_caller_of_two_workers_is_one_and_who_calls_most_comes_first() -> None:
    def one(agent: str, calls: int, last: float) -> dict[str, object]:
        return {
            "credential": "c",
            "user_agent": agent,
            "address": "a",
            "calls": calls,
            "needed": calls,
            "refused": 0,
            "last": last,
        }

    found = merged.callers([[one("x", 2, 5.0), one("y", 3, 1.0)], [one("x", 2, 4.0)]], 10)
    assert [(caller["user_agent"], caller["calls"], caller["last"]) for caller in found] == [
        ("x", 4, 5.0),
        ("y", 3, 1.0),
    ]


def test_ready_is_who_has_one_that_is_and_does_not_stop() -> None:
    good, bad = {"audit_log": "ok"}, {"audit_log": "it is full"}
    assert merged.readiness({1: bad, 2: good, 3: None}, draining=False, digest="d")[0]
    assert not merged.readiness({1: bad, 2: None}, draining=False, digest="d")[0]
    ready, told = merged.readiness({1: good, 2: good | {"store": "it is down"}}, draining=False, digest="d")
    assert (ready, told["degraded"]) == (True, True)
    ready, told = merged.readiness({1: good}, draining=True, digest="d")
    assert "degraded" not in told
    assert (ready, told["checks"]["draining"]) == (False, "the process is about to stop")
