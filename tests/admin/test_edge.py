"""The admin side is an edge too: under which names it answers, and that nobody can take all of it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from gateway import app
from gateway.admin.hosts import answers_to
from gateway.admin.live import STREAMS
from gateway.process import lifetime
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, settings
from tests.support.mocking import mock
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.serving import connect


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9901", "[::1]", "[::1]:9901", "::1", "10.1.2.3:80", "localhost", "LOCALHOST:1",
     "a.localhost:9901", "gateway:9901", "Gateway"],
)  # fmt: skip
def test_addresses_loopback_names_and_the_configured_ones_are_answered(host: str) -> None:
    assert answers_to(host, {"gateway"})


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9901", "127.0.0.1.evil.example", "localhost.evil.example", "gateway.evil",
     "", "[evil]", "127.0.0.1@evil.example", "notlocalhost", "1.2.3"],
)  # fmt: skip
def test_another_name_is_not_answered(host: str) -> None:
    assert not answers_to(host, {"gateway"})


async def test_a_page_that_binds_its_name_to_the_admin_side_reads_nothing(tmp_path: Path) -> None:
    hosts = {"hosts": ["gateway"]}
    async with (
        gateway_process(tmp_path, "http://127.0.0.1:9", admin=hosts) as running,
        running.admin() as admin,
    ):
        for path in ("/readyz", "/counts", "/healthz"):
            refused = await admin.get(path, headers={"Host": "evil.example"})
            assert refused.status_code == 421
            assert "admin.hosts" in refused.text
            assert (await admin.get(path, headers={"Host": "gateway:9901"})).status_code == 200
            assert (await admin.get(path)).status_code == 200


# For the tests that leave it as it was.
one_for_all = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(tmp_path_factory.mktemp("edge"), "http://127.0.0.1:9") as one:
        yield one


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 200000\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"POST /api/mode HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4000\r\n\r\n{",
        b"GET /page/app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 160,
        b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
    ids=["a part of a head", "a body that nobody reads", "a larger one", "no request",
         "a body that does not come", "replies that nobody takes", "streams that nobody reads"],
)  # fmt: skip
@one_for_all
async def test_connections_that_say_nothing_more_do_not_keep_the_operator_out(
    running: GatewayProcess, said: bytes
) -> None:
    async with (
        running.admin() as admin,
        running.client() as client,
        AsyncExitStack() as silent,
    ):
        for number in range(3 * lifetime.ADMIN_CONNECTIONS):
            one = await silent.enter_async_context(connect(running.admin_port))
            await one.send(said[: number % len(said)] if number % 2 else said)
        clients = (await admin.get("/counts")).json()["gateway_client_connections"]
        assert clients == 0, "they are none of the callers'"
        assert (await admin.get("/readyz")).status_code == 200
        assert (await client.get("/x")).json()["type"].endswith("connection-refused")
        assert "Traceback" not in running.process.said


@one_for_all
async def test_a_query_of_a_megabyte_is_refused_before_it_is_read(running: GatewayProcess) -> None:
    async with running.admin() as admin, connect(running.admin_port) as one:
        one.writer.write(b"GET /metrics?" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await one.head()).startswith((b"HTTP/1.1 414", b"HTTP/1.1 431"))
        assert (await admin.get("/readyz")).status_code == 200


async def test_more_event_streams_than_there_is_room_for_are_refused_and_keep_nobody_out(
    tmp_path: Path,
) -> None:
    asked = b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with (
        mock() as upstream,
        gateway_process(tmp_path, upstream.url) as running,
        running.admin() as admin,
        running.client() as client,
        AsyncExitStack() as watching,
    ):
        answers: Counter[bytes] = Counter()
        for _ in range(3 * lifetime.ADMIN_CONNECTIONS):
            one = await watching.enter_async_context(connect(running.admin_port))
            await one.send(asked)
            answers[(await one.until(b"\r\n")).split(b" ")[1]] += 1
        assert answers == {b"200": STREAMS, b"503": 3 * lifetime.ADMIN_CONNECTIONS - STREAMS}
        assert (await admin.get("/readyz")).status_code == 200
        for page in ("/", "/api/rewrites", "/metrics"):
            assert (await admin.get(page)).status_code == 200
        reply = await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert reply.status_code == 202


@one_for_all
async def test_a_query_of_a_megabyte_is_refused_and_keeps_nobody_out(running: GatewayProcess) -> None:
    async with running.admin() as admin:
        for path in ("/", "/api/rewrites", "/api/events", "/page/app.js"):
            async with connect(running.admin_port) as one:
                head = b"GET %b?%b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
                with contextlib.suppress(ConnectionError):
                    await one.send(head % (path.encode(), b"q" * 2**20))
                assert (await one.until(b"\r\n")).split(b" ")[1] in {b"414", b"431"}
            assert (await admin.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/page/../live.py", "/page/..%2flive.py", "/page/%2e%2e/live.py", "/page/..\\live.py", "/page//live.py",
     "/page/%00", "/page/app.js%00.html", "/page/", "/page/app.js/..", "/../../../../etc/passwd",
     "/page/....//live.py", "/page/%252e%252e%252flive.py", "/page/%c0%ae%c0%ae/live.py"],
)  # fmt: skip
async def test_no_path_names_a_file_beside_the_page_s(tmp_path: Path, path: str) -> None:
    chosen = settings("http://127.0.0.1:9", str(tmp_path / "log"), listen={"port": 0}, admin={"port": 0})
    async with lifetime.running(chosen, app.build(chosen)) as listening, connect(listening.admin_port) as one:
        asked = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        await one.send(asked % path.encode("latin-1"))
        reply = await one.rest()
        assert reply.split(b" ")[1] in {b"400", b"404"}
        assert b"import" not in reply
        assert b"root:" not in reply


async def test_nothing_changes_by_get_and_no_other_site_may_ask(tmp_path: Path) -> None:
    wanted = {"rule": "web-participant-state", "mode": "observe"}
    async with gateway_process(tmp_path, "http://127.0.0.1:9") as running, running.admin() as admin:
        for path in ("/api/mode", "/api/reload"):
            assert (await admin.get(path, params=wanted)).status_code == 405
            refused = await admin.post(path, json=wanted, headers={"Origin": "http://evil.example"})
            assert refused.status_code == 403
        (rule,) = (await admin.get("/api/rules")).json()["rules"]
        assert rule["mode"] == "enforce"
        own = {"Origin": str(admin.base_url).rstrip("/")}
        assert (await admin.post("/api/mode", json=wanted, headers=own)).status_code == 200


def backlog_of(port: int) -> int:
    """As the kernel has it (tcp(7): of a listening socket TCP_INFO tells the most that may wait)."""
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and one.getsockname()[1] == port:
                    most: int = struct.unpack_from("I", one.getsockopt(socket.IPPROTO_TCP, 11, 104), 28)[0]
                    return most
        except OSError:
            continue
    raise AssertionError(f"nothing listens on {port}")


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO")
async def test_the_backlog_is_the_configured_one(tmp_path: Path) -> None:
    chosen = settings("http://127.0.0.1:9", str(tmp_path / "log"), listen={"port": 0, "backlog": 77},
                      admin={"port": 0})  # fmt: skip
    async with lifetime.running(chosen, app.build(chosen)) as listening:
        assert backlog_of(listening.port) == 77
        assert backlog_of(listening.admin_port) == lifetime.ADMIN_CONNECTIONS
