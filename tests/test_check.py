"""`gateway check` finds what cannot run: each mistake, with where it stands and what was probably meant."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from typer.testing import CliRunner, Result

from gateway import config
from gateway.checks import preflight
from gateway.cli import cli, unusable
from gateway.repairs import REPAIRS, name_of

UPSTREAM = "upstream: {url: http://u:9000}\n"
RULE = """\
rules:
  - name: one
    match: {path: "/c/{id}/p/{who}"}
    repairs:
      - type: content_type
"""
GOOD = UPSTREAM + RULE


def second(path: str, first: str = "/c/{id}/p/{who}") -> str:
    """Two rules, `one` and `two`."""
    return GOOD.replace("/c/{id}/p/{who}", first) + (
        f'  - {{name: two, match: {{path: "{path}"}}, repairs: [{{type: encoding}}]}}\n'
    )


def check(folder: Path, text: str, command: str = "check") -> Result:
    (folder / "config.yaml").write_text(text)
    return CliRunner().invoke(cli, [command, "--config", str(folder / "config.yaml")])


@contextmanager
def within(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


MISTAKES = {
    "an unknown section": (
        UPSTREAM + "upsteam: {url: http://u}\n",
        ":2:1: upsteam: unknown key; did you mean 'upstream'?",
    ),
    "an unknown key": (
        UPSTREAM + "listen:\n  host: 127.0.0.1\n  prot: 1\n",
        ":4:3: listen.prot: unknown key; did you mean 'port'?",
    ),
    "an unknown key of an optional section": (
        UPSTREAM + "cors: {origin: ['*'], origins: ['*']}\n",
        ":2:8: cors.origin: unknown key; did you mean 'origins'?",
    ),
    "an unknown key like nothing": (UPSTREAM + "colour: red\n", ":2:1: colour: unknown key"),
    "an unknown key in a rule": (
        GOOD + "    on_lookup_fail: forward\n",
        ":7:5: rules[0].on_lookup_fail (rule 'one'): unknown key; did you mean 'on_lookup_failure'?",
    ),
    "an unknown key in a repair": (
        GOOD + "        valeu: application/json\n",
        ":7:9: rules[0].repairs[0].valeu (rule 'one'): unknown key; did you mean 'value'?",
    ),
    "a repair that there is not": (
        GOOD.replace("content_type", "content-type"),
        (":6:9: rules[0].repairs[0] (rule 'one'): Input tag 'content-type' found using 'type' does not match "
        f"any of the expected tags: {', '.join(map(repr, map(name_of, REPAIRS)))}; "
        "did you mean 'content_type'?"),
    ),
    "a mode that there is not": (
        GOOD + "    mode: enfroce\n",
        (":7:11: rules[0].mode (rule 'one'): Input should be 'observe', 'shadow', 'enforce' or 'on_reject', "
        "got 'enfroce'; did you mean 'enforce'?"),
    ),
    "a mode that is no text": (
        GOOD + "    mode: on\n",
        (":7:11: rules[0].mode (rule 'one'): Input should be 'observe', 'shadow', 'enforce' or 'on_reject', "
        "got True: YAML reads on, yes and true (off, no and false) as a truth value; quote "
        "a word that is one"),
    ),
    "a method in lower case": (
        GOOD.replace("{path:", "{method: patch, path:"),
        (":4:21: rules[0].match.method (rule 'one'): String should match pattern '^[A-Z]+$', got 'patch'; "
        "did you mean 'PATCH'?"),
    ),
    "what is required": ("upstream:\n  http2: true\n", ":1:1: upstream.url: required, but not given"),
    "a value of another type": (
        UPSTREAM + "listen: {port: http}\n",
        (":2:16: listen.port: Input should be a valid integer, unable to parse string as an integer, "
        "got 'http'"),
    ),
    "a variable that is not set": (
        UPSTREAM + "listen:\n  host: ${NOT_SET_ANYWHERE}\n",
        ":3:9: listen.host: the environment variable NOT_SET_ANYWHERE is not set and has no default",
    ),
    "a key given twice": (UPSTREAM + "upstream: {}\n", ":2:1: the key 'upstream' is given twice"),
    "no YAML": ("upstream: {url: [}\n", ":1:18: not YAML: did not find expected node content"),
    "one port for both sides": (
        UPSTREAM + "listen: {port: 7000}\nadmin:\n  port: 7000\n",
        ":4:9: admin.port: expected another port than that of listen",
    ),
    "one port for both sides, on all addresses": (
        UPSTREAM + "listen: {port: 7000, host: 0.0.0.0}\nadmin: {host: localhost, port: 7000}\n",
        ":3:32: admin.port: expected another port than that of listen",
    ),
    "the gateway as its own upstream": (
        "upstream: {url: http://localhost:8080/api}\n",
        ":1:17: upstream.url: expected the API, got the gateway's own address (that of listen)",
    ),
    "the admin side as upstream": (
        "upstream: {url: http://127.0.0.1:9901}\n",
        ":1:17: upstream.url: expected the API, got the gateway's own address (that of admin)",
    ),
    "a key without its certificate": (
        "upstream: {url: https://u, tls: {key: k.pem}}\n",
        ":1:39: upstream.tls.key: expected with the certificate that it belongs to",
    ),
    "files that are not there": (
        "upstream: {url: https://u, tls: {ca: ca.pem}}\n",
        ":1:38: upstream.tls.ca: cannot be read: No such file or directory, got 'ca.pem'",
    ),
    "a log in no directory": (
        UPSTREAM + "audit: {path: missing/log.jsonl}\n",
        ":2:15: audit.path: expected a directory that is there, got 'missing'",
    ),
    "a log that is a directory": (
        UPSTREAM + "audit: {path: .}\n",
        ":2:15: audit.path: expected a file, got the directory '.'",
    ),
    "callers in no directory": (
        UPSTREAM + "callers: {path: missing/callers.sqlite3}\n",
        ":2:17: callers.path: expected a directory that is there, got 'missing'",
    ),
    "callers that are a directory": (
        UPSTREAM + "callers: {path: .}\n",
        ":2:17: callers.path: expected a file, got the directory '.'",
    ),
    "a listener's key without its certificate": (
        UPSTREAM + "listen: {tls: {key: k.pem}}\n",
        ":2:10: listen.tls.certificate: required, but not given",
    ),
    "a listener's certificate without its key": (
        UPSTREAM + "listen: {tls: {certificate: c.pem}}\n",
        ":2:10: listen.tls.key: required, but not given",
    ),
    "a rule that never matches": (
        second("/c/{a}/p/{b}"),
        ":7:31: rules[1].match.path (rule 'two'): can never match: earlier rules take all of it",
    ),
    "an anchor that contains itself": (
        "a: &a [*a]",
        ":1:4: nested too deeply, or an anchor that contains itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_mistake_is_said_in_one_line_with_where_it_stands(
    tmp_path: Path, mistake: str, command: str
) -> None:
    text, expected = MISTAKES[mistake]
    with within(tmp_path):
        said = check(tmp_path, text, command)

    assert said.output == f"config.yaml{expected}\n"
    assert said.exit_code == 1


WARNINGS = {
    "no rules": (UPSTREAM, "rules: none, every call is passed through as it came"),
    "a later rule that is more specific": (
        second("/c/{a}/p/me"),
        "rules.one: some of its paths are those of rules.two too, which is more specific and takes them",
    ),
    "an earlier rule that is more specific": (
        second("/{a}/{b}/p/{c}"),
        "rules.two: some of its paths are those of rules.one too, which is more specific and takes them",
    ),
    "an earlier rule that takes a part": (
        second("/{m:a|b}/{id}", first="/a/{id}"),
        "rules.two: some of its paths are those of rules.one too, which stands earlier and takes them",
    ),
    "rules that cross": (
        second("/{a}/b", first="/a/{b}"),
        "rules.two: some of its paths are those of rules.one too, which is more specific and takes them",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_can_run_but_should_be_known_is_a_warning(tmp_path: Path, case: str) -> None:
    text, expected = WARNINGS[case]
    said = check(tmp_path, text)

    assert said.exit_code == 0
    assert [line for line in said.output.splitlines() if line.startswith("warning: ")] == [
        f"warning: {expected}"
    ]


@pytest.mark.parametrize("path", ["/c/{id}/q/{who}", "/d/{id}/p/{who}", "/c/{id}", "/{m:a|b}/{id}/p/x"])
def test_rules_without_a_common_path_do_not_overlap(tmp_path: Path, path: str) -> None:
    assert "warning" not in check(tmp_path, second(path)).output


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, another's key, a key under a password, a text, and pairs whose time is over or to come."""
    folder, authority = tmp_path_factory.mktemp("pems"), trustme.CA()
    certificate, other = authority.issue_cert("one"), authority.issue_cert("other")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    other.private_key_pem.write_to_path(str(folder / "other.pem"))
    (folder / "text").write_text("no PEM")
    locked = load_pem_private_key(certificate.private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hush")
    )
    (folder / "locked.pem").write_bytes(locked)
    for name, begins in (
        ("old", datetime(2020, 1, 1, tzinfo=UTC)),
        ("new", datetime(9000, 1, 1, tzinfo=UTC)),
    ):
        pair = authority.issue_cert(name, not_before=begins, not_after=begins + timedelta(days=1))
        pair.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
    return folder


