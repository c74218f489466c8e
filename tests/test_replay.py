"""`gateway replay`: what other rules would have done, and what the log does not tell."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cases.replay import (
    NO_LONGER,
    NOW,
    OTHER_RULE,
    OTHER_SKIP,
    OTHERWISE,
    SAME,
    UNKNOWN,
    VERDICTS,
)
from gateway.cli import cli
from tests.audit.test_reader import CHANGES, decision, outcome, rewrite
from tests.support.gateways import PARTICIPANT, document

TYPED = {"repair": "content_type", "before": "text/plain", "after": "application/json"}
ALL = ["encoding", "content_type", "fill state"]
# What the rule of then is known to have had.
KNOWN = decision("skip", "known", reason="observe", needs=ALL, path=PARTICIPANT) + outcome("known")


def then(event: str, **more: Any) -> bytes:
    return decision(event, "it", **{"path": PARTICIPANT} | more)


def rewritten(*changes: dict[str, Any], **more: Any) -> bytes:
    return then("rewrite", changes=changes, **more)


FILLED, OBSERVED = CHANGES[0], then("skip", reason="observe", needs=["fill state"], mode="observe")

# The call on the log, what its reply was, the new rule, and the verdict with a part of why.
JUDGED: dict[str, tuple[bytes, int, dict[str, Any], dict[str, Any], str, str]] = {
    "as it was": (rewritten(FILLED), 202, {"name": "r"}, {}, SAME, ""),
    "by a rule of another name": (rewritten(FILLED), 202, {"name": "s"}, {}, OTHER_RULE, "s"),
    "observed": (OBSERVED, 400, {}, {}, NOW, "if its look-up shows an allowed value"),
    "shadowed": (then("skip", reason="shadow", changes=[FILLED]), 400, {}, {}, NOW, ""),
    "shadowed, not allowed": (
        then("skip", reason="shadow", changes=[FILLED]), 400, {}, {"allow": ["active"]}, OTHER_SKIP,
        "the value is not allowed",
    ),
    "no longer allowed": (
        rewritten(FILLED), 202, {}, {"allow": ["active"]}, NO_LONGER, "the value is not allowed",
    ),
    "its type alone": (
        rewritten(TYPED, FILLED), 202, {}, {"allow": ["active"]}, OTHERWISE,
        "content_type instead of content_type, fill state",
    ),
    "matched no more": (
        rewritten(FILLED, path="/c/1"), 202, {}, {}, NO_LONGER, "no rule matches",
    ),
    "observed from now on": (rewritten(FILLED), 202, {"mode": "observe"}, {}, NO_LONGER, "observe"),
    "conforming": (then("skip", reason="conforming"), 200, {"name": "r"}, {}, SAME, ""),
    "conforming, observed": (
        then("skip", reason="conforming"), 200, {"mode": "observe"}, {}, OTHER_SKIP, "observe",
    ),
    "signed": (then("skip", reason="signed-body"), 200, {}, {}, SAME, ""),
    "no JSON": (then("skip", reason="not-json"), 400, {}, {}, UNKNOWN, "skipped then (not-json)"),
    "not filled": (
        rewritten(TYPED, skipped="state-not-allowed"), 400, {}, {}, UNKNOWN, "what a look-up would show",
    ),
    "another member": (
        rewritten(FILLED), 202, {}, {"field": "wrapup"}, UNKNOWN, "whether it needs fill wrapup: bodies",
    ),
    "on_reject, refused": (OBSERVED, 415, {"mode": "on_reject"}, {}, NOW, ""),
    "on_reject, accepted": (OBSERVED, 202, {"mode": "on_reject"}, {}, OTHER_SKIP, "not-rejected"),
    "on_reject, repaired": (
        rewritten(FILLED), 202, {"mode": "on_reject"}, {}, UNKNOWN, "refused it as it came",
    ),
    "on_reject, then too": (
        then("skip", reason="not-rejected", mode="on_reject"), 202, {"mode": "on_reject"}, {}, SAME, "",
    ),
    "rejected": (then("reject", reason="lookup-failed"), 502, {}, {}, UNKNOWN, "lookup-failed"),
}  # fmt: skip


def replay(folder: Path, log: bytes, rule: dict[str, Any], fill: dict[str, Any], *options: str) -> Any:
    (folder / "log").write_bytes(log)
    new = folder / "new.yaml"
    new.write_text(yaml.safe_dump(document("http://127.0.0.1:9", "x", fill, {"name": "r"} | rule)))
    done = CliRunner().invoke(cli, ["replay", str(folder / "log"), "--config", str(new), *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in options else done.stdout


@pytest.mark.parametrize("case", JUDGED)
def test_each_class_of_calls_has_its_verdict(case: str, tmp_path: Path) -> None:
    call, status, rule, fill, verdict, why = JUDGED[case]
    known = replay(tmp_path, KNOWN, rule, fill, "--json")
    told = replay(tmp_path, KNOWN + call + outcome("it", status), rule, fill, "--json")
    came = {one: told["rules"]["r"][one] - known["rules"]["r"][one] for one in VERDICTS}
    assert {one for one, count in came.items() if count} == {verdict}
    if verdict != SAME:
        assert any(row["now"] == verdict and why in row["why"] for row in told["differing"])


def test_what_a_rule_of_then_never_repaired_may_still_be_needed(tmp_path: Path) -> None:
    log = then("skip", reason="conforming") + outcome("it")
    (row,) = replay(tmp_path, log, {}, {}, "--json")["differing"]
    assert (row["now"], row["id"]) == (UNKNOWN, "it")
    assert row["why"] == "whether it needs content_type, encoding, fill state: bodies are not on the log"


def test_a_fill_that_was_made_has_read_the_body_so_that_it_needed_no_encoding(tmp_path: Path) -> None:
    log = rewritten(TYPED, FILLED) + outcome("it")
    assert replay(tmp_path, log, {}, {}, "--json")["differing"] == []


def test_the_rules_of_then_tell_what_was_not_needed(tmp_path: Path) -> None:
    log, old = then("skip", reason="conforming") + outcome("it"), tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(document("http://127.0.0.1:9", "x", rule={"name": "r"})))
    assert replay(tmp_path, log, {}, {}, "--json", "--was", str(old))["differing"] == []


def test_the_table_sums_up_what_is_asked_for_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "log.1.gz").write_bytes(gzip.compress(rewrite("a", path=PARTICIPANT) + outcome("a")))
    log = KNOWN + rewritten(FILLED) + outcome("it") + rewrite("b", path="/c/1", rule="gone") + outcome("b")
    unsure = "if its look-up shows an allowed value: none was made"
    assert replay(tmp_path, log, {}, {}).splitlines() == [
        "rule of then  calls  same  now repaired  no longer repaired",
        "r                 3     2             1                   0",
        "gone              1     0             0                   1",
        "",
        f"1 of r: skip: observe -> now repaired ({unsure}), as known",
        "1 of gone: repaired -> no longer repaired (no rule matches), as b",
    ]
    assert replay(tmp_path, log, {}, {}, "--rule", "gone").count("\n") == 4
