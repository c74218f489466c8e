"""A large write is whole before it takes its conversation's lock: a slow client holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, ClassVar

import pytest

from gateway.backend import Parts
from gateway.proxy.spool import Spools
from tests.support.calls import PATCH
from tests.support.gateways import CONVERSATION, Proxied, proxied
from tests.support.judging import refusal
from tests.support.processes import gateway_process
from tests.support.raw_upstream import OK, RawUpstream, answering
from tests.support.serving import connect
from tests.support.waiting import until

BODY = bytes(range(256)) * 4 * 300  # more than one block on disk
LIMITS = {"max_body": 1024, "max_write": "1MiB"}
HEAD = b"POST %b/zzz HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer other\r\n" % CONVERSATION.encode()
LENGTH = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def fills_are_served(chain: Proxied) -> None:
    for _ in range(3):
        await chain.client.send(PATCH)
        assert (await chain.client.reply())[0] == 200


def writes(chain: Proxied) -> list[bytes]:
    return [request.body for request in chain.requests if request.target.endswith(b"/zzz")]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_slow_large_write_holds_no_lock_and_arrives_whole_and_framed_as_it_was(chunked: bool) -> None:
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    async with proxied(limits=LIMITS, rule={"on_lookup_failure": "forward"}) as chain:
        async with connect(chain.running.port) as slow:
            await slow.send((CHUNKED if chunked else LENGTH) + whole[:200_000])
            await fills_are_served(chain)
            assert writes(chain) == []
            await slow.send(whole[200_000:])
            assert (await slow.reply())[0] == 200
        assert writes(chain) == [BODY]
        (sent,) = [request for request in chain.requests if request.target.endswith(b"/zzz")]
        names = {name for name, _ in sent.headers}
        assert (b"transfer-encoding" in names, b"content-length" in names) == (chunked, not chunked)


async def test_a_chunked_write_past_a_callers_share_of_memory_waits_on_disk_all_the_same() -> None:
    limits = {"max_body": "64KiB", "max_buffered": "256KiB"}
    async with proxied(limits=limits) as chain:
        await chain.client.send(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert (await chain.client.reply())[0] == 200
        assert writes(chain) == [BODY]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_write_past_max_write_is_413_and_nothing_was_sent(chunked: bool) -> None:
    async with proxied(limits=LIMITS | {"max_write": 200_000}) as chain:
        await chain.client.send(CHUNKED + b"%x\r\n%b\r\n" % (len(BODY), BODY) if chunked else LENGTH)
        reply = await chain.client.reply()
        assert refusal(reply)[:2] == (413, "body-too-large")
        assert b"limits.max_write" in reply[2]
        assert chain.requests == []


@pytest.mark.parametrize("first", [b"x", BODY[:200_000]])
async def test_a_write_that_is_trickled_ends_at_its_deadline(first: bytes) -> None:
    async with proxied(limits=LIMITS | {"upload_timeout": "300ms"}) as chain:
        async with connect(chain.running.port) as slow:
            await slow.send(CHUNKED + b"%x\r\n%b\r\n" % (len(first), first))

            async def drip() -> None:
                while True:
                    await asyncio.sleep(0.02)
                    await slow.send(b"1\r\nx\r\n")

            dripping = asyncio.create_task(drip())
            reply = await slow.reply()
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            assert refusal(reply)[:2] == (408, "body-timeout")
            assert b"limits.upload_timeout" in reply[2]
        assert chain.requests == []


async def test_a_client_that_leaves_amid_its_large_write_leaves_nothing_and_gives_its_place_back() -> None:
    async with proxied(limits=LIMITS, rule={"on_lookup_failure": "forward"}) as chain:
        for _ in range(6):  # more than one caller has places
            async with connect(chain.running.port) as slow:
                await slow.send(LENGTH + BODY[:200_000])
                await fills_are_served(chain)
        assert writes(chain) == []
        await chain.client.send(LENGTH + BODY)
        assert (await chain.client.reply())[0] == 200
        assert writes(chain) == [BODY]


@pytest.mark.parametrize(
    "target", [b"/a%2Fb", b"/api/v2/conversations/callbacks/bulk/disconnect"], ids=["undecodable", "bulk"]
)
async def test_a_client_that_leaves_amid_a_write_that_names_no_conversation_makes_nothing_forgotten(
    target: bytes,
) -> None:
    size = 70_000
    call = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (target, size)
    async with proxied(limits=LIMITS | {"max_body": 4096}) as chain:
        async with connect(chain.running.port) as leaver:
            await leaver.send(call + b"x" * (size - 1))
            await until(lambda: chain.running.gateway.stats.in_flight)
        await until(lambda: not chain.running.gateway.stats.in_flight)
        assert chain.upstream.peers == []
        assert chain.running.counts("gateway_sweeps_total") == 0
        await chain.client.send(call + b"x" * size)
        assert (await chain.client.reply())[0] == 200
        assert chain.running.counts("gateway_sweeps_total") == 1


def open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


def full() -> IO[bytes]:
    return open("/dev/full", "r+b", buffering=0)


def nowhere() -> IO[bytes]:
    return tempfile.TemporaryFile(dir="/nowhere", buffering=0)


@pytest.mark.parametrize(
    ("opened", "why"), [(full, "No space left on device"), (nowhere, "No such file or directory")]
)
async def test_where_the_disk_takes_nothing_a_large_write_is_refused_and_nothing_is_left(
    opened: Callable[[], IO[bytes]], why: str
) -> None:
    parts = Parts(spools=partial(Spools, opened=opened))
    async with proxied(limits=LIMITS, rule={"on_lookup_failure": "forward"}, parts=parts) as chain:
        for _ in range(6):  # more than one caller has places
            async with connect(chain.running.port) as client:
                await client.send(LENGTH + BODY)
                status, headers, body = await client.reply()
                answer = json.loads(body)
                assert (status, answer["code"], answer["detail"]) == (
                    503,
                    "gateway.spool-failed",
                    f"the temporary file failed: {why}",
                )
                assert "TMPDIR" in answer["advice"]
                assert b"retry-after" not in headers
        assert len(chain.running.gateway.spools) == 0
        await until(lambda: "/dev/full" not in open_files())
        assert chain.requests == []
        await fills_are_served(chain)


async def test_a_disk_that_takes_a_part_of_a_block_is_full_too(tmp_path: Path) -> None:
    """By the kernel's own limit, in a process of its own."""
    async with (
        RawUpstream(answering(OK)) as upstream,
        gateway_process(tmp_path, upstream.url, file_size=400_000, limits=LIMITS) as running,
        running.client() as client,
    ):
        answer = await client.post(f"{CONVERSATION}/zzz", content=BODY * 2)
        assert (answer.status_code, answer.json()["code"]) == (503, "gateway.spool-failed")
        assert "File too large" in answer.json()["detail"]
        assert upstream.requests == []
        assert (await client.post(f"{CONVERSATION}/zzz", content=BODY)).status_code == 200
        assert [request.body for request in upstream.requests] == [BODY]


