"""Energy, cost and the rate that lasts: predicted for a measured generation, and as measured.

Figures that nobody can know are left out: energy without a sensor, or of another sensor than the
profile's; the rate that lasts of an answer that did not last; cost without prices. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prediction import PredictedEnergy, PredictedRange
from optimizer.cost.energy import answer_cost, answer_joules, lasting_rate, measured_watts
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.cost.request import RequestTime
from optimizer.cost.setting import RequestSetting
from optimizer.measured.record import MeasuredGeneration

ENERGY: Final = "energy of an answer"
LASTING: Final = "rate that lasts"
COST: Final = "cost of an answer"
ENERGY_UNITS: Final[Mapping[str, str]] = {ENERGY: "J", LASTING: "tokens/s", COST: "money"}
# A plan's cost is of one length of answer; others are no test of it.
ALIKE_ANSWER: Final = 0.1


def predicted_energy_figures(
    item: MeasuredGeneration,
    setting: RequestSetting,
    time: RequestTime,
    tbt: PredictedRange,
    *,
    prices: Prices,
    batch: int,
) -> dict[str, PredictedRange]:
    """What profiles predict for this generation, which `setting` and `time` are of."""
    lengths = {"prompt_tokens": item.prompt_tokens, "new_tokens": item.num_tokens}
    found: dict[str, PredictedRange] = {}
    used = answer_joules(setting, time, batch=batch, **lengths)
    if used is not None and is_of_sensor(item, sensor_of(setting.edge)):
        found[ENERGY] = used.per_answer
    lasting = lasting_rate(setting.edge, tbt)
    if lasting is not None and (item.further_s or 0.0) >= lasting.after_s:
        found[LASTING] = lasting.tokens_per_s
    if prices.are_given and (
        prices.energy_per_kwh is None or is_of_sensor(item, sensor_of(setting.edge))
    ):
        cost = answer_cost(setting, time, prices, batch=batch, **lengths)
        if cost is not None:
            found[COST] = cost
    return found


def planned_energy_figures(item: MeasuredGeneration, plan: Plan) -> dict[str, PredictedRange]:
    """What a plan predicted for a generation with about the planned prompt."""
    predicted, found = plan.predicted, dict[str, PredictedRange]()
    if predicted is None:
        return found
    energy, lasting, cost = predicted.energy, predicted.lasting, predicted.cost
    if energy is not None and is_of_sensor(item, energy.sensor):
        found[ENERGY] = _at_length(energy, item.num_tokens)
    if lasting is not None and (item.further_s or 0.0) >= lasting.after_s:
        found[LASTING] = lasting.tokens_per_s
    if cost is not None and cost.per_answer is not None:
        apart = abs(item.num_tokens - cost.answer_tokens)
        of_sensor = energy is not None and is_of_sensor(item, energy.sensor)
        if apart <= ALIKE_ANSWER * cost.answer_tokens and (
            cost.energy_per_kwh is None or of_sensor
        ):
            found[COST] = cost.per_answer.around(
                cost.per_answer.p50 * item.num_tokens / cost.answer_tokens
            )
    return found


def prices_of(plan: Plan) -> Prices:
    """The prices that a plan was made with."""
    cost = None if plan.predicted is None else plan.predicted.cost
    if cost is None:
        return NO_PRICES
    return Prices(cloud_per_hour=cost.cloud_per_hour, energy_per_kwh=cost.energy_per_kwh)


def measured_energy_figures(
    item: MeasuredGeneration, prices: Prices = NO_PRICES
) -> dict[str, float]:
    """The same figures as measured; those of answers alone that went as predicted."""
    found: dict[str, float] = {}
    drafted = any(step.phase == "decode" and step.num_rows > 1 for step in item.steps)
    if drafted:
        return found
    if item.energy is not None:
        found[ENERGY] = item.energy.joules
    if item.further_s and item.num_tokens > 1:
        found[LASTING] = (item.num_tokens - 1) / item.further_s
    server_s = sum(step.server_s * step.num_steps for step in item.steps)
    is_known = server_s > 0 or item.plan.edge_is_whole  # older logs have no seconds of the server
    if prices.are_given and is_known and (item.energy or prices.energy_per_kwh is None):
        joules = 0.0 if item.energy is None else item.energy.joules
        found[COST] = float(prices.cost(cloud_s=server_s, joules=joules))
    return found


def energy_note(item: MeasuredGeneration, *, device: DeviceProfile | None, plan: Plan) -> str:
    """Why there is no energy to compare, or "": of `device`, or what the plan's profile had."""
    if item.energy is None:
        return "energy: no sensor on the device, or answers overlap"
    known = plan.predicted.energy.sensor if plan.predicted and plan.predicted.energy else ""
    if device is not None:
        known = sensor_of(device)
    if not known:
        return "energy: no sensor in the device's profile ('profile device --sustained')"
    if known != item.energy.sensor:
        return f"energy: measured by {item.energy.sensor}, predicted for {known}"
    return ""


def sensor_of(device: DeviceProfile) -> str:
    """The sensor whose watts the profile has; empty without one."""
    if device.power is None or measured_watts(device) is None:
        return ""
    return device.power.sensor


def is_of_sensor(item: MeasuredGeneration, sensor: str) -> bool:
    """Whether this sensor measured the generation: figures of two sensors do not compare."""
    return item.energy is not None and bool(sensor) and item.energy.sensor == sensor


def _at_length(energy: PredictedEnergy, num_tokens: int) -> PredictedRange:
    first, each = energy.first_token_joules.p50, energy.joules_per_token.p50
    return energy.joules_per_answer.around(first + max(num_tokens - 1, 0) * each)
