"""A repair is added from outside: a file of its own, and its line in REPAIRS. Nothing else is edited."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import gateway
from tests.support.ports import unused_ports
from tests.support.processes import START, listening, process
from tests.support.raw_upstream import OK, RawUpstream, answering
from tests.support.serving import connect

FILE = '''\
"""
The `synonym` repair: text that a client gives under a member's old name is given under its new one too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft, Finding, NotApplicable, Repaired
from gateway.repairs.repair import Repair, RepairSettings, Stage


class SynonymSettings(RepairSettings):
    type: Literal["synonym"]
    old: Annotated[str, Field(min_length=1, examples=["note"])]
    new: Annotated[str, Field(min_length=1, examples=["comment"])]

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield f"synonym {self.new} of {self.old}"


@dataclass(frozen=True, slots=True, eq=False)
class Synonym(Repair):
    settings = SynonymSettings
    stage = Stage.MEMBERS

    old: str
    new: str

    @classmethod
    def of(cls, settings: SynonymSettings, limit: int, parameters: tuple[str, ...]) -> Synonym:
        return cls(settings.old, settings.new)

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        match draft.document.named(self.old), draft.document.named(self.new):
            case [str(value)], []:
                document = draft.document.with_member(self.new, value)
            case _:
                return None
        call = draft.call
        repaired = Call(call.method, call.target, call.headers, document.text.encode())
        return Repaired(repaired, document, Change.of("synonym", old=self.old, new=self.new))
'''
IMPORT = "from gateway.repairs.synonym import Synonym\n"
LINE = "            Synonym,\n"
CONFIG = """\
listen: {{port: {port}}}
admin: {{port: {admin}}}
upstream: {{url: "http://127.0.0.1:{upstream}"}}
rules:
  - name: comments
    match: {{path: "/calls/{{id}}"}}
    repairs:
      - {{type: content_type}}
      - {{type: synonym, old: note, new: comment}}
"""
TYPE = {"repair": "content_type", "before": "text/plain", "after": "application/json"}
SYNONYM = {"repair": "synonym", "old": "note", "new": "comment"}
# Of one length, so that all of the calls' header fields are the same.
CALLS = [
    (b'{"note": "first call"}', b'{"comment":"first call","note": "first call"}', [TYPE, SYNONYM]),
    (b'{"note": "other call"}', b'{"comment":"other call","note": "other call"}', [TYPE, SYNONYM]),
    (b'{"comment": "is here"}', b'{"comment": "is here"}', [TYPE]),
    (b'{"note": "a 4th one."}', b'{"comment":"a 4th one.","note": "a 4th one."}', [TYPE, SYNONYM]),
]


def add_the_repair(folder: Path) -> None:
    package = folder / "gateway"
    shutil.copytree(Path(gateway.__file__).parent, package)
    (package / "repairs" / "synonym.py").write_text(FILE)
    table = package / "repairs" / "__init__.py"
    text = table.read_text()
    for after, line in (
        ("from gateway.repairs.repair import Repair, RepairSettings\n", IMPORT),
        ("            Fill,\n", LINE),  # in any place: its stage says in which order a rule has it
    ):
        assert text.count(after) == 1
        text = text.replace(after, after + line)
    table.write_text(text)


async def said(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    async with process(*arguments, folder=folder) as running:
        return await running.exit(START), running.said.splitlines()


async def test_a_repair_is_added_with_one_file_and_its_line_in_the_table(tmp_path: Path) -> None:
    add_the_repair(tmp_path)
    port, admin = unused_ports(2)
    async with RawUpstream(answering(OK)) as upstream:
        right = CONFIG.format(port=port, admin=admin, upstream=upstream.port)
        (tmp_path / "config.yaml").write_text(right)
        (tmp_path / "wrong.yaml").write_text(right.replace("new:", "newer:"))
        async with process("run", folder=tmp_path) as running, asyncio.TaskGroup() as together:
            check = together.create_task(said(tmp_path, "check"))
            wrong = together.create_task(said(tmp_path, "check", "-c", "wrong.yaml"))
            call = ("-H", "Content-Type: text/plain", "-d", CALLS[0][0].decode())
            explain = together.create_task(said(tmp_path, "explain", "/calls/1", *call))
            await listening(running, port)
            async with connect(port) as client:
                for body, _, _ in CALLS:
                    await client.send(
                        b"PATCH /calls/1 HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
                        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
                    assert (await client.reply())[0] == 200

    assert [request.body for request in upstream.requests] == [after for _, after, _ in CALLS]
    lines = [json.loads(line) for line in (tmp_path / "rewrites.jsonl").read_bytes().splitlines()]
    assert [line["changes"] for line in lines if line["event"] == "rewrite"] == [made for *_, made in CALLS]
    code, (summary, digest, *rules) = check.result()
    assert digest.startswith("digest: ")
    assert (code, [summary, *rules]) == (
        0,
        [
            f"config.yaml: 1 rules, forwarding to http://127.0.0.1:{upstream.port}",
            "",
            "comments (enforce, a failed look-up: reject)",
            "  PATCH /calls/{id}",
            "  content_type becomes application/json",
            "  synonym comment of note",
        ],
    )
    assert wrong.result() == (
        1,
        [
            "wrong.yaml:9:9: rules[0].repairs[1].new (rule 'comments'): required, but not given",
            "wrong.yaml:9:36: rules[0].repairs[1].newer (rule 'comments'): unknown key; did you mean 'new'?",
        ],
    )
    assert explain.result() == (
        0,
        [
            "rule:     comments (enforce)",
            "repair:   content_type: before 'text/plain', after 'application/json'",
            "repair:   synonym: old 'note', new 'comment'",
            "before:   Content-Type: text/plain",
            f"          {CALLS[0][0].decode()}",
            "after:    Content-Type: application/json",
            f"          {CALLS[0][1].decode()}",
        ],
    )


async def test_its_stage_says_where_a_rule_has_it(tmp_path: Path) -> None:
    add_the_repair(tmp_path)
    (tmp_path / "config.yaml").write_text(
        CONFIG.format(port=1, admin=2, upstream=3).replace(
            "      - {type: content_type}\n",
            "      - {type: synonym, old: a, new: b}\n      - {type: content_type}\n",
        )
    )

    status, (line,) = await said(tmp_path, "check")

    assert status == 1
    assert line.startswith("config.yaml:7:5: rules[0].repairs (rule 'comments'): expected ")
    assert line.index("content_type") < line.index("synonyms") < line.index("fills")