def told(folder: Path, section: str, **files: str) -> list[str]:
    """What `check` says of the files of a TLS section."""
    named = "{" + ", ".join(f"{name}: {file}" for name, file in files.items()) + "}"
    sections = {
        "upstream.tls": f"upstream: {{url: https://u, tls: {named}}}\n",
        "listen.tls": f"upstream: {{url: http://u}}\nlisten: {{tls: {named}}}\n",
        "store.tls": f"upstream: {{url: http://u}}\ncredentials: {{key: {'k' * 32}}}\n"
        f"store: {{url: 'rediss+cluster://r', tls: {named}}}\n",
    }
    with within(folder):
        done = check(folder, sections[section] + RULE)
    assert done.exit_code == (1 if re.match(r"config.yaml:\d", done.output) else 0)
    return re.sub(r"^config.yaml:\d:\d+: ", "", done.output).splitlines()


@pytest.mark.parametrize("section", ["upstream.tls", "listen.tls", "store.tls"])
def test_certificates_are_tried_before_the_gateway_runs(pems: Path, section: str) -> None:
    authorities = "client_ca" if section == "listen.tls" else "ca"

    def said(**files: str) -> str:
        return told(pems, section, **files)[0]

    assert "1 rules" in said(**{authorities: "cert.pem"}, certificate="cert.pem", key="key.pem")
    assert said(certificate="cert.pem", key="other.pem") == (
        f"{section}.key: expected the key of the certificate 'cert.pem', got another's"
    )
    assert (
        said(certificate="cert.pem", key="locked.pem") == f"{section}.key: expected a key without a password"
    )
    assert said(certificate="cert.pem", key="text") == f"{section}.key: expected a key in PEM, got 'text'"
    assert said(certificate="text", key="key.pem") == (
        f"{section}.certificate: expected a certificate in PEM, got 'text'"
    )
    assert said(certificate="cert.pem", key="gone.pem") == (
        f"{section}.key: cannot be read: No such file or directory, got 'gone.pem'"
    )
    assert said(**{authorities: "text"}, certificate="cert.pem", key="key.pem") == (
        f"{section}.{authorities}: expected certificates in PEM, got 'text'"
    )


