"""A path over two links: the rates of the narrower at each moment, both round trips, both outages.

The legs are taken as independent. A rate's quantiles are those of the smaller of two draws, the
round trip's those of the sum of two draws, each from the piecewise linear distribution of a leg's
three quantiles. Ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hwprofiles.errors import ProfileError
from hwprofiles.links.profile import LinkProfile, Outage, Quantiles

# Draws from each leg's distribution: its quantiles at the middles of so many equal shares.
_DRAWS: Final = 200


def joined(first: LinkProfile, second: LinkProfile) -> LinkProfile:
    """The path over both legs. Raises ProfileError for a recorded trace: it is a whole path."""
    for leg in (first, second):
        if leg.trace is not None:
            raise ProfileError(
                f"link '{leg.name}' is a recorded trace of a whole path, so it is no leg of one"
            )
    return LinkProfile(
        name=f"{first.name}+{second.name}",
        description=f"{first.description} Then: {second.description}",
        up_bytes_per_s=_of_both(first.up_bytes_per_s, second.up_bytes_per_s, min),
        down_bytes_per_s=_of_both(first.down_bytes_per_s, second.down_bytes_per_s, min),
        rtt_s=_of_both(first.rtt_s, second.rtt_s, lambda one, other: one + other),
        outage=_either(first.outage, second.outage),
    )


def _of_both(
    first: Quantiles, second: Quantiles, take: Callable[[float, float], float]
) -> Quantiles:
    others = _draws(second)
    found = sorted(take(one, other) for one in _draws(first) for other in others)

    def at(level: float) -> float:
        return found[round(level * (len(found) - 1))]

    return Quantiles(
        p05=at(0.05),
        p50=at(0.5),
        p95=at(0.95),
        source=f"Of two legs: {first.source} {second.source}",
        measured=first.measured and second.measured,
    )


def _draws(quantiles: Quantiles) -> list[float]:
    curve = quantiles.curve()
    return [curve.at((index + 0.5) / _DRAWS) for index in range(_DRAWS)]


def _either(first: Outage | None, second: Outage | None) -> Outage | None:
    """Nothing passes while either leg is out. Breaks of both at once are counted twice in the mean
    duration, which is right as long as they are rare."""
    if first is None or second is None:
        return first or second
    breaks = [one.share_of_time / one.mean_duration_s for one in (first, second)]  # a second
    share = 1 - (1 - first.share_of_time) * (1 - second.share_of_time)
    return Outage(
        share_of_time=share,
        mean_duration_s=share / sum(breaks),
        source=f"Of two legs: {first.source} {second.source}",
        measured=first.measured and second.measured,
    )
