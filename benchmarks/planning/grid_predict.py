"""Every figure of a measured cell of `grid.py` beside what two profiles predict for it."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.planning.grid_cells import (
    ANSWER,
    BACK_BITS,
    LARGE_CACHED,
    MAX_TOKENS,
    PROMPT,
    SERVER_SPLIT,
    FrontCell,
    GridCell,
    LargeCell,
    LargeServerCell,
    PlanCell,
    ServerCell,
    fixed_link,
    long_front,
    reference,
)
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.errors import ErrorKind
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Plan, load_plan
from optimizer.artifacts.prediction import Limits, PredictedRange, ProfilesUsed
from optimizer.cost.cloud import SessionRows, back_kv_bits, back_step_s, lone_step_s
from optimizer.cost.codec import level_on
from optimizer.cost.edge import front_step
from optimizer.cost.levels import DEFAULT_LEVELS
from optimizer.cost.memory import edge_memory_over
from optimizer.cost.request import middle_position, round_parts
from optimizer.cost.setting import RequestSetting
from optimizer.cost.uncertainty import error_of_kind, range_of
from optimizer.search.planner import Planner
from optimizer.search.problem import Cell
from optimizer.search.request import make_problem
from optimizer.search.to_plan import plan_of

ONLY: Final = Cell(0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class GridFigure:
    """One figure of a cell, in seconds or bytes."""

    figure: str
    predicted: PredictedRange
    measured: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted.p50 / self.measured - 1


@dataclass(frozen=True, kw_only=True)
class TwoMachines:
    """The profiles of one repeat, and the model that runs on them."""

    edge: DeviceProfile
    cloud: DeviceProfile
    model: Path


def figures_of(
    cell: GridCell, measured: dict[str, Any], machines: TwoMachines, folder: Path
) -> list[GridFigure]:
    """Predictions beside what was measured; none for a cell that was refused."""
    if "refused" in measured:
        return []
    if isinstance(cell, PlanCell):
        return _of_plan(cell, measured, machines)
    if isinstance(cell, ServerCell):
        return _of_server(measured, machines)
    if isinstance(cell, LargeServerCell):
        return _of_large_server(cell, measured, machines)
    return _of_front(cell, measured, machines, folder)


def plan_of_cell(cell: PlanCell, machines: TwoMachines, *, limit: float | None = None) -> Plan:
    """The plan of the cell's configuration, with what it predicts. limit: bytes of the device's
    process; None: none."""
    model = reference(machines.model)
    problem = make_problem(
        model.geometry,
        machines.edge,
        machines.cloud,
        limits=Limits(prompt_tokens=PROMPT, edge_memory_bytes=limit),
        max_tokens=MAX_TOKENS,
        answer_tokens=ANSWER,
        splits=(cell.split,),
        front_bits=(cell.front_bits,),
        back_bits=(BACK_BITS,),
        kv_bits=(cell.kv_bits,),
        levels=("lossless",),
        chunks=(cell.chunk,),
        back_from=0,
        prefill=cell.prefill,
        slack=0.0,
    )
    grid = Planner(problem).grid(fixed_link(cell.link))
    used = ProfilesUsed(edge=machines.edge.name, cloud=machines.cloud.name, link=cell.link)
    return plan_of(grid, ONLY, model=model, profiles=used)


def _of_plan(cell: PlanCell, measured: dict[str, Any], machines: TwoMachines) -> list[GridFigure]:
    plan = plan_of_cell(cell, machines, limit=measured["limit_bytes"] or None)
    if plan.predicted is None or plan.predicted.ranges is None:
        raise ValueError("a searched plan has predictions")
    ranges = plan.predicted.ranges
    tbt, measured_tbt_s = ranges.tbt_s, statistics.median(measured["tbt_s"])
    if cell.draft != "off":  # the rounds are of all answers together, which are equally long
        tbt = tbt.around(_drafted_tbt_s(cell, plan, measured, machines))
        measured_tbt_s = statistics.fmean(measured["tbt_s"])
    return [
        GridFigure(
            figure="TTFT", predicted=ranges.ttft_s, measured=statistics.median(measured["ttft_s"])
        ),
        GridFigure(figure="TBT", predicted=tbt, measured=measured_tbt_s),
        GridFigure(
            figure="memory under a limit" if cell.limited else "memory",
            predicted=ranges.edge_memory_bytes,
            measured=float(measured["peak_memory_bytes"]),
        ),
    ]


def _drafted_tbt_s(
    cell: PlanCell, plan: Plan, measured: dict[str, Any], machines: TwoMachines
) -> float:
    """What rounds of the measured numbers of rows and tokens should take: how often a guess is
    right is the text's affair.

    A frame that left ahead of an answer travels with the one before it. Its answer follows when the
    device has made its rows or the server has run them, whichever is later.
    """
    geometry = plan.model.geometry
    level = level_on(
        DEFAULT_LEVELS[0],
        edge=machines.edge,
        cloud=machines.cloud,
        hidden_size=geometry.hidden_size,
    )
    setting = RequestSetting(
        edge=machines.edge,
        cloud=machines.cloud,
        link=fixed_link(cell.link),
        geometry=geometry,
        partition=plan.partition,
        kv_bits=plan.kv_bits,
        level=level,
        chunk=plan.prefill_chunk,
    )
    position = middle_position(PROMPT, ANSWER)
    seconds = tokens = 0.0
    for rows, frames, brought, ahead in measured["rounds"]:
        each = round_parts(setting, position=position, num_rows=rows, num_answers=brought / frames)
        edge_s = each.front_s + each.encode_s
        cloud_s = each.decode_s + each.back_s + each.sample_s
        seconds += frames * float(max(edge_s, cloud_s) if ahead else each.total_s)
        tokens += brought
    return seconds / tokens


def _of_front(
    cell: FrontCell | LargeCell, measured: dict[str, Any], machines: TwoMachines, folder: Path
) -> list[GridFigure]:
    front = folder / cell.bundle
    plan = load_plan((long_front(front) if isinstance(cell, FrontCell) else front) / "plan.yaml")
    edge, geometry = machines.edge, plan.model.geometry

    def step(rows: int, position: int) -> float:
        found = front_step(
            edge,
            geometry,
            split=plan.partition.split,
            weight_bits=plan.partition.front_bits,
            kv_bits=plan.kv_bits,
            num_rows=rows,
            position=position,
        )
        return float(found.total_s)

    rows = measured["prompt_rows"]
    times = [(f"decode at {at}", 1, int(at)) for at in measured["decode_s"]]
    found = []
    for name, count, position in [*times, (f"{rows} rows", rows, 0)]:
        kind: ErrorKind = "one_row" if count == 1 else "many_rows"
        sigma = (error_of_kind(edge, kind) ** 2 + error_of_kind(edge, "common") ** 2) ** 0.5
        seconds = measured["decode_s"][str(position)] if count == 1 else measured["prompt_s"]
        predicted = range_of(step(count, position), sigma)
        found.append(GridFigure(figure=name, predicted=predicted, measured=seconds))
    if isinstance(cell, FrontCell):  # deployments tell the memory of whole processes
        return found
    needed = edge_memory_over(edge.memory.runtime_base_bytes.value, plan).total_bytes
    found.append(
        GridFigure(
            figure="memory",
            predicted=range_of(needed, error_of_kind(edge, "memory")),
            measured=float(measured["peak_memory_bytes"]),
        )
    )
    return found


def _of_large_server(
    cell: LargeServerCell, measured: dict[str, Any], machines: TwoMachines
) -> list[GridFigure]:
    cloud, model = machines.cloud, cell.model
    geometry = ModelGeometry(
        architecture="LlamaForCausalLM",
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_heads=model.heads,
        num_kv_heads=model.kv_heads,
        head_dim=model.hidden // model.heads,
        intermediate_size=model.inner,
        vocab_size=model.vocabulary,
        context_length=2048,
        tied_embeddings=False,
    )
    found = []
    for count, seconds in measured["step_s"].items():
        predicted_s = back_step_s(
            cloud,
            geometry,
            num_layers=model.layers,
            back_bits=cell.bits,
            kv_bits=back_kv_bits(cloud, cell.bits),
            sessions=[SessionRows(1, LARGE_CACHED)] * int(count),
        )
        kind: ErrorKind = "one_row" if count == "1" else "many_rows"
        sigma = (error_of_kind(cloud, kind) ** 2 + error_of_kind(cloud, "common") ** 2) ** 0.5
        name = f"server's step, {count} sessions"
        found.append(
            GridFigure(figure=name, predicted=range_of(predicted_s, sigma), measured=seconds)
        )
    return found


def _of_server(measured: dict[str, Any], machines: TwoMachines) -> list[GridFigure]:
    cloud, geometry = machines.cloud, reference(machines.model).geometry
    counts = Counter((batch, position) for _, batch, position, _ in measured["steps"])
    predicted: dict[tuple[int, int], float] = {}
    for batch, position in counts:
        step_s = back_step_s(
            cloud,
            geometry,
            num_layers=geometry.num_layers - SERVER_SPLIT,
            back_bits=BACK_BITS,
            kv_bits=back_kv_bits(cloud, BACK_BITS),
            sessions=[SessionRows(1, position)] * batch,
        )
        predicted[batch, position] = float(lone_step_s(cloud, step_s, batch))
    middle = statistics.median(
        predicted[batch, position] for _, batch, position, _ in measured["steps"]
    )
    kind: ErrorKind = "one_row" if max(batch for batch, _ in counts) == 1 else "many_rows"
    sigma = (error_of_kind(cloud, kind) ** 2 + error_of_kind(cloud, "common") ** 2) ** 0.5
    return [
        GridFigure(
            figure="server's step",
            predicted=range_of(middle, sigma),
            measured=statistics.median(seconds for seconds, *_ in measured["steps"]),
        )
    ]