def test_a_client_s_certificate_may_hold_its_key(pems: Path) -> None:
    assert told(pems, "upstream.tls", certificate="cert.pem") == [
        "upstream.tls.certificate: expected a certificate and its key in PEM, got 'cert.pem'"
    ]
    assert "1 rules" in told(pems, "upstream.tls", certificate="old.pem")[0]


@pytest.mark.parametrize("section", ["upstream.tls", "listen.tls"])
def test_a_certificate_that_nobody_will_accept_is_a_warning(pems: Path, section: str) -> None:
    def warned(certificate: str, key: str) -> list[str]:
        lines = told(pems, section, certificate=certificate, key=key)
        return [line for line in lines if line.startswith("warning: ")]

    assert warned("cert.pem", "key.pem") == []
    assert warned("old.pem", "old.pem") == [f"warning: {section}.certificate: has expired, got 'old.pem'"]
    assert warned("new.pem", "new.pem") == [
        f"warning: {section}.certificate: is not valid yet, got 'new.pem'"
    ]


def test_all_mistakes_come_at_once_in_the_file_s_own_places(tmp_path: Path) -> None:
    text = UPSTREAM + "listen: {prot: 1}\nadmin: {port: x}\n" + RULE.replace("one", "One") + "    mode: off\n"

    lines = check(tmp_path, text).output.splitlines()

    assert [line.split(": ")[0] for line in lines] == [
        "config.yaml:2:10", "config.yaml:3:15", "config.yaml:5:11", "config.yaml:9:11",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "upstream: {url: 'http://me:hush/hush@h/'}\n",
        "upstream: {url: 'http://h/?token=hush'}\n",
        UPSTREAM + "credentials: {key: hush}\n",
        UPSTREAM + "credentials: {key: ${K}}\n",
        UPSTREAM + "credentials: {key: [hush}\n",
        UPSTREAM + "credentials: {key: !!int hush}\n",
    ],
)
def test_no_message_repeats_a_secret(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", "hush")
    said = check(tmp_path, text)

    assert said.exit_code == 1
    assert "hush" not in said.output


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines)


