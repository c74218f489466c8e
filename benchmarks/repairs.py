"""
What a call costs with `retarget` in the place of `fill`, and with `validate` too: gateways with the rules of
retarget.yaml and validate.yaml, and with the latter without `validate`, by turns, each on processor 0 alone.

    .venv/bin/python -m benchmarks.repairs [--seconds 2] [--rounds 7] [--clients 32]

Clients that keep their connections PATCH without a state, each its own conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
from pathlib import Path
from typing import Any

import uvloop
import yaml

from benchmarks import rig
from benchmarks.tls import Measured, measured

HERE = Path(__file__).parent


def rules(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((HERE / f"{name}.yaml").read_text("utf-8"))["rules"]
    return found


def without_validate() -> list[dict[str, Any]]:
    (rule,) = rules("validate")
    return [rule | {"repairs": [one for one in rule["repairs"] if one["type"] != "validate"]}]


async def main(arguments: argparse.Namespace) -> None:
    configured = {"fill": without_validate(), "retarget": rules("retarget"), "validate": rules("validate")}
    found: dict[str, list[Measured]] = {name: [] for name in configured}
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(rig.folder())
        upstream = stack.enter_context(rig.upstream(work))
        gateways = {}
        for name, chosen in configured.items():
            (folder := work / name).mkdir()
            gateways[name] = stack.enter_context(rig.gateway(folder, upstream, rules=chosen))
        for _ in range(arguments.rounds):
            for name, gateway in gateways.items():
                one = await measured(gateway, None, True, arguments.clients, arguments.seconds)
                found[name].append(one)
    rows = []
    for name, ones in found.items():
        ratios = sorted(
            one.efficiency / plain.efficiency for one, plain in zip(ones, found["fill"], strict=True)
        )
        rate = statistics.median(one.efficiency for one in ones)
        figures = (f"{rate:.0f}", f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}")
        rows.append((name, *figures, ", ".join({one.wrong for one in ones})))
    rig.table(("rules", "calls for each CPU second", "ratio", "of the rounds", "wrong"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=32)
    rig.pinned_off_the_gateway()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(parser.parse_args()))
