"""The Pareto front of a search: the plans that no other one beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from optimizer.search.grid import Grid
from optimizer.search.solve import KEYS, pareto, value_of
from splitpoint.views.plan_view import output_width, place_text
from splitpoint.views.promise_view import percent_text
from splitpoint.views.screen import open_console
from splitpoint.views.sizes import size_text, time_text


def pareto_rows(grid: Grid) -> list[dict[str, Any]]:
    """The Pareto front of a grid: one row a plan, with the values compared."""
    space = grid.problem.space
    left_out = {"context"} if grid.problem.has_cost else {"context", "cost"}
    compared = [name for name in KEYS if name not in left_out]
    rows = []
    for cell in pareto(grid, grid.feasible()):
        split = space.splits[cell.split]
        rows.append(
            {
                "split": split,
                "front_bits": space.fronts[cell.front].front_bits,
                "front_layer_bits": list(space.fronts[cell.front].layer_bits.get(split, ())),
                "back_bits": space.back_bits[cell.back],
                "kv_bits": space.kv_bits[cell.kv],
                "level": space.levels[cell.level].name,
                "prefill_chunk": space.chunks[cell.chunk],
                "prefill": grid.prefill_of(cell),
                "drafting": space.drafts[cell.draft].kind,
                **{name: value_of(grid, cell, name) for name in compared},
            }
        )
    return rows


def print_pareto(rows: Sequence[dict[str, Any]]) -> None:
    """The front as a table."""
    table = Table(
        "split", "front", "back", "KV", "level", "chunk", "TBT", "TTFT", "cloud a token",
        "edge memory", "quality", title=f"Pareto front: {len(rows)} plans",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row["split"]),
            f"{row['front_bits']}{'+' if row['front_layer_bits'] else ''}",
            str(row["back_bits"]),
            str(row["kv_bits"]),
            row["level"],
            str(row["prefill_chunk"]) + place_text(row["prefill"]),
            time_text(row["tbt"]),
            time_text(row["ttft"]),
            time_text(row["cloud-cost"]),
            size_text(row["edge-memory"]),
            percent_text(row["quality"]),
        )
    open_console(width=output_width()).print(table)
