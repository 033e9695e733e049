"""The goals of a server on a GPU, beside what the check measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

Measured = Mapping[str, Any]


class Goal(NamedTuple):
    """value: of what was measured. limit: met where the value is at most (least: at least) it."""

    name: str
    value: Callable[[Measured], float]
    limit: float
    least: bool = False


GOALS: Final = (
    Goal("64 sessions: products and attention, over the bound", lambda f: _over(f, 64), 1.45),
    Goal(
        "64 sessions: the step, over products and attention",
        lambda f: f["decode 64"]["graph_s"] / f["decode 64"]["core_s"],
        1.15,
    ),
    Goal(
        "1 session: the step, over the bound",
        lambda f: f["decode 1"]["graph_s"] / f["decode 1"]["bound_s"],
        1.35,
    ),
    Goal(
        "prefill: share of the product rate",
        lambda f: f["prefill"]["share_of_product_rate"],
        0.55,
        least=True,
    ),
    Goal(
        "256 sessions: tokens/s over those of 128",
        lambda f: f["decode 256"]["tokens_per_s"] / f["decode 128"]["tokens_per_s"],
        1.0,
        least=True,
    ),
    Goal(
        "256 sessions: p99 over p50",
        lambda f: f["decode 256"]["p99_s"] / f["decode 256"]["p50_s"],
        3.0,
    ),
    Goal("1 session: host beside the graph, ms", lambda f: 1e3 * f["decode 1"]["host_s"], 0.3),
    Goal("64 sessions: host beside the graph, ms", lambda f: 1e3 * f["decode 64"]["host_s"], 0.3),
)


def _over(found: Measured, count: int) -> float:
    row = found[f"decode {count}"]
    return float(row["core_s"] / row["bound_s"])


def goals_of(found: Measured | None) -> dict[str, dict[str, float | bool]]:
    """By goal that was measured: its value, its limit, and whether it is met. Prints them.

    found: what `measure_kind` found with bf16; None: nothing.
    """
    met: dict[str, dict[str, float | bool]] = {}
    for goal in GOALS:
        try:
            value = goal.value(found or {})
        except (KeyError, TypeError):  # not measured
            continue
        holds = value >= goal.limit if goal.least else value <= goal.limit
        met[goal.name] = {"value": round(value, 4), "limit": goal.limit, "met": holds}
        print(f"{'met   ' if holds else 'MISSED'} {goal.name}: {value:.3f} ({goal.limit:g})")
    return met
