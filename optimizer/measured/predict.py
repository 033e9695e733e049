"""What profiles, or a plan, predict for a measured generation, and what it measured of the same.

Figures in which a generation cannot be compared are left out: the time between tokens where
guesses brought several at once, the time to the first token where a part of the prompt was in the
cache or went up as ids against the plan, memory where the process did other things too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import Quantity
from optimizer.artifacts.half_front import may_have_halves
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prediction import PredictedRange
from optimizer.cost.codec import LevelCost, level_on
from optimizer.cost.levels import DEFAULT_LEVELS, EXTRA_LEVELS, level_at
from optimizer.cost.link import LinkPoint
from optimizer.cost.memory import edge_memory_over
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.cost.quality import QualityModel
from optimizer.cost.request import predict_request, time_ranges
from optimizer.cost.setting import RequestSetting
from optimizer.cost.streaming import reading_s
from optimizer.cost.uncertainty import TermErrors, Terms, error_of_kind, range_of, term_errors
from optimizer.errors import MeasurementError
from optimizer.measured.comparison import ComparedFigure, compared
from optimizer.measured.energy_figures import (
    ENERGY_UNITS,
    measured_energy_figures,
    planned_energy_figures,
    predicted_energy_figures,
)
from optimizer.measured.record import EdgeSteps, MeasuredGeneration
from optimizer.measured.refiner import at_length, predicted_peak_bytes
from optimizer.measured.samples import is_sent_as_rows

TTFT: Final = "TTFT"
TBT: Final = "TBT"
FRONT: Final = "front, one row"
ENCODE: Final = "encode, one row"
WIRE: Final = "wire, one row"
CLOUD: Final = "cloud, one row"
UPLINK: Final = "up a token"
MEMORY: Final = "edge memory"
UNITS: Final[Mapping[str, str]] = {
    TTFT: "s",
    TBT: "s",
    FRONT: "s",
    ENCODE: "s",
    WIRE: "s",
    CLOUD: "s",
    UPLINK: "B",
    MEMORY: "B",
    **ENERGY_UNITS,
}
# A plan's time to the first token is of one length of prompt; others are no test of it.
ALIKE_PROMPT: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionBasis:
    """What predictions are made from: two machines, a link, what is known of the levels, and
    prices."""

    edge: DeviceProfile
    cloud: DeviceProfile
    link: LinkPoint
    quality: QualityModel
    prices: Prices = NO_PRICES


def predicted_figures(
    item: MeasuredGeneration, basis: PredictionBasis
) -> dict[str, PredictedRange]:
    """What `basis` predicts for exactly this generation: its lengths, level and batch.

    Raises MeasurementError for a level that nothing is known of, and ProfileError for a precision
    that a machine has no kernel for.
    """
    plan, answers = item.plan, _answer_steps(item)
    sessions = _mean([step.batch_sessions for step in answers], _weights(answers))
    geometry = plan.model.geometry
    level = level_at(_level_cost(_level_of(item)), basis.quality, plan.partition.split)
    chunk = max((step.num_rows for step in _prompt_steps(item)), default=plan.prefill_chunk)
    setting = RequestSetting(
        edge=basis.edge,
        cloud=basis.cloud,
        link=basis.link,
        geometry=geometry,
        partition=plan.partition,
        kv_bits=plan.kv_bits,
        level=level_on(level, edge=basis.edge, cloud=basis.cloud, hidden_size=geometry.hidden_size),
        chunk=chunk,
        exact_front=plan.exact_front,
        front_layer_bits=plan.front_layer_bits,
        prefill=plan.prefill,
        reading_s=reading_s(basis.edge, plan),
    )
    batch = max(1, round(sessions))
    time = predict_request(
        setting, prompt_tokens=item.prompt_tokens, new_tokens=item.num_tokens, batch=batch
    )
    ranges = time_ranges(setting, time, batch=batch)
    errors = term_errors(basis.edge, basis.cloud, basis.link, kind="one_row", batch=batch)
    terms = time.tbt_terms
    parts = time.round_parts
    wire = Terms(round_trip=terms.round_trip, transfer=terms.transfer, stack=terms.stack)
    cloud_s = 0.0 if plan.edge_is_whole else float(parts.queue_s + parts.cloud_s)
    memory = predicted_peak_bytes(basis.edge, item)
    return {
        TTFT: ranges.ttft,
        TBT: ranges.tbt,
        FRONT: _ranged(parts.front_s, errors, Terms(edge=parts.front_s)),
        ENCODE: _ranged(parts.encode_s, errors, Terms(edge=parts.encode_s)),
        WIRE: _ranged(parts.wire_s, errors, wire),
        CLOUD: _ranged(cloud_s, errors, Terms(cloud=cloud_s)),
        UPLINK: range_of(time.uplink_bytes_per_token, 0.0),
        MEMORY: range_of(memory, error_of_kind(basis.edge, "memory")),
        **predicted_energy_figures(
            item, setting, time, ranges.tbt, prices=basis.prices, batch=batch
        ),
    }


def _counts_halves(plan: Plan) -> bool:
    """Whether the plan's prediction counts 16-bit weights that are not widened."""
    if plan.predicted is None or not may_have_halves(plan):
        return False
    return plan.predicted.edge_memory.weight_bytes < edge_memory_over(0.0, plan).weight_bytes


def _ranged(seconds: Quantity, errors: TermErrors, terms: Terms) -> PredictedRange:
    """The range of one part, which may be nothing."""
    value = float(seconds)
    return errors.range_of(terms, value)


