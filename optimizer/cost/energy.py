"""What a device's own sensor will measure during an answer, and the rate that lasts.

Ours. A sensor sees the device while it computes and while it waits, so an answer takes

    working watts * busy seconds + waiting watts * (seconds - busy seconds)

Both watts are what the profile's sensor measured: under the front's load and on the idle machine.
Busy seconds are the device's own: front, encoder, drafter, and sampling where the device is whole.
What a radio takes beyond the idle machine is not modelled. A profile without both has no sensor,
and nothing is predicted: the most that a data sheet states is no prediction.

The time between tokens already counts with the speed that lasts, where the profile measured it;
the rate that lasts is its inverse.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, NamedTuple

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.errors import ErrorKind
from hwprofiles.profiles.rates import Quantity
from optimizer.artifacts.prediction import (
    PredictedCost,
    PredictedEnergy,
    PredictedLasting,
    PredictedRange,
)
from optimizer.cost.cloud import sample_s
from optimizer.cost.money import PER_MILLION, Prices, watts_of
from optimizer.cost.prompt import front_prefill_s, prompt_chunks, prompt_ids
from optimizer.cost.request import RequestTime
from optimizer.cost.setting import RequestSetting
from optimizer.cost.uncertainty import TermErrors, Terms, error_of_kind, term_errors

# A rate is one that lasts after this long, or twice as long as the profile took to get slow.
LASTING_S: Final = 60.0
NO_SENSOR: Final = (
    "no sensor: the profile {} has no measured watts ('splitpoint profile device --sustained' "
    "measures them where a sensor can be read)"
)


class DeviceWatts(NamedTuple):
    """Watts while the device waits and while it computes; the second are never the smaller."""

    waiting: float
    working: float


def measured_watts(device: DeviceProfile) -> DeviceWatts | None:
    """What the profile's sensor measured; None without a sensor."""
    power = device.power
    if power is None or power.idle_watts is None or power.load_watts is None:
        return None
    waiting = power.idle_watts.value
    return DeviceWatts(waiting, max(waiting, power.load_watts.value))


def joules(watts: DeviceWatts, *, seconds: Quantity, busy_s: Quantity) -> Quantity:
    """Joules of `seconds`, in `busy_s` of which the device computes."""
    return watts.waiting * seconds + (watts.working - watts.waiting) * busy_s


def joule_terms(watts: DeviceWatts, terms: Terms, *, busy_s: Quantity) -> Terms:
    """What these joules depend on. terms: what the seconds do."""
    waited = Terms(*(watts.waiting * term for term in terms))
    return waited._replace(edge=waited.edge + (watts.working - watts.waiting) * busy_s)


def with_power_error(errors: TermErrors, device: DeviceProfile) -> TermErrors:
    """The errors of joules: those of the times, and the sensor's watts as a common one."""
    return replace(errors, common=math.hypot(errors.common, error_of_kind(device, "power")))


def with_energy_error(errors: TermErrors, device: DeviceProfile) -> TermErrors:
    """The errors of money: the device's part is off by its watts too."""
    return replace(errors, edge=math.hypot(errors.edge, error_of_kind(device, "power")))


class AnswerJoules(NamedTuple):
    """Joules until the first token, between tokens, and of a whole answer."""

    first_token: PredictedRange
    per_token: PredictedRange
    per_answer: PredictedRange


def answer_joules(
    setting: RequestSetting,
    time: RequestTime,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
) -> AnswerJoules | None:
    """What the device takes for one request, whose time is `time`; None without a sensor.

    Of a whole answer each term's larger error counts, the prompt's or the tokens'.
    """
    watts = measured_watts(setting.edge)
    if watts is None:
        return None
    prompt_s = prompt_busy_s(setting, num_tokens=prompt_tokens, batch=batch)
    first = float(joules(watts, seconds=time.ttft_s, busy_s=prompt_s))
    first_terms = joule_terms(watts, time.ttft_terms, busy_s=prompt_s)
    token_s = time.edge_s_per_token
    each = float(joules(watts, seconds=time.tbt_s, busy_s=token_s))
    each_terms = joule_terms(watts, time.tbt_terms, busy_s=token_s)
    further = max(new_tokens - 1, 0)
    of_prompt = with_power_error(_errors(setting, "many_rows", batch), setting.edge)
    of_token = with_power_error(_errors(setting, "one_row", batch), setting.edge)
    both = Terms(*(a + further * b for a, b in zip(first_terms, each_terms, strict=True)))
    return AnswerJoules(
        of_prompt.range_of(first_terms, first),
        of_token.range_of(each_terms, each),
        _larger(of_prompt, of_token).range_of(both, first + further * each),
    )


