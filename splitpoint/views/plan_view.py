"""A plan for people (tables on stdout) and for programs (one JSON object)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.table import Table

from hwprofiles.providers.table import CPU
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.front_kernels import widened_note
from optimizer.cost.streaming import streamed_bytes
from optimizer.search.alternatives import PlanAlternative
from optimizer.search.alternatives import why as reason
from optimizer.search.explain import Explanation, Flip, Relaxation
from optimizer.search.problem import Objective
from splitpoint.views.promise_view import joules_text, money_text, percent_text, promise_table
from splitpoint.views.screen import open_console
from splitpoint.views.sizes import size_text, time_text

Text = Callable[[float], str]

PLACE_TEXT: Final[dict[PrefillPlace, str]] = {
    "edge": "rows go up",
    "cloud": "token ids go up, the server runs every layer on the prompt",
    "both": "first tokens go up as ids, the rest as rows, as the device measures",
}


def rate_text(bytes_per_s: float) -> str:
    """A rate as links are sold."""
    return f"{8e-6 * bytes_per_s:.3g} Mbit/s"


def tokens_text(tokens: float) -> str:
    """A number of tokens."""
    return f"{abs(tokens):,.0f} tokens"


OBJECTIVE_TEXT: dict[Objective, Text] = {
    "tbt": time_text,
    "ttft": time_text,
    "cloud-cost": time_text,
    "context": tokens_text,
    "quality": percent_text,
    "cost": money_text,
}
LIMIT_TEXT: dict[str, Text] = {
    "edge memory": size_text,
    "cloud memory": size_text,
    "cloud memory per session": size_text,
    "TBT": time_text,
    "TTFT": time_text,
    "quality drop": percent_text,
    "energy a token": joules_text,
    "cost": money_text,
    "max tokens": tokens_text,
}
FLIP_TEXT: dict[str, Text] = {
    "round trip [s]": time_text,
    "uplink [bytes/s]": rate_text,
    "edge memory [bytes]": size_text,
}


def plan_json(
    plan: Plan,
    why: Explanation,
    front: Sequence[dict[str, Any]] | None = None,
    *,
    beside: tuple[PlanAlternative, ...] = (),
) -> dict[str, Any]:
    """The plan with what decides and predicts at the top level, and its explanation."""
    values = asdict(plan)
    partition = values.pop("partition")
    out = {**partition, **values, "layers": plan.model.geometry.num_layers}
    out["shadow_prices"] = [
        {**asdict(price), "after": None if math.isnan(price.after) else price.after}
        for price in why.prices
    ]
    out["flips"] = [asdict(flip) for flip in why.flips]
    if beside:
        out["alternatives"] = [_row_json(row) for row in beside]
        out["why"] = reason(beside, num_layers=plan.model.geometry.num_layers)
    if front is not None:
        out["pareto"] = list(front)
    return out


def _row_json(row: PlanAlternative) -> dict[str, Any]:
    """A row without a cost where nothing has a price."""
    values = asdict(row)
    if row.cost_per_million_tokens is None:
        del values["cost_per_million_tokens"]
    return values


def infeasible_json(needed: Sequence[Relaxation]) -> dict[str, Any]:
    """What to give way on, as an object."""
    return {"feasible": False, "relaxations": [asdict(item) for item in needed]}


def infeasible_line(needed: Sequence[Relaxation]) -> str:
    """One line: no plan, and the least that each limit alone would have to give."""
    ways = [
        f"{item.limit} {_limit_text(item, item.needed)} instead of {_limit_text(item, item.given)}"
        for item in needed
        if item.needed is not None
    ]
    if not ways:
        return "no configuration keeps all limits, and giving way on one of them is not enough"
    return f"no configuration keeps all limits; any one of these would do: {'; '.join(ways)}"


def print_relaxations(needed: Sequence[Relaxation]) -> None:
    """The same as a table."""
    table = Table("limit", "given", "needed, all others as they are", title="No plan fits")
    for item in needed:
        enough = "no value is enough" if item.needed is None else _limit_text(item, item.needed)
        table.add_row(item.limit, _limit_text(item, item.given), enough)
    open_console(stderr=True, width=output_width()).print(table)


def print_plan(
    plan: Plan, why: Explanation, *, objective: Objective, beside: tuple[PlanAlternative, ...] = ()
) -> None:
    """What was chosen, what it promises part by part, what binds, prices and flips."""
    console = open_console(width=output_width())
    if plan.predicted is None:
        raise ValueError("a plan without predictions")
    console.print(_choice_table(plan))
    if beside:
        console.print(_beside_table(beside))
        console.print(reason(beside, num_layers=plan.model.geometry.num_layers))
    console.print(promise_table(plan, plan.predicted))
    console.print(f"binding: {', '.join(plan.binding) or 'none: the best there is'}")
    text = OBJECTIVE_TEXT[objective]
    table = Table("change", f"{objective} then", "better by", "split then", title="What would help")
    for price in why.prices:
        gone = math.isnan(price.after)
        gain = "nothing" if abs(price.gain) <= 1e-9 * abs(price.before) else text(price.gain)
        table.add_row(
            price.change,
            "no plan" if gone else text(price.after),
            "" if gone else gain,
            "" if price.split is None else str(price.split),
        )
    console.print(table)
    if why.flips:
        table = Table("of", "side", "from", "split then", title="Where the split changes")
        for flip in why.flips:
            table.add_row(
                _quantity(flip), flip.side, FLIP_TEXT[flip.quantity](flip.value), _split(flip)
            )
        console.print(table)


def _choice_table(plan: Plan) -> Table:
    layers, split = plan.model.geometry.num_layers, plan.partition.split
    table = Table("choice", "", title=f"Plan for {plan.model.id}", title_justify="left")
    where = f"of {layers} layers on the device"
    if plan.edge_is_whole:
        where = "the whole model is on the device"
    elif split == 0:
        where = "the server runs every layer, the device sends token ids"
    table.add_row("split", f"{split} ({where})")
    note = widened_note(plan.partition.front_bits)
    if plan.weight_blocks == "large":
        note = "64 weights and more share a scale, since nothing fits the memory with 32"
    bits = f"{plan.partition.front_bits}{f' ({note})' if note else ''}"
    if plan.front_layer_bits:
        bits = f"by layer: {' '.join(map(str, plan.front_layer_bits))}"
    table.add_row("front bits", bits)
    if not plan.edge_is_whole:
        table.add_row("back bits", str(plan.partition.back_bits))
    table.add_row("KV bits on the edge", str(plan.kv_bits))
    if not plan.edge_is_whole:
        table.add_row("codec level", plan.level)
        table.add_row("drafting", plan.drafting)
    if plan.profiles is not None and plan.profiles.edge_provider != CPU.name:
        table.add_row("front runs on", plan.profiles.edge_provider)
    table.add_row("prefill chunk", str(plan.prefill_chunk))
    if plan.prefill != "edge":
        table.add_row("prefill", f"{plan.prefill}: {PLACE_TEXT[plan.prefill]}")
    table.add_row("max tokens", f"{plan.max_tokens:,}")
    if plan.streamed_layers:
        size = size_text(streamed_bytes(plan))
        text = f"{plan.streamed_layers} of {split} layers, {size} in every step"
        table.add_row("read from storage", text)
    if plan.front_splits:
        table.add_row("the split may move", _moves_text(plan))
    return table


def _moves_text(plan: Plan) -> str:
    """Where the split may go when the device's cache is full, and how far that goes."""
    steps = [f"{at} up to {plan.capacity(at):,} tokens" for at in (*plan.splits[-2::-1], 0)]
    return f"to {', then '.join(steps)} (--context handover)"