def merge_bomb() -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(), "config.yaml: expected 250000 values at most, with what its aliases repeat"),
        (merge_bomb(), "config.yaml: expected 250000 values at most, with what its aliases repeat"),
        (UPSTREAM + "#" * 2**20, "config.yaml: expected 1 MiB at most"),
        ("é" * 2**20, "config.yaml: expected 1 MiB at most"),
    ],
    ids=["aliases", "merges", "long", "long in bytes"],
)
def test_what_would_fill_the_memory_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    begun = time.process_time()
    said = check(tmp_path, text)

    assert said.output == words + "\n"
    assert said.exit_code == 1
    assert time.process_time() - begun < 1


@pytest.mark.no_cover
def test_three_thousand_rules_are_checked_in_two_seconds(tmp_path: Path) -> None:
    rules = "".join(
        f"""
  - name: rule-{i}
    match: {{path: "/v{i}/{{media:calls|chats}}/{{c}}/participants/{{p}}"}}
    writes: *writes
    repairs:
      - {{type: content_type}}
      - type: fill
        field: state
        from: "/v{i}/{{media}}/{{c}}"
        select: "$.a{i}[?@.id == _.p].state"
        allow: [connected]"""
        for i in range(1, 3000)
    )
    first = GOOD + "    writes: &writes\n" + "".join(f'      - "/w{i}/{{c}}/**"\n' for i in range(12))
    begun = time.process_time()
    said = check(tmp_path, first + rules)
    took = time.process_time() - begun

    assert "3000 rules" in said.output
    assert took < 4, f"{took:.1f} s: at most 2 on an idle machine"


def test_mock_says_in_one_line_why_it_cannot_listen() -> None:
    said = CliRunner().invoke(cli, ["mock", "--port", "99999"])
    assert (said.exit_code, said.output) == (1, "gateway mock: --port: expected 0 to 65535, got 99999\n")

    with socket.create_server(("127.0.0.1", 0)) as other:
        said = CliRunner().invoke(cli, ["mock", "--port", str(other.getsockname()[1])])
    assert said.exit_code == 1
    assert re.fullmatch(r"gateway mock: cannot listen on 127\.0\.0\.1:\d+: .*\n", said.output)


@pytest.mark.parametrize("command", ["check", "run"])
def test_tracing_without_its_extra_says_what_to_install(tmp_path: Path, command: str) -> None:
    (tmp_path / "config.yaml").write_text(GOOD + "tracing: {}\n")
    without = "import sys; sys.modules['opentelemetry'] = None; from gateway.cli import main; main()"

    ran = subprocess.run(
        [sys.executable, "-c", without, command, "--config", str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "config.yaml:7:1: tracing.exporter: expected the extra otel to be installed: "
        "pip install 'gateway[otel]'\n"
    )


def test_tracing_that_is_none_needs_no_extra() -> None:
    assert list(preflight.tracing(lambda name: None)) != []
    assert list(preflight.tracing()) == []
    off = config.parse(GOOD + "tracing: {exporter: none}\n", {}, also=unusable)
    assert off.tracing is not None
