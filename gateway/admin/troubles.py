"""
What goes wrong for a while is told twice: when it begins, with its cause, and when it is over, with its cost.

A trouble is over when nothing of its kind has happened for QUIET seconds, so that one that comes and goes
does not fill the log; the upstream's only once it has answered since. The audit log says itself when it is
well again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from msgspec import Struct

from gateway import errors
from gateway.admin.log_lines import printable
from gateway.errors import GatewayError

QUIET: Final = 5.0
MAX_DETAIL: Final = 300  # characters of what an error says of itself

# With what calls end when the upstream is to blame.
OF_THE_UPSTREAM: Final[dict[type[GatewayError], str]] = {
    errors.ConnectionRefused: "connections are refused",
    errors.NameNotResolved: "its name is not resolved",
    errors.TlsFailed: "TLS fails",
    errors.ConnectTimeout: "no connection in time",
    errors.ReadTimeout: "no answer in time",
    errors.DeadlineExceeded: "calls are not done in time",
    errors.PoolExhausted: "no connection comes free",
    errors.NoDescriptor: "no file descriptor is left for it",
    errors.ConnectionTerminated: "it closes connections before it answers",
    errors.InvalidReply: "its replies are not HTTP",
}

log = logging.getLogger("gateway")


@runtime_checkable
class Answers(Protocol):
    """A transport that tells when the upstream has answered."""

    on_reply: Callable[[], None] | None


class Trouble(Struct, eq=False):
    """`calls` that it failed; `good`: since when nothing speaks for it, None while something does."""

    cause: str
    began: float
    calls: int = 0
    good: float | None = None


class Troubles:
    """
    Everything but the audit log's turns is told while a loop runs. `refusals` counts all that were refused
    for overload, `held_back` the look-ups that a pause did. Without `answers` nobody tells of replies.
    """

    def __init__(
        self,
        upstream: str,
        clock: Callable[[], float],
        *,
        refusals: Callable[[], int],
        held_back: Callable[[], int],
        answers: Answers | None,
        quiet: float = QUIET,
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._refusals = refusals
        self._held_back = held_back
        self._answers = answers
        self._quiet = quiet
        self._failing: dict[type[GatewayError], Trouble] = {}
        self._overload: Trouble | None = None
        self._refused = 0  # when it was last looked at
        self._pause: Trouble | None = None
        self._paused_until = 0.0
        self._audit: Trouble | None = None
        self._timers: set[asyncio.TimerHandle] = set()

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def refused(self, error: GatewayError) -> None:
        """A call ended with this error."""
        cause = OF_THE_UPSTREAM.get(type(error))
        if cause is not None:
            self._upstream_failed(cause, error)
        elif isinstance(error, errors.Overloaded):
            self._overloaded(error)
        elif isinstance(error, errors.Unrecordable) and self._audit is not None:
            self._audit.calls += 1

    # --- the upstream

    def _upstream_failed(self, cause: str, error: GatewayError) -> None:
        kind = type(error)
        trouble = self._failing.get(kind)
        if trouble is None:
            trouble = self._failing[kind] = Trouble(cause, self._clock())
            said = printable(error.detail[:MAX_DETAIL])
            log.warning(
                "upstream %s fails: %s (%s): %s. %s", self._upstream, cause, kind.slug(), said, kind.advice
            )
        trouble.calls += 1
        trouble.good = None
        if self._answers is None:
            self.answered()
        else:
            self._answers.on_reply = self.answered

    def answered(self) -> None:
        """The upstream: while it fails, and until that is over."""
        now = self._clock()
        for trouble in self._failing.values():
            if trouble.good is None:
                trouble.good = now
        if self._answers is not None:
            self._answers.on_reply = None
        self._later(self._quiet, self._look_at_upstream)

    def _look_at_upstream(self) -> None:
        now = self._clock()
        for kind, trouble in list(self._failing.items()):
            if trouble.good is not None and now - trouble.good >= self._quiet:
                del self._failing[kind]
                log.warning(
                    "upstream %s answers again: %s (%s) failed %d calls, for %.1f s",
                    self._upstream,
                    trouble.cause,
                    kind.slug(),
                    trouble.calls,
                    trouble.good - trouble.began,
                )

    # --- overload

    def _overloaded(self, error: GatewayError) -> None:
        if self._overload is None:
            self._overload = Trouble(error.detail, self._clock(), self._refusals() - 1)
            self._refused = self._refusals()
            log.warning("overload begins: %s", printable(error.detail[:MAX_DETAIL]))
            self._later(self._quiet, self._look_at_overload)

    def _look_at_overload(self) -> None:
        refused, trouble = self._refusals(), self._overload
        if trouble is None:
            return
        if refused > self._refused:
            self._refused = refused
            self._later(self._quiet, self._look_at_overload)
            return
        self._overload = None
        lasted = self._clock() - trouble.began - self._quiet
        log.warning("overload is over: %d were refused, in %.1f s", refused - trouble.calls, max(0.0, lasted))

    # --- look-ups that a 429 paused

    def paused(self, seconds: float) -> None:
        now = self._clock()
        self._paused_until = max(self._paused_until, now + seconds)
        if self._pause is None:
            self._pause = Trouble("429", now, self._held_back())
            log.warning("look-ups are paused for %g s: the upstream answered one with 429", seconds)
            self._later(seconds, self._look_at_pause)

    def _look_at_pause(self) -> None:
        left, trouble = self._paused_until - self._clock(), self._pause
        if trouble is None:
            return
        if left > 0:
            self._later(left, self._look_at_pause)
            return
        self._pause = None
        held = self._held_back() - trouble.calls
        log.warning("look-ups go on: %d were held back, in %.1f s", held, self._clock() - trouble.began)

    # --- the audit log

    def audit_turned(self, problem: str | None, lost: int) -> None:
        """It begins to fail, or is well again, having lost so many lines that may be lost."""
        if problem is not None:
            self._audit = Trouble(problem, self._clock())
            log.error("%s: calls that need a rewrite will be refused", printable(problem))
        elif self._audit is not None:
            trouble, self._audit = self._audit, None
            log.warning(
                "the audit log is written again: %d calls were refused and %d lines lost, in %.1f s",
                trouble.calls,
                lost,
                self._clock() - trouble.began,
            )

    def _later(self, seconds: float, look: Callable[[], None]) -> None:
        def now() -> None:
            self._timers.discard(timer)
            look()

        timer = asyncio.get_running_loop().call_later(max(0.0, seconds) + 0.001, now)
        self._timers.add(timer)
