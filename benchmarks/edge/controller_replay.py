"""The controller on recorded uplinks, replayed without a network: what it loses to the best.

    python benchmarks/edge/controller_replay.py --link TRACE.csv 4g 5g [--offsets 40] [--steps 300]

A link is a recorded trace or a link profile's name. The edge's own controller
(`optimizer.policy.level_control`) over the simulator's link model (`optimizer.simulate.links`),
from many starting points. A step's bytes are those of SmolLM2-135M's rungs at split 10; both sides
compute for `--local-ms`, give or take a tenth. The deadline is, at each start, the time in which
`--lossless-share` of the lossless steps are answered. Beside the controller: always the plan's
level, and always the smallest, which no rule can beat but by the steps that its own waits move.
Counted too: moves, and moves up that the next one took back (swings). Simulated; JSON last.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from hwprofiles.links.catalog import load_link
from hwprofiles.links.schedule import read_trace
from hwprofiles.links.shape import LinkShape
from optimizer.policy.level_control import Controller, Rung
from optimizer.simulate.links import OwnLane
from protos.sizes import ONE_ROW_OVERHEAD_BYTES

# Bytes a row, measured with `benchmarks/edge/lte_deadline.py` and `splitpoint certify` at split 10.
RUNGS: Final = tuple(
    Rung(name=name, bytes_per_row=size)
    for name, size in (
        ("lossless", 1919.0),
        ("q1", 255.0),
        ("q2", 167.0),
        ("q3", 113.0),
        ("q4", 50.0),
        ("q5", 10.0),
    )
)
FIRST: Final = 2  # the plan's level, q2
ANSWER_BYTES: Final = 60


class Replay(NamedTuple):
    """One generation: each step's seconds, the rung it went at, and how it ended."""

    steps_s: list[float]
    rungs: list[int]
    moves: list[str]
    gave_up: bool


class Link:
    """Both lanes of a link from one moment of its trace on; steps in turn, each its own message."""

    def __init__(self, shape: LinkShape, origin_s: float, local_s: float, seed: int) -> None:
        self._up = OwnLane(shape.up, shape.up.rate, origin_s)
        self._down = OwnLane(shape.down, shape.down.rate, origin_s)
        self._local_s = local_s
        self._rng = random.Random(seed)
        self.now_s = 0.0

    def step(self, num_bytes: int) -> tuple[float, float]:
        """Seconds of a step, and of its wire."""
        edge_s, cloud_s = (
            self._local_s * share * self._rng.uniform(0.9, 1.1) for share in (0.3, 0.7)
        )
        started_s = self.now_s
        arrived_s = self._up.arrival_s(started_s + edge_s, num_bytes)
        self.now_s = self._down.arrival_s(arrived_s + cloud_s, ANSWER_BYTES)
        step_s = self.now_s - started_s
        return step_s, step_s - edge_s - cloud_s


def fixed(link: Link, rung: int, num_steps: int) -> list[float]:
    num_bytes = ONE_ROW_OVERHEAD_BYTES + int(RUNGS[rung].bytes_per_row)
    return [link.step(num_bytes)[0] for _ in range(num_steps)]


def controlled(link: Link, deadline_s: float, num_steps: int) -> Replay:
    controller = Controller(deadline_s=deadline_s, rungs=RUNGS[FIRST:])
    state = controller.begin()
    run = Replay([], [], [], False)
    for _ in range(num_steps):
        rung = FIRST + state.rung
        num_bytes = ONE_ROW_OVERHEAD_BYTES + int(RUNGS[rung].bytes_per_row)
        step_s, wire_s = link.step(num_bytes)
        run.steps_s.append(step_s)
        run.rungs.append(rung)
        if step_s > controller.stall_s:
            return run._replace(gave_up=True)
        state = controller.after(state, step_s=step_s, wire_s=wire_s, uplink_bytes=num_bytes)
        if state.stop:
            return run._replace(gave_up=True)
        if state.reason:
            run.moves.append(state.reason)
    return run


def swings(moves: Sequence[str]) -> int:
    """Moves up that the next move took back."""
    return sum(
        first.startswith("up") and then.startswith("down") for first, then in pairwise(moves)
    )


def shape_of(link: str, rtt_s: float) -> LinkShape:
    if link.endswith(".csv"):
        return LinkShape.from_trace(read_trace(link), rtt_s=rtt_s)
    return load_link(link).shape()


def replay(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    shape = shape_of(name, arguments.rtt_ms / 1e3)
    rng = random.Random(arguments.seed)
    rows: list[dict[str, float]] = []
    for index in range(arguments.offsets):
        origin_s = 0.0 if index == 0 else rng.uniform(0, shape.up.rate.period_s)

        def link(origin_s: float = origin_s, index: int = index) -> Link:
            return Link(shape, origin_s, arguments.local_ms / 1e3, index)

        lossless = fixed(link(), 0, arguments.steps)
        deadline_s = float(np.quantile(lossless, arguments.lossless_share))
        run = controlled(link(), deadline_s, arguments.steps)
        row = {
            name: float(np.mean(np.array(fixed(link(), rung, arguments.steps)) <= deadline_s))
            for rung, name in ((FIRST, "plan_level"), (len(RUNGS) - 1, "smallest"))
        }
        rows.append(
            {
                **row,
                "controller": float(np.mean(np.array(run.steps_s) <= deadline_s)),
                "steps": len(run.steps_s),
                "gave_up": run.gave_up,
                "moves": len(run.moves),
                "swings": swings(run.moves),
                "mean_rung": float(np.mean(run.rungs)),
                "deadline_ms": 1e3 * deadline_s,
            }
        )
    return {
        "link": Path(name).stem,
        "offsets": len(rows),
        "from_the_beginning": rows[0],
        "mean": {key: float(np.mean([row[key] for row in rows])) for key in rows[0]},
        "lost_to_smallest": {
            str(quantile): float(
                np.quantile([row["smallest"] - row["controller"] for row in rows], quantile)
            )
            for quantile in (0.5, 0.9, 1.0)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--link", nargs="+", required=True)
    parser.add_argument("--offsets", type=int, default=40)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    parser.add_argument("--local-ms", type=float, default=9.5)
    parser.add_argument("--lossless-share", type=float, default=0.68)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = [replay(link, arguments) for link in arguments.link]
    for row in found:
        mean = row["mean"]
        print(
            f"{row['link']:>24}: in time {100 * mean['controller']:.1f} %, "
            f"always the smallest {100 * mean['smallest']:.1f}, "
            f"q2 fixed {100 * mean['plan_level']:.1f}; "
            f"{mean['moves']:.1f} moves, {mean['swings']:.2f} swings, "
            f"mean rung {mean['mean_rung']:.2f}, gave up {100 * mean['gave_up']:.0f} %",
            file=sys.stderr,
        )
    print(
        json.dumps({"command": " ".join(["python", *sys.argv]), "simulated": True, "links": found})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
