"""Link profiles: what is known of a kind of link, every number with its source.

A profile serves planning (quantiles: "what if the link is as bad as one time in twenty?") and,
through `LinkProfile.shape`, the emulator and the simulator, which need a link that acts it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprofiles.links.schedule import Steps, read_trace
from hwprofiles.links.shape import Curve, LinkShape, PipeShape, default_queue_bytes, uniform

# How long a drawn rate holds in `LinkProfile.shape`: the bin of the recordings the quantiles of the
# cellular profiles come from.
RATE_HOLD_S = 1.0
HORIZON_S = 3600.0  # the drawn hour repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Three quantiles of one quantity, in the unit of the field that holds them.

    `measured` is True when `source` names a recording they were computed from, and False for a data
    sheet, a published figure completed by judgement, or an engineering assumption.
    """

    p05: float
    p50: float
    p95: float
    source: str
    measured: bool

    def __post_init__(self) -> None:
        if not 0 <= self.p05 <= self.p50 <= self.p95:
            raise ValueError("quantiles must satisfy 0 <= p05 <= p50 <= p95")
        if not self.source.strip():
            raise ValueError("quantiles need a source")

    def curve(self) -> Curve:
        """As a distribution: linear between the quantiles, flat beyond them."""
        return Curve(levels=(0.05, 0.5, 0.95), values=(self.p05, self.p50, self.p95))

    def at(self, level: float) -> float:
        """The quantile at `level` in [0, 1]."""
        return self.curve().at(level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """When nothing passes at all: the share of time, and how long one lasts on average."""

    share_of_time: float
    mean_duration_s: float
    source: str
    measured: bool

    def __post_init__(self) -> None:
        if not 0 < self.share_of_time < 1 or self.mean_duration_s <= 0 or not self.source.strip():
            raise ValueError("an outage needs 0 < share_of_time < 1, a duration and a source")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """One kind of link, seen from the edge device: `up` is towards the cloud.

    Rates are what one busy TCP connection gets, outages left out. `rtt_s` is the round trip of a
    small packet on the idle link; its spread is the jitter. `trace`, when given, is a CSV file
    (relative to the folder of the YAML file) that `shape` replays instead of drawing quantiles.
    """

    name: str
    description: str
    up_bytes_per_s: Quantiles
    down_bytes_per_s: Quantiles
    rtt_s: Quantiles
    outage: Outage | None = None
    trace: str | None = None

    def __post_init__(self) -> None:
        if self.up_bytes_per_s.p50 <= 0 or self.down_bytes_per_s.p50 <= 0:
            raise ValueError("the median rates must be positive")

    def jitter_s(self, level: float) -> float:
        """How much longer than on a good moment (p05) a round trip takes, as a quantile."""
        return max(0.0, self.rtt_s.at(level) - self.rtt_s.p05)

    def steady_shape(self, *, seed: int = 0) -> LinkShape:
        """The link at its median rates and round trip time: no jitter, no outage."""
        return LinkShape.fixed(
            rtt_s=self.rtt_s.p50,
            up_bytes_per_s=self.up_bytes_per_s.p50,
            down_bytes_per_s=self.down_bytes_per_s.p50,
            seed=seed,
        )

    def shape(self, *, seed: int = 0, up_bytes_per_s: float | None = None) -> LinkShape:
        """The link acted out: an hour drawn from the quantiles by `seed`, or the recorded trace.

        Ours: each second's rates are drawn independently; outages of exponential length come at
        exponential distances and stop both directions; all jitter is on the way up (where a
        cellular device waits for its grant), so that round trips have exactly the quantiles of
        `rtt_s`. Raises ProfileError when the trace cannot be read.
        """
        if self.trace is not None:
            trace = read_trace(self.trace)
            up = up_bytes_per_s
            if trace.up is None and up is None:
                up = self.up_bytes_per_s.p50
            rtt_s = self.rtt_s.p50 if trace.rtt_s is None else None
            return LinkShape.from_trace(trace, rtt_s=rtt_s, up_bytes_per_s=up, seed=seed)
        starts_s, working = _outages(self.outage, seed)
        delay_s = Steps.constant(self.rtt_s.p05 / 2)
        base = self.rtt_s
        jitter = Curve(
            levels=(0.05, 0.5, 0.95), values=(0.0, base.p50 - base.p05, base.p95 - base.p05)
        )

        def pipe(rate: Quantiles, stream: int, jitter_s: Curve | None) -> PipeShape:
            curve = rate.curve()
            values = tuple(
                curve.at(uniform(8 * seed + stream, k)) if on else 0.0
                for k, on in enumerate(working)
            )
            steps = Steps(starts_s=starts_s, values=values, period_s=HORIZON_S)
            return PipeShape(
                rate=steps,
                delay_s=delay_s,
                jitter_s=jitter_s,
                queue_bytes=default_queue_bytes(steps),
                seed=8 * seed + stream,
            )

        return LinkShape(
            up=pipe(self.up_bytes_per_s, 0, jitter if jitter.values[-1] > 0 else None),
            down=pipe(self.down_bytes_per_s, 1, None),
        )


def _outages(outage: Outage | None, seed: int) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Step starts over the drawn hour, and whether the link works in each step."""
    starts = {k * RATE_HOLD_S for k in range(int(HORIZON_S / RATE_HOLD_S))}
    breaks: list[tuple[float, float]] = []
    if outage is not None:
        mean_gap_s = outage.mean_duration_s * (1 / outage.share_of_time - 1)
        t_s, k = 0.0, 0
        while True:
            begin_s = t_s - mean_gap_s * math.log(1 - uniform(8 * seed + 2, k))
            t_s = begin_s - outage.mean_duration_s * math.log(1 - uniform(8 * seed + 3, k))
            if t_s >= HORIZON_S:
                break
            breaks.append((begin_s, t_s))
            k += 1
    starts.update(edge for pair in breaks for edge in pair)
    ordered = tuple(sorted(starts))
    working, i = [], 0
    for start in ordered:
        while i < len(breaks) and breaks[i][1] <= start:
            i += 1
        working.append(i == len(breaks) or start < breaks[i][0])
    return ordered, tuple(working)
