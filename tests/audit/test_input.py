"""No input forges or breaks a line (L2), and no secret is in one, nor in an error or on the console (L3)."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mock.server import Fault
from tests.support.audit_lines import audit_lines
from tests.support.calls import ACCEPTED
from tests.support.gateways import CONVERSATION, PARTICIPANT, gateway, proxied
from tests.support.mocking import mock
from tests.support.processes import gateway_process
from tests.support.raw_upstream import answering
from tests.support.serving import connect

TEXT = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])


PATH = bytes(set(range(0x21, 0x7F)) - set(b"#?/"))


values = st.lists(st.sampled_from(TEXT), max_size=60).map(bytes) | st.sampled_from(
    [
        "\x85\u2028\u2029".encode(),
        b"\xc2\x85",
        b"\xff\xfe",
        b'"}{"event":"rewrite"',
        b"\\n\\u000a",
        b"%0d%0a",
        b"\xed\xa0\x80",
        b"x" * 20_000,
    ]
)


segments = st.lists(st.sampled_from(PATH), min_size=1, max_size=30).map(bytes)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(segments, values, values, values), min_size=3, max_size=6))
async def test_no_path_header_or_user_agent_that_can_arrive_breaks_a_line(
    calls: list[tuple[bytes, bytes, bytes, bytes]],
) -> None:
    async with proxied(answering(ACCEPTED), rule={"on_lookup_failure": "forward"}) as (_, running, client):
        matched = 0
        for participant, agent, kind, request_id in calls:
            await client.send(
                b"PATCH %b/participants/%b HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\nX-Request-Id: %b\r\n"
                b"Content-Type: text/plain;%b\r\nContent-Length: 2\r\n\r\n{}"
                % (CONVERSATION.encode(), participant, agent, request_id, kind)
            )
            status, headers, _ = await client.reply()
            assert status in {202, 400, 431}, status
            if status != 202:
                break
            matched += b"gateway-rewrite" in headers
        lines = audit_lines(running.audit) if matched else []
        assert len(lines) == 2 * matched
        assert {line["event"] for line in lines} <= {"rewrite", "skip", "outcome"}


async def test_a_header_of_a_megabyte_is_refused_and_recorded_nowhere() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, connect(running.port) as client:
        await client.send(
            b"PATCH %b HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\n\r\n" % (PARTICIPANT.encode(), b"x" * 2**20)
        )
        status, _, _ = await client.reply()

        assert status == 431
        assert not running.audit.exists()
        assert upstream.ledger.received == 0


SECRETS = {
    "bearer": "s3cr3t-bearer-QWxhZGRpbg",
    "cookie": "s3cr3t-cookie-0123456789",
    "api_key": "s3cr3t-apikey-abcdef",
    "basic": "czNjcjN0LWJhc2lj",
    "attribute": "s3cr3t-attribute-value",
    "name": "s3cr3t-attribute-name",
    "query": "s3cr3t-query",
    "upstream": "s3cr3t-of-the-upstream",
}


async def test_no_secret_is_in_the_log_in_an_error_or_in_what_the_process_says(tmp_path: Path) -> None:
    attributes = json.dumps({"attributes": {SECRETS["name"]: SECRETS["attribute"]}})
    bodies = [
        attributes, attributes[:-1], f"[{attributes}]", '{"state":"disconnected",' + attributes[1:],
        f'{{"state":"{SECRETS["attribute"]}"}}', f'{{"state":"a","state":"{SECRETS["attribute"]}"}}',
        SECRETS["attribute"], f'"{SECRETS["attribute"]}"', attributes + " " * 2000,
    ]  # fmt: skip
    faults = [
        None,
        Fault(method="GET", status=200, body=f"<{SECRETS['upstream']}>".encode()),
        Fault(method="GET", status=200, body=f'{{"a":"{SECRETS["upstream"]}'.encode()),
        Fault(method="GET", status=500, body=SECRETS["upstream"].encode()),
        Fault(method="GET", reset=True),
        Fault(method="PATCH", reset=True),
        Fault(method="PATCH", status=200, body=SECRETS["upstream"].encode(), reset=True),
        Fault(method="PATCH", status=202, body=f'{{"state":"{SECRETS["upstream"]}"}}'.encode(),
              headers=(("content-type", "application/json"), ("set-cookie", f"s={SECRETS['cookie']}"))),
    ]  # fmt: skip
    headers = {
        "Authorization": f"Bearer {SECRETS['bearer']}",
        "Cookie": f"session={SECRETS['cookie']}",
        "X-Api-Key": SECRETS["api_key"],
        "Proxy-Authorization": f"Basic {SECRETS['basic']}",
    }
    errors: list[str] = []
    changes: dict[str, Any] = {
        "credentials": {"headers": ["X-Api-Key"]},
        "limits": {"max_body": 1500},
        "fill": {"max_age": 0, "settle": 0},
    }
    async with mock() as upstream, gateway_process(tmp_path, upstream.url, **changes) as running:
        async with running.client() as client:
            for fault in faults:
                for body in bodies:
                    upstream.faults[:] = [fault] if fault else []
                    try:
                        answer = await client.patch(
                            f"{PARTICIPANT}?token={SECRETS['query']}", content=body, headers=headers
                        )
                    except httpx.RemoteProtocolError as error:
                        errors.append(str(error))
                        continue
                    if answer.headers.get("proxy-status"):
                        errors.append(f"{answer.headers}{answer.text}")
                    errors.append(answer.headers["gateway-rewrite"])
            for field in ("Authorization", "Cookie"):
                async with connect(running.port) as raw:
                    await raw.send(
                        f"GET /?{SECRETS['query']} HTTP/1.1\r\nHost: a\r\n"
                        f"{field}: {SECRETS['bearer']}\x01\r\nConnection: {field}\r\n\r\n".encode()
                    )
                    errors.append((await raw.rest()).decode())
        async with running.admin() as side:
            pages = [await side.get(page) for page in ("/readyz", "/counts", "/healthz")]
            errors += [page.text for page in pages]
        running.process.signal(signal.SIGTERM)
        assert await running.process.exit() == 0
        said = running.process.said
    log = running.audit.read_text()
    assert len(audit_lines(running.audit)) > 100
    assert len(errors) > 70
    for name, secret in SECRETS.items():
        assert secret not in log, name
        assert secret not in said, name
        assert not [error for error in errors if secret in error], name