class Worn(io.FileIO):
    """Takes all, and gives back its first block."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().read(size)


async def test_a_file_that_cannot_be_read_to_its_end_breaks_off_what_was_begun_and_says_so(
    tmp_path: Path,
) -> None:
    parts = Parts(spools=partial(Spools, opened=lambda: Worn(tmp_path / "body", "w+")))
    async with proxied(limits=LIMITS, parts=parts) as chain:
        await chain.client.send(LENGTH + BODY)
        reply = await chain.client.reply()
        assert refusal(reply)[:2] == (502, "request-broken-off")
        assert b"Nothing was sent" not in reply.body
        assert b"retry-after" not in reply.headers
        assert writes(chain) == []
        await until(lambda: not chain.running.pool.size)


class Told(io.FileIO):
    """Where it is closed."""

    threads: ClassVar[list[str]] = []

    def close(self) -> None:
        if not self.closed:
            self.threads.append(threading.current_thread().name)
        super().close()


async def test_a_file_is_closed_in_a_thread(tmp_path: Path) -> None:
    Told.threads.clear()
    parts = Parts(spools=partial(Spools, opened=lambda: Told(tmp_path / "body", "w+")))
    async with proxied(limits=LIMITS, parts=parts) as chain:
        await chain.client.send(LENGTH + BODY)
        assert (await chain.client.reply())[0] == 200
        await until(lambda: Told.threads)
        assert Told.threads[0].startswith("spool")


async def test_no_thread_is_left_when_the_gateway_has_closed() -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("spool")]

    before = len(threads())
    async with proxied(limits=LIMITS) as chain:
        await chain.client.send(LENGTH + BODY)
        assert (await chain.client.reply())[0] == 200
        assert len(threads()) > before
    await until(lambda: len(threads()) <= before)


async def test_one_caller_takes_no_more_than_its_share_of_the_places_on_disk() -> None:
    async with proxied(limits=LIMITS, rule={"on_lookup_failure": "forward"}) as chain:
        slow = [connect(chain.running.port) for _ in range(4)]
        clients = [await one.__aenter__() for one in slow]
        for client in clients:
            await client.send(LENGTH + BODY[:2000])
        await fills_are_served(chain)
        await chain.client.send(LENGTH.replace(b"other", b"third") + BODY)
        assert (await chain.client.reply())[0] == 200
        await chain.client.send(LENGTH)
        assert refusal(await chain.client.reply())[:2] == (503, "overloaded")
        for one in slow:
            await one.__aexit__(None, None, None)
