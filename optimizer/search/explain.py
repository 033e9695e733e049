"""Why this configuration: which limits bind, what more of each would gain, where the split changes.

Each answer comes from solving again with one input changed. The kept tables make that cheap, and
an explanation is as exact as the plan. Changes of the split are searched on a geometric scan and
then bisected. A range narrower than a step of the scan (7 %) can be missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from optimizer.artifacts.prediction import Limits
from optimizer.cost.link import LinkPoint
from optimizer.search.grid import Grid
from optimizer.search.planner import Found, Planner

LIMIT_FIELDS = {
    "edge memory": "edge_memory_bytes",
    "cloud memory per session": "cloud_memory_per_session_bytes",
    "cloud memory": "cloud_memory_bytes",
    "TBT": "max_tbt_s",
    "TTFT": "max_ttft_s",
    "quality drop": "max_quality_drop_pct",
    "energy a token": "max_joules_per_token",
    "cost": "max_cost_per_million",
}
MORE_MEMORY_BYTES = 64 << 20
MORE_BYTES_PER_S = 10e6 / 8
LESS_RTT_S = 0.010
SAME = 1e-6  # relative change of the objective that counts as none
SCAN_STEP = 1.07
SCAN_REACH = 30.0  # how far, as a factor, flips are looked for
BISECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowPrice:
    """What one change would gain: the objective before and after, and the split after it (None: no
    plan is left)."""

    change: str
    before: float
    after: float
    split: int | None

    @property
    def gain(self) -> float:
        """How much the objective falls (for `context`: how many tokens are gained)."""
        return self.before - self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """From `value` on, in the direction `side` of it, the chosen split is another (None: no plan
    keeps the limits there)."""

    quantity: str
    side: str
    value: float
    split: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """How far one limit must be relaxed for a plan to exist, with all others unchanged. `needed`
    None: no value of this limit alone is enough."""

    limit: str
    given: float
    needed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What changes would gain, and where the chosen split would change."""

    prices: tuple[ShadowPrice, ...]
    flips: tuple[Flip, ...]


def explain(planner: Planner, link: LinkPoint, found: Found) -> Explanation:
    """Prices and flips of a plan."""
    return Explanation(
        prices=shadow_prices(planner, link, found), flips=flips(planner, link, found)
    )


def binding_limits(planner: Planner, link: LinkPoint, found: Found) -> tuple[str, ...]:
    """The limits without which the objective would be better; when only several together hold it
    back, those that the unlimited best would break."""
    limits = found.grid.limits
    names = [constraint.name for constraint in found.grid.constraints]
    alone = []
    for name in names:
        other = planner.solve(link, _lifted(limits, [name]))
        if other is not None and _better(other.value, found.value):
            alone.append(name)
    if alone:
        return tuple(alone)
    free = planner.solve(link, _lifted(limits, names))
    if free is None or not _better(free.value, found.value):
        return ()
    shape = planner.problem.space.shape
    return tuple(
        constraint.name
        for constraint in found.grid.constraints
        if not np.broadcast_to(constraint.kept, shape)[free.cell]
    )


def shadow_prices(planner: Planner, link: LinkPoint, found: Found) -> tuple[ShadowPrice, ...]:
    """What 64 MiB, 10 Mbit/s up and 10 ms would gain, and a tenth more of each other limit."""
    limits = found.grid.limits
    memory = found.grid.edge_memory_limit_bytes + MORE_MEMORY_BYTES
    asked: list[tuple[str, LinkPoint, Limits]] = [
        ("64 MiB more edge memory", link, replace(limits, edge_memory_bytes=memory)),
        (
            "10 Mbit/s more uplink",
            replace(link, up_bytes_per_s=link.up_bytes_per_s + MORE_BYTES_PER_S),
            limits,
        ),
        ("10 ms less round trip", replace(link, rtt_s=max(link.rtt_s - LESS_RTT_S, 0.0)), limits),
    ]
    for constraint in found.grid.constraints:
        field = LIMIT_FIELDS[constraint.name]
        if constraint.name != "edge memory" and getattr(limits, field) is not None:
            changed = _with_limits(limits, {field: 1.1 * constraint.limit})
            asked.append((f"10 % more {constraint.name}", link, changed))
    prices = []
    for change, changed_link, changed_limits in asked:
        other = planner.solve(changed_link, changed_limits)
        prices.append(
            ShadowPrice(
                change=change,
                before=found.value,
                after=math.nan if other is None else other.value,
                split=None if other is None else planner.split_of(other.cell),
            )
        )
    return tuple(prices)


