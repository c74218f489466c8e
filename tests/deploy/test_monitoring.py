"""Alerts and dashboard ask for metrics and labels that there are, and Prometheus accepts the rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gateway.admin.metrics import METRICS
from tests.support.drawn import ROOT

RULES = ROOT / "deploy/prometheus/gateway.rules.yaml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "deploy/grafana/gateway.json").read_text("utf-8"))
DECLARED = {metric.name: metric for metric in METRICS}


def queries() -> Iterator[str]:
    yield from (alert["expr"] for alert in ALERTS)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:gateway|process)_[a-z_]+", query))


def test_every_query_names_metrics_that_there_are() -> None:
    samples = {f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name for metric in METRICS}
    for query in queries():
        # `up` is Prometheus's own.
        assert names(query) or query.startswith("up{"), query
        assert names(query) <= samples, query


def test_every_label_value_that_is_asked_for_can_be_there() -> None:
    for query in queries():
        for name, labels in re.findall(r"\b((?:gateway)_[a-z_]+)\{([^}]*)\}", query):
            for label, wanted in re.findall(r'([a-z]+)=~?"([^"]*)"', labels):
                assert set(wanted.split("|")) <= set(DECLARED[name].labels[label]), query


def test_each_alert_says_what_to_do() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS) > 5
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert len(alert["annotations"]["action"]) > 40, alert["alert"]
        assert alert["annotations"]["summary"], alert["alert"]


def promtool(*arguments: str) -> None:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not there: it comes with Debian's package prometheus")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("what", "file"), [("rules", "gateway.rules.yaml"), ("config", "prometheus.yaml")])
def test_prometheus_accepts_them(what: str, file: str) -> None:
    promtool("check", what, str(RULES.with_name(file)))


@pytest.mark.parametrize(
    ("alert", "sample", "values", "fires"),
    [
        ("GatewayGone", "up", "1x3 0x5", True),
        ("GatewayGone", "up", "1x7 0", False),  # one scrape that failed
        ("GatewayWorkersEnd", "gateway_worker_exits_total", "0x2 1 2 3 4 5 6", True),
        ("GatewayWorkersEnd", "gateway_worker_exits_total", "0x2 1x6", False),
    ],
)
def test_an_alert_fires_when_it_should(
    tmp_path: Path, alert: str, sample: str, values: str, fires: bool
) -> None:
    labels = {"instance": "one", "job": "gateway"}
    (rule,) = (rule for rule in ALERTS if rule["alert"] == alert)
    annotations = {
        name: text.replace("{{ $labels.instance }}", "one") for name, text in rule["annotations"].items()
    }
    expected = {"exp_labels": labels | rule["labels"], "exp_annotations": annotations}
    test = {
        "interval": "1m",
        "input_series": [{"series": f'{sample}{{instance="one", job="gateway"}}', "values": values}],
        "alert_rule_test": [{"eval_time": "8m", "alertname": alert, "exp_alerts": [expected] * fires}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]}))
    promtool("test", "rules", str(file))


def test_the_operators_page_names_each_alert() -> None:
    page = (ROOT / "docs/operations.md").read_text("utf-8")
    named = re.findall(r"`(Gateway[A-Za-z]+)`", page.partition("### What to watch")[2].partition("\n### ")[0])

    assert sorted(named) == sorted(alert["alert"] for alert in ALERTS)
