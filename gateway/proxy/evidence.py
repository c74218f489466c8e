"""
What an upstream sent that was no reply: on the log under the request's id, and nowhere else (O2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Final

from gateway.errors import GatewayError

QUOTED: Final = 200  # bytes
INTERVAL: Final = 1.0  # seconds between two lines

log = logging.getLogger("gateway")


class EvidenceLog:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged = -inf
        self._left_out = 0

    def tell(self, error: GatewayError, request_id: str) -> None:
        """One line an error, however many calls it fails, and one a second, with how many came between."""
        evidence, error.evidence = error.evidence, b""
        if not evidence:
            return
        now = self._clock()
        if now - self._logged < INTERVAL:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._logged, self._left_out = now, 0
        said = evidence[:QUOTED].decode("latin-1").encode("unicode_escape").decode("ascii")
        log.warning("request %s: %s: %s: '%s'%s", request_id, error.slug(), error.detail, said, more)
