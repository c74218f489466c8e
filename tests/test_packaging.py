"""The image is built from pins with hashes; what runs it under systemd and Kubernetes fits it."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from gateway import __version__, config
from gateway.config import LimitSettings, UpstreamSettings
from tests.support.drawn import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
RUNS = [Requirement(one) for one in PYPROJECT["project"]["dependencies"]]
EXTRAS = {name: PYPROJECT["project"]["optional-dependencies"][name] for name in ("otel", "validate")}
BUILDS = [Requirement(one) for one in PYPROJECT["build-system"]["requires"]]
RUN_FROM = ["constraints.txt", "constraints-extras.txt"]
FILES = [*RUN_FROM, "constraints-build.txt"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def pins(file: str) -> dict[NormalizedName, tuple[Requirement, list[str]]]:
    """By its name, each requirement and its hashes."""
    text = (ROOT / file).read_text("utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found: dict[NormalizedName, tuple[Requirement, list[str]]] = {}
    for line in lines:
        requirement, *hashes = line.split(" --hash=")
        pin = Requirement(requirement.strip())
        found[canonicalize_name(pin.name)] = pin, [one.strip() for one in hashes]
    assert len(found) == len(lines)
    return found


def pinned_within(file: str, needed: Requirement) -> bool:
    pin, _ = pins(file).get(canonicalize_name(needed.name), (None, []))
    return pin is not None and all(needed.specifier.contains(one.version) for one in pin.specifier)


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


@pytest.mark.parametrize("one", RUNS, ids=str)
def test_what_the_gateway_needs_has_a_pin_that_fits(one: Requirement) -> None:
    assert pinned_within("constraints.txt", one)


@pytest.mark.parametrize("one", [one for extra in EXTRAS.values() for one in extra])
def test_so_has_what_an_extra_of_a_running_gateway_needs(one: str) -> None:
    assert pinned_within("constraints-extras.txt", Requirement(one))


def test_with_the_extras_all_else_is_the_same_version() -> None:
    assert pins("constraints.txt").items() < pins("constraints-extras.txt").items()


@pytest.mark.parametrize("file", RUN_FROM)
def test_so_has_what_that_needs_in_turn(file: str) -> None:
    """As the packages say that are installed in their pin's version: another may need something else."""
    installed = {canonicalize_name(one.name): one for one in distributions()}
    pinned = [
        installed[name]
        for name, (pin, _) in pins(file).items()
        if name in installed and pin.specifier.contains(installed[name].version)
    ]
    needed = [Requirement(text) for one in pinned for text in one.requires or []]

    assert [one for one in needed if applies(one) and not pinned_within(file, one)] == []
    assert pinned


@pytest.mark.parametrize("file", FILES)
def test_every_pin_is_one_version_with_hashes(file: str) -> None:
    for name, (pin, hashes) in pins(file).items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), name
        assert hashes, name
        assert len(set(hashes)) == len(hashes), name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), name


def test_the_tool_that_builds_is_one_version_and_the_pinned_one() -> None:
    pinned = pins("constraints-build.txt")

    for one in BUILDS:
        assert one.specifier == pinned[canonicalize_name(one.name)][0].specifier
        assert str(one.specifier).startswith("==")
    assert BUILDS


def test_the_image_installs_nothing_without_a_hash_but_the_gateway_itself() -> None:
    runs = re.findall(r"^RUN ((?:.*\\\n)*.*)$", DOCKERFILE, re.M)
    commands = [shlex.split(one) for run in runs for one in run.replace("\\\n", "").split("&&")]
    pip = [command[command.index("pip") + 1 :] for command in commands if "pip" in command]
    wheels_only = ["--only-binary", ":all:"]

    assert pip == [
        ["install", "--require-hashes", *wheels_only, "-r", "constraints-build.txt"],
        ["install", "--require-hashes", *wheels_only, "-r", "constraints${EXTRAS:+-extras}.txt"],
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "/wheels", "."],
        ["install", "--no-deps", "/wheels/*.whl"],
        ["check"],
    ]


def test_both_stages_of_the_image_have_the_one_base_that_can_be_given() -> None:
    assert re.findall(r"^(?:ARG|FROM) .*", DOCKERFILE, re.M) == [
        "ARG BASE=python:3.11-slim",
        "FROM ${BASE} AS build",
        "ARG PIP_INDEX_URL",
        "ARG PIP_CERT",
        "ARG EXTRAS",
        "FROM ${BASE}",
    ]


def test_what_the_image_is_made_from_is_sent_to_its_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    sent = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), re.M)

    assert sorted(name for line in copied for name in line.split()) == sorted(sent)
    assert set(FILES) <= set(sent)


def manifests() -> dict[str, Any]:
    text = (ROOT / "deploy" / "kubernetes" / "gateway.yaml").read_text("utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_the_pod_runs_the_image_with_settings_that_are_understood() -> None:
    told = manifests()
    pod = told["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    image = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
    settings = config.parse(told["ConfigMap"]["data"]["config.yaml"], {**image, "GATEWAY_KEY": "k" * 32})

    assert (settings.listen.host, settings.admin.host) == ("0.0.0.0", "0.0.0.0")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.listen.port, "admin": settings.admin.port}
    assert not pod["enableServiceLinks"], "GATEWAY_PORT would be the service's address"
    assert pod["terminationGracePeriodSeconds"] > settings.limits.drain_timeout
    assert container["image"] == f"gateway:{__version__}"
    users = re.findall(r"USER (\d+):(\d+)", DOCKERFILE)
    security = pod["securityContext"]
    assert users == [(str(security["runAsUser"]), str(security["runAsGroup"]))]
    assert Path(settings.audit.path).parent.as_posix() in [
        mount["mountPath"] for mount in container["volumeMounts"]
    ]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    labels = told["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert told["Service"]["spec"]["selector"].items() <= labels.items()


def test_the_service_of_one_machine_is_given_time_to_drain() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(ROOT / "deploy" / "systemd" / "gateway.service")
    service = unit["Service"]

    assert int(service["TimeoutStopSec"]) > LimitSettings().drain_timeout
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert service["Restart"] == "always", "on-failure takes an end by SIGHUP for a clean one"
    limits = LimitSettings().max_connections + UpstreamSettings(url="http://u").max_connections
    assert int(service["LimitNOFILE"]) > limits + 1_000


def test_a_container_is_given_time_to_drain() -> None:
    drain = LimitSettings().drain_timeout
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")

    assert float(compose["services"]["gateway"]["stop_grace_period"].removesuffix("s")) > drain
    assert [float(one) > drain for one in re.findall(r"--stop-timeout (\d+)", page)] == [True]


@pytest.mark.parametrize("service", ["gateway", "gateway-1"])
def test_compose_takes_from_the_shell_what_an_operator_sets(service: str) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    given = compose["services"][service]["environment"]

    for name in ("GATEWAY_UPSTREAM", "GATEWAY_MODE", "GATEWAY_KEY", "GATEWAY_ADMIN_TOKEN"):
        assert given[name].startswith(f"${{{name}:-"), name


def test_the_variables_of_the_image_are_those_that_stand_for_settings() -> None:
    image = re.findall(r"(GATEWAY_\w+)=", DOCKERFILE)

    assert set(image) <= set(config.FROM_ENVIRONMENT)
    assert len(image) == 4
