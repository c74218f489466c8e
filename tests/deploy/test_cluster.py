"""What runs several gateways (Kubernetes, compose, balancers) fits them, and is accepted where it goes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway import __version__, config
from gateway.admin.metrics import METRICS
from gateway.config import LimitSettings
from tests.support.drawn import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
IMAGE = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy/kubernetes/cluster.yaml").read_text("utf-8"))
)
NAMED = {(one["kind"], one["metadata"]["name"]): one for one in MANIFESTS}
POD = NAMED["Deployment", "gateway"]["spec"]["template"]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
HAPROXY = ROOT / "deploy/haproxy/haproxy.cfg"
ENVOY = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text("utf-8"))["static_resources"]
ENVOY_CALLS = ENVOY["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
ENVOY_ROUTE = ENVOY_CALLS["route_config"]["virtual_hosts"][0]["routes"][0]["route"]


def test_the_pods_share_a_store_and_a_key_and_their_settings_are_understood() -> None:
    (container,) = POD["spec"]["containers"]
    given = {one["name"]: "k" * 32 for one in container["env"]}
    settings = config.parse(NAMED["ConfigMap", "gateway"]["data"]["config.yaml"], {**IMAGE, **given})

    assert settings.store is not None
    assert settings.credentials.key is not None
    assert settings.audit.path == "-"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.listen.port, "admin": settings.admin.port}
    assert container["image"] == f"gateway:{__version__}"
    assert {one["name"] for one in container["volumeMounts"]} == {
        one["name"] for one in POD["spec"]["volumes"]
    }


def test_a_pod_that_leaves_has_time_to_be_left_alone_and_to_drain() -> None:
    (container,) = POD["spec"]["containers"]
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])

    assert POD["spec"]["terminationGracePeriodSeconds"] > before + LimitSettings().drain_timeout
    assert NAMED["Deployment", "gateway"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_all_that_select_pods_select_these_and_the_monitor_its_service() -> None:
    labels = POD["metadata"]["labels"].items()
    for kind, name in NAMED:
        spec = NAMED[kind, name].get("spec", {})
        selector = {
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
        }.get(kind)
        if selector is not None:
            assert selector(spec).items() <= labels, kind
    monitor = NAMED["ServiceMonitor", "gateway"]["spec"]
    service = NAMED["Service", "gateway-admin"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "gateway"  # as the alerts have it
    assert {one["port"] for one in monitor["endpoints"]} == {one["name"] for one in service["spec"]["ports"]}


def test_what_scales_them_asks_for_a_metric_that_there_is() -> None:
    scaler = NAMED["HorizontalPodAutoscaler", "gateway"]["spec"]
    gauges = {metric.name for metric in METRICS if metric.kind == "gauge"}
    asked = [one["pods"] for one in scaler["metrics"] if one["type"] == "Pods"]

    assert [one["metric"]["name"] for one in asked if one["metric"]["name"] in gauges]
    assert all(float(one["target"]["averageValue"]) < LimitSettings().max_in_flight for one in asked)
    assert 3 <= scaler["minReplicas"] < scaler["maxReplicas"]
    # Else each `kubectl apply` sets back what the scaler had made.
    assert "replicas" not in NAMED["Deployment", "gateway"]["spec"]
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) in NAMED


@pytest.mark.parametrize("file", ["gateway.yaml", "cluster.yaml"])
def test_kubernetes_accepts_the_manifests(file: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    ours = yaml.safe_load_all((ROOT / "deploy/kubernetes" / file).read_text("utf-8"))
    for manifest in ours:
        # Of what others define it has no schema.
        if manifest["apiVersion"] != "monitoring.coreos.com/v1":
            validator.validate(manifest, validator.latest_version(), strict=True)


def test_compose_starts_the_cluster_only_where_it_is_asked_for() -> None:
    always = {name for name, service in COMPOSE.items() if "profiles" not in service}
    assert always == {"mock", "gateway"}
    members = [COMPOSE[name] for name in ("gateway-1", "gateway-2")]
    (environment,) = {frozenset(one["environment"].items()) for one in members}
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in environment}
    settings = config.parse((ROOT / "config.yaml").read_text("utf-8"), {**IMAGE, **given})
    assert settings.store is not None
    assert settings.store.url == "redis://redis:6379"
    assert settings.upstream.url == "http://mock:9000"
    for member in members:
        assert float(member["stop_grace_period"].removesuffix("s")) > LimitSettings().drain_timeout


def servers() -> dict[str, set[str]]:
    """Those that each balancer has, as NAME:PORT."""
    endpoints = ENVOY["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = [one["endpoint"]["address"]["socket_address"] for one in endpoints]
    return {
        "haproxy": set(re.findall(r"^ +server \S+ (\S+)$", HAPROXY.read_text("utf-8"), re.M)),
        "envoy": {f"{one['address']}:{one['port_value']}" for one in addresses},
    }


def test_the_balancers_have_the_gateways_of_compose() -> None:
    expected = {f"{name}:8080" for name in COMPOSE if name.startswith("gateway-")}
    assert servers() == {"haproxy": expected, "envoy": expected}


PATHS = {
    "/api/v2/conversations/web/instances/c1/participants/p1": "c1",
    "/api/v2/conversations/web/instances/c1?expand=x": "c1",
    "/api/v2/conversations/chats/c1/participants/p1/attributes": "c1",
    "/api/v2/conversations/calls/c1/participants/p1/user/u1": "c1",
    "/api/v2/conversations/c1/participants/p1": "c1",
    "/api/v2/webchat/guest/conversations/c1/members/m1": "c1",
}


def test_envoy_hashes_by_the_conversation() -> None:
    rewrite = ENVOY_ROUTE["hash_policy"][0]["header"]["regex_rewrite"]
    for path, conversation in PATHS.items():
        assert re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], path) == conversation


def test_envoy_sends_to_another_only_what_was_not_sent() -> None:
    policy = ENVOY_ROUTE["retry_policy"]
    assert policy["retry_on"] == "connect-failure"
    # Else the same hash leads to the same gateway.
    assert [one["name"] for one in policy["retry_host_predicate"]] == [
        "envoy.retry_host_predicates.previous_hosts"
    ]
    assert policy["host_selection_retry_max_attempts"] > policy["num_retries"]


def test_envoy_gives_up_an_idle_connection_long_before_the_gateway_does() -> None:
    (options,) = ENVOY["clusters"][0]["typed_extension_protocol_options"].values()
    idle = float(options["common_http_protocol_options"]["idle_timeout"].removesuffix("s"))
    assert idle <= LimitSettings().keep_alive / 2


@pytest.fixture
def haproxy() -> str:
    found = shutil.which(
        "haproxy", path=os.pathsep.join((os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"))
    )
    if found is None:
        pytest.skip("haproxy is not there: it comes with Debian's package haproxy")
    return found


def test_haproxy_accepts_its_configuration(haproxy: str) -> None:
    done = subprocess.run([haproxy, "-c", "-f", str(HAPROXY)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_haproxy_hashes_by_the_conversation(haproxy: str) -> None:
    told = "http-request return status 200 hdr X-Conversation %[var(txn.conversation)]\n    default_backend"
    with tempfile.TemporaryDirectory(prefix="haproxy-", dir="/tmp") as folder:
        bound = f"{folder}/haproxy.sock"
        text = HAPROXY.read_text("utf-8").replace("bind :8080", f"bind unix@{bound}")
        settings = Path(folder) / "haproxy.cfg"
        settings.write_text(text.replace("default_backend", told))
        running = subprocess.Popen(
            [haproxy, "-f", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until = time.monotonic() + 20
            while not Path(bound).exists() and time.monotonic() < until and running.poll() is None:
                time.sleep(0.02)
            transport = httpx.HTTPTransport(uds=bound, retries=5)
            with httpx.Client(transport=transport, base_url="http://h") as client:
                named = {path: client.get(path).headers["x-conversation"] for path in PATHS}
        finally:
            running.kill()
            running.wait()
    assert named == PATHS
    assert "balance hash var(txn.conversation)" in text
