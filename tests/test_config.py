"""config.yaml: what is understood, and every error at once, each with its place and what was expected."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import config
from gateway.config import ConfigError, Settings
from gateway.repairs import REPAIRS, name_of
from gateway.repairs.fill import FillSettings
from tests.support.gateways import SHIPPED

# On a busy machine an example may take its time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = [name_of(repair) if repair.once else f"{name_of(repair)}s" for repair in REPAIRS]
IN_ORDER = f"{', '.join(NAMES[:-1])} and {NAMES[-1]}"
UPSTREAM = "upstream: {url: http://u:9000}\n"
FILL: dict[str, Any] = {
    "type": "fill",
    "field": "state",
    "from": "/c/{id}",
    "select": "$.participants[?@.id == _.who].state",
    "allow": ["connected"],
}


def fill(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (FILL | changes).items() if value is not ...}


def rule(*repairs: Any, name: Any = "one", path: Any = "/c/{id}/p/{who}", **more: Any) -> dict[str, Any]:
    return {"name": name, "match": {"path": path}, "repairs": list(repairs) or [fill()], **more}


def understood(document: str | dict[str, Any], **environment: str) -> Settings:
    return config.parse(document if isinstance(document, str) else yaml.safe_dump(document), environment)


def errors(document: str | dict[str, Any], **environment: str) -> list[str]:
    """Each without the file's name, line and column and the rule's name, which are asserted elsewhere."""
    with pytest.raises(ConfigError) as found:
        understood(document, **environment)
    assert str(found.value) == "\n".join(found.value.errors)
    assert all(line.startswith("config.yaml:") and "\n" not in line for line in found.value.errors)
    return [
        re.sub(r"^(\S+) \(rule .*?\): ", r"\1: ", re.sub(r"^config.yaml(:\d+:\d+)?: ", "", line))
        for line in found.value.errors
    ]


def error(document: str | dict[str, Any], **environment: str) -> str:
    (only,) = errors(document, **environment)
    return only


def with_rule(*repairs: Any, **more: Any) -> dict[str, Any]:
    return {"upstream": {"url": "http://u"}, "rules": [rule(*repairs, **more)]}


# --- what is understood


def test_an_upstream_is_all_that_must_be_said() -> None:
    found = understood(UPSTREAM)

    assert found.upstream.url == "http://u:9000"
    assert (found.listen.host, found.listen.port) == ("127.0.0.1", 8080)
    assert found.limits.max_body == 2**20
    assert found.rules == ()
    assert found.cors is None


def test_the_contract_s_example_is_understood_as_written() -> None:
    found = config.load(SHIPPED, {})

    (web, media, user, generic) = found.rules
    assert web.mode == "enforce"
    assert web.on_lookup_failure == "reject"
    assert [repair.type for repair in web.repairs] == ["encoding", "content_type", "fill"]
    (the_fill,) = [repair for repair in web.repairs if isinstance(repair, FillSettings)]
    assert the_fill.source == "/api/v2/conversations/web/instances/{conversationId}"
    assert the_fill.select.startswith("$.participants[?@.id == _.participantId")
    assert (the_fill.max_age, the_fill.settle, the_fill.refill_on) == (1.0, 2.0, (409, 412))
    assert the_fill.allow == ("active", "connected")
    assert not the_fill.null_is_missing
    assert (found.upstream.connect_timeout, found.upstream.read_timeout) == (2.0, 15.0)
    assert (found.listen.port, found.admin.port, found.upstream.max_connections) == (8080, 9901, 200)
    assert found.audit.path == "rewrites.jsonl"
    assert web.writes == media.writes == user.writes == generic.writes
    assert found.warnings() == []


@pytest.mark.parametrize(
    ("mode", "modes"), [(None, ["enforce", "observe"]), ("shadow", ["shadow", "observe"])]
)
def test_the_mode_for_all_is_that_of_rules_that_have_none(mode: str | None, modes: list[str]) -> None:
    document = with_rule()
    document["rules"].append(rule(name="two", path="/d/{id}/p/{who}", mode="observe"))
    found = understood(document | ({} if mode is None else {"mode": mode}))

    assert [one.mode for one in found.rules] == modes


def test_the_shipped_mode_comes_from_the_environment() -> None:
    for mode in ("enforce", "observe"):
        found = config.load(SHIPPED, {"GATEWAY_MODE": mode})
        assert {one.mode for one in found.rules} == {mode}
    assert "mode: Input should be" in error(SHIPPED.read_text(), GATEWAY_MODE="on")


def test_settings_are_frozen() -> None:
    found = understood(UPSTREAM)

    with pytest.raises(ValueError, match="frozen"):
        setattr(found.listen, "port", 1)  # noqa: B010


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("0s", 0.0), ("250ms", 0.25), ("2s", 2.0), ("1.5s", 1.5), ("1m", 60.0), ("0.5m", 30.0),
     ('"2s"', 2.0), ('" 2s "', 2.0), ("0.0", 0.0), ("60s", 60.0), ("60000ms", 60.0)],
)  # fmt: skip
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    found = understood(yaml.safe_dump(with_rule(fill(max_age="AGE"))).replace("AGE", text))

    (the_fill,) = found.rules[0].repairs
    assert isinstance(the_fill, FillSettings)
    assert the_fill.max_age == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [
        "1", "1.5", "true", "false", "2 s", "2sec", "-1s", "1e3s", "s", ".5s", "2S", "1h30m", "inf", ".inf",
        ".nan", "null", "[]", "{}", "'٣s'", "1_0s", "9" * 400 + "s", "2h,",
    ]
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str) -> None:
    found = errors(yaml.safe_dump(with_rule(fill(max_age="AGE"))).replace("AGE", text))

    assert found[0].startswith("rules[0].repairs[0].max_age: expected a duration such as")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("1B", 1), ("64KiB", 65536), ("64 KiB", 65536), ("1MiB", 2**20),
     ("1MB", 10**6), ("1kB", 1000), ("2GiB", 2**31), ("1GB", 10**9)],
)  # fmt: skip
def test_a_size_is_a_number_or_has_a_unit(text: str, size: int) -> None:
    assert understood(f"{UPSTREAM}limits: {{max_body: {text}}}").limits.max_body == size


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "1.5",
        "true",
        "1mb",
        "1M",
        "1KB",
        "1kiB",
        "-1MiB",
        "1.5MiB",
        "null",
        "MiB",
        "9" * 5000 + "B",
        "[1]",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    assert error(f"{UPSTREAM}limits: {{max_body: {text}}}").startswith(
        'limits.max_body: expected a size such as "64KiB" or "1MiB"'
    )


@pytest.mark.parametrize("age", ["0", "1s", "5s"])
def test_a_fresh_enough_state_needs_no_warning(age: str) -> None:
    assert understood(with_rule(fill(max_age=age if age != "0" else 0))).warnings() == []


@pytest.mark.parametrize("age", ["5001ms", "6s", "1m"])
def test_a_state_that_may_be_older_than_five_seconds_is_warned_of(age: str) -> None:
    (warning,) = understood(with_rule(fill(max_age=age))).warnings()

    assert "one" in warning
    assert "max_age" in warning


@pytest.mark.parametrize("age", ["60001ms", "61s", "2m", "1h"])
def test_a_state_that_may_be_older_than_a_minute_is_refused(age: str) -> None:
    assert error(with_rule(fill(max_age=age))).startswith("rules[0].repairs[0].max_age: expected at most 60s")


@pytest.mark.parametrize("statuses", [[], [409], [412, 409], [400, 422, 423, 428]])
def test_a_refusal_that_proves_that_nothing_was_applied_may_be_refilled(statuses: list[int]) -> None:
    (the_fill,) = understood(with_rule(fill(refill_on=statuses))).rules[0].repairs

    assert isinstance(the_fill, FillSettings)
    assert the_fill.refill_on == tuple(statuses)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503, 504, 200, 302, 0, -1, 600])
def test_what_proves_nothing_is_never_refilled(status: int) -> None:
    found = error(with_rule(fill(refill_on=[409, status])))

    assert found.startswith("rules[0].repairs[0].refill_on[1]: expected a status that proves")
    assert found.endswith(f"got {status}")


@pytest.mark.parametrize(
    "url",
    ["http://h", "https://h:8443/", "http://127.0.0.1:9000/prefix/v2", "http://[::1]:80",
     "http://a.b-c.example_1", "HTTPS://H/%20x"],
)  # fmt: skip
def test_an_upstream_may_have_a_port_and_a_prefix(url: str) -> None:
    assert understood({"upstream": {"url": url}}).upstream.url == url


@pytest.mark.parametrize(
    "url",
    ["", "h", "h:80", "//h", "ftp://h", "http://", "http:///x", "http://:80", "http://h:0",
     "http://h:99999", "http://h:x", "http://h?a=b", "http://h#f", "http://h/a?b", "http://u@h",
     "http://h h", "http://h/a b", "http://h//x", "http://h\\x", "http://bücher.example",
     "http://h\0", "http://[::1", 7, None, ["http://h"], "http://h%2fx"],
)  # fmt: skip
def test_what_is_no_origin_with_a_prefix_is_refused(url: Any) -> None:
    assert error(f"upstream: {{url: {json.dumps(url)}}}").startswith("upstream.url: ")


def test_a_password_in_a_url_is_not_repeated() -> None:
    found = error({"upstream": {"url": "http://me:hush@h/"}})

    assert found == "upstream.url: expected no user, query or fragment, got 'http://…@h/'"


def test_pages_of_named_origins_may_send_credentials() -> None:
    found = understood(UPSTREAM + "cors: {origins: ['https://a.example', 'http://b:1'], credentials: true}")

    assert found.cors is not None
    assert found.cors.origins == ("https://a.example", "http://b:1")
    assert understood(UPSTREAM + "cors: {origins: ['*']}").cors is not None


# --- every error, with its place


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", "expected a mapping with upstream and rules"),
        ("[]", "expected a mapping with upstream and rules"),
        ("text", "expected a mapping with upstream and rules"),
        ("{}", "upstream: required, but not given"),
        ("upstream: {}", "upstream.url: required, but not given"),
        ("upstream: http://h", "upstream: Input should be a valid dictionary"),
        (UPSTREAM + "uptsream: 1", "uptsream: unknown key"),
        (UPSTREAM + "listen: {prot: 1}", "listen.prot: unknown key"),
        (UPSTREAM + "listen: {port: 65536}",
         "listen.port: Input should be less than or equal to 65535, got 65536"),
        (UPSTREAM + "listen: {port: x}", "listen.port: Input should be a valid integer"),
        (UPSTREAM + "listen: {trusted_proxies: [10.0.0.0/8, x]}",
         "listen.trusted_proxies[1]: expected an address or network such as \"10.0.0.0/8\", got 'x'"),
        (UPSTREAM + "upstream: {url: http://v}", "the key 'upstream' is given twice"),
        (UPSTREAM + "audit: {path: ''}", "audit.path: String should have at least 1 character, got ''"),
        (UPSTREAM + "limits: {deadline: 0}", "limits.deadline: expected more than nothing, got 0"),
        (UPSTREAM + "limits: {max_headers: 0}", "limits.max_headers: Input should be greater than 0, got 0"),
        (UPSTREAM + "credentials: {headers: ['x y']}", "credentials.headers[0]: String should match pattern"),
        (UPSTREAM + "cors: {origins: []}", "cors.origins: expected at least one"),
        (UPSTREAM + "cors: {origins: ['*'], credentials: true}",
         'cors.credentials: expected named origins, not "*"'),
        (UPSTREAM + "rules: 1", "rules: Input should be a valid tuple"),
        (UPSTREAM + "rules: [1]", "rules[0]: Input should be a valid dictionary"),
        (UPSTREAM + "1: 2", "[1]: Keys should be strings"),
    ],
)  # fmt: skip
def test_an_error_names_its_place_and_what_was_expected(document: str, expected: str) -> None:
    assert error(document).startswith(expected)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (with_rule(name=None), "rules[0].name: Input should be a valid string, got None"),
        (with_rule(name="One"), "rules[0].name: String should match pattern"),
        (with_rule(name="a b"), "rules[0].name: String should match pattern"),
        (with_rule(name="a\n"), "rules[0].name: String should match pattern"),
        (with_rule(path="c/{id}"), "rules[0].match.path: path must start with '/', got 'c/{id}'"),
        (with_rule(path="/c/{id}/**"), 'rules[0].match.path: "**" may only stand in writes'),
        (with_rule(path="/c/{id}/{id}"), "rules[0].match.path: a parameter stands twice"),
        (with_rule(match={"path": "/c", "method": "GET"}),
         "rules[0].match.method: expected a method that carries"),
        (with_rule(match={"path": "/c", "method": "patch"}),
         "rules[0].match.method: String should match pattern"),
        (with_rule(match={"path": "/c", "host": "x"}), "rules[0].match.host: unknown key"),
        (with_rule(mode="off"),
         "rules[0].mode: Input should be 'observe', 'shadow', 'enforce' or 'on_reject'"),
        (with_rule(on_lookup_failure="retry"),
         "rules[0].on_lookup_failure: Input should be 'reject' or 'forward'"),
        (with_rule(writes=["/a", "GET /b"]), "rules[0].writes[1]: expected '[except ][METHOD ]/path'"),
        (with_rule(repairs=[]), "rules[0].repairs: expected at least one"),
        (with_rule({"type": "guess"}), "rules[0].repairs[0]: Input tag 'guess'"),
        (with_rule({}), "rules[0].repairs[0]: Unable to extract tag using discriminator 'type'"),
        (with_rule({"type": "encoding", "to": "x"}), "rules[0].repairs[0].to: unknown key"),
        (with_rule({"type": "encoding", "encoding": "x"}), "rules[0].repairs[0].encoding: unknown key"),
        (with_rule(encoding="utf-8"), "rules[0].encoding: unknown key"),
        (with_rule(fill="state"), "rules[0].fill: unknown key"),
        (with_rule({"type": "content_type", "value": "text/plain"}),
         "rules[0].repairs[0].value: expected a JSON media type such as application/json, got 'text/plain'"),
        (with_rule({"type": "content_type"}, {"type": "encoding"}),
         f"rules[0].repairs: expected {IN_ORDER}, in this order"),
        (with_rule({"type": "encoding"}, {"type": "encoding"}),
         f"rules[0].repairs: expected {IN_ORDER}, in this order"),
        (with_rule(fill(field="")), "rules[0].repairs[0].field: String should have at least 1 character"),
        (with_rule(fill(**{"from": "/c"})),
         "rules[0].repairs[0].from: expected a path with at least one {parameter}, got '/c'"),
        (with_rule(fill(**{"from": "/c/{id}/**"})),
         'rules[0].repairs[0].from: "**" may only stand in writes'),
        (with_rule(fill(**{"from": ...})), "rules[0].repairs[0].from: required, but not given"),
        (with_rule(fill(source="/c/{id}")), "rules[0].repairs[0].source: unknown key"),
        (with_rule(fill(**{"from": "/c/{x}"})), "rules[0].repairs[0].from: no parameter 'x' in match.path"),
        (with_rule(fill(select="$.a[?@.b == _.x]")),
         "rules[0].repairs[0].select: no parameter 'x' in match.path"),
        (with_rule(fill(select="state")),
         "rules[0].repairs[0].select: expected a JSONPath that starts with '$'"),
        (with_rule(fill(select="$[?@.a")), "rules[0].repairs[0].select: expected a JSONPath (RFC 9535): "),
        (with_rule(fill(select="$[?@.a == 1e999]")),
         "rules[0].repairs[0].select: expected a JSONPath (RFC 9535): "),
        (with_rule(fill(allow=[])), "rules[0].repairs[0].allow: expected at least one"),
        (with_rule(fill(allow="connected")), "rules[0].repairs[0].allow: Input should be a valid tuple"),
        (with_rule(fill(allow=[True])),
         "rules[0].repairs[0].allow[0]: Input should be a valid string, got True"),
        (with_rule(fill(allow=...)), "rules[0].repairs[0].allow: required, but not given"),
        (with_rule(fill(guard="lease")),
         "rules[0].repairs[0].guard: Input should be 'none' or 'etag', got 'lease'"),
        (with_rule(fill(), fill()), "rules[0].repairs: expected one fill for a field"),
        (with_rule(fill(), fill(field="b", **{"from": "/p/{who}"})),
         "rules[0].repairs: expected fills that look up the same conversation"),
        ({"upstream": {"url": "http://u"}, "rules": [rule(), rule(path="/d/{id}/{who}")]},
         "rules[1].name: expected different names, got 'one' again"),
        ({"upstream": {"url": "http://u"}, "rules": [rule(), rule(name="b", path="/c/{id}/p/{who}")]},
         "rules[1].match.path: can never match: earlier rules take all of it"),
        ({"upstream": {"url": "http://u"},
          "rules": [rule(path="/{m:a|b}/{id}/{who}"), rule(name="b", path="/a/{id}/{who}")]},
         "rules[1].match.path: can never match: earlier rules take all of it"),
    ],
)  # fmt: skip
def test_an_error_in_a_rule_names_its_place_and_what_was_expected(
    document: dict[str, Any], expected: str
) -> None:
    assert error(document).startswith(expected)


def test_a_rule_that_is_more_special_than_an_earlier_one_is_no_error() -> None:
    rules = [rule(path="/{a}/{id}/{who}", name="general"), rule(path="/x/{id}/{who}", name="special")]

    assert len(understood({"upstream": {"url": "http://u"}, "rules": rules}).rules) == 2


def test_a_look_up_may_take_half_of_the_deadline_and_no_more() -> None:
    within = understood(with_rule(fill(lookup_timeout="7.5s")) | {"limits": {"deadline": "15s"}})
    (repair,) = within.rules[0].repairs
    assert isinstance(repair, FillSettings)
    assert repair.lookup_timeout == 7.5

    beyond = with_rule({"type": "encoding"}, fill(lookup_timeout="2.6s")) | {"limits": {"deadline": "5s"}}
    assert error(beyond) == (
        "rules[0].repairs[1].lookup_timeout: expected 2.5s at most, half of limits.deadline"
    )


def test_a_look_up_that_says_nothing_of_its_time_goes_with_any_deadline() -> None:
    assert understood(with_rule(fill()) | {"limits": {"deadline": "1s"}}).limits.deadline == 1.0


def test_all_errors_come_at_once() -> None:
    document = {
        "upstream": {"url": "ftp://x", "connect_timeout": 5, "retries": 3},
        "listen": {"port": "${NO_PORT}"},
        "limits": {"max_body": "lots"},
        "rules": [
            rule(
                {"type": "encoding", "from": "latin-1"},
                {"type": "content_type", "value": "text/html"},
                fill(max_age="2m", refill_on=[500, 409, 429], allow=[], select="state", **{"from": "/c/**"}),
                name="Bad Name",
                path="no-slash",
                mode="sometimes",
                writes=["GET /x"],
            )
        ],
        "colour": "red",
    }

    places = [line.partition(": ")[0] for line in errors(document)]

    assert sorted(places) == sorted(
        ["listen.port", "upstream.url", "upstream.connect_timeout", "upstream.retries", "limits.max_body",
         "colour", "rules[0].name", "rules[0].match.path", "rules[0].mode", "rules[0].writes[0]",
         "rules[0].repairs[0].from", "rules[0].repairs[1].value", "rules[0].repairs[2].max_age",
         "rules[0].repairs[2].refill_on[0]", "rules[0].repairs[2].refill_on[2]",
         "rules[0].repairs[2].allow", "rules[0].repairs[2].select", "rules[0].repairs[2].from"]
    )  # fmt: skip


def test_all_that_does_not_fit_together_comes_at_once() -> None:
    first = rule(fill(**{"from": "/c/{x}"}, select="$.a[?@.b == _.y]"), {"type": "encoding"})
    found = errors({"upstream": {"url": "http://u"}, "rules": [first]})

    assert [line.partition(": ")[0] for line in found] == [
        "rules[0].repairs", "rules[0].repairs[0].from", "rules[0].repairs[0].select"
    ]  # fmt: skip
    assert [
        line.partition(": ")[0]
        for line in errors({"upstream": {"url": "http://u"}, "rules": [rule(), rule(), rule()]})
    ] == ["rules[1].name", "rules[1].match.path", "rules[2].name", "rules[2].match.path"]
    assert errors("a: 1\nb: {c: 1, c: 2}\na: 2\n") == [
        "the key 'c' is given twice",
        "the key 'a' is given twice",
    ]


# --- the environment


def test_a_variable_is_taken_from_the_environment_or_has_a_default() -> None:
    document = "upstream: {url: 'http://${HOST}:${PORT:-9000}/${PREFIX:-}'}"

    assert understood(document, HOST="a").upstream.url == "http://a:9000/"
    assert understood(document, HOST="a", PORT="1", PREFIX="p").upstream.url == "http://a:1/p"
    assert understood(document, HOST="a", PORT="").upstream.url == "http://a:9000/"


def test_what_the_file_leaves_out_the_environment_may_say() -> None:
    environment = {
        "GATEWAY_UPSTREAM": "http://other",
        "GATEWAY_HOST": "0.0.0.0",
        "GATEWAY_PORT": "81",
        "GATEWAY_ADMIN_HOST": "::",
        "GATEWAY_ADMIN_PORT": "82",
        "GATEWAY_ADMIN_TOKEN": "t" * 16,
        "GATEWAY_AUDIT": "/var/log/gateway/rewrites.jsonl",
        "GATEWAY_CALLERS": "/var/lib/gateway/callers.sqlite3",
        "GATEWAY_KEY": "k" * 32,
        "GATEWAY_STORE": "redis://cache",
    }
    assert environment.keys() == config.FROM_ENVIRONMENT.keys()
    settings = understood({"listen": {"port": 80, "backlog": 9}, "rules": []}, **environment)
    assert (settings.upstream.url, settings.audit.path) == ("http://other", "/var/log/gateway/rewrites.jsonl")
    assert (settings.listen.host, settings.listen.port, settings.listen.backlog) == ("0.0.0.0", 80, 9)
    assert (settings.admin.host, settings.admin.port, settings.admin.secret) == ("::", 82, "t" * 16)
    assert settings.credentials.key is not None
    assert settings.store is not None
    assert settings.store.url == "redis://cache"
    assert settings.callers is not None
    assert settings.callers.path == "/var/lib/gateway/callers.sqlite3"
    assert understood("upstream: {url: http://u}", GATEWAY_HOST="").listen.host == "127.0.0.1"
    assert error("upstream: {url: http://u}", GATEWAY_PORT="8o").startswith("listen.port: ")
    assert "s3cret" not in error("upstream: {url: http://u}", GATEWAY_KEY="s3cret")


def test_a_shared_store_needs_a_key_that_all_have_and_a_server_that_can_be_one() -> None:
    document = "upstream: {url: http://u}\nstore: {url: %s}"
    assert error(document % "redis://r").startswith("credentials.key: required with store")
    assert "store.url: expected the database's number" in error(
        document % "redis://r/x", GATEWAY_KEY="k" * 32
    )
    assert "s3cret" not in error(document % "redis://u:s3cret@r/x", GATEWAY_KEY="k" * 32)
    settings = understood(document % "rediss://u:s3cret@r:7000/1", GATEWAY_KEY="k" * 32)
    assert settings.store is not None
    assert settings.store.on_failure == "reject"
    assert "s3cret" not in repr(settings)


def test_a_variable_may_be_a_number_a_duration_a_size_or_a_truth() -> None:
    document = """
        upstream: {url: http://u, connect_timeout: "${T:-250ms}", preserve_host: "${KEEP:-true}"}
        listen: {port: "${PORT:-8081}"}
        limits: {max_body: "${BODY:-2MiB}", max_headers: "${COUNT:-7}"}
    """

    found = understood(document, COUNT="9")

    assert (found.upstream.connect_timeout, found.upstream.preserve_host) == (0.25, True)
    assert (found.listen.port, found.limits.max_body, found.limits.max_headers) == (8081, 2**21, 9)


def test_a_missing_variable_is_an_error_at_its_place_and_the_only_one_there() -> None:
    found = errors("upstream: {url: '${URL}'}\nlisten: {port: '${PORT}'}\nadmin: {host: '${A}${B}', port: x}")

    assert found[:4] == [
        "upstream.url: the environment variable URL is not set and has no default",
        "listen.port: the environment variable PORT is not set and has no default",
        "admin.host: the environment variable A is not set and has no default",
        "admin.host: the environment variable B is not set and has no default",
    ]
    assert [line.partition(": ")[0] for line in found[4:]] == ["admin.port"]


def test_a_value_of_the_environment_is_judged_like_any_other() -> None:
    assert error("upstream: {url: http://u}\nlisten: {port: '${P}'}", P="80 80").endswith(
        "got '80 80' (from P)"
    )


@pytest.mark.parametrize("text", ["${}", "${1A}", "${A-b}", "${A:b}", "x${", "${A:-b", "${ A }"])
def test_a_variable_that_is_written_wrongly_is_an_error(text: str) -> None:
    assert error({"upstream": {"url": "http://u"}, "audit": {"path": text}}, A="x") == (
        "audit.path: expected ${NAME} or ${NAME:-default}"
    )


@pytest.mark.parametrize(
    "value", [
        "}, listen: {port: 1", "a\nlisten: {port: 1}", "'\"", "{a: b}", "[1, 2]", "!!int 1", "&a", "*a",
        "# x", "${A}", "null", "yes", "a: b",
    ]
)  # fmt: skip
def test_no_value_of_the_environment_can_add_structure(value: str) -> None:
    found = understood("upstream: {url: http://u}\naudit: {path: '${V}'}\nadmin: {host: '${V}'}", V=value)

    assert found.audit.path == found.admin.host == value
    assert found.listen.port == 8080


@patient
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_value_of_the_environment_arrives_as_it_is(value: str) -> None:
    assert (
        understood("upstream: {url: http://u}\naudit: {path: '<${V}>'}", V=value).audit.path == f"<{value}>"
    )


def test_keys_are_not_expanded() -> None:
    assert error("upstream: {url: http://u}\n${A}: 1", A="listen") == "${A}: unknown key"


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udce9y"])
def test_text_that_no_file_name_or_header_can_hold_is_refused(text: str) -> None:
    assert error("upstream: {url: http://u}\naudit: {path: '${P}'}", P=text) == (
        "audit.path: expected text without NUL and surrogates (from P)"
    )


# --- YAML


def test_anchors_and_merge_keys_work_and_a_merged_key_may_be_overridden() -> None:
    found = understood("""
        upstream: &up {url: http://u, connect_timeout: 1s, read_timeout: 2s}
        listen: &l {host: 127.0.0.2, port: 1}
        admin: {<<: *l, port: 2}
        rules:
          - &base
            name: a
            match: {path: "/a/{id}"}
            repairs: &repairs [{type: encoding}, {type: content_type}]
          - {<<: *base, name: b, match: {path: "/b/{id}"}}
          - {name: c, match: {path: "/c/{id}"}, repairs: *repairs}
    """)

    assert (found.admin.host, found.admin.port) == ("127.0.0.2", 2)
    assert [one.name for one in found.rules] == ["a", "b", "c"]
    assert found.rules[0].repairs == found.rules[1].repairs == found.rules[2].repairs


def test_a_key_given_twice_in_a_merged_mapping_is_told_once_and_overriding_is_no_error() -> None:
    """Merging changes the nodes that PyYAML has read: what was overridden must not look like a duplicate."""
    found = understood("""
        upstream: {url: http://u}
        rules:
          - &one {<<: {name: x, match: {path: "/a/{id}"}}, name: a, repairs: [{type: encoding}]}
        listen: {port: 1}
    """)
    assert found.rules[0].name == "a"
    assert len(errors("a: &x {b: 1, b: 2}\nc: {<<: *x}\nd: {<<: *x}")) == 1


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("a: [", "not YAML"),
        ("a: b: c", "not YAML"),
        ("\ta: b", "not YAML"),
        ("a: \0", "not YAML"),
        ("a: *b", "not YAML"),
        ("%YAML 9", "not YAML"),
        ("--- {}\n--- {}", "not YAML"),
        ("a: !x y", "not YAML"),
        ("a: !!python/object/apply:os.system [true]", "not YAML"),
        ("a: 2026-99-99", "not YAML"),
        ("a: 0000-01-01", "not YAML"),
        ("a: 2026-01-01T99:00:00Z", "not YAML"),
        ("a: 0x_", "not YAML"),
        ("a: " + "9" * 5000, "not YAML"),
        ("a: !!int b", "not YAML"),
        ("a: !!float b", "not YAML"),
        ("a: !!bool b", "not YAML"),
        ("a: !!timestamp b", "not YAML"),
        ("a: !!binary é", "not YAML"),
        ('a: "\\U00110000"', "not YAML"),
        ('a: "\\Uffffffff"', "not YAML"),
        ('a: "\\ud800"', "not YAML"),
        ("? [a]\n: b", "not YAML"),
        ("? {a: b}\n: c", "not YAML"),
        ("<<: 1", "not YAML"),
        ("a: {<<: [1]}", "not YAML"),
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: &a {b: *a}", "nested too deeply"),
        ("&a [*a]", "nested too deeply"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_no_usable_yaml_is_one_error(document: str, expected: str) -> None:
    assert error(document).startswith(expected)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x7fELF\xff\xfe\x00")
    nul = tmp_path / "nul.yaml"
    nul.write_bytes(UPSTREAM.encode() + b"\0")
    utf_16 = tmp_path / "utf16.yaml"
    utf_16.write_text(UPSTREAM, "utf-16")

    for path in (binary, nul, utf_16, tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(path.name)) as found:
            config.load(path, {})
        assert len(found.value.errors) == 1


def test_an_error_says_whether_the_text_alone_is_to_blame(tmp_path: Path) -> None:
    """If so, it is no use to read the same one again."""
    match = {"method": "PATCH", "path": "/a"}
    validated = {
        "name": "r",
        "match": match,
        "repairs": [{"type": "validate", "schema": str(tmp_path / "none.json")}],
    }

    def elsewhere(text: bytes, also: config.Also = config.nothing_more) -> bool:
        (tmp_path / "config.yaml").write_bytes(text)
        with pytest.raises(ConfigError) as found:
            config.load(tmp_path / "config.yaml", {}, also)
        return found.value.elsewhere

    with pytest.raises(ConfigError) as missing:
        config.load(tmp_path / "missing.yaml", {})
    assert missing.value.elsewhere
    assert elsewhere(yaml.safe_dump({"upstream": {"url": "http://u"}, "rules": [validated]}).encode())
    assert elsewhere(UPSTREAM.encode(), lambda _: [("audit.path", "cannot be written")])
    for own in (b"\xff", b"a: [", b"[]", b"upstream: {url: '${NONE}'}", b"upstream: {}"):
        assert not elsewhere(own), own


def test_a_file_may_begin_with_a_byte_order_mark_and_have_the_line_ends_of_any_system(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(
        b"\xef\xbb\xbf" + UPSTREAM.encode().replace(b"\n", b"\r\n") + b"listen:\r\n  port: 1\r\n"
    )

    assert config.load(path, {}).listen.port == 1


# --- anything


def only_config_errors(document: str) -> None:
    with contextlib.suppress(ConfigError):
        config.parse(document, {"A": "x", "B": "\udce9"})


@patient
@given(st.text(max_size=60))
def test_no_text_is_more_than_a_configuration_error(document: str) -> None:
    only_config_errors(document)


marks = st.sampled_from(
    ["a", "upstream", "url", "rules", ": ", ":", "- ", ", ", "[", "]", "{", "}", "\n", "\n  ", "'", '"',
     "#", "&a ", "*a", "? ", "|\n ", ">-\n ", "!!", "!!int ", "!!bool ", "!!set ", "!!omap ", "!!binary ",
     "!!timestamp ", "!!map ", "!!str ", "<<", "=", "~", "null", "0x", "0b_", "0o7", "1_", "1:2:3", "-",
     ".inf", ".nan", "1e3", "2026-01-01", "2026-13-01", "${A}", "${B}", "${", "---\n", "...\n",
     "%TAG ! x\n", "\\U", "\t", "\ufeff", "http://u", "é"]
)  # fmt: skip


@settings(patient, max_examples=300)
@given(st.lists(marks, max_size=14).map("".join))
def test_no_yaml_is_more_than_a_configuration_error(document: str) -> None:
    only_config_errors(document)


KEYS = st.sampled_from(
    ["upstream", "url", "listen", "port", "host", "rules", "name", "match", "path", "method", "repairs",
     "type", "field", "from", "select", "allow", "max_age", "refill_on", "writes", "limits", "max_body",
     "cors", "origins", "trusted_proxies", "tls"]
)  # fmt: skip
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.dates()
    | st.sampled_from([
        "", "x", "/a/{b}", "$.a", "1s", "1MiB", "http://u", "fill", "encoding", "PATCH", "${A}", "é\n", "*",
    ]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(patient, max_examples=100)
@given(st.dictionaries(KEYS, anything, max_size=5), st.dictionaries(KEYS, anything, max_size=6), anything)
def test_no_structure_is_more_than_a_configuration_error(
    sections: dict[str, Any], the_rule: dict[str, Any], value: Any
) -> None:
    sections = {
        "upstream": {"url": "http://u"},
        "rules": [rule() | the_rule, rule(fill(select=value))],
    } | sections
    only_config_errors(yaml.safe_dump(sections, allow_unicode=True))


@settings(patient, max_examples=150)
@given(
    st.sampled_from(["upstream", "listen", "admin", "state_cache", "credentials", "audit", "limits", "cors"]),
    anything,
)
def test_no_value_of_a_section_is_more_than_a_configuration_error(section: str, value: Any) -> None:
    only_config_errors(yaml.safe_dump({"upstream": {"url": "http://u"}} | {section: value}))


def test_the_schema_says_what_is_refused() -> None:
    schema = Settings.model_json_schema(by_alias=True)

    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["required"] == ["upstream"]
    fills = schema["$defs"]["FillSettings"]["properties"]
    assert "from" in fills
    assert "source" not in fills


@pytest.mark.parametrize("name", ["Authorization", "COOKIE", "Proxy-Authorization", "host", "X-Trace"])
def test_what_says_who_calls_or_is_to_count_cannot_be_ignored(name: str) -> None:
    document = f"""
upstream: {{url: http://127.0.0.1:9000}}
credentials: {{headers: [x-trace], ignore: [X-Fine, {name}]}}
"""
    with pytest.raises(ConfigError, match=r"credentials\.ignore\[1\]: expected no field"):
        config.parse(document, {})


@pytest.mark.parametrize(
    ("section", "environment"),
    [
        ("", {"GATEWAY_KEY": "short"}),
        ("credentials: {key: '${MY_KEY}'}", {"MY_KEY": "short", "GATEWAY_KEY": "x" * 32}),
    ],
)
def test_an_error_in_what_a_variable_gave_names_it_and_not_what_it_says(
    section: str, environment: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse(f"upstream: {{url: 'http://api.example'}}\n{section}\n", environment)
    (error,) = refused.value.errors
    assert "credentials.key: expected a secret of at least 32 bytes" in error
    assert error.endswith(f"(from {next(iter(environment))})")
    assert "short" not in error
