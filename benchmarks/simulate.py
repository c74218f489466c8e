"""
The gateway in virtual time against an eventually consistent upstream, one schedule a seed: what breaks?

    python -m benchmarks.simulate --schedules 100000
    python -m benchmarks.simulate --variant retarget --seed 4711 --schedules 1 --trace
    python -m benchmarks.simulate --mutant "no locks"
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Annotated

import typer

from tests.simulation.drawing import draw
from tests.simulation.mutants import MUTANTS, UNCHANGED
from tests.simulation.promises import Evidence, broken
from tests.simulation.story import story
from tests.simulation.variants import TWO, VARIANTS, examined

SHOWN = 20  # violations that are printed; the rest are counted


def main(
    schedules: Annotated[int, typer.Option(help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(help="The first one's seed; the others follow.")] = 0,
    trace: Annotated[bool, typer.Option(help="Tell each schedule as it went.")] = False,
    mutant: Annotated[str | None, typer.Option(help=f"One of: {'; '.join(MUTANTS)}.")] = None,
    variant: Annotated[str | None, typer.Option(help=f"One of: {'; '.join([*VARIANTS, TWO])}.")] = None,
) -> None:
    """Exit status 1 when a promise was broken."""
    figures: Counter[str] = Counter()
    violations = 0
    began = time.perf_counter()
    for number in range(seed, seed + schedules):
        without = UNCHANGED if mutant is None else MUTANTS[mutant]
        if variant is not None:
            histories, found = examined(variant, number, without)
        else:
            histories = [without.world(draw(number)).run()]
            found = broken(histories[0])
        if trace:
            print("\n".join(line for history in histories for line in story(history)))
        for violation in found:
            violations += 1
            if violations <= SHOWN:
                print(f"seed {number}: {violation}")
        figures.update(histories[0].counts)  # of both upstreams
        for history in histories:
            evidence = Evidence(history)
            figures["fills"] += len(evidence.fills)
            figures["moved"] += len(evidence.moved)
            figures["harmed"] += sum(
                name in sent.changed
                for sent in history.ledger
                for name, _ in evidence.added.get(sent.number, ())
            )
    took = time.perf_counter() - began
    patches = figures["gateway_forwards_total yes"] + figures["gateway_forwards_total no"]
    print(f"schedules          {schedules} in {took:.1f} s, {took / schedules * 1000:.2f} ms each")
    print(f"PATCHes sent       {patches}, with {figures['fills']} members filled")
    if figures["moved"]:
        print(f"sent elsewhere     {figures['moved']}")
    print(f"GETs per 1000      {figures['gateway_lookups_total sent'] / max(patches, 1) * 1000:.0f}")
    print(
        f"fills that changed {figures['harmed'] / max(figures['fills'], 1) * 1000:.0f} in 1000: not prevented"
    )
    for name in sorted(figures.keys() - {"fills", "moved", "harmed", "gateway_lookups_total sent"}):
        print(f"  {name:48} {figures[name]}")
    print(f"violations         {violations}")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    typer.run(main)
