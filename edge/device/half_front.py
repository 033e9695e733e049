"""A front in 16 bits on the CPU: tried before anybody relies on it, and said where it is not used.

The build has tried the products as it thinks that devices compute them. What this processor really
computes is seen here: a few tokens of text go through the graph, and their rows are compared with
the model's own, which the bundle has. This costs no second load. Without the graph, on a processor
that does not compute in 16 bits, and where the rows are not to be used, the weights are widened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edge.device.front import FrontEngine
from edge.device.front_report import FrontReport
from edge.device.front_trial import row_difference, tried_rows
from edge.device.memory_limit import check_loaded
from edge.errors import FrontError
from hwprofiles.heap import trim_heap
from hwprofiles.profiler.half_probe import computes_halves
from hwprofiles.providers.table import AUTO, CPU, PROVIDERS
from optimizer.artifacts.bundle import Bundle
from optimizer.artifacts.half_front import HalfRows, half_rows_of, may_have_halves
from optimizer.artifacts.plan import Plan

# SmolLM2's first 10 layers are 0.65 % off on an emulated processor (docs/results/edge.md).
MOST_DIFFERENCE: Final = 0.05


class HalfChoice(NamedTuple):
    """rows: of a bundle that has 16-bit graphs. why_not: why they are not used on the CPU."""

    rows: HalfRows | None = None
    why_not: str = ""


WIDE: Final = HalfChoice()  # the graphs that every bundle has


def half_choice(bundle: Bundle) -> HalfChoice:
    """Whether the CPU may run the 16-bit graphs of this bundle."""
    plan = bundle.plan
    if plan.partition.front_bits != 16 or not plan.partition.split:
        return WIDE
    if not may_have_halves(plan):
        return HalfChoice(why_not=_why_wide(plan))
    rows = half_rows_of(bundle)
    if rows is None:
        return HalfChoice(why_not="the bundle has no 16-bit graph")
    why_not = "" if computes_halves(CPU) else "the processor's kernels compute in 32 bits"
    return HalfChoice(rows, why_not)


def counts_halves(bundle: Bundle, provider: str) -> bool:
    """Whether the front will take two bytes a weight, as far as is known before it is loaded."""
    choice = half_choice(bundle)
    if choice.rows is None:
        return False
    if provider in (AUTO, CPU.name):
        return not choice.why_not
    return provider in PROVIDERS and PROVIDERS[provider].runs_halves


def load_on_cpu(
    edge_dir: Path,
    plan: Plan,
    choice: HalfChoice,
    *,
    limit_bytes: int | None,
    options: dict[str, Any],
) -> tuple[list[FrontEngine], FrontReport]:
    """The front on the CPU, in 16 bits where it may be and its rows are right.

    limit_bytes: see `load_front`; MemoryLimitError where widened weights are too much for it.
    """
    rows, why_not = choice
    if rows is None or why_not:
        engines = FrontEngine.load(edge_dir, plan=plan, **options)
        return engines, FrontReport(arithmetic=_wide_name(plan), widened=why_not)
    try:
        engines = FrontEngine.load(edge_dir, plan=plan, halves=True, **options)
        difference = _difference(engines[0], rows)
    except FrontError as error:
        why_not = str(error)
    else:
        report = FrontReport(arithmetic="fp16", model_difference=difference, depends_on_cut=True)
        if difference <= MOST_DIFFERENCE:
            return engines, report
        why_not = (
            f"in 16 bits its rows are {100 * difference:.2g} % from the model's, and at most "
            f"{100 * MOST_DIFFERENCE:g} % can be rounding"
        )
        del engines
    trim_heap()
    engines = FrontEngine.load(edge_dir, plan=plan, **options)
    if limit_bytes is not None:
        check_loaded(limit_bytes, plan, provider="the CPU, widened", sequences=len(engines))
    return engines, FrontReport(arithmetic="fp32", widened=why_not)


def _difference(engine: FrontEngine, rows: HalfRows) -> float:
    """How far its rows are from the model's. FrontError where the same tokens give other bits."""
    found = tried_rows(engine, rows.token_ids)
    if not np.array_equal(found, tried_rows(engine, rows.token_ids), equal_nan=True):
        raise FrontError("in 16 bits the same tokens gave other rows the second time")
    return row_difference(found[-len(rows.rows) :], rows.rows)


def _why_wide(plan: Plan) -> str:
    if plan.exact_front:
        return "exact results were asked for"
    return "layers are read from storage" if plan.streamed_layers else "it has experts"


def _wide_name(plan: Plan) -> str:
    return "fp32" if plan.partition.front_bits == 16 and plan.partition.split else ""
