"""From two machines and a model to a Problem: the choices that these profiles have kernels for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import BACK_BITS, FRONT_BITS, KV_BITS, WeightBlocks
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.cost.cloud import back_compute_bits
from optimizer.cost.codec import LevelCost, level_on
from optimizer.cost.front_kernels import front_kernel, halves_on
from optimizer.cost.levels import DEFAULT_LEVELS
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.cost.quality import QualityModel
from optimizer.errors import PlanError
from optimizer.search.problem import (
    CHUNKS,
    NO_DRAFTING,
    DraftOption,
    FrontPrecision,
    Objective,
    Problem,
    Space,
)

DEFAULT_MAX_TOKENS = 2048
DEFAULT_ANSWER_TOKENS = 128
DEFAULT_SLACK = 0.01  # far below what predictions are off


def make_problem(
    geometry: ModelGeometry,
    edge: DeviceProfile,
    cloud: DeviceProfile,
    *,
    limits: Limits,
    quality: QualityModel | None = None,
    objective: Objective = "tbt",
    max_tokens: int | None = None,
    answer_tokens: int | None = None,
    splits: Sequence[int] | None = None,
    front_bits: Sequence[int] = FRONT_BITS,
    back_bits: Sequence[int] = BACK_BITS,
    kv_bits: Sequence[int] = KV_BITS,
    levels: Sequence[str] | None = None,
    chunks: Sequence[int] = CHUNKS,
    mixed_fronts: Sequence[FrontPrecision] = (),
    drafts: Sequence[DraftOption] = (),
    exact_front: bool = False,
    back_from: int | None = None,
    slack: float = DEFAULT_SLACK,
    prefill: PrefillPlace | Literal["auto"] = "edge",
    prices: Prices = NO_PRICES,
    weight_blocks: WeightBlocks = "small",
) -> Problem:
    """A problem over everything that may be chosen, less what a profile has no kernel for.

    max_tokens: by default 2,048 or the model's context; with the objective `context` the prompt and
    the usual answer. answer_tokens: by default 128, or what fits. prefill: "auto": where the first
    token comes soonest, if the server holds every layer, and else the edge. Raises PlanError when
    nothing is left of an axis.
    """
    prompt = limits.prompt_tokens
    if max_tokens is None:
        max_tokens = _usual_length(geometry, objective, prompt, answer_tokens)
    if answer_tokens is None:
        answer_tokens = max(min(DEFAULT_ANSWER_TOKENS, max_tokens - prompt), 1)
    edge_bits = {kernel.weight_bits for kernel in edge.kernels}
    cloud_bits = {kernel.weight_bits for kernel in cloud.kernels}
    halves = halves_on(edge, geometry, exact=exact_front)
    computed = {bits: front_kernel(bits, halves=halves).computed_bits for bits in front_bits}
    fronts = [FrontPrecision(front_bits=bits) for bits in front_bits if computed[bits] in edge_bits]
    space = Space(
        splits=tuple(range(geometry.num_layers + 1)) if splits is None else tuple(splits),
        fronts=(*fronts, *mixed_fronts),
        back_bits=tuple(b for b in back_bits if back_compute_bits(cloud, b) in cloud_bits),
        kv_bits=tuple(b for b in kv_bits if b in {each.kv_bits for each in edge.attention}),
        levels=tuple(
            level_on(level, edge=edge, cloud=cloud, hidden_size=geometry.hidden_size)
            for level in _levels_named(levels)
        ),
        chunks=tuple(chunks),
        drafts=(NO_DRAFTING, *drafts),
    )
    for what, axis in (
        (f"edge {edge.name} has no kernel for front bits {tuple(front_bits)}", space.fronts),
        (f"cloud {cloud.name} has no kernel for back bits {tuple(back_bits)}", space.back_bits),
        (f"edge {edge.name} has no kernel for KV bits {tuple(kv_bits)}", space.kv_bits),
    ):
        if not axis:
            raise PlanError(what)
    return Problem(
        geometry=geometry,
        edge=edge,
        cloud=cloud,
        space=space,
        quality=quality or QualityModel(num_layers=geometry.num_layers),
        limits=limits,
        objective=objective,
        max_tokens=max_tokens,
        answer_tokens=answer_tokens,
        exact_front=exact_front,
        back_from=back_from,
        slack=slack,
        prefill=_places(prefill, back_from),
        prices=prices,
        weight_blocks=weight_blocks,
    )


def _usual_length(
    geometry: ModelGeometry, objective: Objective, prompt: int, answer_tokens: int | None
) -> int:
    wanted = DEFAULT_MAX_TOKENS
    if objective == "context":
        wanted = prompt + (answer_tokens or DEFAULT_ANSWER_TOKENS)
    return min(max(wanted, prompt + 1), geometry.context_length)


def _places(
    prefill: PrefillPlace | Literal["auto"], back_from: int | None
) -> tuple[PrefillPlace, ...]:
    if prefill != "auto":
        return (prefill,)
    return PREFILL_PLACES if back_from == 0 else ("edge",)


def _levels_named(names: Sequence[str] | None) -> list[LevelCost]:
    """The planner's levels of these names; None: all of them. PlanError for an unknown one."""
    named = {level.name: level for level in DEFAULT_LEVELS}
    for name in names or ():
        if name not in named:
            raise PlanError(f"level {name!r}: choose among {', '.join(named)}")
    return [named[name] for name in names or named]
