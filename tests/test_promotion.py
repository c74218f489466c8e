"""One file for several environments, how two configurations differ, and the digest of what is in force."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway import config
from gateway.cli import cli
from gateway.config import ConfigError, Settings
from gateway.promotion import difference, effect
from tests.support.audit_lines import audit_lines
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, document, settings
from tests.support.mocking import mock
from tests.support.processes import gateway_process, write_configuration
from tests.support.waiting import until

FILE = """\
upstream: {url: "http://u:9000", max_connections: 50}
credentials: {headers: [x-one, x-two]}
callers: {}
rules:
  - name: one
    match: {path: "/c/{id}/p/{who}"}
    repairs:
      - {type: encoding}
      - {type: content_type}
  - name: two
    match: {path: "/d/{id}"}
    repairs: [{type: encoding}]
environments:
  staging: {}
  production:
    upstream: {url: "http://${PRODUCTION}:9000"}
    credentials: {headers: [x-three]}
    callers: null
    rules:
      - name: two
        mode: observe
      - name: three
        match: {path: "/e/{id}"}
        repairs: [{type: encoding}]
"""


def parsed(place: str | None = None, text: str = FILE, **environment: str) -> Settings:
    return config.parse(text, environment, place=place)


def problems(place: str | None, text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parsed(place, text, **environment)
    return refused.value.errors


def command(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={"GATEWAY_ENV": "", **environment})


# --- environments


def test_sections_are_merged_rules_by_name_and_other_lists_are_replaced() -> None:
    chosen = parsed("production", PRODUCTION="p")

    assert (chosen.upstream.url, chosen.upstream.max_connections) == ("http://p:9000", 50)
    assert chosen.credentials.headers == ("x-three",)
    assert chosen.callers is None
    assert [(rule.name, rule.mode) for rule in chosen.rules] == [
        ("one", "enforce"),
        ("two", "observe"),
        ("three", "enforce"),
    ]
    assert chosen.rules[1].match.path == "/d/{id}"


def test_another_environments_variables_are_not_needed() -> None:
    assert parsed() == parsed("staging")
    assert parsed().callers is not None


@pytest.mark.parametrize(
    ("given", "modes"), [(None, ["observe"]), ("staging", ["enforce"]), ("", ["enforce"])]
)
def test_the_variable_chooses_unless_the_option_does(given: str | None, modes: list[str]) -> None:
    chosen = parsed(given, GATEWAY_ENV="production", PRODUCTION="p")
    assert [rule.mode for rule in chosen.rules if rule.name == "two"] == modes


def test_an_environment_that_is_not_there_is_refused_with_what_was_meant() -> None:
    (told,) = problems("productoin", FILE)
    assert told.startswith(
        "config.yaml:13:1: environments: there is no 'productoin'; did you mean 'production'?"
    )
    assert told.endswith("(there are: staging, production)")
    assert "there are: none" in problems("x", "upstream: {url: http://u}\n")[0]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("mode: observe", "mode: obsreve", "config.yaml:21:15: rules[1].mode (rule 'two'): Input should be"),
        ("x-three]}", "x-three], quary: []}", "config.yaml:17:39: credentials.quary: unknown key"),
        ('"/e/{id}"', '"e"', "config.yaml:23:23: rules[2].match.path (rule 'three'): "),
        ("  staging: {}", "  staging: []", "config.yaml:14:3: environments.staging: expected a name"),
        ("  staging: {}", "  staging: {environments: {}}", "environments.staging.environments: expected no"),
    ],
)
def test_what_is_wrong_in_it_is_told_where_it_stands(before: str, after: str, told: str) -> None:
    (found,) = problems("production", FILE.replace(before, after), PRODUCTION="p")
    assert told in found


def test_the_commands_take_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE)
    own = ["--config", str(file)]

    assert "two (observe" in command("check", *own, "--env", "production", PRODUCTION="p").output
    assert "two (enforce" in command("check", *own, "--env", "staging").output
    assert "two (observe" in command("check", *own, GATEWAY_ENV="production", PRODUCTION="p").output
    explained = command("explain", "/e/1", *own, "--env", "production", PRODUCTION="p")
    assert "rule:     three" in explained.output
    refused = command("check", *own, "--env", "prod")
    assert refused.exit_code == 1
    assert "there is no 'prod'" in refused.output


# --- the digest and the difference


def text_with(**changes: Any) -> str:
    return yaml.safe_dump(document("http://u:9000", "a.jsonl", **changes))


SAME: dict[str, dict[str, Any]] = {
    "a default said": {"limits": {"deadline": "15s", "max_body": "1MiB"}},
    "addresses": {"upstream": {"url": "https://other/x"}, "listen": {"host": "0.0.0.0", "port": 1}},
    "secrets": {"credentials": {"key": "k" * 32}, "admin": {"token": "t" * 16}},
    "files": {"audit": {"path": "b.jsonl"}, "callers": {"path": "c"}, "log": {"access": "d"}},
    "what follows": {"rule": {"cases": []}, "mode": "enforce"},
}
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "a limit": ({"limits": {"max_body": "2MiB"}}, "limits.max_body: 1048576 → 2097152"),
    "a repair's key": (
        {"fill": {"max_age": "1s"}},
        "rules[web-participant-state].repairs.fill state.max_age: 5.0 → 1.0",
    ),
    "a path": (
        {"rule": {"match": {"path": "/a/{conversationId}/{participantId}"}}},
        (
            'rules[web-participant-state].match.path: "/api/v2/conversations/web/instances/{conversationId}'
            '/participants/{participantId}" → "/a/{conversationId}/{participantId}"'
        ),
    ),
    "a section": ({"cors": {"origins": ["*"]}}, "cors.credentials: none → false"),
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_what_has_no_effect_or_is_each_environments_own_does_not_differ(changes: dict[str, Any]) -> None:
    plain, other = config.parse(text_with(), {}), config.parse(text_with(**changes), {})

    assert effect.digest(plain) == effect.digest(other)
    assert difference.differences(plain, other) == []


@pytest.mark.parametrize(("changes", "told"), OTHER.values(), ids=OTHER)
def test_what_has_an_effect_differs_and_is_named(changes: dict[str, Any], told: str) -> None:
    plain, other = config.parse(text_with(), {}), config.parse(text_with(**changes), {})

    assert effect.digest(plain) != effect.digest(other)
    assert told in [str(one) for one in difference.differences(plain, other)]


def test_a_mode_differs_but_not_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE.replace("production:", "observed: {mode: observe}\n  production:"))
    told = command("diff", str(file), f"{file}@observed")

    assert told.exit_code == 1
    assert told.output.splitlines()[:2] == [
        'rules[one].mode: "enforce" → "observe"',
        'rules[two].mode: "enforce" → "observe"',
    ]
    assert told.output.splitlines()[2].startswith("modes alone differ: both have the digest ")


def test_rules_are_told_by_name_and_their_order_where_it_is_another(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE)
    told = command("diff", f"{file}@", f"{file}@production", "--json", PRODUCTION="p")

    assert told.exit_code == 1
    assert json.loads(told.output)["differences"] == [
        {"place": "credentials.headers", "a": ["x-one", "x-two"], "b": ["x-three"]},
        {"place": "rules[three]", "a": None, "b": "there"},
        {"place": "rules[two].mode", "a": "enforce", "b": "observe"},
    ]
    whole = yaml.safe_load(FILE) | {"environments": {}}
    turned = whole | {"rules": whole["rules"][::-1]}
    one, other = (config.parse(yaml.safe_dump(text), {}) for text in (whole, turned))
    assert [found.place for found in difference.differences(one, other)] == ["rules, in their order"]
    assert effect.digest(one) != effect.digest(other)


def test_diff_exits_with_0_where_nothing_differs_and_with_2_where_a_file_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "with@sign.yaml"
    file.write_text(FILE)

    assert command("diff", str(file), f"{file}@staging").exit_code == 0
    assert command("diff", str(file), str(file), "--env", "production", PRODUCTION="p").exit_code == 0
    assert command("diff", str(file), f"{file}@stagin").exit_code == 2
    assert command("diff", str(file), str(tmp_path / "none.yaml")).exit_code == 2


def test_a_secret_is_in_no_digest_and_no_difference() -> None:
    texts = [text_with(credentials={"key": "secret" * 6}, admin={"token": "hidden" * 3}), text_with()]
    one, other = (config.parse(text, {}) for text in texts)
    assert "secret" not in repr(effect.effects(one))
    assert "hidden" not in repr(difference.differences(one, other))


# --- what is in force


async def test_the_process_says_its_digest_everywhere_and_anew_after_a_reload(tmp_path: Path) -> None:
    async with mock() as upstream, gateway_process(tmp_path, upstream.url) as running:
        first = effect.digest(settings(upstream.url, "rewrites.jsonl"))
        later = effect.digest(settings(upstream.url, "rewrites.jsonl", fill={"max_age": "1s"}))
        async with running.client() as client, running.admin() as admin:

            async def told(digest: str) -> bool:
                exposed = (await admin.get("/metrics")).text
                series = [line for line in exposed.splitlines() if line.startswith("gateway_config_info{")]
                ready = (await admin.get("/readyz")).json()
                return (ready["config"], series) == (
                    digest,
                    [f'gateway_config_info{{digest="{digest}"}} 1.0'],
                )

            assert await told(first)
            assert f"configuration {first}" in running.process.said
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
            write_configuration(tmp_path, upstream.url, 0, 0, fill={"max_age": "1s"})
            running.process.signal(signal.SIGHUP)
            await until(lambda: "it says something else" in running.process.said)
            assert await told(later)
            await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
    events = [(line["event"], line.get("digest"), line.get("by")) for line in audit_lines(running.audit)]
    assert [event for event in events if event[0] != "outcome"] == [
        ("config", first, "start"),
        ("rewrite", None, None),
        ("config", later, "SIGHUP"),
        ("rewrite", None, None),
    ]


async def test_the_process_runs_in_the_environment_that_the_variable_names(tmp_path: Path) -> None:
    """Reloads too: its file is read again as that environment has it."""
    overlaid = {"fast": {"rules": [{"name": "web-participant-state", "mode": "observe"}]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEWAY_ENV", "fast")
        async with (
            mock() as upstream,
            gateway_process(tmp_path, upstream.url, environments=overlaid) as running,
        ):
            assert "rule web-participant-state: observe" in running.process.said
            overlaid["fast"]["rules"][0]["mode"] = "shadow"
            write_configuration(tmp_path, upstream.url, 0, 0, environments=overlaid)
            running.process.signal(signal.SIGHUP)
            await until(lambda: "mode observe is now shadow" in running.process.said)
