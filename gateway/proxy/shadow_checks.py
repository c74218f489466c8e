"""
What `shadow` would have filled, beside what the upstream reports once the call is over: by one more GET.

A strict upstream refuses the call as it came and says nothing of the state, so its reply tells nothing. The
GET is made when the reply has been relayed, so no client waits for it; never more than AT_ONCE at a time and
A_SECOND in a second, one for each call. What is not known for sure is not compared: where another write came
between, where the GET fails or is not done within the fill's `settle`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from gateway.errors import LookupFailed, NotSent, UpstreamError
from gateway.state.lookup import Lookups
from gateway.state.lookup_results import LookupRefused, LookupRequest
from gateway.state.store import Locks

AT_ONCE: Final = 16
A_SECOND: Final = 50


class ShadowChecks:
    def __init__(
        self,
        lookups: Lookups,
        locks: Locks,
        clock: Callable[[], float],
        counts: Counter[tuple[str, ...]],
    ) -> None:
        self._lookups = lookups
        self._locks = locks
        self._clock = clock
        self._counts = counts
        self._tasks: set[asyncio.Task[None]] = set()
        self._second = 0
        self._begun = 0  # in that second

    def begin(
        self,
        requests: Sequence[LookupRequest],
        expected: Sequence[str],
        tell: Callable[[str | None], None],
    ) -> bool:
        """
        Whether there is room. Then `tell` is called once: `right`, `wrong`, or None where nothing is known.
        `expected` are the values that would have been filled, in the order of the `requests`.
        """
        second = int(self._clock())
        if second != self._second:
            self._second, self._begun = second, 0
        if len(self._tasks) >= AT_ONCE or self._begun >= A_SECOND:
            self._counts["gateway_shadow_lookups_total", "no_room"] += 1
            return False
        self._begun += 1
        task = asyncio.create_task(self._checked(requests, expected, tell))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _checked(
        self,
        requests: Sequence[LookupRequest],
        expected: Sequence[str],
        tell: Callable[[str | None], None],
    ) -> None:
        found, result = None, "failed"
        try:
            async with asyncio.timeout(min(request.target.fill.settle for request in requests)):
                found = await self._read(requests)
            result = "unclear" if found is None else "compared"
        except (TimeoutError, LookupRefused, LookupFailed, UpstreamError, NotSent):
            pass
        finally:
            self._counts["gateway_shadow_lookups_total", result] += 1
            tell(None if found is None else "right" if found == list(expected) else "wrong")

    async def _read(self, requests: Sequence[LookupRequest]) -> list[str] | None:
        conversation = requests[0].key.conversation
        found: list[str] = []
        for request in requests:
            if self._locks.exclusive_pending(conversation):
                return None
            value = await self._lookups.read_after(request)
            if value is None or self._locks.exclusive_pending(conversation):
                return None
            found.append(value)
        return found

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