def planned_figures(item: MeasuredGeneration, plan: Plan) -> dict[str, PredictedRange]:
    """What `plan`, which has predictions, predicted for this generation.

    Its time to the first token counts only for a prompt of about the planned length; its memory is
    taken at this generation's length. A plan does not say how sure the parts of a step are.
    MeasurementError for a plan without predictions.
    """
    found = plan.predicted
    if found is None:
        raise MeasurementError("this plan has no predictions (it was made from flags)")
    figures = {
        TTFT: found.ttft_s,
        TBT: found.tbt_s,
        FRONT: found.step.front_s,
        ENCODE: found.step.encode_s,
        WIRE: found.step.wire_s,
        CLOUD: found.step.cloud_s,
        UPLINK: found.uplink_bytes_per_token,
        MEMORY: edge_memory_over(
            found.edge_memory.runtime_bytes,
            replace(at_length(item), limits=plan.limits),
            halves=_counts_halves(plan),
        ).total_bytes
        + found.edge_memory.draft_bytes,
    }
    planned = 0 if plan.limits is None else plan.limits.prompt_tokens
    is_alike = abs(item.prompt_tokens - planned) <= ALIKE_PROMPT * planned
    if not is_alike:
        del figures[TTFT]
    ranges = {name: range_of(value, 0.0) for name, value in figures.items()}
    if found.ranges is not None:
        known = {TTFT: found.ranges.ttft_s, TBT: found.ranges.tbt_s}
        known[MEMORY] = found.ranges.edge_memory_bytes
        ranges |= {name: known[name].around(figures[name]) for name in known if name in figures}
    return ranges | (planned_energy_figures(item, plan) if is_alike else {})


def measured_figures(item: MeasuredGeneration, prices: Prices = NO_PRICES) -> dict[str, float]:
    """The same figures as measured, without those that cannot be compared."""
    answers, prompt = _answer_steps(item), _prompt_steps(item)
    figures = measured_energy_figures(item, prices)
    whole_prompt = sum(step.num_rows * step.num_steps for step in prompt) >= item.prompt_tokens
    as_planned = all(is_sent_as_rows(step.level) for step in prompt) or item.plan.prefill != "edge"
    if item.plan.partition.split == 0:
        as_planned = True
    if item.ttft_s and whole_prompt and as_planned:
        figures[TTFT] = item.ttft_s
    if item.program == "run":
        figures[MEMORY] = float(item.peak_memory_bytes)
    if not answers or any(step.num_rows > 1 for step in answers):
        return figures
    weights = _weights(answers)
    if item.tbt_s:
        figures[TBT] = item.tbt_s
    figures[FRONT] = _middle([step.front_s for step in answers], weights)
    figures[ENCODE] = _middle([step.encode_s for step in answers], weights)
    figures[WIRE] = _middle([step.wire_s for step in answers], weights)
    figures[CLOUD] = _middle([step.cloud_s for step in answers], weights)
    figures[UPLINK] = _mean([step.uplink_bytes for step in answers], weights)
    return figures


def compare_generations(
    items: Sequence[MeasuredGeneration],
    predictions: Sequence[Mapping[str, PredictedRange]],
    *,
    prices: Prices = NO_PRICES,
) -> list[ComparedFigure]:
    """Every figure that was both measured and predicted, in the order of `UNITS`. One mapping of
    predictions a generation. prices: of what was measured."""
    pairs: dict[str, list[tuple[PredictedRange, float]]] = {}
    for item, predicted in zip(items, predictions, strict=True):
        measured = measured_figures(item, prices)
        for figure in UNITS:
            value = measured.get(figure, 0.0)
            if figure in predicted and value > 0 and predicted[figure].p50 > 0:
                pairs.setdefault(figure, []).append((predicted[figure], value))
    return [
        compared(figure, unit, *map(list, zip(*pairs[figure], strict=True)))
        for figure, unit in UNITS.items()
        if figure in pairs
    ]


def _answer_steps(item: MeasuredGeneration) -> list[EdgeSteps]:
    return [step for step in item.steps if step.phase == "decode"]


def _prompt_steps(item: MeasuredGeneration) -> list[EdgeSteps]:
    return [step for step in item.steps if step.phase == "prefill"]


def _level_of(item: MeasuredGeneration) -> str:
    """The level of most answer frames; the plan's where there is none that has a level."""
    counts: dict[str, int] = {}
    for step in _answer_steps(item):
        if step.level != "none" and is_sent_as_rows(step.level):
            counts[step.level] = counts.get(step.level, 0) + step.num_steps
    return max(counts, key=counts.__getitem__, default=item.plan.level)


def _level_cost(name: str) -> LevelCost:
    known = {level.name: level for level in (*DEFAULT_LEVELS, *EXTRA_LEVELS)}
    if name not in known:
        raise MeasurementError(f"level {name!r}: nothing is known of what it costs")
    return known[name]


def _weights(steps: Sequence[EdgeSteps]) -> list[int]:
    return [step.num_steps for step in steps]


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return float(np.average(values, weights=weights)) if values else 0.0


def _middle(values: Sequence[float], weights: Sequence[int]) -> float:
    """The median, each value as often as its weight says."""
    order = np.argsort(values, kind="stable")
    heights = np.cumsum(np.asarray(weights)[order])
    at = int(np.searchsorted(heights, heights[-1] / 2))
    return float(np.asarray(values)[order][at])
