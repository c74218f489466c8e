"""
Every order in which the messages of two gateways, of Redis and of the upstream may arrive: what breaks?

    python -m benchmarks.walks beside --fault kill --node 1
    python -m benchmarks.walks apart --fault flush --keep walk.state
    python -m benchmarks.walks apart --fault flush --drawn 10000

It takes minutes to hours. With --keep it goes on where it was when it was ended. A process needs more memory
with each order, and then more time, so a long walk is best made by several, of --seconds each:

    until python -m benchmarks.walks … --keep FILE --seconds 240; [ $? != 3 ]; do :; done
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, cast

import typer

from tests.simulation.walk import CASES, Fault, Walk

SHOWN = 2  # runs of each promise that are told; the rest are counted
KEPT = 60.0  # seconds from one time that it is kept to the next


def main(
    case: Annotated[str, typer.Argument(help=f"One of: {', '.join(CASES)}.")],
    fault: Annotated[str | None, typer.Option(help="kill, pause, lose a reply, restart or flush.")] = None,
    node: Annotated[int, typer.Option(help="Which gateway it befalls, 0 or 1.")] = 0,
    cold: Annotated[bool, typer.Option(help="Nothing was read before.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="A file of its own, read again as it is: trust it.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Ends after so long, with what it has.")] = None,
    drawn: Annotated[int | None, typer.Option(help="So many orders drawn at random instead.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Exit status 1 when a promise was broken; 3 when it was not walked to the end."""
    if drawn is not None and keep is not None:
        raise typer.BadParameter("it is for a walk of all orders: with --drawn there is nothing to keep")
    logging.disable(logging.CRITICAL)
    walk = Walk(replace(CASES[case], fault=cast(Fault | None, fault), node=node, warm=not cold))
    broken: Counter[str] = Counter()
    if keep is not None and keep.exists():
        walk.found, broken = pickle.loads(keep.read_bytes())
        print(f"goes on after {walk.found.runs:,} orders")
    gc.collect()
    gc.freeze()
    began = told = time.monotonic()
    for run in walk.runs() if drawn is None else islice(walk.drawn(Random(seed)), drawn):
        for violation in run.broken:
            broken[violation.promise] += 1
            if broken[violation.promise] <= SHOWN:
                print(*run.story, violation, sep="\n")
        now = time.monotonic()
        over = seconds is not None and now - began > seconds
        if over or now - told > KEPT:
            told = now
            print(f"{walk.found.runs:,} orders, {dict(broken)}", flush=True)
            if keep is not None:
                new = keep.with_suffix(".new")
                new.write_bytes(pickle.dumps((walk.found, broken)))
                os.replace(new, keep)
        if over:
            raise typer.Exit(3)
    found = walk.found
    which = "all" if drawn is None else "drawn:"
    print(
        f"{which} {found.runs:,} orders, of {found.longest} steps at most; {found.cut:,} cut; {dict(broken)}"
    )
    raise typer.Exit(1 if broken else 0)


if __name__ == "__main__":
    typer.run(main)