def predicted_energy(
    setting: RequestSetting,
    time: RequestTime,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
) -> PredictedEnergy | None:
    """The same as a plan's record."""
    lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    found = answer_joules(setting, time, batch=batch, **lengths)
    if found is None or setting.edge.power is None:
        return None
    return PredictedEnergy(
        first_token_joules=found.first_token,
        joules_per_token=found.per_token,
        joules_per_answer=found.per_answer,
        answer_tokens=new_tokens,
        sensor=setting.edge.power.sensor,
    )


def predicted_cost(
    setting: RequestSetting,
    time: RequestTime,
    prices: Prices,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
) -> PredictedCost | None:
    """Money by these prices (`optimizer.cost.money`); None without one."""
    if not prices.are_given:
        return None
    watts = watts_of(setting.edge) or 0.0
    terms = Terms(
        edge=prices.cost(cloud_s=0.0, joules=watts * time.edge_s_per_token),
        cloud=prices.cost(cloud_s=time.cloud_s_per_token, joules=0.0),
    )
    errors = with_energy_error(_errors(setting, "one_row", batch), setting.edge)
    per_token = errors.range_of(terms, float(terms.edge + terms.cloud))
    return PredictedCost(
        per_million_tokens=per_token.around(PER_MILLION * per_token.p50),
        per_answer=answer_cost(
            setting,
            time,
            prices,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch=batch,
        ),
        answer_tokens=new_tokens,
        cloud_per_hour=prices.cloud_per_hour,
        energy_per_kwh=prices.energy_per_kwh,
    )


def answer_cost(
    setting: RequestSetting,
    time: RequestTime,
    prices: Prices,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
) -> PredictedRange | None:
    """Money for one answer, prompt and waiting included, as a sensor and a server's clock have it.
    None where energy has a price and no sensor measures it."""
    lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    used = answer_joules(setting, time, batch=batch, **lengths)
    if used is None and prices.energy_per_kwh is not None:
        return None
    energy = 0.0 if used is None else float(prices.cost(cloud_s=0.0, joules=used.per_answer.p50))
    server = float(prices.cost(cloud_s=time.cloud_s, joules=0.0))
    errors = _larger(_errors(setting, "many_rows", batch), _errors(setting, "one_row", batch))
    errors = with_energy_error(errors, setting.edge)
    return errors.range_of(Terms(edge=energy, cloud=server), energy + server)


def lasting_rate(device: DeviceProfile, tbt: PredictedRange) -> PredictedLasting | None:
    """Tokens a second that the device keeps up; None where no long load was measured."""
    load = None if device.power is None else device.power.sustained
    if load is None or not 0 < tbt.p10 <= tbt.p90 < math.inf:
        return None
    return PredictedLasting(
        tokens_per_s=PredictedRange(1 / tbt.p90, 1 / tbt.p50, 1 / tbt.p10),
        after_s=max(LASTING_S, 2 * (load.drop_after_s or 0.0)),
    )


def prompt_busy_s(setting: RequestSetting, *, num_tokens: int, batch: int = 1) -> float:
    """Seconds that the device computes for a prompt."""
    if setting.is_whole:
        drawn_s = sample_s(setting.edge, setting.geometry, num_logits=1)
        return float(front_prefill_s(setting, num_tokens).sum()) + drawn_s
    as_ids = prompt_ids(setting, num_tokens=num_tokens, batch=batch)
    return float(prompt_chunks(setting, num_tokens=num_tokens, num_ids=as_ids).edge_s.sum())


def _errors(setting: RequestSetting, kind: ErrorKind, batch: int) -> TermErrors:
    return term_errors(setting.edge, setting.cloud, setting.link, kind=kind, batch=batch)


def _larger(one: TermErrors, other: TermErrors) -> TermErrors:
    """Each term's larger error."""
    return replace(one, edge=max(one.edge, other.edge), cloud=max(one.cloud, other.cloud))
