"""How far predictions may be off: quantiles of what will be measured, beside the prediction itself.

A prediction t depends on terms t_i: computing on the device, computing on the server, the link's
round trips, messages at the link's rate, and the network stacks with the wake-ups of waiting
threads. Each term is off by a factor exp(s_i N_i), and all of them by a common one, exp(s_0 N_0);
the N are independent and standard normal. With z_q the standard normal quantile, the quantile q of
what is measured is

    t exp(sign(z_q) sqrt((z_q s_0)^2 + sum over i of ln(1 + w_i (exp(z_q s_i) - 1))^2))

Where terms add up, w_i is the term's share. In a pipeline it is what t grows by, relatively, when
the term does so, measured at the term's own p90: a slow link may become the bottleneck. For small
errors this is log-normal with the variance s_0^2 + sum of (w_i s_i)^2; where one term alone is off,
however much, it is exact. The prediction is the median. Between p10 and p90 lie 80 % of what is
measured, between p5 and p95 90 %.

s_i is known by kind of work. A profile has `errors` (`hwprofiles.profiles.errors`): what repeats
varied by, to which `FORMULA` adds what the formulas are off by; or what real runs were off by in
all (`profile refine`), to which nothing is added. Profiles without them have the defaults here.
Ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.errors import Z90, ErrorKind, sd_of_spread
from hwprofiles.profiles.rates import Floats, Quantity
from optimizer.artifacts.prediction import PredictedRange
from optimizer.cost.link import LinkPoint

# What the formulas are off by where a profile was measured on the machine: standard deviations of
# ln(measured / predicted). Steps from the quiet grid of docs/results/predictions.md, where answers
# are off by 0.04 in all, fronts and servers alone by 0.07 and prompts by 0.05; the rest from
# docs/results/planning-and-predictions.md.
FORMULA: Final[Mapping[ErrorKind, float]] = {
    "one_row": 0.05,
    "many_rows": 0.04,
    "message": 0.15,
    "memory": 0.02,
    "power": 0.10,  # a guess: none of our machines has a sensor that a process may read
    "common": 0.0,
}
# The same where rates come from a data sheet: published kernels are off by up to half.
FROM_DATA_SHEET: Final[Mapping[ErrorKind, float]] = {
    "one_row": 0.20,
    "many_rows": 0.25,
    "message": 0.30,
    "memory": 0.05,
    "power": 0.30,
    "common": 0.0,
}
# What repeats of a measured profile vary by, where it does not say.
NOISE: Final[Mapping[ErrorKind, float]] = {
    "one_row": 0.05,
    "many_rows": 0.03,
    "message": 0.10,
    "memory": 0.01,
    "power": 0.05,
    "common": 0.03,
}
# What is left of a single step's noise in the median of an answer's or a prompt's steps. It lasts
# for some steps, so it does not fall with the root of their number. Ours.
AVERAGED: Final = 0.5
_OF_STEPS: Final[frozenset[ErrorKind]] = frozenset(("one_row", "many_rows", "message"))
LEAST_STRETCH: Final = 0.01  # by how much a term is stretched at least to see what it weighs


class Terms(NamedTuple):
    """What a prediction in seconds depends on: w_i t of each term, numbers or arrays."""

    edge: Quantity = 0.0
    cloud: Quantity = 0.0
    round_trip: Quantity = 0.0
    transfer: Quantity = 0.0
    stack: Quantity = 0.0

    def over(self, count: Quantity) -> Terms:
        """The terms of a prediction that is divided by `count`."""
        return Terms(*(value / count for value in self))

    def plus(self, other: Terms) -> Terms:
        """The terms of two predictions that add up."""
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TermErrors:
    """s_i of every term and s_0 (`common`): standard deviations of ln(measured / predicted)."""

    edge: float
    cloud: float
    round_trip: float
    transfer: float
    stack: float
    common: float

    def factor(self, quantile: float, terms: Terms, total: Quantity) -> Floats:
        """What predictions `total`, above 0, that depend on `terms` have to be multiplied by."""
        z = NormalDist().inv_cdf(quantile)
        own = (self.edge, self.cloud, self.round_trip, self.transfer, self.stack)
        squares = np.square(z * self.common)
        for term, error in zip(terms, own, strict=True):
            share = np.clip(np.asarray(term) / total, 0.0, 1.0)
            squares = squares + np.square(np.log1p(share * np.expm1(z * error)))
        return np.asarray(np.exp(np.copysign(np.sqrt(squares), z)))

    def range_of(self, terms: Terms, total: float) -> PredictedRange:
        """p10, p50 and p90 of one prediction; 0 is sure, and so is a dead link."""
        if not 0 < total < math.inf:
            return PredictedRange(total, total, total)
        low, high = (float(self.factor(quantile, terms, total)) for quantile in (0.1, 0.9))
        return PredictedRange(total * low, total, total * high)


def term_errors(
    edge: DeviceProfile, cloud: DeviceProfile, link: LinkPoint, *, kind: ErrorKind, batch: int = 1
) -> TermErrors:
    """The errors of a prediction over this deployment.

    kind: the device's steps, "one_row" in answers and "many_rows" in prompts. batch: sessions of
    the server's steps. The common error is the larger one of the two machines.
    """
    on_cloud: ErrorKind = "many_rows" if batch > 1 else kind
    return TermErrors(
        edge=error_of_kind(edge, kind),
        cloud=error_of_kind(cloud, on_cloud),
        round_trip=link.rtt_sd,
        transfer=link.rate_sd,
        stack=math.hypot(error_of_kind(edge, "message"), error_of_kind(cloud, "message")) / 2**0.5,
        common=max(error_of_kind(edge, "common"), error_of_kind(cloud, "common")),
    )


def error_of_kind(device: DeviceProfile, kind: ErrorKind) -> float:
    """Standard deviation of ln(measured / predicted) of one kind of work on this machine."""
    formula = (FORMULA if device.measured else FROM_DATA_SHEET)[kind]
    errors = device.errors
    spread = None if errors is None else errors.spread_of(kind)
    own = NOISE[kind] if spread is None else sd_of_spread(spread)
    if spread is not None and errors is not None and errors.of_runs:
        return own
    return math.hypot(formula, own * (AVERAGED if kind in _OF_STEPS else 1.0))


def range_of(prediction: float, sigma: float) -> PredictedRange:
    """p10, p50 and p90 of a prediction with one error: the standard deviation of its logarithm."""
    low, high = (prediction * quantile_factor(quantile, sigma) for quantile in (0.1, 0.9))
    return PredictedRange(low, prediction, high)


def quantile_factor(quantile: float, sigma: float) -> float:
    """What such a prediction has to be multiplied by: 1 at the median."""
    return math.exp(NormalDist().inv_cdf(quantile) * sigma)


def weight_of(seconds: Callable[[float], Quantity], base: Quantity, error: float) -> Floats:
    """What t grows by, over what the term does, at the term's p90; 0 where t is infinite.

    seconds: t with the term multiplied by a factor. base: t itself."""
    growth = max(math.expm1(Z90 * error), LEAST_STRETCH)
    with np.errstate(invalid="ignore"):
        grown = (np.asarray(seconds(1 + growth)) - base) / growth
    return np.asarray(np.where(np.isfinite(base), np.maximum(grown, 0.0), 0.0))