def flips(planner: Planner, link: LinkPoint, found: Found) -> tuple[Flip, ...]:
    """The nearest values of round trip, rate (both directions in step) and edge memory, below
    and above today's, at which the chosen split changes."""
    limits = found.grid.limits
    split = planner.split_of(found.cell)
    memory = found.grid.edge_memory_limit_bytes

    def at_rtt(value: float) -> Found | None:
        return planner.solve(replace(link, rtt_s=value), limits)

    def at_rate(value: float) -> Found | None:
        factor = value / link.up_bytes_per_s
        down = link.down_bytes_per_s * factor
        return planner.solve(replace(link, up_bytes_per_s=value, down_bytes_per_s=down), limits)

    def at_memory(value: float) -> Found | None:
        return planner.solve(link, replace(limits, edge_memory_bytes=value))

    quantities: tuple[tuple[str, float, Callable[[float], Found | None]], ...] = (
        ("round trip [s]", max(link.rtt_s, 1e-4), at_rtt),
        ("uplink [bytes/s]", link.up_bytes_per_s, at_rate),
        ("edge memory [bytes]", memory, at_memory),
    )
    out = []
    for quantity, today, solve in quantities:
        for side, step in (("below", 1 / SCAN_STEP), ("above", SCAN_STEP)):
            flip = _nearest_flip(planner, solve, today, step, split)
            if flip is not None:
                out.append(Flip(quantity=quantity, side=side, value=flip[0], split=flip[1]))
    return tuple(out)


def relaxations(grid: Grid) -> tuple[Relaxation, ...]:
    """For a grid with no plan: how far each limit alone would have to give way, and how short the
    longest sequence would have to be (with room for the prompt and a token)."""
    shape = grid.problem.space.shape
    out = []
    for constraint in grid.constraints:
        others = grid.feasible(without=constraint.name)
        values = np.broadcast_to(constraint.values, shape)[others]
        needed = float(values.min()) if values.size else None
        out.append(Relaxation(limit=constraint.name, given=constraint.limit, needed=needed))
    fixed = ("TTFT", "quality drop")
    mask = grid.fixed.exists
    for constraint in grid.constraints:
        if constraint.name in fixed:
            mask = mask & constraint.kept
    lengths = np.broadcast_to(grid.longest_tokens, shape)[mask]
    longest = float(lengths.max()) if lengths.size else 0.0
    out.append(
        Relaxation(
            limit="max tokens",
            given=float(grid.problem.max_tokens),
            needed=longest if longest > grid.limits.prompt_tokens else None,
        )
    )
    return tuple(out)


def _nearest_flip(
    planner: Planner,
    solve: Callable[[float], Found | None],
    today: float,
    step: float,
    split: int,
) -> tuple[float, int | None] | None:
    def split_at(value: float) -> int | None:
        other = solve(value)
        return None if other is None else planner.split_of(other.cell)

    inside = today
    for _ in range(math.ceil(math.log(SCAN_REACH) / math.log(SCAN_STEP))):
        outside = inside * step
        if split_at(outside) != split:
            break
        inside = outside
    else:
        return None
    for _ in range(BISECTIONS):
        middle = math.sqrt(inside * outside)
        if split_at(middle) == split:
            inside = middle
        else:
            outside = middle
    return outside, split_at(outside)


def _lifted(limits: Limits, names: list[str]) -> Limits:
    return _with_limits(limits, {LIMIT_FIELDS[name]: math.inf for name in names})


def _with_limits(limits: Limits, changes: dict[str, float]) -> Limits:
    return replace(limits, **changes)  # type: ignore[arg-type] # the names are those of floats


def _better(value: float, than: float) -> bool:
    return value < than - SAME * abs(than)
