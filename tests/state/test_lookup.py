"""
Look-ups and what is kept of them: refusals and pauses, revalidation, guards, learning, the bounds.
How all of it keeps its promises under concurrency is in test_simulation.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import paths as templates
from gateway.admin.metrics import Counts
from gateway.errors import ConnectionTerminated, LookupFailed, Overloaded, ReadTimeout
from gateway.http.headers import Fields, Header, Headers
from gateway.http.times import retry_after
from gateway.proxy.buffered import BufferBudget
from gateway.repairs import Fill, Unfilled
from gateway.rules import FillTarget
from gateway.state.lookup import UNCOUNTED, Lookups
from gateway.state.lookup_results import LookupRefused, LookupRequest, LookupResult, LookupResults
from gateway.state.memory import MemoryStore
from gateway.state.store import Key, Reading
from gateway.state.sweeps import SweepRate
from gateway.upstream.reply import Reply
from tests.simulation.plays import kept, legacy, look_ups, read, sends
from tests.simulation.schedule import Fate

NOW = 1_800_000_000.0  # Unix seconds
JSON: Header = (b"content-type", b"application/json")
TARGET = b"/conversations/c1"


def document(state: str = "connected") -> bytes:
    return json.dumps({"id": "c1", "participants": [{"id": "p1", "state": state}]}).encode()


@dataclass(slots=True)
class Scripted:
    """A transport whose replies are given beforehand; `asked` are the headers of each GET."""

    replies: list[Reply] = field(default_factory=list)
    asked: list[dict[bytes, bytes]] = field(default_factory=list)
    hangs: bool = False
    ended: int = 0

    def will(self, status: int, body: bytes = b"", *headers: Header) -> None:
        self.replies.append(Reply.of(status, Fields(headers), body))

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: object = None,
        *,
        extra_headers: Headers = (),
        **rest: object,
    ) -> Reply:
        assert (method, target, body) == (b"GET", TARGET, None)
        self.asked.append(dict([*headers, *extra_headers]))
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.ended += 1
        return self.replies.pop(0)

    def close(self) -> None:
        """Nothing is held."""

    async def wait_closed(self) -> None:
        """Nor to wait for."""


@dataclass(slots=True)
class Bench:
    """Look-ups over a scripted transport, with a clock that is wound by hand."""

    transport: Scripted = field(default_factory=Scripted)
    now: float = 100.0
    counts: Counts = field(default_factory=Counts)
    max_entries: int = 100
    max_body: int = 1024
    budget: BufferBudget = field(default_factory=lambda: BufferBudget(2**20, 1024))
    store: MemoryStore = field(init=False)
    lookups: Lookups = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.max_entries, 2**20, lambda: self.now)
        self.lookups = Lookups(
            self.store,
            self.transport,
            wall=lambda: NOW + self.now,
            counts=self.counts,
            max_body=self.max_body,
            max_pause=60.0,
            sweeps=SweepRate(2, 5.0, lambda: self.now),
            budget=self.budget,
            ignored=frozenset({b"user-agent"}),
        )

    def request(self, caller: str = "A", participant: str = "p1", **fill: Any) -> LookupRequest:
        settings: dict[str, Any] = {
            "field": "state",
            "source": templates.parse("/conversations/{conversation}"),
            "select": "$.participants[?@.id == _.participant].state",
            "allow": frozenset({"connected", "active"}),
            "max_age": 1.0,
            "settle": 2.0,
            "refill_on": frozenset({409, 412}),
            "null_is_missing": False,
            "learn": True,
            "guarded": False,
            "conversation": "conversation",
            "subject": ("participant",),
        }
        parameters = {"conversation": "c1", "participant": participant}
        raw = {name: value.encode() for name, value in parameters.items()}
        return LookupRequest(
            FillTarget.of(Fill(**(settings | fill)), raw, parameters),
            Key("c1", TARGET, caller),
            caller,
            Fields([(b"authorization", caller.encode()), (b"if-none-match", b'"of the client"')]),
            [(b"x-request-id", b"i1")],
            self.now,
        )

    async def result(self, **fill: Any) -> LookupResult:
        result = await self.lookups.look_up(self.request(**fill))
        assert isinstance(result, LookupResult), result
        return result


# --- refusals and pauses


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_a_refusal_is_the_callers_to_see_as_the_upstream_said_it(status: int) -> None:
    bench = Bench()
    bench.transport.will(status, b'{"code": "no"}', JSON, (b"x-correlation", b"7"), (b"connection", b"close"))

    with pytest.raises(LookupRefused) as raised:
        await bench.lookups.look_up(bench.request())

    refusal = raised.value.refusal
    assert (refusal.status, refusal.body) == (status, b'{"code": "no"}')
    assert refusal.headers == [JSON, (b"x-correlation", b"7")]


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (500, b"", []),
        (302, b"", [(b"location", b"/elsewhere")]),
        (206, document(), [JSON]),
        (204, b"", []),
        (304, b"", []),
        (200, document(), [(b"content-type", b"text/html")]),
        (200, document(), []),
        (200, document()[:-1], [JSON]),
        (200, b"[]", [JSON]),
        (200, b"", [JSON]),
        (200, gzip.compress(document()), [JSON, (b"content-encoding", b"gzip")]),
        (200, document() + b" " * 1024, [JSON]),
        (200, b"[" * 500 + b"]" * 500, [JSON]),
    ],
)
async def test_what_is_no_whole_json_document_is_no_answer(
    status: int, body: bytes, headers: list[Header]
) -> None:
    bench = Bench()
    bench.transport.will(status, body, *headers)

    with pytest.raises(LookupFailed):
        await bench.lookups.look_up(bench.request())
    assert bench.store.sizes().readings == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7),
        (formatdate(NOW + 107, usegmt=True).encode(), 7),
        (b"86400", 60),
        (b"9" * 400, 60),
        (formatdate(NOW + 86_400, usegmt=True).encode(), 60),
    ],
)
async def test_a_429_holds_back_look_ups_until_retry_after_and_never_longer_than_it_may(
    value: bytes, seconds: int
) -> None:
    bench = Bench()
    bench.transport.will(429, b"slow down", (b"retry-after", value))
    bench.transport.will(200, document(), JSON)

    with pytest.raises(LookupRefused):
        await bench.lookups.look_up(bench.request())
    bench.now += seconds - 1.5
    with pytest.raises(LookupRefused) as raised:
        await bench.lookups.look_up(bench.request())
    assert len(bench.transport.asked) == 1
    assert raised.value.refusal.body == b"slow down"
    assert raised.value.refusal.headers == [(b"retry-after", b"2")]
    assert bench.counts["gateway_lookups_total", "held_back"] == 1

    bench.now += 1.5
    assert (await bench.result()).value == "connected"


async def test_a_pause_is_that_callers_alone_and_not_for_what_is_in_the_cache() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON)
    bench.transport.will(429, b"", (b"retry-after", b"9"))
    bench.transport.will(200, document(), JSON)

    await bench.result(caller="A")
    bench.now += 0.5
    with pytest.raises(LookupRefused):
        await bench.lookups.look_up(bench.request(caller="B"))
    assert (await bench.result(caller="A")).source == "cache"
    assert (await bench.result(caller="C")).source == "lookup"


@pytest.mark.parametrize("value", [None, b"0", b"soon", b"-5", b"", b"Sun, 99 Nov 1994 08:49:37 GMT"])
async def test_a_429_that_does_not_say_until_when_holds_nothing_back(value: bytes | None) -> None:
    bench = Bench()
    bench.transport.will(429, b"", *([(b"retry-after", value)] if value is not None else []))
    bench.transport.will(200, document(), JSON)

    with pytest.raises(LookupRefused):
        await bench.lookups.look_up(bench.request())
    assert (await bench.result()).value == "connected"


def test_a_date_without_a_zone_is_utc_wherever_the_gateway_runs() -> None:
    told = (
        "from gateway.http.times import retry_after; "
        "print(retry_after(b'Sun Nov  6 08:49:37 1994', 784111770))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", told], env={"TZ": "XYZ+5"}, capture_output=True, text=True, check=True
    )

    assert float(ran.stdout) == 7


@pytest.mark.parametrize(
    "date", [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"]
)
def test_each_of_the_three_formats_of_a_date_is_understood(date: bytes) -> None:
    assert retry_after(date, 784_111_777 - 5) == 5
    assert retry_after(date, 784_111_777 + 5) == 0


@given(st.binary(max_size=40) | st.from_regex(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{1,6} [\d:+-]{1,20}"))
@example(b"Fri, 31 Dec 9999 23:59859402359")
def test_no_retry_after_is_too_odd(value: bytes) -> None:
    seconds = retry_after(value, 0.0)

    assert seconds is None or seconds >= 0


# --- revalidation


async def test_an_expired_reading_with_an_etag_is_revalidated_and_renewed_from_that_moment() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"etag", b'"one"'))
    bench.transport.will(304)

    await bench.result()
    bench.now += 1.5
    renewed = await bench.result()
    assert bench.transport.asked[0].get(b"if-none-match") is None
    assert bench.transport.asked[1][b"if-none-match"] == b'"one"'
    assert (renewed.value, renewed.source) == ("connected", "lookup")
    assert renewed.reading.started == bench.now
    assert bench.counts["gateway_lookups_total", "revalidated"] == 1

    bench.now += 0.9
    assert (await bench.result()).source == "cache"


async def test_what_changed_meanwhile_replaces_the_reading_and_its_etag() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"etag", b'"one"'))
    bench.transport.will(200, document("active"), JSON, (b"etag", b'"two"'))
    bench.transport.will(304)

    await bench.result()
    bench.now += 1.5
    assert (await bench.result()).value == "active"
    bench.now += 1.5
    assert (await bench.result()).value == "active"
    assert bench.transport.asked[2][b"if-none-match"] == b'"two"'


async def test_a_304_that_nobody_asked_for_is_no_answer() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON)
    bench.transport.will(304)

    await bench.result()
    bench.now += 1.5
    with pytest.raises(LookupFailed):
        await bench.lookups.look_up(bench.request())


async def test_a_reading_that_a_write_overtook_is_revalidated_too() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"etag", b'W/"one"'))
    bench.transport.will(304)

    old = await bench.result()
    await bench.lookups.invalidate_after("c1")
    assert not await bench.lookups.usable(LookupResults({"state": old}))
    assert await bench.lookups.usable(LookupResults({"state": await bench.result()}))


# --- guards


@pytest.mark.parametrize(
    ("etag", "guarded", "guard"),
    [
        (b'"one"', True, b'"one"'),
        (b'"one"', False, None),
        (b'W/"one"', True, None),
        (None, True, None),
    ],
)
async def test_only_a_strong_etag_guards_and_only_where_it_is_wanted(
    etag: bytes | None, guarded: bool, guard: bytes | None
) -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, *([(b"etag", etag)] if etag else []))

    assert LookupResults({"state": await bench.result(guarded=guarded)}).guard == guard


async def test_another_etag_makes_another_patch_of_the_same_value_but_only_the_one_that_is_sent() -> None:
    bench = Bench()
    request = bench.request(guarded=True)

    def found(value: str, etag: bytes) -> LookupResult:
        return LookupResult(request, value, Reading(b"", 0.0, 1, etag), "lookup", 0.0)

    one = LookupResults({"state": found("connected", b'"1"'), "held": found("yes", b'"1"')})
    assert one.differ(LookupResults({"state": found("connected", b'"2"'), "held": found("yes", b'"2"')}))
    assert one.differ(LookupResults({"state": found("connected", b'"1"'), "held": found("no", b'"1"')}))
    assert not one.differ(LookupResults({"state": found("connected", b'"1"'), "held": found("yes", b'"2"')}))
    assert not one.differ(LookupResults({"state": found("active", b'"3"')})), "incomplete"


def test_the_patch_carries_the_etag_of_what_was_filled() -> None:
    history = kept(legacy("r", 0.0), guarded=True)

    (patch,) = sends(history, "r")
    assert dict(patch.headers)[b"if-match"].startswith(b'"')


def test_a_clients_own_if_match_is_never_replaced_nor_sent_with_the_look_up() -> None:
    call = legacy("r", 0.0, headers=((b"if-match", b'"mine"'),))
    history = kept(call, guarded=True)

    (patch,) = sends(history, "r")
    assert [value for name, value in patch.headers if name == b"if-match"] == [b'"mine"']
    assert patch.status == 412
    assert all(b"if-match" not in dict(sent.headers) for sent in look_ups(history))


# --- learning


async def read_by_a_client(bench: Bench, body: bytes, etag: bytes | None = None) -> Reading:
    stamp = await bench.lookups.stamp("c1")
    assert stamp is not None
    return Reading(body, stamp.time, stamp.generation, etag, learned=True)


async def learned(bench: Bench, body: bytes, coding: bytes | None = None, etag: bytes | None = None) -> bool:
    await bench.lookups.prime(Key("c1", TARGET, "A"), await read_by_a_client(bench, body, etag), coding)
    return bench.counts["gateway_lookups_total", "learned"] > 0


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, document()),
        (b"gzip", gzip.compress(document())),
        (b"deflate", zlib.compress(document())),
    ],
)
async def test_what_a_client_read_is_kept_as_if_it_had_been_looked_up(
    coding: bytes | None, body: bytes
) -> None:
    bench = Bench()

    assert await learned(bench, body, coding)
    assert (await bench.result()).source == "cache"
    bench.now += 1.1
    bench.transport.will(200, document("active"), JSON)
    assert (await bench.result()).value == "active"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, b"[]"),
        (None, b"<html>"),
        (None, document()[:-2]),
        (None, b"\xff"),
        (None, b"[" * 100_000),
        (b"gzip", document()),
        (b"gzip", gzip.compress(document())[:-4]),
        (b"gzip", gzip.compress(b" " * 2**20 + document())),
        (b"br", document()),
    ],
)
async def test_what_is_no_whole_document_or_too_large_is_not_learned(
    coding: bytes | None, body: bytes
) -> None:
    assert not await learned(Bench(), body, coding)


async def test_what_was_read_later_is_not_replaced_by_what_a_client_read_before() -> None:
    bench = Bench()
    bench.transport.will(200, document("active"), JSON)
    early = await read_by_a_client(bench, document())
    bench.now += 0.1
    await bench.result()

    await bench.lookups.prime(Key("c1", TARGET, "A"), early, None)

    assert (await bench.result()).value == "active"
    assert bench.counts["gateway_lookups_total", "learned"] == 0


async def test_what_a_client_began_to_read_before_a_write_is_not_learned() -> None:
    bench = Bench()
    early = await read_by_a_client(bench, document())
    await bench.lookups.invalidate_after("c1")

    await bench.lookups.prime(Key("c1", TARGET, "A"), early, None)

    assert bench.store.sizes().readings == 0


async def test_with_max_age_0_nothing_learned_is_used() -> None:
    bench = Bench()
    await learned(bench, document())
    bench.transport.will(200, document("active"), JSON)

    assert (await bench.result(max_age=0.0)).value == "active"


def test_the_etag_of_a_compressed_reply_is_not_taken_for_the_plain_ones() -> None:
    history = kept(
        read("g", 0.0), legacy("r", 1.2), fates={"g": (Fate(fault="gzip"),)}, guarded=True, max_age=1.0
    )

    assert history.counts["gateway_lookups_total learned"] == 1
    assert [b"if-none-match" in dict(sent.headers) for sent in look_ups(history)] == [False]


# --- failures


async def test_all_who_share_a_look_up_share_its_failure_and_the_next_call_asks_again() -> None:
    bench = Bench()
    bench.transport.will(500)
    bench.transport.will(200, document(), JSON)

    shared = [bench.lookups.look_up(bench.request()) for _ in range(3)]
    failures = await asyncio.gather(*shared, return_exceptions=True)
    assert [type(failure) for failure in failures] == [LookupFailed] * 3
    assert len(bench.transport.asked) == 1
    assert (await bench.result()).value == "connected"


async def test_nothing_that_expired_stands_in_for_a_look_up_that_failed() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"etag", b'"one"'))
    bench.transport.will(500)

    await bench.result()
    bench.now += 1.5
    with pytest.raises((LookupFailed, ConnectionTerminated)):
        await bench.lookups.look_up(bench.request())


# --- bounds


async def test_participants_that_are_not_there_leave_nothing_in_a_reading() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON)
    reading = (await bench.result()).reading

    for number in range(1_000):
        absent = bench.request(participant=f"p1{number}")
        assert isinstance(await bench.lookups.look_up(absent), Unfilled)

    assert len(bench.transport.asked) == len(bench.lookups._chosen_from[reading].values) == 1


async def test_what_was_chosen_from_a_reading_is_held_as_long_as_the_reading() -> None:
    bench = Bench(max_entries=1)
    chosen = bench.lookups._chosen_from
    for caller in "ABC":
        bench.transport.will(200, document(), JSON)
        await bench.result(caller=caller)
        assert [set(one.values.values()) for one in chosen.values()] == [{"connected"}]

    await bench.store.put(Key("c1", b"/another", "A"), await read_by_a_client(bench, b"{}"))
    await asyncio.sleep(0)  # until then the loop itself holds the result that it woke this test with
    assert len(chosen) == 0


async def test_pauses_and_accepted_values_are_bounded_under_a_flood_of_callers() -> None:
    bench = Bench(max_entries=50)
    for number in range(2_000):
        bench.transport.will(429, b"", (b"retry-after", b"9"))
        with pytest.raises(LookupRefused):
            await bench.lookups.look_up(bench.request(caller=f"caller{number}"))
        target = bench.request(participant=f"p{number}").target
        await bench.lookups.accept("c1", target, "connected")

    assert (bench.store.sizes().pauses, bench.store.sizes().accepted) == (50, 50)


async def test_closing_ends_every_look_up_also_one_that_another_has_taken_the_place_of() -> None:
    """With max_age 0 each call has a GET of its own, and the latest is the one that others may join."""
    bench = Bench()
    bench.transport.hangs = True
    waiting = []
    for _ in range(3):
        waiting.append(asyncio.ensure_future(bench.lookups.look_up(bench.request(max_age=0.0))))
        for _ in range(5):
            await asyncio.sleep(0)
        bench.now += 1.0
    assert len(bench.transport.asked) == 3

    await bench.lookups.close()

    assert bench.transport.ended == 3
    await asyncio.gather(*waiting, return_exceptions=True)


# --- replies that are for one call alone: Vary names a field in which the calls of a key may differ


@pytest.mark.parametrize(
    ("vary", "shared"),
    [
        (b"*", False),
        (b"User-Agent", False),
        (b"accept, user-agent", False),
        (b"Accept-Encoding, Accept, Authorization, X-Tenant", True),
    ],
)
async def test_a_reply_that_varies_beyond_the_key_serves_the_call_that_asked_and_no_other(
    vary: bytes, shared: bool
) -> None:
    bench = Bench()
    for state in ("connected", "active", "connected"):
        bench.transport.will(200, document(state), JSON, (b"vary", vary))

    at_once = await asyncio.gather(*(bench.result() for _ in range(2)))
    later = await bench.result()

    values = [result.value for result in (*at_once, later)]
    assert values == (["connected"] * 3 if shared else ["connected", "active", "connected"])
    assert len(bench.transport.asked) == (1 if shared else 3)
    assert bench.store.sizes().readings == shared


async def test_a_revalidation_that_varies_beyond_the_key_makes_nothing_younger() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"etag", b'"1"'))
    bench.transport.will(304, b"", (b"vary", b"*"))
    bench.transport.will(200, document("active"), JSON)
    await bench.result()
    bench.now += 1.5

    assert (await bench.result()).value == "connected"
    assert (await bench.result()).value == "active"


# --- how long what was found may be filled


async def test_two_fields_from_one_slow_reading_cost_one_look_up_and_leave_together() -> None:
    bench = Bench()

    class Slow(Scripted):
        async def send(self, *call: Any, **rest: Any) -> Reply:
            bench.now += 1.5
            return await super().send(*call, **rest)

    transport = Slow()
    bench.lookups._upstream = transport
    transport.will(200, document(), JSON)
    transport.will(200, document("active"), JSON)

    both = await bench.lookups.look_up_all([bench.request(), bench.request(field="held")])

    assert [result.value for result in both.values.values()] == ["connected", "connected"]
    assert len(transport.asked) == 1
    assert await bench.lookups.usable(both)
    assert bench.lookups.usable_without_store(both)


async def test_what_another_call_left_is_never_older_than_max_age_though_it_began_after_this_call() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON)
    request = bench.request()
    bench.now += 0.1
    await bench.result()
    bench.now += 0.9
    found = await bench.lookups.look_up_all([request])
    assert (found.values["state"].source, len(bench.transport.asked)) == ("cache", 1)

    assert bench.lookups.usable_without_store(found)
    bench.now += 0.2
    assert not bench.lookups.usable_without_store(found)


async def test_the_wait_after_a_look_up_counts_from_its_answer_and_not_from_when_the_store_was_told() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON)

    class SlowlyTold(MemoryStore):
        async def put(self, key: Key, reading: Reading) -> bool:
            bench.now += 0.5
            return await super().put(key, reading)

    bench.store = SlowlyTold(100, 2**20, lambda: bench.now)
    bench.lookups._store = bench.store
    found = await bench.lookups.look_up_all([bench.request()])

    assert bench.lookups.usable_without_store(found)
    bench.now += 0.6
    assert not bench.lookups.usable_without_store(found)


# --- what waits in memory while it is read


@dataclass(slots=True)
class Slow:
    """Where a body comes from in two pieces, the second when `go` is set (gateway.upstream.reply.Source)."""

    pieces: list[bytes]
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def more(self, reply: Reply) -> None:
        if len(self.pieces) == 1:
            await self.go.wait()
        reply.arrived(self.pieces.pop(0))
        if not self.pieces:
            reply.finish()

    def taken(self) -> None:
        """Nothing more comes until it is asked for."""

    def abandon(self, reply: Reply) -> None:
        reply.finish()


@pytest.mark.parametrize("size", [UNCOUNTED, UNCOUNTED + 1], ids=["small", "large"])
@pytest.mark.parametrize("leaves", [False, True])
async def test_what_is_read_of_a_large_reply_counts_until_it_is_read(size: int, leaves: bool) -> None:
    budget = BufferBudget(2**20, 1)
    bench = Bench(max_body=2**20, budget=budget)
    slow, reply = Slow([b" " * size, document()]), Reply()
    reply.begin(slow, 200, Fields([JSON]))
    bench.transport.replies.append(reply)
    call = asyncio.ensure_future(bench.result())
    for _ in range(9):
        await asyncio.sleep(0)

    assert budget.held == (size if size > UNCOUNTED else 0)
    if leaves:
        await bench.lookups.close()
        await asyncio.gather(call, return_exceptions=True)
    else:
        slow.go.set()
        assert (await call).value == "connected"
    assert budget.held == 0


async def test_a_large_reply_for_which_there_is_no_room_refuses_the_call_and_leaves_nothing() -> None:
    budget = BufferBudget(UNCOUNTED, 1)
    bench = Bench(max_body=2**20, budget=budget)
    bench.transport.will(200, b" " * UNCOUNTED + document(), JSON)

    with pytest.raises(Overloaded, match=r"limits\.max_buffered"):
        await bench.result()
    assert budget.held == 0


# --- caches in between, members given twice, the look-up's own timeout


async def test_a_reply_that_a_cache_kept_for_longer_than_max_age_is_a_failed_look_up_that_names_it() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"age", b"2"))

    with pytest.raises(LookupFailed, match=r"a cache between .* \(Age: 2\)"):
        await bench.result()


async def test_a_cache_that_names_itself_in_via_is_named_and_no_more_than_that_is_said() -> None:
    bench = Bench()
    via = [(b"via", b"1.1 origin-shield"), (b"via", b"1.1 edge\x80 (" + b"x" * 500 + b")")]
    bench.transport.will(200, document(), JSON, (b"age", b"2"), *via)

    with pytest.raises(LookupFailed, match=r"\(Age: 2; Via: 1\.1 origin-shield, 1\.1 edge.*x\)") as raised:
        await bench.result()
    assert len(raised.value.detail) < 300
    assert raised.value.detail.isascii()


async def test_a_revalidation_that_a_cache_answered_is_as_old_as_it_says() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"etag", b'"1"'))
    bench.transport.will(304, b"", (b"age", b"2"), (b"via", b"1.1 edge"))
    await bench.result()
    bench.now += 1.5

    with pytest.raises(LookupFailed, match=r"\(Age: 2; Via: 1\.1 edge\)"):
        await bench.result()


async def test_the_age_that_a_cache_tells_counts() -> None:
    bench = Bench()
    bench.transport.will(200, document(), JSON, (b"age", b"2"))
    bench.transport.will(200, document(), JSON)

    assert (await bench.result(max_age=3.0)).change(bench.now).record["age_ms"] == 2000
    bench.now += 1.5
    assert (await bench.result(max_age=3.0)).source == "lookup"


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"c1","participants":[{"id":"p1","state":"active","state":"connected"}]}',
        b'{"id":"c1","participants":[{"id":"p1","st\\u0061te":"active", "state" : "connected"}]}',
        b'{"id":"c1","participants":[],"participants":[{"id":"p1","state":"connected"}]}',
        b'{"id":"c1","participants":[{"id":"p1","state":"connected","a":"\\ud800","a":1}]}',
        b'{"id":"c1","a":"\\u003a","participants":[{"id":"p1","state":"active","state":"connected"}]}',
        b'{"id":"c1","a":"\\u0022:","participants":[{"id":"p1","state":"active","state":"connected"}]}',
    ],
)
async def test_a_member_given_twice_is_ambiguous_and_not_the_last_one(body: bytes) -> None:
    bench = Bench()
    bench.transport.will(200, body, JSON)

    assert await bench.lookups.look_up(bench.request()) == Unfilled("state-ambiguous")


async def test_a_look_up_that_takes_too_long_names_its_setting() -> None:
    bench = Bench(Scripted(hangs=True))

    with pytest.raises(ReadTimeout, match=r"lookup_timeout \(0.01 s\)"):
        await bench.result(lookup_timeout=0.01)
    assert bench.transport.ended == 1
