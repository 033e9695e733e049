"""Seconds on the wire at a quantile of the link, and seconds of a pipeline over it.

Ours: one direction takes half the round trip plus the bytes at the rate that holds with
probability 1 - eps (epsilon-outage: the eps-quantile of the rate, the (1 - eps)-quantile of the
round trip). Rate and round trip are taken at their bad quantiles together, which errs on the
safe side when they are not fully dependent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from hwprofiles.links.profile import LinkProfile, Quantiles
from hwprofiles.profiles.rates import Floats, Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPoint:
    """One state of a link: rates in bytes per second, round trip in seconds.

    `rtt_sd`, `rate_sd`: standard deviations of the logarithms of round trip and uplink
    rate, by how much they may be another; 0: this state is what there is.
    """

    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_s: float
    rtt_sd: float = 0.0
    rate_sd: float = 0.0


def link_at(profile: LinkProfile, *, epsilon: float) -> LinkPoint:
    """The link as it is at least as good as with probability 1 - epsilon; 0.5 is its median.

    At its median it varies as the profile says. Another state is what somebody asked about, so it
    has no spread.
    """
    is_median = epsilon == 0.5
    return LinkPoint(
        up_bytes_per_s=profile.up_bytes_per_s.at(epsilon),
        down_bytes_per_s=profile.down_bytes_per_s.at(epsilon),
        rtt_s=profile.rtt_s.at(1 - epsilon),
        rtt_sd=_log_sd(profile.rtt_s) if is_median else 0.0,
        rate_sd=_log_sd(profile.up_bytes_per_s) if is_median else 0.0,
    )


def _log_sd(quantiles: Quantiles) -> float:
    """Standard deviation of the logarithm, from the 5 % and the 95 % quantile; 0 where one is 0."""
    if quantiles.p05 <= 0:
        return 0.0
    return math.log(quantiles.p95 / quantiles.p05) / (2 * NormalDist().inv_cdf(0.95))


def transfer_s(num_bytes: Quantity, bytes_per_s: float) -> Quantity:
    """Seconds of so many bytes at this rate; infinite when the rate is zero."""
    return num_bytes / bytes_per_s if bytes_per_s > 0 else math.inf


def pipeline_s(
    front_s: npt.ArrayLike,
    wire_s: npt.ArrayLike,
    back_s: npt.ArrayLike,
    *,
    link_free_s: Quantity = 0.0,
) -> Floats:
    """Seconds until the last chunk leaves a three-stage pipeline: edge, uplink, cloud.

    The last axis of each argument holds the chunks; the others broadcast. Chunk i enters a stage
    when it has left the one before and chunk i-1 has left this one (a permutation flow shop; exact
    by this recurrence). `link_free_s`: the uplink takes nothing before.
    """
    front, wire, back = (np.asarray(stage, dtype=np.float64) for stage in (front_s, wire_s, back_s))
    done_front = np.zeros(front.shape[:-1])
    done_wire = np.asarray(link_free_s, dtype=np.float64)
    stages = (done_front.shape, wire.shape[:-1], done_wire.shape, back.shape[:-1])
    done_back = np.zeros(np.broadcast_shapes(*stages))
    for chunk in range(front.shape[-1]):
        done_front = done_front + front[..., chunk]
        done_wire = np.maximum(done_wire, done_front) + wire[..., chunk]
        np.maximum(done_back, done_wire, out=done_back)
        done_back += back[..., chunk]
    return done_back
