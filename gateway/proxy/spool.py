"""
Large bodies of writes, on disk while they come in: no lock on a conversation is held while a client sends.

Files are anonymous: they end with the process, whatever ends it. They are read and written in threads of
their own, a block at a time, so that a slow disk holds up nothing but the bodies that are on it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

from gateway.errors import BodyTimeout, BodyTooLarge, Overloaded, RequestBrokenOff, SpoolFailed
from gateway.proxy.client import Client

BLOCK = 256 * 1024  # bytes that are written or read in one step

Given = TypeVar("Given")
Result = TypeVar("Result")


class Spool:
    """One body on disk. The file is closed when no thread is at it any more."""

    def __init__(
        self, threads: ThreadPoolExecutor, opened: Callable[[], IO[bytes]], closed: Callable[[], None]
    ) -> None:
        self._threads = threads
        self._opened = opened
        self._closed: Callable[[], None] | None = closed
        self._file: IO[bytes] | None = None
        self._size = 0
        self._step: asyncio.Future[object] | None = None

    async def fill(self, pieces: AsyncIterator[bytes], limit: int) -> None:
        """Raises BodyTooLarge past so many bytes, and SpoolFailed."""
        block = bytearray()
        async for piece in pieces:
            self._size += len(piece)
            if self._size > limit:
                raise BodyTooLarge(f"the body is longer than limits.max_write, {limit} bytes")
            block += piece
            if len(block) >= BLOCK:
                await self._in_thread(self._write, bytes(block))
                block.clear()
        await self._in_thread(self._write, bytes(block))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises RequestBrokenOff."""
        offset = 0
        while offset < self._size:
            try:
                piece = await self._in_thread(self._read, offset)
            except SpoolFailed as error:  # what was sent of it, the upstream has
                raise RequestBrokenOff(error.detail) from error
            offset += len(piece)
            yield piece

    def close(self) -> None:
        closed, self._closed = self._closed, None
        if closed is None:
            return
        closed()
        if self._step is not None and not self._step.done():
            self._step.add_done_callback(lambda _: self._close_file())
        else:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is None:
            return
        try:
            self._threads.submit(self._file.close)  # which takes 10 ms where much was written
        except RuntimeError:  # the threads have ended, and the process is about to
            self._file.close()

    async def _in_thread(self, step: Callable[[Given], Result], argument: Given) -> Result:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, step, argument)
        self._step = running  # type: ignore[assignment]
        try:
            return await asyncio.shield(running)  # a cancelled call leaves the thread at the file
        except OSError as error:
            raise SpoolFailed(f"the temporary file failed: {error.strerror or error}") from error

    def _write(self, block: bytes) -> None:
        if self._file is None:
            self._file = self._opened()
        left = memoryview(block)
        while left:
            left = left[self._file.write(left) :]

    def _read(self, offset: int) -> bytes:
        assert self._file is not None
        self._file.seek(offset)
        return self._file.read(BLOCK)


def unnamed_file() -> IO[bytes]:
    return tempfile.TemporaryFile(buffering=0)


class Spools:
    def __init__(
        self,
        *,
        max_body: int,
        max_write: int,
        timeout: float,
        limit: int = 16,
        share: int = 4,
        opened: Callable[[], IO[bytes]] = unnamed_file,
    ) -> None:
        """
        `max_body`: bytes that are kept in memory; `max_write`: that may come at all, in `timeout` seconds.
        `limit` bodies are on disk at a time, and no more than `share` of one caller. `opened` makes a file
        that is gone once it is closed; it is called in a thread.
        """
        self._max_body = max_body
        self._max_write = max(max_write, max_body)
        self._timeout = timeout
        self._limit = limit
        self._share = share
        self._open: Counter[str] = Counter()
        self._opened = opened
        self._threads = ThreadPoolExecutor(2, "spool")

    def __len__(self) -> int:
        return self._open.total()

    def close(self) -> None:
        """Ends the threads, when all files are closed. One that a disk keeps waiting is not waited for."""
        self._threads.shutdown(wait=False)

    async def read(self, client: Client, caller: str) -> Spool | None:
        """The whole body: into memory, or if it is large into the spool that is returned, to be closed."""
        if client.read_at_once():
            return None
        length = int(client.field(b"content-length") or b"0")
        if length > self._max_write:
            raise BodyTooLarge(f"the body has {length} bytes, limits.max_write is {self._max_write}")
        try:
            async with asyncio.timeout(self._timeout):
                if length <= self._max_body and await client.read_ahead(self._max_body):
                    return None
                return await self._filled(client, caller)
        except TimeoutError as error:
            said = f"it took longer than limits.upload_timeout ({self._timeout:g} s)"
            raise BodyTimeout(said) from error

    async def _filled(self, client: Client, caller: str) -> Spool:
        if len(self) >= self._limit or self._open[caller] >= self._share:
            raise Overloaded("too many large bodies wait on disk")
        self._open[caller] += 1
        spool, full = Spool(self._threads, self._opened, lambda: self._closed(caller)), False
        try:
            await spool.fill(client.pieces(), self._max_write)
            full = True
        finally:
            if not full:
                spool.close()
        client.spooled(spool.pieces)
        return spool

    def _closed(self, caller: str) -> None:
        self._open[caller] -= 1
        self._open = +self._open
