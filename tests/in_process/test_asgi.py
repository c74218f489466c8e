"""The application under stock servers: its lifespan, what they tell of a request, and how a reply ends."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from gateway.asgi import GatewayApp, create_app
from gateway.config import Settings
from gateway.mock.server import Fault
from gateway.server.asgi import Message
from tests.support.calls import GET, PATCH, UPGRADE, answering_gets, patch
from tests.support.clients import bare_client
from tests.support.gateways import BODY, CONVERSATION, FILLED, PARTICIPANT, TOKEN, document, settings
from tests.support.hosted import SERVERS, before, hosted, under_uvicorn
from tests.support.mocking import API, mock
from tests.support.raw_upstream import OK, Peer, RawUpstream, answering
from tests.support.serving import connect
from tests.support.waiting import until

EVERY_SERVER = pytest.mark.parametrize("server", SERVERS)


class Said:
    """One request to an application, told as a server tells it, and what came of it."""

    def __init__(self, *messages: Message, **scope: Any) -> None:
        self.scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/x",
            "raw_path": b"/x",
            "query_string": b"",
            "headers": [(b"host", b"h")],
            "client": ("127.0.0.1", 1),
            **scope,
        }
        self._messages = list(messages)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def to(self, app: GatewayApp) -> list[Message]:
        await app(self.scope, self.receive, self.send)
        return self.sent


WHOLE: Message = {"type": "http.request", "body": b"", "more_body": False}


async def test_without_its_lifespan_it_serves_nobody(tmp_path: Any) -> None:
    app = create_app(settings("http://127.0.0.1:9", str(tmp_path / "log")))
    with pytest.raises(RuntimeError, match="lifespan"):
        await Said(WHOLE).to(app)


async def test_a_gateway_that_cannot_begin_tells_its_server(tmp_path: Any) -> None:
    """Else uvicorn takes it for an application that has no lifespan, and serves."""
    written = document("http://127.0.0.1:9", "")
    audit = {"path": str(tmp_path / "log"), "rotate": "1MiB"}
    chosen = Settings.model_validate({**written, "audit": audit})
    async with create_app(chosen).running():
        said = Said({"type": "lifespan.startup"}, type="lifespan")
        with pytest.raises(Exception, match="another gateway"):
            await said.to(create_app(chosen))

    assert [message["type"] for message in said.sent] == ["lifespan.startup.failed"]


async def test_where_it_is_mounted_its_host_begins_and_ends_it(tmp_path: Any) -> None:
    async with mock() as upstream:
        repaired = create_app(settings(upstream.url, str(tmp_path / "log")))
        host = Starlette(routes=[Mount("/api", app=repaired)], lifespan=lambda _: repaired.running())
        async with under_uvicorn(host) as port, bare_client(f"http://127.0.0.1:{port}") as client:
            assert (await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)).status_code == 202

        assert [entry.body for entry in upstream.ledger.of("PATCH")] == [FILLED]
        assert repaired.within.gateway is None


async def test_at_its_end_a_call_that_nobody_waits_for_is_finished_and_recorded() -> None:
    async with mock() as upstream:
        held = asyncio.Event()
        upstream.faults.append(Fault(method="PATCH", hold=held))
        async with before("uvicorn", upstream.url) as run:
            call = asyncio.ensure_future(run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN))
            await until(lambda: upstream.ledger.of("PATCH"))
            call.cancel()
            await asyncio.wait([call])
            asyncio.get_running_loop().call_later(0.05, held.set)
        assert run.gateway.counts["gateway_requests_total", "web-participant-state", "PATCH", "2xx"] == 0
        assert run.gateway.counts["gateway_matched_calls_total",] == 1
        assert run.gateway.audit.written == 2


@EVERY_SERVER
async def test_an_event_stream_is_passed_on_as_it_comes(server: str) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await peer.send(kind + b"3\r\nda:\r\n")
        await go.wait()
        await peer.send(b"2\r\n1\n\r\n0\r\n\r\n")

    async with (
        RawUpstream(script) as upstream,
        before(server, upstream.url) as run,
        run.client.stream("GET", "/x") as reply,
    ):
        pieces = reply.aiter_raw()
        assert await anext(pieces) == b"da:"
        go.set()
        assert [piece async for piece in pieces] == [b"1\n"]


@EVERY_SERVER
@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n" + b"x" * 70_000 + b"\r\n",
    ],
    ids=["length", "chunks"],
)
async def test_a_reply_that_breaks_off_is_cut(server: str, sent: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)

    async with (
        RawUpstream(script) as upstream,
        before(server, upstream.url) as run,
        connect(run.port) as client,
    ):
        await client.send(GET)
        raw = await client.rest()

        assert raw.startswith(b"HTTP/1.1 200")
        assert not raw.endswith(b"0\r\n\r\n")
        assert raw.count(b"x") < 100_000


@EVERY_SERVER
@pytest.mark.parametrize("line", [b"304 Not Modified", b"204 No Content"])
async def test_a_reply_without_a_body_is_whole_whatever_length_it_names(server: str, line: bytes) -> None:
    """A 304's would be that of the reply it stands for."""
    bare = b"HTTP/1.1 " + line + b"\r\nContent-Length: 9\r\n\r\n"
    async with (
        RawUpstream(answering(bare)) as upstream,
        before(server, upstream.url) as run,
        connect(run.port) as client,
    ):
        for _ in range(2):  # and the connection is used again
            await client.send(GET)
            head = await client.head()
            assert head.startswith(b"HTTP/1.1 " + line[:3])
            assert b"content-length: 9" not in head.lower()


