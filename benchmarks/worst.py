"""The loop's time that the worst bodies and readings cost: `python -m benchmarks.worst`."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gateway.errors import GatewayError
from gateway.http.headers import Header
from gateway.repairs import diagnose, select
from gateway.state.lookup import _document
from tests.support.nasty import nasty_objects
from tests.support.repairing import built, called

QUERY = "$.a[?@.id == _.p].state"


def milliseconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    with suppress(GatewayError):
        call()
    return (time.perf_counter() - began) * 1000


def indexed(usual: select.Listed, body: bytes) -> None:
    usual.index(_document(body))


def main() -> None:
    by = built()
    charset: Header = (b"content-type", b"text/plain; charset=iso-2022-jp")
    coding: Header = (b"content-encoding", b"gzip")
    usual = select.listed(QUERY)
    assert usual is not None
    print(f"{'ms':>30} {'plain':>7} {'packed':>7} {'read':>7}")
    for name, body in nasty_objects():
        packed = gzip.compress(body)
        times = (
            milliseconds(partial(diagnose, called(body), by)),
            milliseconds(partial(diagnose, called(packed, charset, coding), by)),
            milliseconds(partial(indexed, usual, body)),
        )
        print(f"{name:>30} " + " ".join(f"{one:7.1f}" for one in times))


if __name__ == "__main__":
    main()
