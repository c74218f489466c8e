"""
What the supervisor and one worker ask of each other, over a pair of sockets that nobody else has.

A message is its length and then JSON: a number, what is asked for, and with what; the answer has the number
and no question. That the other end is closed is how each learns of the other's death, SIGKILL included.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, Final, TypeAlias

import msgspec

MOST: Final = 64 * 2**20  # bytes of one message; all that is said is bounded far below
Answer: TypeAlias = Callable[[Any], Awaitable[Any]]


class NoAnswerFromThere(Exception):
    """The other end is gone, or did not answer in time."""


async def receive(reader: asyncio.StreamReader) -> Any:
    """Raises IncompleteReadError when the other end is closed."""
    size = int.from_bytes(await reader.readexactly(4))
    if size > MOST:
        raise asyncio.IncompleteReadError(b"", size)
    return msgspec.json.decode(await reader.readexactly(size))


class Channel:
    """`answers` has what this end answers to what the other asks for."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: Mapping[str, Answer],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answers = answers
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.closed = False

    def begin(self, said: Any) -> None:
        """The first message, which `receive` takes there, and no question."""
        self._send(said)

    async def ask(self, what: str, said: Any = None, seconds: float = 5.0) -> Any:
        """Raises NoAnswerFromThere."""
        if self.closed:
            raise NoAnswerFromThere("it has ended")
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send([number, what, said])
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError as error:
            raise NoAnswerFromThere(f"no answer in {seconds:g} s") from error
        finally:
            del self._waiting[number]

    def tell(self, what: str, said: Any = None) -> None:
        """Nobody waits for an answer."""
        self._send([0, what, said])

    def _send(self, message: Any) -> None:
        if not self._writer.is_closing():
            encoded = msgspec.json.encode(message)
            self._writer.write(len(encoded).to_bytes(4) + encoded)

    async def serve(self) -> None:
        """Until the other end is closed."""
        try:
            while True:
                number, what, said = await receive(self._reader)
                if what is None:
                    answer = self._waiting.get(number)
                    if answer is not None and not answer.done():
                        answer.set_result(said)
                    continue
                task = asyncio.create_task(self._answer(number, what, said))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.close()

    async def _answer(self, number: int, what: str, said: Any) -> None:
        answer = await self._answers[what](said)
        if number:
            self._send([number, None, answer])

    async def end(self) -> None:
        """When the other end has what was told, or is gone."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def close(self) -> None:
        self.closed = True
        self._writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(NoAnswerFromThere("it has ended"))