@EVERY_SERVER
@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"GET /a/../b/./c", b"/a/../b/./c"),
        (b"GET //elsewhere.example/x", b"//elsewhere.example/x"),
        (b"GET /%ff%C3(/%2F;a=1?b=%20&c=/?", b"/%ff%C3(/%2F;a=1?b=%20&c=/?"),
        (b"OPTIONS *", b"*"),
        (b"GET http://h/x?a", b"/x?a"),
        (b"GET /\xc3\xa9", None),
        (b"GET /x HTTP/1.1\r\nHost: i", None),
    ],
)
async def test_a_target_arrives_byte_for_byte_or_the_request_is_refused(
    server: str, line: bytes, target: bytes | None
) -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        before(server, upstream.url) as run,
        connect(run.port) as client,
    ):
        line, _, fields = line.partition(b"\r\n")
        line = line if b" HTTP" in line else line + b" HTTP/1.1"
        await client.send(b"\r\n".join([line, b"Host: h", *filter(None, [fields]), b"", b""]))
        status = int((await client.head())[9:12])

        assert [request.target for request in upstream.requests] == ([] if target is None else [target])
        assert (status == 200) if target else (400 <= status < 500)


@EVERY_SERVER
async def test_a_client_that_waits_for_a_100_gets_it_or_learns_that_its_body_is_too_large(
    server: str,
) -> None:
    async with hosted(server, limits={"max_body": 1000}) as run, connect(run.port) as client:
        await client.send(PATCH.replace(b"\r\n\r\n" + BODY, b"\r\nExpect: 100-continue\r\n\r\n"))
        assert (await client.head()).startswith(b"HTTP/1.1 100")
        await client.send(BODY)
        assert (await client.reply())[0] == 202
        large = patch(b"x" * 2_000, b"Expect: 100-continue").partition(b"\r\n\r\n")[0]
        await client.send(large + b"\r\n\r\n")
        head = await client.head()
        if server == "hypercorn":  # it asks for every body, before the application does
            assert head.startswith(b"HTTP/1.1 100")
            head = await client.head()
        assert head.startswith(b"HTTP/1.1 413")


@EVERY_SERVER
async def test_an_http10_client_is_served(server: str) -> None:
    async with hosted(server) as run, connect(run.port) as client:
        await client.send(PATCH.replace(b"HTTP/1.1\r\nHost: h", b"HTTP/1.0", 1))
        status, headers, _ = await client.reply()

        assert (status, b"transfer-encoding" in headers) == (202, False)
        assert b"1.0 gateway" in dict(run.upstream.ledger.of("PATCH")[0].headers)[b"via"]


@EVERY_SERVER
async def test_an_upgrade_goes_on_as_a_plain_request(server: str) -> None:
    async with (
        RawUpstream(answering(OK)) as upstream,
        before(server, upstream.url) as run,
        connect(run.port) as client,
    ):
        await client.send(UPGRADE)
        await client.head()

        (request,) = upstream.requests
        assert request.header(b"upgrade") is None


@pytest.mark.parametrize("server", ["hypercorn", "granian"])
@pytest.mark.parametrize("known", [True, False])
async def test_a_body_of_http2_arrives_whether_or_not_its_length_is_told(server: str, known: bool) -> None:
    async def pieces() -> Any:
        yield BODY[:5]
        yield BODY[5:]

    async with hosted(server) as run:
        transport = httpx.AsyncHTTPTransport(http1=False, http2=True)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{run.port}") as client:
            reply = await client.patch(PARTICIPANT, content=BODY if known else pieces(), headers=TOKEN)
            assert (reply.status_code, reply.http_version) == (202, "HTTP/2"), reply.text
            write = await client.post(f"{API}/chats/c1/x", content=BODY if known else pieces())
            assert write.status_code != 502
            assert (await client.get(CONVERSATION, headers=TOKEN)).status_code == 200

        assert [entry.body for entry in run.upstream.ledger.of("PATCH")] == [FILLED]
        assert [entry.body for entry in run.upstream.ledger.of("POST")] == [BODY]
        for entry in run.upstream.ledger.of("GET"):
            assert {b"content-length", b"transfer-encoding"}.isdisjoint(dict(entry.headers))
        assert b"2 gateway" in dict(run.upstream.ledger.of("PATCH")[0].headers)[b"via"]


@EVERY_SERVER
async def test_the_clients_address_is_the_peers_and_x_forwarded_for_is_believed_of_nobody(
    server: str,
) -> None:
    async with hosted(server) as run:
        await run.client.get("/x", headers={"X-Forwarded-For": "203.0.113.9"})

        assert dict(run.upstream.ledger.of("GET")[0].headers)[b"x-forwarded-for"] == b"127.0.0.1"


