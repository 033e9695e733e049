"""Pictures of a plan: latency and memory against split, the Pareto front, a map of splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.cost.link import LinkPoint
from optimizer.search.grid import Grid
from optimizer.search.planner import Found, Planner
from optimizer.search.solve import KEYS, pareto, value_of

MAP_RATES, MAP_MEMORIES = 17, 15  # cells of the map: bandwidth by memory
MAP_REACH = 32.0  # from a thirty-second of the link's rate to 32 times
GIB = 1 << 30
CHOSEN = {"color": "crimson", "linestyle": "--", "linewidth": 1.2}


def draw_plan(planner: Planner, link: LinkPoint, found: Found, path: Path) -> None:
    """Four panels into one PNG (or whatever the suffix says)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    _latency(axes[0, 0], planner, found)
    _memory(axes[0, 1], planner, found)
    _front(axes[1, 0], planner, found)
    _map(figure, axes[1, 1], planner, link, found)
    problem = planner.problem
    figure.suptitle(
        f"{problem.edge.name} + {problem.cloud.name}, objective {problem.objective}: "
        f"split {planner.split_of(found.cell)} of {problem.geometry.num_layers}"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _along_splits(found: Found, values: Any) -> Any:
    """One array's values at every split, all other choices as chosen (no draft, first level and
    back where the edge is whole, as the grid has it)."""
    grid, cell = found.grid, found.cell
    full = np.broadcast_to(values, grid.problem.space.shape)
    whole = grid.fixed.whole
    return np.array(
        [
            full[
                cell._replace(split=s, back=0, level=0, draft=0)
                if whole[s]
                else cell._replace(split=s)
            ]
            for s in range(len(whole))
        ]
    )


def _latency(axes: Any, planner: Planner, found: Found) -> None:
    grid, fixed = found.grid, found.grid.fixed
    splits = planner.problem.space.splits
    parts = {
        "front": grid.round.front_s,
        "cloud": np.where(fixed.is_whole, 0.0, grid.round.queue_s + grid.round.cloud_s),
        "wire": grid.round.wire_s,
    }
    shares = [1e3 * _along_splits(found, value / grid.tokens_per_round) for value in parts.values()]
    axes.stackplot(splits, *shares, labels=list(parts), alpha=0.75)
    axes.plot(splits, 1e3 * _along_splits(found, grid.tbt_s), color="black", label="TBT")
    if grid.limits.max_tbt_s is not None:
        axes.axhline(1e3 * grid.limits.max_tbt_s, color="black", linestyle=":", label="TBT limit")
    axes.axvline(planner.split_of(found.cell), **CHOSEN, label="chosen")
    axes.set(xlabel="split [layers on the edge]", ylabel="time between tokens [ms]")
    other = axes.twinx()
    other.plot(splits, _along_splits(found, grid.ttft_s), color="tab:purple", linewidth=1)
    other.set_ylabel("TTFT [s]", color="tab:purple")
    other.set_ylim(bottom=0)
    axes.set_ylim(bottom=0)
    axes.set_title("Latency: a decode step's parts, and TTFT (purple)")
    axes.legend(loc="upper left", fontsize=8)


def _memory(axes: Any, planner: Planner, found: Found) -> None:
    grid, chosen = found.grid, found.cell
    splits = planner.problem.space.splits
    memory = grid.edge_memory_bytes
    for f, front in enumerate(planner.problem.space.fronts):
        if front.layer_bits:
            continue
        line = _along_splits(Found(chosen._replace(front=f), found.value, grid), memory)
        width = 2.4 if f == chosen.front else 1.0
        axes.plot(splits, line / GIB, linewidth=width, label=f"{front.front_bits}-bit front")
    axes.axhline(grid.edge_memory_limit_bytes / GIB, color="black", linestyle=":", label="limit")
    axes.axvline(planner.split_of(chosen), **CHOSEN, label="chosen")
    axes.set(xlabel="split [layers on the edge]", ylabel="edge memory [GiB]")
    axes.set_ylim(
        0, 1.6 * max(grid.edge_memory_limit_bytes, value_of(grid, chosen, "edge-memory")) / GIB
    )
    axes.set_title("Peak memory of the edge process, by weight bits")
    axes.legend(loc="upper left", fontsize=8)


def _front(axes: Any, planner: Planner, found: Found) -> None:
    grid = found.grid
    cells = pareto(grid, grid.feasible(), ("cloud-cost", "tbt", "quality"))
    points = axes.scatter(
        [1e3 * value_of(grid, cell, "cloud-cost") for cell in cells],
        [1e3 * value_of(grid, cell, "tbt") for cell in cells],
        c=[planner.split_of(cell) for cell in cells],
        s=[14 + 6 * value_of(grid, cell, "quality") for cell in cells],
        cmap="viridis", alpha=0.8, vmin=0, vmax=planner.problem.geometry.num_layers,
    )  # fmt: skip
    axes.figure.colorbar(points, ax=axes, label="split")
    axes.scatter(
        [1e3 * value_of(grid, found.cell, "cloud-cost")],
        [1e3 * value_of(grid, found.cell, "tbt")],
        marker="*", s=220, color="crimson", label="chosen",
    )  # fmt: skip
    axes.set(xlabel="cloud compute a token [ms]", ylabel="time between tokens [ms]")
    axes.set_title("Pareto front: cloud cost, TBT, quality (larger dots lose more)")
    axes.legend(fontsize=8)


def _map(figure: Any, axes: Any, planner: Planner, link: LinkPoint, found: Found) -> None:
    rates = link.up_bytes_per_s * np.geomspace(1 / MAP_REACH, MAP_REACH, MAP_RATES)
    memories = _memory_range(found.grid)
    splits = np.full((len(memories), len(rates)), np.nan)
    for column, rate in enumerate(rates):
        scaled = replace(
            link,
            up_bytes_per_s=float(rate),
            down_bytes_per_s=link.down_bytes_per_s * float(rate / link.up_bytes_per_s),
        )
        for row, memory in enumerate(memories):
            limits = replace(found.grid.limits, edge_memory_bytes=float(memory))
            other = planner.solve(scaled, limits)
            if other is not None:
                splits[row, column] = planner.split_of(other.cell)
    shown = np.ma.masked_invalid(splits)
    mesh = axes.pcolormesh(
        8e-6 * rates, memories / GIB, shown, cmap="viridis", shading="nearest", vmin=0,
        vmax=planner.problem.geometry.num_layers,
    )  # fmt: skip
    axes.set_facecolor("lightgrey")
    axes.scatter(
        [8e-6 * link.up_bytes_per_s], [found.grid.edge_memory_limit_bytes / GIB],
        marker="*", s=220, color="crimson",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="uplink [Mbit/s]", ylabel="edge memory limit [GiB]")
    axes.set_title("Chosen split over bandwidth and memory (grey: no plan)")
    figure.colorbar(mesh, ax=axes, label="split")


def _memory_range(grid: Grid) -> Any:
    """Memory limits from what the least plan needs to what the largest one does, and the limit
    that is given among them."""
    needed = np.broadcast_to(KEYS["edge-memory"](grid), grid.fixed.exists.shape)[grid.fixed.exists]
    ends = [needed.min(), needed.max(), grid.edge_memory_limit_bytes]
    return np.geomspace(min(ends), max(ends) * 1.02, MAP_MEMORIES)
