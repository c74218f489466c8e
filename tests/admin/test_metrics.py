"""The table of metrics: what is counted and measured is declared, and what is declared is there."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from gateway import app
from gateway.admin.metrics import METRICS, Counts, Metrics
from gateway.process import lifetime
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, gateway, settings
from tests.support.house import MODULES
from tests.support.mocking import mock


def test_each_metric_is_named_and_explained_as_prometheus_wants_it() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"(gateway|process)(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") is (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
        assert len(metric.help) > 20


def test_every_name_in_the_code_is_declared_and_every_counter_is_counted_somewhere() -> None:
    elsewhere = [path.read_text("utf-8") for name, path in MODULES.items() if name != "admin/metrics"]
    named = set(re.findall(r'"(gateway_[a-z_]+|process_[a-z]+_[a-z_]+)"', "".join(elsewhere)))

    # The rules' modes and the digest are read where the rules are followed.
    assert named | {"gateway_rule_info", "gateway_config_info"} == {metric.name for metric in METRICS}


@pytest.mark.parametrize(
    "key",
    [
        ("gateway_nonsense_total",),
        ("gateway_clients_gone_total", "x"),
        ("gateway_refills_total", "eu", "x"),
        ("gateway_lookups_total",),
        ("",),
        ("gateway_lookups_total", "x"),
    ],
)
def test_a_count_that_no_row_declares_is_refused(key: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="declares no counter"):
        Counts()[key] += 1


def test_a_gauge_is_no_counter_and_a_counter_no_gauge() -> None:
    metrics = Metrics(Counts(), {})
    with pytest.raises(ValueError, match="declares no counter"):
        Counts()["gateway_upstream_waiting",] += 1
    with pytest.raises(ValueError, match="declares no gauge or counter"):
        metrics.measure({("gateway_lock_wait_seconds",): lambda: 1})
    with pytest.raises(ValueError, match="declares no histogram"):
        metrics.histograms["gateway_refills_total",].observe(1)
    with pytest.raises(ValueError, match="declares no counter"):
        Metrics(Counts(), {"gateway_nonsense_total": Counter()})


def test_what_two_rooms_count_is_one_sum() -> None:
    counts = Counts({("gateway_refusals_total", "overloaded"): 2})
    metrics = Metrics(counts, {"gateway_refusals_total": Counter(overloaded=3, other=1)})

    found = {sample.name: sample.value for sample in metrics.samples() if sample.labels and sample.value}
    assert found == {
        'gateway_refusals_total{cause="other"}': 1,
        'gateway_refusals_total{cause="overloaded"}': 5,
    }


async def test_a_running_gateway_has_every_gauge(tmp_path_factory: pytest.TempPathFactory) -> None:
    audit = tmp_path_factory.mktemp("audit") / "rewrites.jsonl"
    chosen = settings("http://127.0.0.1:9", str(audit), listen={"port": 0}, admin={"port": 0})
    built = app.build(chosen)
    async with lifetime.running(chosen, built):
        there = {sample.metric.name for sample in built.metrics.samples()}

    assert there >= {metric.name for metric in METRICS if metric.kind == "gauge"}
    assert there >= {metric.name for metric in METRICS if not metric.labels and metric.kind != "histogram"}


async def test_the_server_s_own_refusals_are_among_the_counts() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        running.gateway.stats.refused["head-timeout"] += 1
        async with running.admin() as admin:
            counts = (await admin.get("/counts")).json()

    assert counts['gateway_refusals_total{cause="head-timeout"}'] == 1
    assert counts['gateway_store_entries{table="readings"}'] == 1
