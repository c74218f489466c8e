"""A repair is added from outside: a file of its own, and its line in REPAIRS. Nothing else is edited."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import gateway
from gateway.mock.demo import free_ports
from tests.support.judging import listening, process
from tests.support.raw_upstream import OK, RawUpstream, answering
from tests.support.serving import connect

FILE = '''\
"""
The `default` repair: a member that is missing is inserted with the value that the rule names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gateway.repairs.call import Call, Change
from gateway.repairs.findings import Draft, Finding, NotApplicable, Repaired
from gateway.repairs.repair import Repair, RepairSettings, Stage


class DefaultSettings(RepairSettings):
    type: Literal["default"]
    member: Annotated[str, Field(min_length=1, examples=["source"])]
    value: Annotated[str, Field(examples=["legacy"])]

    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        yield f"default {self.member} is {self.value}"


@dataclass(frozen=True, slots=True, eq=False)
class Default(Repair):
    settings = DefaultSettings
    stage = Stage.MEMBERS

    member: str
    value: str

    @classmethod
    def of(cls, settings: DefaultSettings, limit: int, parameters: tuple[str, ...]) -> Default:
        return cls(settings.member, settings.value)

    def diagnose(self, draft: Draft) -> Finding:
        if draft.document is None:
            return NotApplicable(draft.reason)
        if draft.document.named(self.member):
            return None
        document = draft.document.with_member(self.member, self.value)
        call = draft.call
        repaired = Call(call.method, call.target, call.headers, document.text.encode())
        return Repaired(repaired, document, Change.of("default", member=self.member))
'''
IMPORT = "from gateway.repairs.default import Default\n"
LINE = "            Default,\n"
CONFIG = """\
listen: {{port: {port}}}
admin: {{port: {admin}}}
upstream: {{url: "http://127.0.0.1:{upstream}"}}
rules:
  - name: legacy-source
    match: {{path: "/calls/{{id}}"}}
    repairs:
      - {{type: content_type}}
      - {{type: default, member: source, value: legacy}}
"""
TYPE = {"repair": "content_type", "before": "text/plain", "after": "application/json"}
DEFAULT = {"repair": "default", "member": "source"}
# Of one length, so that all of the calls' header fields are the same.
CALLS = [
    (b'{"note": "first call"}', b'{"source":"legacy","note": "first call"}', [TYPE, DEFAULT]),
    (b'{"note": "other call"}', b'{"source":"legacy","note": "other call"}', [TYPE, DEFAULT]),
    (b'{"source": "explicit"}', b'{"source": "explicit"}', [TYPE]),
    (b'{"note": "a 4th one."}', b'{"source":"legacy","note": "a 4th one."}', [TYPE, DEFAULT]),
]


def add_the_repair(folder: Path) -> None:
    package = folder / "gateway"
    shutil.copytree(Path(gateway.__file__).parent, package)
    (package / "repairs" / "default.py").write_text(FILE)
    table = package / "repairs" / "__init__.py"
    text = table.read_text()
    for after, line in (
        ("from gateway.repairs.content_type import ContentType\n", IMPORT),
        ("            Fill,\n", LINE),  # in any place: its stage says in which order a rule has it
    ):
        assert text.count(after) == 1
        text = text.replace(after, after + line)
    table.write_text(text)


async def said(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    async with process(*arguments, folder=folder) as running:
        return await running.exit(), running.said.splitlines()


async def test_a_repair_is_added_with_one_file_and_its_line_in_the_table(tmp_path: Path) -> None:
    add_the_repair(tmp_path)
    port, admin = free_ports(2)
    async with RawUpstream(answering(OK)) as upstream:
        right = CONFIG.format(port=port, admin=admin, upstream=upstream.port)
        (tmp_path / "config.yaml").write_text(right)
        (tmp_path / "wrong.yaml").write_text(right.replace("value:", "valeu:"))
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
    assert check.result() == (
        0,
        [
            f"config.yaml: 1 rules, forwarding to http://127.0.0.1:{upstream.port}",
            "",
            "legacy-source (enforce, a failed look-up: reject)",
            "  PATCH /calls/{id}",
            "  content_type becomes application/json",
            "  default source is legacy",
        ],
    )
    assert wrong.result() == (
        1,
        [
            "wrong.yaml: rules[0].repairs[1].value: required, but not given",
            "wrong.yaml: rules[0].repairs[1].valeu: unknown key",
        ],
    )
    assert explain.result() == (
        0,
        [
            "rule:     legacy-source (enforce)",
            "repair:   content_type: before 'text/plain', after 'application/json'",
            "repair:   default: member 'source'",
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
            "      - {type: default, member: a, value: b}\n      - {type: content_type}\n",
        )
    )

    status, (line,) = await said(tmp_path, "check")

    assert status == 1
    assert line.startswith("config.yaml: rules[0].repairs: expected ")
    assert line.index("content_type") < line.index("defaults") < line.index("fills")
