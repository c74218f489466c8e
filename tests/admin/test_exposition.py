"""`/metrics` as a scraper reads it: both formats, parsed by prometheus_client's own parsers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin import health, process
from gateway.admin.exposition import OPENMETRICS, TEXT, exposition, wants_openmetrics
from gateway.admin.health import AT_ONCE
from gateway.admin.metrics import METRICS, Counts, Histograms, Metrics, WatchedRule
from gateway.mock.server import Fault
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, Running, gateway
from tests.support.mocking import JSON, mock
from tests.support.waiting import until

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
NASTY = 'a "b" \\ c\nd\\n'
RULE = "web-participant-state"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Parser = Callable[[str], Iterable[Any]]
parse_text: Parser = text_string_to_metric_families
parse_openmetrics: Parser = openmetrics_parser.text_string_to_metric_families


def read(families: Iterable[Any]) -> Samples:
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "no series is there twice"
    return found


def at(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def scraped(running: Running) -> Samples:
    async with running.admin() as admin:
        return read(parse_openmetrics((await admin.get("/metrics", headers={"Accept": PROMETHEUS})).text))


def filled() -> Metrics:
    counts, histograms = Counts(), Histograms()
    counts["gateway_skips_total", "one", NASTY] += 3
    for seconds in (0.0001, 0.00011, 0.3, 60.0):
        histograms["gateway_added_latency_seconds", "one"].observe(seconds)
    metrics = Metrics(counts, {}, histograms)
    metrics.follow([WatchedRule("one", "PATCH", "shadow", ("fill",))])
    metrics.measure(process.readings())
    return metrics


@pytest.mark.parametrize("openmetrics", [False, True])
def test_what_is_written_is_read_as_it_was_meant(openmetrics: bool) -> None:
    text = exposition(filled(), openmetrics=openmetrics)
    families = list((parse_openmetrics if openmetrics else parse_text)(text))
    samples = read(families)

    assert at(samples, "gateway_skips_total", rule="one", reason=NASTY) == 3
    latency = "gateway_added_latency_seconds"
    assert at(samples, f"{latency}_bucket", rule="one", le="0.0001") == 1
    assert at(samples, f"{latency}_bucket", rule="one", le="0.00025") == 2
    assert at(samples, f"{latency}_bucket", rule="one", le="10.0") == 3
    assert at(samples, f"{latency}_bucket", rule="one", le="+Inf") == 4
    assert at(samples, f"{latency}_count", rule="one") == 4
    assert at(samples, f"{latency}_sum", rule="one") == pytest.approx(60.30021)
    assert text.endswith("# EOF\n") is openmetrics
    declared = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    assert [family.documentation for family in families] == [declared[one.name].help for one in families]
    assert [family.type for family in families] == [declared[one.name].kind for one in families]


def test_a_rule_s_series_are_there_before_its_first_call() -> None:
    samples = read(parse_text(exposition(filled(), openmetrics=False)))

    assert at(samples, "gateway_requests_total", rule="one", method="PATCH", status="5xx") == 0
    assert at(samples, "gateway_requests_total", rule="none", method="other", status="4xx") == 0
    rewrite = {"rule": "one", "repair": "fill", "mode": "shadow"}
    assert at(samples, "gateway_rewrites_total", **rewrite, result="not_sent") == 0
    assert at(samples, "gateway_refusals_total", cause="unrecordable") == 0
    assert at(samples, "gateway_lock_wait_seconds_count") == 0
    assert at(samples, "gateway_rule_info", rule="one", mode="shadow") == 1


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text; version=1.0.0", True),
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.5", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=much", False),
        ("application/openmetrics-text;q=0", False),
    ],
)
def test_openmetrics_is_for_who_prefers_it(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


async def test_the_admin_side_answers_in_the_form_that_is_asked_for() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.admin() as admin:
        plain = await admin.get("/metrics")
        scrape = await admin.get("/metrics", headers={"Accept": PROMETHEUS})

    assert (plain.headers["content-type"], plain.headers["vary"]) == (TEXT, "Accept")
    assert scrape.headers["content-type"] == OPENMETRICS
    assert read(parse_text(plain.text)).keys() == read(parse_openmetrics(scrape.text)).keys()


async def test_calls_are_counted_by_what_became_of_them() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await client.patch(PARTICIPANT, content=b'{"state":"connected"}', headers={**TOKEN, **JSON})
        upstream.faults.append(Fault(method="PATCH", status=400))
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        upstream.faults.append(Fault(method="GET", status=500))
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await client.get("/api/v2/users/me")
        await client.request("BREW", "/api/v2/users/me")
        await until(lambda: running.counts("gateway_requests_total", "none", "other", "4xx"))
        samples = await scraped(running)
        lines = len(running.lines())

    def requests(rule: str, method: str, status: str) -> float:
        return at(samples, "gateway_requests_total", rule=rule, method=method, status=status)

    assert [requests(RULE, "PATCH", status) for status in ("2xx", "4xx", "5xx")] == [3, 1, 1]
    assert requests("none", "GET", "2xx") + requests("none", "GET", "4xx") == 1
    fill = {"rule": RULE, "repair": "fill", "mode": "enforce"}
    assert at(samples, "gateway_rewrites_total", **fill, result="accepted") == 2
    assert at(samples, "gateway_rewrites_total", **fill, result="refused") == 1
    assert at(samples, "gateway_rewrites_total", **fill, result="failed") == 0
    assert at(samples, "gateway_skips_total", rule=RULE, reason="conforming") == 1
    assert ("gateway_skips_total", frozenset({("rule", RULE), ("reason", "lookup-failed")})) not in samples
    assert at(samples, "gateway_lookups_total", result="failed") == 1
    assert at(samples, "gateway_lookup_duration_seconds_count", result="failed") == 1
    assert at(samples, "gateway_lookup_duration_seconds_count", result="read") >= 1
    assert at(samples, "gateway_added_latency_seconds_count", rule=RULE) == 5
    assert at(samples, "gateway_invalidations_total") >= 2
    assert at(samples, "gateway_store_bytes") >= 0
    assert at(samples, "gateway_audit_lines_total") == lines > 5
    assert at(samples, "gateway_audit_write_seconds_count") > 0
    assert at(samples, "gateway_audit_failing") == at(samples, "gateway_audit_failures_total") == 0


@pytest.mark.parametrize(("mode", "repairs"), [("shadow", ["content_type", "fill"]), ("observe", ["fill"])])
async def test_what_was_only_worked_out_is_counted_as_not_sent(mode: str, repairs: list[str]) -> None:
    async with mock() as upstream, gateway(upstream.url, rule={"mode": mode}) as running:
        async with running.client() as client:
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await until(lambda: running.counts("gateway_skips_total", RULE, mode))
        samples = await scraped(running)

    for repair in repairs:
        labels = {"rule": RULE, "repair": repair, "mode": mode, "result": "not_sent"}
        assert at(samples, "gateway_rewrites_total", **labels) == 1


async def test_an_audit_log_that_cannot_be_written_is_seen(tmp_path: Path) -> None:
    async with mock() as upstream, gateway(upstream.url, audit=str(tmp_path / "none" / "log")) as running:
        async with running.client() as client:
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        await until(lambda: running.gateway.audit.lost_in_all)
        samples = await scraped(running)

    assert at(samples, "gateway_audit_failing") == 1
    assert at(samples, "gateway_audit_failures_total") >= 1
    assert at(samples, "gateway_audit_lines_lost_total") == running.gateway.audit.lost_in_all > 0
    assert at(samples, "gateway_audit_lines_total") == 0


def test_the_process_s_own_figures_are_those_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "self" / "fd").mkdir(parents=True)
    (tmp_path / "self" / "fd" / "0").touch()
    (tmp_path / "self" / "stat").write_text("7 (a ) b) S " + " ".join(["0"] * 18) + " 250 0")
    (tmp_path / "self" / "statm").write_text("900 2 0 0 0 0 0")
    (tmp_path / "stat").write_text("cpu 1\nbtime 1000\n")
    found = {name: reading() for (name,), reading in process.readings(tmp_path).items()}

    assert found["process_open_fds"] == 1
    assert found["process_resident_memory_bytes"] % 4096 == 0 < found["process_resident_memory_bytes"]
    assert 1000 < found["process_start_time_seconds"] <= 1250
    assert process.readings(tmp_path / "none").keys() == {
        ("process_cpu_seconds_total",),
        ("process_max_fds",),
    }


async def test_thousands_of_rules_are_told_with_turns_for_the_calls_between() -> None:
    metrics = Metrics(Counts(), {})
    metrics.follow([WatchedRule(f"rule-{number}", "PATCH", "enforce", ("fill",)) for number in range(1500)])
    transport = httpx.ASGITransport(app=health.build({}, metrics))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        for path in ("/metrics", "/counts"):
            turns = 0
            meanwhile = asyncio.create_task(others())
            reply = await admin.get(path)
            meanwhile.cancel()
            assert turns > 10
        assert reply.status_code == 200
        told = (await admin.get("/metrics")).text
    assert told == exposition(metrics, openmetrics=False)
    assert told.count("\n") > 10 * AT_ONCE