def _beside_table(rows: Sequence[PlanAlternative]) -> Table:
    has_cost = rows[0].cost_per_million_tokens is not None
    cost = ["cost per million tokens"] if has_cost else []
    table = Table(
        "", "split", "TTFT", "TBT", "cloud a token", *cost, "up a token", "edge memory",
        "quality lost", "breaks", title="What else there is", title_justify="left",
    )  # fmt: skip
    for row in rows:
        money = row.cost_per_million_tokens
        table.add_row(
            row.what,
            str(row.split) + place_text(row.prefill),
            time_text(row.ttft_s),
            time_text(row.tbt_s),
            time_text(row.cloud_s_per_token),
            *([] if money is None else [money_text(money)]),
            f"{row.uplink_bytes_per_token:.0f} B",
            size_text(row.edge_memory_bytes),
            percent_text(row.quality_drop_pct),
            ", ".join(row.broken),
        )
    return table


def place_text(place: PrefillPlace) -> str:
    """Added to a row whose prompt is not computed on the device."""
    return "" if place == "edge" else f", prefill {place}"


def _quantity(flip: Flip) -> str:
    return flip.quantity.partition(" [")[0]


def _split(flip: Flip) -> str:
    return "no plan" if flip.split is None else str(flip.split)


def _limit_text(item: Relaxation, value: float | None) -> str:
    return "" if value is None else LIMIT_TEXT[item.limit](value)


def output_width() -> int | None:
    """Columns of a table on stdout; None: those of the terminal."""
    # Not a terminal: no wrapping at 80 columns, so that output can be searched.
    return None if sys.stdout.isatty() else 160
