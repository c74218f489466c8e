"""What the page is told: the latest calls, in few events, and what a reader that is slow has missed."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway import app
from gateway.admin.live import KEPT, SHOWN, STREAMS, UNWATCHED, WAITING, Live, strip
from gateway.admin.page_routes import EventStream
from gateway.audit import watched_bodies as bodies_kept
from gateway.audit.finished_call import FinishedCall
from gateway.audit.watched_bodies import WatchedBodies
from gateway.process import lifetime
from tests.support.clients import bare_client
from tests.support.gateways import BODY, PARTICIPANT, TOKEN, gateway, settings
from tests.support.mocking import mock
from tests.support.waiting import until

FILL = {"repair": "fill", "field": "state", "after": "connected", "source": "cache", "age_ms": 3}
HOSTILE = "<img src=x onerror=alert(1)>\"'\\\u2028 event: calls data: {}"
CALL = FinishedCall(
    "one", None, "rule", "enforce", "PATCH", "/c", "127.0.0.1", "legacy", "cafe", (FILL,), (), (), None, None,
    202, 0.001, 0.002, 0.004, 1, False,
)  # fmt: skip


def live() -> Live:
    return Live(lambda: 1.0, [], WatchedBodies())


def tell(watched: Live, call: FinishedCall) -> None:
    if watched.wants(bool(call.changes)):
        watched(call)


def said(event: bytes) -> Any:
    assert event.count(b"\n\n") == 1
    return json.loads(event.split(b"data: ", 1)[1])


async def test_the_latest_calls_are_kept_and_no_more() -> None:
    watched = live()
    assert watched.stream() is not None
    for _ in range(KEPT + 7):
        tell(watched, CALL)
    numbers = [call["number"] for call in watched.recent()]
    watched.close()
    assert numbers == list(range(KEPT + 7, 7, -1))


def test_of_a_second_that_nobody_watches_some_calls_are_kept() -> None:
    now = [10.0]
    unwatched = Live(lambda: now[0], [], WatchedBodies())
    for second in (10.0, 10.9, 11.0, 5.0):
        now[0] = second
        for _ in range(UNWATCHED):
            tell(unwatched, CALL)
    numbers = [call["number"] for call in unwatched.recent()]
    assert numbers == [*range(4 * UNWATCHED, 2 * UNWATCHED, -1), *range(UNWATCHED, 0, -1)]


async def test_many_calls_are_one_event_of_a_few_and_how_many_were_left_out_is_said() -> None:
    watched = live()
    assert watched.stream() is not None
    tell(watched, CALL)
    for _ in range(3 * KEPT):
        tell(watched, CALL)
    told = said(watched.told(1, 0.25))
    watched.close()
    assert (told["came"], told["left_out"], len(told["calls"])) == (3 * KEPT, 3 * KEPT - SHOWN, SHOWN)
    assert told["calls"][0]["number"] == 3 * KEPT + 1


def test_the_strip_has_sums_of_its_calls() -> None:
    looked_up = msgspec.structs.replace(CALL, changes=({**FILL, "source": "lookup"},))
    refused = msgspec.structs.replace(CALL, changes=(), error="audit-log-failed", status=503)
    assert strip([CALL, looked_up, refused]) == {
        "calls": 3, "rewritten": 2, "filled": 2, "cached": 1, "refused": 1, "added_ms": 6.0,
    }  # fmt: skip


def test_callers_are_counted_those_with_most_calls_first() -> None:
    watched = live()
    for agent in ("one", "two", "two"):
        tell(watched, msgspec.structs.replace(CALL, user_agent=agent))
    tell(watched, msgspec.structs.replace(CALL, user_agent="two", changes=()))
    assert [(one["user_agent"], one["calls"], one["needed"]) for one in watched.callers()] == [
        ("two", 3, 2),
        ("one", 1, 1),
    ]


def test_no_text_of_a_client_ends_an_event() -> None:
    watched = live()
    tell(watched, msgspec.structs.replace(CALL, user_agent=HOSTILE + "\n\nevent: lost\n\r", path="/\n\n"))
    told = watched.told(0, 0.25)
    assert told.count(b"\n") == 3
    assert said(told)["calls"][0]["user_agent"].startswith(HOSTILE)


async def test_a_slow_reader_loses_events_and_is_told_how_many() -> None:
    watched = live()
    stream = watched.stream()
    assert stream is not None
    for _ in range(WAITING + 5):
        stream.offer(watched.told(0, 0.25))
    events = watched.events(stream)
    assert b"hello" in await anext(events)
    assert said(await anext(events)) == {"events": 5}
    assert b"event: calls" in await anext(events)
    watched.close()


async def test_nothing_is_made_while_nobody_watches() -> None:
    watched = live()
    assert watched._pumping is None
    stream = watched.stream()
    assert stream is not None
    assert watched._pumping is not None
    watched.leave(stream)
    assert watched._pumping is None


async def test_so_many_streams_and_no_more_and_a_place_comes_free(tmp_path: Path) -> None:
    chosen = settings("http://127.0.0.1:9", str(tmp_path / "log"), listen={"port": 0}, admin={"port": 0})
    built = app.build(chosen)
    async with (
        lifetime.running(chosen, built) as listening,
        bare_client(f"http://127.0.0.1:{listening.admin_port}") as admin,
    ):
        async with AsyncExitStack() as watching:
            for _ in range(STREAMS):
                await watching.enter_async_context(admin.stream("GET", "/api/events"))
            for _ in range(50):
                assert (await admin.get("/api/events")).status_code == 503
            assert (await admin.get("/readyz")).status_code == 200
        await until(lambda: not built.live._streams)
        async with admin.stream("GET", "/api/events") as again:
            assert again.status_code == 200


async def test_a_stream_ends_when_the_gateway_stops(tmp_path: Path) -> None:
    chosen = settings("http://127.0.0.1:9", str(tmp_path / "log"), listen={"port": 0}, admin={"port": 0})
    async with AsyncExitStack() as watching:
        async with lifetime.running(chosen, app.build(chosen)) as listening:
            admin = await watching.enter_async_context(
                bare_client(f"http://127.0.0.1:{listening.admin_port}")
            )
            stream = await watching.enter_async_context(admin.stream("GET", "/api/events"))
            pieces = stream.aiter_bytes()
            assert b"hello" in await anext(pieces)
        assert b"event" in b"".join([b"event", *[piece async for piece in pieces]])


async def test_once_streams_were_ended_no_other_begins() -> None:
    watched = live()
    assert watched.stream() is not None
    watched.close()
    assert watched.stream() is None
    assert watched._pumping is None


async def test_what_the_page_has_of_a_call_is_what_the_log_may_hold() -> None:
    async with (
        mock() as upstream,
        gateway(upstream.url) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        await client.patch(PARTICIPANT, content=BODY, headers={**TOKEN, "User-Agent": "legacy"})
        await until(lambda: running.gateway.live.recent())
        reply = await admin.get("/api/rewrites")
        (call,) = reply.json()["calls"]
        assert call["result"] == "rewritten"
        assert call["body"] == running.lines("rewrite")[0]["body"]
        assert call["changes"] == running.lines("rewrite")[0]["changes"]
        assert call["shape"] is None, "nobody watched"
        assert "supervisorNote" not in reply.text
        assert "Bearer" not in reply.text
        (rule,) = (await admin.get("/api/rules")).json()["rules"]
        assert (rule["name"], rule["mode"]) == ("web-participant-state", "enforce")
        assert (await admin.get("/api/callers")).json()["callers"][0]["user_agent"] == "legacy"


async def test_every_file_of_the_page_forbids_what_it_does_not_need() -> None:
    async with mock() as upstream, gateway(upstream.url) as running, running.admin() as admin:
        for path in ("/", "/page/app.js", "/page/page.css", "/page/icon.svg"):
            reply: httpx.Response = await admin.get(path)
            assert reply.status_code == 200
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-store"
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy


@pytest.mark.parametrize(
    ("mode", "after"),
    [("enforce", [[0, "state", "string"]]), ("shadow", [[0, "state", "string"]]), ("observe", None)],
)
async def test_of_a_call_that_is_watched_the_body_s_shape_is_told_and_no_value(
    mode: str, after: list[Any] | None
) -> None:
    before = [[0, "attributes", "object"], [1, "supervisorNote", "string"]]
    async with (
        mock() as upstream,
        gateway(upstream.url, rule={"mode": mode}) as running,
        running.client() as client,
        running.admin() as admin,
    ):
        watched = running.gateway.live
        stream = watched.stream()
        assert stream is not None
        await client.patch(PARTICIPANT, content=BODY.replace(b"test", b"secret-value"), headers=TOKEN)
        await until(lambda: watched.recent())
        reply = await admin.get("/api/rewrites")
        shape = reply.json()["calls"][0]["shape"]
        assert shape["before"] == {"type": "object", "lines": before, "more": 0}
        assert shape.get("after", {}).get("lines") == (after and [*after, *before])
        assert "secret-value" not in reply.text
        assert said(watched.told(0, 1.0))["calls"][0]["shape"] == shape
        watched.leave(stream)


async def test_no_body_is_kept_of_calls_that_nobody_watches() -> None:
    bodies = WatchedBodies()
    watched = Live(lambda: 1.0, [], bodies)
    async with mock() as upstream, gateway(upstream.url) as running, running.client() as client:
        await client.patch(PARTICIPANT, content=BODY, headers=TOKEN)
        assert running.gateway.live._bodies._latest == {}
    stream = watched.stream()
    assert stream is not None
    bodies.saw("one", b"{}")
    watched.leave(stream)
    assert (bodies.watching, bodies.take("one")) == (False, None)


async def test_what_is_kept_and_read_of_bodies_is_bounded() -> None:
    bodies = WatchedBodies()
    watched = Live(lambda: 1.0, [], bodies)
    assert watched.stream() is not None
    for number in range(3 * bodies_kept.KEPT):
        bodies.saw(f"{number}", b"{}", b"{}")
    assert len(bodies._latest) == bodies_kept.KEPT
    large = b'"%b"' % (b"n" * (bodies_kept.LARGEST - 2))
    for number in range(9):
        bodies.saw(f"large {number}", large, large + b" ")
        assert watched.wants(rewritten=True)
        watched(msgspec.structs.replace(CALL, id=f"large {number}"))
    shapes = [call["shape"] for call in watched.recent()]
    watched.close()
    assert [one["before"].get("type") for one in shapes] == ["string"] * 4 + [None] * 5
    assert "larger than" in shapes[0]["after"]["why"]
    assert "too much" in shapes[8]["before"]["why"]


async def test_a_reader_that_leaves_before_the_first_event_frees_its_place() -> None:
    """Its generator has not begun then, so nothing in it ends."""
    watched = live()
    stream = watched.stream()
    assert stream is not None

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def refused(message: Any) -> None:
        raise OSError

    await EventStream(watched, stream)({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, refused)
    assert not watched._streams
    assert watched._pumping is None
