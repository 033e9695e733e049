"""How long planning takes, and planning anew when only the link changed. JSON last.

    python benchmarks/planning/plan_speed.py [--repeats 5]

80 layers (Llama 3.1 70B's shape) x 4 front bits x 3 back bits x 3 KV bits x 8 levels x 6 chunks,
at 131,072 tokens; every limit is set, so that everything has to be computed. The server's memory
is widened until the longest sequence fits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from typing import Any

from hwprofiles.links.catalog import link_names, load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.specs import load_spec
from optimizer.cost.levels import DEFAULT_LEVELS, EXTRA_LEVELS
from optimizer.cost.link import link_at
from optimizer.cost.quality import QualityModel
from optimizer.search.planner import Planner
from optimizer.search.problem import Objective, Problem, Space

TOKENS = 131_072


def problem(objective: Objective, prompt_tokens: int) -> Problem:
    """The promised size. The objective `context` finds the length itself."""
    geometry = load_spec("llama-3.1-70b").geometry
    cloud = load_device("h100-80gb")
    memory = cloud.memory
    wide = replace(memory.usable_bytes, value=4e11)
    cloud = replace(
        cloud, memory=replace(memory, usable_bytes=wide, total_bytes=replace(wide, value=5e11))
    )
    return Problem(
        geometry=geometry,
        edge=load_device("jetson-agx-orin-64gb"),
        cloud=cloud,
        space=Space(
            splits=tuple(range(geometry.num_layers + 1)),
            levels=(*DEFAULT_LEVELS, *EXTRA_LEVELS[:2]),
        ),
        quality=QualityModel(num_layers=geometry.num_layers),
        limits=Limits(
            prompt_tokens=prompt_tokens, max_ttft_s=600.0, max_tbt_s=2.0, max_quality_drop_pct=9.0
        ),
        objective=objective,
        max_tokens=TOKENS if objective != "context" else 16_384,
        answer_tokens=256,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    links = [link_at(load_link(name), epsilon=0.5) for name in link_names()]
    rows = []
    cases: tuple[tuple[Objective, int], ...] = (
        ("tbt", 512), ("cloud-cost", 512), ("context", 512), ("tbt", 8192),
    )  # fmt: skip
    for objective, prompt in cases:
        first, again = [], []
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            planner = Planner(problem(objective, prompt))
            planner.solve(links[0])
            first.append(time.perf_counter() - started)
            for link in links:
                started = time.perf_counter()
                planner.solve(link)
                again.append(time.perf_counter() - started)
        rows.append(
            {
                "objective": objective,
                "prompt_tokens": prompt,
                "plan_s": statistics.median(first),
                "plan_range_s": [min(first), max(first)],
                "replan_s": statistics.median(again),
                "replan_range_s": [min(again), max(again)],
            }
        )
        row: dict[str, Any] = rows[-1]
        print(
            f"{objective}, prompt {prompt}: plan {row['plan_s']:.3f} s "
            f"({min(first):.3f} to {max(first):.3f}), link only {1e3 * row['replan_s']:.1f} ms "
            f"({1e3 * min(again):.1f} to {1e3 * max(again):.1f})"
        )
    load = os.getloadavg()[0]
    print(json.dumps({"benchmark": "plan_speed", "load_average": load, "rows": rows}))


if __name__ == "__main__":
    main()