@pytest.mark.parametrize("scope", [{"raw_path": None}, {"path": "/y"}, {"raw_path": b"/x?y"}])
async def test_a_target_that_is_not_told_as_it_was_sent_is_refused(scope: dict[str, Any]) -> None:
    async with RawUpstream(answering(OK)) as upstream, before("uvicorn", upstream.url) as run:
        app = create_app(settings(upstream.url, str(run.audit) + "2"))
        async with app.running():
            start, body = await Said(WHOLE, **scope).to(app)

        assert start["status"] == 500
        assert b"raw_path" in body["body"]
        assert upstream.requests == []


@pytest.mark.parametrize(("version", "lines"), [("2", [b"a=1; b=2"]), ("1.1", [b"a=1", b"b=2"])])
async def test_the_lines_that_http2_makes_of_a_cookie_are_one_again(
    version: str, lines: list[bytes], tmp_path: Any
) -> None:
    async with RawUpstream(answering(OK)) as upstream:
        app = create_app(settings(upstream.url, str(tmp_path / "log")))
        fields = [(b"host", b"h"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
        async with app.running():
            await Said(WHOLE, http_version=version, headers=fields).to(app)

        assert [value for name, value in upstream.requests[0].headers if name == b"cookie"] == lines


async def test_who_has_no_address_is_called_unknown(tmp_path: Any) -> None:
    """As behind a UNIX socket."""
    async with RawUpstream(answering(OK)) as upstream:
        app = create_app(settings(upstream.url, str(tmp_path / "log")))
        async with app.running():
            await Said(WHOLE, client=None).to(app)

        assert upstream.requests[0].header(b"x-forwarded-for") == b"unknown"
        assert (upstream.requests[0].header(b"forwarded") or b"").startswith(b"for=unknown;")


async def test_a_client_that_leaves_in_the_middle_of_its_body_sends_nothing(tmp_path: Any) -> None:
    half: Message = {"type": "http.request", "body": b"{", "more_body": True}
    fields = [(b"host", b"h"), (b"content-length", b"42")]
    async with RawUpstream(answering_gets()) as upstream:
        app = create_app(settings(upstream.url, str(tmp_path / "log")))
        async with app.running():
            said = Said(half, {"type": "http.disconnect"}, method="PATCH", path=PARTICIPANT,
                        raw_path=PARTICIPANT.encode(), headers=fields)  # fmt: skip
            assert await said.to(app) == []

        assert upstream.requests == []


async def test_a_websocket_is_refused_before_it_is_accepted(tmp_path: Any) -> None:
    app = create_app(settings("http://127.0.0.1:9", str(tmp_path / "log")))
    said = Said({"type": "websocket.connect"}, type="websocket")

    assert [message["type"] for message in await said.to(app)] == ["websocket.close"]


async def test_a_certificate_that_the_server_tells_of_tells_callers_apart(tmp_path: Any) -> None:
    """By ASGI's extension for TLS: what was read for one is not used for another."""
    async with mock() as upstream:
        app = create_app(settings(upstream.url, str(tmp_path / "log")))
        fields = [(b"host", b"h"), (b"content-length", b"%d" % len(BODY))]
        async with app.running():
            for certificate in ("one", "two", "one"):
                said = Said(
                    {"type": "http.request", "body": BODY},
                    method="PATCH",
                    path=PARTICIPANT,
                    raw_path=PARTICIPANT.encode(),
                    headers=fields,
                    extensions={"tls": {"client_cert_chain": [certificate]}},
                )
                assert (await said.to(app))[0]["status"] == 202

        assert len(upstream.ledger.of("GET")) == 2


@EVERY_SERVER
async def test_cors_is_answered_under_every_server(server: str) -> None:
    async with hosted(server, cors={"origins": ["https://app.example"]}) as run:
        origin = {"Origin": "https://app.example"}
        asked = {"Access-Control-Request-Method": "PATCH", **origin}
        preflight = await run.client.options(PARTICIPANT, headers=asked)
        reply = await run.client.patch(PARTICIPANT, content=BODY, headers=TOKEN | origin)

        assert "PATCH" in preflight.headers["access-control-allow-methods"]
        assert reply.status_code == 202
        assert "Gateway-Rewrite" in reply.headers["access-control-expose-headers"]


def test_a_config_is_loaded_from_its_path_by_uvicorns_command_line_too(tmp_path: Any) -> None:
    (tmp_path / "config.yaml").write_text("upstream: {url: 'http://127.0.0.1:9'}\naudit: {path: /dev/null}\n")
    app = create_app(tmp_path / "config.yaml")

    assert uvicorn.Config(app, interface="auto").interface == "auto"
    assert app.within.settings.upstream.url == "http://127.0.0.1:9"


async def test_pipelined_calls_are_answered_in_their_order() -> None:
    async with hosted("uvicorn") as run, connect(run.port) as client:
        await client.send(PATCH + PATCH)
        assert [(await client.reply())[0] for _ in range(2)] == [202, 202]
